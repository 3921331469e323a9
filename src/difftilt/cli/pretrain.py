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
from difftilt.cli.job import tell_read
from difftilt.cli.progress import say
from difftilt.cli.record import shown
from difftilt.core.policy import CONFIG
from difftilt.domains.pretraining import Pretraining
from difftilt.domains.sequence import SequenceTask
from difftilt.domains.task import DENOISER
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
    skip_invalid: bool = False
    """Leave out designs of that file that cannot be read, where the default is an error that names them."""
    only: Annotated[str | None, tyro.conf.arg(metavar="denoiser|reward|judge|...")] = None
    """Train this part only."""
    process: str | None = None
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
    process = asked.process or entry.process
    prior = entry.prior(process)
    for name, value in (("--updates", asked.updates), ("--threads", asked.threads)):
        if value is not None and value < 1:
            raise ConfigError(f"expected {name} 1 or more; got {value}; raise it")
    if asked.only is not None and asked.only not in entry.parts:
        raise nearest(asked.only, entry.parts, what="part for --only")
    torch.set_num_threads(asked.threads)
    data = entry.read(asked.data, skip_invalid=asked.skip_invalid)
    if asked.data is not None:
        tell_read(data)
        if isinstance(entry, SequenceTask):  # a replicate of the task's table says nothing of other data
            entry = dataclasses.replace(entry, judge_set=None)
    output = asked.output or Path("models") / entry.name
    parts, possible = entry.parts if asked.only is None else (asked.only,), entry.trainable(data)
    if asked.only is None and possible != parts:
        left = [part for part in parts if part not in possible]
        lack = "no column of scores" if possible == (DENOISER,) else f"nothing to train the {' and '.join(left)} on"
        say(f"{data.path}: {lack}, so only the {', '.join(possible)} {'is' if len(possible) == 1 else 'are'} trained")
        parts = possible
    elif not set(parts) <= set(possible):
        lack = "a column 'score'" if possible == (DENOISER,) else "rows"
        raise DataError(f"{data.path}: expected {lack} for the {asked.only}; got none; add it")
    if asked.updates is not None:
        longer = dataclasses.replace(prior, training=dataclasses.replace(prior.training, updates=asked.updates))
        entry = dataclasses.replace(entry, priors={**entry.priors, process: longer})
    job = Pretraining(
        entry=entry,
        data=data,
        output=output,
        command=shown(["difftilt", "pretrain", *argv]),
        process=process,
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
    which = "" if process == entry.process else f" --process {process}"
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
    begun = DENOISER in parts and bool(checkpoint_steps(job.checkpoints))
    if not job.resume and (finished or begun):
        came = f"a finished {finished[0]}" if finished else "an interrupted training"
        raise StateError(f"expected a new folder; got {came} in '{output}'; add --resume, or choose another --output")
    return tuple(part for part in parts if part not in finished)
