"""Several objectives: the sum, its bounds, its gradient; fronts and volumes against brute force and BoTorch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from difftilt.core.reward import DifferentiableReward
from difftilt.errors import ConfigError
from difftilt.metrics.pareto import hypervolume, non_dominated
from difftilt.rewards.combined import Objective, Requirement, combined
from difftilt.rewards.spec import bound, terms, written


class Count:
    """Letters ``letter`` in a design; differentiable; counts its calls; knows nothing of designs with an N."""

    def __init__(self, letter: str) -> None:
        self.letter, self.seen, self.reasons = letter, [], []

    def __call__(self, designs):
        self.seen += designs
        self.reasons = ["holds an N" if "N" in design else None for design in designs]
        return torch.tensor([math.nan if "N" in d else float(d.count(self.letter)) for d in designs])

    def on_probabilities(self, p):
        return p[..., "ACGT".index(self.letter)].sum(1)


DESIGNS = ["AACG", "AAAA", "CCCT", "ANNN", "TTTT"]


def test_the_sum_is_the_weighted_sum_of_its_objectives():
    reward = combined([Objective("a", Count("A")), Objective("c", Count("C"), -0.5)])
    assert reward(DESIGNS).tolist()[:3] == [2 - 0.5, 4.0, -1.5]
    assert math.isnan(reward(DESIGNS)[3])
    assert reward.reasons == [None, None, None, "a: holds an N", None]
    assert reward.name == "a − 0.5 × c"


@pytest.mark.parametrize(("sense", "kept"), [(">=", [True, True, False]), ("<=", [False, False, True])])
def test_a_bound_makes_infeasible_what_misses_it_and_says_so(sense, kept):
    """Bounds themselves are met: AACG has exactly 2."""
    reward = combined(
        [Objective("c", Count("C"))], [Requirement("a", Count("A"), sense, 2.0 if sense == ">=" else 1.0)]
    )
    values = reward(DESIGNS[:3])
    assert (~values.isnan()).tolist() == kept
    assert [reason is None for reason in reward.reasons] == kept
    side = "below" if sense == ">=" else "above"
    assert any(reason is not None and f"is {side}" in reason for reason in reward.reasons)


def test_what_is_required_need_not_be_an_objective_and_is_shown_all_the_same():
    reward = combined([Objective("c", Count("C"))], [Requirement("a", Count("A"), ">=", 2.0)])
    found = reward.each(DESIGNS[:3])
    assert found["a"].tolist() == [2, 4, 0]
    assert found["c"].tolist() == [1, 0, 3]


def test_every_number_is_asked_for_once_per_design():
    count = Count("A")
    reward = combined([Objective("a", count)], [Requirement("a", count, ">=", 0.0)])
    reward([*DESIGNS, *DESIGNS])
    reward(DESIGNS)
    reward.each(DESIGNS)
    assert count.seen == DESIGNS


def test_the_gradient_is_that_of_the_sum_and_equals_the_call_on_letters():
    reward = combined([Objective("a", Count("A"), 2.0), Objective("c", Count("C"), -1.0)])
    assert isinstance(reward, DifferentiableReward)
    tokens = torch.tensor([["ACGT".index(letter) for letter in design] for design in ("AACG", "CCCT")])
    p = torch.nn.functional.one_hot(tokens, 4).double().requires_grad_(True)
    value = reward.on_probabilities(p)
    torch.testing.assert_close(value.detach(), reward(["AACG", "CCCT"]))
    value.sum().backward()
    assert p.grad is not None
    assert p.grad[0, 0].tolist() == [2.0, -1.0, 0.0, 0.0]


def test_a_bound_or_a_black_box_takes_the_gradient_away():
    bounded = combined([Objective("a", Count("A"))], [Requirement("a", Count("A"), ">=", 1.0)])
    black = combined([Objective("a", Count("A")), Objective("f", lambda designs: [0.0] * len(designs))])
    assert not isinstance(bounded, DifferentiableReward)
    assert not isinstance(black, DifferentiableReward)


def test_images_are_told_apart_by_their_pixels():
    asked = []

    def brightness(designs):
        asked.extend(designs)
        return [float(design.mean()) for design in designs]

    reward = combined([Objective("brightness", brightness)])
    images = [np.full((2, 2), value, dtype=np.uint8) for value in (3, 5, 3)]
    assert reward(images).tolist() == [3, 5, 3]
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("objectives", "requirements"),
    [
        ([], []),
        ([Objective("a", Count("A")), Objective("a", Count("C"))], []),
        ([Objective("a", Count("A"), 0.0)], []),
        ([Objective("a", Count("A"), math.nan)], []),
        ([Objective("a", Count("A"))], [Requirement("a", Count("A"), "<", 1.0)]),
        ([Objective("a", Count("A"))], [Requirement("a", Count("A"), "<=", math.inf)]),
    ],
)
def test_what_makes_no_sense_is_refused(objectives, requirements):
    with pytest.raises(ConfigError):
        combined(objectives, requirements)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("qed", [(1.0, "qed")]),
        ("qed,-0.1*sa", [(1.0, "qed"), (-0.1, "sa")]),
        ("-sa", [(-1.0, "sa")]),
        (" 2e-1 * qed , +logp ", [(0.2, "qed"), (1.0, "logp")]),
        ("a-b.py:f,.5*model", [(1.0, "a-b.py:f"), (0.5, "model")]),
    ],
)
def test_sums_are_read_as_they_are_written(spec, expected):
    assert terms(spec) == expected
    assert terms(written(terms(spec))) == expected


@pytest.mark.parametrize("spec", ["", "qed,", "3*", "*qed", "--qed", "qed,,sa"])
def test_what_is_no_sum_is_refused(spec):
    with pytest.raises(ConfigError, match="expected terms such as"):
        terms(spec)


def test_bounds_are_read_as_they_are_written():
    assert bound("sa<=3") == ("sa", "<=", 3.0)
    assert bound("f.py:g >= -1e-2") == ("f.py:g", ">=", -0.01)
    for wrong in ("sa<3", "sa", "<=3", "sa<=x", ""):
        with pytest.raises(ConfigError, match="expected --require"):
            bound(wrong)


# --- fronts --------------------------------------------------------------------------------------------------------


def points(n: int, objectives: int, seed: int = 0) -> torch.Tensor:
    return torch.rand((n, objectives), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_front_is_what_nothing_beats():
    cloud = points(60, 3)
    mask = non_dominated(cloud)
    for i, point in enumerate(cloud):
        beaten = any(bool((other >= point).all()) and bool((other > point).any()) for other in cloud)
        assert bool(mask[i]) is not beaten
    twins = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert non_dominated(twins).tolist() == [True, True, True, False]


def test_volumes_by_hand():
    reference = torch.zeros(2)
    assert hypervolume(torch.tensor([[2.0, 1.0]]), reference) == 2
    assert hypervolume(torch.tensor([[2.0, 1.0], [1.0, 3.0]]), reference) == 2 + 2
    assert hypervolume(torch.tensor([[2.0, 1.0], [1.0, 1.0], [1.0, 0.5]]), reference) == 2
    assert hypervolume(torch.tensor([[2.0, -1.0]]), reference) == 0
    assert hypervolume(torch.zeros((0, 2)), reference) == 0


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_volumes_equal_those_of_botorch_and_of_a_grid(objectives):
    botorch = pytest.importorskip("botorch.utils.multi_objective.hypervolume")
    cloud, reference = points(40, objectives), torch.full((objectives,), 0.2, dtype=torch.float64)
    theirs = botorch.Hypervolume(reference).compute(cloud[non_dominated(cloud)])
    assert hypervolume(cloud, reference) == pytest.approx(theirs, rel=1e-9)
    darts = points(200_000, objectives, seed=1)
    inside = (darts[:, None] <= cloud[None, :8]).all(-1).any(1) & (darts >= reference).all(1)
    share = inside.double().mean().item()
    spread = 5 * math.sqrt(share * (1 - share) / len(darts))
    assert abs(hypervolume(cloud[:8], reference) - share) < spread
