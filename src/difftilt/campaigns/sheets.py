"""Files of a spreadsheet to rows of cells: encodings, separators, ``.xlsx``. What the cells mean is for ``results``.

Read as they are: UTF-8 with or without a byte order mark, UTF-16, Windows-1252; commas, semicolons or tabs; LF, CRLF
or CR; a first line ``sep=;`` or a title in one cell; comments before the header, that begin with ``#``; rows and
columns that are empty; workbooks (``.xlsx``, known by their content and not by their name) with results in one sheet.
"""

from __future__ import annotations

import codecs
import csv
import datetime
import hashlib
import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from difftilt.data.files import read_bytes
from difftilt.errors import ConfigError, DataError

Cell: TypeAlias = str | float
"""Text as it stands in a file, without spaces around it; a number only where the file itself says that it is one."""
Score: TypeAlias = Callable[[list[Cell]], int]
"""How much a row looks like the header: the number of columns known by name, 0 for none."""
OLD_EXCEL, ZIP = b"\xd0\xcf\x11\xe0", b"PK\x03\x04"
HEADER_WITHIN = 50
"""Rows in which the header is looked for."""


@dataclass(frozen=True)
class Sheet:
    """The cells of a file."""

    name: str
    digest: str
    """SHA-256 of the file's bytes."""
    rows: list[list[Cell]]
    """The header first; no row is empty, no cell at a row's end is."""
    lines: list[int]
    """Where each row stands, counted from 1."""
    separator: str = ""
    """What stands between cells of a text; semicolons do where the decimal sign is a comma."""


def read_sheet(path: Path, score: Score) -> Sheet:
    """The cells of a file from its header on.

    Args:
        path: CSV, text with tabs, or a workbook.
        score: tells the header.

    Raises:
        DataError: it cannot be read, or has no header; or rows above it are no comments.
        ConfigError: a workbook, and openpyxl is not installed.
    """
    data = read_bytes(path)
    digest = hashlib.sha256(data).hexdigest()
    if data.startswith(OLD_EXCEL):
        raise DataError(f"{path.name}: expected CSV or .xlsx; got an old .xls workbook; save it as .xlsx")
    if data.startswith(ZIP):
        rows, lines = _workbook(data, path.name, score)
        return Sheet(path.name, digest, *_from_header(rows, lines, path.name, score))
    text = _text(data, path.name)
    tried = [(delimiter, *_cells(text, delimiter)) for delimiter in ",;\t"]
    fits = [max((score(row) for row in rows[:HEADER_WITHIN]), default=0) for _, rows, _, _ in tried]
    delimiter, rows, lines, broken = tried[fits.index(max(fits))]
    if broken:
        raise DataError(f"{path.name}, {broken}; check its quotes")
    return Sheet(path.name, digest, *_from_header(rows, lines, path.name, score), separator=delimiter)


def _text(data: bytes, name: str) -> str:
    """The text of a file, by its byte order mark, else UTF-8, else what Excel on Windows writes.

    Raises:
        DataError: it is empty, or none of these.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encodings = ["utf-16"]
    elif data[1:2] == b"\0" or data[:1] == b"\0":  # UTF-16 that has lost its mark
        encodings = ["utf-16-le" if data[1:2] == b"\0" else "utf-16-be"]
    else:
        encodings = ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError as error:
            bad = error.start
            continue
        if "\0" in text:
            raise DataError(f"{name}: expected CSV or .xlsx; got a binary file; save it as one of these")
        if not text.strip():
            raise DataError(f"{name}: expected results; got an empty file; check how it was written")
        return text
    line = data.count(b"\n", 0, bad) + 1
    raise DataError(
        f"{name}, line {line}: expected text in UTF-8, UTF-16 or Windows-1252; got byte 0x{data[bad]:02x}; save it as "
        "'CSV UTF-8'"
    )


def _cells(text: str, delimiter: str) -> tuple[list[list[Cell]], list[int], str]:
    """Rows, the lines where they begin, and what is wrong with the quotes, if anything."""
    rows: list[list[Cell]] = []
    lines: list[int] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for row in reader:
            _add(rows, lines, [cell.strip() for cell in row], line)
            line = reader.line_num + 1
    except csv.Error as error:
        return rows, lines, f"line {line}: expected CSV; got {error}"
    return rows, lines, ""


def _workbook(data: bytes, name: str, score: Score) -> tuple[list[list[Cell]], list[int]]:
    """Rows of the one sheet that has a header."""
    try:
        import openpyxl
    except ImportError:
        raise ConfigError(
            f"expected openpyxl to read the workbook {name}; it is not installed; run: pip install 'difftilt[tables]'"
        ) from None
    try:
        book = openpyxl.load_workbook(io.BytesIO(data), data_only=True)
    except Exception:  # a damaged workbook fails in any layer: zip, inflate, XML, openpyxl
        raise DataError(f"{name}: expected an .xlsx workbook; got a damaged or different file; save it again") from None
    found: dict[str, tuple[list[list[Cell]], list[int]]] = {}
    for sheet in book.worksheets:
        rows: list[list[Cell]] = []
        lines: list[int] = []
        for number, row in enumerate(sheet.iter_rows(values_only=True), start=1):
            _add(rows, lines, [_cell(value) for value in row], number)
        if _header_row(rows, score) is not None:
            found[sheet.title] = rows, lines
    if len(found) > 1:
        raise DataError(f"{name}: expected results in one sheet; got {', '.join(found)}; leave one of them in the file")
    return next(iter(found.values()), ([], []))


def _cell(value: Any) -> Cell:
    """A cell of a workbook; a date stays readable, so that the line can be named."""
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value).strip()


def _add(rows: list[list[Cell]], lines: list[int], cells: list[Cell], line: int) -> None:
    """Add a row without the empty cells at its end; not if it is all empty."""
    while cells and cells[-1] == "":
        cells.pop()
    if cells:
        rows.append(cells)
        lines.append(line)


def _header_row(rows: list[list[Cell]], score: Score) -> int | None:
    return next((i for i, row in enumerate(rows[:HEADER_WITHIN]) if score(row) and not _comment(row)), None)


def _comment(row: list[Cell]) -> bool:
    return str(row[0]).startswith("#")


def _from_header(
    rows: list[list[Cell]], lines: list[int], name: str, score: Score
) -> tuple[list[list[Cell]], list[int]]:
    """What is left from the header on.

    Raises:
        DataError: there is none, or what stands above it is more than a title.
    """
    start = _header_row(rows, score)
    if start is None:
        first = ", ".join(str(cell) for cell in rows[0][:8]) if rows else "nothing"
        raise DataError(
            f"{name}: expected a header with the columns id (or sequence) and value (or status); got '{first:.100}'; "
            "name the columns in the first row"
        )
    no_title = [sum(cell != "" for cell in row) > 1 and not _comment(row) for row in rows[:start]]
    above = list(itertools.compress(lines, no_title))
    if above:
        raise DataError(
            f"{name}, line {above[0]}: expected the header (line {lines[start]}) first; got cells above it; was it "
            "sorted with the results? Move it up, or begin comments with '#'"
        )
    return rows[start:], lines[start:]
