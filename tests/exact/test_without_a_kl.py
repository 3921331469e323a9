"""alpha = 0: the reward alone, no reference; and minibatches read a few rows at a time."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

import difftilt as dt
from difftilt import build
from difftilt.core.policy import Policy
from difftilt.errors import ConfigError
from difftilt.problems.landscapes import random_pairwise
from difftilt.problems.tilted import TiltedProblem

GREEDY = ("ppo", "reinforce", "reward_backprop")


@pytest.fixture(scope="module")
def problem() -> TiltedProblem:
    return random_pairwise(3, 3, alpha=0.5, target_kl=1.0, seed=0)


def start(problem: TiltedProblem) -> Policy:
    return copy.deepcopy(problem.pretrained).requires_grad_(True)


@pytest.mark.parametrize("name", GREEDY)
def test_without_a_kl_the_best_design_is_all_that_is_left(problem: TiltedProblem, name: str) -> None:
    """E[r] climbs to within 6 % of its range below the best design; with the KL it stays far below."""
    settings: dict[str, Any] = {"batch": 256, "learning_rate": 0.05}
    results = {}
    for alpha in (0.0, 0.5):
        algorithm = build.algorithm(name)(alpha=alpha, **settings)
        result = dt.finetune(start(problem), problem.reward, algorithm, loop=dt.LoopConfig(steps=100))
        results[alpha] = problem.chain.marginal(result.policy) @ problem.table
        if alpha == 0:
            assert result.alpha == 0
            assert {record["kl_nats"] for record in result.history} == {None}
    best, span = problem.table.max(), problem.table.max() - problem.table.min()
    assert best - results[0.0] < 0.06 * span
    assert best - results[0.5] > 0.12 * span


@pytest.mark.parametrize("name", GREEDY)
def test_no_reference_is_run(problem: TiltedProblem, name: str) -> None:
    passes = []
    for alpha in (0.0, 0.5):
        algorithm = build.algorithm(name)(alpha=alpha, batch=16)
        passes.append(dt.finetune(start(problem), problem.reward, algorithm, loop=dt.LoopConfig(steps=1)).history[0])
    assert passes[0]["network_evaluations"] < passes[1]["network_evaluations"]


@pytest.mark.parametrize("name", [name for name in build.ALGORITHMS if name not in GREEDY])
def test_methods_with_a_law_need_a_temperature(problem: TiltedProblem, name: str) -> None:
    with pytest.raises(ConfigError, match="alpha > 0"):
        dt.finetune(start(problem), problem.reward, build.algorithm(name)(alpha=0.0, batch=16))


def test_a_negative_temperature_is_refused(problem: TiltedProblem) -> None:
    with pytest.raises(ConfigError, match="alpha > 0"):
        dt.finetune(start(problem), problem.reward, dt.PPO(alpha=-0.1))


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize(
    ("name", "settings"),
    [("ppo", {}), ("ppo", {"kl": "closed_form"}), ("ppo", {"steps_per_path": 2}), ("reinforce", {}),
     ("reinforce", {"baseline": "value"})],
)  # fmt: skip
def test_rows_at_a_time_change_memory_and_no_number(
    problem: TiltedProblem, name: str, settings: dict[str, Any], rows: int
) -> None:
    tuned, records = [], []
    for limit in (None, rows):
        algorithm = build.algorithm(name)(alpha=0.5, batch=16, rows_per_pass=limit, **settings)
        result = dt.finetune(start(problem), problem.reward, algorithm, loop=dt.LoopConfig(steps=2))
        tuned.append(torch.cat([p.flatten() for p in result.policy.parameters()]))
        records.append(result.history[-1])
    assert torch.allclose(*tuned, atol=1e-5, rtol=0)
    assert math.isclose(records[0]["kl_nats"], records[1]["kl_nats"], rel_tol=1e-4)
    assert records[0]["network_evaluations"] == records[1]["network_evaluations"]


def test_a_part_left_out_would_be_seen(problem: TiltedProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    from difftilt.algorithms import baselines

    whole = baselines.split_steps
    monkeypatch.setattr(baselines, "split_steps", lambda steps, rows: whole(steps, rows)[1:])
    with pytest.raises(AssertionError):
        test_rows_at_a_time_change_memory_and_no_number(problem, "ppo", {}, 7)
