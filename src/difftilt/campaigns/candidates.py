"""Designs that may be proposed: new, allowed, drawn from a policy until there are enough.

A design of which the codec knows no state could be measured, but nothing could be learned from it: a graph that is no
molecule, or a molecule whose canonical spelling needs more words than states have room for. It is not proposed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from difftilt.campaigns.constraints import Rules
from difftilt.core.codec import fault_of
from difftilt.core.policy import Policy
from difftilt.core.trajectory import sample_states
from difftilt.errors import StateError

TRIES = 100
"""Times designs are drawn before a plate stays short: the policy hardly makes others."""
PATIENCE = 4
"""Times that a whole pool is hoped for; after these a plate is enough."""


@dataclass
class Sieve:
    """Keeps designs that are new and allowed, each once, and counts the others."""

    rules: Rules
    known: frozenset[str]
    """Proposed or measured before."""

    def __post_init__(self) -> None:
        self.designs: dict[str, None] = {}
        self.drawn = self.broken = self.repeated = self.avoided = self.unreadable = 0

    def take(self, designs: Sequence[str], most: int) -> None:
        """Add designs until there are ``most``."""
        self.drawn += len(designs)
        for design, keeps in zip(designs, self.rules.keeps(designs).tolist(), strict=True):
            if not keeps:
                self.broken += 1
            elif design in self.rules.avoided:
                self.avoided += 1
            elif design in self.known:
                self.repeated += 1
            elif fault_of(self.rules.codec, design) is not None:
                self.unreadable += 1
            elif len(self.designs) < most:
                self.designs[design] = None

    def some(self, source: str = "draws", remedy: str = "raise alpha, relax the constraints") -> list[str]:
        """The designs that are left, in the order in which they were drawn.

        Raises:
            StateError: there is none.
        """
        if not self.designs:
            raise StateError(
                f"expected new designs that keep the constraints; got none among {self.drawn:,} {source}; {remedy}, or "
                "end the campaign"
            )
        return list(self.designs)

    @property
    def facts(self) -> dict[str, int]:
        """Numbers of designs drawn, and of those dropped, by reason."""
        return {
            "drawn": self.drawn,
            "dropped_constraints": self.broken,
            "dropped_avoided": self.avoided,
            "dropped_known": self.repeated,
            "dropped_unreadable": self.unreadable,
        }


@torch.no_grad()
def draw_new(
    policy: Policy, n: int, rules: Rules, known: Iterable[str], rng: torch.Generator, *, pool: int = 1,
    designs: Sequence[str] = (),
) -> Sieve:  # fmt: skip
    """Candidates for a plate of ``n``: ``designs``, then draws of the policy, up to ``pool`` times as many in all.

    Fewer where the policy hardly makes others.
    """
    sieve = Sieve(rules, frozenset(known))
    sieve.take(designs, pool * n)
    for attempt in range(TRIES):
        if len(sieve.designs) == pool * n or (attempt >= PATIENCE and len(sieve.designs) >= n):
            break
        sieve.take(policy.codec.decode(sample_states(policy, pool * n, rng)), pool * n)
    return sieve
