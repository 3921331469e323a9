"""Bytes on disk: text in, with errors that name the line; files out, whole or not at all."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from difftilt.errors import ConfigError, DataError


def read_unzipped(path: Path) -> bytes:
    """The bytes of a file, unpacked where it ends in ``.gz``.

    Raises:
        DataError: it is missing, a folder, unreadable, or cut short.
    """
    data = read_bytes(path)
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(f"{path}: expected a whole gzip file; got a damaged or cut one; copy it again") from None


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark; ``.gz`` and ``.zip`` are unpacked.

    An archive, ``.zip`` or a tar in a ``.gz``, holds one file.

    Raises:
        DataError: it is missing, a folder, unreadable, empty, cut short, or not UTF-8 (the line is named).
    """
    data = read_unzipped(path)
    if path.suffix == ".gz" and data[257:262] == b"ustar":
        data = _only_packed(path, data)
    if path.suffix == ".zip":
        data = _only_member(path)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: expected UTF-8 text; got UTF-16; save it again as UTF-8 (in Excel: 'CSV UTF-8')")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: expected UTF-8 text; got byte 0x{data[error.start]:02x}; save it again as UTF-8"
        ) from None
    if "\0" in text:
        raise DataError(f"{path}: expected text; got a binary file; export it as CSV, FASTA or Parquet")
    if not text.strip():
        raise DataError(f"{path}: expected designs; got an empty file; check how it was written")
    return text


def _only_member(path: Path) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
            if len(names) != 1:
                raise DataError(f"{path}: expected one file in it; got {len(names)}; unpack it")
            return archive.read(names[0])
    except zipfile.BadZipFile:
        raise DataError(f"{path}: expected a whole zip file; got a damaged or cut one; copy it again") from None


def _only_packed(path: Path, data: bytes) -> bytes:
    """The one file of a tar archive."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [member for member in archive.getmembers() if member.isfile() and "/._" not in f"/{member.name}"]
        opened = archive.extractfile(members[0]) if len(members) == 1 else None
        if opened is None:
            raise DataError(f"{path}: expected one file in it; got {len(members)}; unpack it")
        return opened.read()


def read_bytes(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        DataError: it is missing, a folder, or may not be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"expected a readable file; got {path}: {error.strerror or error}; check the path") from None


def check_writable(path: Path) -> None:
    """Find out, before work is done, that a file could not be written. Missing folders are made.

    Raises:
        ConfigError: the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{path.name}.probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"expected to write '{path}'; got '{error.strerror}'; choose another place") from error


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """A temporary path beside ``path`` that takes its place on success and disappears on failure.

    A reader sees the old file or the new one, never a part. Missing folders are made.

    Raises:
        ConfigError: the place cannot be written.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"expected to write {path}; got {error.strerror or error}; choose another place") from error
