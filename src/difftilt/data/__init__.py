"""Data: named sets from public origins, one's own files, and splits that do not leak.

- Named sets: :func:`names`, :func:`dataset`, :func:`load`, :func:`locate`, :func:`find`, :func:`prepare`,
  :func:`check`.
- One's own CSV, FASTA, Parquet: :func:`read_designs`, :func:`validate`, :func:`merge_repeats`, :func:`write_designs`.
- Splits: :func:`cluster_split`, :func:`random_split`, :func:`hamming_clusters`.
"""

from .letters import validate
from .places import cache_root, data_roots, find, load, locate
from .preparing import check, prepare
from .readers import read_designs
from .record import DataSet, Origin
from .registry import dataset, names
from .split import cluster_split, hamming_clusters, random_split
from .table import Table, merge_repeats
from .writers import write_designs

__all__ = [
    "DataSet",
    "Origin",
    "Table",
    "cache_root",
    "check",
    "cluster_split",
    "data_roots",
    "dataset",
    "find",
    "hamming_clusters",
    "load",
    "locate",
    "merge_repeats",
    "names",
    "prepare",
    "random_split",
    "read_designs",
    "validate",
    "write_designs",
]
