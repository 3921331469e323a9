"""Reward and judge regressors against the small-net yardsticks: Spearman and R² on a random tenth of the rows.

The shipped models are trained on cluster-split halves (45 % of the rows each; see their cards). This trains the
same networks with the same settings on a random 90 % of a task's rows and tests on the rest, as the yardsticks did: UTR
0.77 / 0.67, promoter 0.94 / 0.88 (one small network, one minute of one core).

Run: ``python benchmarks/regressors.py`` (needs the data sets). Finished rows of ``--out`` are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch

from difftilt import build
from difftilt.core.registry import construct
from difftilt.data import random_split
from difftilt.tracking.run import provenance
from difftilt.training.regress import measure_fit, train_members

YARDSTICK = {"utr-mrl": (0.77, 0.67), "yeast-promoter": (0.94, 0.88)}


def row(task: str, part: str, seed: int) -> dict[str, Any]:
    """Train one part of one task and test it."""
    entry = build.task(task)
    table = entry.read()
    table = table.take(entry.rows(table))
    codec = entry.codec(len(table.sequences[0]))
    x, y = codec.encode(table.sequences), torch.from_numpy(table.scores).float()
    train, test = (torch.from_numpy(rows) for rows in random_split(len(x), (0.9, 0.1), seed=seed))
    mean, scale = y[train].mean(), y[train].std()
    spec, config = (entry.reward, entry.reward_training) if part == "reward" else (entry.judge, entry.judge_training)
    config = dataclasses.replace(config, seed=seed)
    spec = {**spec, "vocabulary": codec.vocabulary, "length": codec.length}
    start = time.process_time()
    members = train_members(lambda: construct("regressor", spec), x[train], (y[train] - mean) / scale, config)
    seconds = time.process_time() - start
    with torch.no_grad():
        single, *rest = [torch.cat([member(rows) for rows in x[test].split(1024)]) for member in members]
    ensemble = torch.stack([single, *rest]).mean(0)
    alone, together = (measure_fit(mean + scale * p, y[test]) for p in (single, ensemble))
    return {
        "task": task,
        "part": part,
        "seed": seed,
        "yardstick": {"spearman": YARDSTICK[task][0], "r_squared": YARDSTICK[task][1]},
        "one_member": dataclasses.asdict(alone),
        "ensemble": dataclasses.asdict(together),
        "members": len(members),
        "training_rows": len(train),
        "cpu_seconds": seconds,
        **provenance(),
    }


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(options.out.read_text()) if options.out.is_file() else []
    done = {(one["task"], one["part"], one["seed"]) for one in rows}
    for task in YARDSTICK:
        for part in ("reward", "judge"):
            if (task, part, options.seed) not in done:
                rows.append(row(task, part, options.seed))
                print(json.dumps(rows[-1]), flush=True)
                options.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
