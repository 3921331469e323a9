"""Reading molecules: SMILES in, an RDKit molecule or the reason why there is none out.

Every part that looks at molecules (codecs, rewards, metrics, data) reads them here, so that all of them mean the same by
*invalid*. The reasons, by their first word:

- ``unparsable``: not SMILES;
- ``valence``: an atom has more bonds than it can have;
- ``kekulisation``: a ring is written as aromatic and cannot be;
- ``fragments``: several molecules that no bond joins;
- ``empty``: no atom at all, or none but placeholders (``*``).

RDKit is an extra; it is imported when the first molecule is read.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from typing import Any

from difftilt.errors import ConfigError

EXTRA = "pip install 'difftilt[chem]'"


def chemistry(name: str) -> Any:
    """A module of an extra for molecules, such as ``"rdkit.Chem"``.

    Raises:
        ConfigError: it is not installed; the command that adds it is named.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"expected {name.partition('.')[0]} for molecules; got '{error}'; run: {EXTRA}") from error


@functools.cache
def quiet() -> None:
    """Stop RDKit from printing what it thinks of a molecule: the reason is returned instead. Once a process."""
    chemistry("rdkit.RDLogger").DisableLog("rdApp.*")


def read_molecule(smiles: str) -> tuple[Any, str | None]:
    """The molecule of a SMILES, and ``None``; or ``None``, and the reason (see the module).

    Args:
        smiles: one design.
    """
    chem = chemistry("rdkit.Chem")
    quiet()
    molecule = chem.MolFromSmiles(smiles)
    if molecule is None:
        return None, _fault(smiles)
    if not any(atom.GetAtomicNum() for atom in molecule.GetAtoms()):
        return None, "empty: no atom"
    pieces = smiles.count(".") and len(chem.GetMolFrags(molecule))
    return (None, f"fragments: {pieces} molecules that no bond joins") if pieces > 1 else (molecule, None)


def canonical(smiles: str) -> str | None:
    """RDKit's canonical SMILES, the same however the molecule is written; ``None`` where it is invalid."""
    molecule, _ = read_molecule(smiles)
    return None if molecule is None else str(chemistry("rdkit.Chem").MolToSmiles(molecule))


def read_molecules(designs: Sequence[str]) -> tuple[list[Any], list[str | None]]:
    """Molecules, ``None`` where invalid, and the reasons, ``None`` where valid; each in order."""
    read = [read_molecule(design) for design in designs]
    return [molecule for molecule, _ in read], [reason for _, reason in read]


def _fault(smiles: str) -> str:
    """Why RDKit has no molecule for a SMILES."""
    chem = chemistry("rdkit.Chem")
    if not smiles.strip():
        return "empty: no atom"
    raw = chem.MolFromSmiles(smiles, sanitize=False)
    if raw is None:
        return "unparsable: not SMILES"
    for problem in chem.DetectChemistryProblems(raw):
        kind = "valence" if "Valence" in problem.GetType() else "kekulisation"
        return f"{kind}: {problem.Message()}"
    return "unparsable: RDKit cannot make a molecule of it"
