"""Benchmarks in parts: each is a process with one thread and leaves a JSON file; what is there is not run again."""

from __future__ import annotations

import gc
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from difftilt import build
from difftilt.core.policy import Policy
from difftilt.metrics.log_z import tempered_log_z
from difftilt.rng import Streams
from difftilt.tracking.run import provenance


def run_missing(script: str, out: Path, parts: Sequence[Sequence[str]], jobs: int) -> None:
    """Run ``script one PART...`` for every part without a file ``PART-....json``, ``jobs`` processes at a time.

    Raises:
        SystemExit: some part failed; the others are run all the same.
    """
    out.mkdir(parents=True, exist_ok=True)
    missing = [part for part in parts if not (out / f"{'-'.join(part)}.json").is_file()]

    def start(part: Sequence[str]) -> bool:
        done = subprocess.run([sys.executable, script, "--out", str(out), "one", *part], check=False)
        return done.returncode == 0

    with ThreadPoolExecutor(jobs) as pool:
        failed = ["-".join(part) for part, good in zip(missing, pool.map(start, missing), strict=True) if not good]
    if failed:
        raise SystemExit(f"expected every part to finish; {', '.join(failed)} failed; see above, and run again")


def write_part(out: Path, part: Sequence[str], row: dict[str, Any]) -> None:
    """Keep the row of a finished part, with the versions that made it."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{'-'.join(part)}.json").write_text(json.dumps(row | provenance(), indent=2) + "\n")


def take_turns(runs: int, works: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Process seconds of each work, run in turn ``runs`` times after a warm-up of each.

    Each turn has an order of its own, so that none always follows the same one; garbage is collected off the clock.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    order, shuffle = list(works.items()), random.Random(0).shuffle
    for run in range(runs + 1):
        shuffle(order)
        for name, work in order:
            gc.collect()
            start = time.process_time()
            work()
            if run:
                times[name].append(time.process_time() - start)
    return times


def few(policy: Policy) -> Policy:
    """``policy`` of which biases and scales alone are tuned: fewer directions, in which less noise adds up."""
    for parameter in policy.denoiser.parameters():
        parameter.requires_grad_(parameter.ndim == 1)
    return policy


def told(record: dict[str, Any]) -> None:
    """A line for each update."""
    keys = ("step", "reward", "kl_nats", "clip_fraction", "log_ratio_rms", "seconds")
    print(json.dumps({key: round(record[key], 4) for key in keys if record.get(key) is not None}), flush=True)


def log_z_row(task: str, alpha: float, particles: int) -> dict[str, Any]:
    """An estimate of log Z that looks at no tuned policy."""
    torch.set_num_threads(1)
    entry, cpu = build.task(task), time.process_time()
    policy, reward = build.load_task_policy(entry), build.load_reward(entry, None)
    estimate = tempered_log_z(policy, reward, Streams(0)("log z"), alpha=alpha, particles=particles, moves=8)
    return {"alpha": alpha, **asdict(estimate), "cpu_seconds": time.process_time() - cpu}
