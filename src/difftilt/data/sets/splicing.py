r"""``splicing``: how often an exon with a given 5' splice site NNN/GYNNNN is kept (Wong et al. 2018, *BRCA2*).

.. math:: \text{score} = \log_{10} \frac{\text{included} + 1}{\text{total} + 1} + \text{constant}            \qquad (1)

with the constant that makes the consensus site ``CAGGUAAGU`` 2 (100 %). 31,587 of 32,768 sites were read in one of two
replicates, 30,483 of them in the first, which is ``score``; the others have none. The origin is two gzipped CSV, one a
replicate. Their form was not seen when this was written: columns are those that MAVE-NN documents
(``set, tot_ct, ex_ct, y, x``), and the result is checked.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

from difftilt.data.record import Columns, DataSet, Origin, pick
from difftilt.data.table import Table

CONSENSUS = "CAGGUAAGU"
SITES = 32_768


def tidy(texts: Sequence[str]) -> Columns:
    """Both replicates side by side, sorted by site."""
    first, second = (_rows(text) for text in texts)
    columns: Columns = {name: [] for name in SETS[0].columns}
    for site in sorted(first | second):
        values = (*first.get(site, (None, None, None, "")), *second.get(site, (None, None, None, ""))[:3])
        for column, value in zip(columns.values(), (site, *values), strict=True):
            column.append(value)
    return columns


def _rows(text: str) -> dict[str, tuple[float, int, int, str]]:
    """Score, total and included reads, and part of each site."""
    reader = csv.DictReader(io.StringIO(text))
    header = reader.fieldnames or []
    site, score, part = pick(header, "x"), pick(header, "y"), pick(header, "set")
    total, included = pick(header, "tot_ct"), pick(header, "ex_ct")
    return {
        row[site]: (round(float(row[score]), 6), int(float(row[total])), int(float(row[included])), row[part])
        for row in reader
    }


def rule(table: Table) -> str | None:
    """Each site once, sorted, of the form NNNGYNNNN; equation (1) in both replicates."""
    if len(set(table.sequences)) != len(table) or table.sequences != sorted(table.sequences):
        return "sites that are repeated or not sorted"
    if any(site[3] != "G" or site[4] not in "CU" for site in table.sequences):
        return "sites that are not NNNGYNNNN"
    for suffix in ("", "_replicate"):
        total, included = table.column(f"total_count{suffix}"), table.column(f"included_count{suffix}")
        constant = table.column(f"score{suffix}") - np.log10((included + 1) / (total + 1))
        if np.nanmax(constant) - np.nanmin(constant) > 5e-6:
            return "scores that are not those of the reads"
    return None


SETS = (
    DataSet(
        name="splicing",
        title="5' splice sites of 9 nt in a BRCA2 minigene, log10 of the percentage spliced in",
        file="splicing_mpsa/wong2018_brca2.csv.gz",
        sha256="e37f08914b8b82ad5153bac1f943e32a79fc8482cbd75f2f5c3d9fbbc6c6df88",
        rows=(31_587,),
        columns=(
            "sequence", "score", "total_count", "included_count", "split",
            "score_replicate", "total_count_replicate", "included_count_replicate",
        ),
        length=len(CONSENSUS),
        alphabet="ACGU",
        score_range=(-2.0, 3.0),
        mean_score=(-0.172347, 2e-6),
        without_score=1_104,
        landmarks={CONSENSUS: 2.0},
        origins=tuple(
            Origin(
                "jbkinney/mavenn",
                "4553944e31b195f0d83dc4a95cdca94d606d97b4",
                f"mavenn/examples/datasets/{name}.csv.gz",
            )
            for name in ("mpsa_data", "mpsa_replicate_data")
        ),
        tidy=tidy,
        rule=rule,
        licence="MIT",
        citation="Wong, Kinney, Krainer, Mol. Cell 71, 1012 (2018), doi 10.1016/j.molcel.2018.07.033",
    ),
)  # fmt: skip
