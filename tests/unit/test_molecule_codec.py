"""SELFIES states: one state a molecule, whatever its spelling, and a molecule for every state."""

from __future__ import annotations

import pytest
import torch

from difftilt.core.codec import Codec
from difftilt.core.registry import construct, describe
from difftilt.errors import ConfigError, DataError, ShapeError

pytest.importorskip("rdkit")
pytest.importorskip("selfies")
from difftilt.core.molecules import canonical, chemistry, closed_shell, read_molecule
from difftilt.domains.molecule.codec import SelfiesCodec
from difftilt.domains.molecule.words import Reader, common, joined, room_for, symbols, to_symbols
from difftilt.metrics.molecules import radical_fraction

SMILES = [
    "CC(=O)Oc1ccccc1C(=O)O", "C[C@@H](N)C(=O)O", "C[C@H](N)C(=O)O", "F/C=C/F", "C[NH2+]Cc1ccc(Cl)cc1",
    "O=[N+]([O-])c1ccsc1", "CN1C=NC2=C1C(=O)N(C(=O)N2C)C", "N#CCBr",
]  # fmt: skip


@pytest.fixture(scope="module")
def codec() -> SelfiesCodec:
    alphabet = common([to_symbols(smiles) or [] for smiles in SMILES], fewest=1)
    return SelfiesCodec([*alphabet, "[C][=C]", "[=Branch1][C][=O]"], 36)


def test_designs_come_back_canonical(codec):
    states = codec.encode(SMILES)
    assert states.shape == (len(SMILES), 36)
    assert states.dtype == torch.int64
    assert codec.decode(states) == [canonical(smiles) for smiles in SMILES]
    assert torch.equal(codec.encode(codec.decode(states)), states)
    assert isinstance(codec, Codec)


def test_a_state_is_the_molecules_and_not_its_spellings(codec):
    spellings = ["CC(=O)Oc1ccccc1C(=O)O", "O=C(O)c1ccccc1OC(C)=O", "OC(=O)C1=CC=CC=C1OC(C)=O"]
    states = codec.encode(spellings)
    assert torch.equal(states, states[:1].expand(3, -1))
    mirrored = codec.encode(SMILES[1:3])  # but stereochemistry is the molecule's
    assert not torch.equal(mirrored[0], mirrored[1])


def test_what_stands_behind_the_first_pad_is_not_looked_at(codec):
    states = codec.encode(SMILES)
    noisy = states.clone()
    for row in noisy:
        end = int((row == 0).nonzero()[0])
        row[end + 1 :] = torch.arange(1, len(row) - end) % codec.vocabulary
    assert not torch.equal(noisy, states)
    assert codec.decode(noisy) == codec.decode(states)
    assert codec.decode(torch.zeros(1, 36, dtype=torch.long)) == [""]
    assert read_molecule("")[1] == "empty: no atom"


def test_no_state_is_a_radical_though_selfies_reads_some_as_one():
    codec = SelfiesCodec(["[C]", "[C@H1]", "[C@@H1]", "[N]", "[NH1]", "[NH1+1]", "[=C]", "[N+1]", "[O-1]"], 12)
    states = torch.randint(1, codec.vocabulary, (200, 12), generator=torch.Generator().manual_seed(0))
    read = [read_molecule(design)[0] for design in codec.decode(states)]
    as_selfies = [
        read_molecule(chemistry("selfies").decoder("".join(codec.alphabet[token - 1] for token in row)))[0]
        for row in states.tolist()
    ]
    assert None not in read
    assert radical_fraction(read) == 0
    assert radical_fraction(as_selfies) > 0.5  # the twin: what the words are without hydrogens
    for mine, theirs in zip(read, as_selfies, strict=True):  # and nothing but hydrogens is added
        assert [atom.GetFormalCharge() for atom in mine.GetAtoms()].count(1) == [
            atom.GetFormalCharge() for atom in theirs.GetAtoms()
        ].count(1)
        assert mine.GetNumHeavyAtoms() == theirs.GetNumHeavyAtoms()
        assert mine.GetNumBonds() == theirs.GetNumBonds()


def test_a_radical_has_no_state(codec):
    assert "without radicals" in (codec.fault("C[CH]C") or "")
    assert closed_shell("C[CH]C") == "CCC"
    assert closed_shell("C[C@@H]O") == "CCO"
    assert closed_shell("C[N+](C)(C)C") == "C[N+](C)(C)C"
    assert closed_shell("c1cc[nH]c1") == "c1cc[nH]c1"
    assert closed_shell("C1(") is None


def test_random_states_are_molecules(codec):
    """Every sentence of SELFIES is one; what is drawn first may be a pad, and then there is none."""
    rng = torch.Generator().manual_seed(0)
    states = torch.randint(1, codec.vocabulary, (200, 36), generator=rng)
    reasons = [read_molecule(design)[1] for design in codec.decode(states)]
    assert sum(reason is None for reason in reasons) >= 199


def test_masks_are_not_designs(codec):
    with pytest.raises(ShapeError, match="a mask"):
        codec.decode(torch.full((1, 36), codec.vocabulary))


@pytest.mark.parametrize(
    ("design", "fault"),
    [
        ("c1cccc1", "kekulisation"),
        ("CC.O", "fragments"),
        ("not smiles", "unparsable"),
        ("", "empty"),
        ("CCP", r"the model's \d+ words; got \[P\]"),
        ("C" * 37, "at most 36 words; got 37"),
    ],
)
def test_what_cannot_be_represented_is_named_by_its_number(codec, design, fault):
    with pytest.raises(DataError, match=f"{fault}.* in design 3, "):
        codec.encode(["CC", "CCC", design, "C"])


def test_it_is_a_registered_part_and_its_words_are_checked(codec):
    again = construct("codec", describe(codec))
    assert again.alphabet == codec.alphabet
    assert again.length == codec.length
    for alphabet in (["[C]", "[C]"], ["C"], ["[C]N"], [""]):
        with pytest.raises(ConfigError):
            SelfiesCodec(alphabet, 5)


def test_relaxed_tokens_lose_their_mask_only(codec):
    p = torch.rand(2, 36, codec.vocabulary + 1)
    assert torch.equal(codec.readable(p), p[..., :-1])


def test_the_longest_words_are_read_and_spell_the_same_molecule(codec):
    plain = SelfiesCodec([word for word in codec.alphabet if len(symbols(word)) == 1], 40)
    states, spelled = codec.encode(SMILES), plain.encode(SMILES)
    assert codec.decode(states) == plain.decode(spelled)
    assert ((states > 0).sum(1) < (spelled > 0).sum(1)).any()
    assert Reader(["[C]", "[C][C]", "[C][C][N]", "[N]"]).read(["[C]", "[C]", "[C]", "[N]", "[C]"]) == [1, 0, 3, 0]
    assert Reader(["[C]", "[C][C][N]", "[N]"]).read(["[C]", "[C]", "[O]"]) == "[O]"  # what was begun is taken back


def test_symbols_and_room_follow_the_data():
    molecules = [["[C]", "[C]", "[O]"], ["[C]", "[N]"], ["[C]", "[O]"]]
    assert common(molecules, fewest=1) == ["[C]", "[O]", "[N]"]
    assert common(molecules, fewest=2) == ["[C]", "[O]"]
    assert symbols("[C][=O]") == ["[C]", "[=O]"]
    assert symbols("C=O") == []
    assert to_symbols("c1cccc1") is None
    lengths = list(range(1, 101))
    assert room_for(lengths, 0.9) == 92
    assert room_for(lengths, 1.0) == 100
    assert room_for([5], 0.9) == 8


def test_the_most_common_neighbours_are_joined_first_and_rare_ones_never():
    molecules = [["a", "b", "c"]] * 30 + [["a", "b"]] * 20 + [["x", "y"]] * 3
    assert joined(molecules, ["a", "b", "c", "x", "y"], 5) == ["ab", "abc"]
    assert joined(molecules, ["a", "b", "c", "x", "y"], 1) == ["ab"]
    assert joined([["a"] * 4] * 30, ["a"], 2) == ["aa", "aaaa"]  # of a run, every other pair; never across molecules
    assert joined([["a"], ["b"]] * 50, ["a", "b"], 3) == []
