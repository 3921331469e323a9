"""``utr-mrl``: random 50-nt 5'UTRs and their mean ribosome load (Sample et al. 2019).

The origin is a CSV file, header ``,utr,total,rl,energy_5utr`` (a data frame's index first), sorted by ``total``; its
form was seen in a public index of the repository (another commit). It has 20,000 rows; the file this project was
built with holds a random 18,000 of them. Who prepares the set from the origin gets all 20,000, so ours and more:
either row count is right, and the mean score may differ by chance.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from difftilt.data.record import Columns, DataSet, Origin, pick
from difftilt.data.table import Table


def tidy(texts: Sequence[str]) -> Columns:
    """The origin's rows in its order; scores to six decimals; upstream start codons counted here."""
    reader = csv.DictReader(io.StringIO(texts[0]))
    header = reader.fieldnames or []
    utr, total, load, energy = (pick(header, name) for name in ("utr", "total", "rl", "energy_5utr"))
    rows = list(reader)
    return {
        "sequence": [row[utr] for row in rows],
        "score": [round(float(row[load]), 6) for row in rows],
        "total_normalised": [float(row[total]) for row in rows],
        "mfe_kcal_mol": [float(row[energy]) for row in rows],
        "n_uatg": [row[utr].count("ATG") for row in rows],
    }


def rule(table: Table) -> str | None:
    """No repeats; ``n_uatg`` is the number of ATG; the source's order and the sign of the energies are kept."""
    if len(set(table.sequences)) != len(table):
        return "repeated sequences"
    if any(n != s.count("ATG") for n, s in zip(table.column("n_uatg"), table.sequences, strict=True)):
        return "n_uatg that is not the number of ATG"
    if (table.column("mfe_kcal_mol") > 0).any():
        return "positive folding energies"
    total = table.column("total_normalised")
    return None if (total[1:] <= total[:-1]).all() else "rows not sorted by total_normalised"


SETS = (
    DataSet(
        name="utr-mrl",
        title="random 50-nt 5'UTRs before eGFP in HEK293T cells, mean ribosome load",
        file="utr_mrl/sample2019_egfp_m1pseudo_2.csv.gz",
        sha256="d1b5c028ba14ab5ea17777bc5de0025a0df9c950f5a5901b8895dcaf1979da1d",
        rows=(18_000, 20_000),
        columns=("sequence", "score", "total_normalised", "mfe_kcal_mol", "n_uatg"),
        length=50,
        alphabet="ACGT",
        score_range=(0.0, 12.0),
        mean_score=(5.62698, 0.02),
        landmarks={
            "GTGATCAGCTCCTGATCCACGCGTTTAAGCAAAGTAGGTGAAGCTCGATC": 5.515446,
            "CATGCGTAATACTACGCAAGCTATGACATTGGCCGCAAACGCCGCGGCTC": 2.612016,
        },
        origins=(
            Origin(
                "deepomicslab/Smart5UTR",
                "0085dd6982e112257ee4b0a7225b5ef3b6db59e9",
                "fig_scripts/utr_RFregr_m1pseudo_2_MFE.testdata.csv",
            ),
        ),
        tidy=tidy,
        rule=rule,
        licence="GPL-3.0 (repository); no licence seen for the GEO deposit GSE114002",
        citation="Sample et al., Nat. Biotechnol. 37, 803 (2019), doi 10.1038/s41587-019-0164-5",
    ),
)
