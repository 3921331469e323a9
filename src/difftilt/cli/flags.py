"""Flags from dataclasses.

`tyro` turns a dataclass into flags, help text and values. What is wrong with a command line is found here first,
because ``tyro`` reports it in a box, and an error of ours is one line: what was expected; what came; what to do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import tyro

from difftilt.errors import ConfigError, DiffTiltError

T = TypeVar("T")
Foreign: TypeAlias = Mapping[str, str]
"""Flags of another setting, and what they belong to."""
POSITIONAL = tyro.conf.Positional[str].__metadata__[0]
NOUNS = {int: "a whole number", float: "a number", str: "a text", Path: "a path"}


@dataclasses.dataclass(frozen=True)
class Flag:
    """What may stand on a command line."""

    field: str
    """Name of the dataclass field."""
    names: tuple[str, ...]
    """``--learning-rate`` and short forms; the field in capitals for a positional."""
    kinds: tuple[type, ...]
    """Types of one value."""
    positional: bool
    many: bool
    """Whether it may be repeated."""
    required: bool

    @property
    def switch(self) -> bool:
        """Whether it takes no value."""
        return self.kinds == (bool,)


def short(name: str) -> Any:
    """Annotation that gives a flag a short form such as ``-n``."""
    return tyro.conf.arg(aliases=(name,))


def flags_of(kind: type) -> list[Flag]:
    """The flags of a dataclass and of the dataclasses in it."""
    hints = typing.get_type_hints(kind, include_extras=True)
    found: list[Flag] = []
    for field in dataclasses.fields(typing.cast(Any, kind)):
        hint, notes = hints[field.name], ()
        if typing.get_origin(hint) is typing.Annotated:
            notes = hint.__metadata__
            hint = hint.__origin__
        if dataclasses.is_dataclass(hint):
            found += flags_of(typing.cast(type, hint))
            continue
        if not writable(hint):
            continue
        many = typing.get_origin(hint) is tuple
        kinds = _kinds(hint)
        positional = POSITIONAL in notes
        name = field.name.upper() if positional else "--" + field.name.replace("_", "-")
        aliases = tuple(alias for note in notes for alias in getattr(note, "aliases", None) or ())
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        found.append(Flag(field.name, (name, *aliases), kinds, positional, many, required))
    return found


def writable(hint: Any) -> bool:
    """Whether values of a field can stand on a command line; a policy, say, can only be given in Python."""
    return bool({bool, *NOUNS} & set(_kinds(hint)))


def _kinds(hint: Any) -> tuple[type, ...]:
    inside = typing.get_origin(hint) is tuple or isinstance(hint, types.UnionType)
    return tuple(option for option in (typing.get_args(hint) if inside else (hint,)) if isinstance(option, type))


def parse(
    kind: type[T],
    argv: Sequence[str],
    *,
    command: str,
    summary: str,
    default: T | None = None,
    foreign: Foreign | None = None,
) -> T:
    """The dataclass that a command line describes.

    Args:
        kind: the dataclass; nested ones are flattened.
        argv: the arguments after the command.
        command: for messages and help, e.g. ``"difftilt sample"``.
        summary: first line of the help text.
        default: values of flags that are not given.
        foreign: flags that exist elsewhere, and where.

    Raises:
        ConfigError: an unknown flag (with the nearest valid one), a missing or wrong value.
    """
    if not {"-h", "--help"} & set(argv):
        check(kind, argv, command=command, foreign=foreign or {})
    caught = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(caught):
            return typing.cast(Any, tyro.cli)(
                kind,
                args=list(argv),
                prog=command,
                description=summary,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.SuppressFixed),
                **options,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        ours = _ours(stop)
        if ours is not None:
            raise ours from None
        said = " ".join(re.sub(r"[─│╭╮╰╯]+", " ", caught.getvalue()).split())
        raise ConfigError(
            f"expected valid arguments; got '{' '.join(argv)}' ({said:.200}); see {command} --help"
        ) from None


def _ours(error: BaseException | None) -> DiffTiltError | None:
    """The error of a dataclass of ours on whose account ``tyro`` stopped."""
    while error is not None and not isinstance(error, DiffTiltError):
        error = error.__cause__ or error.__context__
    return error


def given(argv: Sequence[str]) -> set[str]:
    """Fields that flags on a command line name; values are not looked at."""
    return {_field(token) for token in argv if token.startswith("--")}


def value_of(argv: Sequence[str], name: str) -> str | None:
    """The last value of the flag ``name``, if it is there: for flags on which the meaning of others depends."""
    value = None
    for i, token in enumerate(argv):
        if token.startswith("--") and _field(token) == name:
            value = token.partition("=")[2] if "=" in token else next(iter(argv[i + 1 : i + 2]), None)
    return None if value is not None and value.startswith("--") else value


def check(kind: type, argv: Sequence[str], *, command: str, foreign: Foreign) -> None:
    """Find what is wrong with a command line; see :func:`parse`."""
    flags = flags_of(kind)
    table = {name: flag for flag in flags if not flag.positional for name in flag.names}
    switches = {f"--no-{flag.field.replace('_', '-')}": flag for flag in flags if flag.switch}
    places = [flag for flag in flags if flag.positional]
    texts: list[str] = []
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        if not _is_flag(token):
            texts.append(token)
            continue
        name, _, inline = token.partition("=")
        name = name.replace("_", "-")
        flag = table.get(name) or switches.get(name)
        if flag is None:
            raise _unknown(name, [*table, "--help"], command, foreign)
        if flag.switch:
            if "=" in token:
                raise ConfigError(f"expected no value after {name}; got '{inline}'; leave it out")
            continue
        if "=" not in token:
            if not rest or _is_flag(rest[0]):
                came = f"'{rest[0]}'" if rest else "nothing"
                raise ConfigError(f"expected {_noun(flag)} after {name}; got {came}; write {name} VALUE")
            inline = rest.pop(0)
        _check_value(flag, name, inline)
    _check_places(places, texts, command)


def _check_places(places: list[Flag], texts: list[str], command: str) -> None:
    usage = " ".join([command, *(flag.names[0] + (" ..." if flag.many else "") for flag in places)])
    if len(texts) > len(places) and not any(flag.many for flag in places):
        raise ConfigError(f"expected `{usage}`; got '{texts[len(places)]}' too; leave it out, or quote what has spaces")
    for flag, text in zip(places, texts, strict=False):
        _check_value(flag, flag.names[0], text)
    missing = [flag.names[0] for flag in places if flag.required][len(texts) :]
    if missing:
        raise ConfigError(f"expected `{usage}`; got no {missing[0]}; see {command} --help")


def _check_value(flag: Flag, name: str, text: str) -> None:
    if text == "None" and type(None) in flag.kinds:
        return
    for kind in flag.kinds:
        try:
            kind(text)
        except (TypeError, ValueError):
            continue
        return
    raise ConfigError(f"expected {_noun(flag)} for {name}; got '{text}'; correct it")


def _noun(flag: Flag) -> str:
    return next(NOUNS[kind] for kind in flag.kinds if kind in NOUNS)


def _unknown(name: str, known: Collection[str], command: str, foreign: Foreign) -> ConfigError:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    far = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    hint = f"did you mean '{close[0]}'?" if close else f"the nearest is '{far[0]}'; see {command} --help"
    if name in foreign:
        hint = f"it needs {foreign[name]}, or {hint}"
    return ConfigError(f"expected a known flag of `{command}`; got '{name}'; {hint}")


def _is_flag(token: str) -> bool:
    return token.startswith("-") and token != "-" and not re.fullmatch(r"-\.?\d.*|-inf|-nan", token)


def _field(token: str) -> str:
    return token.partition("=")[0].lstrip("-").replace("-", "_")
