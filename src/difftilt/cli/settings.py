"""Settings of a fine-tuning run: defaults < TOML file < flags, and the ``config.toml`` that comes of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from difftilt import build
from difftilt.algorithms.state import SHARES
from difftilt.cli import flags
from difftilt.config import from_mapping, read_toml
from difftilt.errors import ConfigError, nearest
from difftilt.tracking.run import RunFolder
from difftilt.training.finetune import LoopConfig

COMMAND = "difftilt finetune"
TABLES = ("settings", "algorithm")
FACTS = ("task", "provenance")
"""Tables of a run's ``config.toml`` that people and the report read; they are no settings."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is tuned, toward what, and how it is measured."""

    task: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="TASK")]] = ""
    """What to tune: a task of `difftilt list`."""
    algorithm: str = "ppo"
    """How: a name of `difftilt list`. Each has flags of its own: add --help to see them."""
    reward: Annotated[str | None, tyro.conf.arg(metavar="FILE.py:FUNCTION|model|table")] = None
    """Toward what: a function from a list of designs to numbers (None or NaN = infeasible), or the task's own."""
    fix: tyro.conf.UseAppendAction[Annotated[tuple[str, ...], tyro.conf.arg(metavar="POSITION:LETTERS")]] = ()
    """Hold letters fixed, e.g. 10:ATG; the first position is 1."""
    data: Path | None = None
    """Own CSV, FASTA or Parquet file in place of the task's data (table reward, novelty)."""
    models: Path | None = None
    """Folder with own denoiser, reward and judge (see `difftilt pretrain`) in place of the shipped ones."""
    steps_per_sample: int | None = None
    """Steps K of the chain; the model's own when not set."""
    designs: int = 1000
    """Designs drawn, before and after, for the evaluation."""
    log_z_samples: int | None = None
    """Reward calls of the independent estimate of log Z; 8192, but 0 for a function, when not set."""
    threads: int = 1
    """Threads of torch; 2 save time on idle cores only. A run repeats its numbers with the same number."""
    device: str | None = None
    """cpu or cuda; a GPU is used when there is one."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the run is kept, and what it starts from."""

    run: Path | None = None
    """Folder of the run; runs/TASK-ALGORITHM-1, -2, ... when not set."""
    resume: Path | None = None
    """Folder of an interrupted run: continue it with its own settings."""
    config: Path | None = None
    """TOML file with tables settings and algorithm, e.g. the config.toml of another run; flags win over it."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All settings of a run."""

    settings: Settings
    algorithm: Any
    loop: LoopConfig
    place: Place = field(default_factory=Place)

    def tables(self) -> dict[str, dict[str, Any]]:
        """The settings as the tables of ``config.toml``, paths from the root: a run can be resumed from any folder."""
        settings = dataclasses.asdict(_anchored(self.settings)) | dataclasses.asdict(self.loop)
        return {"settings": settings, "algorithm": dataclasses.asdict(self.algorithm)}


def plan_from(argv: Sequence[str]) -> Plan:
    """The plan of a ``difftilt finetune`` command line.

    Raises:
        ConfigError: it makes no sense; see the message.
    """
    resume, file = flags.value_of(argv, "resume"), flags.value_of(argv, "config")
    if resume is not None and file is not None:
        raise ConfigError("expected --resume or --config; got both; a resumed run has its own config.toml")
    source = None if file is None else Path(file)
    if resume is not None:
        source = RunFolder.existing(Path(resume)).config
    name = flags.value_of(argv, "algorithm") if resume is None else None
    base = _from_tables({} if source is None else read_toml(source), name, str(source))
    given = flags.given(argv)
    if resume is None:
        base = _yield_to(base, given)
    plan = _parse(argv, base)
    if resume is not None:
        _refuse_changes(base, plan)
    check_ranges(plan)
    return plan


def _anchored(settings: Settings) -> Settings:
    """The same with paths from the root."""
    reward = settings.reward
    if reward is not None and ":" in reward:
        path, _, function = reward.rpartition(":")
        reward = f"{Path(path).resolve()}:{function}"
    data, models = (None if path is None else path.resolve() for path in (settings.data, settings.models))
    return dataclasses.replace(settings, reward=reward, data=data, models=models)


def _from_tables(stored: Mapping[str, Any], name: str | None, where: str) -> Plan:
    """Defaults with the tables of a file over them; ``name`` is the algorithm asked for on the command line."""
    for key in stored:
        if key not in (*TABLES, *FACTS):
            if not isinstance(stored[key], dict):
                raise ConfigError(
                    f"expected tables {', '.join(TABLES)} in '{where}'; got the key '{key}' outside of them; "
                    "put it under one"
                )
            raise nearest(key, TABLES, what=f"table in '{where}'")
    tables: dict[str, Any] = {key: stored.get(key, {}) for key in TABLES}
    for key, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(
                f"expected a table [{key}] in '{where}'; got {table!r}; write [{key}] and its keys below it"
            )
    place = f"[settings] of '{where}'"
    own, loop = ({field.name for field in dataclasses.fields(kind)} for kind in (Settings, LoopConfig))
    for key in tables["settings"]:
        if key not in own | loop:
            raise nearest(key, own | loop, what=f"setting in {place}")
    part = {key: value for key, value in tables["settings"].items() if key in own}
    settings = from_mapping(Settings, part, where=place)
    if name is not None and _canonical(name) != _canonical(settings.algorithm):  # another method has other settings
        tables["algorithm"] = {key: value for key, value in tables["algorithm"].items() if key == "alpha"}
    settings = dataclasses.replace(settings, algorithm=_canonical(name or settings.algorithm))
    kind = build.algorithm(settings.algorithm)
    return Plan(
        settings=settings,
        algorithm=from_mapping(kind, tables["algorithm"], where=f"[algorithm] of '{where}' for {settings.algorithm}"),
        loop=from_mapping(LoopConfig, {k: v for k, v in tables["settings"].items() if k in loop}, where=place),
    )


def _canonical(algorithm: str) -> str:
    return algorithm.replace("-", "_").lower()


def _yield_to(base: Plan, given: set[str]) -> Plan:
    """Drop what flags are about to replace as a whole: positions held fixed, and a KL budget for an alpha."""
    if {"alpha", "kl_budget"} <= given:
        raise ConfigError("expected --alpha or --kl-budget; got both; leave out one: a budget finds its own alpha")
    if "fix" in given:
        base = dataclasses.replace(base, settings=dataclasses.replace(base.settings, fix=()))
    if "alpha" in given:
        base = dataclasses.replace(base, loop=dataclasses.replace(base.loop, kl_budget=None))
    return base


def _parse(argv: Sequence[str], base: Plan) -> Plan:
    """Flags over ``base``."""
    name = base.settings.algorithm
    parts = {
        "settings": base.settings,
        name: _unchecked(base.algorithm),
        "loop": _unchecked(base.loop),
        "place": base.place,
    }
    kind = dataclasses.make_dataclass("Finetune", [(part, type(value)) for part, value in parts.items()], frozen=True)
    parsed: Any = flags.parse(
        kind,
        argv,
        command=COMMAND if name == "ppo" else f"{COMMAND} --algorithm {name}",
        summary="Tilt a pretrained model toward a reward. With --algorithm NAME --help: the flags of that method.",
        default=kind(**parts),
        foreign=_foreign(name),
    )
    return Plan(
        settings=dataclasses.replace(parsed.settings, algorithm=_canonical(parsed.settings.algorithm)),
        algorithm=type(base.algorithm)(**dataclasses.asdict(getattr(parsed, name))),
        loop=LoopConfig(**dataclasses.asdict(parsed.loop)),
        place=parsed.place,
    )


def _unchecked(config: Any) -> Any:
    """The same settings in a subclass without checks: `tyro` would wrap the error of a check in a box."""
    kind = type(config)
    bare = type(kind.__name__, (kind,), {"__post_init__": lambda self: None, "__doc__": kind.__doc__})
    return bare(**dataclasses.asdict(config))


def _foreign(own: str) -> dict[str, str]:
    """Flags of the other algorithms."""
    others = {name: kind for name, kind in build.ALGORITHMS.items() if name != own}
    return {flag.names[0]: f"--algorithm {name}" for name, kind in others.items() for flag in flags.flags_of(kind)}


def _refuse_changes(stored: Plan, asked: Plan) -> None:
    """A resumed run keeps its settings."""
    before, after = stored.tables(), asked.tables()
    for table, old in before.items():
        new = after[table]
        for name in old:
            same = set(old[name]) == set(new[name]) if name == "fix" else old[name] == new[name]
            if not same:
                flag = name if name == "task" else "--" + name.replace("_", "-")
                raise ConfigError(
                    f"expected the run's own {flag} {old[name]}; got {new[name]}; leave it out, or start a new run"
                )
    if asked.place.run is not None and asked.place.run.resolve() != Path(str(asked.place.resume)).resolve():
        raise ConfigError("expected --run or --resume; got both; a resumed run stays in its folder")


def check_ranges(plan: Plan) -> None:
    """Numbers that no method can use.

    Raises:
        ConfigError: one of them.
    """
    if not plan.settings.task:
        raise ConfigError(f"expected a task; got none; for example `{COMMAND} utr-mrl`, see `difftilt list`")
    for values in plan.tables().values():
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or name == "seed":
                continue
            zero = name in ("feasibility_weight", "log_z_samples", "final_learning_rate", *SHARES)
            if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
                least = "0 or more" if zero else "more than 0"
                raise ConfigError(f"expected {least} for {_flag(name)}; got {value}; correct it")
    batch, parts = (getattr(plan.algorithm, name, None) for name in ("batch", "minibatches"))
    if batch is not None and batch < 2:
        raise ConfigError(f"expected --batch 2 or more; got {batch}; advantages compare the designs of a batch")
    if batch is not None and parts is not None and parts > batch:
        raise ConfigError(f"expected at most as many --minibatches as --batch {batch}; got {parts}; lower it")
    if plan.settings.designs < 2:
        raise ConfigError(f"expected --designs 2 or more; got {plan.settings.designs}; intervals need more than one")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
