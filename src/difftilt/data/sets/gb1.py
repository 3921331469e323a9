"""``gb1``: binding of protein G domain B1 with every combination of residues at four sites (Wu et al. 2016).

149,361 of the 160,000 variants of V39, D40, G41 and V54 were measured; the others are absent, not zero. The origin is
one CSV in a zip file. Its form was not seen when this was written: columns are taken by the names that public code
and FLIP's own page give them, and the result is checked.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

from difftilt.data.record import Columns, DataSet, Origin, pick
from difftilt.data.table import Table

WILD_TYPE = "VDGV"
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
SPLITS = ("two_vs_rest", "three_vs_rest", "low_vs_high")


def tidy(texts: Sequence[str]) -> Columns:
    """Sorted by variant; a split where FLIP keeps the row, else empty."""
    reader = csv.DictReader(io.StringIO(texts[0]))
    header = reader.fieldnames or []
    variant, distance, fitness = pick(header, "Variants"), pick(header, "HD"), pick(header, "Fitness")
    before, after, keep = pick(header, "Count input"), pick(header, "Count selected"), pick(header, "keep")
    splits = [pick(header, name) for name in SPLITS]
    columns: Columns = {name: [] for name in SETS[0].columns}
    for row in sorted(reader, key=lambda row: row[variant]):
        kept = row[keep].strip().lower() in ("true", "1", "1.0")
        counts = (int(float(row[name])) for name in (distance, before, after))
        values = row[variant], round(float(row[fitness]), 8), *counts, int(kept)
        for column, value in zip(columns.values(), (*values, *(row[s] if kept else "" for s in splits)), strict=True):
            column.append(value)
    return columns


def rule(table: Table) -> str | None:
    """Each variant once, sorted; distances to the wild type; splits where FLIP keeps a row, and only there."""
    if len(set(table.sequences)) != len(table) or table.sequences != sorted(table.sequences):
        return "variants that are repeated or not sorted"
    distance = [sum(a != b for a, b in zip(variant, WILD_TYPE, strict=True)) for variant in table.sequences]
    if (table.column("n_mutations") != distance).any():
        return "numbers of mutations that are not those of the variants"
    kept = table.column("flip_keep") == 1
    if kept.sum() != 8_733 or any((kept != (table.column(f"flip_{name}") != "")).any() for name in SPLITS):
        return "splits that are not FLIP's"
    return None if np.min(table.column("count_input")) >= 10 else "variants with fewer than 10 input reads"


SETS = (
    DataSet(
        name="gb1",
        title="four sites of protein G domain B1, binding to IgG-Fc by mRNA display, relative to wild type",
        file="gb1/gb1_four_site.csv.gz",
        sha256="80fa5dfa7bbb8645a811da448dfc0ae3d938ddfed499a392de4429086e0429b9",
        rows=(149_361,),
        columns=(
            "sequence", "score", "n_mutations", "count_input", "count_selected", "flip_keep",
            *(f"flip_{name}" for name in SPLITS),
        ),
        length=len(WILD_TYPE),
        alphabet=AMINO_ACIDS,
        score_range=(0.0, 9.0),
        mean_score=(0.080510, 2e-6),
        landmarks={WILD_TYPE: 1.0, "FWAA": 8.76196566, "FYAA": 8.045152},
        origins=(
            Origin(
                "J-SNACKKB/FLIP",
                "62cace8735f5610e2743cf06ce0f944b37fffaa6",
                "splits/gb1/four_mutations_full_data.csv.zip",
            ),
        ),
        tidy=tidy,
        rule=rule,
        licence="AFL-3.0 (FLIP's data); CC BY 4.0 (the paper's)",
        citation="Wu et al., eLife 5, e16965 (2016), doi 10.7554/eLife.16965",
    ),
)  # fmt: skip
