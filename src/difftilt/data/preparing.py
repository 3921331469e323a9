"""A data set from its public origin: download, tidy, check, put in place.

The origin files' checksums are not on record, so the *result* is checked (:func:`check`): columns, row count,
letters, range and mean of the score, designs with known scores, each set's own rules. The same check takes the files
this project was built with. For ``utr-mrl`` the origin has more rows than ours (20,000 for 18,000); both counts pass.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

import numpy as np

from difftilt.errors import DataError

from .files import read_bytes, read_text, replacing
from .image_record import ImageRecord
from .places import cache_root, find
from .readers import read_designs
from .record import GITHUB, DataSet, Origin
from .registry import record_of
from .table import Table
from .writers import csv_text

MIRROR = "DIFFTILT_DATA_MIRROR"


def prepare(name: str, *, origin: str | None = None, root: str | PathLike[str] | None = None) -> Path:
    """Make a data set available; idempotent, and offline where it is there already.

    Args:
        name: the data set.
        origin: base address to download from in place of raw.githubusercontent.com, laid out like it
            (``<base>/<owner>/<repository>/<commit>/<path>``); default ``$DIFFTILT_DATA_MIRROR``, else GitHub.
        root: data root to look in and write to; default: any place :func:`~difftilt.data.locate` knows, and the
            user's cache to write to.

    Returns:
        The tidy file.

    Raises:
        ConfigError: an unknown name; the place cannot be written.
        DataError: a download failed; its result, or a file outside the cache, is not what the record says.
    """
    record = record_of(name)
    if isinstance(record, ImageRecord):
        return _prepare_images(record, origin, root)
    target = (cache_root() if root is None else Path(root)) / record.file
    present = find(name) if root is None else target
    if present is not None and present.is_file():
        try:
            if hashlib.sha256(read_bytes(present)).hexdigest() != record.sha256:
                check(record, read_designs(present))
            return present
        except DataError:
            if present != target:
                raise
    base = origin if origin is not None else os.environ.get(MIRROR) or GITHUB
    with tempfile.TemporaryDirectory() as folder:
        texts = [
            _download(source, base, Path(folder) / f"{i}{Path(source.path).suffix}")
            for i, source in enumerate(record.origins)
        ]
    try:
        columns = record.tidy(texts)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{record.name}: expected the origin's own format from {base}; got {error}; name a mirror in {MIRROR}"
        ) from error
    with replacing(target) as temporary:
        temporary.write_bytes(gzip.compress(csv_text(columns).encode(), mtime=0))
        fault = next(_faults(record, read_designs(temporary)), None)
        if fault is not None:
            raise DataError(f"{record.name} from {base}: {fault}; name a mirror of the origin in {MIRROR}")
    return target


def _prepare_images(record: ImageRecord, origin: str | None, root: str | PathLike[str] | None) -> Path:
    """The files of a set of images, whole; fetched where the origin has them as they are.

    Raises:
        DataError: they are not there, and were put together from more files than can be fetched; or a download failed.
    """
    folder = cache_root() if root is None else Path(root)
    present = find(record.name) if root is None else folder / record.file
    if present is not None and present.is_file():
        found = present.parents[len(Path(record.file).parts) - 1]
        if all(_sha256(found / file) == digest for file, digest in record.files.items()):
            return present
    if not record.origins:
        raise DataError(
            f"expected {record.file} with sha256 {record.sha256[:12]}... in {folder}; got no such file, and it is made "
            f"of {record.source}; copy it from where this project's data are, or pass your own images with --data"
        )
    base = origin if origin is not None else os.environ.get(MIRROR) or GITHUB
    for source, file in zip(record.origins, record.files, strict=True):
        with replacing(folder / file) as temporary:
            _fetch(source, base, temporary)
    return folder / record.file


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(read_bytes(path)).hexdigest() if path.is_file() else None


def check(record: DataSet, table: Table) -> None:
    """Is ``table`` the data set that ``record`` describes?

    Raises:
        DataError: it is not; says in what.
    """
    fault = next(_faults(record, table), None)
    if fault is not None:
        raise DataError(f"{table.path}: {fault}; delete it, then run: difftilt data prepare {record.name}")


def _faults(record: DataSet, table: Table) -> Iterator[str]:
    """What is wrong, the basic first: a later fault is only meaningful where there is no earlier one."""
    columns = (table.sequence_column, *table.columns)
    if columns != record.columns:
        yield f"expected columns {', '.join(record.columns)}; got {', '.join(columns)}"
    if len(table) not in record.rows:
        yield f"expected {' or '.join(map(str, record.rows))} rows; got {len(table)}"
    letters, lengths = set("".join(table.sequences)), {len(sequence) for sequence in table.sequences}
    if not letters <= set(record.alphabet) or (record.length and lengths != {record.length}):
        got = f"{sorted(lengths)[:5]} of {''.join(sorted(letters))}"
        yield f"expected {record.length or 'any number of'} letters of {record.alphabet}; got {got}"
    if record.scored is not None:
        yield from _score_faults(record, table, table.column(record.scored))
    wrong = record.rule(table)
    if wrong is not None:
        yield f"expected consistent rows; got {wrong}"


def _score_faults(record: DataSet, table: Table, scores: np.ndarray) -> Iterator[str]:
    """What is wrong with the scores."""
    low, high = record.score_range
    scored = scores[~np.isnan(scores)]
    if not ((scored >= low) & (scored <= high)).all() or len(table) - len(scored) != record.without_score:
        yield f"expected scores from {low} to {high}; got others, or missing ones"
    mean, tolerance = record.mean_score
    if abs(scored.mean() - mean) > tolerance:
        yield f"expected a mean score within {tolerance} of {mean}; got {scored.mean()}"
    known = {(s, round(float(v), 5)) for s, v in zip(table.sequences, scores, strict=True)}
    for design, score in record.landmarks.items():
        if (design, round(score, 5)) not in known:
            yield f"expected score {score} for {design}; got another, or none"


def _download(source: Origin, base: str, path: Path) -> str:
    _fetch(source, base, path)
    return read_text(path)


def _fetch(source: Origin, base: str, path: Path) -> None:
    import pooch

    url = source.url(base)
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)  # pooch would print advice for its own users
    try:
        pooch.retrieve(url, known_hash=source.sha256, path=path.parent, fname=path.name)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"expected to download {url}; got {reason}; check the network, or name a mirror in {MIRROR}"
        ) from error
    finally:
        logger.setLevel(level)
