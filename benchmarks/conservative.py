"""Pessimism on a fixed data set (BRAID): designs tuned for ``r_hat - std`` against designs tuned for ``r_hat``.

No measurements follow: a surrogate is fitted to some designs, p_pre is tuned for it, and the judge, which the surrogate
has never seen, says how good 1,024 designs of the tuned policy are. Over-optimisation is what was promised less what
the judge says, ``E[r_hat] - E[judge]``.

- ``tfbind8``: 64 designs of p_pre (the Markov law of the worse half), noise 0.02; the judge is the measured table.
- ``utr-mrl``: 300 measured rows, whatever their values; the judge is the task's, a network fitted to other rows.

Temperatures are low, so that there is something to be fooled by.

Run: ``python benchmarks/conservative.py`` (needs the data sets), then ``table``. Finished rows of ``--out`` are kept.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from difftilt import build
from difftilt.campaigns.acquisition import acquisition
from difftilt.campaigns.learning import Learned, learner
from difftilt.campaigns.settings import Picking, Tuning
from difftilt.campaigns.simulation.summary import mean_of
from difftilt.campaigns.update import tune
from difftilt.core.policy import Policy
from difftilt.core.reward import Reward
from difftilt.core.trajectory import sample_states
from difftilt.data import load
from difftilt.lab.landscapes import BINDING, landscape
from difftilt.rng import Streams
from difftilt.surrogates.calibration import temper
from difftilt.surrogates.measurements import Measurements
from difftilt.tracking.run import provenance

HOW = {"conservative": "lcb", "mean": "mean"}
SEEDS, DRAWN, ALPHA, UPDATES = 3, 1024, 0.01, 32
KNOWN = {**dict.fromkeys(BINDING, 64), "utr-mrl": 300}
SURROGATES = {**dict.fromkeys(BINDING, ("ensemble", "gp")), "utr-mrl": ("ensemble",)}


def known_of(task: str, n: int, rng: torch.Generator) -> tuple[Policy, Reward, Measurements]:
    """p_pre, the judge, and what is known."""
    if task in BINDING:
        own = landscape(task)
        designs = own.prior.codec.decode(sample_states(own.prior, n, rng))
        value = torch.as_tensor(own.oracle(designs)).double()
        return own.prior, own.oracle, Measurements(designs, value + 0.02 * torch.randn(n, generator=rng).double())
    entry, table = build.task(task), load(task)
    rows = torch.randperm(len(table.sequences), generator=rng)[:n].tolist()
    value = torch.as_tensor(table.scores)[rows].double()
    return build.load_task_policy(entry), build.load_judge(entry), Measurements(
        [table.sequences[row] for row in rows], value
    )  # fmt: skip


def run(task: str, kind: str, seed: int) -> Iterator[dict[str, Any]]:
    """A row for each of :data:`HOW`, of the same surrogate."""
    n, streams = KNOWN[task], Streams(seed)
    prior, judge, data = known_of(task, n, streams("data"))
    surrogate = learner(Picking(surrogate=kind), n).fit(prior.codec, data, streams("fit"))
    surrogate = surrogate.tempered(temper(surrogate.held_out))
    for name, how in HOW.items():
        began, rng = time.process_time(), Streams(seed)("tune")
        reward = acquisition(how, Learned(surrogate, None, {}), rng, c=1.0, temperature=ALPHA)
        found = tune(prior, prior, reward, Tuning(alpha=ALPHA, beta=0.0, updates=UPDATES), rng, told=None)
        designs = prior.codec.decode(sample_states(found.policy, DRAWN, Streams(seed)("judge")))
        promised = surrogate.predict(designs).mean.mean().item()
        judged = torch.as_tensor(judge(designs)).double().nanmean().item()
        yield {
            "task": task, "surrogate": kind, "seed": seed, "how": name, "judge": judged, "promised": promised,
            "over_optimisation": promised - judged, "kl": found.facts["kl_to_pretrained"],
            "seconds": time.process_time() - began,
        }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Means over seeds, of the twelve factors over factors; and paired differences."""
    lines = [
        "| task, surrogate | tuned for | judge | promised | over-optimisation | KL, nats |",
        "|---|---|---|---|---|---|",
    ]
    for tasks, kind in ((BINDING, "ensemble"), (BINDING, "gp"), (("utr-mrl",), "ensemble")):
        group = f"{'tfbind8 (12)' if tasks == BINDING else tasks[0]}, {kind}"
        own = [row for row in rows if row["task"] in tasks and row["surrogate"] == kind]
        if not own:
            continue
        units = sorted({row["task"] if len(tasks) > 1 else row["seed"] for row in own})

        def values(how: str, field: str, own: list = own, units: list = units) -> list[float]:
            each = [[r[field] for r in own if r["how"] == how and unit in (r["task"], r["seed"])] for unit in units]
            return [sum(found) / len(found) for found in each]

        fields = ("judge", "promised", "over_optimisation", "kl")
        for how in HOW:
            means = [mean_of(values(how, field)) for field in fields]
            lines.append(f"| {group} | {how} | " + " | ".join("" if m is None else m.text() for m in means) + " |")
        apart = [mean_of(a - b for a, b in zip(*(values(how, field) for how in HOW), strict=True)) for field in fields]
        lines.append(f"| {group} | difference | " + " | ".join("" if m is None else m.text() for m in apart) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("run", "table"), default="run")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    rows = json.loads(options.out.read_text())["rows"] if options.out.is_file() else []
    if options.what == "table":
        print(table(rows), end="")
        return
    torch.set_num_threads(1)
    for seed in range(SEEDS):
        for task, kinds in SURROGATES.items():
            for kind in kinds:
                if any((row["task"], row["surrogate"], row["seed"]) == (task, kind, seed) for row in rows):
                    continue
                rows += run(task, kind, seed)
                options.out.write_text(json.dumps({"rows": rows, **provenance()}, indent=1) + "\n")
                print(f"{task} {kind} seed {seed}", flush=True)


if __name__ == "__main__":
    main()
