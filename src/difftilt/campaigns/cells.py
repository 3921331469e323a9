"""What one cell of a results file means, and the columns of numbers.

A decimal sign is told from the whole column, never from one cell: ``1,234`` alone may be 1.234 or 1234 and is
refused; with semicolons between cells, or a ``0,5`` elsewhere, it is 1.234. A separator of thousands is never read.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from difftilt.campaigns.sheets import Cell
from difftilt.errors import DataError

BLANK = frozenset({"", "na", "n/a", "nan", "none", "null", "-"})
MINUS = "\N{MINUS SIGN}"
"""What some spreadsheets write before a negative number."""
NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?", re.ASCII)
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}([.,]\d{3})+", re.ASCII)
WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
LARGEST = 1e100
"""Of any value: squares of larger ones are no numbers to a fit."""
FORMULA = re.compile(r'="(.*)"')
"""What some exports put around a text, so that no spreadsheet reads it as a number."""
NUMBERED = re.compile(r"0*(\d+?)([.,]0+)?", re.ASCII)
"""Whole numbers as people number wells, 01, and as columns with gaps have them, 1.0: spreadsheets save either as 1."""
DECIMALS = re.compile(r"\d+([eE][+-]?\d+)?\s?%?", re.ASCII)
"""What a separator may have cut off a number."""
WITH_UNIT = re.compile(r"[0-9]+([eE][+-]?[0-9]+)?\s?([^\W\d_]{1,3}(/[^\W\d_]{1,3})?)")
"""The same with a unit behind it: 62 nM, 62 mg/mL."""


def decimal_comma(cells: Iterable[Cell], semicolons: bool) -> bool:
    """Whether a column writes 1,5: by a cell that can mean nothing else, else as its separators make likely."""
    texts = [cell.replace(MINUS, "-") for cell in cells if isinstance(cell, str)]
    clear = [text for text in texts if NUMBER.fullmatch(text) and not THOUSANDS.fullmatch(text)]
    points, commas = (sum(sign in text for text in clear) for sign in ".,")
    return commas > points if commas or points else semicolons


def cut_decimals(rows: Iterable[tuple[int, list[Cell]]], place: int) -> dict[int, str]:
    """Lines where commas between cells may have cut ``0,62`` in two, and what is wrong with each.

    Such are all lines with digits right of the value, where every value is a whole number: those that were written
    0,62; of the same column, 1 has lost no decimals, so not every line has such digits. Digits with a unit are meant
    likewise where nothing but digits with that unit stands there; else they are remarks.

    Args:
        rows: lines and their cells.
        place: of the values.
    """
    texts = [(line, [str(cell).replace(MINUS, "-") for cell in row[place : place + 2]]) for line, row in rows]
    valued = [(line, *cells) for line, cells in texts if cells and cells[0].casefold() not in BLANK]
    if not all(WHOLE.fullmatch(value) for _, value, *_ in valued):
        return {}
    beside = [right[0] for _, _, *right in valued if right and right[0].casefold() not in BLANK]
    units = {found[2] if (found := WITH_UNIT.fullmatch(cell)) else None for cell in beside}
    cut = WITH_UNIT if len(units) == 1 and None not in units else DECIMALS
    return {
        line: f"expected numbers that show their decimal sign; got '{value}' and '{right[0]}' after a comma, where "
        f"{value},{right[0]} may be meant; separate cells by semicolons, or, if they are whole numbers, write {value}.0"
        for line, value, *right in valued
        if right and cut.fullmatch(right[0])
    }


def number(cell: Cell, comma: bool) -> float:
    """A finite number.

    Raises:
        DataError: anything else, with what to do.
    """
    if isinstance(cell, str):
        cell = cell.replace(MINUS, "-")
        if cell.startswith("#"):
            raise DataError(f"expected a number; got the spreadsheet's error '{cell}'; correct its formula")
        if not NUMBER.fullmatch(cell) and not THOUSANDS.fullmatch(cell):
            raise DataError(f"expected a number; got '{cell}'; write digits alone, or the status 'failed: why'")
        sign, other = (",", ".") if comma else (".", ",")
        if other in cell:
            raise DataError(
                f"expected numbers with one decimal sign, here '{sign}'; got '{cell}', which may be thousands; write "
                "it without them"
            )
        if cell.count(sign) > 1:
            raise DataError(f"expected a number; got '{cell}'; write it without separators of thousands")
        cell = float(cell.replace(",", "."))
    if not math.isfinite(cell):
        raise DataError(f"expected a finite number; got '{cell}'; write it, or the status 'failed: why'")
    return cell


def python_cell(value: Any) -> Cell:
    """A cell of a row given in Python."""
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return str(value).strip()
    try:
        return float(value) if hasattr(value, "__float__") else str(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError, RuntimeError):  # arrays and tensors of several numbers
        return str(value)


def plain(cell: Cell) -> str:
    """The text of a cell; a whole number without its point."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def design_name(cell: Cell) -> str:
    """What a cell calls a design, without what programs put around it, or unseen into it: ``'``, ``="``, U+200B."""
    text = "".join(letter for letter in plain(cell) if unicodedata.category(letter) != "Cf").strip()
    wrapped = FORMULA.fullmatch(text)
    return (wrapped[1] if wrapped else text).removeprefix("'").strip()


def replicate_name(cell: Cell) -> str:
    """What a cell calls a replicate; 1.0 and 01 are 1, and so is nothing."""
    text = design_name(cell) or "1"
    numbered = NUMBERED.fullmatch(text)
    return numbered[1] if numbered else text
