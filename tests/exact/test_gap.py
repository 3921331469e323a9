"""The optimality gap and both log Z estimates against exact numbers."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from difftilt.algorithms.trajectory_balance import TrajectoryBalance
from difftilt.core.algorithm import Anchor
from difftilt.core.policy import Policy
from difftilt.core.reward import score
from difftilt.core.trajectory import rollout
from difftilt.metrics.gap import Gap, optimality_gap
from difftilt.metrics.log_z import LogZ, from_samples, log_path_weight, systematic, tempered_log_z
from difftilt.problems.landscapes import TableReward, corrected, random_pairwise
from difftilt.problems.tilted import TiltedProblem

ROLLOUTS = 4000


@pytest.fixture(scope="module")
def problem() -> TiltedProblem:
    return random_pairwise(seed=3)


@pytest.fixture(scope="module")
def independent(problem: TiltedProblem) -> LogZ:
    rng = torch.Generator().manual_seed(5)
    return tempered_log_z(problem.pretrained, problem.reward, rng, alpha=problem.alpha, particles=2048)


@pytest.fixture(scope="module")
def tuned(problem: TiltedProblem) -> list[Policy]:
    """Policies after 0, 15 and 120 updates."""
    policy, kept = corrected(problem.pretrained), []
    algorithm = TrajectoryBalance(batch=512, learning_rate=3e-3)
    state = algorithm.init(policy, [Anchor(problem.pretrained, problem.alpha)])
    rng = torch.Generator().manual_seed(0)
    for update in range(121):
        if update in (0, 15, 120):
            kept.append(copy.deepcopy(policy).requires_grad_(False))
        algorithm.step(state, problem.reward, rng)
    return kept


def measure(problem: TiltedProblem, policy: Policy, independent: LogZ, *, ratio_sign: float = 1.0) -> Gap:
    path = rollout(policy, ROLLOUTS, torch.Generator().manual_seed(0), references=[problem.pretrained])
    value = score(problem.reward, policy.codec, path.x_0).value
    ratio = ratio_sign * path.log_ratio[0].sum(0)
    return optimality_gap(log_path_weight(value, ratio, alpha=problem.alpha), independent)


def test_the_tempered_estimate_finds_log_z(problem: TiltedProblem, independent: LogZ) -> None:
    assert abs(independent.value - problem.log_z) < 4 * independent.error
    assert independent.error < 0.15
    assert independent.ess >= 50


def test_the_gap_is_within_three_standard_errors_for_pretrained_half_trained_and_tuned(
    problem: TiltedProblem, independent: LogZ, tuned: list[Policy]
) -> None:
    exact = [problem.gap(policy) for policy in tuned]
    assert exact[0] > 5 * exact[1] > 5 * exact[2], "the three policies must differ for this test to mean something"
    for policy, truth in zip(tuned, exact, strict=True):
        gap = measure(problem, policy, independent)
        assert abs(gap.gap_nats - truth) < 3 * gap.error
        wrong = measure(problem, policy, independent, ratio_sign=-1.0)  # twin: the log-ratio's sign flipped
        assert truth < 0.05 or abs(wrong.gap_nats - truth) > 3 * wrong.error or policy is tuned[0]


def test_only_trustworthy_gaps_are_certified(problem: TiltedProblem, tuned: list[Policy], independent: LogZ) -> None:
    sharp = LogZ(independent.value, independent.error, max(independent.ess, 100.0), 0, 0)
    assert measure(problem, tuned[2], sharp).certified
    few = LogZ(independent.value, independent.error, 99.0, 0, 0)
    assert "below 100" in measure(problem, tuned[2], few).verdict


def test_a_collapsed_policy_is_not_certified(problem: TiltedProblem, independent: LogZ) -> None:
    """It has equal weights, so its own estimate says gap 0 (twin); the independent estimate gives it away."""
    collapsed = corrected(problem.pretrained)
    best = problem.chain.designs[problem.table.argmax()]
    logits = 40 * torch.nn.functional.one_hot(best, 4).flatten().float()
    collapsed.denoiser.network[-1].bias.data.copy_(logits)
    gap = measure(problem, collapsed, independent)
    assert not gap.certified
    assert "differ by" in gap.reason
    assert abs(gap.gap_nats - problem.gap(collapsed)) < 3 * gap.error + 0.05
    path = rollout(collapsed, 500, torch.Generator().manual_seed(0), references=[problem.pretrained])
    weight = log_path_weight(
        score(problem.reward, collapsed.codec, path.x_0).value, path.log_ratio[0].sum(0), alpha=problem.alpha
    )
    naive = from_samples(weight).value - weight.mean().item()
    assert naive < 0.1 < problem.gap(collapsed)


def test_infeasible_designs_count_as_weight_zero(problem: TiltedProblem) -> None:
    """Log Z over the feasible set, and the gap of p_theta(.|F), both against exact numbers."""
    designs = problem.pretrained.codec.decode(problem.chain.designs)
    bar = problem.table.quantile(0.7).item()
    values = {d: (math.nan if v > bar else v) for d, v in zip(designs, problem.table.tolist(), strict=True)}
    hard = TiltedProblem(problem.pretrained, TableReward(values), alpha=problem.alpha)
    estimate = tempered_log_z(
        hard.pretrained, hard.reward, torch.Generator().manual_seed(1), alpha=hard.alpha, particles=2048
    )
    assert abs(estimate.value - hard.log_z) < 4 * estimate.error
    gap = measure(hard, corrected(hard.pretrained), estimate)
    assert abs(gap.gap_nats - hard.gap(hard.pretrained)) < 3 * gap.error
    assert 0.5 < gap.feasible_fraction < 0.95


def test_nothing_feasible_is_said_and_not_invented(problem: TiltedProblem) -> None:
    rng = torch.Generator().manual_seed(0)
    nothing = tempered_log_z(problem.pretrained, TableReward({}), rng, alpha=0.5, particles=64)
    assert nothing.value == -math.inf
    gap = optimality_gap(torch.full((8,), -torch.inf, dtype=torch.float64), nothing)
    assert not gap.certified
    assert "feasible" in gap.reason


def test_systematic_resampling_copies_in_proportion() -> None:
    """Offspring counts differ from N w by less than one, whatever the draw (multinomial would not: twin)."""
    weight = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = 64 * weight.softmax(0)
    rng = torch.Generator().manual_seed(1)
    counts = torch.bincount(systematic(weight, rng), minlength=64)
    assert ((counts - expected).abs() < 1).all()
    drawn = torch.multinomial(weight.softmax(0), 64, replacement=True, generator=rng)
    multinomial = torch.bincount(drawn, minlength=64)
    assert not ((multinomial - expected).abs() < 1).all()
