"""SELFIES in words: its symbols, and runs of symbols that stand together so often that they are one word.

``[C][=C][C][=C][C][=C][Ring1][=Branch1]`` is benzene: eight symbols, which a model that shows two of them a step has
to get right one by one. Joined to one word it is right or absent, states are half as long, and training and sampling
cost half. Words are joined as in byte pair encoding: again and again the pair of neighbours that is most common
becomes a word. Reading is greedy, from the left the longest word that fits, so a molecule is written in one way. What
the words spell is SELFIES either way, and every sequence of them is a molecule.

References:
    Gage 1994, C Users Journal 12, 23; Sennrich et al. 2016, https://arxiv.org/abs/1508.07909.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from difftilt.core.molecules import canonical, chemistry

SAMPLE = 20_000
"""Molecules, evenly spaced in the data, on which neighbours are counted."""
RARE_PAIR = 20
"""A pair that stands together fewer times than this, or than once in 200 molecules, is not joined."""


END = ""
"""Key of a word's number where its symbols end."""


def symbols(selfies: str) -> list[str]:
    """The symbols of a SELFIES text; none where it is not one."""
    package = chemistry("selfies")
    try:
        return list(package.split_selfies(selfies))
    except ValueError:
        return []


def to_symbols(smiles: str) -> list[str] | None:
    """The symbols of a molecule's canonical SMILES; ``None`` where it is invalid, or SELFIES cannot write it."""
    package, whole = chemistry("selfies"), canonical(smiles)
    try:
        return None if whole is None else symbols(package.encoder(whole))
    except package.EncoderError:
        return None


def common(molecules: Iterable[Sequence[str]], *, fewest: int) -> list[str]:
    """Symbols that stand in at least ``fewest`` molecules, the most common first, then by the alphabet."""
    count = Counter(symbol for written in molecules for symbol in set(written))
    return [symbol for symbol, times in sorted(count.items(), key=lambda item: (-item[1], item[0])) if times >= fewest]


def joined(molecules: Sequence[Sequence[str]], alphabet: Sequence[str], joins: int) -> list[str]:
    """The words that ``joins`` rounds of joining the most common pair make, in order; fewer where no pair is common."""
    number = {symbol: place for place, symbol in enumerate(alphabet)}
    chosen = molecules[:: max(1, len(molecules) // SAMPLE)]
    fewest = max(RARE_PAIR, len(chosen) // 200)
    text = np.array([number.get(symbol, -1) for written in chosen for symbol in (*written, "")])  # -1 between molecules
    names = list(alphabet)
    for _ in range(joins):
        left, right = text[:-1], text[1:]
        inside = (left >= 0) & (right >= 0)
        if not inside.any():
            break
        counts = np.bincount(left[inside] * len(names) + right[inside])
        pair = int(counts.argmax())  # of several, the one of the words that came first
        if counts[pair] < fewest:
            break
        first, second = divmod(pair, len(names))
        places = np.flatnonzero((left == first) & (right == second))
        if first == second:
            places = _apart(places)
        text[places] = len(names)
        text = np.delete(text, places + 1)
        names.append(names[first] + names[second])
    return list(dict.fromkeys(names[len(alphabet) :]))


class Reader:
    """Reads symbols as words, from the left the longest that fits.

    Args:
        words: every symbol that they are made of is one of them, or is not read alone.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._root: dict[str, Any] = {}
        for number, word in enumerate(words):
            node = self._root
            for symbol in symbols(word):
                node = node.setdefault(symbol, {})
            node[END] = number

    def read(self, written: Sequence[str]) -> list[int] | str:
        """Numbers of the words; or the symbol at which no word fits."""
        found, place = [], 0
        while place < len(written):
            node, best, end = self._root, None, place
            for ahead in range(place, len(written)):
                node = node.get(written[ahead])
                if node is None:
                    break
                if END in node:
                    best, end = node[END], ahead + 1
            if best is None:
                return written[place]
            found.append(best)
            place = end
        return found


def room_for(lengths: Sequence[int], share: float) -> int:
    """The fewest words that at least ``share`` of the molecules do with, rounded up to a multiple of 4."""
    return math.ceil(sorted(lengths)[math.ceil(share * len(lengths)) - 1] / 4) * 4


def _apart(places: np.ndarray) -> np.ndarray:
    """Places of pairs that do not overlap: of a run, every other one."""
    kept, last = [], -2
    for place in places.tolist():
        if place > last + 1:
            kept.append(place)
            last = place
    return np.array(kept)
