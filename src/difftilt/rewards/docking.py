"""Docking as a reward: how well AutoDock Vina thinks that a molecule fits a pocket.

The value is the best pose's Vina score with its sign changed, kcal/mol: higher is better, about 4 for a fragment and
10 for a tight fit. It is an empirical score and no binding energy: it favours large and greasy molecules, which is
why it is best put together with others (size, logP; :class:`~difftilt.rewards.chemistry.Objectives`).

A molecule gets hydrogens as drawn (no protonation at a pH), one conformer by RDKit (ETKDG, then MMFF94), and PDBQT
atom types by Meeko. Conformer and search have a fixed seed, so a molecule has one score. What cannot be prepared (no
conformer, an element that Vina does not know) is NaN, with the reason.

Docking takes seconds a molecule, and may hang or crash in a library: put it on workers with a time limit::

    score = Pool(Docking("receptor.pdbqt", center=(12.0, 3.5, -8.0), size=(20, 20, 20)), workers=2, timeout=120)

References:
    Eberhardt et al. 2021 (Vina 1.2), https://doi.org/10.1021/acs.jcim.1c00203.
"""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from difftilt.core.molecules import chemistry, read_molecule
from difftilt.errors import ConfigError
from difftilt.types import Float, Tensor

TRIES = 10
"""Conformers that are tried before a molecule has none."""


@dataclass(frozen=True)
class Docking:
    """Negative Vina scores of SMILES against one receptor.

    Args:
        receptor: ``.pdbqt``, or ``.pdb`` with all hydrogens, which Meeko prepares (once a process).
        center: of the box in which poses are looked for, Å.
        size: of the box along x, y and z, Å.
        exhaustiveness: of the search; its time grows with it. 8 is Vina's own, 1 is for trying things out.
        seed: of conformer and search, positive.

    Raises:
        ConfigError: no such file, another kind of file, or numbers out of range.
    """

    receptor: str | Path
    center: tuple[float, float, float]
    size: tuple[float, float, float] = (20.0, 20.0, 20.0)
    exhaustiveness: int = 8
    seed: int = 1

    reasons: ClassVar[Sequence[str | None]] = ()
    """Why each design of the last call has no score; ``None`` where it has one."""

    def __post_init__(self) -> None:
        path = Path(self.receptor)
        if path.suffix.lower() not in (".pdb", ".pdbqt"):
            raise ConfigError(f"expected a receptor in a .pdb or .pdbqt file; got '{path}'; convert it")
        if not path.is_file():
            raise ConfigError(f"expected a receptor at '{path}'; got no such file; check the path")
        if len(self.center) != 3 or len(self.size) != 3 or not all(0 < edge < math.inf for edge in self.size):
            raise ConfigError(f"expected a box of three numbers each; got {self.center} and {self.size}; correct it")
        if self.exhaustiveness < 1 or self.seed < 1:
            raise ConfigError(
                f"expected exhaustiveness and seed from 1 on (Vina's seed 0 is another each time); got "
                f"{self.exhaustiveness} and {self.seed}; raise them"
            )

    @property
    def name(self) -> str:
        """For messages and provenance."""
        return f"docking to {Path(self.receptor).name}"

    def __call__(self, designs: Sequence[str]) -> Float[Tensor, " B"]:
        """Negative scores, kcal/mol, NaN where infeasible, float64.

        Raises:
            ConfigError: Vina or Meeko is not installed, or the receptor cannot be prepared.
        """
        engine = _engine(self)
        answers = [self._docked(engine, design) for design in designs]
        self.__dict__["reasons"] = [reason for _, reason in answers]
        return torch.tensor([value for value, _ in answers], dtype=torch.float64)

    def _docked(self, engine: Any, design: str) -> tuple[float, str | None]:
        molecule, reason = read_molecule(design)
        if molecule is None:
            return math.nan, reason
        ligand, reason = prepare_ligand(molecule, self.seed)
        if ligand is None:
            return math.nan, reason
        try:
            engine.set_ligand_from_string(ligand)
            engine.dock(exhaustiveness=self.exhaustiveness, n_poses=1)
            return -float(engine.energies(n_poses=1)[0][0]), None
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            return math.nan, f"docking: {(str(error).splitlines() or [type(error).__name__])[0]}"


def prepare_ligand(molecule: Any, seed: int) -> tuple[str | None, str | None]:
    """PDBQT of a molecule with one conformer, and ``None``; or ``None``, and the reason."""
    chem, forms, meeko = chemistry("rdkit.Chem"), chemistry("rdkit.Chem.AllChem"), chemistry("meeko", "dock")
    whole = chem.AddHs(molecule)
    if forms.EmbedMolecule(whole, randomSeed=seed, maxAttempts=TRIES) != 0:
        return None, "conformer: none was found"
    if forms.MMFFHasAllMoleculeParams(whole):
        forms.MMFFOptimizeMolecule(whole)
    try:
        text, ready, fault = meeko.PDBQTWriterLegacy.write_string(meeko.MoleculePreparation().prepare(whole)[0])
    except (RuntimeError, ValueError, KeyError) as error:
        return None, f"preparation: {(str(error).splitlines() or [type(error).__name__])[0]}"
    return (text, None) if ready else (None, f"preparation: {' '.join(fault.split())}")


def prepare_receptor(path: Path) -> str:
    """PDBQT of a rigid receptor, from a PDB file with all hydrogens, the atoms of a residue together.

    Raises:
        ConfigError: Meeko cannot prepare it; nothing is left out silently.
    """
    meeko = chemistry("meeko", "dock")
    templates = meeko.ResidueChemTemplates.create_from_defaults()
    try:
        text = path.read_text(encoding="utf-8")
        named = {line[17:20].strip() for line in text.splitlines() if line.startswith(("ATOM", "HETATM"))}
        strange = sorted(named - {*templates.residue_templates, *templates.ambiguous})
        if strange or not named:  # Meeko would ask the network for them
            raise ValueError(f"error: no template for residues {', '.join(strange) or '(there are none)'}")
        polymer = meeko.Polymer.from_pdb_string(
            text,
            templates,
            meeko.MoleculePreparation(),
            default_altloc="A",
        )
        return str(meeko.PDBQTWriterLegacy.write_from_polymer(polymer)[0])
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        said = " ".join(line.strip() for line in str(error).splitlines() if "failed for" in line or "rror" in line)
        raise ConfigError(
            f"expected a receptor that Meeko can prepare at '{path}'; got {said or type(error).__name__}; add "
            "hydrogens, and repair or delete those residues"
        ) from error


@functools.lru_cache(maxsize=2)
def _engine(docking: Docking) -> Any:
    """Vina with the maps of a box: computed before the first ligand, so that they have every atom type."""
    path = Path(docking.receptor)
    engine = chemistry("vina", "dock").Vina(sf_name="vina", cpu=1, seed=docking.seed, verbosity=0)
    if path.suffix.lower() == ".pdbqt":
        engine.set_receptor(str(path))
    else:
        with tempfile.TemporaryDirectory() as folder:
            prepared = Path(folder) / "receptor.pdbqt"
            prepared.write_text(prepare_receptor(path), encoding="utf-8")
            engine.set_receptor(str(prepared))
    engine.compute_vina_maps(center=list(docking.center), box_size=list(docking.size))
    return engine
