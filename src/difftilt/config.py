"""Settings: frozen dataclasses to TOML and back.

``defaults < TOML file < flags``; the resolved settings of a run are written back as TOML and can be fed in again.
Nested dataclasses are TOML tables; a field that is ``None`` is left out.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from difftilt.errors import ConfigError, nearest

T = TypeVar("T")


def to_toml(config: Any) -> str:
    """TOML text of a dataclass instance or a mapping; ``None`` values are left out."""
    table = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else dict(config)
    return tomli_w.dumps(_without_none(table))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(entry) for key, entry in value.items() if entry is not None}
    return str(value) if isinstance(value, Path) else value


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: no such file, or not TOML (with the line).
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"expected a settings file '{path}'; got no such file; check the path") from error
    except OSError as error:
        raise ConfigError(f"expected a settings file '{path}'; got '{error.strerror}'; check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"expected TOML in '{path}'; got {error}; correct that line") from error


def from_mapping(kind: type[T], values: Mapping[str, Any], *, where: str = "settings") -> T:
    """Build a (possibly nested) dataclass from plain values.

    Raises:
        ConfigError: an unknown key (with the nearest valid one) or a value of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}  # ty: ignore[invalid-argument-type]
    hints = typing.get_type_hints(kind)
    arguments = {}
    for key, value in values.items():
        if key not in fields:
            raise nearest(key, fields, what=f"setting in {where}")
        arguments[key] = convert(hints[key], value, f"{where}.{key}")
    return kind(**arguments)


def convert(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the type ``hint`` has it, for the setting ``where``.

    Raises:
        ConfigError: it is of another type.
    """
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_mapping(hint, value, where=where)
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if origin is Path and isinstance(value, str):
            return Path(value)
        if origin is tuple and isinstance(value, list):
            return tuple(value)
        if isinstance(origin, type) and isinstance(value, origin) and not (origin is int and isinstance(value, bool)):
            return value
    expected = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    expected = expected.replace("NoneType", "None")
    raise ConfigError(f"expected {expected} for {where}; got {value!r}; correct it")
