"""What proposes: the contract of every strategy, and the checks that any proposal has to pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch

from difftilt.campaigns.history import History
from difftilt.errors import StateError


@dataclass(frozen=True)
class Candidate:
    """A design to measure, and why."""

    design: str
    """A sequence, a SELFIES string or a file name: text on one line."""
    mean: float | None = None
    """Predicted value, in units of the reward; ``None`` where nothing is predicted."""
    std: float | None = None
    """Epistemic standard deviation of the prediction, 0 or more."""
    reason: str = ""
    """Why it was picked, for people."""


@dataclass(frozen=True)
class Proposal:
    """A plate, before it is paid for."""

    candidates: list[Candidate]
    """Distinct and never proposed before; at most as many as asked for."""
    model: str
    """Name of the model that proposed it, e.g. the name that :func:`~difftilt.campaigns.keeping.keep` gave its "
    "folder."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What is to be remembered of the round, as JSON: calibration, numbers filtered, surrogate calls."""


@runtime_checkable
class Proposer(Protocol):
    """Picks designs. It keeps nothing between rounds but what it finds in the history and in the campaign's folder."""

    def __call__(self, history: History, n: int, rng: torch.Generator) -> Proposal:
        """Propose designs.

        Args:
            history: what is known; ``history.known`` must not be proposed again.
            n: how many are wanted, 1 or more.
            rng: the only source of randomness: the same history and state give the same proposal.
        """
        ...


def check_proposal(proposal: Proposal, history: History, n: int) -> None:
    """Hold a proposal to the contract.

    Raises:
        StateError: it breaks it; nothing was written.
    """
    designs = [candidate.design for candidate in proposal.candidates]
    known = history.known
    again = next((design for design in designs if design in known), None)
    faults = {
        f"{len(designs)} designs": not 1 <= len(designs) <= n,
        "a design twice": len(set(designs)) < len(designs),
        f"'{again}', which was proposed before": again is not None,
        "an empty design, or one of several lines": any(len(design.splitlines()) != 1 for design in designs),
        "spaces around a design": any(design != design.strip() for design in designs),
        "a prediction that is no number": not all(map(_is_sound, proposal.candidates)),
    }
    broken = [fault for fault, there in faults.items() if there]
    if broken:
        raise StateError(
            f"expected 1 to {n} new, distinct designs from the strategy; got {broken[0]}; nothing was written: "
            "correct the strategy"
        )


def _is_sound(candidate: Candidate) -> bool:
    numbers = [number for number in (candidate.mean, candidate.std) if number is not None]
    return all(math.isfinite(number) for number in numbers) and (candidate.std is None or candidate.std >= 0)
