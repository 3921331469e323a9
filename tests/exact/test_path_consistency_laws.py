"""Path consistency, detailed and subtrajectory balance, over every path of small chains."""

from __future__ import annotations

import pytest
import torch

from difftilt.algorithms.path_consistency import path_consistency_loss
from difftilt.algorithms.trajectory_balance import trajectory_balance_loss
from difftilt.core.policy import Policy
from difftilt.errors import ConfigError
from difftilt.problems.landscapes import random_pairwise
from difftilt.problems.tilted import TiltedProblem

ALPHA = 0.5
SPANS = (1, 2, 3, 7, None)


@pytest.fixture(scope="module")
def problem() -> TiltedProblem:
    """3 tokens, 3 letters, one token per step: 162 paths."""
    return random_pairwise(3, 3, alpha=ALPHA, target_kl=1.0, seed=0)


def optimal(problem: TiltedProblem) -> Policy:
    policy = problem.tunable()
    policy.denoiser = type(policy.denoiser).from_joint(problem.tilted.view(3, 3, 3))
    return policy.requires_grad_(True)


def residuals(problem: TiltedProblem, policy: Policy) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-ratios with their graph, exact soft values, and rewards, of every path of ``policy``."""
    paths = problem.chain.trajectories(policy, [problem.pretrained])
    rows = [
        policy.step(paths.states[k], paths.times[k], paths.times[k + 1]).log_prob(paths.states[k + 1])
        for k in range(paths.steps)
    ]
    index = {tuple(state): number for number, state in enumerate(problem.chain.states.tolist())}
    places = torch.tensor([[index[tuple(state)] for state in states] for states in paths.states[:-1].tolist()])
    value = problem.soft_values()[:-1].gather(1, places)
    reward = torch.as_tensor(problem.reward(policy.codec.decode(paths.x_0)), dtype=torch.float64)
    return torch.stack(rows) - paths.reference_log_prob[0], value, reward


def gradient(loss: torch.Tensor, policy: Policy) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters()), retain_graph=True)])


@pytest.mark.parametrize("span", SPANS)
def test_soft_optimal_kernels_and_soft_values_are_consistent_on_every_path(
    problem: TiltedProblem, span: int | None
) -> None:
    """Law 1: loss and gradient 0 at the optimum; not with alpha doubled nor with one term's sign flipped (twins)."""
    policy = optimal(problem)
    log_ratio, value, reward = residuals(problem, policy)
    loss = path_consistency_loss(log_ratio, value, reward, alpha=ALPHA, span=span)
    assert loss < 1e-18
    assert gradient(loss, policy).norm() < 1e-8
    for wrong in (
        path_consistency_loss(log_ratio, value, reward, alpha=2 * ALPHA, span=span),
        path_consistency_loss(-log_ratio, value, reward, alpha=ALPHA, span=span),
        path_consistency_loss(log_ratio, -value, reward, alpha=ALPHA, span=span),
        path_consistency_loss(log_ratio, value, -reward, alpha=ALPHA, span=span),
    ):
        assert wrong > 1e-3
        assert gradient(wrong, policy).norm() > 1e-2


def test_a_span_of_the_whole_path_is_trajectory_balance_times_alpha_squared(problem: TiltedProblem) -> None:
    """With the initial value as log Z: the family meets at its ends."""
    policy = problem.tunable()
    for parameter in policy.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double()
    log_ratio, value, reward = residuals(problem, policy)
    whole = path_consistency_loss(log_ratio, value, reward, alpha=ALPHA, span=3)
    level = value.new_tensor([0.3, 0.2, 0.1])[:, None].expand_as(value)
    short = path_consistency_loss(log_ratio, level, reward, alpha=ALPHA, span=1)
    by_hand = [
        (level[0] - level[1] + ALPHA * log_ratio[0]).square(),
        (level[1] - level[2] + ALPHA * log_ratio[1]).square(),
        (level[2] - reward + ALPHA * log_ratio[2]).square(),
    ]
    torch.testing.assert_close(short, torch.stack(by_hand).mean())
    ends = [
        (value[0] - reward + ALPHA * log_ratio.sum(0)).square(),
        (value[1] - reward + ALPHA * log_ratio[1:].sum(0)).square(),
        (value[2] - reward + ALPHA * log_ratio[2]).square(),
    ]
    torch.testing.assert_close(whole, torch.stack(ends).mean())
    balance = trajectory_balance_loss(log_ratio.sum(0), reward, value[0, 0] / ALPHA, alpha=ALPHA)
    torch.testing.assert_close(ends[0].mean(), ALPHA**2 * balance)


def test_all_spans_are_the_mean_over_all_pairs(problem: TiltedProblem) -> None:
    log_ratio, value, reward = residuals(problem, optimal(problem))
    value = value + torch.tensor([0.3, -0.2, 0.5])[:, None]
    ends = torch.cat([value, reward[None]])
    pairs = [(ends[i] - ends[j] + ALPHA * log_ratio[i:j].sum(0)).square() for i in range(3) for j in range(i + 1, 4)]
    got = path_consistency_loss(log_ratio, value, reward, alpha=ALPHA, span=None)
    torch.testing.assert_close(got, torch.stack(pairs).mean())


def test_a_reward_shifted_by_c_shifts_the_values_and_nothing_else(problem: TiltedProblem) -> None:
    """Law 3; and in units scaled by c, alpha included, the loss scales by c squared."""
    log_ratio, value, reward = residuals(problem, problem.tunable())
    loss = path_consistency_loss(log_ratio, value, reward, alpha=ALPHA)
    torch.testing.assert_close(path_consistency_loss(log_ratio, value + 7, reward + 7, alpha=ALPHA), loss)
    torch.testing.assert_close(path_consistency_loss(log_ratio, 3 * value, 3 * reward, alpha=3 * ALPHA), 9 * loss)


@pytest.mark.parametrize(("alpha", "span"), [(0.0, 1), (-1.0, None), (0.5, 0)])
def test_a_loss_without_a_target_is_refused(alpha: float, span: int | None) -> None:
    row = torch.zeros(2, 3)
    with pytest.raises(ConfigError, match="expected alpha > 0 and span >= 1"):
        path_consistency_loss(row, row, row[0], alpha=alpha, span=span)
