"""PPO's three ratios: one gradient at the first pass, one fixed point; and what ten thousand dimensions do to each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from difftilt.algorithms.paths import choose_steps
from difftilt.algorithms.ppo import PPO, gaussian_kl_loss, ppo_loss
from difftilt.algorithms.reinforce import Reinforce
from difftilt.core.algorithm import Anchor
from difftilt.core.codec import VectorCodec
from difftilt.core.gaussian_step import GaussianStep
from difftilt.core.noise import Cosine
from difftilt.core.policy import Policy
from difftilt.core.schedule import uniform_grid
from difftilt.core.trajectory import rollout
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.problems.affine import AffineProblem
from difftilt.problems.landscapes import random_pairwise
from difftilt.problems.library import linear_gaussian
from difftilt.problems.linear_gaussian import Chain, LinearGaussian, Quadratic
from difftilt.processes.flow import Flow
from difftilt.processes.gaussian import Gaussian

ALPHA = 0.5
SETTINGS: list[dict[str, Any]] = [{}, {"ratio": "per_dimension", "clip": 0.1}, {"ratio": "gaussian_kl"}]
every = pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.get("ratio", "exact"))


def line() -> AffineProblem:
    """Numbers, two steps."""
    one = torch.ones(1, dtype=torch.float64)
    data = LinearGaussian(
        0.7 * one, 0.8 * one[:, None], Gaussian(Cosine(), prediction="x_0", sigma_min=0.3), uniform_grid(2)
    )
    return AffineProblem(data, Quadratic.reward(0.3 * one[:, None], 1.5 * one, 0.2 * one), alpha=ALPHA)


# --- the losses -----------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("process", [Gaussian(Cosine(), sigma_min=0.05), Flow(0.7, sigma_min=0.05)])
@pytest.mark.parametrize("count", [None, 2])
def test_the_first_gradient_is_the_score_functions(settings: dict[str, Any], process: Any, count: int | None) -> None:
    """That of REINFORCE on the same paths, whichever the ratio; and the ratio to the stored number is exactly 1."""
    problem = linear_gaussian(process, 4, alpha=ALPHA)
    policy, rng = problem.tunable(), torch.Generator().manual_seed(0)
    for parameter in policy.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=rng, dtype=parameter.dtype)
    anchors, gradients = [Anchor(problem.pretrained, ALPHA)], []
    for algorithm in (PPO(batch=64, **settings), Reinforce(batch=64)):
        state, rng = algorithm.init(policy, anchors), torch.Generator().manual_seed(1)
        data = PPO(batch=64, **settings).collect(state, problem.reward, rng)
        targets, rows = algorithm.targets(state, data), torch.arange(64)
        loss, seen = algorithm.loss(state, data, targets, choose_steps(data.path, rows, count, rng), rows, rng)
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters()))]))
        if isinstance(algorithm, PPO):
            assert seen["outside"].max() == 0
            assert (seen["log_ratio"] == 0).all() or count == 2
    assert gradients[1].norm() > 0.1
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_the_surrogate_of_the_trust_region_is_log_ratio_plus_kl() -> None:
    """By the densities and KL of the steps themselves, in float64; steps that moved further than the region are cut."""
    rng = torch.Generator().manual_seed(0)
    old, moved, noise = (torch.randn(6, 3, 4, generator=rng, dtype=torch.float64) for _ in range(3))
    std, advantage = torch.rand(6, generator=rng).double() + 0.5, torch.randn(6, generator=rng).double()
    mean = (old + 0.1 * moved).requires_grad_()
    before, after, x_s = GaussianStep(old, std), GaussianStep(mean, std), old + noise
    kl = after.kl(before).detach()
    trust = kl.sort().values[3].item()
    loss, moved_by = gaussian_kl_loss(mean, old, x_s, std, advantage, trust_kl=trust, scale=2.0, paths=3)
    torch.testing.assert_close(moved_by, kl)
    surrogate = advantage * (after.log_prob(x_s) - before.log_prob(x_s) + after.kl(before))
    torch.testing.assert_close(loss, -2.0 / 3 * surrogate[kl <= trust].sum())
    (slope,) = torch.autograd.grad(loss, mean)
    assert ((slope.flatten(1).abs().sum(1) > 0) == (kl <= trust)).all()
    assert int((kl <= trust).sum()) == 4
    score = -2.0 / 3 * (advantage / std**2)[:, None, None] * (x_s - old)  # wherever the mean is: nothing degenerates
    torch.testing.assert_close(slope[kl <= trust], score[kl <= trust])


@pytest.mark.parametrize("dimensions", [1, 5])
def test_the_surrogate_per_dimension_has_the_gradient_of_the_root_of_the_ratio(dimensions: int) -> None:
    """rho^(1/d) A within the range, 0 where clipping acts; by the signs of advantage and move."""
    log_prob = torch.tensor([0.2, 0.2, 2.0, 2.0, -2.0, -2.0], dtype=torch.float64).requires_grad_()
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    loss = ppo_loss(log_prob, torch.zeros(6).double(), advantage, clip=0.3, scale=2.0, paths=3, dimensions=dimensions)
    acts = torch.tensor([False, False, True, False, False, True])
    root = (log_prob / dimensions).exp()
    (slope,) = torch.autograd.grad(loss, log_prob)
    torch.testing.assert_close(slope, (-2.0 / 3 * advantage * root).where(~acts, 0.0).detach())


# --- the algorithm --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [ALPHA, 2 * ALPHA])
@every
def test_each_ratio_reaches_the_class_optimum(settings: dict[str, Any], alpha: float) -> None:
    """The exact objective within 2 % of the way; with another alpha (twin) it ends elsewhere."""
    problem = line()
    policy = problem.tunable()
    algorithm = PPO(batch=256, learning_rate=0.03, **settings)
    state, rng = algorithm.init(policy, [Anchor(problem.pretrained, alpha)]), torch.Generator().manual_seed(0)
    for update in range(60):
        state.scale_learning_rate(1 - update / 60)
        algorithm.step(state, problem.reward, rng)
    with torch.no_grad():
        start, reached, best = (
            chain.objective(problem.reward, ALPHA, problem.chain).item()
            for chain in (problem.chain, Chain.read(policy), problem.class_optimum)
        )
    assert (best - reached < 0.02 * (best - start)) == (alpha == ALPHA)


D = 10_000
PROCESS = Gaussian(Cosine(), prediction="x_0", sigma_min=0.3)


class Shifted(nn.Module):
    """Exact for N(0, I) in ``D`` dimensions, plus a vector for each step."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(steps, D))

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        step = (len(self.bias) * (1 - t)).round().long()
        return (PROCESS.schedule.scales(t)[0][:, None] * x_t + self.bias[step]).float()


class Direction:
    """A linear reward along the diagonal, with a spread of about 1."""

    def __call__(self, designs: Any) -> torch.Tensor:
        return torch.from_numpy(np.stack(designs)).double().sum(1) / math.sqrt(D)


def large() -> Policy:
    return Policy(Shifted(2), PROCESS, VectorCodec(), (D,), steps=2)


@torch.no_grad()
def mean_reward(policy: Policy) -> float:
    """Exactly, since means are affine."""
    x = torch.zeros(1, D)
    for t, s in zip(policy.grid[:-1], policy.grid[1:], strict=True):
        x = policy.step(x, t, s).mean
    return x.sum().item() / math.sqrt(D)


HIGH: dict[str, dict[str, Any]] = {
    "exact": {"clip": 0.2},
    "per_dimension": {"ratio": "per_dimension", "clip": 2e-3},
    "gaussian_kl": {"ratio": "gaussian_kl", "trust_kl": 12.0},
}


def move(policy: Policy, size: float, rng: torch.Generator) -> None:
    """Moves the mean of every step by ``size`` std in each dimension, up or down at random."""
    for k, (t, s) in enumerate(zip(policy.grid[:-1], policy.grid[1:], strict=True)):
        before, bias = policy.step(torch.zeros(1, D), t, s), policy.denoiser.bias.data[k]
        bias += 1.0
        per_unit = (policy.step(torch.zeros(1, D), t, s).mean - before.mean).mean()
        bias += size * before.std / per_unit * torch.randn(D, generator=rng).sign() - 1.0


@pytest.mark.parametrize("ratio", HIGH)
def test_exact_ratios_degenerate_in_many_dimensions_and_the_others_do_not(ratio: str) -> None:
    """A move of 0.04 std in each of 10,000 dimensions is 8 nats: log-ratios have the law N(-8, 16).

    Their mean over 128 independent steps is within 6 standard errors (p < 2e-9), their variance within 6 of its own
    (chi-squared, p < 1e-6). Nearly all exact ratios are outside the clip range, and along the reward's own direction
    the gradient of the few others is another; the other ratios keep it within a fifth.
    """
    policy = large()
    algorithm = PPO(batch=64, **HIGH[ratio])
    state, rng = algorithm.init(policy, [Anchor(policy.frozen_copy(), 1e-3)]), torch.Generator().manual_seed(0)
    data = algorithm.collect(state, Direction(), rng)
    targets, rows = algorithm.targets(state, data), torch.arange(64)
    steps, along = choose_steps(data.path, rows, None, rng), []
    for size in (0.0, 0.04):
        move(policy, size, rng)
        loss, seen = algorithm.loss(state, data, targets, steps, rows, rng)
        (slope,) = torch.autograd.grad(loss, policy.denoiser.bias)
        along.append(-slope.double().sum(1))
    normal = (seen["log_ratio"] + 8) / 4
    assert abs(normal.mean()) < 6 / 128**0.5
    assert abs(normal.var() - 1) < 6 * (2 / 127) ** 0.5
    assert (along[0] > 0).all()
    kept, outside = along[1] / along[0], seen["outside"].mean().item()
    if ratio == "exact":
        assert outside > 0.95
        assert (kept - 1).abs().min() > 0.4
    else:
        assert outside < 0.05
        assert (kept - 1).abs().max() < 0.2


def test_learning_in_many_dimensions_goes_on_within_a_rollout_but_for_exact_ratios() -> None:
    """8 optimiser steps on each of 3 rollouts, by plain descent so that nothing coasts: exact ones soon stop.

    Measured: 0.10, 0.25 and 0.26 of a std of the reward; 59 %, 0 and 0 of the steps outside.
    """
    reached, infos = {}, {}
    for name, settings in HIGH.items():
        policy = large()
        algorithm = PPO(batch=128, epochs=1, minibatches=8, max_gradient_norm=1e9, **settings)
        state, rng = algorithm.init(policy, [Anchor(policy.frozen_copy(), 1e-3)]), torch.Generator().manual_seed(0)
        state.optimiser = torch.optim.SGD(policy.parameters(), lr=1e-5)
        for _ in range(3):
            infos[name] = algorithm.step(state, Direction(), rng)
        reached[name] = mean_reward(policy)
    assert infos["exact"].clip_fraction > 0.5
    assert infos["exact"].log_ratio_rms > 1
    for name in ("per_dimension", "gaussian_kl"):
        assert infos[name].clip_fraction < 0.05
        assert reached[name] > 2 * reached["exact"] > 0


def test_a_trust_region_of_gaussians_needs_gaussian_steps() -> None:
    problem = random_pairwise(3, 3, alpha=ALPHA, target_kl=1.0, seed=0)
    with pytest.raises(UnsupportedError, match=r"for ratio 'gaussian_kl'; got Masked; use ratio 'exact'"):
        PPO(ratio="gaussian_kl").init(problem.tunable(), [Anchor(problem.pretrained, ALPHA)])
    with pytest.raises(ConfigError, match=r"known ratio; got 'per_dim'; did you mean 'per_dimension'"):
        PPO(ratio="per_dim")


def test_means_are_kept_where_asked_for_only() -> None:
    policy, rng = line().pretrained, torch.Generator().manual_seed(0)
    assert rollout(policy, 4, rng).means is None
    path = rollout(policy, 4, rng, with_means=True)
    for k in range(2):
        assert torch.equal(path.means[k], policy.step(path.states[k], *path.times[k : k + 2]).mean)
