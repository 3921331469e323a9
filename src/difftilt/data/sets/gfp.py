"""``gfp``: brightness of a green fluorescent protein with random substitutions (Sarkisyan et al. 2016).

The origin is one tab-separated file, header ``aaMutations  uniqueBarcodes  medianBrightness  std``, whose genotypes are
written ``SA108D:SI186V``: an ``S``, the wild type's residue, its place counted from 0 without the initial methionine,
and the new residue, ``*`` for a stop codon; ``wt`` is the wild type. Its form was seen in a public index of the
repository (another commit). It has 54,025 rows; the file this project was built with holds a random 48,623 of them.
Either row count is right, and the mean score may differ by chance.

The wild type is avGFP with F64L. Its usual numbers count the methionine: residue ``i`` of a design, from 0, is number
``i + 2``, and the chromophore S65-Y66-G67 is at 63 to 65.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

import numpy as np

from difftilt.data.record import Columns, DataSet, Origin, pick
from difftilt.data.table import Table
from difftilt.errors import DataError

WILD_TYPE = (
    "SKGEELFTGVVPILVELDGDVNGHKFSVSGEGEGDATYGKLTLKFICTTGKLPVPWPTLVTTLSYGVQCFSRYPDHMKQHDFFKSAMPEGYVQERTIFFKDDGNYKTRAEVKFEGDTL"
    "VNRIELKGIDFKEDGNILGHKLEYNYNSHNVYIMADKQKNGIKVNFKIRHNIEDGSVQLADHYQQNTPIGDGPVLLPDNHYLSTQSALSKDPNEKRDHMVLLEFVTAAGITHGMDELYK"
)
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
STOP = "*"


def tidy(texts: Sequence[str]) -> Columns:
    """The origin's rows in its order, each with its whole sequence; scores to six decimals.

    Raises:
        DataError: a mutation of a residue that the wild type does not have.
    """
    reader = csv.DictReader(io.StringIO(texts[0]), delimiter="\t")
    header = reader.fieldnames or []
    names = ("aaMutations", "uniqueBarcodes", "medianBrightness", "std")
    genotype, barcodes, brightness, spread = (pick(header, name) for name in names)
    columns: Columns = {name: [] for name in SETS[0].columns}
    for row in reader:
        mutations = [] if row[genotype] == "wt" else [change.removeprefix("S") for change in row[genotype].split(":")]
        design = mutated(mutations)
        std = None if math.isnan(float(row[spread] or "nan")) else round(float(row[spread]), 6)
        values = (design, round(float(row[brightness]), 6), std, int(row[barcodes]), len(mutations),
                  ":".join(mutations), int(STOP in design))  # fmt: skip
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    return columns


def mutated(mutations: Sequence[str]) -> str:
    """The wild type with substitutions such as ``A108D``, places counted from 0.

    Raises:
        DataError: the wild type has another residue there.
    """
    letters = list(WILD_TYPE)
    for change in mutations:
        old, place, new = change[0], int(change[1:-1]), change[-1]
        if not 0 <= place < len(letters) or WILD_TYPE[place] != old:
            raise DataError(f"expected substitutions of avGFP's residues, counted from 0; got '{change}'; check it")
        letters[place] = new
    return "".join(letters)


def rule(table: Table) -> str | None:
    """Each genotype once, the wild type among them; mutations spell the sequences; stop codons are marked."""
    if len(set(table.sequences)) != len(table) or WILD_TYPE not in table.sequences:
        return "genotypes that are repeated, or no wild type"
    spelt = [mutated(text.split(":") if text else []) for text in table.column("mutations").tolist()]
    if spelt != table.sequences:
        return "mutations that do not spell the sequences"
    if (table.column("n_mutations") != [sum(map(str.__ne__, s, WILD_TYPE)) for s in table.sequences]).any():
        return "numbers of mutations that are not those of the sequences"
    if (table.column("has_stop") != [STOP in s for s in table.sequences]).any():
        return "stop codons that are not marked"
    several = table.column("n_barcodes") > 1
    return None if (np.isnan(table.column("std")) != several).all() else "spreads of single barcodes"


SETS = (
    DataSet(
        name="gfp",
        title="avGFP with 1 to 15 random substitutions, median log10 brightness",
        file="gfp/avgfp.csv.gz",
        sha256="a0979a238a1a80875c6550fd3a0ae947976a61f00c231acf233e030a0faa996c",
        rows=(48_623, 54_025),
        columns=("sequence", "score", "std", "n_barcodes", "n_mutations", "mutations", "has_stop"),
        length=len(WILD_TYPE),
        alphabet=AMINO_ACIDS + STOP,
        score_range=(1.2, 4.3),
        mean_score=(2.624758, 0.008),
        landmarks={
            WILD_TYPE: 3.719212,
            mutated(["A108D"]): 1.30103,
            mutated(["T36S", "K39R", "N103S"]): 4.123109,
        },
        origins=(
            Origin(
                "aequorea238/Orthologous_GFP_Fitness_Peaks",
                "799bd76889918bf1551c60016fb23278024cac73",
                "analysis/ML/_02_RawData/amino_acid_genotypes_to_brightness.tsv",
            ),
        ),
        tidy=tidy,
        rule=rule,
        licence="GPL-3.0 (repository); the original deposit, 10.6084/m9.figshare.3102154, is reported as CC BY 4.0",
        citation="Sarkisyan et al., Nature 533, 397 (2016), doi 10.1038/nature17995",
    ),
)
