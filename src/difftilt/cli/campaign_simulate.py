"""``difftilt campaign simulate``: strategies on landscapes that are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from difftilt.cli import flags
from difftilt.cli.progress import say

SUMMARY = "run strategies on landscapes that are known, and compare them"


@dataclass(frozen=True, kw_only=True)
class SimulateFlags:
    """Flags of `difftilt campaign simulate`."""

    tasks: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="TASK")]]
    """Landscapes: tfbind8, tfbind8/FACTOR, gb1, splicing, ehrlich-8, ehrlich-32, ehrlich-64, utr-mrl, yeast-promoter,
    gfp, zinc-qed; tfbind8/all and ehrlich/all are several."""
    strategies: str = "all"
    """Names with commas between them, or all."""
    rounds: int = 8
    """Plates that are measured."""
    batch: int = 64
    """Designs of a plate."""
    seeds: int = 3
    """Campaigns of each task and strategy."""
    noise: float = 0.02
    """Standard deviation of a measurement, in units of the reward."""
    jobs: int = 1
    """Campaigns at a time, with one thread each."""
    output: Annotated[Path, flags.short("-o")] = Path("simulations")
    """Folder of campaigns, tables and figures. Finished campaigns in it are kept, and begun ones go on."""


def simulate(argv: Sequence[str]) -> None:
    """Run ``difftilt campaign simulate``."""
    summary = SUMMARY[0].upper() + SUMMARY[1:] + "."
    asked = flags.parse(SimulateFlags, argv, command="difftilt campaign simulate", summary=summary)

    from difftilt.campaigns.simulation.runner import Simulated
    from difftilt.lab import simulation

    written = simulation.simulate(
        asked.tasks,
        strategies=[name.strip() for name in asked.strategies.split(",") if name.strip()],
        seeds=asked.seeds,
        settings=Simulated(rounds=asked.rounds, batch=asked.batch, noise=asked.noise),
        jobs=asked.jobs,
        output=asked.output,
        told=say,
    )
    say(f"see {', '.join(str(path) for path in written if path.suffix != '.svg')}")
