"""Rewards of molecules: laws, reasons, and curves."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difftilt.errors import ConfigError
from difftilt.rewards.desirability import Desirability, geometric_mean, larger, smaller, window

pytest.importorskip("rdkit")
from difftilt.rewards.chemistry import (
    PROPERTIES,
    Objectives,
    PropertyReward,
    SimilarityReward,
    SubstructureReward,
)

ASPIRIN = ["CC(=O)Oc1ccccc1C(=O)O", "O=C(O)c1ccccc1OC(C)=O", "c1ccc(C(O)=O)c(c1)OC(=O)C"]
INVALID = {
    "xx": "unparsable", "": "empty", "*": "empty", "c1cccc1": "kekulisation", "CC(C)(C)(C)C": "valence",
    "CC.O": "fragments", "C1CC": "unparsable",
}  # fmt: skip
REWARDS = [
    *map(PropertyReward, PROPERTIES),
    PropertyReward("logp", window(1, 3, 1)),
    SimilarityReward("CC(=O)Nc1ccc(O)cc1"),
    SubstructureReward("c1ccccc1"),
    Objectives((PropertyReward("qed"), PropertyReward("sa_score", smaller(2, 5))), (2.0, 1.0)),
]


@pytest.mark.parametrize("reward", REWARDS, ids=str)
def test_the_number_is_the_molecules_and_not_its_spellings(reward):
    values = reward(ASPIRIN)
    assert torch.allclose(values, values[:1].expand(3), atol=1e-9, rtol=0)
    assert reward.reasons == [None, None, None]


@pytest.mark.parametrize("reward", REWARDS, ids=str)
def test_invalid_molecules_are_nan_with_the_reason_and_leave_the_others_alone(reward):
    designs = [design for bad in INVALID for design in (bad, ASPIRIN[0])]
    values = reward(designs)
    assert values.isnan().tolist() == [True, False] * len(INVALID)
    assert [reason and reason.partition(":")[0] for reason in reward.reasons[::2]] == list(INVALID.values())
    assert set(values[1::2].tolist()) == {reward(ASPIRIN[:1]).item()}


def test_order_and_company_do_not_matter():
    designs = ["CCO", "c1ccccc1", "xx", ASPIRIN[0], "CCN"]
    reward = PropertyReward("qed")
    values = reward(designs)
    backwards = reward(designs[::-1]).flip(0)
    alone = torch.cat([reward([design]) for design in designs])
    for other in (backwards, alone):
        assert torch.equal(values.nan_to_num(-1), other.nan_to_num(-1))


def test_properties_are_what_is_published_of_aspirin():
    known = {
        "logp": 1.3101, "mol_weight": 180.159, "polar_surface": 63.6, "h_donors": 1, "h_acceptors": 3, "rings": 1,
        "heavy_atoms": 13,
    }  # fmt: skip
    for name, value in known.items():
        assert PropertyReward(name)(ASPIRIN[:1]).item() == pytest.approx(value, abs=1e-2)
    assert PropertyReward("qed")(ASPIRIN[:1]).item() == pytest.approx(0.55, abs=0.01)  # Bickerton et al.
    assert PropertyReward("sa_score")(ASPIRIN[:1]).item() == pytest.approx(1.58, abs=0.05)


def test_ease_of_synthesis_prefers_the_easier_molecule():
    easy, hard = "CCOC(=O)c1ccccc1", "CC12CCC3C(CCC4CC(O)C(CC34C)N3CCOCC3)C1CCC2(O)C#C"
    score, ease = PropertyReward("sa_score"), PropertyReward("ease_of_synthesis")
    assert score([easy])[0] < score([hard])[0]
    assert ease([easy])[0] > ease([hard])[0]
    assert torch.equal(ease([easy]), -score([easy]))


def test_a_molecule_is_most_like_itself():
    reward = SimilarityReward(ASPIRIN[0])
    values = reward([ASPIRIN[1], "OC(=O)c1ccccc1O", "CCCCCC"])
    assert values[0] == 1.0
    assert 1 > values[1] > values[2] >= 0
    with pytest.raises(ConfigError, match="similar to"):
        SimilarityReward("c1cccc1")


def test_a_substructure_is_required_or_forbidden():
    designs = ["c1ccccc1O", "CCO"]
    required, forbidden = SubstructureReward("c1ccccc1"), SubstructureReward("c1ccccc1", wanted=False)
    assert required(designs).isnan().tolist() == [False, True]
    assert required.reasons == [None, "substructure c1ccccc1 is missing"]
    assert forbidden(designs).isnan().tolist() == [True, False]
    assert forbidden.reasons == ["substructure c1ccccc1 is there", None]
    term = SubstructureReward("c1ccccc1", otherwise="zero")
    assert term(designs).tolist() == [1.0, 0.0]
    for bad in ("", "c1cc", "[["):
        with pytest.raises(ConfigError, match="SMARTS"):
            SubstructureReward(bad)
    with pytest.raises(ConfigError, match="did you mean 'zero'"):
        SubstructureReward("C", otherwise="zeros")


def test_objectives_are_geometric_means_and_a_constraint_makes_them_infeasible():
    qed, ease = PropertyReward("qed"), PropertyReward("sa_score", smaller(1, 10))
    a, b = qed(ASPIRIN[:1]).item(), ease(ASPIRIN[:1]).item()
    product = Objectives((qed, ease), (3.0, 1.0))
    assert product(ASPIRIN[:1]).item() == pytest.approx((a**3 * b) ** 0.25)
    constrained = Objectives((qed, SubstructureReward("C#N")))
    assert constrained(ASPIRIN[:1]).isnan().all()
    assert constrained.reasons == ["substructure C#N is missing"]


def test_a_product_of_what_may_be_negative_is_refused_by_name():
    product = Objectives((PropertyReward("qed"), PropertyReward("ease_of_synthesis")))
    assert product(ASPIRIN[:1]).isnan().all()
    assert "give that term a curve" in product.reasons[0]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PropertyReward("qde"), "did you mean 'qed'"),
        (lambda: Objectives(()), "weight for each"),
        (lambda: Objectives((PropertyReward("qed"),), (1.0, 2.0)), "weight for each"),
        (lambda: Objectives((PropertyReward("qed"),), (0.0,)), "positive weights"),
        (lambda: Desirability((3, 2, 4, 5)), "ascend"),
        (lambda: Desirability((-math.inf, 2, 4, 5)), "starts somewhere"),
        (lambda: larger(1, 2, shape=0), "positive shape"),
    ],
)
def test_settings_that_make_no_sense_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_curves_are_0_and_1_where_they_say_and_straight_between():
    up, down, between = larger(1, 3), smaller(2, 6), window(1, 3, 2)
    assert [up(v) for v in (0, 1, 2, 3, 9)] == [0, 0, 0.5, 1, 1]
    assert [down(v) for v in (0, 2, 4, 6, 9)] == [1, 1, 0.5, 0, 0]
    assert [between(v) for v in (-1, 0, 1, 2, 3, 4, 5)] == [0, 0.5, 1, 1, 1, 0.5, 0]
    assert [window(1, 3)(v) for v in (0.99, 1, 3, 3.01)] == [0, 1, 1, 0]
    assert larger(0, 1, shape=2)(0.5) == 0.25
    assert math.isnan(up(math.nan))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.1, 5)), min_size=1, max_size=5), st.floats(0.5, 4))
def test_a_geometric_mean_is_between_its_terms_below_the_mean_and_has_no_unit_of_weight(terms, factor):
    values, weights = [v for v, _ in terms], [w for _, w in terms]
    mean = geometric_mean(values, weights)
    assert min(values) - 1e-9 <= mean <= max(values) + 1e-9
    assert mean <= sum(w * v for v, w in terms) / sum(weights) + 1e-9
    assert geometric_mean(values, [factor * w for w in weights]) == pytest.approx(mean)
    assert geometric_mean([*values, 0.0], [*weights, 1e-3]) == 0.0
    assert math.isnan(geometric_mean([*values, math.nan], [*weights, 1.0]))
