"""``difftilt steer``: draw designs from a tilted law without training, then say what came of it.

The run folder is that of ``difftilt finetune`` without what training leaves: no ``metrics.jsonl``, ``checkpoints`` or
``model``. A run that is continued draws the same designs again from its seed; answers bought before are in
``oracle.jsonl`` and cost nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from difftilt import build
from difftilt.cli.folders import begin, finished, going_on, resume
from difftilt.cli.job import Job
from difftilt.cli.kinds import STEER, looks_at_values, plan_from
from difftilt.cli.outcome import print_outcome
from difftilt.cli.progress import duration, say
from difftilt.cli.running import estimate_log_z, write_facts, write_pictures, write_samples
from difftilt.core.algorithm import Weighted
from difftilt.core.policy import Policy, counting_passes
from difftilt.core.reward import DifferentiableReward
from difftilt.rewards.oracle import Oracle
from difftilt.rng import Streams
from difftilt.samplers.best_of_n import BestOfN
from difftilt.samplers.smc import SMC
from difftilt.tracking.run import RunFolder
from difftilt.training.evaluate import evaluate_steered
from difftilt.training.finetune import recorded_oracle


def command(argv: Sequence[str]) -> None:
    """Run ``difftilt steer``."""
    plan = plan_from(argv, STEER)
    if plan.place.resume is not None:
        resume(plan, plan.place.resume, _go)
    else:
        begin(plan, ["difftilt", "steer", *argv], _go)


def _go(job: Job, run: RunFolder, resuming: bool) -> None:
    where = f"continuing {run.path}" if resuming else f"run folder {run.path}"
    say(f"{job.entry.name}: {job.plan.settings.designs} designs by {job.plan.name}, {where}")
    with going_on(job.plan, run, lambda: "stopped; what was bought is kept"):
        facts = finished(run) if resuming and run.evaluation.is_file() else carry_out(job, run)
    print_outcome(facts, run.report)


def carry_out(job: Job, run: RunFolder) -> dict[str, Any]:
    """Steer, evaluate, and write every file of the run.

    Args:
        job: what to do.
        run: its folder; ``config.toml`` is there already. Answers in its ``oracle.jsonl`` are not bought again.

    Returns:
        The facts of ``evaluation.json``.
    """
    settings, sampler, seed = job.plan.settings, job.plan.method, job.plan.loop.seed
    oracle, pretrained = recorded_oracle(job.reward, run), job.policy.frozen_copy()
    alpha = getattr(sampler, "alpha", None)
    started = time.monotonic()
    with counting_passes(pretrained) as passes:
        steered = steer(job, pretrained, oracle)
    cost: dict[str, Any] = {"network_evaluations": passes.rows, "seconds": time.monotonic() - started}
    say(f"steered in {duration(cost['seconds'])}; evaluating, with {settings.designs} designs of the pretrained model")
    started = time.monotonic()
    estimate = None if alpha is None else estimate_log_z(job, run, oracle, alpha)
    with oracle.evaluating():
        evaluation = evaluate_steered(
            steered,
            pretrained,
            oracle,
            alpha=alpha,
            judge=job.judge,
            independent=estimate,
            pool=settings.designs,
            steering_calls=oracle.calls,
            kl_bound=sampler.kl_bound if isinstance(sampler, BestOfN) else None,
            population=sampler.particles if isinstance(sampler, SMC) else 1,
            describe=job.entry.describe(pretrained, job.known),
            seed=seed,
        )
    write_samples(job, run, evaluation.after, evaluation.after.log_weight)
    write_pictures(job, run, evaluation, pretrained, None)
    head = {"sampler": job.plan.name, "value": _value_name(job)}
    return write_facts(job, run, oracle, evaluation, head, cost | {"evaluation_seconds": time.monotonic() - started})


def steer(job: Job, pretrained: Policy, oracle: Oracle) -> Weighted:
    """The designs, from the run's seed."""
    settings, sampler = job.plan.settings, job.plan.method
    streams = Streams(job.plan.loop.seed, pretrained.device)
    value = None
    if settings.value is not None:
        value = build.soft_value(
            settings.value,
            pretrained,
            oracle,
            streams("value"),
            alpha=sampler.alpha,
            samples=settings.value_samples,
        )
    return sampler(pretrained, oracle, settings.designs, streams("steer"), value=value)


def _value_name(job: Job) -> str | None:
    """The soft value that was looked at."""
    if not looks_at_values(job.plan.method):
        return None
    default = "plug_in" if isinstance(job.reward, DifferentiableReward) else "one_jump"
    return default if job.plan.settings.value is None else job.plan.settings.value
