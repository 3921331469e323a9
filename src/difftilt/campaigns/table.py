"""A campaign as one table, for people and their own programs."""

from __future__ import annotations

from typing import Any

from difftilt.campaigns.history import Design, History, Measurement

COLUMNS = (
    "id", "sequence", "round", "model", "well", "mean", "std", "reason", "state", "replicate", "value", "failure",
    "unit", "file", "line", "current", "created",
)  # fmt: skip
"""``unit`` is the campaign's; ``current`` is 0 for a result that was corrected; ``failure`` says why a design failed or
was withdrawn."""


def columns(history: History) -> dict[str, list[Any]]:
    """A row for each measurement ever made, corrected ones too, and for each design that has none."""
    rows = [row for design in history.designs for row in _rows(design, history.unit)]
    return {name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)}


def _rows(design: Design, unit: str | None) -> list[tuple[Any, ...]]:
    fixed = (design.id, design.design, design.round, design.model, design.well, design.mean, design.std, design.reason)
    if not design.every:
        reason, when = design.withdrawn or (None, None)
        return [(*fixed, design.state, None, None, reason, None, None, None, None, when)]
    current = {row.id for row in design.measurements}
    return [(*fixed, design.state, *_result(row, unit), row.id in current, row.created) for row in design.every]


def _result(row: Measurement, unit: str | None) -> tuple[Any, ...]:
    return row.replicate, row.value, row.failure, unit, row.file, row.line
