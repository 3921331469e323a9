"""The `zinc-qed` benchmark: tuned and steered molecules by QED or ease of synthesis.

Run: ``python benchmarks/molecules.py run --jobs 2``, then ``table`` and ``plot``; one part at a time:
``python benchmarks/molecules.py one qed ppo 0``. Finished parts are kept in ``--out`` and not run again. Each part
is one process with one thread. ``python benchmarks/molecules.py speed`` times 10,000 molecules of QED and synthetic
accessibility on two worker processes.

A part is a reward, a method and a seed. Every row says the mean reward, QED and synthetic accessibility score of
``--designs`` molecules of the tuned model, their validity, uniqueness, novelty and internal diversity, that of the
pretrained model's, the KL to it, and the reward calls. ``trace`` has the KL and the mean reward of each update's paths,
all drawn before the update: the frontier on which training went. ``best_of_n`` is known for every N from one pool of
pretrained designs, and so is the tilted law itself, by weights exp(r / alpha): the mean reward that it has and the KL
that it costs are what a tuned policy is held against. Neither reward is differentiable, so that backpropagation has no
row.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from parts import run_missing, told, write_part

import difftilt as dt
from difftilt import build
from difftilt.core.stats import effective_sample_size, log_mean_exp
from difftilt.rewards.oracle import Oracle
from difftilt.rng import Streams
from difftilt.training.designs import best_of, draw
from difftilt.training.evaluate import evaluate_steered

REWARDS = {"qed": 0.0175, "ease_of_synthesis": 0.25}
"""Reward units per nat."""
FRESH = {"qed": 1024, "ease_of_synthesis": 512}
UPDATES = {"qed": 60, "ease_of_synthesis": 40}
"""Designs scored in an update, and updates. Batches are large and steps small, lest a policy collapse onto what a batch
had; a tuned model is the moving average over updates."""
RATE, EMA, FINAL_RATE = 2e-4, 0.95, 0.1
TRAINED: dict[str, Callable[[float, int], Any]] = {
    "ppo": lambda alpha, fresh: dt.PPO(alpha=alpha, batch=fresh, learning_rate=RATE),
    "reward_weighted_mle": lambda alpha, fresh: dt.RewardWeightedMLE(alpha=alpha, batch=fresh, learning_rate=RATE),
    "trajectory_balance": lambda alpha, fresh: dt.TrajectoryBalance(
        alpha=alpha, batch=2 * fresh, replay=0.5, minibatches=fresh // 32, log_z="learned", learning_rate=RATE
    ),
}
STEERED: dict[str, Any] = {
    "value_weighted": lambda alpha: dt.ValueWeighted(alpha=alpha, candidates=8),
    "smc": lambda alpha: dt.SMC(alpha=alpha),
}
STEERED_DESIGNS, POOL, SEEDS = 256, 4096, (0, 1, 2)
METHODS = (*TRAINED, *STEERED, "best_of_n")
KEPT = ("valid_fraction", "unique_fraction", "novel_fraction", "internal_diversity", "scaffold_diversity")
MEANS = ("qed_mean", "sa_score_mean", "logp_mean", "rings_mean")


def one(wanted: str, method: str, seed: int, designs: int, models: Path | None) -> dict[str, Any]:
    """Run one part and return its row."""
    torch.set_num_threads(1)
    entry, alpha = build.task("zinc-qed"), REWARDS[wanted]
    policy, reward = build.load_task_policy(entry, models=models), build.load_reward(entry, wanted)
    describe, cpu = entry.describe(policy, entry.known()), time.process_time()
    shared: dict[str, Any] = {"describe": describe, "seed": seed, "pool": designs}
    head: dict[str, Any] = {"reward_name": wanted, "method": method, "seed": seed, "alpha": alpha}
    if method == "best_of_n":
        drawn = draw(policy, policy, Oracle(reward), None, POOL, Streams(seed)("pool"))
        chosen = [best_of(2**power, drawn) for power in range(9)]
        value = drawn.reward.double()
        log_weight = value / alpha - log_mean_exp(value / alpha)
        share = log_weight.exp() / POOL
        head["target"] = {
            "reward": (share * value).sum().item(),
            "kl_nats": (share * log_weight).sum().item(),
            "effective": effective_sample_size(log_weight).item(),
        }
        head["best_of"] = [{"n": r["n"], "kl_nats": r["kl_bound_nats"], "reward": r["reward"]} for r in chosen]
        return head | {"oracle_calls": POOL, "cpu_seconds": time.process_time() - cpu}
    if method in TRAINED:
        algorithm, oracle = TRAINED[method](alpha, FRESH[wanted]), Oracle(reward)
        loop = dt.LoopConfig(steps=UPDATES[wanted], seed=seed, ema=EMA, final_learning_rate=FINAL_RATE)
        result = dt.finetune(policy, oracle, algorithm, loop=loop, on_step=told)
        calls = result.oracle.calls
        found = dt.evaluate(
            result.policy, policy, reward, alpha=alpha, designs=designs, training_calls=calls, **shared
        )  # fmt: skip
        head["trace"] = [
            [round(record.get(key) or 0.0, 4) for key in ("kl_nats", "reward")] for record in result.history
        ]
    else:
        oracle = Oracle(reward)
        made = STEERED[method](alpha)(policy, oracle, STEERED_DESIGNS, Streams(seed)("steer"))
        calls = oracle.calls
        found = evaluate_steered(made, policy, reward, alpha=alpha, steering_calls=calls, **shared)
    after, before = found.facts["after"], found.facts["before"]
    kl = found.facts.get("kl_nats") or {"mean": math.nan}
    return head | {
        "designs": designs if method in TRAINED else STEERED_DESIGNS,
        "reward": after["reward"]["mean"], "pretrained_reward": before["reward"]["mean"],
        **{key: after[key] for key in (*KEPT, *MEANS)},
        **{f"pretrained_{key}": before[key] for key in (*KEPT, *MEANS)},
        "diversity_kept": after["internal_diversity"] / before["internal_diversity"],
        "kl_nats": kl["mean"] if math.isfinite(kl["mean"]) else None, "kl_sense": kl.get("sense", "estimate"),
        "oracle_calls": calls, "cpu_seconds": time.process_time() - cpu,
    }  # fmt: skip


def rows(out: Path, wanted: str, method: str) -> list[dict[str, Any]]:
    """Finished rows of a method toward a reward."""
    return [json.loads(path.read_text()) for path in sorted(out.glob(f"{wanted}-{method}-[0-9].json"))]


def table(out: Path) -> str:
    """Means over seeds, with the range of the reward."""
    lines = [
        "| reward | method | seeds | before | after (range) | QED | SA | valid | unique | novel | diversity kept |"
        " KL, nats | calls | CPU min |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for wanted, method in ((wanted, method) for wanted in REWARDS for method in METHODS):
        mine = rows(out, wanted, method)
        if not mine or method == "best_of_n":
            continue

        def mean(key: str, mine: list[dict[str, Any]] = mine) -> float:
            values = [row[key] for row in mine if row[key] is not None]
            return statistics.fmean(values) if values else float("nan")

        spread = [row["reward"] for row in mine]
        cells = [
            wanted, method, str(len(mine)), f"{mean('pretrained_reward'):.3f}",
            f"{mean('reward'):.3f} ({min(spread):.3f} to {max(spread):.3f})", f"{mean('qed_mean'):.3f}",
            f"{mean('sa_score_mean'):.2f}", *(f"{mean(key):.1%}" for key in KEPT[:3]), f"{mean('diversity_kept'):.2f}",
            f"{mean('kl_nats'):.1f}".replace("nan", "-"), f"{mean('oracle_calls'):,.0f}",
            f"{mean('cpu_seconds') / 60:.1f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    for wanted in REWARDS:
        for row in rows(out, wanted, "best_of_n")[:1]:
            target = row["target"]
            lines += [
                "",
                f"The tilted law itself, {wanted}, by weights of {POOL:,} pretrained molecules (worth "
                f"{target['effective']:.0f}): {target['reward']:.3f} at {target['kl_nats']:.2f} nats.",
            ]
            said = "; ".join(f"N = {r['n']}: {r['reward']:.3f} at {r['kl_nats']:.2f} nats" for r in row["best_of"])
            lines += ["", f"Best of N, {wanted} (KL at most): {said}."]
    return "\n".join(lines)


def plot(out: Path) -> None:
    """Reward against KL: each method's way through training, where it ended, and best-of-N for every N."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "difftilt", "font.size": 9})
    import matplotlib.pyplot as plt

    entry = build.task("zinc-qed")
    figure, both = plt.subplots(1, len(REWARDS), figsize=(9.6, 4), layout="constrained")
    for axes, wanted in zip(both, REWARDS, strict=True):
        for row in rows(out, wanted, "best_of_n"):
            points = [(point["kl_nats"], point["reward"]) for point in row["best_of"]]
            axes.plot(*zip(*points, strict=True), color="0.6", marker=".", lw=0.8)
        axes.plot([], [], color="0.6", marker=".", label="best of N (KL at most)")
        for number, method in enumerate((*TRAINED, *STEERED)):
            mine = rows(out, wanted, method)
            for row in mine:
                way = torch.tensor(row.get("trace", [])).reshape(-1, 2)
                if len(way):
                    smooth = way[: len(way) // 5 * 5].reshape(-1, 5, 2).mean(1)
                    axes.plot(smooth[:, 0], smooth[:, 1], color=f"C{number}", lw=0.8, alpha=0.7)
                if row["kl_nats"] is not None:
                    axes.plot(
                        row["kl_nats"], row["reward"], "o" if method in TRAINED else "D", color=f"C{number}", ms=5
                    )
                else:
                    axes.axhline(row["reward"], color=f"C{number}", ls=":", lw=1)
            if mine and mine[0]["kl_nats"] is None:
                axes.plot([], [], ":", color=f"C{number}", lw=1, label=f"{method} (KL not known)")
            elif mine:
                axes.plot([], [], "o-" if method in TRAINED else "D", color=f"C{number}", ms=5, lw=0.8, label=method)
        axes.set_xlabel("KL to the pretrained model, nats")
        axes.set_ylabel(textwrap.fill(f"mean {entry.rewards[wanted].score_name}", 36))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right", fontsize=8)
    figure.savefig(out / "frontier.svg", metadata={"Date": None})


def speed() -> dict[str, float]:
    """Seconds for 10,000 molecules of QED and synthetic accessibility, in this process and on two workers."""
    from difftilt.data import load
    from difftilt.rewards.chemistry import Objectives, PropertyReward
    from difftilt.rewards.desirability import smaller
    from difftilt.rewards.pool import Pool

    both = Objectives((PropertyReward("qed"), PropertyReward("sa_score", smaller(2, 5))))
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
    parser.add_argument("what", choices=["run", "one", "table", "plot", "speed"])
    parser.add_argument("reward", nargs="?", choices=REWARDS)
    parser.add_argument("method", nargs="?", choices=METHODS)
    parser.add_argument("seed", nargs="?", type=int)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "molecules")
    parser.add_argument("--designs", type=int, default=500)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    if asked.what == "run":
        parts = [[wanted, method, str(seed)] for seed in SEEDS for wanted in REWARDS for method in METHODS]
        run_missing(__file__, asked.out, parts, asked.jobs)
    elif asked.what == "one":
        part = [asked.reward, asked.method, str(asked.seed)]
        write_part(asked.out, part, one(asked.reward, asked.method, asked.seed, asked.designs, asked.models))
    elif asked.what == "speed":
        print(json.dumps(speed(), indent=2))
    elif asked.what == "plot":
        plot(asked.out)
    else:
        print(table(asked.out))


if __name__ == "__main__":
    main()
