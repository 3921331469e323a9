"""``yeast-promoter``: 80-bp yeast promoter inserts and the expression they drive (Vaishnav et al. 2022).

The origin is eight CSV files, one per category and medium, of three kinds. Those of native and random promoters in
complex medium have ``,sequence,Measured Expression,Predicted Expression``; drift has ``seq110``, ``meanEL.mut``,
``sdEL`` and ``proTotal`` among others; the rest ``seq110``, ``meanEL``, ``sdEL`` and ``proTotal``. A sequence there
is 110 bp, the insert between two constant flanks; shorter inserts are padded with N in front. These forms were seen
in a public index of the repository (other commits); rows there tidy to the rows this project has.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

from difftilt.data.record import Columns, DataSet, Origin, pick
from difftilt.data.table import Table

LEFT, RIGHT, LENGTH = "TGCATTTTTTTCACATC", "GGTTACGGCTGTT", 80

FOLDER = "manuscript_code/model"
SOURCES = (  # file, medium, category, in the order of the tidy file
    ("reproduce_test_data_performance/Random_defined.csv", "defined", "random"),
    ("reproduce_test_data_performance/Random_complex.csv", "complex", "random"),
    ("results_summary/Native_testdata_defined_media.csv", "defined", "native"),
    ("reproduce_test_data_performance/Native_complex.csv", "complex", "native"),
    ("results_summary/Drift_testdata_defined_media.csv", "defined", "drift"),
    ("results_summary/Drift_testdata.csv", "complex", "drift"),
    ("results_summary/SSWM_testdata_defined_media.csv", "defined", "sswm"),
    ("results_summary/SSWM_testdata.csv", "complex", "sswm"),
)


def tidy(texts: Sequence[str]) -> Columns:
    """Inserts of exactly 80 bp between the exact flanks; the first value of each sequence in each medium."""
    columns: Columns = {name: [] for name in SETS[0].columns}
    seen: set[tuple[str, str]] = set()
    for text, (_, medium, category) in zip(texts, SOURCES, strict=True):
        reader = csv.DictReader(io.StringIO(text))
        header = reader.fieldnames or []
        construct = pick(header, "seq110", "sequence")
        score = pick(header, "meanEL.mut", "meanEL", "Measured Expression")
        measured = "sdEL" in header and "proTotal" in header
        for row in reader:
            insert = row[construct].removeprefix(LEFT).removesuffix(RIGHT)
            if row[construct] != LEFT + insert + RIGHT or len(insert) != LENGTH or (insert, medium) in seen:
                continue
            seen.add((insert, medium))
            std = round(float(row["sdEL"]), 6) if measured else None
            reads = int(float(row["proTotal"])) if measured else None
            values = insert, round(float(row[score]), 6), std, reads, medium, category
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    return columns


def rule(table: Table) -> str | None:
    """Each sequence once per medium; the eight parts in order; reads where there is a spread, and only there."""
    medium, category = table.column("medium"), table.column("category")
    if len(set(zip(table.sequences, medium.tolist(), strict=True))) != len(table):
        return "a sequence twice in one medium"
    parts = list(dict.fromkeys(zip(medium.tolist(), category.tolist(), strict=True)))
    if parts != [(m, c) for _, m, c in SOURCES]:
        return f"parts {parts}"
    std, reads = table.column("std"), table.column("n_reads")
    if (np.isnan(std) != np.isnan(reads)).any() or (std < 0).any() or (reads < 1).any():
        return "spreads or read counts out of range"
    return None


SETS = (
    DataSet(
        name="yeast-promoter",
        title="80-bp yeast promoter inserts, mean expression by sort-seq in two media",
        file="yeast_promoter/vaishnav2022.csv.gz",
        sha256="bb60fcacd243f5205986d36cf7158d59c7804ce7862cd9bba48565d3e3545f5f",
        rows=(37_143,),
        columns=("sequence", "score", "std", "n_reads", "medium", "category"),
        length=LENGTH,
        alphabet="ACGT",
        score_range=(0.0, 17.0),
        mean_score=(9.620233, 2e-6),
        landmarks={"AAAAGTAGGTTCTTGCAGCATTCTGATGCACGTATAGGCGCGATGGATGGCAGCGGGAATGCGGTTAAGCGGTGGATCAA": 8.735497},
        origins=tuple(
            Origin("1edv/evolution", "bf4a41983a82ac81b3ef60fa33fc0e253760c73d", f"{FOLDER}/{file}")
            for file, _, _ in SOURCES
        ),
        tidy=tidy,
        rule=rule,
        licence="MIT",
        citation="Vaishnav et al., Nature 603, 455 (2022), doi 10.1038/s41586-022-04506-6",
    ),
)
