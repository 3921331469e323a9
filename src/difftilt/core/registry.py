"""Names of the parts that a model folder's ``config.json`` may mention.

A class registers itself where it is defined (``@register("denoiser", "transformer")``); loading a folder looks the
name up here, so nothing is ever unpickled or imported by a path from a file. User code may register its own parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from difftilt.errors import ConfigError, nearest

_PARTS: dict[str, dict[str, type]] = {}
T = TypeVar("T", bound=type)


def register(kind: str, name: str) -> Callable[[T], T]:
    """Class decorator: make a class known as ``name`` among the parts of ``kind``.

    Args:
        kind: ``"process"``, ``"denoiser"``, ``"codec"``, ``"regressor"``.
        name: what ``config.json`` says.
    """

    def add(cls: T) -> T:
        _PARTS.setdefault(kind, {})[name] = cls
        cls.registered_name = name  # ty: ignore[missing-attribute]
        return cls

    return add


def lookup(kind: str, name: str) -> type:
    """The class registered as ``name``; raises :class:`~difftilt.errors.ConfigError` with the nearest known name."""
    known = _PARTS.get(kind, {})
    if name not in known:
        raise nearest(name, known, what=kind)
    return known[name]


def describe(part: object) -> dict[str, object]:
    """``{"type": name, **constructor arguments}`` of a registered object that has ``config()``.

    Raises:
        ConfigError: its class is not registered (a subclass does not inherit its parent's name).
    """
    name = vars(type(part)).get("registered_name")
    if name is None:
        raise ConfigError(
            f"expected a registered part; got {type(part).__name__}; decorate the class with @register(kind, name)"
        )
    return {"type": name, **part.config()}  # ty: ignore


def construct(kind: str, spec: dict[str, Any]) -> Any:
    """The inverse of :func:`describe`."""
    arguments = dict(spec)
    return lookup(kind, str(arguments.pop("type")))(**arguments)
