"""One tuning run from its settings to its report, wherever it was interrupted before."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import torch

from difftilt.cli.folders import finished
from difftilt.cli.job import Job, score_name
from difftilt.cli.objectives import objective_facts
from difftilt.cli.progress import Progress, say
from difftilt.core.policy import Policy
from difftilt.data import write_designs
from difftilt.domains.references import KEPT as REFERENCES
from difftilt.domains.task import Scene
from difftilt.errors import StateError
from difftilt.metrics.log_z import LogZ, independent_log_z, log_path_weight
from difftilt.report import write_report
from difftilt.rewards.combined import CombinedReward
from difftilt.rewards.oracle import Oracle
from difftilt.rng import Streams
from difftilt.tracking.run import RunFolder
from difftilt.training.designs import DesignSet
from difftilt.training.evaluate import Evaluation, evaluate
from difftilt.training.finetune import FinetuneResult, finetune, recorded_oracle
from difftilt.types import Float, Tensor


def carry_out(job: Job, run: RunFolder, *, resume: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Train, evaluate, and write every file of the run.

    Args:
        job: what to do.
        run: its folder; ``config.toml`` is there already.
        resume: continue what the folder holds; what is finished is not done again.
        progress: shows the training.

    Returns:
        The facts of ``evaluation.json``.
    """
    oracle, loop = recorded_oracle(job.reward, run), job.plan.loop
    estimate = None if loop.kl_budget is not None else estimate_log_z(job, run, oracle, job.plan.method.alpha)
    result = _train(job, run, oracle, estimate, resume=resume, progress=progress)
    if resume and run.evaluation.is_file():
        return finished(run)
    if loop.kl_budget is not None:
        estimate = estimate_log_z(job, run, oracle, result.alpha)
    return finish(job, run, result, estimate, designs=job.plan.settings.designs, seed=loop.seed)


def evaluate_again(job: Job, run: RunFolder, *, designs: int, seed: int) -> dict[str, Any]:
    """Evaluate a finished run anew.

    Raises:
        StateError: its training is not finished.
    """
    loop = job.plan.loop
    done = len(run.read(run.metrics))
    if done < loop.steps:
        raise StateError(
            f"expected a finished run; got {done} of {loop.steps} updates in '{run.path}'; "
            f"first run: difftilt finetune --resume {run.path}"
        )
    oracle = recorded_oracle(job.reward, run)
    result = _train(job, run, oracle, None, resume=True, progress=None)
    estimate = estimate_log_z(job, run, oracle, result.alpha)
    return finish(job, run, result, estimate, designs=designs, seed=seed)


def _train(
    job: Job, run: RunFolder, oracle: Oracle, estimate: LogZ | None, *, resume: bool, progress: Progress | None
) -> FinetuneResult:
    known = estimate is not None and math.isfinite(estimate.value)
    return finetune(
        job.policy,
        oracle,
        job.plan.method,
        loop=job.plan.loop,
        judge=job.judge,
        log_z=estimate.value if estimate is not None and known else None,
        folder=run,
        resume=resume,
        on_step=progress,
    )


def estimate_log_z(job: Job, run: RunFolder, oracle: Oracle, alpha: float) -> LogZ | None:
    """The independent estimate, kept in the run folder; ``None`` where it is switched off."""
    samples = job.plan.settings.log_z_samples
    if not samples:
        return None
    if run.log_z.is_file():
        record = run.read_json(run.log_z)
        if record.pop("alpha", None) == alpha:
            return _restored(record)
    say(f"estimating log Z at alpha {alpha:.4g} from the pretrained model alone")
    rng = Streams(job.plan.loop.seed, job.policy.device)("log_z")
    with oracle.evaluating():
        estimate = independent_log_z(job.policy, oracle, rng, alpha=alpha, samples=samples)
    run.write_json(run.log_z, {"alpha": alpha, **dataclasses.asdict(estimate)})
    return estimate


def _restored(record: dict[str, Any]) -> LogZ:
    """JSON has no infinities: log Z is minus infinity where no particle was feasible."""
    missing = {"value": -math.inf, "error": math.inf, "ess": math.inf}
    numbers: dict[str, Any] = {name: missing[name] if value is None else value for name, value in record.items()}
    return LogZ(**numbers)


def finish(
    job: Job, run: RunFolder, result: FinetuneResult, estimate: LogZ | None, *, designs: int, seed: int
) -> dict[str, Any]:
    """Evaluate a tuned policy and write ``evaluation.json``, ``samples.csv``, ``model`` and ``report.html``."""
    say(f"evaluating {designs} designs before and after")
    started = time.monotonic()
    with result.oracle.evaluating():
        evaluation = evaluate(
            result.policy,
            result.pretrained,
            result.oracle,
            alpha=result.alpha,
            judge=job.judge,
            independent=estimate,
            designs=designs,
            pool=designs,
            training_calls=result.oracle.calls,
            describe=job.entry.describe(result.pretrained, job.known),
            seed=seed,
        )
    last, after = result.history[-1], evaluation.after
    head = {
        "algorithm": job.plan.name,
        "updates": last["step"],
        "kl_budget": job.plan.loop.kl_budget,
    }
    cost = {
        "network_evaluations": last["network_evaluations"],
        "seconds": last["seconds"],
        "evaluation_seconds": time.monotonic() - started,
    }
    write_samples(job, run, after, log_path_weight(after.reward, after.path_log_ratio, alpha=result.alpha))
    write_pictures(job, run, evaluation, result.pretrained, result.policy)
    result.policy.card = _card(job, result)
    result.policy.save_pretrained(run.model)
    return write_facts(job, run, result.oracle, evaluation, head, cost)


def write_facts(
    job: Job, run: RunFolder, oracle: Oracle, evaluation: Evaluation, head: dict[str, Any], cost: dict[str, Any]
) -> dict[str, Any]:
    """``evaluation.json`` and ``report.html``; what only this kind of run has stands in ``head``."""
    facts = dict(evaluation.facts)
    facts.pop("evaluation_calls", None)  # those asked for; the cost below counts those that were bought
    frequencies = {side: facts[side].pop("position_frequencies", None) for side in ("before", "after")}
    if isinstance(job.asked, CombinedReward):
        facts["objectives"] = objective_facts(job.asked, evaluation)
    if any(frequencies.values()):
        head = head | {"position_frequencies": {**frequencies, "alphabet": job.entry.facts(job.policy).get("alphabet")}}
    calls = {"oracle_calls": oracle.calls, "evaluation_calls": oracle.evaluation_calls}
    whole = {
        "task": job.entry.name,
        **head,
        **facts,
        "cost": calls | cost,
    }
    run.write_json(run.evaluation, whole)
    write_report(run)
    return run.read_json(run.evaluation)


def write_pictures(job: Job, run: RunFolder, evaluation: Evaluation, pretrained: Policy, tuned: Policy | None) -> None:
    """What the domain draws, for the page."""
    named = score_name(job.entry, job.plan.settings.reward)
    scene = Scene(pretrained, tuned, evaluation.before, evaluation.after, job.known, job.plan.loop.seed, named)
    run.write_pictures(dataclasses.asdict(picture) for picture in job.entry.pictures(scene))


def write_samples(job: Job, run: RunFolder, designs: DesignSet, log_weight: Float[Tensor, " N"]) -> None:
    """``samples.csv``; the weights correct the designs to the tilted law, where one is claimed."""
    columns: dict[str, list[Any] | torch.Tensor] = {
        "id": [f"design_{i + 1}" for i in range(len(designs.designs))],
        job.entry.column: job.entry.written(designs.designs, run.path),
        "reward": designs.reward.cpu(),
        "judge": designs.judge.cpu(),
        "log_weight": log_weight.cpu(),
        "pretrained_log_likelihood": designs.pretrained_log_likelihood.cpu(),
    }
    if isinstance(job.asked, CombinedReward):
        taken = ("id", job.entry.column, *columns)
        found = job.asked.each(designs.designs)
        columns |= {f"{name}_value" if name in taken else name: values for name, values in found.items()}
    write_designs(run.samples, columns)


def _card(job: Job, result: FinetuneResult) -> dict[str, Any]:
    """What the tuned model's folder says of itself."""
    settings = job.plan.settings
    kept = ("task", "process", "score", "data", "kmer_counts", *REFERENCES, "wild_type", "most_mutations")
    before = {name: value for name, value in job.policy.card.items() if name in kept}
    return {
        "name": f"{job.entry.name} tuned by {job.plan.name}",
        "summary": job.entry.summary,
        **before,
        "part": "denoiser",
        "tilt": {
            "reward": str(settings.reward).rpartition("/")[2],
            "alpha": result.alpha,
            "updates": result.history[-1]["step"],
        },
    }
