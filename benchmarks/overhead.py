"""How much time the library adds to the bare network passes it needs. One thread, process time, ratio of medians.

Run: ``python benchmarks/overhead.py [--runs 7] [--batch 256] [--simplex-batch 32]``. Sampling is compared with K
forward passes of the same network on the same batch; a PPO update with the forward passes of its rollout (policy and
reference) and the forward and backward passes of its epochs. The simplex sampler is run at the setting of the tutorial:
13 M parameters of dilated convolutions, 50 letters, 50 steps. Library and bare runs alternate within one process, so
that a change of the machine's speed hits both.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from parts import take_turns

import difftilt as dt
from difftilt import build
from difftilt.core.codec import SimplexCodec
from difftilt.core.policy import Policy
from difftilt.core.trajectory import sample_states
from difftilt.networks import TimedConvDenoiser
from difftilt.processes import Simplex
from difftilt.rng import Streams, seeded_initialisation
from difftilt.tracking.run import provenance


def alternate(ours: Callable[[], object], bare: Callable[[], object], runs: int) -> dict[str, float]:
    """Median process seconds of each, run in turn, after one warm-up of each."""
    times = take_turns(runs, {"ours": ours, "bare": bare})
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = [a / b for a, b in zip(times["ours"], times["bare"], strict=True)]
    return {**medians, "ratio": medians["ours"] / medians["bare"], "median_of_ratios": statistics.median(ratios)}


def sampling(policy: Policy, batch: int, runs: int) -> dict[str, float]:
    """Ancestral sampling against K forward passes."""
    rng = Streams(0)("sample")
    x, t = sample_states(policy, batch, rng, batch=batch), torch.ones(batch, dtype=torch.float64)

    @torch.no_grad()
    def bare() -> None:
        for _ in range(policy.steps):
            policy.denoiser(x, t, None)

    return alternate(lambda: sample_states(policy, batch, rng, batch=batch), bare, runs)


def tutorial_simplex() -> Policy:
    """Dirichlet diffusion of 5'UTRs at the size of the tutorial: 20 layers, 13 M parameters, not trained."""
    with seeded_initialisation(0):
        network = TimedConvDenoiser(4, 50, "sticks", width=256, kernel=9, dilations=(1, 1, 4, 16, 64) * 4)
    return Policy(network, Simplex(4), SimplexCodec("ACGT", 50), (50, 3), steps=50).eval().requires_grad_(False)


def ppo_update(policy: Policy, batch: int, runs: int) -> dict[str, float]:
    """One PPO update (reward included) against the passes it needs."""
    algorithm = dt.PPO(batch=batch)
    tuned = copy.deepcopy(policy).requires_grad_(True)
    state = algorithm.init(tuned, [dt.Anchor(policy.frozen_copy(), 0.1)])
    reward, rng = build.load_reward(build.task("utr-mrl"), None), Streams(0)("train")
    x, t = sample_states(policy, batch, rng, batch=batch), torch.ones(batch, dtype=torch.float64)
    network = copy.deepcopy(policy.denoiser).requires_grad_(True)
    steps = algorithm.steps_per_path or policy.steps
    rows = batch // algorithm.minibatches * steps
    wide, late = x[torch.arange(rows) % batch], torch.ones(rows, dtype=torch.float64)

    def bare() -> None:
        with torch.no_grad():
            for _ in range(2 * policy.steps):
                network(x, t, None)
            reward(x)
        for _ in range(algorithm.epochs * algorithm.minibatches):
            network.zero_grad(set_to_none=True)
            network(wide, late, None).sum().backward()

    return alternate(lambda: algorithm.step(state, reward, rng), bare, runs)


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--simplex-batch", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy = dt.load("utr-mrl")
    results = {
        "batch": options.batch,
        "runs": options.runs,
        **provenance(),
        "sampling": sampling(policy, options.batch, options.runs),
        "ppo_update": ppo_update(policy, options.batch, options.runs),
        "simplex_batch": options.simplex_batch,
        "simplex_sampling": sampling(tutorial_simplex(), options.simplex_batch, options.runs),
    }
    text = json.dumps(results, indent=2)
    Path(__file__).with_suffix(".json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
