"""Reading molecules: SMILES in, an RDKit molecule or the reason why there is none out.

Every part that looks at molecules (codecs, rewards, metrics, data) reads them here, so that all of them mean the same
by *invalid*. The reasons, by their first word:

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
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from difftilt.errors import ConfigError


def chemistry(name: str, extra: str = "chem") -> Any:
    """A module of an extra for molecules, such as ``"rdkit.Chem"``.

    Args:
        name: of the module.
        extra: what it comes with, ``"chem"`` or ``"dock"``.

    Raises:
        ConfigError: it is not installed; the command that adds it is named.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"expected {name.partition('.')[0]} for molecules; got '{error}'; run: pip install 'difftilt[{extra}]'"
        ) from error


@functools.cache
def contributed(file: str) -> Any:
    """A module of RDKit's folder of contributions, such as ``"SA_Score/sascorer.py"``.

    Raises:
        ConfigError: RDKit is not installed, or without it.
    """
    path = Path(chemistry("rdkit.RDConfig").RDContribDir) / file
    spec = importlib.util.spec_from_file_location(f"difftilt_rdkit_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(
            f"expected RDKit with its contributions; got none at '{path}'; run: pip install 'difftilt[chem]'"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def radicals(molecule: Any) -> list[Any]:
    """Atoms with unpaired electrons."""
    return [atom for atom in molecule.GetAtoms() if atom.GetNumRadicalElectrons()]


def closed_shell(smiles: str) -> str | None:
    """:func:`canonical` SMILES of the molecule with hydrogens on every free valence; ``None`` where it is invalid.

    A SMILES such as ``C[CH]C`` leaves an electron unpaired: its brackets say how many hydrogens there are.
    Charges stay.
    """
    molecule, _ = read_molecule(smiles)
    if molecule is None:
        return None
    unpaired = radicals(molecule)
    for atom in unpaired:
        atom.SetNumRadicalElectrons(0)
        atom.SetNoImplicit(False)
    written = str(chemistry("rdkit.Chem").MolToSmiles(molecule))
    return canonical(written) if unpaired else written  # read again: a centre with two hydrogens is none


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
