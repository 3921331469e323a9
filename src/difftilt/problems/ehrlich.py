r"""Ehrlich functions: sequence design with motifs, epistasis and infeasible designs, whose best value is known.

A random transition matrix ``A`` over ``V`` letters, in which some transitions are banned (probability 0), makes

.. math:: F = \{ x : A[x^l, x^{l+1}] > 0 \text{ for all } l \}                                               \qquad (1)

the feasible designs of length ``L``. There are ``c`` motifs :math:`a^{(i)}` of ``k`` letters with spacings
:math:`0 = s^{(i)}_1 < \dots < s^{(i)}_k < \lfloor L / c \rfloor`, and

.. math::
    h_q(x, a, s) &= \max_l \Big\lfloor \tfrac{q}{k} \sum_j 1[x^{l + s_j} = a_j] \Big\rfloor \Big/ q        \qquad (2) \\
    f(x) &= \prod_{i=1}^{c} h_q(x, a^{(i)}, s^{(i)}) \text{ on } F, \quad \text{infeasible (NaN) elsewhere} \qquad (3)

so that every motif has to be there, at least in part, for any reward at all, and the quantisation ``q`` says how many
letters more are needed before the reward moves. The largest value is 1. A design that has it: the motifs are cut from
one path of ``c k`` steps that ``A`` allows, and no transition from a letter to itself is banned, so each letter of a
motif is repeated until its next letter is due, and the last one until the next motif begins.

Differs from the paper in: how ``A`` is drawn. Each row bans a share of the letters, at random, never the letter
itself nor its successor on a random cycle through all letters, so that every letter can be reached; the others have
the softmax of standard normal logits. The motifs' path visits no letter twice where ``c k <= V``, and repeats none in
a motif where it can be helped. Infeasible is NaN, not minus infinity.

References:
    Stanton et al. 2024, https://arxiv.org/abs/2407.00236, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from difftilt.core.codec import TokenCodec
from difftilt.errors import ConfigError
from difftilt.types import Bool, Float, Int, Tensor

LETTERS = "ACGTEFHIKLMNPQRSVWYDBJOUXZ012345"
"""Four of them are DNA, twenty the amino acids."""


@dataclass(frozen=True, kw_only=True)
class EhrlichSettings:
    """Of one function."""

    letters: int = 32
    """``V``, 2 to 32."""
    length: int = 32
    """``L``; at least ``motifs * motif_length``."""
    motifs: int = 4
    """``c``, 1 or more."""
    motif_length: int = 4
    """``k``, 2 or more."""
    quantisation: int = 4
    """``q``, 1 (all or nothing) to ``k`` (every letter counts)."""
    banned: float = 0.25
    """Share of each letter's transitions that are banned, 0 to 1; at most ``V - 2`` of them."""
    seed: int = 0
    """Of everything drawn."""

    def __post_init__(self) -> None:
        within = {
            "letters": 2 <= self.letters <= len(LETTERS),
            "motifs": self.motifs >= 1,
            "motif_length": self.motif_length >= 2,
            "quantisation": 1 <= self.quantisation <= self.motif_length,
            "banned": 0 <= self.banned <= 1,
            "length": self.length >= self.motifs * self.motif_length,
        }
        wrong = next((name for name, sound in within.items() if not sound), None)
        if wrong is not None:
            raise ConfigError(
                f"expected 2 to {len(LETTERS)} letters, motifs 1, motif_length 2, quantisation 1 to motif_length, "
                f"banned 0 to 1, length motifs * motif_length or more; got {wrong} {getattr(self, wrong)}; correct it"
            )


class Ehrlich:
    """Equation (3), as a reward.

    Args:
        settings: say how large it is, and what is drawn.

    Attributes:
        codec: reads designs.
        transition: ``A`` ``[V, V]``, rows sum to 1.
        motifs: :math:`a` ``[c, k]``.
        spacings: :math:`s` ``[c, k]``.
        reasons: of the last call: why a design was infeasible, ``None`` where it was not.
    """

    def __init__(self, settings: EhrlichSettings) -> None:
        self.settings = settings
        self.codec = TokenCodec(LETTERS[: settings.letters], settings.length)
        rng = torch.Generator().manual_seed(settings.seed)
        self.transition = _transition(settings.letters, settings.banned, rng)
        path = _path(self.transition, settings.motifs * settings.motif_length, settings.motif_length, rng)
        self.motifs = path.view(settings.motifs, settings.motif_length)
        room = settings.length // settings.motifs
        self.spacings = torch.stack([_spacing(settings.motif_length, room, rng) for _ in range(settings.motifs)])
        self.reasons: list[str | None] = []

    def __call__(self, designs: Sequence[str]) -> Float[Tensor, " B"]:
        """Value of each design, NaN where infeasible; float64."""
        tokens = self.codec.encode(designs)
        feasible = self.feasible(tokens)
        self.reasons = [None if one else "a banned transition" for one in feasible.tolist()]
        return self.factors(tokens).prod(1).where(feasible, math.nan)

    def feasible(self, tokens: Int[Tensor, "B L"]) -> Bool[Tensor, " B"]:
        """Equation (1)."""
        return (self.transition[tokens[:, :-1], tokens[:, 1:]] > 0).all(1)

    def factors(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B c"]:
        """Equation (2) of each motif, 0 to 1."""
        q, k = self.settings.quantisation, self.settings.motif_length
        found = []
        for motif, spacing in zip(self.motifs, self.spacings, strict=True):
            starts = torch.arange(self.settings.length - int(spacing[-1]))
            there = (tokens[:, starts[:, None] + spacing] == motif).sum(-1)
            found.append((there.amax(1) * q).div(k, rounding_mode="floor").double() / q)
        return torch.stack(found, dim=1)

    def optimum(self) -> str:
        """A feasible design of value 1."""
        room = self.settings.length // self.settings.motifs
        places = (self.spacings + room * torch.arange(self.settings.motifs)[:, None]).flatten()
        which = torch.searchsorted(places, torch.arange(self.settings.length), right=True) - 1
        return self.codec.decode(self.motifs.flatten()[which][None])[0]

    def sample(self, n: int, rng: torch.Generator) -> Int[Tensor, "N L"]:
        """``n`` feasible designs: paths of ``A`` from a letter drawn uniformly."""
        tokens = torch.randint(self.settings.letters, (n, 1), generator=rng)
        for _ in range(self.settings.length - 1):
            following = torch.multinomial(self.transition[tokens[:, -1]], 1, generator=rng)
            tokens = torch.cat([tokens, following], dim=1)
        return tokens


def _transition(letters: int, banned: float, rng: torch.Generator) -> Float[Tensor, "V V"]:
    cycle = torch.randperm(letters, generator=rng)
    logits = torch.randn(letters, letters, generator=rng, dtype=torch.float64)
    chance = torch.rand(letters, letters, generator=rng)
    chance[cycle, cycle] = chance[cycle, cycle.roll(-1)] = -1.0  # never banned
    rank = chance.argsort(1, descending=True)[:, : min(round(banned * letters), letters - 2)]
    return logits.scatter(1, rank, -math.inf).softmax(1)


def _path(transition: Float[Tensor, "V V"], steps: int, motif: int, rng: torch.Generator) -> Int[Tensor, " n"]:
    """Letters of an allowed path, the least used in this motif and then overall first, among those at random."""
    letters = len(transition)
    path = [int(torch.randint(letters, (1,), generator=rng))]
    for n in range(1, steps):
        used = torch.bincount(torch.tensor(path), minlength=letters)
        here = torch.bincount(torch.tensor(path[n - n % motif :]).long(), minlength=letters)
        cost = (here * steps + used).where(transition[path[-1]] > 0, steps * (steps + 1))
        best = (cost == cost.min()).double() * transition[path[-1]]
        path.append(int(torch.multinomial(best, 1, generator=rng)))
    return torch.tensor(path)


def _spacing(motif: int, room: int, rng: torch.Generator) -> Int[Tensor, " k"]:
    later = torch.randperm(room - 1, generator=rng)[: motif - 1] + 1
    return torch.cat([torch.zeros(1, dtype=torch.long), later.sort().values])
