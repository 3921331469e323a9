"""Pages from stored facts: one self-contained HTML file per run, and one that sets runs side by side.

Everything on a page is read from the files of a run folder; nothing is computed anew from a model, and nothing is
fetched from anywhere.
"""

from .comparison import compare, comparison_rows, write_comparison
from .page import write_report

__all__ = ["compare", "comparison_rows", "write_comparison", "write_report"]
