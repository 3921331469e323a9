r"""Where a campaign stands, in words: the headline, and what a reader must be warned of.

The highest of many noisy values is partly luck. With the noise ``s`` of a measurement, pooled from replicates, a design
is as good as the best, as far as anybody can tell, where

.. math:: \bar y_{best} - \bar y_i \le 1.96\, s \sqrt{1 / n_{best} + 1 / n_i} .                               \qquad (1)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from difftilt.campaigns.history import FAILED, MEASURED, PENDING, Design, History

from .campaign_rounds import FEWEST, RoundView, noise
from .rounding import significant
from .sentences import Z95, Notice

MANY_FAILED = 0.2
"""Share of failed designs from which the page warns."""


class Words:
    """Sentences about a history.

    Args:
        history: of the campaign.
        rounds: its rounds.
        digits: significant digits of values.
    """

    def __init__(self, history: History, rounds: Sequence[RoundView], digits: int) -> None:
        self.history, self.rounds, self.digits = history, rounds, digits

    def value(self, value: float | None, digits: int | None = None) -> str:
        """A value, with the campaign's unit."""
        unit = self.history.unit
        return significant(value, self.digits if digits is None else digits) + (f"\u00a0{unit}" if unit else "")

    def plain(self, value: float | None) -> str:
        """A value."""
        return significant(value, self.digits)

    def title(self) -> str:
        """What is searched, by whom."""
        settings = self.history.settings
        return f"{settings.name}: {settings.task} by {settings.strategy}"

    def headline(self) -> str:
        """Where the campaign stands, in a few sentences."""
        history, counts = self.history, self.history.counts
        budget = f"{history.spent:,} of {counted(history.settings.budget, 'design')} are paid for"
        if not history.rounds:
            return f"Nothing was proposed yet; the budget is {counted(history.settings.budget, 'design')}."
        pending = f", {counts[PENDING]:,} of them pending" if counts[PENDING] else ""
        return f"{self._best()} {budget}{pending}; {history.remaining:,} are left."

    def _best(self) -> str:
        best, counts = self.history.best, self.history.counts
        if best is None and counts[FAILED]:
            return f"Nothing has a value yet: {_all(counts[FAILED])} with a result failed."
        if best is None:
            return "Nothing was measured yet."
        of = "the only measured design"
        if counts[MEASURED] > 1:
            of = f"the best of {counts[MEASURED]:,} measured designs"
        return f"{best.id} of round {best.round} is {of}: {self.value(best.value)}{self._replicates(best)}."

    def _replicates(self, design: Design) -> str:
        if len(design.values) == 1:
            return ", measured once"
        low, high = min(design.values), max(design.values)
        return f", mean of {len(design.values)} replicates from {self.plain(low)} to {self.plain(high)}"

    def notices(self) -> list[Notice]:
        """Warnings first, then notes."""
        history = self.history
        found = []
        failed, told = history.counts[FAILED], history.counts[FAILED] + history.counts[MEASURED]
        if failed > MANY_FAILED * told and told >= FEWEST:
            text = "The reasons are below. A failed well costs as much as a measured one."
            found.append(Notice("warn", f"{failed:,} of {counted(told, 'design')} with a result failed.", text))
        best = history.best
        if best is not None and history.counts[MEASURED] > 1:
            found += self._luck(best)
        last = len(history.rounds)
        late = [view for view in self.rounds if view.number < last and view.in_state(PENDING)]
        if late:
            where = ", ".join(f"{len(view.in_state(PENDING))} of round {view.number}" for view in late)
            text = f"They count as paid for until they are recorded or withdrawn: {where}."
            found.append(Notice("note", "Designs of earlier rounds are still pending.", text))
        return sorted(found, key=lambda notice: notice.kind != "warn")

    def _luck(self, best: Design) -> list[Notice]:
        """Whether the best is the best: equation (1)."""
        once, spread = len(best.values) == 1, noise(self.history.designs)
        again = "The highest of many noisy values is partly luck"
        if spread is None:
            text = f"{again}, and there are too few replicates to know the noise. Measure {best.id} again."
            return [Notice("note", "The best was measured once.", text)] if once else []
        s, designs = spread
        text = f"Replicates of a design scatter with a standard deviation of {self.value(s, 2)} ({designs} designs). "
        near = [design for design in self.history.in_state(MEASURED) if design is not best and is_near(best, design, s)]
        if near:
            text += f"By that noise alone {counted(len(near), 'other design')} cannot be told from {best.id}."
            return [Notice("note", "Others may be as good as the best.", text)]
        text += f"No other design comes within that noise of {best.id}."
        if once:
            return [Notice("note", "The best was measured once.", f"{text} {again}: measure it again.")]
        return [Notice("note", "The best stands out.", text)]


def is_near(best: Design, other: Design, noise: float) -> bool:
    """Equation (1)."""
    apart = (best.value or 0.0) - (other.value or 0.0)
    return apart <= Z95 * noise * math.sqrt(1 / len(best.values) + 1 / len(other.values))


def counted(n: int, what: str) -> str:
    """``1 design``, ``24 designs``."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _all(n: int) -> str:
    return "the only design" if n == 1 else f"all {n:,} designs"
