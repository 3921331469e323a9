"""The `zinc-qed` benchmark: QED and ease of synthesis of tuned and steered molecules, against validity and diversity.

Run: ``python benchmarks/molecules.py run --jobs 2``, then ``python benchmarks/molecules.py table``; one part at a time:
``python benchmarks/molecules.py one ppo 0``. Finished parts are kept in ``--out`` and not run again. Each part is one
process with one thread. ``python benchmarks/molecules.py speed`` times 10,000 molecules of QED and synthetic
accessibility on two worker processes.

A part is a method toward a reward with a seed. Every row says the mean reward, QED and synthetic accessibility score of
``--designs`` molecules, their validity, uniqueness, novelty and internal diversity, that of the pretrained model's, the
KL to it, and the reward calls.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from parts import run_missing, write_part

import difftilt as dt
from difftilt import build

PPO = {"learning_rate": 1e-3, "batch": 128, "steps_per_path": 6}
PARTS: dict[str, tuple[str, Any, int]] = {
    "ppo": ("qed", dt.PPO(alpha=0.01, **PPO), 100),
    "ppo-ease": ("ease_of_synthesis", dt.PPO(alpha=0.05, **PPO), 100),
    "reward_weighted_mle": ("qed", dt.RewardWeightedMLE(alpha=0.03), 60),
    "trajectory_balance": ("qed", dt.TrajectoryBalance(alpha=0.02, learning_rate=1e-3), 100),
    "smc": ("qed", dt.SMC(alpha=0.03), 0),
    "best_of_4": ("qed", dt.BestOfN(candidates=4), 0),
    "best_of_64": ("qed", dt.BestOfN(candidates=64), 0),
}
"""Reward, method, and updates (0: it steers), by name."""
SEEDS = (0, 1, 2)
KEPT = ("valid_fraction", "unique_fraction", "novel_fraction", "internal_diversity", "scaffold_diversity")
MEANS = ("qed_mean", "sa_score_mean", "logp_mean", "rings_mean")


def one(name: str, seed: int, designs: int, models: Path | None) -> dict[str, Any]:
    """Run one part with one seed and return its row."""
    torch.set_num_threads(1)
    entry = build.task("zinc-qed")
    wanted, method, updates = PARTS[name]
    policy, reward = build.load_task_policy(entry, models=models), build.load_reward(entry, wanted)
    describe = entry.describe(policy, entry.known())
    wall, cpu = time.monotonic(), time.process_time()
    shared = {"reward": reward, "describe": describe, "seed": seed, "pool": designs}
    if updates:
        result = dt.finetune(policy, reward, method, loop=dt.LoopConfig(steps=updates, seed=seed))
        calls = result.oracle.calls
        found = dt.evaluate(
            result.policy, policy, alpha=method.alpha, designs=designs, training_calls=calls, **shared
        )  # fmt: skip
    else:
        from difftilt.rewards.oracle import Oracle
        from difftilt.rng import Streams
        from difftilt.training.evaluate import evaluate_steered

        oracle = Oracle(reward)
        drawn = method(policy, oracle, designs, Streams(seed)("steer"))
        calls = oracle.calls
        found = evaluate_steered(drawn, policy, alpha=getattr(method, "alpha", None), steering_calls=calls, **shared)
    after, before = found.facts["after"], found.facts["before"]
    return {
        "part": name, "seed": seed, "reward_name": wanted, "updates": updates, "designs": designs,
        "reward": after["reward"]["mean"], "pretrained_reward": before["reward"]["mean"],
        **{key: after[key] for key in (*KEPT, *MEANS)},
        **{f"pretrained_{key}": before[key] for key in (*KEPT, *MEANS)},
        "diversity_kept": after["internal_diversity"] / before["internal_diversity"],
        "kl_nats": (found.facts.get("kl_nats") or {}).get("mean"),
        "oracle_calls": calls,
        "wall_seconds": time.monotonic() - wall, "cpu_seconds": time.process_time() - cpu,
    }  # fmt: skip


def table(out: Path) -> str:
    """Means over seeds, with the range of the reward."""
    rows = [json.loads(path.read_text()) for path in sorted(out.glob("*-[0-9]*.json"))]
    lines = [
        "| method | reward | seeds | before | after (range) | QED | SA | valid | unique | novel | diversity kept |"
        " KL, nats | calls | CPU min |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in PARTS:
        mine = [row for row in rows if row["part"] == name]
        if not mine:
            continue

        def mean(key: str, mine: list[dict[str, Any]] = mine) -> float:
            values = [row[key] for row in mine if row[key] is not None]
            return statistics.fmean(values) if values else float("nan")

        spread = [row["reward"] for row in mine]
        cells = [
            name, mine[0]["reward_name"], str(len(mine)), f"{mean('pretrained_reward'):.3f}",
            f"{mean('reward'):.3f} ({min(spread):.3f} to {max(spread):.3f})", f"{mean('qed_mean'):.3f}",
            f"{mean('sa_score_mean'):.2f}", *(f"{mean(key):.1%}" for key in KEPT[:3]), f"{mean('diversity_kept'):.2f}",
            f"{mean('kl_nats'):.1f}", f"{mean('oracle_calls'):,.0f}", f"{mean('cpu_seconds') / 60:.1f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def speed() -> dict[str, float]:
    """Seconds for 10,000 molecules of QED and synthetic accessibility, in this process and on two workers."""
    from difftilt.data import load
    from difftilt.rewards.chemistry import Objectives, PropertyReward
    from difftilt.rewards.pool import Pool

    both = Objectives((PropertyReward("qed"), PropertyReward("ease_of_synthesis")), how="mean")
    designs = load("zinc250k").sequences[:10_000]
    wall, cpu = time.monotonic(), time.process_time()
    alone = both(designs)
    row = {"one_process_seconds": time.monotonic() - wall, "one_process_cpu_seconds": time.process_time() - cpu}
    with Pool(both, workers=2, timeout=60, batch=16) as pool:
        pool(designs[:2])
        wall = time.monotonic()
        assert torch.equal(pool(designs), alone)
        row["two_workers_seconds"] = time.monotonic() - wall
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "one", "table", "speed"])
    parser.add_argument("name", nargs="?", choices=PARTS)
    parser.add_argument("seed", nargs="?", type=int)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "molecules")
    parser.add_argument("--designs", type=int, default=1000)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.what == "run":
        run_missing(__file__, asked.out, [[name, str(seed)] for name in PARTS for seed in SEEDS], asked.jobs)
    elif asked.what == "one":
        row = one(asked.name, asked.seed, asked.designs, asked.models)
        write_part(asked.out, [asked.name, str(asked.seed)], row)
    elif asked.what == "speed":
        print(json.dumps(speed(), indent=2))
    else:
        print(table(asked.out))


if __name__ == "__main__":
    main()
