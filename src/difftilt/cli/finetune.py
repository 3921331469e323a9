"""``difftilt finetune``: tune a model, then say what came of it."""

from __future__ import annotations

from collections.abc import Sequence

from difftilt.cli.folders import begin, going_on, resume
from difftilt.cli.job import Job
from difftilt.cli.kinds import plan_from
from difftilt.cli.launch import follow, joined
from difftilt.cli.outcome import print_outcome
from difftilt.cli.progress import Progress, say
from difftilt.cli.running import carry_out
from difftilt.cli.settings import Plan
from difftilt.core.ranks import is_first
from difftilt.tracking.run import RunFolder


def command(argv: Sequence[str]) -> None:
    """Run ``difftilt finetune``."""
    plan = plan_from(argv)
    with joined():
        if not is_first():
            follow(plan)
        elif plan.place.resume is not None:
            resume(plan, plan.place.resume, _go)
        else:
            start(plan, ["difftilt", "finetune", *argv])


def start(plan: Plan, words: Sequence[str]) -> None:
    """Begin a run; ``words`` is the command line, for the record."""
    begin(plan, words, _go)


def _go(job: Job, run: RunFolder, resuming: bool) -> None:
    where = f"continuing {run.path}" if resuming else f"run folder {run.path}"
    say(f"{job.entry.name}: {job.plan.name}, {job.plan.loop.steps} updates, {where}")
    progress = Progress(job.plan.loop.steps, show_alpha=job.plan.loop.kl_budget is not None)
    with going_on(job.plan, run, lambda: f"stopped after update {progress.done}"), progress:
        facts = carry_out(job, run, resume=resuming, progress=progress)
    print_outcome(facts, run.report)
