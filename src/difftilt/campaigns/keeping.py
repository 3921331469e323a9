"""Folders that a campaign keeps beside its data base: whole or not there, and never changed.

A folder is named by its content. A proposal that crashed after its model was kept repeats itself, finds the same name
and uses it; another proposal of the same round gets another name. So nothing is ever overwritten, and the data base,
which names the folder in the transaction that pays for the plate, is right whoever comes first.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from difftilt.errors import StateError

MODELS = "models"
"""Folder of the policies of the rounds."""
PRETRAINED = "p_pre"
"""Name of the model that is no folder."""


def keep(parent: Path, stem: str, write: Callable[[Path], None]) -> str:
    """Keep a folder.

    Args:
        parent: where; made when missing.
        stem: what its name begins with, e.g. ``"round-3"``.
        write: fills a new, empty folder.

    Returns:
        Its name below ``parent``: the stem and a hash of the content.

    Raises:
        StateError: it cannot be written.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{stem}-", dir=parent))
        try:
            write(temporary)
            name = f"{stem}-{_seal(temporary)[:12]}"
            if not (parent / name).is_dir():
                temporary.chmod(0o755)
                temporary.rename(parent / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise StateError(
            f"expected to write a folder in '{parent}'; got '{error.strerror or error}'; check its disk and rights"
        ) from error
    return name


def _seal(folder: Path) -> str:
    """Bring every file of a folder to the disk; the hash of their names and contents."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
            digest.update(hashlib.file_digest(file, "sha256").digest())
            os.fsync(file.fileno())
    return digest.hexdigest()
