"""Docking with Vina against a small receptor, whose coordinates are made here."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from difftilt.errors import ConfigError
from difftilt.rewards.docking import Docking, prepare_receptor
from difftilt.rewards.pool import Pool

pytest.importorskip("rdkit")
pytest.importorskip("vina")
pytest.importorskip("meeko")

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


def _peptide(sequence: str) -> str:
    """A folded-at-random peptide with all hydrogens, as PDB: each residue's atoms together, the end charged."""
    from rdkit import Chem
    from rdkit.Chem import AllChem

    molecule = Chem.MolFromSequence(sequence)
    for atom in molecule.GetAtoms():
        if atom.GetPDBResidueInfo().GetName().strip() == "OXT":
            atom.SetFormalCharge(-1)
    Chem.SanitizeMol(molecule)
    molecule = Chem.AddHs(molecule, addResidueInfo=True)
    assert AllChem.EmbedMolecule(molecule, randomSeed=1, useRandomCoords=True) == 0
    residue = [atom.GetPDBResidueInfo().GetResidueNumber() for atom in molecule.GetAtoms()]
    molecule = Chem.RenumberAtoms(molecule, sorted(range(len(residue)), key=residue.__getitem__))
    return Chem.MolToPDBBlock(molecule, flavor=4)


@pytest.fixture(scope="module")
def receptor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("receptor") / "peptide.pdb"
    path.write_text(_peptide("GWKFDLSY"))
    return path


@pytest.mark.slow
def test_scores_are_of_the_molecule_and_larger_ones_fit_better_than_water(receptor, tmp_path):
    prepared = tmp_path / "peptide.pdbqt"
    prepared.write_text(prepare_receptor(receptor))
    docking = Docking(prepared, center=(0.0, 0.0, 0.0), exhaustiveness=1)
    designs = [ASPIRIN, "O=C(O)c1ccccc1OC(C)=O", "O", "c1cccc1", "[Fe]", "CCO"]
    values = docking(designs)
    assert values[0] == values[1] or math.isclose(values[0], values[1], abs_tol=0.5)  # the same molecule, written twice
    assert 3 < values[0] < 8
    assert values[0] > values[5] > 0
    assert docking.reasons[3].startswith("kekulisation")
    assert math.isnan(values[3])
    assert docking.reasons[0] is None
    again = Docking(prepared, center=(0.0, 0.0, 0.0), exhaustiveness=1)
    assert torch.equal(again(designs[:1]), values[:1])  # same seed, same score


@pytest.mark.slow
def test_a_pdb_file_is_prepared_and_a_pool_keeps_the_clock(receptor):
    docking = Docking(str(receptor), center=(0.0, 0.0, 0.0), size=(18.0, 18.0, 18.0), exhaustiveness=1)
    with Pool(docking, workers=1, timeout=120) as pool:
        values = pool(["CCO", "C.C", "CCO"])
        assert pool.reasons[1].startswith("fragments")
    assert values[0] == values[2] > 0


def test_what_cannot_be_a_receptor_or_a_box_is_said_at_once(tmp_path):
    here = tmp_path / "receptor.pdb"
    here.write_text("ATOM      1  C   XYZ A   1      -5.370  -0.657  -0.648  1.00  0.00           C\n")
    with pytest.raises(ConfigError, match="no such file"):
        Docking(tmp_path / "none.pdbqt", center=(0.0, 0.0, 0.0))
    with pytest.raises(ConfigError, match=r"\.pdb or \.pdbqt"):
        Docking(tmp_path / "receptor.mol2", center=(0.0, 0.0, 0.0))
    with pytest.raises(ConfigError, match="box of three"):
        Docking(here, center=(0.0, 0.0, 0.0), size=(20.0, 0.0, 20.0))
    with pytest.raises(ConfigError, match="seed from 1"):
        Docking(here, center=(0.0, 0.0, 0.0), seed=0)
    with pytest.raises(ConfigError, match="no template for residues XYZ"):
        prepare_receptor(here)
    here.write_text(here.read_text().replace("XYZ", "ALA"))  # of which most is missing
    with pytest.raises(ConfigError, match="A:1"):
        prepare_receptor(here)
