"""A table of designs, as read from a file."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from difftilt.errors import DataError
from difftilt.types import Bool

SEQUENCE_NAMES = ("sequence", "seq", "smiles")
SCORE_NAMES = ("score", "value", "reward")
NAMED = 5
"""Bad rows that an error names."""


@dataclass(frozen=True, eq=False)
class Table:
    """Designs and what is known of each.

    Attributes:
        path: the file they came from.
        sequences: the designs, as written there.
        columns: the other columns in file order: float64 where every value is a number or missing (NaN), else text.
        sequence_column: name of the design column (``sequence`` for FASTA).
        score_column: name of the column that holds the score, or ``None``.
        lines: 1-based line of the file at which each design stands (FASTA: its header); ``None`` for Parquet.
        skipped: designs of the file that could not be read and were left out.
    """

    path: Path
    sequences: list[str]
    columns: dict[str, np.ndarray]
    sequence_column: str
    score_column: str | None
    lines: np.ndarray | None = None
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def scores(self) -> np.ndarray:
        """The score column, float64; NaN where a design has none.

        Raises:
            DataError: the file has no score column.
        """
        if self.score_column is None:
            known = ", ".join([self.sequence_column, *self.columns])
            raise DataError(
                f"{self.path}: expected a column {' or '.join(SCORE_NAMES)}; got columns {known}; rename one of them"
            )
        return self.columns[self.score_column]

    def column(self, name: str) -> np.ndarray:
        """The column called ``name``.

        Raises:
            DataError: there is none; the nearest name is proposed.
        """
        if name in self.columns:
            return self.columns[name]
        close = difflib.get_close_matches(name, self.columns, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"its columns are {', '.join(self.columns) or '(none)'}"
        raise DataError(f"{self.path}: expected a column '{name}'; got none of that name; {hint}")

    def take(self, index: np.ndarray) -> Table:
        """The rows of ``index`` (integers, or a boolean per row), in that order."""
        rows = np.arange(len(self))[index]
        return replace(
            self,
            sequences=[self.sequences[row] for row in rows],
            columns={name: column[rows] for name, column in self.columns.items()},
            lines=None if self.lines is None else self.lines[rows],
        )

    def keep(self, readable: Bool[np.ndarray, " N"]) -> Table:
        """The rows that can be read; the others are counted as skipped."""
        return replace(self.take(readable), skipped=self.skipped + int((~readable).sum()))


def named_rows(rows: Sequence[int], lines: Sequence[int] | np.ndarray | None) -> str:
    """Where some rows stand, the first few by number: ``lines 3, 7, 9, 12, 40 and 12 more``.

    Args:
        rows: their numbers, from 0; one at least.
        lines: the line of the file at which each row stands; ``None``: rows are counted, from 1.
    """
    kind = "row" if lines is None else "line"
    where = [str(row + 1 if lines is None else int(lines[row])) for row in rows[:NAMED]]
    more = f" and {len(rows) - NAMED:,} more" if len(rows) > NAMED else ""
    return f"{kind}{'s' if len(rows) > 1 else ''} {', '.join(where)}{more}"


def merge_repeats(table: Table) -> Table:
    """One row per distinct design: the rule for repeats in one's own data.

    A design that stands in several rows becomes one row at its first place. Its score is the mean of its scores that
    are there (NaN if none is); its other columns are those of the first row. Designs are compared as strings, so
    :func:`~difftilt.data.validate` comes first.
    """
    first: dict[str, int] = {}
    group = np.array([first.setdefault(sequence, len(first)) for sequence in table.sequences], dtype=np.int64)
    _, rows = np.unique(group, return_index=True)
    merged = table.take(rows)
    if table.score_column is None or len(rows) == len(table):
        return merged
    there = ~np.isnan(table.scores)
    count = np.bincount(group[there], minlength=len(rows))
    total = np.bincount(group[there], weights=table.scores[there], minlength=len(rows))
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return replace(merged, columns={**merged.columns, table.score_column: mean})


def name_columns(names: list[str], path: Path) -> tuple[str, str | None]:
    """Which of a file's columns holds the design, and which the score.

    By name, whatever the case: ``sequence``, ``seq`` or ``smiles``, else the first column; ``score``, ``value`` or
    ``reward``, else none.

    Raises:
        DataError: two columns share a name.
    """
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"{path}: expected distinct column names; got '{repeated[0]}' twice; rename one of them")
    lower = {name.lower(): name for name in reversed(names)}
    sequence = next((lower[name] for name in SEQUENCE_NAMES if name in lower), names[0])
    score = next((lower[name] for name in SCORE_NAMES if name in lower and lower[name] != sequence), None)
    return sequence, score
