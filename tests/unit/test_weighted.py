"""Means and errors from weighted designs: exact where weights are equal, right where they are not."""

from __future__ import annotations

import math

import pytest
import torch

from difftilt.core.stats import log_mean_exp, mean_and_error
from difftilt.metrics.log_z import from_samples
from difftilt.metrics.weighted import FEWEST, log_z_error, tilted_kl, weighted_mean
from difftilt.problems.landscapes import random_pairwise
from difftilt.problems.tilted import TiltedProblem
from difftilt.types import Tensor

ALPHA = 0.7
RUNS, POPULATIONS = 1000, 64
"""Repetitions, and independent populations in each."""


@pytest.fixture(scope="module")
def problem() -> TiltedProblem:
    return random_pairwise(3, 3, alpha=ALPHA, target_kl=0.5, seed=1)


def draws(problem: TiltedProblem, population: int = 1) -> tuple[Tensor, Tensor]:
    """Rewards and log weights ``[RUNS, N]`` of designs of p_pre, each ``population`` times in a row."""
    rng = torch.Generator().manual_seed(0)
    rows = torch.multinomial(problem.pretrained_law, RUNS * POPULATIONS, replacement=True, generator=rng)
    reward = problem.table[rows].repeat_interleave(population).view(RUNS, -1)
    return reward, reward / ALPHA


def test_equal_weights_give_the_usual_mean_and_error():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for level in (0.0, -3.0, 700.0, -2000.0):
        assert weighted_mean(values, torch.full((50,), level)) == pytest.approx(mean_and_error(values), rel=1e-12)
    assert weighted_mean(values, values)[0] != pytest.approx(values.mean().item(), abs=0.1)


def test_a_weighted_mean_by_hand():
    values, log_weight = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 1.0]).log()
    mean, error = weighted_mean(values, log_weight)
    assert mean == pytest.approx(2.25)
    squares = (0.25 * -1.25) ** 2 + (0.5 * -0.25) ** 2 + (0.25 * 1.75) ** 2
    assert error == pytest.approx(math.sqrt(3 / 2 * squares))


def test_missing_values_and_weights_of_zero_do_not_count():
    values = torch.tensor([1.0, math.nan, 3.0, 50.0, 2.0], dtype=torch.float64)
    log_weight = torch.tensor([0.0, 0.0, 0.0, -math.inf, 0.0])
    assert weighted_mean(values, log_weight) == pytest.approx(mean_and_error(torch.tensor([1.0, 3.0, 2.0])))
    assert all(math.isnan(number) for number in weighted_mean(values, torch.full((5,), -math.inf)))
    assert math.isnan(weighted_mean(torch.tensor([1.0]), torch.tensor([0.0]))[1])


def test_copies_in_a_population_count_once():
    """Every design five times: as wide an interval as without the copies; taken for independent, 2.2 times narrower."""
    generator = torch.Generator().manual_seed(0)
    values, log_weight = (torch.randn(20, generator=generator, dtype=torch.float64) for _ in range(2))
    once = weighted_mean(values, log_weight)
    copies = values.repeat_interleave(5), log_weight.repeat_interleave(5)
    assert weighted_mean(*copies, population=5) == pytest.approx(once)
    assert weighted_mean(*copies)[1] < once[1] / 2
    by_weight, by_log = log_z_error(log_weight), log_weight.var().item()
    by_log = math.sqrt(by_log / 20 + by_log**2 / 38)
    assert log_z_error(copies[1], population=5) == pytest.approx(max(by_weight, by_log))


@pytest.mark.parametrize("populations", [1, FEWEST - 1])
def test_few_populations_give_no_error(populations: int):
    values = torch.arange(4.0 * populations, dtype=torch.float64)
    mean, error = weighted_mean(values, torch.zeros_like(values), population=4)
    assert mean == pytest.approx(values.mean().item())
    assert math.isnan(error)
    assert math.isnan(log_z_error(values, population=4))
    assert math.isfinite(log_z_error(torch.zeros(4 * FEWEST), population=4))


def test_error_of_log_z_is_that_of_plain_importance_sampling():
    log_weight = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = from_samples(log_weight)
    assert log_z_error(log_weight) == pytest.approx(own.error * math.sqrt(40 / 39))


@pytest.mark.parametrize("population", [1, 4])
def test_stated_errors_are_the_spread_over_repetitions(problem: TiltedProblem, population: int):
    """The mean squared stated error over 1,000 repetitions is the variance over them.

    H0: equal, but for terms of order 1 / 64 populations in the delta method. The ratio has a standard error of about
    6 %; bounds of 35 % and 45 % leave five of it (false-alarm rate 1e-6) beside those terms.
    Twin: populations of 4 copies taken for independent designs are off by a factor of 4.
    """
    reward, log_weight = draws(problem, population)

    def ratios(claimed: int) -> list[float]:
        stated, found = [], []
        for r, w in zip(reward, log_weight, strict=True):
            log_z = log_mean_exp(w).item()
            pairs = (
                weighted_mean(r, w, population=claimed),
                (log_z, log_z_error(w, population=claimed)),
                tilted_kl(r, w, log_z, alpha=ALPHA, population=claimed),
            )
            found.append([mean for mean, _ in pairs])
            stated.append([error**2 for _, error in pairs])
        return (torch.tensor(stated).mean(0) / torch.tensor(found).var(0)).tolist()

    assert all(abs(ratio - 1) < (0.35 if population == 1 else 0.45) for ratio in ratios(population)), ratios(population)
    if population > 1:
        assert all(ratio < 0.4 for ratio in ratios(1))


@pytest.mark.parametrize("partly", [False, True], ids=["all feasible", "half infeasible"])
def test_kl_of_the_tilted_law_is_the_exact_one(problem: TiltedProblem, partly: bool):
    """H0: the KL from 64,000 weighted designs is the exact one, within 6 standard errors (false-alarm rate 2e-9).

    Twin: with weights ignored it is off by more than 60.
    """
    reward, log_weight = (part.flatten() for part in draws(problem))
    feasible = problem.table > (problem.table.median() if partly else -math.inf)
    law = (problem.pretrained_law * (problem.table / ALPHA).exp()).where(feasible, 0)
    law, log_z = law / law.sum(), law.sum().log().item()
    exact = torch.special.xlogy(law, law / problem.pretrained_law).sum().item()
    known = reward > (problem.table.median() if partly else -math.inf)
    value, weight = reward.where(known, math.nan), log_weight.where(known, -math.inf)
    kl, error = tilted_kl(value, weight, log_mean_exp(weight).item(), alpha=ALPHA)
    assert 0 < error < 0.02
    assert abs(kl - exact) < 6 * error
    ignored, _ = tilted_kl(value, torch.zeros_like(weight).where(known, -math.inf), log_z, alpha=ALPHA)
    assert abs(ignored - exact) > 60 * error
