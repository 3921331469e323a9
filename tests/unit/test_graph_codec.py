"""Molecular graphs to SMILES and back; what is no molecule says so."""

from __future__ import annotations

import pytest
import torch

from difftilt.core.molecules import read_molecule
from difftilt.core.registry import construct, describe
from difftilt.errors import DataError, ShapeError

pytest.importorskip("rdkit")

from difftilt.domains.molecule.graph_codec import GraphCodec

KINDS = ["C", "N", "O", "F", "S", "Cl", "Br", "N+", "O-", "N-", "I", "S-", "P", "O+"]
SMALL, LARGE = GraphCodec(["C", "N", "O", "F"], 9), GraphCodec(KINDS, 38)
DRUGS = (
    "CC(=O)Oc1ccccc1C(=O)O", "Cn1cnc2c1c(=O)n(C)c(=O)n2C", "C[NH+](C)CCc1c[nH]c2ccccc12",
    "CC(C)Cc1ccc(C(C)C(=O)[O-])cc1",
    "O=[N+]([O-])c1ccc(Cl)cc1", "CS(=O)(=O)Nc1ccc2[nH]ncc2c1", "COP(=O)(OC)SCC(=O)NC", "c1ccc2c(c1)ccc1ccccc12",
    "[O-][n+]1ccccc1", "C#CC[N-]S(=O)(=O)c1ccc(Br)s1", "N", "CCO", "c1cc[nH]c1", "O=c1cc[nH]c(=O)[nH]1",
)  # fmt: skip


def state(codec: GraphCodec, atoms: list[str], bonds: dict[tuple[int, int], int]) -> torch.Tensor:
    """A state by hand."""
    row = torch.zeros(1, codec.length, dtype=torch.long)
    row[0, 0] = len(atoms) - 1
    for place, atom in enumerate(atoms, start=1):
        row[0, place] = codec.atoms.index(atom) + 1
    for number, pair in enumerate(codec.pairs.tolist()):
        row[0, 1 + codec.nodes + number] = bonds.get(tuple(pair), 0)
    return row


def test_a_molecule_is_its_size_its_atoms_and_the_bonds_of_its_pairs():
    row = SMALL.encode(["N=CO"])[0]
    assert row[:10].tolist() == [2, 2, 1, 3, 0, 0, 0, 0, 0, 0]
    assert torch.equal(row[None], state(SMALL, ["N", "C", "O"], {(0, 1): 2, (1, 2): 1}))
    assert SMALL.length == 46
    assert (SMALL.vocabulary, LARGE.vocabulary) == (9, 38)


@pytest.mark.parametrize("smiles", DRUGS)
def test_a_molecule_comes_back_as_its_canonical_smiles(smiles):
    from rdkit import Chem

    assert LARGE.decode(LARGE.encode([smiles])) == [Chem.CanonSmiles(smiles)]


def test_the_order_of_atoms_does_not_matter():
    """A molecule whose atoms are renumbered in 20 ways: other states, one SMILES."""
    from rdkit import Chem

    molecule = Chem.MolFromSmiles(DRUGS[2])
    rng = torch.Generator().manual_seed(0)
    orders = [torch.randperm(molecule.GetNumAtoms(), generator=rng).tolist() for _ in range(20)]
    written = [Chem.MolToSmiles(Chem.RenumberAtoms(molecule, order), canonical=False) for order in orders]
    states = LARGE.encode(written)
    assert len(states.unique(dim=0)) > 15
    assert set(LARGE.decode(states)) == {Chem.MolToSmiles(molecule)}


def test_aromatic_rings_are_kekulised_and_stereochemistry_is_dropped():
    bonds = LARGE.encode(["c1ccccc1"])[0, 39:]
    assert sorted(bonds[bonds > 0].tolist()) == [1, 1, 1, 2, 2, 2]
    assert LARGE.decode(LARGE.encode(["C[C@H](N)C(=O)O", "F/C=C/F"])) == ["CC(N)C(=O)O", "FC=CF"]


@pytest.mark.parametrize(
    ("atoms", "bonds", "reason"),
    [
        (["C", "C", "C", "C", "C", "C"], {(0, i): 1 for i in range(1, 6)}, "valence"),
        (["N", "C", "C"], {(0, 1): 2, (0, 2): 2}, "valence"),
        (["O", "C", "C"], {(0, 1): 1, (0, 2): 2}, "valence"),
        (["F", "C", "C"], {(0, 1): 1, (0, 2): 1}, "valence"),
        (["C", "O"], {}, "fragments"),
    ],
)
def test_what_is_no_molecule_is_a_design_that_says_why(atoms, bonds, reason):
    (design,) = SMALL.decode(state(SMALL, atoms, bonds))
    molecule, why = read_molecule(design)
    assert molecule is None
    assert why.startswith(reason)
    if reason == "valence":
        assert all(atom in design for atom in atoms)  # it can be read what it is


def test_random_graphs_are_read_as_themselves_or_not_at_all():
    """Of 600 random graphs, each design is invalid or encodes to the same atoms and bonds: none is mended."""
    rng = torch.Generator().manual_seed(0)
    valid = 0
    for _ in range(600):
        n = int(torch.randint(1, 7, (1,), generator=rng))
        atoms = [SMALL.atoms[i] for i in torch.randint(0, 4, (n,), generator=rng)]
        draw = torch.randint(1, 4, (n, n), generator=rng) * (torch.rand(n, n, generator=rng) < 1.2 / n)
        row = state(SMALL, atoms, {(i, j): int(draw[i, j]) for i in range(n) for j in range(i + 1, n)})
        (design,) = SMALL.decode(row)
        if read_molecule(design)[1] is None and SMALL.fault(design) is None:
            again, valid = SMALL.encode([design])[0], valid + 1
            for part in (slice(1, 10), slice(10, None)):
                assert sorted(again[part].tolist()) == sorted(row[0, part].tolist())
    assert valid > 30


@pytest.mark.parametrize(
    ("design", "why"),
    [
        ("C(C)(C)(C)(C)C", "got valence"),
        ("C1CC", "got unparsable"),
        ("C.C", "got fragments"),
        ("CCCCCCCCCC", "at most 9 heavy atoms; got 10"),
        ("CS", "got S of charge 0"),
        ("C[NH3+]", "got N of charge 1"),
        ("C[CH2]", "no radicals or isotopes"),
        ("[13CH4]", "no radicals or isotopes"),
    ],
)
def test_a_design_without_a_graph_is_refused_with_its_number_and_why(design, why):
    with pytest.raises(DataError, match=f"{why}.*in design 2, '"):
        SMALL.encode(["CC", design])
    assert why in SMALL.fault(design)
    assert SMALL.fault("CC") is None


def test_states_of_many_leave_out_repeats_and_what_has_no_graph():
    states, repeated = SMALL.states(["OCC", "CS", "CCO", "N[C@@H](C)O", "c1ccccc1", "N[C@H](C)O"])
    assert repeated == 2
    assert states.dtype == torch.int8
    assert torch.equal(states.long(), SMALL.encode(["OCC", "NC(C)O", "c1ccccc1"]))
    assert SMALL.states([])[0].shape == (0, 46)


def test_unfinished_states_are_refused_and_the_codec_is_described():
    with pytest.raises(ShapeError, match="a mask"):
        SMALL.decode(torch.full((1, 46), 9))
    again = construct("codec", describe(LARGE))
    assert again.decode(LARGE.encode(DRUGS[:3])) == LARGE.decode(LARGE.encode(DRUGS[:3]))
