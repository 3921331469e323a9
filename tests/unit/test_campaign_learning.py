"""What a round learns and picks, number by number: equations written out again, and histories made by hand."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch

from difftilt.campaigns import adaptive, learning
from difftilt.campaigns.acquisition import acquisition, pick
from difftilt.campaigns.adaptive import Adaptive, Plan
from difftilt.campaigns.history import CampaignSettings, Design, History, Measurement, Round
from difftilt.campaigns.learning import Learned, forecast_of, learn
from difftilt.campaigns.settings import Picking, Tuning
from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy
from difftilt.problems.landscapes import corrected, random_pairwise
from difftilt.problems.tilted import TiltedProblem
from difftilt.surrogates.feasibility import Logistic
from difftilt.surrogates.linear import Linear
from difftilt.surrogates.measurements import Forecast, Measurements, readable

CODEC = TokenCodec("ACGT", 4)
EVERY = CODEC.decode(torch.cartesian_prod(*[torch.arange(4)] * 4))
FACTS = {"factor": 2.0, "misfit": 0.3, "noise": 0.8}


@pytest.fixture(scope="module")
def learned() -> Learned:
    """A linear surrogate with noise of its own, and designs that failed."""
    rng = torch.Generator().manual_seed(0)
    rows = torch.randperm(256, generator=rng)[:40]
    designs = [EVERY[i] for i in rows.tolist()]
    value = torch.tensor([float(x.count("A") - x.count("C")) for x in designs], dtype=torch.float64)
    value = value + 0.3 * torch.randn(40, generator=rng, dtype=torch.float64)
    value[torch.tensor([x.startswith("G") for x in designs])] = torch.nan
    data = Measurements(designs, value, torch.full((40,), 0.4, dtype=torch.float64))
    surrogate = Linear(misfit=0.5).fit(CODEC, data, rng).tempered(1.5)
    return Learned(surrogate, Logistic().fit(CODEC, data), {})


@pytest.mark.parametrize(("name", "sign"), [("ucb", 1.0), ("lcb", -1.0), ("mean", 0.0)])
def test_a_plate_is_picked_one_by_one_by_value_given_the_picks_before(learned: Learned, name: str, sign: float) -> None:
    """Written out: C stds, of which ucb's are given all picks before at once, and T log P(F). Twins pick others."""
    surrogate, c, temperature, apart = learned.surrogate, 5.0, 2.0, 2
    assert learned.feasibility is not None
    assert min(surrogate.noise, surrogate.misfit) > 0.1
    p = readable(CODEC, EVERY)
    mean, covariance = surrogate.joint(p)
    std = covariance.diagonal().sqrt()
    log_chance = learned.feasibility.log_probability(p)
    tuned_for = acquisition(name, learned, torch.Generator(), c=c, temperature=temperature)
    torch.testing.assert_close(tuned_for(EVERY), mean + sign * c * std + temperature * log_chance)

    def picks(weight: float, *, conditioned: bool = True) -> tuple[list[int], list[float]]:
        chosen: list[int] = []
        given: list[float] = []
        for _ in range(12):
            seen = covariance[chosen][:, chosen] + (surrogate.misfit**2 + surrogate.noise**2) * torch.eye(len(chosen))
            left = covariance - covariance[:, chosen] @ torch.linalg.solve(seen, covariance[chosen])
            now = left.diagonal().sqrt()
            value = mean + sign * c * (now if name == "ucb" and conditioned else std) + weight * log_chance
            free = [i for i in range(256) if all(_differ(EVERY[i], EVERY[j]) >= apart for j in chosen)]
            chosen.append(max(free, key=lambda i: value[i].item()))
            given.append(now[chosen[-1]].item())
        return chosen, given

    chosen, given = picks(temperature)
    settings = Picking(c=c, apart=apart, surrogate="linear")
    found = pick(name, EVERY, learned, 12, settings, torch.Generator(), temperature=temperature)
    assert found.index.tolist() == chosen
    assert found.given.tolist() == pytest.approx(given)
    assert any(_differ(EVERY[i], EVERY[j]) == apart for i, j in itertools.combinations(chosen, 2)), "a bound that binds"
    assert name == "lcb" or all(picks(weight)[0] != chosen for weight in (0.0, -temperature)), "the chance counts"
    assert name != "ucb" or picks(temperature, conditioned=False)[0] != chosen, "so do the picks before"


def test_thompson_picks_are_the_best_of_draws_about_the_mean(learned: Learned) -> None:
    """With hardly any spread they are the best by the mean."""
    sure = dataclasses.replace(learned, surrogate=learned.surrogate.tempered(1e-9), feasibility=None)
    settings = Picking(surrogate="linear")
    best = sure.surrogate.predict(EVERY).mean.topk(5).indices.tolist()
    found = pick("thompson", EVERY, sure, 5, settings, torch.Generator(), temperature=1.0).index.tolist()
    assert found == best
    assert pick("thompson", EVERY, learned, 5, settings, torch.Generator(), temperature=1.0).index.tolist() != best


def _differ(one: str, other: str) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def problem() -> TiltedProblem:
    return random_pairwise(4, 4, alpha=0.5, target_kl=2.0, seed=4)


def test_a_round_is_tuned_and_picked_at_the_sum_of_both_temperatures(
    tmp_path: Any, problem: TiltedProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log P(F) weighs alpha + beta in both; C is that of the settings."""
    policy: Policy = corrected(problem.pretrained, hidden=8)
    letters = policy.codec.decode(problem.chain.designs)
    designs = tuple(_design(i + 1, 1, letters[5 * i], None if i == 3 else [0.1 * i]) for i in range(12))
    settings = CampaignSettings(
        name="lab", task="none", tuning=Tuning(alpha=0.3, beta=0.4, updates=2, paths=8),
        picking=Picking(surrogate="linear", c=1.7),
    )  # fmt: skip
    history = History(settings, (Round(1, "p_pre", {}, ""),), designs)
    asked: list[tuple[float, ...]] = []

    def seen(*given: Any, **named: Any) -> Any:
        asked.append((named["c"], named["temperature"]))
        return acquisition(*given, **named)

    def seen_pick(*given: Any, **named: Any) -> Any:
        asked.append((given[4].c, named["temperature"]))
        return pick(*given, **named)

    monkeypatch.setattr(adaptive, "acquisition", seen)
    monkeypatch.setattr(adaptive, "pick", seen_pick)
    Adaptive(policy, tmp_path, Plan("ucb"))(history, 4, torch.Generator().manual_seed(0))
    assert asked == [(1.7, pytest.approx(0.7))] * 2
    asked.clear()
    Adaptive(policy, tmp_path, Plan("lcb", from_last=False))(history, 4, torch.Generator().manual_seed(0))
    assert asked == [(1.7, 0.3)] * 2, "conservative has no beta"


def test_a_forecast_is_of_the_mean_of_as_many_replicates_as_were_measured() -> None:
    designs = (_design(1, 1, "AAAA", [1.0]), _design(2, 1, "AAAC", [1.0, 2.0, 3.0, 4.0]), _design(3, 1, "AAAG", None))
    told = forecast_of(History(CampaignSettings(name="lab", task="none"), (Round(1, "m", FACTS, ""),), designs), 1)
    assert told is not None
    assert told.noise.tolist() == pytest.approx([0.8, 0.4, 0.8])
    assert told.measured[:2].tolist() == [1.0, 2.5]
    assert told.measured[2].isnan()
    assert told.model.square().tolist() == pytest.approx([(0.5**2 + 0.3**2) / 2.0**2] * 3)


def test_a_fit_is_tempered_by_the_last_two_rounds_that_have_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds 2 to 4 predicted their number; of round 5 nothing is measured yet."""
    designs = [_design(n + 1, 1 + n // 6, EVERY[7 * n], None if n >= 24 else [float(n)]) for n in range(30)]
    rounds = tuple(Round(n, "m" if n > 1 else "p_pre", FACTS if n > 1 else {}, "") for n in range(1, 6))
    given: list[Forecast | None] = []

    def watched(held_out: Forecast, past: Forecast | None) -> float:
        given.append(past)
        return 1.25

    monkeypatch.setattr(learning, "temper", watched)
    history = History(CampaignSettings(name="lab", task="none"), rounds, tuple(designs))
    found = learn(history, CODEC, Picking(surrogate="linear"), torch.Generator())
    assert found is not None
    assert found.surrogate.factor == 1.25
    assert given[0] is not None
    assert given[0].mean.tolist() == [3.0] * 6 + [4.0] * 6
    assert found.facts["last_round"]["rows"] == 6


def _design(number: int, round_: int, text: str, values: list[float] | None) -> Design:
    """A design with these replicates; failed where there are none, but pending in round 5."""
    rows = [(value, None) for value in values or []] or [(None, "no growth")] * (round_ < 5)
    every = tuple(
        Measurement(100 * number + i, str(i + 1), value, why, None, "f", i, None, "")
        for i, (value, why) in enumerate(rows)
    )
    return Design(number, text, round_, "m", "A1", float(round_), 0.5, "", every)
