r"""What each round of a campaign says, in numbers; nothing is computed anew from a model.

A round's designs, with the best of all up to it; how its predictions turned out,

.. math:: b = \operatorname{mean}_i (y_i - \hat r_i) \pm t_{0.975, n - 1}\, s / \sqrt n                      \qquad (1)

beside rank correlation and coverage (:mod:`difftilt.surrogates.calibration`); and how large a measurement's noise is,
pooled over the designs with replicates,

.. math:: s^2 = \sum_{ij} (y_{ij} - \bar y_i)^2 \big/ \sum_i (n_i - 1)                                       \qquad (2)

Failed designs are counted and are in none of these.
"""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from difftilt.campaigns.history import FAILED, MEASURED, Design, History, Round, best_of
from difftilt.campaigns.learning import SPREAD, forecast_of
from difftilt.campaigns.simulation.summary import Mean, mean_of
from difftilt.core.codec import TokenCodec
from difftilt.core.stats import spearman
from difftilt.metrics.sequences import diversity
from difftilt.surrogates.calibration import calibration

from .rounding import finite

FEWEST = 3
"""Values from which a mean has an interval worth showing, and pairs from which ranks are compared."""
ALPHABETS = ("ACGT", "ACGU", "ACDEFGHIKLMNPQRSTVWY", string.ascii_uppercase)
"""Letters of designs: the first set that holds all of them."""


class Agreement(NamedTuple):
    """A round's predictions against what was measured of it."""

    pairs: int
    """Designs with both."""
    spearman: float | None
    """Rank correlation; ``None`` where one side does not vary. This and all below: ``None`` of fewer pairs than
    :data:`FEWEST`."""
    bias: Mean | None
    """Equation (1)."""
    within_50: int | None
    """Measurements within 50 % intervals; ``None`` where the strategy says nothing of its spread."""
    within_90: int | None
    """The same of 90 % intervals."""


@dataclass(frozen=True)
class RoundView:
    """One round."""

    entry: Round
    designs: tuple[Design, ...]
    """In the order of the plate."""
    before: Design | None
    """The best of earlier rounds."""
    best: Design | None
    """The best of this and earlier rounds."""
    agreement: Agreement
    diversity: float | None
    """Mean share of positions in which two of its designs differ; ``None`` unless designs are letters."""

    @property
    def number(self) -> int:
        """Its number."""
        return self.entry.number

    @property
    def measured(self) -> tuple[Design, ...]:
        """Its measured designs."""
        return self.in_state(MEASURED)

    @property
    def top(self) -> Design | None:
        """Its own best design."""
        return best_of(self.designs)

    @property
    def mean(self) -> Mean | None:
        """Mean value of its measured designs."""
        return mean_of([design.value for design in self.measured])

    @property
    def failures(self) -> Counter[str]:
        """Reasons of its failed designs."""
        return failures(self.designs)

    @property
    def seconds(self) -> float | None:
        """What computing its proposal took, as far as the strategy says."""
        facts = self.entry.facts
        parts = [finite(facts[name]) for name in facts if name == "seconds" or name.startswith("seconds_")]
        known = [part for part in parts if part is not None]
        return sum(known) if known else None

    def fact(self, *path: str) -> float | None:
        """A finite number of what the strategy said."""
        value = self.entry.facts
        for key in path:
            value = value.get(key) if hasattr(value, "get") else None
        return finite(value)

    def in_state(self, state: str) -> tuple[Design, ...]:
        """Its designs in a state."""
        return tuple(design for design in self.designs if design.state == state)


def views(history: History) -> list[RoundView]:
    """Every round, in order."""
    letters = alphabet_of(history.designs)
    found: list[RoundView] = []
    for entry in history.rounds:
        own = tuple(design for design in history.designs if design.round == entry.number)
        before = found[-1].best if found else None
        best = best_of([*([before] if before else []), *own])
        varied = None
        if letters is not None and len(own) > 1:
            codec = TokenCodec(letters, len(own[0].design))
            varied = diversity(codec.encode([design.design for design in own]), codec.vocabulary)
        found.append(RoundView(entry, own, before, best, agreement(history, entry, own), varied))
    return found


def failures(designs: Sequence[Design]) -> Counter[str]:
    """Reasons for which designs failed."""
    return Counter(str(design.failure) for design in designs if design.state == FAILED)


def agreement(history: History, entry: Round, designs: Sequence[Design]) -> Agreement:
    """How a round's predictions turned out."""
    pairs = [(d.mean, d.value) for d in designs if d.mean is not None and d.value is not None]
    if len(pairs) < FEWEST:
        return Agreement(len(pairs), None, None, None, None)
    mean, value = torch.tensor(pairs, dtype=torch.float64).T
    ranks, bias = finite(spearman(mean, value)), mean_of((value - mean).tolist())
    told = {name: finite(entry.facts.get(name)) for name in SPREAD}
    known = all(design.std is not None for design in designs if design.mean is not None)
    if not known or None in told.values() or not told["factor"]:
        return Agreement(len(pairs), ranks, bias, None, None)
    forecast = forecast_of(history, entry.number)
    assert forecast is not None
    found = calibration(forecast, factor=told["factor"])
    within = [round(share * found.rows) for share in (found.coverage_50, found.coverage_90)]
    return Agreement(len(pairs), ranks, bias, within[0], within[1])


def alphabet_of(designs: Sequence[Design]) -> str | None:
    """The letters of designs; ``None`` unless all are capital letters, equally many."""
    texts = {design.design for design in designs}
    used = set("".join(texts))
    if not used or len({len(text) for text in texts}) > 1:
        return None
    return next((letters for letters in ALPHABETS if used <= set(letters)), None)


def noise(designs: Sequence[Design]) -> tuple[float, int] | None:
    """Equation (2), and its number of designs; ``None`` with fewer than :data:`FEWEST` replicates to spare."""
    several = [design.values for design in designs if len(design.values) > 1]
    spare = sum(len(values) - 1 for values in several)
    if spare < FEWEST:
        return None
    apart = [value - sum(values) / len(values) for values in several for value in values]
    return math.hypot(*apart) / math.sqrt(spare), len(several)


def digits(history: History) -> int:
    """Significant digits at which values that differ look different."""
    values = [value for design in history.designs for value in design.values]
    spread = max(values, default=0.0) - min(values, default=0.0)
    if not spread:
        return 3
    return min(6, max(3, 2 + math.ceil(math.log10(max(map(abs, values)) / spread))))
