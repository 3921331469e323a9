"""Many simulated campaigns in one folder: run side by side, resumed, compared.

::

    OUTPUT/study.json                     what all campaigns share; another call must ask for the same
    OUTPUT/TASK/STRATEGY/seed-0/          a campaign: campaign.db, models, result.json once it is finished
    OUTPUT/rounds.csv                     a row for each round of each finished campaign
    OUTPUT/summary.md, ranks.png, ...     what they say; a figure for each task

Everything but the campaigns is written anew from the finished ones, whoever asked for them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from difftilt.campaigns.simulation.figures import draw_ranks, draw_task
from difftilt.campaigns.simulation.measures import Row
from difftilt.campaigns.simulation.runner import RESULT, Simulated
from difftilt.campaigns.simulation.summary import BETTER, differences, markdown, mean_ranks, pooled_coverage, unique
from difftilt.data.files import replacing
from difftilt.data.writers import write_designs
from difftilt.errors import DiffTiltError, StateError
from difftilt.tracking.run import provenance

SHARED = "study.json"


@dataclass(frozen=True)
class Job:
    """One campaign."""

    task: str
    strategy: str
    seed: int
    folder: Path
    settings: Simulated


Work = Callable[[Job], list[Row]]
"""Runs a campaign, or what is left of it. For several processes it is a function of a module."""


def jobs_of(
    tasks: Sequence[str], strategies: Sequence[str], seeds: int, settings: Simulated, output: Path
) -> list[Job]:
    """Every campaign, seed by seed, so that a study that was stopped early compares all of them."""
    return [
        Job(task, strategy, seed, output / slug(task) / strategy / f"seed-{seed}", settings)
        for task in tasks
        for seed in range(seeds)
        for strategy in strategies
    ]


def begin(output: Path, settings: Simulated) -> None:
    """Note what the campaigns of a folder share.

    Raises:
        StateError: those there share something else.
    """
    file, wanted = output / SHARED, dataclasses.asdict(settings)
    if file.is_file():
        there = json.loads(file.read_text())
        wrong = [f"{name} {there.get(name)}" for name, value in wanted.items() if there.get(name) != value]
        if wrong:
            raise StateError(
                f"expected campaigns like those in '{output}'; got others there: {', '.join(wrong)}; ask for the same, "
                "or choose another --output"
            )
        return
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(wanted, indent=1) + "\n")


def run_all(jobs: Sequence[Job], work: Work, processes: int, told: Callable[[str], None]) -> None:
    """Run what is not finished, some at a time.

    Raises:
        StateError: some failed; the others were run.
    """
    waiting = [job for job in jobs if not (job.folder / RESULT).is_file()]
    if len(jobs) > len(waiting):
        told(f"{len(jobs) - len(waiting)} of {len(jobs)} campaigns are finished already")
    failed = []
    for number, (job, error) in enumerate(_outcomes(waiting, work, processes), start=1):
        name = f"{job.task} {job.strategy} seed {job.seed}"
        told(f"{number}/{len(waiting)}  {name}: {'finished' if error is None else error}")
        failed += [] if error is None else [name]
    if failed:
        raise StateError(
            f"expected every campaign to finish; got {len(failed)} that failed: {', '.join(failed[:3])}; see above, "
            "and call again to go on with them"
        )


def _outcomes(jobs: Sequence[Job], work: Work, processes: int) -> Iterator[tuple[Job, DiffTiltError | None]]:
    """Each campaign as it ends; what is wrong with one does not stop the others."""
    if processes == 1 or len(jobs) < 2:
        for job in jobs:
            try:
                work(job)
            except DiffTiltError as error:
                yield job, error
            else:
                yield job, None
        return
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=one_thread) as pool:
        running = {pool.submit(work, job): job for job in jobs}
        for done in as_completed(running):
            error = done.exception()
            if error is not None and not isinstance(error, DiffTiltError):
                raise error
            yield running[done], error


def one_thread() -> None:
    """Of a worker: several of them share the cores."""
    import torch

    torch.set_num_threads(1)


def finished(output: Path) -> list[Row]:
    """Rows of every finished campaign of a folder, in the order of their names."""
    found = [Row(**row) for path in sorted(output.glob(f"*/*/*/{RESULT}")) for row in json.loads(path.read_text())]
    return sorted(found, key=lambda row: (row.task, row.strategy, row.seed, row.round))


def write(output: Path, settings: Simulated, unit_of: Callable[[str], str]) -> list[Path]:
    """Tables and figures of what is finished.

    Args:
        output: folder of the study.
        settings: what the campaigns share.
        unit_of: the unit of a task's reward.
    """
    rows = finished(output)
    if not rows:
        return []
    names = [field.name for field in dataclasses.fields(Row)]
    write_designs(output / "rounds.csv", {name: [getattr(row, name) for row in rows] for name in names})
    ranks = {by: {name: dataclasses.asdict(mean) for name, mean in mean_ranks(rows, by).items()} for by in BETTER}
    paired = {
        by: {name: {other: dataclasses.asdict(mean) for other, mean in own.items()} for name, own in found.items()}
        for by, found in ((by, differences(rows, by)) for by in BETTER)
    }
    facts = {
        "settings": dataclasses.asdict(settings),
        "mean_ranks": ranks,
        "paired_differences": paired,
        "coverage_90_from_round_3": pooled_coverage(rows),
        **provenance(),
    }
    for name, text in {"summary.json": json.dumps(facts, indent=1) + "\n", "summary.md": markdown(rows)}.items():
        with replacing(output / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    drawn = draw_ranks(rows, output / "ranks")
    for task in unique(rows, lambda row: row.task):
        own = [row for row in rows if row.task == task]
        drawn += draw_task(own, settings.batch, unit_of(task), output / slug(task))
    return [output / "summary.md", *drawn]


def slug(task: str) -> str:
    """A task as a name of files."""
    return task.replace("/", "-")
