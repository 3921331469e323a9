"""Where a data set is: in ``$DIFFTILT_DATA``, else ``../shared/data`` beside the checkout, else the user's cache."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from difftilt.errors import DataError, nearest

from .image_record import check_images
from .images import ImageSet, read_images
from .readers import read_designs
from .registry import IMAGES, dataset, image_names, record_of
from .table import Table

SOURCE_ROOT = Path(__file__).resolve().parents[2]  # src/ in a checkout, site-packages in an installed wheel


def cache_root() -> Path:
    """The user's cache, where :func:`~difftilt.data.prepare` writes."""
    import pooch

    return Path(pooch.os_cache("difftilt"))


def data_roots() -> Iterator[Path]:
    """The folders searched, in order."""
    if os.environ.get("DIFFTILT_DATA"):
        yield Path(os.environ["DIFFTILT_DATA"])
    if SOURCE_ROOT.name == "src":
        yield SOURCE_ROOT.parent.parent / "shared" / "data"
    yield cache_root()


def find(name: str) -> Path | None:
    """The tidy file of a data set, or ``None`` where it has not been prepared.

    Raises:
        ConfigError: an unknown name.
    """
    record = record_of(name)
    return next((root / record.file for root in data_roots() if (root / record.file).is_file()), None)


def locate(name: str) -> Path:
    """The tidy file of a data set.

    Raises:
        ConfigError: an unknown name.
        DataError: the file is nowhere; names it, where it was looked for, and the command that gets it.
    """
    path = find(name)
    if path is None:
        places = ", ".join(map(str, data_roots()))
        raise DataError(
            f"expected the data file {record_of(name).file}; got none in {places}; run: difftilt data prepare {name}"
        )
    return path


def load(name: str) -> Table:
    """A data set, read from :func:`locate`; offline.

    Raises:
        ConfigError: an unknown name.
        DataError: the file is nowhere, or malformed.
    """
    dataset(name)
    return read_designs(locate(name))


def load_images(name: str) -> ImageSet:
    """A set of images, read from :func:`locate`; offline.

    Raises:
        ConfigError: not a set of images.
        DataError: the file is nowhere, malformed, or another set's.
    """
    if name not in IMAGES:
        raise nearest(name, image_names(), what="set of images")
    images = read_images(locate(name))
    check_images(IMAGES[name], images)
    return images
