"""Settings of a run: defaults < TOML file < flags, and the ``config.toml`` that comes of it.

A run tunes a model with an algorithm or steers it with a sampler: :class:`Kind` says which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro

from difftilt.cli import flags
from difftilt.config import from_mapping, read_toml
from difftilt.errors import ConfigError, nearest
from difftilt.rewards.spec import terms, written
from difftilt.tracking.run import RunFolder

FACTS = ("task", "provenance")
"""Tables of a run's ``config.toml`` that people and the report read; they are no settings."""


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """What is tilted, toward what, and how it is measured."""

    task: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="TASK")]] = ""
    """What to tilt: a task of `difftilt list`."""
    reward: Annotated[str | None, tyro.conf.arg(metavar="FILE.py:FUNCTION|NAME|SUM")] = None
    """Toward what: a function from a list of designs to numbers (None or NaN = infeasible), a reward of the task (see
    `difftilt list`), or a weighted sum of such: qed,-0.1*sa_score. The task's own when not set."""
    require: tyro.conf.UseAppendAction[Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME>=NUMBER")]] = ()
    """Bounds that designs must meet, e.g. "sa_score<=3"; what misses one is infeasible."""
    fix: tyro.conf.UseAppendAction[Annotated[tuple[str, ...], tyro.conf.arg(metavar="POSITION:LETTERS")]] = ()
    """Hold letters fixed, e.g. 10:ATG; the first position is 1."""
    motif: tyro.conf.UseAppendAction[Annotated[tuple[str, ...], tyro.conf.arg(metavar="IUPAC")]] = ()
    """Count this motif in the designs too, e.g. TGAYTCA, on the strands that the task says; tasks of DNA and RNA."""
    process: str | None = None
    """Which of the task's pretrained models, by the name of its diffusion, e.g. simplex for utr-mrl; its first when not
    set."""
    data: Path | None = None
    """Own CSV, FASTA or Parquet file in place of the task's data (table reward, novelty)."""
    skip_invalid: bool = False
    """Leave out designs of that file that cannot be read, where the default is an error that names them."""
    models: Path | None = None
    """Folder with own denoiser, reward and judge (see `difftilt pretrain`) in place of the shipped ones."""
    steps_per_sample: int | None = None
    """Steps K of the chain; the model's own when not set."""
    designs: Annotated[int, flags.short("-n")] = 1000
    """Designs that are evaluated; as many of the pretrained model are drawn to compare with."""
    log_z_samples: int | None = None
    """Reward calls of the independent estimate of log Z; 8192, but 0 for a function, when not set."""
    workers: int = 1
    """Processes that score designs with a function, or a reward that is computed (QED, JPEG size)."""
    timeout: float | None = None
    """Seconds that a function may take for one design; beyond, or if it takes its process down, the design is
    infeasible. No limit when not set."""
    threads: int = 1
    """Threads of torch; 2 save time on idle cores only. A run repeats its numbers with the same number."""
    device: str | None = None
    """cpu or cuda; a GPU is used when there is one."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the run is kept, and what it starts from."""

    run: Path | None = None
    """Folder of the run; runs/TASK-METHOD-1, -2, ... when not set."""
    resume: Path | None = None
    """Folder of an interrupted run: continue it with its own settings."""
    config: Path | None = None
    """TOML file with settings, e.g. the config.toml of another run; flags win over it."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A command that makes runs."""

    command: str
    """E.g. ``"difftilt finetune"``."""
    role: str
    """``"algorithm"`` or ``"sampler"``: the setting that names the method, and the table of its own settings."""
    methods: Mapping[str, Any]
    """Names to settings."""
    method: Callable[[str], Any]
    """The same, with an error for an unknown name."""
    frugal: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Defaults of this command for a method, where they differ from the method's own."""
    settings: type[JobSettings]
    """Has a field called ``role``."""
    loop: Any
    """Settings around the method; has ``seed``."""
    summary: Callable[[str], str]
    """First lines of the help text for a method."""

    def canonical(self, name: str) -> str:
        """``best-of-n`` is ``best_of_n``."""
        return name.replace("-", "_").lower()

    def named(self, settings: JobSettings) -> str:
        """Name of the method."""
        return self.canonical(getattr(settings, self.role))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All settings of a run."""

    kind: Kind
    settings: Any
    """Of ``kind.settings``."""
    method: Any
    """The algorithm or sampler."""
    loop: Any
    """Of ``kind.loop``."""
    place: Place = field(default_factory=Place)
    filed: frozenset[str] = frozenset()
    """Settings of the method that a file gives."""

    @property
    def name(self) -> str:
        """Name of the method."""
        return self.kind.named(self.settings)

    def tables(self) -> dict[str, dict[str, Any]]:
        """The settings as the tables of ``config.toml``, paths from the root: a run can be resumed from any folder."""
        settings = dataclasses.asdict(_anchored(self.settings)) | dataclasses.asdict(self.loop)
        return {"settings": settings, self.kind.role: dataclasses.asdict(self.method)}


def read_plan(kind: Kind, argv: Sequence[str], yield_to: Callable[[Plan, set[str]], Plan]) -> tuple[Plan, Plan]:
    """The plan as a file or the defaults have it, and with the flags over it; ranges are not checked.

    Args:
        kind: the command.
        argv: the arguments after it.
        yield_to: drops from the file's settings what the given flags are about to replace.

    Raises:
        ConfigError: it makes no sense; see the message.
    """
    resume, file = flags.value_of(argv, "resume"), flags.value_of(argv, "config")
    if resume is not None and file is not None:
        raise ConfigError("expected --resume or --config; got both; a resumed run has its own config.toml")
    source = None if file is None else Path(file)
    if resume is not None:
        source = RunFolder.existing(Path(resume)).config
    name = flags.value_of(argv, kind.role) if resume is None else None
    base = _from_tables(kind, {} if source is None else read_toml(source), name, str(source))
    given = flags.given(argv)
    if resume is None:
        for name in given & {"fix", "require"}:
            base = dataclasses.replace(base, settings=dataclasses.replace(base.settings, **{name: ()}))
        base = yield_to(base, given)
    return base, _parse(argv, base)


def _anchored(settings: JobSettings) -> JobSettings:
    """The same with paths from the root."""
    reward = settings.reward
    if reward is not None and ":" in reward:
        reward = written([term._replace(name=_rooted(term.name)) for term in terms(reward)])
    require = tuple(_rooted(text) if ":" in text else text for text in settings.require)
    data, models = (None if path is None else path.resolve() for path in (settings.data, settings.models))
    return dataclasses.replace(settings, reward=reward, require=require, data=data, models=models)


def _rooted(name: str) -> str:
    """``FILE.py:FUNCTION``, or a bound of it, with the path from the root."""
    path, colon, function = name.rpartition(":")
    return f"{Path(path).resolve()}:{function}" if colon else name


def _from_tables(kind: Kind, stored: Mapping[str, Any], name: str | None, where: str) -> Plan:
    """Defaults with the tables of a file over them; ``name`` is the method asked for on the command line."""
    known, role = ("settings", kind.role), kind.role
    for key in stored:
        if key not in (*known, *FACTS):
            if not isinstance(stored[key], dict):
                raise ConfigError(
                    f"expected tables {', '.join(known)} in '{where}'; got the key '{key}' outside of them; "
                    "put it under one"
                )
            if key in ("algorithm", "sampler"):
                raise ConfigError(
                    f"expected settings of `{kind.command}` in '{where}'; got a table [{key}], of a run that another "
                    f"command made; use that command, or a file with [{role}]"
                )
            raise nearest(key, known, what=f"table in '{where}'")
    tables: dict[str, Any] = {key: stored.get(key, {}) for key in known}
    for key, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(
                f"expected a table [{key}] in '{where}'; got {table!r}; write [{key}] and its keys below it"
            )
    place = f"[settings] of '{where}'"
    own, loop = ({field.name for field in dataclasses.fields(part)} for part in (kind.settings, kind.loop))
    for key in tables["settings"]:
        if key not in own | loop:
            raise nearest(key, own | loop, what=f"setting in {place}")
    part = {key: value for key, value in tables["settings"].items() if key in own}
    settings = from_mapping(kind.settings, part, where=place)
    chosen = kind.canonical(name) if name is not None else kind.named(settings)
    method = kind.method(chosen)
    if chosen != kind.named(settings):  # another method has other settings
        shared = {"alpha"} & {field.name for field in dataclasses.fields(method)}
        tables[role] = {key: value for key, value in tables[role].items() if key in shared}
    own_settings = {**kind.frugal.get(chosen, {}), **tables[role]}
    return Plan(
        kind=kind,
        settings=dataclasses.replace(settings, **{role: chosen}),
        method=from_mapping(method, own_settings, where=f"[{role}] of '{where}' for {chosen}"),
        loop=from_mapping(kind.loop, {k: v for k, v in tables["settings"].items() if k in loop}, where=place),
        filed=frozenset(tables[role]),
    )


def _parse(argv: Sequence[str], base: Plan) -> Plan:
    """Flags over ``base``."""
    kind, name = base.kind, base.name
    parts = {
        "settings": base.settings,
        name: _unchecked(base.method),
        "loop": _unchecked(base.loop),
        "place": base.place,
    }
    whole = dataclasses.make_dataclass("Run", [(part, type(value)) for part, value in parts.items()], frozen=True)
    first = kind.named(kind.settings())
    parsed: Any = flags.parse(
        whole,
        argv,
        command=kind.command if name == first else f"{kind.command} --{kind.role} {name}",
        summary=kind.summary(name),
        default=whole(**parts),
        foreign=_foreign(kind, name),
    )
    chosen = kind.named(parsed.settings)
    return dataclasses.replace(
        base,
        settings=dataclasses.replace(parsed.settings, **{kind.role: chosen}),
        method=type(base.method)(**_values(getattr(parsed, name))),
        loop=kind.loop(**_values(parsed.loop)),
        place=parsed.place,
    )


def _unchecked(config: Any) -> Any:
    """The same settings in a subclass without checks, whose errors `tyro` would wrap in a box, and with flags only."""
    kind = type(config)
    hints = get_type_hints(kind)
    fixed = {name: tyro.conf.Fixed[Any] for name in _values(config) if not flags.writable(hints[name])}
    body = {"__post_init__": lambda self: None, "__doc__": kind.__doc__, "__annotations__": fixed}
    return type(kind.__name__, (kind,), body)(**_values(config))


def _values(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _foreign(kind: Kind, own: str) -> dict[str, str]:
    """Flags of the other methods, and whose they are."""
    owners: dict[str, list[str]] = {}
    for name, method in kind.methods.items():
        for flag in () if name == own else flags.flags_of(method):
            owners.setdefault(flag.names[0], []).append(name)
    return {
        flag: f"--{kind.role} {', '.join(names[:3])}" + (f" or {len(names) - 3} more" if len(names) > 3 else "")
        for flag, names in owners.items()
    }
