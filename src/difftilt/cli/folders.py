"""From a plan to a run folder: begun, continued, or withdrawn when it came to nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from difftilt.cli.job import Job, load_job
from difftilt.cli.record import config_text
from difftilt.cli.settings import Plan
from difftilt.errors import DiffTiltError, StateError
from difftilt.report import write_report
from difftilt.tracking.run import RunFolder

Go = Callable[[Job, RunFolder, bool], None]
"""Carries out a job in a folder; the last argument says whether it continues what is there."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with what to do next."""


def begin(plan: Plan, words: Sequence[str], go: Go) -> None:
    """Begin a run.

    Args:
        plan: what to do.
        words: the command line, for the record.
        go: does it.
    """
    job = load_job(plan)
    run, fresh = _claim(plan)
    run.config.write_text(config_text(job.plan, job.facts(), words), encoding="utf-8")
    try:
        go(job, run, False)
    except DiffTiltError:
        if not run.metrics.is_file() and not run.oracle.is_file():
            _withdraw(run, fresh=fresh)
        raise


def resume(plan: Plan, path: Path, go: Go) -> None:
    """Continue a run."""
    go(load_job(plan), RunFolder(path), True)


@contextmanager
def going_on(plan: Plan, run: RunFolder, stopped: Callable[[], str]) -> Generator[None]:
    """Says how to go on with what is interrupted or fails inside the block; ``stopped`` says where that was."""
    again = f"{plan.kind.command} --resume {run.path}"
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"{stopped()}; go on with: {again}") from None
    except DiffTiltError as error:
        if (run.metrics.is_file() or run.oracle.is_file()) and "--resume" not in str(error):
            raise type(error)(f"{error}; then go on with: {again}") from error
        raise


def finished(run: RunFolder) -> dict[str, Any]:
    """The facts of a run whose evaluation is on disk; its page is written if it is missing."""
    if not run.report.is_file():
        write_report(run)
    return run.read_json(run.evaluation)


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
    return new_folder(f"{plan.settings.task}-{plan.name}".replace("/", "-")), True


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
