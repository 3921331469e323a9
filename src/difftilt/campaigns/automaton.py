r"""Which letters can still be shown, so that a design keeps its constraints: exact look-ahead by an automaton.

An Aho-Corasick automaton reads a design from left to right; its states ``q`` are the beginnings of forbidden words
that the letters read so far end in. :math:`\delta_v(q)` is the state after letter ``v``, and words are never completed.
Of a prefix, ``c`` counts the letters G and C, and ``d`` those that differ from the parent. A design is allowed iff

.. math:: \text{no forbidden word}, \qquad c_{min} \le c \le c_{max}, \qquad d \le d_{max}                  \qquad (1)

Of a state :math:`x_t` with some letters shown, let :math:`F_l(q, c, d)` say whether letters for its masked positions
before ``l`` lead there, and :math:`A_l(q, c, d)` whether letters for those from ``l`` on lead to (1):

.. math::
    F_{l+1}(q', c', d') &= \bigvee_{v \in x_l,\; \delta_v(q) = q'} F_l(q, c' - g_v, d' - [v \ne \text{parent}_l]) \\
    A_l(q, c, d) &= \bigvee_{v \in x_l} A_{l+1}(\delta_v(q), c + g_v, d + [v \ne \text{parent}_l])          \qquad (2)

Letter ``v`` can be shown at ``l`` iff some :math:`F_l(q, c, d)` and :math:`A_{l+1}` after it both hold: iff a design
that keeps (1) has it there, and all letters shown.

The counts ``c`` are the bits of an integer, so that a shift adds a letter; an *or* over the states that lead to another
is taken pairwise.

References:
    Aho & Corasick 1975, https://doi.org/10.1145/360825.360855.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from difftilt.errors import ConfigError
from difftilt.types import Bool, Int, Tensor

BITS = 61
"""Counts that an integer holds."""


class Automaton:
    """Equations (1) and (2) for designs of one length.

    Args:
        words: forbidden, as tokens.
        length: positions ``L``.
        vocabulary: letters ``V``.
        counted: letters ``g_v = 1`` counts.
        most: largest count; ``length`` for none.
        least: smallest count.
        parent: tokens to stay close to.
        mutations: :math:`d_{max}`.

    Raises:
        ConfigError: no design keeps (1), or counts beyond :data:`BITS`.
    """

    def __init__(
        self,
        words: Sequence[Sequence[int]],
        length: int,
        vocabulary: int,
        *,
        counted: Sequence[int] = (),
        least: int = 0,
        most: int | None = None,
        parent: Int[Tensor, " L"] | None = None,
        mutations: int = 0,
    ) -> None:
        most = length if most is None else most
        self.length, self.vocabulary = length, vocabulary
        counts = bool(counted) and (least > 0 or most < length)
        self.gain = [int(counts and v in counted) for v in range(vocabulary)]
        if counts and most > BITS:  # of few of the others there are many of these
            self.gain = [1 - gain for gain in self.gain]
            least, most = length - min(most, length), length - least
        if counts and most > BITS:
            raise ConfigError(f"expected a bound on counts of at most {BITS} letters; got {most}; narrow the range")
        self.within = (1 << (most + 1)) - (1 << least) if counts else 1
        self.kept = (1 << (most + 1)) - 1 if counts else 1
        self.parent, self.mutations = parent, mutations if parent is not None else 0
        self.after = _goto(words, vocabulary)  # [V, Q], -1 where a word would be complete
        self._rounds, self._first = _pairs(self.after)
        self._known: tuple[Tensor, Tensor] | None = None

    def __deepcopy__(self, memo: object) -> Automaton:
        """It never changes: copies of a policy share it, and what it found last."""
        return self

    def allowed(self, x_t: Int[Tensor, "B L"]) -> Bool[Tensor, "B L V"]:
        """Letters that can stand at each position; all ``False`` where the letters shown cannot be completed."""
        if self._known is None or not torch.equal(self._known[0], x_t):
            self._known = x_t.clone(), self._allowed(x_t)
        return self._known[1]

    def keeps(self, x_0: Int[Tensor, "B L"]) -> Bool[Tensor, " B"]:
        """Whether finished designs keep (1)."""
        return self.allowed(x_0).any(-1).all(-1)

    def _allowed(self, x_t: Int[Tensor, "B L"]) -> Bool[Tensor, "B L V"]:
        mask = self.vocabulary
        open_ = (x_t[..., None] == torch.arange(mask, device=x_t.device)) | (x_t == mask)[..., None]
        states = self.after.shape[1]
        ends = x_t.new_full((len(x_t), states, self.mutations + 1), self.within)
        completed = [ends]
        for place in reversed(range(self.length)):
            ways = [self._before(completed[-1], place, v, open_) for v in range(mask)]
            completed.append(_any(ways))
        completed.reverse()
        begun = torch.zeros_like(ends)
        begun[:, 0, 0] = 1
        found = []
        for place in range(self.length):
            reach = [self._step(begun, place, v) for v in range(mask)]
            found.append(torch.stack([
                ((way & self._at(completed[place + 1], v)) != 0).flatten(1).any(1) for v, way in enumerate(reach)
            ], dim=1) & open_[:, place])  # fmt: skip
            begun = self._merge([way * open_[:, place, v, None, None] for v, way in enumerate(reach)])
        return torch.stack(found, dim=1)

    def _step(self, begun: Tensor, place: int, v: int) -> Tensor:
        """Counts of prefixes after ``v``, still at the states before it."""
        way = (begun << self.gain[v]) & self.kept
        return _later(way) if self._differs(place, v) else way

    def _at(self, completed: Tensor, v: int) -> Tensor:
        """What holds at the states to which ``v`` leads; 0 where it completes a word."""
        after = self.after[v].to(completed.device)
        return completed[:, after.clamp(min=0)] * (after >= 0)[:, None]

    def _before(self, completed: Tensor, place: int, v: int, open_: Tensor) -> Tensor:
        way = self._at(completed, v) >> self.gain[v]
        way = _earlier(way) if self._differs(place, v) else way
        return way * open_[:, place, v, None, None]

    def _merge(self, ways: list[Tensor]) -> Tensor:
        """The *or* over all states and letters that lead to each state."""
        flat = torch.cat([*ways, torch.zeros_like(ways[0][:, :1])], dim=1)[:, self._first]
        for left, right in self._rounds:
            flat = flat[:, left] | flat[:, right]
        return flat

    def _differs(self, place: int, v: int) -> bool:
        return self.parent is not None and int(self.parent[place]) != v


def _later(way: Tensor) -> Tensor:
    """One mutation more."""
    return torch.cat([torch.zeros_like(way[..., :1]), way[..., :-1]], dim=-1)


def _earlier(way: Tensor) -> Tensor:
    """One mutation fewer."""
    return torch.cat([way[..., 1:], torch.zeros_like(way[..., :1])], dim=-1)


def _any(ways: list[Tensor]) -> Tensor:
    total = ways[0]
    for way in ways[1:]:
        total = total | way
    return total


def _goto(words: Sequence[Sequence[int]], vocabulary: int) -> Int[Tensor, "V Q"]:
    """Transitions of the automaton; -1 where a word would be complete."""
    forbidden = {tuple(word) for word in words}
    prefixes = sorted(
        {word[:k] for word in forbidden for k in range(len(word))} | {()}, key=lambda word: (len(word), word)
    )
    number = {prefix: q for q, prefix in enumerate(prefixes)}
    table = torch.full((vocabulary, len(prefixes)), -1)
    for prefix, q in number.items():
        for v in range(vocabulary):
            read = (*prefix, v)
            if not any(read[k:] in forbidden for k in range(len(read))):
                table[v, q] = next(number[read[k:]] for k in range(len(read) + 1) if read[k:] in number)
    return table


def _pairs(after: Int[Tensor, "V Q"]) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Edges by target, and which of them are joined in each round until one is left for each state."""
    vocabulary, states = after.shape
    none = vocabulary * states
    groups = [[v * states + q for v in range(vocabulary) for q in range(states) if after[v, q] == target] or [none]
              for target in range(states)]  # fmt: skip
    first = torch.tensor([edge for group in groups for edge in group])
    sizes, rounds = [len(group) for group in groups], []
    while max(sizes) > 1:
        left, right, start = [], [], 0
        for size in sizes:
            for i in range(0, size, 2):
                left.append(start + i)
                right.append(start + min(i + 1, size - 1))
            start += size
        rounds.append((torch.tensor(left), torch.tensor(right)))
        sizes = [(size + 1) // 2 for size in sizes]
    return rounds, first
