"""The law of the Jacobi diffusion from either end: its moments, its equation and its score."""

from __future__ import annotations

import math

import pytest
import torch

from difftilt.core.jacobi import early_lines, lines_of_descent, log_densities, mean_lines

ENDS = [(1.0, 3.0), (1.0, 1.0), (2.0, 1.5)]
TIMES = [0.004, 0.02, 0.1, 0.5, 2.0]


@pytest.mark.parametrize(("a", "b"), ENDS)
def test_first_two_moments_are_those_of_the_diffusion(a, b):
    r"""From 0: E[u] relaxes at rate theta / 2, E[u^2] by its linear equation; exact in closed form.

    Short times have the normal limit's error.
    """
    theta, m = a + b, None
    laws = lines_of_descent(theta, TIMES)
    for time, weight in zip(TIMES, laws, strict=True):
        m = torch.arange(len(weight), dtype=torch.float64)
        first = (weight * a / (theta + m)).sum().item()
        second = (weight * a * (a + 1) / ((theta + m) * (theta + m + 1))).sum().item()
        slow, fast = math.exp(-theta * time / 2), math.exp(-(theta + 1) * time)
        mean = a / theta * (1 - slow)
        # d E[u^2] / dT = (1 + a) E[u] - (1 + theta) E[u^2]
        gain = (1 + a) * a / theta
        square = gain * ((1 - fast) / (1 + theta) - (slow - fast) / (1 + theta / 2))
        tolerance = 2e-3 if time < 0.05 else 2e-4
        assert first == pytest.approx(mean, rel=tolerance)
        assert second == pytest.approx(square, rel=2 * tolerance)
        assert weight.sum().item() == pytest.approx(1)
        assert (weight >= 0).all()


def density(u, a, b, time, end):
    weight = lines_of_descent(a + b, [time])[0]
    return log_densities(u, a, b, weight)[end].logsumexp(0).exp()


@pytest.mark.parametrize("end", [0, 1])
def test_densities_solve_the_forward_equation(end):
    """Finite differences of d q / dT = - d (f q) / du + d^2 (g^2 q) / du^2 / 2, at points where there is mass."""
    a, b, time, step = 1.0, 3.0, 0.4, 1e-3
    u = torch.tensor([0.1, 0.3, 0.5, 0.7], dtype=torch.float64)
    rate = (density(u, a, b, time + step, end) - density(u, a, b, time - step, end)) / (2 * step)

    def flux(x):
        return 0.5 * (a * (1 - x) - b * x) * density(x, a, b, time, end)

    def spread(x):
        return 0.5 * x * (1 - x) * density(x, a, b, time, end)

    drift = (flux(u + step) - flux(u - step)) / (2 * step)
    diffusion = (spread(u + step) - 2 * spread(u) + spread(u - step)) / step**2
    torch.testing.assert_close(rate, diffusion - drift, rtol=1e-3, atol=1e-3)
    assert (rate + drift).abs().max() > 0.05  # twin: without diffusion


@pytest.mark.parametrize(("a", "b"), ENDS)
def test_mean_lines_are_the_score(a, b):
    """Equation (3) against the derivative of the log density."""
    u = torch.tensor([0.02, 0.2, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    for time in (0.05, 0.5):
        weight = lines_of_descent(a + b, [time])[0]
        lines = mean_lines(u.detach(), a, b, weight)
        for end, claimed in enumerate(
            ((a - 1) * (1 - u) - (b - 1 + lines[0]) * u, (a - 1 + lines[1]) * (1 - u) - (b - 1) * u)
        ):
            terms = log_densities(u, a, b, weight)[end].logsumexp(0)
            (slope,) = torch.autograd.grad(terms.sum(), u)
            torch.testing.assert_close(claimed.detach(), slope * u.detach() * (1 - u.detach()), rtol=1e-9, atol=1e-9)


def test_the_normal_limit_joins_the_death_process():
    """Where a stick is at all likely to be, the short-time formula is within a percent of the sum."""
    for theta in (2.0, 4.0):
        time = 0.011
        weight = lines_of_descent(theta, [time])[0]
        u = torch.tensor([1e-4, 0.003, 0.01, 0.03], dtype=torch.float64)
        found, wanted = early_lines(u, theta, time)[0], mean_lines(u, 1.0, theta - 1, weight)[0]
        torch.testing.assert_close(found, wanted, rtol=0.01, atol=0.0)
