"""Uniform diffusion on few letters: the enumerated chain is the one that is run, and its optimum is one."""

from __future__ import annotations

import itertools

import pytest
import torch

from difftilt.algorithms.trajectory_balance import TrajectoryBalance
from difftilt.core.algorithm import Anchor
from difftilt.core.trajectory import rollout, sample_states
from difftilt.problems.dense import DenseProblem, uniform_problem
from difftilt.problems.landscapes import random_pairwise
from difftilt.problems.tilted import kl_divergence

ALPHA = 0.5


def problem(steps: int = 8) -> DenseProblem:
    base = random_pairwise(3, 3, alpha=ALPHA, target_kl=1.0, seed=0)
    joint = base.pretrained_law.view([3] * 3)
    return uniform_problem(joint, base.reward, base.pretrained.codec, steps=steps, alpha=ALPHA)


@pytest.fixture(scope="module")
def exact() -> DenseProblem:
    return problem()


def perturbed(exact: DenseProblem, scale: float = 0.3):
    policy = exact.tunable()
    with torch.no_grad():
        noise = torch.randn(policy.denoiser.logits.shape, generator=torch.Generator().manual_seed(1))
        policy.denoiser.logits += scale * noise
    return policy


def test_exact_posteriors_carry_noise_to_the_data_law_as_the_steps_grow():
    """What is lost by drawing letters independently within a step falls as 1 / K^2."""
    base = random_pairwise(3, 3, alpha=ALPHA, target_kl=1.0, seed=0)
    lost = [kl_divergence(problem(k).pretrained_law, base.pretrained_law) for k in (8, 16, 32)]
    assert lost[0] < 5e-3
    assert all(3 < before / after < 5 for before, after in itertools.pairwise(lost))


def test_samples_have_the_enumerated_law(exact):
    """Every cell of 50,000 designs within 5 standard errors."""
    policy, n = perturbed(exact), 50_000
    law = exact.law(exact.kernels(policy)).detach()
    x_0 = sample_states(policy, n, torch.Generator().manual_seed(0))
    found = torch.bincount(x_0 @ torch.tensor([9, 3, 1]), minlength=27) / n
    for cells, right in ((law, True), (exact.pretrained_law, False)):  # twin: another policy's law
        assert bool(((found - cells).abs() < 5 * (cells * (1 - cells) / n).sqrt()).all()) == right


def test_path_kl_of_rollouts_is_that_of_the_objective(exact):
    policy, n = perturbed(exact), 20_000
    path = rollout(policy, n, torch.Generator().manual_seed(0), references=[exact.pretrained], with_kl=True)
    sampled, closed = path.log_ratio[0].sum(0), path.kl[0].sum(0)
    spent = (exact.mean_reward(policy) - exact.objective(policy).item()) / ALPHA
    for values in (sampled, closed):
        assert abs(values.mean().item() - spent) < 5 * values.std().item() / n**0.5


def test_noise_tells_nothing_of_the_design_so_that_kernels_alone_reach_the_tilted_law(exact):
    assert kl_divergence(exact.target, exact.tilted) < 1e-12
    assert exact.soft_values[0].std() < 1e-12
    assert exact.soft_values[0].mean().item() == pytest.approx(ALPHA * exact.log_z)


def test_the_class_optimum_is_stationary_and_beats_its_neighbours(exact):
    best = exact.tunable()
    best.load_state_dict(exact.optimum.state_dict())
    (slope,) = torch.autograd.grad(exact.objective(best), best.denoiser.logits)
    assert slope.abs().max() < 1e-5
    assert exact.gap(exact.optimum) < exact.gap(exact.pretrained)
    for seed in range(5):
        noise = torch.randn(slope.shape, generator=torch.Generator().manual_seed(seed))
        moved = exact.tunable()
        moved.denoiser.logits.data = best.denoiser.logits.data + 0.1 * noise
        assert exact.gap(moved) > exact.gap(exact.optimum)
    assert 0 < exact.class_kl < exact.gap(exact.optimum)


def test_trajectory_balance_closes_the_gap_to_the_class_optimum():
    exact, rng = problem(), torch.Generator().manual_seed(0)
    algorithm = TrajectoryBalance(alpha=ALPHA, batch=512, learning_rate=0.05)
    state = algorithm.init(exact.tunable(), [Anchor(exact.pretrained, ALPHA)])
    before = exact.gap(state.policy)
    for update in range(60):
        state.scale_learning_rate(1 - update / 61)
        algorithm.step(state, exact.reward, rng)
    assert exact.gap(state.policy) - exact.gap(exact.optimum) < 0.05 * before
