"""A complete or partial measured table as the reward; a design that was not measured is infeasible."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from difftilt.types import Float, Tensor


class TableReward:
    """Looks designs up.

    Args:
        table: design to value, reward units.
        name: for messages and provenance.
    """

    def __init__(self, table: Mapping[str, float], name: str) -> None:
        self.table, self.name = table, name
        self.reasons: list[str | None] = []

    def __call__(self, designs: Sequence[str]) -> Float[Tensor, " B"]:
        """Values, NaN where not measured, float64."""
        values = [self.table.get(design, math.nan) for design in designs]
        self.reasons = ["not measured" if math.isnan(value) else None for value in values]
        return torch.tensor(values, dtype=torch.float64)
