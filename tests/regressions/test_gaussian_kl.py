"""Pitfalls 6 and 7: the KL of a step, in nats, against the noise that the step really adds."""

import math

import pytest
import torch

from difftilt.core.gaussian_step import GaussianStep
from difftilt.core.noise import Cosine
from difftilt.processes.gaussian import Gaussian

Z_BAR = 5.0  # H0: the estimate has the stated mean; two-sided false-alarm rate 6e-7 per test


def z_score(values: torch.Tensor, mean: float) -> float:
    return abs((values.mean().item() - mean) / (values.std().item() / math.sqrt(len(values))))


@pytest.mark.parametrize("own", [{}, {"variance": "fixed_large"}, {"kernel": "ddim", "eta": 0.4}])
def test_kl_is_the_mean_log_ratio_of_the_noise_added(own, rng):
    """flow_grpo divides by a variance that lacks the step's dt, so that its KL is ten times too small."""
    n, t, s = 20_000, torch.tensor(0.5), torch.tensor(0.4)
    process = Gaussian(Cosine(), prediction="v", **own)
    x_t = torch.full((n, 3), 0.4, dtype=torch.float64)
    mine, theirs = (process.transition(torch.full_like(x_t, v), x_t, t, s) for v in (0.1, 0.6))
    x_s = mine.sample(rng)
    ratio = mine.log_prob(x_s) - theirs.log_prob(x_s)
    kl = mine.kl(theirs)[0].item()
    assert z_score(ratio, kl) < Z_BAR
    noise = (x_s - mine.mean).square().mean(-1)
    assert z_score(noise, mine.std[0].item() ** 2) < Z_BAR
    # Twins: the variance without dt, and without the variance at all.
    assert z_score(ratio, kl * 0.1) > Z_BAR
    assert z_score(ratio, kl * mine.std[0].item() ** 2) > Z_BAR


def test_kl_is_not_the_mean_square_of_mean_reduced_log_ratios(rng):
    """DDPO's ``approx_kl`` reads 1.3e-5 where 16384 dimensions, each moved by 0.1 sigma, are 82 nats apart."""
    size, std = 16384, 0.5
    mean = torch.randn(200, size, generator=rng)
    mine, theirs = (GaussianStep(mean + shift, torch.tensor(std)) for shift in (0.0, 0.1 * std))
    kl = mine.kl(theirs)
    assert torch.allclose(kl, torch.tensor(0.5 * 0.01 * size, dtype=kl.dtype), rtol=1e-4)
    x_s = mine.sample(rng)
    ratio = mine.log_prob(x_s) - theirs.log_prob(x_s)
    assert z_score(ratio, kl.mean().item()) < Z_BAR
    approx = 0.5 * (ratio / size).square().mean().item()
    assert approx < 1e-4  # twin: the public estimate is no KL


def test_log_prob_keeps_its_digits_in_large_events(rng):
    """Sums of 1e5 nats in float32 lose 1e-2; the ratio of two close policies must not."""
    mean = torch.randn(4, 2**18, generator=rng)
    mine, theirs = GaussianStep(mean, torch.tensor(0.3)), GaussianStep(mean + 1e-4, torch.tensor(0.3))
    x_s = mine.sample(rng)
    exact = [GaussianStep(law.mean.double(), law.std).log_prob(x_s.double()) for law in (mine, theirs)]
    ratio = mine.log_prob(x_s) - theirs.log_prob(x_s)
    assert (ratio - (exact[0] - exact[1])).abs().max() < 1e-3
