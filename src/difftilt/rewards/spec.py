"""Rewards as people write them on a command line: ``qed,-0.1*sa_score``, ``scorer.py:f``; bounds: ``sa_score<=3``.

Terms are separated by commas and summed, each with a weight before a ``*`` where it is not 1; nothing is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from difftilt.errors import ConfigError

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
TERM = re.compile(rf"\s*(?:({NUMBER})\s*\*\s*|([+-]))?\s*([^\s*+-][^*]*?)\s*")
BOUND = re.compile(rf"\s*(.+?)\s*(>=|<=)\s*({NUMBER})\s*")


class Term(NamedTuple):
    """A summand."""

    weight: float
    name: str
    """Of a reward, or ``FILE.py:FUNCTION``."""

    def text(self) -> str:
        """As it is written."""
        return self.name if self.weight == 1 else f"{self.weight!r}*{self.name}"


class Bound(NamedTuple):
    """A requirement."""

    name: str
    sense: str
    value: float


def terms(spec: str) -> list[Term]:
    """The summands of a reward.

    Raises:
        ConfigError: one is empty, or no term.
    """
    found = []
    for text in spec.split(","):
        match = TERM.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"expected terms such as qed or -0.1*sa_score, separated by commas; got '{text.strip()}' in '{spec}'; "
                "correct it"
            )
        weight = float(match[1]) if match[1] else -1.0 if match[2] == "-" else 1.0
        found.append(Term(weight, match[3]))
    return found


def written(summands: Sequence[Term]) -> str:
    """The opposite of :func:`terms`."""
    return ",".join(term.text() for term in summands)


def bound(text: str) -> Bound:
    """A requirement.

    Raises:
        ConfigError: it is none.
    """
    match = BOUND.fullmatch(text)
    if match is None:
        raise ConfigError(f"expected --require NAME>=NUMBER or NAME<=NUMBER; got '{text}'; for example sa_score<=3")
    return Bound(match[1], match[2], float(match[3]))


def short(name: str) -> str:
    """A reward's name for tables: the function of a file, or the name itself."""
    return name.rpartition(":")[2] if ":" in name else name
