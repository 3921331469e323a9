r"""The bound on -log p(x_0) of a Gaussian chain against closed forms.

Data N(0, 1) in each dimension, a cosine schedule, and the exact noise prediction, E[eps | x_t] = sigma_t x_t. The chain
with DDPM's large variance, a start from N(0, 1) and a last step of std sigma is then the noising process run backwards,
so its law is N(0, 1) and the bound has no slack; with the small variance it has.
"""

from __future__ import annotations

import math

import pytest
import torch

from difftilt.core.codec import ImageCodec, VectorCodec
from difftilt.core.gaussian_step import GaussianStep
from difftilt.core.policy import Policy
from difftilt.errors import UnsupportedError
from difftilt.metrics.chain_bound import LEVEL, chain_bounds, has_bound, level_log_prob, likelihood_chain
from difftilt.processes.flow import Flow
from difftilt.processes.gaussian import Gaussian


class Exact(torch.nn.Module):
    """E[eps | x_t] for x_0 ~ N(0, 1), times what a broken network multiplies it by."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x_t, t, cond=None):
        scale = torch.sin(t.double() * math.acos(1e-3)).to(x_t)
        return self.factor * scale[:, None] * x_t


def chain(variance: str, steps: int = 8, factor: float = 1.0) -> Policy:
    last = math.sin(math.acos(1e-3) / steps)
    process = Gaussian("cosine", variance=variance, sigma_min=last, prior_std=1.0)
    return Policy(Exact(factor), process, VectorCodec(), (3,), steps=steps).double()


def exact(x_0: torch.Tensor) -> torch.Tensor:
    return (0.5 * x_0.square() + 0.5 * math.log(2 * math.pi)).sum(1)


def estimate(policy: Policy, x_0: torch.Tensor, repeats: int, **options) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    many = chain_bounds(policy, x_0.repeat_interleave(repeats, 0), rng, batch=20_000, **options).view(-1, repeats)
    return many.mean(1), many.std(1) / repeats**0.5


X = torch.tensor([[0.3, -1.2, 0.7], [2.0, 0.0, -0.5], [0.0, 0.0, 0.0]], dtype=torch.float64)


def test_the_bound_is_log_p_itself_where_the_chain_is_the_noising_process_run_backwards() -> None:
    """H0: equality; n = 20,000 draws for each of 3 designs, 5.2 standard errors: false alarms below 1e-6 in all."""
    mean, error = estimate(chain("fixed_large"), X, 20_000)
    assert ((mean - exact(X)).abs() < 5.2 * error).all()
    assert error.max() < 0.05


@pytest.mark.parametrize("known_bad", [{"variance": "fixed_small"}, {"variance": "fixed_large", "factor": 0.8}])
def test_elsewhere_it_lies_above(known_bad: dict) -> None:
    """The twin: another variance or a network that is 20 % off is seen, and always on the safe side."""
    mean, error = estimate(chain(**known_bad), X, 20_000)
    assert (mean - exact_of(chain(**known_bad), X) > -5.2 * error).all()
    assert (mean.sum() - exact(X).sum() > 10 * error.sum()) or known_bad == {"variance": "fixed_small"}
    slack = mean - exact_of(chain(**known_bad), X)
    assert (slack > 5.2 * error).any()


def exact_of(policy: Policy, x_0: torch.Tensor) -> torch.Tensor:
    """-log p(x_0) of a chain whose steps are linear in the state: its law is N(0, variance), by recursion."""
    variance = torch.tensor(policy.process.prior_std**2, dtype=torch.float64)
    for t, s in zip(policy.grid[:-1], policy.grid[1:], strict=True):
        step = policy.step(torch.ones(1, 3, dtype=torch.float64), t, s)
        variance = step.mean[0, 0] ** 2 * variance + step.std[0] ** 2
    return (0.5 * x_0.square() / variance + 0.5 * (2 * math.pi * variance).log()).sum(1)


def test_the_recursion_of_these_tests_finds_the_data_law() -> None:
    torch.testing.assert_close(exact_of(chain("fixed_large"), X), exact(X))


def test_a_few_steps_estimate_the_sum_of_all() -> None:
    """H0: equal means; 5.2 joint standard errors for each of 3 designs."""
    policy = chain("fixed_small", steps=12)
    every, error = estimate(policy, X, 4000)
    for draws in (1, 4):
        few, noisier = estimate(policy, X, 20_000, draws=draws)
        assert ((few - every).abs() < 5.2 * (noisier**2 + error**2).sqrt()).all()


def test_levels_are_probabilities_that_sum_to_one() -> None:
    levels = torch.arange(256, dtype=torch.float64)[:, None] * LEVEL - 1
    for mean, std in ((0.31, 0.05), (1.4, 0.01), (-1.0, 0.5), (0.0, 1e-3)):
        law = GaussianStep(torch.full((256, 1), mean, dtype=torch.float64), torch.tensor(std))
        assert level_log_prob(law, levels).exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_far_tails_keep_their_digits() -> None:
    law = GaussianStep(torch.tensor([[1.0], [-1.0]], dtype=torch.float64), torch.tensor(0.01))
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)  # 200 standard deviations off
    values = level_log_prob(law, x)
    edge = (2 - LEVEL / 2) / 0.01
    assert values[0].item() == pytest.approx(values[1].item())
    assert values[0].item() == pytest.approx(-0.5 * edge**2 - math.log(edge) - 0.5 * math.log(2 * math.pi), rel=1e-6)


class Pixels(torch.nn.Module):
    """Knows that every image is grey at one level: predicts the noise that this leaves."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = level

    def forward(self, x_t, t, cond=None):
        angle = t.double() * math.acos(1e-3)
        alpha, sigma = (value.to(x_t)[:, None, None, None] for value in (angle.cos(), angle.sin()))
        return (x_t - alpha * self.level) / sigma


def test_a_model_that_knows_the_image_gives_it_probability_one() -> None:
    level = 200 * LEVEL - 1
    process = Gaussian("cosine", sigma_min=LEVEL / 20)
    policy = Policy(Pixels(level), process, ImageCodec(), (1, 2, 2), steps=25)
    assert has_bound(policy)
    fine = likelihood_chain(policy)
    assert fine.steps == 500
    rng = torch.Generator().manual_seed(0)
    right = chain_bounds(fine, torch.full((4, 1, 2, 2), level + 0.3 * LEVEL), rng, levels=True, draws=16)
    assert right.abs().max() < 0.05  # what is left: the start (1e-6), and floors under the last steps' std
    wrong = chain_bounds(fine, torch.full((4, 1, 2, 2), level + LEVEL), rng, levels=True, draws=16)
    assert wrong.min() > 100


def test_chains_without_a_density_are_refused() -> None:
    silent = Policy(Exact(), Gaussian("cosine"), VectorCodec(), (3,), steps=4)
    with pytest.raises(UnsupportedError, match="1 of 4"):
        chain_bounds(silent, X.float(), torch.Generator())
    assert not has_bound(silent)
    assert not has_bound(Policy(Exact(), Flow(0.0), ImageCodec(), (3,), steps=4))
