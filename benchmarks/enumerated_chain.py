"""Exact KL(p_theta || p*) on random pairwise chains: 6 tokens, 4 letters, alpha 0.5, KL(p* || p_pre) = 2 nats, K = 6.

Run: ``python benchmarks/enumerated_chain.py [--seeds 3] [--updates 400]``. One thread; CPU seconds of training alone
are counted. The bars: PPO 0.01 nats, trajectory balance 0.003 nats, each within 60 s of one core.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import difftilt as dt
from difftilt.problems.landscapes import corrected, random_pairwise
from difftilt.tracking.run import provenance

METHODS = {
    "ppo": (dt.PPO(batch=1024, learning_rate=3e-3), 0.01),
    "trajectory_balance": (dt.TrajectoryBalance(batch=1024, learning_rate=3e-3), 0.003),
}


def main() -> None:
    """Train, measure exactly, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in range(options.seeds):
        problem = random_pairwise(seed=seed)
        for name, (algorithm, bar) in METHODS.items():
            policy = corrected(problem.pretrained)
            state = algorithm.init(policy, [dt.Anchor(problem.pretrained, problem.alpha)])
            rng = torch.Generator().manual_seed(seed)
            start = time.process_time()
            for update in range(options.updates):
                state.scale_learning_rate(1 - update / (options.updates + 1))
                algorithm.step(state, problem.reward, rng)
            seconds = time.process_time() - start
            kl = problem.kl(policy)
            rows.append({"method": name, "seed": seed, "kl_nats": kl, "bar": bar, "cpu_seconds": seconds})
            print(f"{name:20s} seed {seed}: KL {kl:.5f} nats (bar {bar}), {seconds:.0f} s", flush=True)
    options.out.write_text(json.dumps({"updates": options.updates, **provenance(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
