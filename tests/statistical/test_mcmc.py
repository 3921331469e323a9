"""Langevin sampling against closed forms: on Gaussian targets a move is affine, so its stationary law is known."""

from __future__ import annotations

import math

import pytest
import torch

from difftilt.core.noise import Cosine
from difftilt.core.policy import Policy
from difftilt.core.schedule import uniform_grid
from difftilt.problems.linear_gaussian import Chain, LinearGaussian, Quadratic
from difftilt.processes.gaussian import Gaussian
from difftilt.samplers.mcmc import MCMC

ALPHA, N, H = 0.5, 6000, 0.2
MEAN, VARIANCE = 0.3, 0.6
REWARD = Quadratic.reward(*(torch.tensor(x, dtype=torch.float64) for x in ([[0.4]], [2.0], [0.1])))


def policy() -> Policy:
    process = Gaussian(Cosine(0.02), prediction="x_0", sigma_min=0.05)
    mean = torch.tensor([MEAN], dtype=torch.float64)
    return LinearGaussian(mean, torch.tensor([[VARIANCE]], dtype=torch.float64), process, uniform_grid(20)).pretrained()


def log_density(x: torch.Tensor) -> torch.Tensor:
    return -((x[:, 0].double() - MEAN) ** 2) / (2 * VARIANCE)


def target(mean: float, variance: float) -> tuple[float, float]:
    """Mean and precision of ``N(mean, variance) e^{r/alpha}``."""
    precision = 1 / variance + 0.4 / ALPHA
    return (mean / variance + (0.4 * 2.0 + 0.1) / ALPHA) / precision, precision


def deviations(x: torch.Tensor, mean: float, variance: float) -> tuple[float, float]:
    """Of mean and variance, in standard errors of a Gaussian sample."""
    by_mean = abs(x.mean().item() - mean) / math.sqrt(variance / N)
    return by_mean, abs(x.var().item() / variance - 1) / math.sqrt(2 / N)


def sample(sampler: MCMC) -> torch.Tensor:
    return sampler(policy(), REWARD, N, torch.Generator().manual_seed(0)).x_0[:, 0].double()


def test_mala_leaves_the_tilted_density_invariant_at_any_step_size() -> None:
    """H0: mean and variance of 6,000 chains within 5.5 s.e. (1.5e-7 in all). Twins: ULA, and another density."""
    mean, precision = target(MEAN, VARIANCE)
    for h, moves in ((H, 60), (1.0, 100)):
        x = sample(MCMC(alpha=ALPHA, kernel="mala", step_size=h, moves=moves, log_density=log_density))
        assert max(deviations(x, mean, 1 / precision)) < 5.5
    ula = sample(MCMC(alpha=ALPHA, step_size=H, moves=60, log_density=log_density))
    assert deviations(ula, mean, 1 / precision)[1] > 5.5
    other = sample(MCMC(alpha=ALPHA, kernel="mala", step_size=H, moves=60, log_density=lambda x: 1.3 * log_density(x)))
    assert max(deviations(other, mean, 1 / precision)) > 5.5


def test_mala_needs_its_proposal_densities() -> None:
    """Twin of the above: the hand-written Metropolis rule without the proposal's ratio misses by many s.e."""
    mean, precision = target(MEAN, VARIANCE)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(N, generator=rng, dtype=torch.float64)
    for _ in range(100):
        y = x - precision * (x - mean) + math.sqrt(2.0) * torch.randn(N, generator=rng, dtype=torch.float64)
        accept = (
            torch.rand(N, generator=rng, dtype=torch.float64).log()
            < precision * ((x - mean) ** 2 - (y - mean) ** 2) / 2
        )
        x = y.where(accept, x)
    assert max(deviations(x, mean, 1 / precision)) > 5.5


@pytest.mark.parametrize("time", [None, 0.15])
def test_ula_with_the_denoiser_samples_noisy_data_with_a_known_error_of_the_step_size(time: float | None) -> None:
    r"""H0: law of :math:`p_t e^{r/\alpha}` with variance :math:`1 / (\lambda (1 - h \lambda / 2))`, 5.5 s.e.

    Twins: the variance without the factor; the law of clean data; of another alpha.
    """
    own = policy()
    t = own.grid[-2] if time is None else torch.tensor(time, dtype=torch.float64)
    alpha_t, sigma_t = (scale.item() for scale in own.process.schedule.scales(t))
    mean, precision = target(alpha_t * MEAN, alpha_t**2 * VARIANCE + sigma_t**2)
    x = sample(MCMC(alpha=ALPHA, step_size=H, moves=60, time=time))
    assert max(deviations(x, mean, 1 / (precision * (1 - H * precision / 2)))) < 5.5
    assert deviations(x, mean, 1 / precision)[1] > 5.5
    assert deviations(sample(MCMC(alpha=2 * ALPHA, step_size=H, moves=60, time=time)), mean, 1 / precision)[0] > 5.5


def test_chains_without_moves_are_the_policy() -> None:
    """H0: mean and variance of the chain's own law, 5.5 s.e."""
    means, covariances = Chain.read(policy()).marginals()
    assert max(deviations(sample(MCMC(moves=0)), means[-1].item(), covariances[-1].item())) < 5.5
