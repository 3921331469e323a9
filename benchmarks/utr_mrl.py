"""The `utr-mrl` benchmark: every method's gap at alpha 0.1, and 1,000 designs against best-of-64 at equal oracle calls.

Run: ``python benchmarks/utr_mrl.py run --jobs 2`` (each seed takes less than 20 minutes of two cores), then
``python benchmarks/utr_mrl.py table``. One seed and setting at a time: ``python benchmarks/utr_mrl.py one NAME SEED``.
Finished parts are kept in ``--out`` and not run again. Each part is one process with one thread.

Parts: log Z from the pretrained model alone (once for each alpha, shared by all gaps), a method at alpha 0.1 (for the
gap), a method at the lower alpha whose designs are compared with best-of-64 (``*-sharp``), and best-of-64 itself
(64,000 reward calls for 1,000 designs). Training calls and the reward calls of the 1,000 designs together stay within
64,000.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from parts import log_z_row, run_missing, write_part

import difftilt as dt
from difftilt import build
from difftilt.core.reward import score
from difftilt.metrics.log_z import LogZ
from difftilt.rng import Streams

ALPHA, SHARP, DESIGNS, CALLS = 0.1, 0.03, 1000, 64_000
PPO = {"learning_rate": 2e-3, "steps_per_path": 8}
BALANCE = {"learning_rate": 2e-3, "steps_per_path": 8}
BACKPROP = {"learning_rate": 2e-3, "tau_updates": 120}
PARTS: dict[str, tuple[Any, int]] = {
    "ppo": (dt.PPO(alpha=ALPHA, **PPO), 100),
    "reward_backprop": (dt.RewardBackprop(alpha=ALPHA, **BACKPROP), 160),
    "trajectory_balance": (dt.TrajectoryBalance(alpha=ALPHA, **BALANCE), 110),
    "ppo-sharp": (dt.PPO(alpha=SHARP, **PPO), 40),
    "reward_backprop-sharp": (dt.RewardBackprop(alpha=SHARP, **BACKPROP), 100),
}
SEEDS = (0, 1, 2)
T_2 = 4.303  # two-sided 95 % quantile of Student's t with 2 degrees of freedom (three seeds)


def log_z_part(alpha: float) -> str:
    """Name of the part that estimates log Z at ``alpha``."""
    return f"log_z_{alpha}"


def one(name: str, seed: int, out: Path) -> dict[str, Any]:
    """Run one part with one seed and return its row."""
    torch.set_num_threads(1)
    entry = build.task("utr-mrl")
    policy, reward, judge = build.load_task_policy(entry), build.load_reward(entry, None), build.load_judge(entry)
    wall, cpu = time.monotonic(), time.process_time()
    if name == "best_of_64":
        rng = Streams(seed)("best of n")
        x_0 = dt.BestOfN(candidates=64)(policy, reward, DESIGNS, rng).x_0
        row: dict[str, Any] = {
            "reward": score(reward, policy.codec, x_0).mean,
            "judge": score(judge, policy.codec, x_0).mean,
            "kl_nats": math.log(64) - 63 / 64,
            "oracle_calls": CALLS,
            **build.task("utr-mrl").describe(policy, None)(x_0),
        }
    else:
        algorithm, updates = PARTS[name]
        known = json.loads((out / f"{log_z_part(algorithm.alpha)}.json").read_text())
        log_z = LogZ(**{field.name: known[field.name] for field in fields(LogZ)})
        result = dt.finetune(policy, reward, algorithm, loop=dt.LoopConfig(steps=updates, seed=seed))
        trained = time.process_time() - cpu
        calls = result.oracle.calls
        evaluation = dt.evaluate(
            result.policy,
            result.pretrained,
            reward,
            alpha=algorithm.alpha,
            judge=judge,
            independent=log_z,
            designs=DESIGNS,
            pool=2000,
            training_calls=calls,
            describe=build.task("utr-mrl").describe(policy, None),
            seed=seed,
        )
        facts, gap = evaluation.facts, evaluation.gap
        after = facts["after"]
        row = {
            "alpha": algorithm.alpha,
            "updates": updates,
            "reward": after["reward"]["mean"],
            "judge": after["judge"]["mean"],
            "pretrained_reward": facts["before"]["reward"]["mean"],
            "pretrained_judge": facts["before"]["judge"]["mean"],
            "kl_nats": facts["kl_nats"]["mean"],
            "gap_nats": gap.gap_nats,
            "gap_error": gap.error,
            "verdict": gap.verdict,
            "log_z": gap.log_z,
            "log_z_policy": gap.log_z_policy,
            "log_z_policy_error": gap.log_z_policy_error,
            "ess_fraction": gap.ess_fraction,
            "unique_fraction": after["unique_fraction"],
            "diversity": after["diversity"],
            "oracle_calls": calls + DESIGNS,
            "training_cpu_seconds": trained,
        }
        assert row["oracle_calls"] <= CALLS
    row.pop("position_frequencies", None)
    spent = {"wall_seconds": time.monotonic() - wall, "cpu_seconds": time.process_time() - cpu}
    return {"part": name, "seed": seed, **row, **spent}


def run(out: Path, jobs: int) -> None:
    """Run what is missing."""
    run_missing(__file__, out, [[log_z_part(alpha)] for alpha in (ALPHA, SHARP)], jobs)
    run_missing(__file__, out, [[name, str(seed)] for seed in SEEDS for name in ("best_of_64", *PARTS)], jobs)


def rows(out: Path) -> list[dict[str, Any]]:
    """All finished rows."""
    return [json.loads(path.read_text()) for path in sorted(out.glob("*-[0-9]*.json"))]


def table(out: Path) -> str:
    """Means over seeds, and the judge gain over best-of-64 with its 95 % interval over seeds."""
    found = rows(out)
    yardstick = {row["seed"]: row for row in found if row["part"] == "best_of_64"}
    lines = [
        "| part | alpha | seeds | reward | judge | judge gain over best-of-64 (95 %) | KL, nats |"
        " gap, nats (per seed) | certified | unique | calls | CPU min |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in ("best_of_64", *PARTS):
        mine = [row for row in found if row["part"] == name]
        if not mine:
            continue
        gains = [row["judge"] - yardstick[row["seed"]]["judge"] for row in mine if row["seed"] in yardstick]
        gain = "-"
        if name != "best_of_64" and len(gains) == len(SEEDS):
            centre, half = statistics.mean(gains), T_2 * statistics.stdev(gains) / math.sqrt(len(gains))
            gain = f"{centre:+.3f} ({centre - half:+.3f} to {centre + half:+.3f})"
        gaps = ", ".join(f"{row['gap_nats']:.2f}" for row in mine) if "gap_nats" in mine[0] else "-"
        sure = f"{sum(row['verdict'] == 'certified' for row in mine)} of {len(mine)}" if "verdict" in mine[0] else "-"
        mean = {key: statistics.mean(row[key] for row in mine) for key in ("reward", "judge", "kl_nats", "cpu_seconds")}
        lines.append(
            f"| {name} | {mine[0].get('alpha', '-')} | {len(mine)} | {mean['reward']:.3f} | {mean['judge']:.3f} |"
            f" {gain} | {mean['kl_nats']:.2f} | {gaps} | {sure} | {min(row['unique_fraction'] for row in mine):.1%} |"
            f" {max(row['oracle_calls'] for row in mine):,} | {mean['cpu_seconds'] / 60:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse the command and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "utr_mrl")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run").add_argument("--jobs", type=int, default=2)
    commands.add_parser("table")
    single = commands.add_parser("one")
    single.add_argument("name", choices=["best_of_64", *PARTS, log_z_part(ALPHA), log_z_part(SHARP)])
    single.add_argument("seed", type=int, nargs="?", default=0)
    options = parser.parse_args()
    if options.command == "run":
        run(options.out, options.jobs)
    elif options.command == "table":
        print(table(options.out))
    else:
        if options.name.startswith("log_z_"):
            alpha = float(options.name.removeprefix("log_z_"))
            # the sharp law is not certified: that takes millions of calls
            part, row = [options.name], log_z_row("utr-mrl", alpha, 4096 if alpha == ALPHA else 512)
        else:
            part, row = [options.name, str(options.seed)], one(options.name, options.seed, options.out)
        write_part(options.out, part, row)
        print(json.dumps(row))


if __name__ == "__main__":
    main()
