"""Campaigns simulated by name: tasks, strategies, seeds, in one folder; what `difftilt campaign simulate` runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from difftilt.campaigns.simulation import runner, study
from difftilt.campaigns.simulation.measures import Row
from difftilt.campaigns.simulation.runner import Simulated
from difftilt.campaigns.strategies import STRATEGIES, strategy
from difftilt.errors import ConfigError
from difftilt.lab.landscapes import landscape, names_of, unit_of

ALL = "all"


def simulate(
    tasks: Sequence[str],
    *,
    strategies: Sequence[str] = (ALL,),
    seeds: int = 3,
    settings: Simulated | None = None,
    jobs: int = 1,
    output: str | Path = "simulations",
    told: Callable[[str], None] = lambda message: None,
) -> list[Path]:
    """Run every campaign that the folder does not have yet, then write tables and figures.

    Args:
        tasks: landscapes, or names of several, such as ``tfbind8/all``.
        strategies: names, or ``all``.
        seeds: campaigns of each task and strategy: seeds 0, 1, ...
        settings: rounds, designs of each, noise.
        jobs: processes side by side, with one thread each.
        output: folder; finished campaigns in it are not run again, and begun ones go on.
        told: is called with a line for each campaign.

    Returns:
        The summary and the figures.

    Raises:
        ConfigError: an unknown name, or nothing to do.
        StateError: the folder holds campaigns of other settings; some campaigns failed.
    """
    own = Simulated() if settings is None else settings
    wanted = list(dict.fromkeys(name for task in tasks for name in names_of(task)))
    who = list(STRATEGIES) if ALL in strategies else list(dict.fromkeys(strategies))
    for name in who:
        strategy(name)
    if not wanted or not who or seeds < 1 or jobs < 1:
        raise ConfigError(
            f"expected a task, a strategy, 1 or more seeds and jobs; got {len(wanted)}, {len(who)}, {seeds} and {jobs}"
            "; name them"
        )
    folder = Path(output)
    study.begin(folder, own)
    try:
        study.run_all(study.jobs_of(wanted, who, seeds, own, folder), work, jobs, told)
    finally:
        written = study.write(folder, own, unit_of)
    return written


def work(job: study.Job) -> list[Row]:
    """Run one campaign."""
    return runner.run(landscape(job.task), job.strategy, strategy(job.strategy), job.folder, job.settings, job.seed)
