r"""Lab in the loop on images: the eight strategies of SEIKO's comparison, on `digits` toward threes.

A round measures a plate of 32 images; the laboratory answers log p(3 | x) of the task's classifier (its reward
``label-3``), nats, with noise of 0.1. The first plate is drawn from p_pre. Campaigns keep designs as text, which images
are not, so that the loop is written out here, of the pieces that campaigns are made of: a Gaussian process of pixels
(``seiko-bootstrap``: an ensemble), the plans of the strategies, :func:`difftilt.campaigns.update.tune` with alpha =
beta = 0.5 and 12 updates of 16 images by reward backpropagation through the surrogate, and a plate picked from a pool
of 4 plates. ``guidance`` is SMC by the surrogate's mean; ``online-ppo`` has one PPO update of each plate, at the
learning rate of the model.

Rows, after each round: the mean of the ``plate``, that of 128 images of the round's ``policy``, both without noise, and
the KL to p_pre. What was found best says nothing: p_pre draws a perfect three now and then. ``guidance`` has no policy.

Run: ``python benchmarks/lab_images.py run``, then ``table``. One part: ``one STRATEGY SEED``. Finished parts are kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from parts import run_missing, write_part

import difftilt as dt
from difftilt import build
from difftilt.campaigns.acquisition import acquisition, pick
from difftilt.campaigns.adaptive import Plan
from difftilt.campaigns.learning import Learned, learner
from difftilt.campaigns.settings import Picking, Tuning
from difftilt.campaigns.strategies import STRATEGIES
from difftilt.campaigns.update import distances, tune
from difftilt.core.policy import Policy
from difftilt.core.trajectory import sample_states
from difftilt.domains.image import DIGITS
from difftilt.metrics.log_z import systematic
from difftilt.rewards.oracle import as_oracle
from difftilt.rng import Streams
from difftilt.surrogates.calibration import temper
from difftilt.surrogates.measurements import Measurements

REWARD, NOISE = "label-3", 0.1
"""Nats."""
ROUNDS, PLATE, POOL, DRAWN, SEEDS = 4, 32, 4, 128, (0, 1, 2)
TUNING = Tuning(alpha=0.5, beta=0.5, updates=12, paths=16, learning_rate=2e-4)
PICKING = Picking(pool=POOL)
PPO = partial(dt.PPO, batch=PLATE, epochs=4, minibatches=2, ratio="gaussian_kl", trust_kl=1.0, kl="closed_form")
PLANS: dict[str, Plan] = {
    name: cast("partial[Any]", STRATEGIES[name]).keywords["plan"]
    for name in ("seiko-ucb", "seiko-bootstrap", "seiko-thompson", "greedy", "non-adaptive")
}
STRATEGY_NAMES = ("random", *PLANS, "guidance", "online-ppo")
COLUMNS = ("plate", "policy", "kl_nats")


class Laboratory:
    """Measures images, with noise, and remembers them without."""

    def __init__(self, policy: Policy, seed: int) -> None:
        self.codec, self.reward = policy.codec, build.load_reward(DIGITS, REWARD)
        self.rng = Streams(seed)("noise")
        self.designs: list[Any] = []
        self.value = torch.empty(0, dtype=torch.float64)
        self.measured = torch.empty(0, dtype=torch.float64)

    def __call__(self, designs: Any) -> torch.Tensor:
        """Values of a plate, nats."""
        value = torch.as_tensor(self.reward(designs)).double()
        noisy = value + NOISE * torch.randn(len(value), generator=self.rng, dtype=torch.float64)
        self.designs.extend(designs)
        self.value, self.measured = torch.cat([self.value, value]), torch.cat([self.measured, noisy])
        return noisy

    def learned(self, how: str, rows: int, rng: torch.Generator) -> Learned:
        """A tempered surrogate of the first ``rows`` measurements."""
        data = Measurements(self.designs[:rows], self.measured[:rows])
        surrogate = learner(PICKING, rows, how).fit(self.codec, data, rng)
        return Learned(surrogate.tempered(temper(surrogate.held_out, None)), None, {})


def one(strategy: str, seed: int) -> dict[str, Any]:
    """Run one campaign and return its row."""
    torch.set_num_threads(1)
    started, streams = time.process_time(), Streams(seed)
    pretrained = build.load_task_policy(DIGITS).requires_grad_(False)
    laboratory, policy, rounds = Laboratory(pretrained, seed), pretrained, []
    for number in range(1, ROUNDS + 1):
        rng = streams(f"round-{number}")
        if strategy == "online-ppo":
            loop = dt.LoopConfig(steps=1, seed=int(torch.randint(2**31, (1,), generator=rng)))
            algorithm = PPO(alpha=TUNING.alpha, learning_rate=build.tuning_rate(DIGITS.name))
            start, anchors = policy.copy().requires_grad_(True), [dt.Anchor(pretrained, TUNING.alpha)]
            policy = dt.finetune(start, laboratory, algorithm, loop=loop, anchors=anchors).policy
        elif number == 1 or strategy == "random":
            laboratory(pretrained.codec.decode(sample_states(pretrained, PLATE, rng)))
        elif strategy == "guidance":
            laboratory(guided(pretrained, laboratory, rng))
        else:
            policy = tuned(PLANS[strategy], number, pretrained, policy, laboratory, rng)
        rounds.append(judged(policy, pretrained, laboratory, streams(f"judge-{number}")))
    return {"strategy": strategy, "seed": seed, "rounds": rounds, "cpu_seconds": time.process_time() - started}


def tuned(
    plan: Plan, number: int, pretrained: Policy, current: Policy, laboratory: Laboratory, rng: torch.Generator
) -> Policy:
    """The policy of a round after the first, once its plate is measured."""
    rows = PLATE if plan.once else len(laboratory.designs)
    learned = laboratory.learned(plan.acquisition, rows, rng)
    tuning = TUNING if plan.from_last else replace(TUNING, beta=0.0)
    hot = tuning.alpha + tuning.beta
    if not (plan.once and number > 2):
        reward = acquisition(plan.acquisition, learned, rng, c=PICKING.c, temperature=hot)
        current = tune(current, pretrained, reward, tuning, rng, told=None).policy
    pool = current.codec.decode(sample_states(current, POOL * PLATE, rng))
    picks = pick(plan.acquisition, pool, learned, PLATE, PICKING, rng, temperature=hot)
    laboratory([pool[i] for i in picks.index.tolist()])
    return current


def guided(pretrained: Policy, laboratory: Laboratory, rng: torch.Generator) -> list[Any]:
    """A plate of ``guidance``."""
    learned = laboratory.learned("mean", len(laboratory.designs), rng)
    mean = acquisition("mean", learned, rng, c=0.0, temperature=TUNING.alpha)
    steered = dt.SMC(alpha=TUNING.alpha)(pretrained, as_oracle(mean), POOL * PLATE, rng)
    pool = pretrained.codec.decode(steered.x_0[systematic(steered.log_weight, rng)].unique(dim=0))
    picks = pick("mean", pool, learned, PLATE, PICKING, rng, temperature=TUNING.alpha)
    return [pool[i] for i in picks.index.tolist()]


def judged(policy: Policy, pretrained: Policy, laboratory: Laboratory, rng: torch.Generator) -> dict[str, float]:
    """Numbers of a round, without noise."""
    drawn = policy.codec.decode(sample_states(policy, DRAWN, rng))
    far = 0.0 if policy is pretrained else distances(policy, {"kl": pretrained}, rng)["kl"]
    return {
        "plate": laboratory.value[-PLATE:].mean().item(),
        "policy": torch.as_tensor(laboratory.reward(drawn)).double().mean().item(),
        "kl_nats": far,
    }


def table(out: Path) -> str:
    """After the last round: means over seeds, and the range of the plate's mean."""
    lines = [
        "| strategy | seeds | mean of the last plate (range) | E[r] of the policy | KL, nats | CPU min |",
        "|---|---|---|---|---|---|",
    ]
    for strategy in STRATEGY_NAMES:
        rows = [json.loads(path.read_text()) for path in sorted(out.glob(f"{strategy}-[0-9].json"))]
        if not rows:
            continue
        last = {key: [row["rounds"][-1][key] for row in rows] for key in COLUMNS}
        plate, policy, kl = (statistics.fmean(last[key]) for key in COLUMNS)
        minutes = statistics.fmean(row["cpu_seconds"] for row in rows) / 60
        plates = f"{plate:.2f} ({min(last['plate']):.2f} to {max(last['plate']):.2f})"
        of_policy = ["-", "-"] if strategy in ("guidance", "random") else [f"{policy:.2f}", f"{kl:.1f}"]
        cells = [strategy, str(len(rows)), plates, *of_policy, f"{minutes:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "one", "table"])
    parser.add_argument("strategy", nargs="?", choices=STRATEGY_NAMES)
    parser.add_argument("seed", nargs="?", type=int)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "lab_images")
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    if asked.what == "run":
        parts = [[strategy, str(seed)] for seed in SEEDS for strategy in STRATEGY_NAMES]
        run_missing(__file__, asked.out, parts, asked.jobs)
    elif asked.what == "one":
        write_part(asked.out, [asked.strategy, str(asked.seed)], one(asked.strategy, asked.seed))
    else:
        print(table(asked.out))


if __name__ == "__main__":
    main()
