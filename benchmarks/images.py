"""``emoji`` toward images that compress well: methods side by side, each with the same model and paths an update.

Run: ``python benchmarks/images.py run``, then ``table``. One part: ``python benchmarks/images.py one METHOD SEED``.
Finished parts are kept in ``--out`` and not run again.

The reward is minus the kilobytes as a JPEG at quality 95. A blank image has 643 bytes, so what can be removed is what
is above that; ``removed`` is the share of it that is gone, of the training images' mean (``of_data``) and of the
pretrained model's own designs (``of_pretrained``). Every method is judged on 64 designs, the pretrained model on 32
(``ppo-unstopped-0`` was on 96). Differentiable rewards (brightness, redness) are raised by ``reward_backprop`` in parts
of their own.

Tuning for compressibility stops after the update whose batch had half of the bytes removed: the best image is a blank
one, and ``ppo-unstopped`` gets there (827 bytes after 8 updates with seed 0; 97 % are near-duplicates of another).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parts import run_missing, write_part

import difftilt as dt
from difftilt.core.algorithm import Weighted
from difftilt.core.policy import Policy, counting_passes
from difftilt.domains.image import EMOJI, ZOO
from difftilt.domains.image.pictures import before_and_after
from difftilt.rewards.images import jpeg_bytes
from difftilt.rewards.oracle import as_oracle
from difftilt.rng import Streams
from difftilt.training.evaluate import evaluate_steered

DESIGNS, POOL, BLANK, CLOCK = 64, 32, 643, 240.0
HALF = -1.0465
"""kB at which half of what a training image has above a blank one is gone."""
SEEDS = (0, 1, 2)
ALPHA = 1e-4
"""kB per nat, where a method needs one. PPO runs without: half of the bytes cost thousands of nats, which at any alpha
that is felt outweigh them, and without a reference an update costs two thirds. Its KL is measured afterwards."""
UPDATES = 8
SHARED: dict[str, Any] = {"alpha": ALPHA, "batch": 64, "steps_per_path": 6, "learning_rate": 3e-3}
"""Tuned are the 7,004 biases and scales (:func:`few`), with few large updates: an update of PPO costs 5 s of a core."""
TRAINED: dict[str, Any] = {
    "ppo": dt.PPO(**SHARED | {"alpha": 0.0}, epochs=1, minibatches=2, ratio="gaussian_kl", trust_kl=1.0),
    "reward_weighted_mle": dt.RewardWeightedMLE(**SHARED),
    "trajectory_balance": dt.TrajectoryBalance(**SHARED),
}
STEERED = {"best_of_n": dt.BestOfN(candidates=16), "value_weighted": dt.ValueWeighted(alpha=0.02, candidates=8)}
"""Value-weighted sampling takes a wider alpha than what is tuned: its values are of one jump, and it has 16 steps."""
DIFFERENTIABLE = ("brightness", "redness")
METHODS = (*TRAINED, "ppo-unstopped", *STEERED, *(f"reward_backprop-{name}" for name in DIFFERENTIABLE))


def one(method: str, seed: int, out: Path) -> dict[str, Any]:
    """Run one part and return its row."""
    torch.set_num_threads(1)
    kind, _, name = method.partition("-")
    policy = Policy.from_pretrained(str(ZOO / "emoji" / "denoiser"))
    differentiable = kind == "reward_backprop"
    reward = as_oracle(EMOJI.rewards[name if differentiable else "compressibility"].make())
    known = EMOJI.known()
    describe, started = EMOJI.describe(policy, known), time.process_time()
    if kind in STEERED:
        facts, row = steered(STEERED[kind], policy, reward, describe, seed)
    else:
        algorithm = TRAINED.get(kind) or dt.RewardBackprop(alpha=ALPHA, batch=16, learning_rate=2e-3, truncation=4)
        loop = dt.LoopConfig(steps=UPDATES, seed=seed, final_learning_rate=1.0)
        result = dt.finetune(
            few(policy), reward, algorithm, loop=loop, on_step=lambda r: told(r) or (not name and r["reward"] > HALF)
        )
        last, spent = result.history[-1], time.process_time() - started
        facts = dt.evaluate(
            result.policy, result.pretrained, reward, alpha=result.alpha or ALPHA, designs=DESIGNS, pool=POOL,
            training_calls=last["oracle_calls"], describe=describe, seed=seed,
        ).facts  # fmt: skip
        row = {"updates": last["step"], "oracle_calls": last["oracle_calls"], "alpha": result.alpha,
               "network_evaluations": last["network_evaluations"], "seconds": spent}  # fmt: skip
        if seed == 0:
            (out / f"{method}.png").write_bytes(before_and_after(result.pretrained, result.policy, 0))
    row |= {"method": method, "seed": seed, "designs": DESIGNS, "kl_nats": facts["kl_nats"]["mean"]}
    for when in ("before", "after"):
        own = facts[when]
        row[when] = {
            "reward": own["reward"]["mean"],
            "pretrained_log_likelihood": own["pretrained_log_likelihood"]["mean"],
            **{key: value for key, value in own.items() if isinstance(value, float)},
        }
    row["best_of_n"] = {which: facts["best_of_n"][which] for which in ("equal_calls", "equal_kl")}
    if not differentiable:
        assert known is not None
        data = np.mean([jpeg_bytes(image) for image in EMOJI.read().images])
        after = row["after"]["jpeg_bytes"]
        row["data_bytes"] = data
        row["removed"] = {
            "of_data": (data - after) / (data - BLANK),
            "of_pretrained": (row["before"]["jpeg_bytes"] - after) / (row["before"]["jpeg_bytes"] - BLANK),
        }
    return row


def few(policy: Policy) -> Policy:
    """``policy`` of which biases and scales alone are tuned: fewer directions, in which less noise adds up."""
    for parameter in policy.denoiser.parameters():
        parameter.requires_grad_(parameter.ndim == 1)
    return policy


def told(record: dict[str, Any]) -> None:
    """A line for each update."""
    keys = ("step", "reward", "kl_nats", "clip_fraction", "log_ratio_rms", "seconds")
    print(json.dumps({key: round(record[key], 4) for key in keys if record.get(key) is not None}), flush=True)


def steered(sampler: Any, policy: Policy, reward: Any, describe: Any, seed: int) -> tuple[dict[str, Any], dict]:
    """Steer, 64 designs at a time, until the clock; those drawn are what is judged."""
    streams, started, parts = Streams(seed), time.process_time(), []
    policy = policy.frozen_copy()
    with counting_passes(policy) as passes:
        while len(parts) < DESIGNS // 64 and time.process_time() - started < CLOCK:
            parts.append(sampler(policy, reward, 64, streams("steer"), value=None))
    drawn = Weighted(torch.cat([p.x_0 for p in parts]), torch.cat([p.log_weight for p in parts]), None)
    calls, seconds = reward.calls, time.process_time() - started
    facts = evaluate_steered(
        drawn, policy, reward, alpha=getattr(sampler, "alpha", None), pool=POOL, steering_calls=calls,
        kl_bound=getattr(sampler, "kl_bound", None), describe=describe, seed=seed,
    ).facts  # fmt: skip
    return facts, {"steered_designs": len(drawn.x_0), "oracle_calls": calls, "network_evaluations": passes.rows,
                   "alpha": getattr(sampler, "alpha", None), "seconds": seconds}  # fmt: skip


def table(out: Path) -> str:
    """Means over seeds with the least and the largest of them, a row for each method."""
    lines = [
        "| method | seeds | reward before | after | removed of data's | of pretrained's | unique | without "
        "near-duplicates | KL, nats | log-likelihood before | after | calls | CPU s |",
        "|" + "---|" * 13,
    ]
    for method in METHODS:
        rows = [json.loads(path.read_text()) for path in sorted(out.glob(f"{method}-[0-9].json"))]
        if not rows:
            continue

        def cell(form: str, *path: str, rows: list[dict[str, Any]] = rows) -> str:
            values = []
            for row in rows:
                for key in path:
                    row = (row or {}).get(key)
                values.append(row)
            if any(value is None or value != value for value in values):
                return "-"
            low, high = min(values), max(values)
            spread = "" if len(values) == 1 else f" ({form.format(low)} to {form.format(high)})"
            return form.format(statistics.fmean(values)) + spread

        lines.append(
            f"| {method} | {len(rows)} | {cell('{:.3f}', 'before', 'reward')} | {cell('{:.3f}', 'after', 'reward')} | "
            f"{cell('{:.0%}', 'removed', 'of_data')} | {cell('{:.0%}', 'removed', 'of_pretrained')} | "
            f"{cell('{:.1%}', 'after', 'unique_fraction')} | {cell('{:.1%}', 'after', 'without_near_duplicates')} | "
            f"{cell('{:.0f}', 'kl_nats')} | {cell('{:.0f}', 'before', 'pretrained_log_likelihood')} | "
            f"{cell('{:.0f}', 'after', 'pretrained_log_likelihood')} | {cell('{:.0f}', 'oracle_calls')} | "
            f"{cell('{:.0f}', 'seconds')} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse the command and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run").add_argument("--jobs", type=int, default=1)
    commands.add_parser("table")
    single = commands.add_parser("one")
    single.add_argument("method", choices=METHODS)
    single.add_argument("seed", type=int)
    options = parser.parse_args()
    if options.command == "run":
        run_missing(__file__, options.out, [[m, str(seed)] for seed in SEEDS for m in METHODS], options.jobs)
    elif options.command == "table":
        print(table(options.out))
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        row = one(options.method, options.seed, options.out)
        write_part(options.out, [options.method, str(options.seed)], row)
        print(json.dumps(row))


if __name__ == "__main__":
    main()
