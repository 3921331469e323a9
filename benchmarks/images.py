"""Images toward one reward, by methods with equal oracle calls: the frontier of reward against KL, three seeds.

Run: ``python benchmarks/images.py run``, then ``table`` and ``plot``. One part: ``python benchmarks/images.py one
REWARD METHOD SEED``. Finished parts are kept in ``--out`` and not run again.

- ``compressibility`` of ``emoji``, a black box: minus the kilobytes as a JPEG at quality 95. A blank image has 643
  bytes, so what can be removed is what is above that; ``removed`` is the share of it that is gone, of the pretrained
  model's own designs and of the data.
- ``redness`` of ``emoji``, differentiable: the mean of R - (G + B) / 2.
- ``label-3`` of ``digits``, differentiable, alpha 1: log p(3 | x) of the task's classifier, so that the target is the
  law of threes, p_pre(x | 3). Its numbers are known from the pretrained designs by importance weights p(3 | x). Whether
  a design is a three is also said by its three nearest neighbours among the 2,000 test images, which neither the
  pretrained model nor the classifier was trained on.

``smooth_backprop`` raises a smooth stand-in for ``compressibility`` (:func:`smooth_size`) through the whole chain, and
is judged by the JPEG as the others are, its frontier too: what a differentiable model of a black box is worth.
``guarded_backprop`` has a second objective, without which small images are faint (:func:`guarded_size`). They, and
``reward_backprop`` of ``redness``, take updates of 8 or 16 paths, and fewer calls than the others; none of the JPEG.

Every other method has 768 reward calls (designs that are only judged not counted): 12 updates of 64 paths for those
that tune, 64 designs of 12 candidates for best of N, 384 paths for the value and 6 candidates of each of 64 designs
for value-weighted sampling. 64 designs of each are judged. A tuned policy has its path KL, from 64 paths, and one
point for every update; best of N its bound at every N; value-weighted sampling ``K (log M - (M - 1) / M)``, which its
K choices among M candidates spend at most.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from parts import few, run_missing, told, write_part
from PIL import Image

import difftilt as dt
from difftilt import build
from difftilt.core.policy import Policy, counting_passes
from difftilt.core.reward import Reward
from difftilt.core.stats import effective_sample_size, log_mean_exp
from difftilt.core.trajectory import sample_states
from difftilt.domains.image import DIGITS, EMOJI
from difftilt.domains.image.describing import pixels_of
from difftilt.domains.image.pictures import before_and_after, grid
from difftilt.metrics.images import pairwise
from difftilt.networks.windowed import Windowed
from difftilt.rewards.images import QUALITY, PixelReward, as_pixels, jpeg_bytes
from difftilt.rewards.oracle import as_oracle
from difftilt.rng import Streams
from difftilt.training.designs import DesignSet, best_of, draw, scored, summary
from difftilt.values.regression import Regression, fit_value

CALLS, DESIGNS, BLANK = 768, 64, 643
CONTRAST = 40
"""Least levels of an image: three quarters of the pretrained model's mean."""
SEEDS = (0, 1, 2)
BATCH = 64
SHARED: dict[str, Any] = {"batch": BATCH, "steps_per_path": 6, "learning_rate": 3e-3}
"""Tuned are the biases and scales (:func:`few`), with few large updates, whose size falls to three tenths."""
TRUST: dict[str, Any] = {"epochs": 1, "minibatches": 2, "ratio": "gaussian_kl", "trust_kl": 1.0, "kl": "closed_form"}
TRAINED: dict[str, dict[str, Callable[[], Any]]] = {
    "compressibility": {
        "ppo": lambda: dt.PPO(alpha=1e-3, **SHARED, **TRUST),
        "trajectory_balance": lambda: dt.TrajectoryBalance(alpha=1e-3, **SHARED),
        "reward_weighted_mle": lambda: dt.RewardWeightedMLE(alpha=0.03, path_correction=False, **SHARED),
        "smooth_backprop": lambda: dt.RewardBackprop(alpha=1e-3, batch=8, learning_rate=5e-5),
        "guarded_backprop": lambda: dt.RewardBackprop(alpha=1e-4, batch=8, learning_rate=1.5e-4),
    },
    "redness": {
        "ppo": lambda: dt.PPO(alpha=1e-3, **SHARED, **TRUST),
        "reward_backprop": lambda: dt.RewardBackprop(alpha=1e-4, batch=16, learning_rate=2e-4),
    },
    "label-3": {
        "ppo": lambda: dt.PPO(alpha=1.0, **SHARED, **TRUST),
        "reward_backprop": lambda: dt.RewardBackprop(alpha=1.0, batch=16, learning_rate=2e-4),
    },
}
"""alpha in kB, in units of redness, and in nats, per nat. Weights of ``reward_weighted_mle`` are exp(r / alpha) alone,
without path correction, whose many nats would leave one path all the weight: its alpha is half of a standard deviation
of the reward, and its tilt compounds from update to update."""
UPDATES = {
    ("compressibility", "smooth_backprop"): 24,
    ("compressibility", "guarded_backprop"): 40,
    ("redness", "reward_backprop"): 8,
    ("label-3", "reward_backprop"): 48,
}
"""Of methods with small batches, low in noise, all of whose network learns."""
EARLY = 0.3
"""Time down to which steps are tuned by methods that see no gradient of the reward, and toward a class by all: what is
drawn is decided there, and how it is drawn is not, which is where nats are dear."""
ENTRIES = {"compressibility": EMOJI, "redness": EMOJI, "label-3": DIGITS}
STEERED = ("best_of_n", "value_weighted")
CANDIDATES = {"best_of_n": CALLS // DESIGNS, "value_weighted": CALLS // DESIGNS // 2}
VALUE_ALPHA = {"compressibility": 0.02, "redness": 0.02, "label-3": 1.0}
"""Reward units per nat."""
SPECIAL = {
    "compressibility": ("bytes", "removed", "removed of data's", "nearly blank", "contrast, levels"),
    "label-3": ("threes, by neighbours",),
}
"""Columns of one reward's table alone."""
PARTS = [(reward, method, seed) for seed in SEEDS for reward, own in TRAINED.items() for method in (*own, *STEERED)]


def one(reward_name: str, method: str, seed: int, out: Path) -> dict[str, Any]:
    """Run one part and return its row; seed 0 leaves a picture."""
    torch.set_num_threads(1)
    entry = ENTRIES[reward_name]
    policy = build.load_task_policy(entry).requires_grad_(False)
    reward = as_oracle(build.load_reward(entry, reward_name))
    describe, streams, started = entry.describe(policy, entry.known()), Streams(seed), time.process_time()
    if method in STEERED:
        row, after = steered(method, reward_name, policy, reward, streams)
        picture = grid(after.designs[:24], 12)
    else:
        own = as_oracle(STAND_INS[method]()) if method in STAND_INS else reward
        row, tuned = trained(reward_name, method, TRAINED[reward_name][method](), policy, own, reward, seed)
        after = draw(tuned, policy, reward, None, DESIGNS, streams("designs"))
        row["kl_nats"], row["kl_sense"] = after.path_log_ratio.mean().item(), "estimate"
        picture = before_and_after(policy, tuned, 0)
    row |= {"task": entry.name, "target": reward_name, "method": method, "seed": seed}
    row |= {"seconds": time.process_time() - started, "updates_of_model": policy.card["metrics"]["updates"]}
    row["after"] = numbers(after, describe, streams)
    if method == "best_of_n":
        before = scored(sample_states(policy, DESIGNS, streams("before")), policy, reward, None, streams("bound"))
        row["before"] = numbers(before, describe, streams)
        row["data_bytes"] = float(np.mean([jpeg_bytes(image) for image in entry.read().images]))
    if reward_name == "label-3":
        row["after"]["threes"] = threes(after.x_0).mean().item()
    if seed == 0:
        (out / f"{reward_name}-{method}.png").write_bytes(picture)
    return row


def threes(x_0: torch.Tensor) -> torch.Tensor:
    """Whether most of the three nearest test images of each design are threes, 0 or 1."""
    data = DIGITS.split(DIGITS.read())
    nearest = pairwise(pixels_of(x_0), pixels_of(data.states[data.test])).topk(3, largest=False).indices
    return ((data.scores[data.test][nearest] == 3).sum(1) >= 2).double()


def truth(pool: torch.Tensor, reward: torch.Tensor) -> dict[str, float]:
    """Numbers of the law p_pre exp(r), from pretrained designs by their importance weights."""
    weight, log_z = reward.softmax(0), log_mean_exp(reward).item()
    mean = (weight * reward).sum().item()
    return {"log_z": log_z, "reward": mean, "kl_nats": mean - log_z, "threes": (weight * threes(pool)).sum().item(),
            "threes_before": threes(pool).mean().item(), "effective": effective_sample_size(reward).item()}  # fmt: skip


def smooth_size() -> PixelReward:
    """Minus the kilobytes that ``a sum log2(1 + |DCT| / step) + b`` predicts, fitted to the data: correlation 0.99.

    The sum is over the coefficients of the 8 x 8 squares of luma, and of chroma at half of the size, each over the mean
    step of its quantisation table.
    """
    n, blank = torch.arange(8.0), io.BytesIO()
    dct = torch.cos((2 * n + 1) * n[:, None] * math.pi / 16) / 2
    dct[0] /= 2**0.5
    ycc = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    Image.new("RGB", (8, 8)).save(blank, "JPEG", quality=QUALITY)
    step = [float(np.mean(table)) for table in Image.open(blank).quantization.values()]

    def bits(pixels: torch.Tensor) -> torch.Tensor:
        luma, chroma = (255 * torch.einsum("ck,bkhw->bchw", ycc, pixels)).split([1, 2], dim=1)
        parts = (luma - 128, step[0]), (F.avg_pool2d(chroma, 2), step[1])
        squares = [dct @ part.unfold(2, 8, 8).unfold(3, 8, 8) @ dct.T / own for part, own in parts]
        return sum(torch.log2(1 + (square.square() + 1e-6).sqrt()).flatten(1).sum(1) for square in squares)

    images = EMOJI.read().images[::7]
    x = bits(as_pixels(list(images)))
    bytes_of = torch.tensor([float(jpeg_bytes(image)) for image in images])
    slope, offset = torch.linalg.lstsq(torch.stack([x, torch.ones_like(x)], 1), bytes_of[:, None]).solution[:, 0]
    return PixelReward(lambda pixels: -(slope * bits(pixels) + offset) / 1000, "smooth size")


def guarded_size() -> PixelReward:
    """:func:`smooth_size` less 12 bytes for each level by which an image's contrast is below :data:`CONTRAST`.

    An image fades to white at about 9 bytes a level, so that fading does not pay below that contrast.
    """
    size = smooth_size().function
    return PixelReward(lambda x: size(x) - 0.012 * F.relu(CONTRAST - contrast(x)), "smooth size, contrast kept")


def contrast(pixels: torch.Tensor) -> torch.Tensor:
    """Root mean square distance of each image's pixels from its own mean colour, levels of 255."""
    return 255 * ((pixels - pixels.mean((2, 3), keepdim=True)).square().mean((1, 2, 3)) + 1e-6).sqrt()


STAND_INS = {"smooth_backprop": smooth_size, "guarded_backprop": guarded_size}


def numbers(designs: DesignSet, describe: Any, streams: Streams) -> dict[str, float]:
    """Plain means of a set of designs."""
    own = summary(designs, describe, streams("summary"))
    means = {name: own[name]["mean"] for name in ("reward", "pretrained_log_likelihood")}
    means["contrast"] = contrast(pixels_of(designs.x_0)).mean().item()
    return means | {name: value for name, value in own.items() if isinstance(value, float)}


def early(policy: Policy, low: float) -> Policy:
    """A chain of which the steps from times above ``low`` are tuned, where nats are cheap; p_pre runs the others."""
    made = policy.copy()
    made.denoiser = Windowed(made.denoiser, policy.frozen_copy().denoiser, 1.0, low)
    return made


def trained(
    reward_name: str, method: str, algorithm: Any, policy: Policy, reward: Reward, judge: Reward, seed: int
) -> tuple[dict[str, Any], Policy]:
    """Tune for all calls; the frontier is that of the batches it learned from, by the judge."""
    updates = UPDATES.get((reward_name, method))
    loop = dt.LoopConfig(
        steps=updates or CALLS // BATCH,
        seed=seed,
        final_learning_rate=0.05 if updates else 0.3,
        judge_every=1,
    )
    start = policy.requires_grad_(True) if updates else few(policy)
    if not updates or reward_name == "label-3":
        start = early(start, EARLY)
    result = dt.finetune(start, reward, algorithm, loop=loop, judge=None if judge is reward else judge, on_step=told)
    last, shown = result.history[-1], "reward" if judge is reward else "judge"
    return {
        "alpha": algorithm.alpha,
        "oracle_calls": last["oracle_calls"],
        "network_evaluations": last["network_evaluations"],
        "frontier": [[record["kl_nats"], record[shown]] for record in result.history],
    }, result.policy


def steered(
    method: str, reward_name: str, policy: Policy, reward: Any, streams: Streams
) -> tuple[dict[str, Any], DesignSet]:
    """Steer for all calls."""
    m, alpha = CANDIDATES[method], VALUE_ALPHA[reward_name]
    once, frontier, extra = dt.BestOfN(candidates=m).kl_bound, [], {}
    with counting_passes(policy) as passes:
        if method == "best_of_n":
            pool = sample_states(policy, CALLS, streams("steer"), batch=DESIGNS)
            score = torch.as_tensor(reward(policy.codec.decode(pool))).double()
            best = score.view(DESIGNS, m).argmax(1) + m * torch.arange(DESIGNS)
            extra = {"truth": truth(pool, score)} if alpha == 1 else {}
            x_0, alpha, kl = pool[best], None, once
            plain = DesignSet(pool, [], score, *(torch.full((CALLS,), torch.nan),) * 4)
            several = [best_of(2**power, plain) for power in range(8)]
            frontier = [[point["kl_bound_nats"], point["reward"]] for point in several]
        else:
            settings = Regression(alpha=alpha, paths=CALLS // 2, updates=400, batch=256)
            value = fit_value(policy, reward, streams("value"), settings)
            sampler = dt.ValueWeighted(alpha=alpha, candidates=m)
            x_0, kl = sampler(policy, reward, DESIGNS, streams("steer"), value=value).x_0, policy.steps * once
    row = {"alpha": alpha, "oracle_calls": reward.calls, "network_evaluations": passes.rows, "kl_nats": kl}
    return {**row, "kl_sense": "at most", "frontier": frontier, **extra}, scored(
        x_0, policy, reward, None, streams("bound")
    )


def rows_of(out: Path, reward: str, method: str) -> list[dict[str, Any]]:
    """Finished parts of a method, by seed."""
    return [json.loads(path.read_text()) for path in sorted(out.glob(f"{reward}-{method}-[0-9].json"))]


def spread(values: Sequence[float], form: str) -> str:
    """A mean over seeds with the least and the largest, where they differ."""
    shown, least, most = (form.format(of(values)) for of in (statistics.fmean, min, max))
    return shown if least == most else f"{shown} ({least} to {most})"


def removed(row: dict[str, Any], before: float) -> float:
    """Share of the bytes above a blank image that is gone."""
    return (before - row["after"]["jpeg_bytes"]) / (before - BLANK)


def table(out: Path) -> str:
    """Means over seeds with the least and the largest of them, a row for each method, a table for each reward."""
    lines: list[str] = []
    for reward, own in TRAINED.items():
        base = rows_of(out, reward, "best_of_n")
        if not base:
            continue
        special = SPECIAL.get(reward, ())
        heads = ("method", "seeds", "reward", *special, "distinct", "without near-duplicates",
                 "log-likelihood bound, nats", "KL, nats", "calls", "CPU s")  # fmt: skip
        lines += [f"`{reward}` of `{ENTRIES[reward].name}`", "", row_of(heads), "|" + "---|" * len(heads)]
        first = [row["before"] for row in base]
        known = [row["truth"] for row in base if "truth" in row]
        start = [spread([row["threes_before"] for row in known], "{:.0%}")] if known else [""] * len(special)
        if reward == "compressibility":
            start = [spread(each(first, "jpeg_bytes"), "{:.0f}"), "", "", *small(first)]
        lines.append(
            row_of(
                ["pretrained", len(base), spread(each(first, "reward"), "{:.3f}"), *start, *quality(first), 0, "", ""]
            )
        )
        if known:
            cells = [spread(each(known, name), form) for name, form in (("reward", "{:.3f}"), ("threes", "{:.0%}"))]
            kl = spread(each(known, "kl_nats"), "{:.2f}")
            lines.append(row_of(["the target, by weights", len(known), *cells, "", "", "", kl, "", ""]))
        for method in (*own, *STEERED):
            mine = rows_of(out, reward, method)
            if not mine:
                continue
            after, cells = [row["after"] for row in mine], []
            if reward == "compressibility":
                starts = statistics.fmean(each(first, "jpeg_bytes")), base[0]["data_bytes"]
                shares = [spread([removed(row, start) for row in mine], "{:.0%}") for start in starts]
                cells = [spread(each(after, "jpeg_bytes"), "{:.0f}"), *shares, *small(after)]
            elif known:
                cells = [spread(each(after, "threes"), "{:.0%}")]
            sense = "" if mine[0]["kl_sense"] == "estimate" else "at most "
            kl = sense + spread(each(mine, "kl_nats"), "{:.4g}")
            costs = [spread(each(mine, name), "{:.0f}") for name in ("oracle_calls", "seconds")]
            reached = spread(each(after, "reward"), "{:.3f}")
            lines.append(row_of([method, len(mine), reached, *cells, *quality(after), kl, *costs]))
        lines.append("")
    return "\n".join(lines)


def row_of(cells: Sequence[Any]) -> str:
    """A line of a table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def each(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    """One number of each row."""
    return [row[name] for row in rows]


def quality(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How many designs differ, and how likely they are."""
    forms = {"unique_fraction": "{:.0%}", "without_near_duplicates": "{:.0%}", "pretrained_log_likelihood": "{:.0f}"}
    return [spread(each(rows, name), form) for name, form in forms.items()]


def small(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What small images may have lost; nothing where a part does not say."""
    forms = {"blank_fraction": "{:.0%}", "contrast": "{:.0f}"}
    return [spread(each(rows, name), form) if all(name in row for row in rows) else "" for name, form in forms.items()]


def plot(out: Path) -> None:
    """The frontier of each reward: every seed's batches of a tuned policy, and each N of best of N, against KL."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "difftilt", "font.size": 9})
    import matplotlib.pyplot as plt

    for reward, own in TRAINED.items():
        figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
        for number, method in enumerate((*own, *STEERED)):
            for row in rows_of(out, reward, method):
                points = [point for point in row["frontier"] if point[0] and point[0] > 0]
                colour = f"C{number}"
                axes.plot(*zip(*points, strict=True), color=colour, lw=0.8, alpha=0.7) if points else None
                label = f"{method}{'' if row['kl_sense'] == 'estimate' else ' (KL at most)'}"
                shown = label if row["seed"] == 0 else None
                axes.plot(row["kl_nats"], row["after"]["reward"], "o", color=colour, ms=5, label=shown)
        axes.set_xscale("log")
        axes.set_xlabel("KL to the pretrained model, nats")
        axes.set_ylabel(ENTRIES[reward].rewards[reward].score_name)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(out / f"{reward}.svg", metadata={"Date": None})
        plt.close(figure)


def main() -> None:
    """Parse the command and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run").add_argument("--jobs", type=int, default=1)
    commands.add_parser("table")
    commands.add_parser("plot")
    single = commands.add_parser("one")
    single.add_argument("reward", choices=TRAINED)
    single.add_argument("method", choices=sorted({method for _, method, _ in PARTS}))
    single.add_argument("seed", type=int)
    options = parser.parse_args()
    if options.command == "run":
        run_missing(__file__, options.out, [[*names, str(seed)] for *names, seed in PARTS], options.jobs)
    elif options.command == "table":
        print(table(options.out))
    elif options.command == "plot":
        plot(options.out)
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        row = one(options.reward, options.method, options.seed, options.out)
        write_part(options.out, [options.reward, options.method, str(options.seed)], row)
        print(json.dumps(row))


if __name__ == "__main__":
    main()
