"""``difftilt finetune``: tune a model, then say what came of it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from difftilt.cli.job import Job, load_job
from difftilt.cli.outcome import print_outcome
from difftilt.cli.progress import Progress, say
from difftilt.cli.record import config_text
from difftilt.cli.running import carry_out
from difftilt.cli.settings import COMMAND, Plan, plan_from
from difftilt.errors import DiffTiltError, StateError
from difftilt.tracking.run import RunFolder


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with what to do next."""


def command(argv: Sequence[str]) -> None:
    """Run ``difftilt finetune``."""
    plan = plan_from(argv)
    if plan.place.resume is not None:
        resume(plan, plan.place.resume)
    else:
        start(plan, ["difftilt", "finetune", *argv])


def start(plan: Plan, words: Sequence[str]) -> None:
    """Begin a run.

    Args:
        plan: what to do.
        words: the command line, for the record.
    """
    job = load_job(plan)
    run, fresh = _claim(plan)
    run.config.write_text(config_text(job.plan, job.facts(), words), encoding="utf-8")
    say(f"{job.entry.name}: {job.plan.settings.algorithm}, {plan.loop.steps} updates, run folder {run.path}")
    try:
        _go(job, run, resuming=False)
    except DiffTiltError:
        if not run.metrics.is_file() and not run.oracle.is_file():
            _withdraw(run, fresh=fresh)
        raise


def resume(plan: Plan, path: Path) -> None:
    """Continue a run."""
    run = RunFolder(path)
    job = load_job(plan)
    say(f"{job.entry.name}: {job.plan.settings.algorithm}, {plan.loop.steps} updates, continuing {run.path}")
    _go(job, run, resuming=True)


def _go(job: Job, run: RunFolder, *, resuming: bool) -> None:
    again = f"{COMMAND} --resume {run.path}"
    progress = Progress(job.plan.loop.steps, show_alpha=job.plan.loop.kl_budget is not None)
    try:
        with progress:
            facts = carry_out(job, run, resume=resuming, progress=progress)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped after update {progress.done}; go on with: {again}") from None
    except DiffTiltError as error:
        if run.metrics.is_file() and "--resume" not in str(error):
            raise type(error)(f"{error}; then go on with: {again}") from error
        raise
    print_outcome(facts, run.report)


def _claim(plan: Plan) -> tuple[RunFolder, bool]:
    """The folder of a new run, and whether it was made here.

    Raises:
        StateError: it holds a run, or cannot be written.
    """
    if plan.place.run is not None:
        fresh = not plan.place.run.exists()
        run = RunFolder(plan.place.run)
        if run.started:
            raise StateError(
                f"expected a new run folder; got '{run.path}', which holds a run; continue it with "
                f"--resume {run.path}, or choose another with --run"
            )
        return run, fresh
    stem = f"{plan.settings.task}-{plan.settings.algorithm}".replace("/", "-")
    return new_folder(stem), True


def new_folder(stem: str) -> RunFolder:
    """``runs/<stem>-<n>`` with the first free ``n``."""
    n = 1
    while True:
        path = Path("runs") / f"{stem}-{n}"
        try:
            path.mkdir(parents=True)
            return RunFolder(path)
        except FileExistsError:
            if Path("runs").is_dir():
                n += 1
                continue
            return RunFolder(path)  # says what is in the way
        except OSError:
            return RunFolder(path)


def _withdraw(run: RunFolder, *, fresh: bool) -> None:
    """Leave no trace of a run that failed before anything was paid for."""
    if fresh:
        shutil.rmtree(run.path, ignore_errors=True)
    else:
        run.config.unlink(missing_ok=True)
