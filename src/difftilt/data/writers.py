"""Designs to CSV, FASTA and Parquet files, whole or not at all.

Numbers are written with ``repr``, so they come back to the last bit; a missing value (NaN, ``None``) is left empty.
FASTA holds one line per sequence, and the other columns as ``key=value`` in the header; spaces, ``|`` and ``%`` in
these are percent-encoded, which :func:`~difftilt.data.read_designs` undoes.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import numpy as np
import torch

from difftilt.errors import ConfigError, ShapeError

from .files import replacing
from .table import SEQUENCE_NAMES

Plain: TypeAlias = Mapping[str, Sequence[Any]]
Columnar: TypeAlias = Mapping[str, Sequence[Any] | np.ndarray | torch.Tensor]

SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in "%|")


def write_designs(path: str | PathLike[str], columns: Columnar) -> None:
    """Write designs; the suffix chooses the format.

    Args:
        path: ends in ``.csv``, ``.fasta`` or ``.parquet``. An old file is replaced only once the new one is whole.
        columns: name -> values (list, array or tensor), equally long, in the order they are to stand. FASTA needs
            ``sequence``, ``seq`` or ``smiles``, and takes the record names from ``id`` (else ``design_1``, ...).

    Raises:
        ConfigError: another suffix; the place cannot be written; FASTA without sequences; Parquet without pyarrow.
        ShapeError: columns of different lengths.
    """
    path = Path(path)
    plain: Plain = {
        name: values.tolist() if isinstance(values, np.ndarray | torch.Tensor) else values
        for name, values in columns.items()
    }
    lengths = {name: len(values) for name, values in plain.items()}
    if len(set(lengths.values())) != 1:
        raise ShapeError(f"expected columns of one length; got {lengths or 'no column'}; cut them alike")
    kind = path.suffix.lower()
    if kind == ".csv":
        data = csv_text(plain).encode()
    elif kind == ".fasta":
        data = _fasta_text(plain, path).encode()
    elif kind == ".parquet":
        data = _parquet_bytes(plain, path)
    else:
        raise ConfigError(f"expected a file ending in .csv, .fasta or .parquet; got '{path.name}'; rename it")
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def csv_text(columns: Plain) -> str:
    """``columns`` as CSV: a header, LF line ends, numbers by ``repr``, missing values empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(_texts(values) for values in columns.values()), strict=True))
    return out.getvalue()


def _fasta_text(columns: Plain, path: Path) -> str:
    name = next((name for name in SEQUENCE_NAMES if name in columns), None)
    if name is None:
        raise ConfigError(f"expected sequences for {path.name}; got columns {', '.join(columns)}; write .csv instead")
    titles = _texts(columns["id"]) if "id" in columns else [f"design_{i + 1}" for i in range(len(columns[name]))]
    keys = {column: re.sub(r"\W", "_", column) for column in columns if column not in (name, "id")}
    fields = {key: _texts(columns[column]) for column, key in keys.items()}
    records = []
    for row, (title, sequence) in enumerate(zip(titles, columns[name], strict=True)):
        rest = [f"{key}={quote(texts[row], SAFE)}" for key, texts in fields.items() if texts[row]]
        records.append(f">{' '.join([quote(title, SAFE), *rest])}\n{sequence}\n")
    return "".join(records)


def _parquet_bytes(columns: Plain, path: Path) -> bytes:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ConfigError(
            f"expected pyarrow to write {path.name}; it is not installed; run: pip install 'difftilt[tables]'"
        ) from None
    out = io.BytesIO()
    pq.write_table(pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()}), out)
    return out.getvalue()


def _texts(values: Sequence[Any]) -> list[str]:
    """Fields: numbers by ``repr``, NaN and ``None`` empty, truth values 1 and 0."""
    texts = []
    for value in values:
        if value is None:
            texts.append("")
        elif isinstance(value, (bool, np.bool_)):
            texts.append(str(int(value)))
        elif isinstance(value, (float, np.floating)):
            texts.append("" if math.isnan(value) else repr(float(value)))
        else:
            texts.append(str(value))
    return texts
