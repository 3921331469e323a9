"""Rows of a results file: what each cell means, and everything that is wrong with them, at once.

Columns, by name in any order and case: ``id`` or ``sequence`` (both must agree), ``value``, ``status`` (empty,
``measured``, ``failed``, ``failed: why``, ``pending``), ``reason`` (why it failed), ``replicate`` (1 when empty) and
``unit``. Others, such as those of the plate, stay and are not read.

``0,62`` without quotes between commas is two cells: where all values are whole numbers, lines with digits right of the
value are refused.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difftilt.campaigns.cells import (
    BLANK,
    LARGEST,
    cut_decimals,
    decimal_comma,
    design_name,
    number,
    plain,
    python_cell,
    replicate_name,
)
from difftilt.campaigns.history import FAILED, MEASURED, PENDING
from difftilt.campaigns.sheets import Cell, Sheet, read_sheet
from difftilt.data.table import SEQUENCE_NAMES
from difftilt.errors import DataError, nearest

COLUMNS = ("id", "sequence", "value", "status", "reason", "replicate", "unit")
UNIT = re.compile(r"units?(?![^\W\d_])")
"""How a column begins that was meant as ``unit``."""
STATUSES = {"": "", "measured": MEASURED, "ok": MEASURED, "failed": FAILED, "fail": FAILED, "pending": PENDING}


@dataclass(frozen=True, order=True)
class Fault:
    """What is wrong with a line."""

    line: int
    problem: str
    """Expected ...; got ...; what to do."""


class ResultsError(DataError):
    """A results file with faulty lines; nothing of it was recorded.

    Attributes:
        name: of the file.
        faults: every one of them, in the order of lines.
    """

    def __init__(self, name: str, faults: Iterable[Fault]) -> None:
        self.name, self.faults = name, sorted(set(faults))
        super().__init__("\n".join([self.summary, *self.lines]))

    @property
    def lines(self) -> list[str]:
        """A line for each fault."""
        return [f"{self.name}, line {fault.line}: {fault.problem}" for fault in self.faults]

    @property
    def summary(self) -> str:
        """How many there are."""
        number = len({fault.line for fault in self.faults})
        return (
            f"{self.name}: expected results without faults; got {number} faulty line{'s' * (number != 1)}, and "
            "nothing was recorded; correct them and record the file again"
        )


@dataclass(frozen=True)
class Result:
    """A row that makes sense by itself; whether it fits the campaign is for ``matching``."""

    line: int
    id: str
    sequence: str
    replicate: str
    value: float | None
    """Finite, for a measured design."""
    failure: str | None
    """Why it failed, for a failed one; may be empty."""
    unit: str | None

    @property
    def pending(self) -> bool:
        """Whether the row says that there is no result yet."""
        return self.value is None and self.failure is None


def read_rows(source: str | Path | Sequence[Mapping[str, Any]]) -> Sheet:
    """Cells of a file, or of rows given in Python, which are named ``rows`` and numbered from 1.

    Raises:
        DataError: it is no such file, or the rows have no column that we know.
    """
    if isinstance(source, str | Path):
        return read_sheet(Path(source), _known_columns)
    told = _python_rows(source)
    names = list(dict.fromkeys(name for row in told for name in row))
    rows = [[python_cell(row.get(name)) for name in names] for row in told]
    if not _known_columns([str(name) for name in names]):
        raise DataError(f"expected rows with id (or sequence) and value (or status); got {', '.join(names) or 'none'}")
    content = json.dumps([names, *rows]).encode()
    digest = hashlib.sha256(content).hexdigest()
    return Sheet("rows", digest, [[str(name) for name in names], *rows], list(range(len(rows) + 1)))


def _python_rows(source: Any) -> list[Mapping[str, Any]]:
    """The rows of a list of rows.

    Raises:
        DataError: anything else.
    """
    rows = list(source) if isinstance(source, Iterable) and not isinstance(source, Mapping) else None
    if rows is None or not all(isinstance(row, Mapping) for row in rows):
        what = "" if rows is None else f" of {type(rows[0]).__name__}"
        raise DataError(
            f"expected a file, or rows as [{{'id': 'd00001', 'value': 0.5}}, ...]; got {type(source).__name__}{what}; "
            "write it so, a data frame by frame.to_dict('records')"
        )
    return rows


def _counted(rows: Sequence[tuple[int, list[Cell]]], header: Mapping[str, int]) -> bool:
    """Whether the cells right of the values are replicates, counted 1, 2, ... of each design, and so no decimals."""
    name, place = header.get("id", header.get("sequence", -1)), header.get("replicate", -1)
    if place != header.get("value", -2) + 1 or any(len(row) <= max(name, place) for _, row in rows):
        return False
    found: dict[str, list[str]] = {}
    for _, row in rows:
        found.setdefault(design_name(row[name]), []).append(replicate_name(row[place]))
    return any(len(own) > 1 for own in found.values()) and all(
        sorted(own) == sorted(map(str, range(1, len(own) + 1))) for own in found.values()
    )


def parse(sheet: Sheet) -> tuple[list[Result], list[Fault]]:
    """The rows that make sense, and all faults.

    Raises:
        DataError: the header names a column twice, or nearly one that is not there.
    """
    header = _header(sheet)
    rows = list(zip(sheet.lines[1:], sheet.rows[1:], strict=True))
    if not rows:
        raise DataError(f"{sheet.name}: expected results below the header; got none; fill in the values")
    place = header.get("value", len(sheet.rows[0]))
    comma = decimal_comma([row[place] for _, row in rows if len(row) > place], sheet.separator == ";")
    cut = cut_decimals(rows, place) if sheet.separator == "," and not _counted(rows, header) else {}
    results, faults = [], []
    for line, row in rows:
        try:
            if line in cut:
                raise DataError(cut[line])
            results.append(_result(line, row, header, comma, len(sheet.rows[0])))
        except DataError as error:
            faults.append(Fault(line, str(error)))
    return results, faults


def _name(cell: Cell) -> str:
    """A column's name as we know it."""
    name = unicodedata.normalize("NFKC", str(cell)).strip().casefold()
    return "sequence" if name in SEQUENCE_NAMES else name


def _known_columns(row: Sequence[Cell]) -> int:
    names = {_name(cell) for cell in row} & set(COLUMNS)
    return len(names) if names & {"id", "sequence"} and names & {"value", "status"} else 0


def _header(sheet: Sheet) -> dict[str, int]:
    names = [_name(cell) for cell in sheet.rows[0]]
    for column in COLUMNS:
        if names.count(column) > 1:
            raise DataError(
                f"{sheet.name}: expected one column '{column}'; got {names.count(column)}; rename or drop one"
            )
        others = [name for name in names if name not in COLUMNS]
        close = difflib.get_close_matches(column, others, n=1, cutoff=0.8)
        close += [name for name in others if column == "unit" and UNIT.match(name)]
        if close and column not in names:
            raise DataError(
                f"{sheet.name}: expected a column '{column}'; got '{close[0]}'; rename it, or name it otherwise"
            )
    return {name: names.index(name) for name in COLUMNS if name in names}


def _result(line: int, row: list[Cell], header: Mapping[str, int], comma: bool, width: int) -> Result:
    if len(row) > width:
        raise DataError(
            f"expected at most {width} cells, as in the header; got {len(row)}; a decimal comma? Then separate cells "
            "by semicolons"
        )
    cells: dict[str, Cell] = dict.fromkeys(COLUMNS, "")
    cells.update({column: row[i] for column, i in header.items() if i < len(row)})
    text = {column: plain(cell) for column, cell in cells.items()}
    text.update({column: design_name(cells[column]) for column in ("id", "sequence")})
    if not text["id"] and not text["sequence"]:
        raise DataError("expected an id or a sequence; got neither; fill in the id of the plate")
    status, why = _status(text["status"])
    value = None
    if status in (FAILED, PENDING):
        if text["value"].casefold() not in BLANK and not text["value"].startswith("#"):
            raise DataError(f"expected no value for a {status} design; got '{text['value']}'; empty one of them")
    elif text["value"] in ("", "-"):
        raise DataError("expected a value; got none; write it, or the status 'failed: why', or 'pending'")
    else:
        value = number(cells["value"], comma)
        if abs(value) > LARGEST:
            raise DataError(
                f"expected a value between {-LARGEST:g} and {LARGEST:g}; got {value:g} for "
                f"{text['id'] or text['sequence']}; correct it, or convert all values to another unit"
            )
    return Result(
        line=line,
        id=text["id"],
        sequence=text["sequence"],
        replicate=replicate_name(cells["replicate"]),
        value=value,
        failure=(why or text["reason"]) if status == FAILED else None,
        unit=unicodedata.normalize("NFKC", text["unit"]) or None,
    )


def _status(text: str) -> tuple[str, str]:
    """A known status, and the reason behind its colon."""
    word, _, reason = text.partition(":")
    known = STATUSES.get(word.strip().casefold())
    if known is None or (reason.strip() and known != FAILED):
        raise DataError(str(nearest(text, ["measured", "failed", "failed: why", "pending"], what="status")))
    return known, reason.strip()
