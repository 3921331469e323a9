"""What is known of a named data set: where it comes from, how it is tidied, what it must look like.

A set is one :class:`DataSet` record and one *tidy* function, together in a file of :mod:`difftilt.data.sets`. The
tidy function is pure: the texts of the origin files in, columns out. Everything else (finding, downloading, checking,
reading) works from the record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from difftilt.errors import DataError

from .table import Table

GITHUB = "https://raw.githubusercontent.com"

Columns: TypeAlias = dict[str, list[Any]]
"""Equally long columns in file order, the design first; ``None`` is a missing value."""


@dataclass(frozen=True)
class Origin:
    """One file of a public GitHub repository, at a commit.

    Attributes:
        repository: ``owner/name``.
        commit: 40 hex digits.
        path: the file inside the repository.
        sha256: checksum of the file; ``None`` where nobody has recorded it (the tidied result is checked instead).
    """

    repository: str
    commit: str
    path: str
    sha256: str | None = None

    def url(self, base: str = GITHUB) -> str:
        """The address under ``base``, which is GitHub or a mirror laid out like it."""
        return f"{base.rstrip('/')}/{self.repository}/{self.commit}/{self.path}"


@dataclass(frozen=True)
class DataSet:
    """A named data set.

    Attributes:
        name: what the user types.
        title: one line on what was measured.
        file: the tidy file, relative to a data root.
        sha256: checksum of the tidy file this project was built with. A file prepared elsewhere holds the same
            content but not the same compressed bytes, so a different checksum leads to :func:`difftilt.data.check`.
        rows: the row counts that are right.
        columns: names in file order, the design first; ``score`` is what one would maximise.
        length: letters per design; 0 where they differ.
        alphabet: the letters of a design.
        score_range: lowest and highest possible score.
        mean_score: mean of the score, and the tolerance that the accepted row counts leave it.
        without_score: rows that have none.
        landmarks: some designs and their score, which must be there.
        scored: the column that is meant by *score* here; a set may have properties, none of which is *the* score.
            ``None`` where nothing was measured.
        origins: public files the tidy file is made from.
        tidy: pure; texts of ``origins`` in their order -> columns.
        rule: what else must hold; returns what is wrong, or ``None``.
        licence: as found.
        citation: the paper to cite.
    """

    name: str
    title: str
    file: str
    sha256: str
    rows: tuple[int, ...]
    columns: tuple[str, ...]
    length: int
    alphabet: str
    score_range: tuple[float, float]
    mean_score: tuple[float, float]
    origins: tuple[Origin, ...]
    tidy: Callable[[Sequence[str]], Columns]
    rule: Callable[[Table], str | None]
    licence: str
    citation: str
    landmarks: Mapping[str, float] = field(default_factory=dict)
    without_score: int = 0
    scored: str | None = "score"


def pick(header: Sequence[str], *names: str) -> str:
    """The first of ``names`` that an origin file's header has.

    Raises:
        DataError: it has none of them: the origin is not the file the record names.
    """
    for name in names:
        if name in header:
            return name
    raise DataError(f"expected an origin file with a column {' or '.join(names)}; got {', '.join(header)[:200]}")
