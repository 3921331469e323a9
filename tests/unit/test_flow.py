"""Flow matching: Euler's ODE, an SDE with its marginals, and the memoryless posterior."""

from __future__ import annotations

import pytest
import torch

from difftilt.core.policy import Policy
from difftilt.core.schedule import uniform_grid
from difftilt.errors import ConfigError, NoDensityError
from difftilt.problems.linear_gaussian import Chain, LinearGaussian
from difftilt.processes.flow import Flow

MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)
TIMES = [k / 8 for k in range(1, 9)]
COVARIANCE = torch.tensor([[1.0, 0.4], [0.4, 0.7]], dtype=torch.float64)


def pretrained(process: Flow, steps: int) -> Policy:
    return LinearGaussian(MEAN, COVARIANCE, process, uniform_grid(steps)).pretrained()


def last_law(process: Flow, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        means, covariances = Chain.read(pretrained(process, steps)).marginals()
    return means[-1], covariances[-1]


def distance(process: Flow, steps: int) -> float:
    mean, covariance = last_law(process, steps)
    return max((mean - MEAN).abs().max().item(), (covariance - COVARIANCE).abs().max().item())


@pytest.mark.parametrize("process", [Flow(0.0), Flow(0.3), Flow(0.7), Flow(), Flow(2.0)])
def test_the_exact_velocity_carries_noise_to_the_data_law(process):
    """All share the marginals; the discretisation's error falls at least as 1/K."""
    coarse, fine = distance(process, 100), distance(process, 400)
    assert fine < 0.02
    assert fine < 0.3 * coarse


def test_the_law_without_the_score_term_is_another_one():
    """Twin: noise without the drift that undoes it widens the data."""

    class Wrong(Flow):
        def transition(self, prediction, x_t, t, s):
            law, plain = super().transition(prediction, x_t, t, s), Flow(0.0).transition(prediction, x_t, t, s)
            law.mean = plain.mean
            return law

    assert distance(Wrong(0.7), 400) > 0.1


def test_ode_steps_are_eulers_and_have_no_density():
    process, rng = Flow(0.0), torch.Generator().manual_seed(0)
    x_t, velocity = torch.randn(3, 4, generator=rng), torch.randn(3, 4, generator=rng)
    law = process.transition(velocity, x_t, torch.tensor(0.75), torch.tensor(0.5))
    torch.testing.assert_close(law.sample(rng), x_t - 0.25 * velocity)
    assert process.noiseless(torch.tensor(0.75), torch.tensor(0.5))
    assert not process.memoryless
    with pytest.raises(NoDensityError):
        law.log_prob(x_t)


def test_the_floor_is_that_of_the_windows_steps():
    """Outside, a step has no noise whatever the floor is; at the window's first time it has, at its end it has not."""
    process, x_t = Flow(0.7, sigma_min=0.3, window=(0.75, 0.25)), torch.zeros(1, 2)
    stds = {t: process.transition(x_t, x_t, torch.tensor(t), torch.tensor(t - 0.125)).std.item() for t in TIMES}
    assert {t for t, std in stds.items() if std > 0} == {0.75, 0.625, 0.5, 0.375}
    assert min(std for std in stds.values() if std > 0) == pytest.approx(0.3)


def test_the_memoryless_kernel_is_the_posterior_of_the_path():
    r"""q(x_s | x_t, x_0) of the Gaussian path, from its joint law, given the x_0 that the velocity stands for."""
    t, s, x_0, x_t = 0.8, 0.3, 1.3, -0.4
    # x_t = (1-t) x_0 + t e as a Markov chain: x_t = a x_s + noise with a = (1-t)/(1-s), variance t^2 - a^2 s^2
    a = (1 - t) / (1 - s)
    variance = 1 / (1 / s**2 + a**2 / (t**2 - a**2 * s**2))
    mean = variance * ((1 - s) * x_0 / s**2 + a * x_t / (t**2 - a**2 * s**2))
    velocity = torch.tensor([[(x_t - x_0) / t]], dtype=torch.float64)  # u = (x_t - x_0) / t
    law = Flow().transition(
        velocity, torch.tensor([[x_t]], dtype=torch.float64), torch.tensor(t).double(), torch.tensor(s).double()
    )
    assert law.mean.item() == pytest.approx(mean, abs=1e-7)
    assert law.std.item() == pytest.approx(variance**0.5, abs=1e-7)


@pytest.mark.parametrize("level", [0.3, 0.7, 2**0.5])
def test_small_steps_are_those_of_the_sde(level):
    """Means and variances per unit time are those of (2), to first order in the step."""
    rng = torch.Generator().manual_seed(0)
    x_t, velocity = torch.randn(1, 4, generator=rng).double(), torch.randn(1, 4, generator=rng).double()
    t, square = 0.6, level**2 * 0.6 / 0.4
    drift = velocity + square / (2 * t) * (x_t + (1 - t) * velocity)
    for step in (1e-3, 1e-4):
        times = (torch.tensor(time, dtype=torch.float64) for time in (t, t - step))
        law = Flow(level).transition(velocity, x_t, *times)
        torch.testing.assert_close((law.mean - x_t) / step, -drift, rtol=0, atol=30 * step)
        torch.testing.assert_close(law.std**2 / step, torch.full((1,), square).double(), rtol=0, atol=30 * step)


def test_the_velocity_loss_is_least_at_the_exact_velocity():
    """Monte Carlo gradient of an affine network's loss at the exact velocity: 0 within 5 standard errors; else not."""
    rng = torch.Generator().manual_seed(0)
    process, n = Flow(), 200_000
    policy = pretrained(process, 4)
    root = torch.linalg.cholesky(COVARIANCE)
    x_0 = MEAN + torch.randn(n, 2, generator=rng, dtype=torch.float64) @ root.T
    t = policy.grid[1].expand(n)
    x_t = process.corrupt(x_0, t, rng)
    for shift, zero in ((0.0, True), (0.2, False)):
        prediction = (policy.denoiser(x_t, t, None) + shift).detach().requires_grad_()
        loss = process.denoising_loss(prediction, x_0, x_t, t)
        (slope,) = torch.autograd.grad(loss.sum(), prediction)
        score = slope.sum(0).abs() / (slope.std(0) * n**0.5)
        assert (score.max().item() < 5) == zero


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="level"):
        Flow(-1.0)
    with pytest.raises(ConfigError, match="sigma_min"):
        Flow(sigma_min=-1.0)
