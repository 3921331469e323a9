"""``zinc250k`` and ``qm9``: molecules as SMILES, with properties computed by RDKit.

Drug-like molecules of the ZINC database (Irwin et al. 2012; the 250k subset of Gomez-Bombarelli et al. 2018), and small
ones of up to nine heavy atoms C N O F (Ramakrishnan et al. 2014). The origins are lists of SMILES, a line each, in
front of which there may be a running number; properties are computed when a set is prepared (minutes): QED (0 to 1),
Crippen's logP, Ertl's synthetic accessibility (1 easy to 10 hard), the mass in g/mol. They are not measurements, and
the quantum-chemical properties of QM9 are not in it.

``zinc250k`` here is a random 90 % of its origin, whose 249,455 rows pass the check too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from difftilt.core.molecules import chemistry, contributed
from difftilt.data.record import Columns, DataSet, Origin
from difftilt.data.table import Table

COMMIT = "2da631be85af8d10a2bb43f2de76a03171166190"
COLUMNS = ("smiles", "qed", "logp", "sa_score", "mol_weight", "n_heavy_atoms")


def tidy(texts: Sequence[str]) -> Columns:
    """Each SMILES as it is written, with its properties."""
    columns: Columns = {name: [] for name in COLUMNS}
    for smiles in _designs(texts[0]):
        for column, value in zip(columns.values(), (smiles, *properties(smiles)), strict=True):
            column.append(value)
    return columns


def properties(smiles: str) -> tuple[float, float, float, float, int]:
    """QED, logP, synthetic accessibility, mass in g/mol, and number of heavy atoms.

    Raises:
        ValueError: no SMILES.
    """
    molecule = chemistry("rdkit.Chem").MolFromSmiles(smiles)
    if molecule is None:
        raise ValueError(f"'{smiles[:80]}', which is no SMILES")
    return (
        round(chemistry("rdkit.Chem.QED").qed(molecule), 5),
        round(chemistry("rdkit.Chem.Crippen").MolLogP(molecule), 4),
        round(contributed("SA_Score/sascorer.py").calculateScore(molecule), 4),
        round(chemistry("rdkit.Chem.Descriptors").MolWt(molecule), 3),
        molecule.GetNumHeavyAtoms(),
    )


def _designs(text: str) -> Iterator[str]:
    """The SMILES of each line: its last field that is no number, headers left out."""
    for line in text.splitlines():
        fields = [field for field in line.replace(",", " ").split() if not field.isdecimal()]
        if fields and fields[-1].lower() not in ("smiles", "smile"):
            yield fields[-1]


def rule(table: Table) -> str | None:
    """Each SMILES once, and properties in their ranges."""
    if len(set(table.sequences)) != len(table):
        return "molecules that are repeated"
    if (table.column("n_heavy_atoms") < 1).any() or not np.isfinite(table.column("logp")).all():
        return "molecules without atoms or logP"
    accessible = table.column("sa_score")
    return None if ((accessible >= 1) & (accessible <= 10)).all() else "accessibility outside 1 to 10"


def _set(name: str, title: str, file: str, sha256: str, **facts: Any) -> DataSet:
    return DataSet(
        name=name, title=title, file=file, sha256=sha256, columns=COLUMNS, length=0, scored="qed",
        score_range=(0.0, 1.0), tidy=tidy, rule=rule, **facts,
    )  # fmt: skip


SETS = (
    _set(
        "zinc250k",
        "drug-like molecules of the ZINC database, with computed QED, logP and synthetic accessibility",
        "zinc250k/zinc250k.csv.gz",
        "4b3d2481c2e12da3849df56b59425110cd1deebee1a006fb92fa8a5bd9de041a",
        rows=(224_509, 249_455),
        alphabet="#()+-/1234567=@BCFHINOPS[\\]clnors",
        mean_score=(0.731775, 3e-4),
        landmarks={
            "CC(C)(C)c1ccc2occ(CC(=O)Nc3ccccc3F)c2c1": 0.7319,
            "C[C@@H]1CC(Nc2cncc(-c3nncn3C)c2)C[C@@H](C)C1": 0.94111,
        },
        origins=(Origin("wenhao-gao/mol_opt", COMMIT, "data/zinc.txt.gz"),),
        licence="MIT (the repository); ZINC's own terms were not verified",
        citation="Irwin et al., J. Chem. Inf. Model. 52, 1757 (2012), doi 10.1021/ci3001277; the subset: "
        "Gomez-Bombarelli et al., ACS Cent. Sci. 4, 268 (2018), doi 10.1021/acscentsci.7b00572",
    ),
    _set(
        "qm9",
        "small organic molecules of up to nine heavy atoms, with computed QED, logP and synthetic accessibility",
        "qm9/qm9_smiles.csv.gz",
        "49cd8d4b9c618c5e9b42a908b3ad95dcd42e253cb6a50bf3fdcaa21ec33eba0e",
        rows=(132_040,),
        alphabet="#()12345=CFNO",
        mean_score=(0.46624, 1e-5),
        landmarks={"C": 0.35978, "C#N": 0.3698, "OCC(O)C1NC1C#N": 0.38298},
        origins=(Origin("wenhao-gao/mol_opt", COMMIT, "main/pasithea/datasets/0SelectedSMILES_QM9.txt"),),
        licence="MIT (the repository); the original deposit's terms were not verified",
        citation="Ramakrishnan et al., Sci. Data 1, 140022 (2014), doi 10.1038/sdata.2014.22",
    ),
)
