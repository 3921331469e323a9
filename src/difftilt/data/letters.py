"""Designs against an alphabet and a length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from os import PathLike

import numpy as np

from difftilt.errors import DataError
from difftilt.types import Bool

from .table import NAMED, named_rows

NUCLEOTIDES = frozenset("ACGTUN")


def validate(
    sequences: Sequence[str],
    alphabet: str,
    *,
    length: int | None = None,
    path: str | PathLike[str] | None = None,
    lines: np.ndarray | None = None,
) -> list[str]:
    """Designs in the letters of ``alphabet``, all of one length.

    For an alphabet without lower-case letters, lower case is accepted and raised. For nucleotides, ``T`` and ``U``
    are both read and written as the one the alphabet has. Nothing else is changed.

    Args:
        sequences: designs as read.
        alphabet: the letters allowed, e.g. ``"ACGT"``.
        length: letters per design; ``None``: all alike, whatever it is.
        path: the file, for the message.
        lines: the line of each design in that file (:attr:`Table.lines`); ``None``: rows are counted instead, from 1.

    Returns:
        The designs, in the same order.

    Raises:
        DataError: there is no design, one has a letter outside the alphabet, or another length; the place is named.
    """
    prefix = "" if path is None else f"{path}, "
    if not sequences:
        raise DataError(f"{prefix}expected designs; got none; check the file")
    fixed = _spelled(sequences, alphabet)
    hint = "" if path is None else ", or --skip-invalid"
    bad = np.flatnonzero(~_lettered(fixed, alphabet)).tolist()
    if bad:
        first = fixed[bad[0]]
        position = next(i for i, letter in enumerate(first) if letter not in alphabet)
        which = f" of the first of these {len(bad):,} designs" if len(bad) > 1 else ""
        raise DataError(
            f"{prefix}{named_rows(bad, lines)}: expected the letters {alphabet}; got {first[position]!r} at position "
            f"{position + 1}{which}; correct or drop {'them' if len(bad) > 1 else 'it'}{hint}"
        )
    expected = _usual(fixed) if length is None else length
    bad = [index for index, sequence in enumerate(fixed) if len(sequence) != expected]
    if bad:
        whose = " like most of the others" if length is None else ""
        came = ", ".join(str(len(fixed[index])) for index in bad[:NAMED])
        raise DataError(
            f"{prefix}{named_rows(bad, lines)}: expected {expected} letters{whose}; got {came}; trim or drop "
            f"{'them' if len(bad) > 1 else 'it'}{hint}"
        )
    return fixed


def valid(sequences: Sequence[str], alphabet: str) -> Bool[np.ndarray, " N"]:
    """Which designs :func:`validate` takes: those of the letters that are as long as most such designs are."""
    fixed = _spelled(sequences, alphabet)
    lettered = _lettered(fixed, alphabet)
    usual = _usual([design for design, fine in zip(fixed, lettered, strict=True) if fine])
    return lettered & np.array([len(design) == usual for design in fixed], dtype=bool)


def _spelled(sequences: Sequence[str], alphabet: str) -> list[str]:
    """In the alphabet's case, and with its one of T and U."""
    fixed = list(sequences)
    if alphabet == alphabet.upper():
        fixed = [sequence.upper() for sequence in fixed]
    if NUCLEOTIDES.issuperset(alphabet) and ("T" in alphabet) != ("U" in alphabet):
        old, new = ("U", "T") if "T" in alphabet else ("T", "U")
        fixed = [sequence.replace(old, new) for sequence in fixed]
    return fixed


def _lettered(fixed: Sequence[str], alphabet: str) -> Bool[np.ndarray, " N"]:
    allowed = set(alphabet)
    return np.array([allowed.issuperset(sequence) for sequence in fixed], dtype=bool)


def _usual(fixed: Sequence[str]) -> int:
    """The most common length; 0 of none."""
    return Counter(map(len, fixed)).most_common(1)[0][0] if fixed else 0
