"""``difftilt pretrain``: the model of a task, its reward and its judge."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from difftilt import build
from difftilt.cli import flags
from difftilt.cli.progress import say
from difftilt.cli.record import shown
from difftilt.core.policy import CONFIG
from difftilt.domains.pretraining import PARTS, Pretraining
from difftilt.domains.task import MASKED
from difftilt.errors import ConfigError, DataError, StateError, nearest
from difftilt.tracking.checkpoint import checkpoint_steps


@dataclass(frozen=True, kw_only=True)
class PretrainFlags:
    """Flags of `difftilt pretrain`."""

    task: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="TASK")]]
    """A task of `difftilt list`."""
    output: Annotated[Path | None, flags.short("-o")] = None
    """Folder for denoiser (or simplex), reward and judge; models/TASK when not set. Pass it to finetune as --models."""
    data: Path | None = None
    """Own CSV, FASTA or Parquet file in place of the task's data; without scores only the denoiser is trained."""
    only: Annotated[str | None, tyro.conf.arg(metavar="denoiser|reward|judge")] = None
    """Train this part only."""
    process: str = MASKED
    """Diffusion of the denoiser, of those that the task knows; each is kept beside the others."""
    updates: int | None = None
    """Updates of the denoiser; the task's own number when not set."""
    seed: int = 0
    """Seed of the split and of every network."""
    resume: bool = False
    """Continue an interrupted pretraining; finished parts are kept."""
    threads: int = 1
    """Threads of torch."""


def command(argv: Sequence[str]) -> None:
    """Run ``difftilt pretrain``."""
    asked = flags.parse(
        PretrainFlags, argv, command="difftilt pretrain", summary="Train a task's denoiser, reward and judge."
    )
    entry = build.task(asked.task)
    prior = entry.prior(asked.process)
    for name, value in (("--updates", asked.updates), ("--threads", asked.threads)):
        if value is not None and value < 1:
            raise ConfigError(f"expected {name} 1 or more; got {value}; raise it")
    if asked.only is not None and asked.only not in PARTS:
        raise nearest(asked.only, PARTS, what="part for --only")
    torch.set_num_threads(asked.threads)
    table = build.read_table(entry, asked.data)
    if asked.data is not None:  # the replicate that judges the task's own table says nothing of other data
        entry = dataclasses.replace(entry, judge_set=None)
    output = asked.output or Path("models") / entry.name
    parts = PARTS if asked.only is None else (asked.only,)
    if table.score_column is None and asked.only is None:
        say(f"{table.path}: no column of scores, so only the denoiser is trained")
        parts = ("denoiser",)
    elif table.score_column is None and asked.only != "denoiser":
        raise DataError(f"{table.path}: expected a column 'score' for the {asked.only}; got none; add it")
    if asked.updates is not None:
        longer = dataclasses.replace(prior, training=dataclasses.replace(prior.training, updates=asked.updates))
        entry = dataclasses.replace(entry, priors={**entry.priors, asked.process: longer})
    job = Pretraining(
        entry=entry,
        table=table,
        output=output,
        command=shown(["difftilt", "pretrain", *argv]),
        process=asked.process,
        seed=asked.seed,
        resume=asked.resume,
        on_event=say,
    )
    parts = _unfinished(job, parts)
    try:
        job.run(parts)
    except KeyboardInterrupt:
        words = [word for word in argv if word != "--resume"]
        raise KeyboardInterrupt(
            f"stopped; go on with: {shlex.join(['difftilt', 'pretrain', *words, '--resume'])}"
        ) from None
    which = "" if asked.process == MASKED else f" --process {asked.process}"
    print(f"models in {output}; next: difftilt finetune {entry.name}{which} --models {output}")


def _unfinished(job: Pretraining, parts: Sequence[str]) -> tuple[str, ...]:
    """The parts still to train; nothing that is there is overwritten.

    Raises:
        StateError: the folder cannot be written, or holds models while ``resume`` is false.
    """
    output = job.output
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StateError(
            f"expected a folder that can be written at '{output}'; got '{error.strerror}'; choose --output"
        ) from error
    finished = [part for part in parts if (job.folder(part) / CONFIG).is_file()]
    begun = "denoiser" in parts and bool(checkpoint_steps(job.checkpoints))
    if not job.resume and (finished or begun):
        came = f"a finished {finished[0]}" if finished else "an interrupted training"
        raise StateError(f"expected a new folder; got {came} in '{output}'; add --resume, or choose another --output")
    return tuple(part for part in parts if part not in finished)
