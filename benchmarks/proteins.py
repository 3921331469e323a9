"""Methods on the protein tasks, tuned or steered with equal oracle calls, by reward, judge, KL and mutations.

Run: ``python benchmarks/proteins.py run --jobs 2``, then ``table``. One part: ``python benchmarks/proteins.py one TASK
METHOD SEED``. Finished parts are kept in ``--out`` and not run again.

- ``gfp``: reward and judge are networks trained on disjoint halves; the chromophore is held and the number of mutations
  limited by the sampler. alpha 0.03 log10 units per nat.
- ``gb1``: the reward is the measured table; designs that were not measured have none. All 160,000 designs are
  enumerated, so that KL to the tilted law of the shipped p_pre is exact. alpha 0.5 (wild type = 1) per nat.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from parts import run_missing, write_part

import difftilt as dt
from difftilt import build
from difftilt.core.policy import Policy
from difftilt.core.reward import Reward
from difftilt.domains.protein import GB1, GFP, ProteinTask
from difftilt.problems.tilted import TiltedProblem
from difftilt.rewards.oracle import as_oracle
from difftilt.rng import Streams
from difftilt.training.designs import draw, scored

TASKS: dict[str, ProteinTask] = {"gfp": GFP, "gb1": GB1}
ALPHA = {"gfp": 0.03, "gb1": 0.5}
"""Reward units per nat."""
CALLS, DESIGNS = {"gfp": 5_000, "gb1": 20_000}, 256
"""Most oracle calls of a part, those of its designs included; a design that comes again is not paid again."""
SEEDS = (0, 1, 2)
TRAINED: dict[str, dict[str, Any]] = {
    "ppo": {"steps_per_path": 4},
    "trajectory_balance": {"steps_per_path": 4, "log_z": "learned"},
    "reward_weighted_mle": {"steps_per_path": 4, "batch": 128},
    "reward_backprop": {},
}
"""Settings that differ from the defaults."""
STEERED = ("value_weighted", "smc", "best_of_n")
METHODS = {"gfp": (*TRAINED, *STEERED), "gb1": (*(name for name in TRAINED if name != "reward_backprop"), *STEERED)}


@dataclass(frozen=True)
class Setting:
    """A task with what its methods share."""

    entry: ProteinTask
    alpha: float
    policy: Policy
    reward: Reward
    judge: Reward | None


def setting(task: str) -> Setting:
    """Load a task."""
    entry = TASKS[task]
    policy = build.load_task_policy(entry)
    reward = entry.limited(build.load_reward(entry, None), policy)
    return Setting(entry, ALPHA[task], policy, reward, build.load_judge(entry))


def one(task: str, method: str, seed: int) -> dict[str, Any]:
    """A finished part."""
    torch.set_num_threads(1)
    given, started = setting(task), time.process_time()
    rng = Streams(seed)("designs")
    row: dict[str, Any] = {"task": task, "method": method, "seed": seed, "alpha": given.alpha}
    oracle = as_oracle(given.reward)
    if method in TRAINED:
        algorithm = build.algorithm(method)(alpha=given.alpha, learning_rate=1e-3, **TRAINED[method])
        updates = (CALLS[task] - DESIGNS) // algorithm.batch
        result = dt.finetune(given.policy, oracle, algorithm, loop=dt.LoopConfig(steps=updates, seed=seed))
        row |= {"updates": updates, "training_calls": oracle.calls, "training_seconds": time.process_time() - started}
        after = draw(result.policy, given.policy, oracle, given.judge, DESIGNS, rng)
        row["kl_nats"] = after.path_log_ratio.mean().item()
        tuned: Policy | None = result.policy
    elif method in STEERED:
        samplers: dict[str, Any] = {
            "value_weighted": lambda: dt.ValueWeighted(alpha=given.alpha, candidates=8),
            "smc": lambda: dt.SMC(alpha=given.alpha),
            "best_of_n": lambda: dt.BestOfN(candidates=CALLS[task] // DESIGNS),
        }
        made = samplers[method]()(given.policy, oracle, DESIGNS, rng)
        after = scored(made.x_0, given.policy, oracle, given.judge, rng, log_weight=made.log_weight)
        tuned = None
    else:
        after, tuned = draw(given.policy, given.policy, oracle, given.judge, DESIGNS, rng), given.policy
        row["kl_nats"] = 0.0
    row |= facts(given, after) | {"calls": oracle.calls, "cpu_seconds": time.process_time() - started}
    if task == "gb1" and tuned is not None:
        row |= exact(given, tuned)
    return row


def facts(given: Setting, after: Any) -> dict[str, Any]:
    """Reward, judge and the domain's numbers of a set of designs."""
    weight = after.log_weight.softmax(0)
    ok = ~after.reward.isnan()
    judged = after.judge.where(ok & ~after.judge.isnan(), 0) if given.judge is not None else None
    described = given.entry.describe(given.policy, given.entry.known())(after.x_0)
    return {
        "reward": (weight * after.reward.nan_to_num(0)).sum().item() / weight[ok].sum().item(),
        "judge": None if judged is None else (weight * judged).sum().item() / weight[ok].sum().item(),
        "feasible": ok.double().mean().item(),
        "log_likelihood": after.pretrained_log_likelihood.mean().item(),
        **{name: value for name, value in described.items() if isinstance(value, float)},
    }


def exact(given: Setting, tuned: Policy) -> dict[str, float]:
    """Exact numbers on ``gb1``: KL to the tilted law of the shipped p_pre, before and after."""
    problem = TiltedProblem(given.policy.frozen_copy(), given.reward, alpha=given.alpha)
    before, after = problem.kl(given.policy), problem.kl(tuned)
    return {
        "log_z": problem.log_z,
        "target_reward": problem.target_mean_reward,
        "exact_reward": problem.mean_reward(tuned),
        "exact_kl_to_target": after,
        "exact_kl_of_pretrained": before,
        "kl_removed": 1 - after / before,
        "exact_feasible": problem.feasibility(tuned),
    }


def table(out: Path) -> str:
    """Means over seeds, and their range where there are several."""
    rows = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    columns = (
        ("reward", 3), ("judge", 3), ("kl_nats", 2), ("mutations_from_wild_type", 2), ("most_mutations", 0),
        ("unique_fraction", 3), ("novelty", 2), ("feasible", 3), ("kl_removed", 3), ("calls", 0), ("cpu_seconds", 0),
    )  # fmt: skip
    lines = ["| task | method | seeds | " + " | ".join(name.replace("_", " ") for name, _ in columns) + " |"]
    lines.append("|" + "---|" * (len(columns) + 3))
    for task, methods in METHODS.items():
        for method in ("pretrained", *methods):
            group = [row for row in rows if (row["task"], row["method"]) == (task, method)]
            if group:
                cells = [_cell([row.get(name) for row in group], places) for name, places in columns]
                lines.append(f"| {task} | {method} | {len(group)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float | None], places: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{statistics.fmean(known):,.{places}f}"
    if len(known) < 2 or places == 0:
        return mean
    return f"{mean} ({min(known):.{places}f} to {max(known):.{places}f})"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "proteins")
    actions = parser.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run")
    run.add_argument("--jobs", type=int, default=1)
    run.add_argument("--seeds", type=int, default=len(SEEDS))
    run.add_argument("--tasks", nargs="*", default=list(METHODS))
    single = actions.add_parser("one")
    single.add_argument("part", nargs=3)
    actions.add_parser("table")
    asked = parser.parse_args()
    if asked.action == "run":
        parts = [
            (task, method, str(seed))
            for seed in SEEDS[: asked.seeds]
            for task in asked.tasks
            for method in ("pretrained", *METHODS[task])
        ]
        run_missing(__file__, asked.out, parts, asked.jobs)
    elif asked.action == "one":
        task, method, seed = asked.part
        write_part(asked.out, asked.part, one(task, method, int(seed)))
    else:
        print(table(asked.out))


if __name__ == "__main__":
    main()
