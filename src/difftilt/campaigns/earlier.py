"""Files of designs: those measured before the campaign, and those to be avoided, as the codec writes them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from difftilt.campaigns.history import History
from difftilt.core.codec import Codec
from difftilt.data import Table, read_designs
from difftilt.errors import DataError


def read_as(codec: Codec, file: str) -> Table:
    """A file, its designs written as the codec writes them: of DNA ``acgu`` is ``ACGT``.

    Raises:
        DataError: it cannot be read, or the codec cannot read one of its designs.
    """
    table = read_designs(Path(file))
    try:
        return replace(table, sequences=codec.decode(codec.encode(table.sequences)))
    except DataError as error:
        raise DataError(f"{file}: {error}") from None


def measured_before(file: str | None, codec: Codec) -> tuple[list[str], list[float]]:
    """Designs and scores of a file; designs without a score are not among them.

    Raises:
        DataError: it cannot be read, or has no scores.
    """
    if file is None:
        return [], []
    table = read_as(codec, file)
    scores = [] if table.score_column is None else table.scores.tolist()
    rows = [row for row in zip(table.sequences, scores, strict=False) if not math.isnan(row[1])]
    if not rows:
        raise DataError(f"{file}: expected designs with a score; got none; name the column 'score'")
    return [design for design, _ in rows], [score for _, score in rows]


def known(history: History, codec: Codec) -> frozenset[str]:
    """Designs that are not proposed: those of the campaign, and those measured before it."""
    return history.known | set(measured_before(history.settings.picking.start, codec)[0])
