"""``difftilt sample``: designs from a run, a task, a model folder or a Hub repository."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import tyro

from difftilt import build
from difftilt.algorithms.state import restore
from difftilt.cli import flags
from difftilt.cli.job import check_fit, choose_device
from difftilt.cli.kinds import Settings, plan_from
from difftilt.cli.progress import say
from difftilt.core.fixing import hold
from difftilt.core.policy import CONFIG, Policy
from difftilt.core.reward import Reward
from difftilt.core.trajectory import sample_states
from difftilt.data import Table, find, write_designs
from difftilt.data.files import check_writable
from difftilt.data.writers import csv_text
from difftilt.domains.task import LearnedReward, Task
from difftilt.errors import ConfigError, StateError, nearest
from difftilt.rewards.ensemble import EnsembleReward
from difftilt.rewards.spec import bound, terms
from difftilt.rng import Streams
from difftilt.tracking.checkpoint import load_checkpoint
from difftilt.tracking.run import RunFolder

SUFFIXES = (".csv", ".fasta", ".parquet")


@dataclass(frozen=True, kw_only=True)
class SampleFlags:
    """Flags of `difftilt sample`."""

    source: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN|TASK|FOLDER")]]
    """A run folder (its tuned model), a task (its pretrained model), a model folder, or a Hub repository."""
    process: str | None = None
    """Of a task or a folder of models: which model, by the name of its diffusion; the first when not set."""
    number: Annotated[int, flags.short("-n")] = 1000
    """How many designs."""
    output: Annotated[Path | None, flags.short("-o")] = None
    """File ending in .csv, .fasta or .parquet; CSV on standard output when not set."""
    fix: tyro.conf.UseAppendAction[Annotated[tuple[str, ...], tyro.conf.arg(metavar="POSITION:LETTERS")]] = ()
    """Hold letters fixed, e.g. 10:ATG; the first position is 1."""
    seed: int = 0
    """The same seed gives the same designs."""
    threads: int = 1
    """Threads of torch."""
    device: str | None = None
    """cpu or cuda; a GPU is used when there is one."""


@dataclass(frozen=True)
class Source:
    """A model with what is known of its designs' worth, at no cost."""

    policy: Policy
    scores: dict[str, Reward]
    """Column name to a reward that costs nothing."""


def command(argv: Sequence[str]) -> None:
    """Run ``difftilt sample``."""
    asked = flags.parse(SampleFlags, argv, command="difftilt sample", summary="Draw designs.")
    for name, value in (("-n", asked.number), ("--threads", asked.threads)):
        if value < 1:
            raise ConfigError(f"expected {name} 1 or more; got {value}; correct it")
    _check_output(asked.output)
    device = choose_device(asked.device, asked.threads)
    source = open_source(asked.source, asked.process)
    policy = hold(source.policy.to(device), asked.fix)
    rng = Streams(asked.seed, device)("sample")
    designs = policy.codec.decode(sample_states(policy, asked.number, rng))
    column, shown = _shown(policy, designs, asked.output)
    columns: dict[str, Any] = {"id": [f"design_{i + 1}" for i in range(len(designs))], column: shown}
    for name, reward in source.scores.items():
        columns[name] = [float(value) for value in reward(designs)]
    if asked.output is None:
        print(csv_text(columns), end="")
    else:
        write_designs(asked.output, columns)
        say(f"{len(designs)} designs in {asked.output}")


def _shown(policy: Policy, designs: list[Any], output: Path | None) -> tuple[str, list[str]]:
    """Header and cells of the designs; what is no text goes to files beside ``output``.

    Raises:
        ConfigError: such designs, and no ``output``.
    """
    entry = build.TASKS.get(str(policy.card.get("task")))
    if entry is None:
        return "sequence", [str(design) for design in designs]
    if output is None and not all(isinstance(design, str) for design in designs):
        raise ConfigError(f"expected -o for designs of {entry.name}, which are files; got none; add -o designs.csv")
    return entry.column, entry.written(designs, Path() if output is None else output.parent)


def _check_output(path: Path | None) -> None:
    """Find out before sampling that the file could not be written."""
    if path is None:
        return
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"expected a file ending in {', '.join(SUFFIXES)} after -o; got '{path.name}'; rename it")
    if path.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise ConfigError(
            "expected pyarrow for a .parquet file; it is not installed; run: pip install 'difftilt[tables]'"
        )
    check_writable(path)


def open_source(name: str, process: str | None = None) -> Source:
    """The model called ``name``, over ``process`` where there are several, and its free scores.

    Raises:
        DiffTiltError: there is no such thing, or it cannot be read.
    """
    path = Path(name)
    known = {entry.data_set: entry for entry in build.TASKS.values()} | build.TASKS
    if name in known:
        entry = known[name]
        reward = _free_reward(entry, entry.default_reward, None, None)
        policy = build.load_task_policy(entry, process)
        return _source(policy, reward, build.load_judge(entry))
    if path.is_dir():
        return _from_folder(path, process)
    if name.count("/") != 1 or name.partition("/")[0] in {task.partition("/")[0] for task in known}:
        raise nearest(name, known, what="run, task or model folder")
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # or an absent network fills the screen with retries
    return _source(_load(name, process), None, None)


def _load(name: str, process: str | None) -> Policy:
    return build.load_policy(name) if process is None else build.load_policy(name, process=process)


def _from_folder(path: Path, process: str | None) -> Source:
    """A run folder, a folder of models, or a model folder."""
    if (path / "config.toml").is_file():
        run, settings = RunFolder.existing(path), plan_from(["--resume", str(path)]).settings
        if process not in (None, settings.process):
            raise ConfigError(
                f"expected the run's own process, {settings.process}; got --process {process}; leave it out"
            )
        entry = build.task(settings.task)
        reward = _free_reward(entry, str(settings.reward), settings.models, settings.data, settings.require)
        if reward is None:
            reward = _bought(run)
        return _source(_tuned(run, settings), reward, build.judge_of(entry, str(settings.reward), settings.models))
    own = build.stored(path, process)
    if not any((folder / CONFIG).is_file() for folder in (path, own)):
        raise StateError(
            f"expected a run or a model folder; got '{path}' without config.toml or {CONFIG}; check the path"
        )
    parts = {part: path / part for part in ("reward", "judge") if (path / part / CONFIG).is_file()}
    models = {part: EnsembleReward.from_pretrained(str(folder)) for part, folder in parts.items()}
    return _source(_load(str(path), process), models.get("reward"), models.get("judge"))


def _source(policy: Policy, reward: Reward | None, judge: Reward | None) -> Source:
    scores = {name: model for name, model in (("reward", reward), ("judge", judge)) if model is not None}
    for model in scores.values():
        if isinstance(model, EnsembleReward):
            check_fit(model, policy)
    return Source(policy, scores)


def _tuned(run: RunFolder, settings: Settings) -> Policy:
    """The tuned policy of a finished run, or that of the latest checkpoint."""
    if (run.model / CONFIG).is_file():
        return Policy.from_pretrained(str(run.model))
    step, saved = load_checkpoint(run.checkpoints)
    print(f"difftilt: '{run.path}' is not finished; these designs are from update {step}", file=sys.stderr)
    policy = build.load_task_policy(build.task(settings.task), settings.process, settings.models)
    if settings.steps_per_sample is not None:
        policy = policy.with_steps(settings.steps_per_sample)
    tuned = saved["average"]["average"] if "average" in saved else saved["algorithm"]["policy"]
    restore({name: value for name, value in policy.named_parameters() if name in tuned}, tuned)
    return hold(policy, settings.fix).eval()


def _free_reward(
    entry: Task, spec: str, models: Path | None, data: Path | None, require: Sequence[str] = ()
) -> Reward | None:
    """A reward that costs nothing: of models, of a table whose file is at hand, or named by the task; else ``None``."""
    names = {term.name for term in terms(spec)} | {bound(text).name for text in require}
    at_hand = data is not None or find(entry.data_set) is not None
    there = {"model": build.model_folder(entry, "reward", models) is not None, "table": at_hand}
    there |= {
        name: not isinstance(named, LearnedReward) or build.model_folder(entry, named.part, models) is not None
        for name, named in entry.rewards.items()
    }
    if not all(there.get(name) for name in names):
        return None
    table = entry.read(data) if "table" in names else None
    return build.load_reward(entry, spec, models, table if isinstance(table, Table) else None, require)


def _bought(run: RunFolder) -> Reward:
    """The answers that were paid for in a run; NaN for any other design."""
    values = {row["design"]: row["value"] for row in run.read(run.oracle)}
    return lambda designs: [math.nan if values.get(design) is None else values[design] for design in designs]
