"""Errors a user can act on.

Every message follows one grammar, on one line: what was expected; what came; what to do. Each error is also
the nearest builtin, so ``except ValueError`` in user code keeps working. ``assert`` is for our own bugs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DiffTiltError(Exception):
    """Base of every error raised on purpose by the library; the command line exits with status 2 on it."""


class ConfigError(DiffTiltError, ValueError):
    """A setting, name or flag is not one we know, or out of its range."""


class ShapeError(DiffTiltError, ValueError):
    """A tensor has the wrong shape, type or batch size."""


class NoDensityError(DiffTiltError, ValueError):
    """A log-probability was asked of a deterministic step."""


class UnsupportedError(DiffTiltError, NotImplementedError):
    """The combination is not defined mathematically (not merely unwritten)."""


class OracleError(DiffTiltError, RuntimeError):
    """A reward function failed for every design, or broke its contract."""


class StateError(DiffTiltError, RuntimeError):
    """A run, checkpoint or model folder is missing, truncated or does not match."""


class DataError(DiffTiltError, ValueError):
    """A data file is missing, malformed or has the wrong columns."""


def supported(name: str, known: Iterable[str], *, what: str, remedy: str) -> str:
    """``name``, which is one of those known.

    Args:
        name: what came.
        known: all that are supported.
        what: the noun for the message, e.g. ``"a scheduler"``.
        remedy: what to do in place of it.

    Raises:
        UnsupportedError: it is none of them; they are named.
    """
    names = tuple(known)
    if name not in names:
        raise UnsupportedError(f"expected {what} {', '.join(names)}; got {name}; {remedy}")
    return name


def nearest(name: str, known: Iterable[str], *, what: str) -> ConfigError:
    """A ``ConfigError`` for an unknown name that proposes the closest known one.

    Args:
        name: what the user typed.
        known: the valid names.
        what: the noun for the message, e.g. ``"task"``.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'?" if close else f"choose one of: {', '.join(names)}"
    return ConfigError(f"expected a known {what}; got '{name}'; {hint}")
