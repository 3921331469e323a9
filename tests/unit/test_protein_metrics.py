"""Mutations and BLOSUM distances, by hand."""

from __future__ import annotations

import builtins

import pytest
import torch

from difftilt.core.codec import TokenCodec
from difftilt.errors import ConfigError
from difftilt.metrics import proteins, sequences

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
CODEC = TokenCodec(LETTERS, 4)
WILD_TYPE = CODEC.encode(["VDGW"])[0]
DESIGNS = CODEC.encode(["VDGW", "IDGW", "VDGG", "IEAG"])


def test_mutations_are_letters_that_differ():
    assert proteins.mutations(DESIGNS, WILD_TYPE).tolist() == [0, 1, 1, 4]


def test_shares_sum_to_one_and_the_last_holds_what_is_beyond():
    shares = proteins.mutation_shares(DESIGNS, WILD_TYPE, 2)
    assert shares.tolist() == [0.25, 0.5, 0.25]
    assert proteins.total_variation(shares, torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)) == pytest.approx(0.25)


def test_sites_are_counted_one_by_one():
    assert proteins.mutated_sites(DESIGNS, WILD_TYPE).tolist() == [0.5, 0.25, 0.25, 0.5]


def test_the_nearest_known_design_is_that_of_the_plain_count():
    rng = torch.Generator().manual_seed(0)
    tokens, known = (torch.randint(6, (n, 9), generator=rng) for n in (300, 70))
    wild_type = known[0].clone()
    known[1:, 2:7] = wild_type[2:7]
    expected = sequences.nearest_distance(tokens, known, 6)
    assert torch.equal(proteins.nearest_distance(tokens, known, wild_type), expected)
    assert torch.equal(proteins.nearest_distance(known, known, wild_type), torch.zeros(70, dtype=torch.long))


def test_blosum_distance_is_half_the_self_scores_less_the_exchange():
    pytest.importorskip("Bio")
    distance = proteins.blosum_distance(DESIGNS, WILD_TYPE, proteins.blosum62(LETTERS))
    # V-I: (4 + 4) / 2 - 3; W-G: (11 + 6) / 2 + 2; D-E: (6 + 5) / 2 - 2; G-A: (6 + 4) / 2 - 0
    assert distance.tolist() == [0.0, 1.0, 10.5, 1.0 + 3.5 + 5.0 + 10.5]


def test_every_exchange_costs_something_and_either_way_the_same():
    pytest.importorskip("Bio")
    table = proteins.blosum62(LETTERS)
    assert torch.equal(table, table.T)
    own = table.diagonal()
    cost = (own[:, None] + own) / 2 - table
    assert (cost[~torch.eye(20, dtype=torch.bool)] >= 1).all()


def test_without_biopython_the_error_names_the_extra(monkeypatch):
    def missing(name, *args, **kwargs):
        if name.startswith("Bio"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"pip install 'difftilt\[bio\]'"):
        proteins.blosum62(LETTERS)


def test_a_letter_that_blosum_lacks_is_named():
    pytest.importorskip("Bio")
    with pytest.raises(ConfigError, match="'O'"):
        proteins.blosum62(LETTERS + "O")
