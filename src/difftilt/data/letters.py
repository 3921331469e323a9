"""Designs against an alphabet and a length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from os import PathLike

import numpy as np

from difftilt.errors import DataError

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

    def place(index: int) -> str:
        return f"{prefix}row {index + 1}" if lines is None else f"{prefix}line {lines[index]}"

    fixed = list(sequences)
    if alphabet == alphabet.upper():
        fixed = [sequence.upper() for sequence in fixed]
    if NUCLEOTIDES.issuperset(alphabet) and ("T" in alphabet) != ("U" in alphabet):
        old, new = ("U", "T") if "T" in alphabet else ("T", "U")
        fixed = [sequence.replace(old, new) for sequence in fixed]

    allowed = set(alphabet)
    for index, sequence in enumerate(fixed):
        if not allowed.issuperset(sequence):
            position = next(i for i, letter in enumerate(sequence) if letter not in allowed)
            raise DataError(
                f"{place(index)}: expected the letters {alphabet}; got {sequence[position]!r} at position "
                f"{position + 1}; correct or drop the design"
            )
    expected = length if length is not None else Counter(map(len, fixed)).most_common(1)[0][0]
    for index, sequence in enumerate(fixed):
        if len(sequence) != expected:
            whose = "" if length is not None else " like most of the others"
            raise DataError(
                f"{place(index)}: expected {expected} letters{whose}; got {len(sequence)}; trim or drop the design"
            )
    return fixed
