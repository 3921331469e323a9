"""What is known of a campaign, derived from its facts: designs with their states, measurements, budget.

A design's state follows from its rows, and no row holds it:

.. code-block:: text

    measured    a replicate has a value
    failed      no replicate has one, and at least one failed
    withdrawn   no result, and a withdrawal
    pending     none of these

The budget counts designs, not replicates: ``spent`` = measured + failed + pending. A failed well has been paid for; a
withdrawn design has not, and is given back.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from difftilt.campaigns.settings import Constraints, Picking, Tuning
from difftilt.errors import ConfigError
from difftilt.types import Float, Tensor

MEASURED, FAILED, PENDING, WITHDRAWN = "measured", "failed", "pending", "withdrawn"
STATES = (PENDING, MEASURED, FAILED, WITHDRAWN)


@dataclass(frozen=True, kw_only=True)
class CampaignSettings:
    """What a campaign is; fixed when it begins."""

    name: str
    """How its people call it: letters, digits, ``-``, ``_`` and ``.``."""
    task: str
    """What p_pre is a model of: a task, a model folder or a Hub repository."""
    strategy: str = "random"
    """Who proposes: a name of ``strategies``."""
    batch: int = 96
    """Designs of a plate when no number is given; 1 or more."""
    budget: int = 480
    """Designs that can be paid for; 1 or more."""
    unit: str | None = None
    """Unit of the values; that of the first results when not set."""
    tuning: Tuning = field(default_factory=Tuning)
    """How a round's policy is tuned."""
    picking: Picking = field(default_factory=Picking)
    """How it learns, and picks a plate."""
    constraints: Constraints = field(default_factory=Constraints)
    """What every design has to keep."""
    seed: int = 0
    """Round i draws from the stream of this seed and i, so a proposal that crashed repeats itself."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ConfigError(
                f"expected a name of letters, digits, '-', '_' and '.'; got '{self.name}'; choose another"
            )
        for name in ("batch", "budget"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"expected {name} 1 or more, a whole number; got {value!r}; correct it")


@dataclass(frozen=True)
class Measurement:
    """One row of results."""

    id: int
    replicate: str
    value: float | None
    """Finite, or ``None`` where it failed."""
    failure: str | None
    """Why it failed, or ``None`` where it has a value."""
    unit: str | None
    file: str
    """Name of the file it was read from."""
    line: int
    corrects: int | None
    """The measurement that it takes the place of."""
    created: str


@dataclass(frozen=True)
class Design:
    """A proposed design, with all that happened to it."""

    number: int
    design: str
    """The sequence, SELFIES string or file name."""
    round: int
    model: str
    """The model that proposed it."""
    well: str
    mean: float | None
    """Predicted value; ``None`` where the model predicts none."""
    std: float | None
    """Its epistemic standard deviation."""
    reason: str
    """Why it was picked."""
    every: tuple[Measurement, ...] = ()
    """Every measurement in the order of recording, those that were corrected too."""
    withdrawn: tuple[str, str] | None = None
    """Reason and time of a withdrawal."""

    @property
    def id(self) -> str:
        """Its name on plates. No spreadsheet takes it for a number or a date."""
        return design_id(self.number)

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """One for each replicate: those that no other corrects."""
        corrected = {row.corrects for row in self.every}
        return tuple(row for row in self.every if row.id not in corrected)

    @property
    def values(self) -> tuple[float, ...]:
        """Values of its replicates."""
        return tuple(row.value for row in self.measurements if row.value is not None)

    @property
    def value(self) -> float | None:
        """Mean over its replicates; ``None`` unless measured."""
        return sum(self.values) / len(self.values) if self.values else None

    @property
    def failure(self) -> str | None:
        """Why it failed; ``None`` unless failed."""
        reasons = [row.failure for row in self.measurements if row.failure is not None]
        return "; ".join(dict.fromkeys(reasons)) if reasons and not self.values else None

    @property
    def state(self) -> str:
        """One of :data:`STATES`."""
        if self.measurements:
            return MEASURED if self.values else FAILED
        return PENDING if self.withdrawn is None else WITHDRAWN


def best_of(designs: Iterable[Design]) -> Design | None:
    """The measured design with the highest mean value, the first of equals."""
    known = [(design.value, design) for design in designs if design.value is not None]
    return max(known, key=lambda pair: pair[0])[1] if known else None


@dataclass(frozen=True)
class Round:
    """One proposal."""

    number: int
    model: str
    """Name of the model, e.g. of its folder below the campaign's."""
    facts: Mapping[str, Any]
    """What the strategy said of it: calibration, numbers filtered, seconds."""
    created: str


@dataclass(frozen=True)
class Imported:
    """A results file."""

    name: str
    digest: str
    created: str


@dataclass(frozen=True)
class History:
    """All that is known at one moment."""

    settings: CampaignSettings
    rounds: tuple[Round, ...] = ()
    designs: tuple[Design, ...] = ()
    """In the order of proposal."""
    imports: tuple[Imported, ...] = ()

    @property
    def next_round(self) -> int:
        """Number of the round to propose; the first is 1."""
        return len(self.rounds) + 1

    @property
    def known(self) -> frozenset[str]:
        """Every design ever proposed: none of them may be proposed again."""
        return frozenset(design.design for design in self.designs)

    @property
    def counts(self) -> dict[str, int]:
        """Number of designs in each state."""
        found = Counter(design.state for design in self.designs)
        return {state: found[state] for state in STATES}

    @property
    def spent(self) -> int:
        """Designs paid for or on their way."""
        return len(self.designs) - self.counts[WITHDRAWN]

    @property
    def remaining(self) -> int:
        """Designs that can still be proposed."""
        return self.settings.budget - self.spent

    @property
    def unit(self) -> str | None:
        """Unit of the values, if one was ever named."""
        named = (row.unit for design in self.designs for row in design.every if row.unit is not None)
        own = unicodedata.normalize("NFKC", self.settings.unit or "").strip()  # as those of files: there are two mu
        return own or next(named, None)

    @property
    def best(self) -> Design | None:
        """The measured design with the highest mean value."""
        return best_of(self.designs)

    def in_state(self, state: str) -> tuple[Design, ...]:
        """Designs that are pending, measured, failed or withdrawn."""
        return tuple(design for design in self.designs if design.state == state)

    def data(self) -> tuple[list[str], Float[Tensor, " N"]]:
        """Measured designs and their values, one row for each replicate, float64: what a surrogate is fitted to.

        Failed designs are in no row: ``in_state("failed")`` has them, as infeasible.
        """
        rows = [(design.design, value) for design in self.in_state(MEASURED) for value in design.values]
        return [design for design, _ in rows], torch.tensor([value for _, value in rows], dtype=torch.float64)


def design_id(number: int) -> str:
    """``d00017`` of 17."""
    return f"d{number:05d}"
