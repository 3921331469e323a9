"""Draws have the posterior's mean and covariance; the bonus of fixed features shrinks as the root of the data."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from difftilt.core.codec import TokenCodec, VectorCodec
from difftilt.surrogates.ensemble import Ensemble, shares
from difftilt.surrogates.gaussian_process import GaussianProcess
from difftilt.surrogates.linear import Linear, weights
from difftilt.surrogates.measurements import Measurements, readable
from difftilt.surrogates.surrogate import Surrogate
from difftilt.surrogates.training import Training

DRAWS = 400
BOUND = 6.0
"""Standard errors. The heaviest tail, of a sample variance over 400 draws, is then 5e-8; 14 statistics, 7e-7 in all."""
CODEC = TokenCodec("ACGT", 4)
EVERY = CODEC.decode(torch.cartesian_prod(*[torch.arange(4)] * 4))


ORDER = torch.randperm(256, generator=torch.Generator().manual_seed(7)).tolist()
SEEN = [EVERY[i] for i in ORDER[:40]]


def fit(learner: Any) -> Surrogate:
    """Letters add up, with as much noise as signal, so that noise weighs in the posterior of what was measured."""
    rng = torch.Generator().manual_seed(7)
    value = (readable(CODEC, SEEN) * torch.randn(4, 4, generator=rng, dtype=torch.float64)).sum((1, 2))
    value = value + 2 * torch.randn(40, generator=rng, dtype=torch.float64)
    return learner.fit(CODEC, Measurements(SEEN, value), torch.Generator().manual_seed(0))


def deviations(draws: torch.Tensor, mean: torch.Tensor, covariance: torch.Tensor) -> float:
    """Largest deviation of means and of covariances, in standard errors of Gaussian samples."""
    n, std = len(draws), covariance.diagonal().sqrt()
    by_mean = ((draws.mean(0) - mean) / (std / math.sqrt(n))).abs().max()
    spread = (covariance.square() + std.square()[:, None] * std.square()).sqrt() / math.sqrt(n)
    by_covariance = (((draws - mean).T @ (draws - mean) / n - covariance) / spread).abs().max()
    return max(by_mean.item(), by_covariance.item())


@pytest.mark.parametrize(
    "learner",
    [Linear(), Ensemble(training=Training(updates=60)), GaussianProcess()],
    ids=["linear", "ensemble", "gaussian process"],
)
def test_thompson_draws_have_the_posteriors_mean_and_covariance(learner: Any) -> None:
    """H0: 400 draws at four designs (two measured, one between two others) have the moments of ``joint``; see BOUND.

    Twins: no spread, as in public code (a std of 1e-8); the spread of independent designs; twice the variance.
    """
    surrogate = fit(learner).tempered(1.3)
    near = SEEN[0][:3] + ("A" if SEEN[0][3] != "A" else "C")
    p = readable(CODEC, [SEEN[0], near, SEEN[1]])
    p = torch.cat([p, (p[:1] + p[1:2]) / 2])
    mean, covariance = surrogate.joint(p)
    rng = torch.Generator().manual_seed(1)
    draws = torch.stack([surrogate.draw(rng).on_probabilities(p) for _ in range(DRAWS)])
    assert deviations(draws, mean, covariance) < BOUND
    still = mean + 1e-8 * torch.randn(draws.shape, generator=rng, dtype=torch.float64)
    assert deviations(still, mean, covariance) > BOUND
    apart = mean + covariance.diagonal().sqrt() * torch.randn(draws.shape, generator=rng, dtype=torch.float64)
    assert deviations(apart, mean, covariance) > BOUND
    assert deviations(mean + math.sqrt(2) * (draws - mean), mean, covariance) > BOUND


def test_a_draw_of_an_ensemble_weighs_members_so_that_their_covariance_comes_out() -> None:
    """H0: 20,000 sets of 8 weights have mean 1/8 and covariance (I - 1/8) / 7; see BOUND. Twin: over 8.

    A sample covariance divided by E instead would pass the test above, whose draws are few.
    """
    rng, e = torch.Generator().manual_seed(0), 8
    drawn = torch.stack([shares(e, rng) for _ in range(20_000)])
    torch.testing.assert_close(drawn.sum(1), torch.ones(20_000).double())
    mean = torch.full((e,), 1 / e, dtype=torch.float64)
    covariance = (torch.eye(e, dtype=torch.float64) - 1 / e) / (e - 1)
    assert deviations(drawn, mean, covariance) < BOUND
    assert deviations(drawn, mean, covariance * (e - 1) / e) > BOUND


@pytest.mark.parametrize("seed", [0, 1])
def test_the_bonus_shrinks_as_the_root_of_the_data(seed: int) -> None:
    """D = 16 at n = 160, 1,600, 16,000: exponent within 0.05 of -1/2, through the learner and by the formula.

    Twin: the normalised covariance of public code, whose bonus does not shrink.
    """
    rng = torch.Generator().manual_seed(seed)
    sizes = (160, 1600, 16000)
    at = torch.randn(50, 16, generator=rng, dtype=torch.float64)
    bonus, normalised, learned = [], [], []
    for n in sizes:
        phi = torch.randn(n, 16, generator=rng, dtype=torch.float64)
        value = phi @ torch.ones(16, dtype=torch.float64) + torch.randn(n, generator=rng, dtype=torch.float64)
        ones = torch.ones(n, dtype=torch.float64)
        lower = weights(phi, value, ones, prior_std=1.0).cholesky
        bonus.append(torch.linalg.solve_triangular(lower, at.T, upper=False).norm(dim=0).mean().item())
        shrunk = torch.eye(16, dtype=torch.float64) + phi.T @ phi / n
        normalised.append((at @ torch.linalg.inv(shrunk) * at).sum(1).sqrt().mean().item())
        fitted = Linear(features=("one_hot",)).fit(VectorCodec(), Measurements(list(phi.numpy()), value), rng)
        learned.append(fitted.predict(list(at.numpy())).std.mean().item())

    def exponent(values: list[float]) -> float:
        x, y = torch.tensor(sizes).double().log(), torch.tensor(values).double().log()
        return (torch.cov(torch.stack([x, y]))[0, 1] / x.var()).item()

    assert exponent(bonus) == pytest.approx(-0.5, abs=0.05)
    assert exponent(learned) == pytest.approx(-0.5, abs=0.05)
    assert exponent(normalised) == pytest.approx(0.0, abs=0.05)
