"""Tables of designs from CSV, FASTA and Parquet files.

CSV: a header, then one design a row; comma, semicolon or tab (told by the header); quotes, CRLF and a byte order mark
are fine; with semicolons a decimal comma is read too. A column without a name (a data frame's index) is left out.
FASTA: ``>id key=value ...``, e.g. ``>d1 score=1.23``; the keys become columns. Empty fields and NA, NaN, None, null
are missing.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from difftilt.errors import ConfigError, DataError

from .files import read_bytes, read_text
from .table import SEQUENCE_NAMES, Table, name_columns, named_rows

MISSING = frozenset({"", "na", "n/a", "nan", "none", "null"})
FASTA_FIELD = re.compile(r"(?:^|[\s|])([A-Za-z_]\w*)=([^\s|]*)")


def read_designs(path: str | PathLike[str], *, skip_invalid: bool = False) -> Table:
    """Read one's own designs.

    The design column is ``sequence``, ``seq`` or ``smiles``, else the first; the score column is ``score``, ``value``
    or ``reward``, else there is none. Letters and lengths are for :func:`~difftilt.data.validate` to check.

    Args:
        path: ``.csv``, ``.tsv``, ``.fa``, ``.fasta`` (each also with ``.gz``) or ``.parquet``.
        skip_invalid: leave out rows without a design; :attr:`Table.skipped` says how many.

    Returns:
        The table, rows in file order, repeats included.

    Raises:
        DataError: the file is missing, empty, of another kind or malformed; the line is named.
        ConfigError: a Parquet file, and pyarrow is not installed.
    """
    path = Path(path)
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    if kind in (".csv", ".tsv"):
        table = _read_csv(path, tabs=kind == ".tsv")
    elif kind in (".fa", ".fasta"):
        table = _read_fasta(path)
    elif path.suffix.lower() == ".parquet":
        table = _read_parquet(path)
    else:
        raise DataError(f"expected a .csv, .tsv, .fasta or .parquet file; got '{path}'; convert it to one of these")
    return _without_empty(table, skip_invalid=skip_invalid)


def _read_csv(path: Path, *, tabs: bool) -> Table:
    text = read_text(path)
    start = text.lstrip("\r\n").splitlines()[0]
    delimiter = "\t" if tabs else max(",;\t", key=start.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        for row in reader:
            if any(row):
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: expected CSV; got {error}; check its quotes") from None
    header = [name.strip() for name in rows.pop(0)]
    lines.pop(0)
    if not rows:
        raise DataError(f"{path}: expected a design in each row below the header; got a header only; add designs")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise DataError(
                f"{path}, line {line}: expected {len(header)} fields as in the header; got {len(row)}; quote fields "
                f"that hold {delimiter!r}"
            )
    columns = {i: name for i, name in enumerate(header) if name}
    sequence, score = name_columns(list(columns.values()) or [""], path)
    if not sequence:
        raise DataError(f"{path}: expected a header such as sequence,score; got no column names; add them")
    cells = {name: [row[i] for row in rows] for i, name in columns.items()}
    designs = [cell.strip() for cell in cells.pop(sequence)]
    if sequence.lower() not in SEQUENCE_NAMES and _is_design(sequence, designs):
        raise DataError(
            f"{path}, line 1: expected a header such as sequence,score; got what looks like a design; add a header"
        )
    comma = delimiter == ";"
    numbers = {
        name: _column(values, name, path, lines, required=name == score, comma=comma) for name, values in cells.items()
    }
    return Table(path, designs, numbers, sequence, score, np.array(lines))


def _read_fasta(path: Path) -> Table:
    names: list[str] = []
    lines: list[int] = []
    fields: list[dict[str, str]] = []
    parts: list[list[str]] = []
    for line, text in enumerate(read_text(path).splitlines(), start=1):
        text = text.strip()
        if text.startswith(">"):
            names.append(unquote(text[1:].split(maxsplit=1)[0] if text[1:].strip() else ""))
            fields.append({key: unquote(value) for key, value in FASTA_FIELD.findall(text[1:])})
            lines.append(line)
            parts.append([])
        elif text and not parts:
            raise DataError(f"{path}, line {line}: expected a FASTA header that starts with '>'; got text; add one")
        elif text:
            parts[-1].append("".join(text.split()))
    designs = ["".join(part) for part in parts]
    keys = list(dict.fromkeys(key for record in fields for key in record if key != "id"))
    _, score = name_columns(["sequence", *keys], path)
    columns = {"id": np.array(names, dtype=str)}
    for key in keys:
        values = [record.get(key, "") for record in fields]
        columns[key] = _column(values, key, path, lines, required=key == score)
    return Table(path, designs, columns, "sequence", score, np.array(lines))


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ConfigError(
            f"expected pyarrow to read {path.name}; it is not installed; run: pip install 'difftilt[tables]'"
        ) from None
    data = read_bytes(path)
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError):
        raise DataError(f"{path}: expected a Parquet file; got a damaged or different one; write it again") from None
    if not table.num_columns or not table.num_rows:
        raise DataError(f"{path}: expected designs; got an empty table; check how it was written")
    sequence, score = name_columns(table.column_names, path)
    cells = {name: table.column(name).to_pylist() for name in table.column_names}
    designs = ["" if value is None else value for value in cells.pop(sequence)]
    if not all(isinstance(design, str) for design in designs):
        raise DataError(f"{path}: expected text in column '{sequence}'; got {table.schema.field(sequence).type}")
    designs = [design.strip() for design in designs]
    columns = {}
    for name, values in cells.items():
        texts = ["" if value is None else repr(value) if isinstance(value, float) else str(value) for value in values]
        if pa.types.is_boolean(table.schema.field(name).type):
            texts = [{"True": "1", "False": "0"}.get(text, text) for text in texts]
        columns[name] = _column(texts, name, path, None, required=name == score)
    return Table(path, designs, columns, sequence, score)


def _column(
    texts: Sequence[str], name: str, path: Path, lines: Sequence[int] | None, *, required: bool, comma: bool = False
) -> np.ndarray:
    """Float64 where every text is a number or missing, else text; ``id`` is always text.

    Raises:
        DataError: ``required`` (a score), and a text is neither, or infinite.
    """
    numbers = None if name.lower() == "id" else _numbers(texts, comma=comma)
    if required and (numbers is None or np.isinf(numbers).any()):
        each = [_numbers([text], comma=comma) for text in texts]
        index = next(i for i, number in enumerate(each) if number is None or np.isinf(number[0]))
        raise DataError(
            f"{_place(path, lines, index)}: expected a finite number in column '{name}'; got {texts[index]!r}; "
            "correct it or leave it empty"
        )
    return np.array(texts, dtype=str) if numbers is None else numbers


def _numbers(texts: Sequence[str], *, comma: bool) -> np.ndarray | None:
    """The texts as float64, missing ones as NaN; ``None`` if one of them is no number."""
    plain = [math.nan if text.strip().lower() in MISSING else text for text in texts]
    if comma:
        plain = [text.replace(",", ".") if isinstance(text, str) else text for text in plain]
    try:
        return np.array([float(text) for text in plain]) if not any("_" in text for text in texts) else None
    except ValueError:
        return None


def _is_design(name: str, designs: Sequence[str]) -> bool:
    return set(name) <= set("".join(designs)) and len(name) in {len(design) for design in designs}


def _without_empty(table: Table, *, skip_invalid: bool) -> Table:
    there = np.array([bool(design) for design in table.sequences], dtype=bool)
    empty = np.flatnonzero(~there).tolist()
    if empty and not skip_invalid:
        raise DataError(
            f"{table.path}, {named_rows(empty, table.lines)}: expected a design; got an empty one; fill or drop it, or "
            "--skip-invalid"
        )
    return table.keep(there)


def _place(path: Path, lines: Sequence[int] | None, index: int) -> str:
    return f"{path}, row {index + 1}" if lines is None else f"{path}, line {lines[index]}"
