"""Results against what is known: which design each row means, and whether it is new, known, a correction or a fault.

A measurement is named by its design and its ``replicate``. A row whose replicate is on record with the same result is
known and changes nothing, so that a sheet that grows can be recorded again and again. With another result it is a
fault, unless corrections were asked for: then it becomes a new row, which takes the place of the old one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from difftilt.campaigns.cells import replicate_name
from difftilt.campaigns.history import FAILED, MEASURED, WITHDRAWN, Design, History, Measurement
from difftilt.campaigns.results import Fault, Result
from difftilt.errors import DataError

NO_REASON = "no reason given"
NUCLEIC = frozenset("acgtun")


@dataclass(frozen=True)
class Matched:
    """What a file adds."""

    rows: list[dict[str, Any]]
    """New measurements, as columns of the table."""
    known: int
    """Results that are on record already."""
    pending: int
    """Rows that say that there is no result yet."""

    def number(self, state: str) -> int:
        """New measurements that have a value, or failed; corrections not counted."""
        return sum((row["value"] is not None) == (state == MEASURED) for row in self.rows if row["corrects"] is None)

    @property
    def corrected(self) -> int:
        """Corrections."""
        return sum(row["corrects"] is not None for row in self.rows)


class _Names:
    """Designs by what a sheet calls them. Of nucleic acids T and U are one letter, as to the tasks."""

    def __init__(self, designs: Sequence[Design]) -> None:
        letters = {letter for design in designs for letter in design.design.casefold()}
        self._nucleic = letters <= NUCLEIC and not letters >= {"t", "u"}
        self._ids = {design.id: design for design in designs}
        self._exact = {design.design: design for design in designs}
        self._folded: dict[str, list[Design]] = defaultdict(list)
        for design in designs:
            self._folded[self._fold(design.design)].append(design)

    def find(self, result: Result) -> Design:
        """The design of a row.

        Raises:
            DataError: none is called so, or its id and its sequence are of two.
        """
        by_id = self._ids.get(result.id.casefold())
        by_sequence = self._by_sequence(result.sequence)
        if result.id and by_id is None:
            meant = f"its sequence is {by_sequence.id}'s" if by_sequence else "take it from the plate, or drop the line"
            raise DataError(f"expected an id of this campaign, such as d00001; got '{result.id}'; {meant}")
        if result.sequence and by_sequence is None and by_id is None:
            raise DataError(f"expected a sequence of this campaign; got '{_short(result.sequence)}'; drop the line")
        if by_id and result.sequence and by_sequence != by_id:
            came = by_sequence.id if by_sequence else f"'{_short(result.sequence)}', which was not proposed"
            raise DataError(f"expected the sequence of {by_id.id}; got that of {came}; correct one of them")
        design = by_id or by_sequence
        assert design is not None
        return design

    def _by_sequence(self, text: str) -> Design | None:
        """By the sequence; in another case, or with U for T, where that is one design's alone."""
        if text in self._exact:
            return self._exact[text]
        same = self._folded.get(self._fold(text), [])
        return same[0] if len(same) == 1 else None

    def _fold(self, text: str) -> str:
        return text.casefold().replace("u", "t") if self._nucleic else text.casefold()


def match(results: Iterable[Result], history: History, *, correct: bool) -> tuple[Matched, list[Fault]]:
    """What results add to a history, and all faults.

    Args:
        results: rows of a file.
        history: what is known.
        correct: whether a replicate on record may be given another result.
    """
    names, unit, room = _Names(history.designs), history.unit, history.remaining
    seen: dict[tuple[int, str], int] = {}
    revived: set[int] = set()
    rows: list[dict[str, Any]] = []
    known = pending = 0
    faults = []
    for result in results:
        try:
            design = names.find(result)
            key = (design.number, _same_case(result.replicate))
            if key in seen:
                raise DataError(
                    f"expected one line for replicate {result.replicate} of {design.id}; got another in line "
                    f"{seen[key]}; number replicates in a column 'replicate', or drop one"
                )
            seen[key] = result.line
            unit = _same_unit(result.unit, unit)
            if result.pending:
                pending += 1
                continue
            old = next((row for row in design.measurements if _same_case(row.replicate) == key[1]), None)
            failure = _failure(result, design)
            if old is not None and _same(old, result, failure):
                known += 1
                continue
            if old is not None and not correct:
                raise DataError(
                    f"expected a result that is not on record; got '{_told(result.value, failure)}' where "
                    f"{design.id} has '{_told(old.value, old.failure)}' ({old.file}, line {old.line}); name another "
                    "replicate, or record it as a correction (--correct)"
                )
            if design.state == WITHDRAWN and design.number not in revived:
                revived.add(design.number)
                if len(revived) > room:
                    raise DataError(
                        f"expected a design that is paid for; got {design.id}, which was withdrawn, and the budget "
                        "has no room left to take it back; drop the line"
                    )
        except DataError as error:
            faults.append(Fault(result.line, str(error)))
            continue
        rows.append(
            {
                "design": design.number,
                "replicate": result.replicate,
                "value": result.value,
                "failure": failure,
                "unit": result.unit,
                "line": result.line,
                "corrects": None if old is None else old.id,
            }
        )
    return Matched(rows, known, pending), faults


def _same_unit(unit: str | None, expected: str | None) -> str | None:
    if unit is not None and expected is not None and unit != expected:
        raise DataError(f"expected the unit '{expected}'; got '{unit}'; convert the value")
    return unit if expected is None else expected


def _same_case(replicate: str) -> str:
    """A replicate's name, of which nobody keeps the case."""
    return replicate_name(replicate).casefold()


def _failure(result: Result, design: Design) -> str | None:
    """Why a design failed. A plate that was filled in still has, as `reason`, why it was picked: that is none."""
    if result.failure is None:
        return None
    return NO_REASON if result.failure in ("", design.reason) else result.failure


def _same(old: Measurement, result: Result, failure: str | None) -> bool:
    return (old.value, old.failure) == (result.value, failure)


def _told(value: float | None, failure: str | None) -> str:
    return f"{FAILED}: {failure}" if value is None else f"{value:g}"


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
