"""The named data sets by name: tables of designs, and images.

To add one: a file in :mod:`difftilt.data.sets`, and its name in :data:`SETS` or :data:`IMAGES` here.
"""

from __future__ import annotations

from difftilt.errors import nearest

from .image_record import ImageRecord
from .record import DataSet
from .sets import enhancers, gb1, gfp, molecules, splicing, tfbind8, utr_mrl, yeast_promoter
from .sets.images import SETS as IMAGE_SETS

SETS: dict[str, DataSet] = {
    record.name: record
    for module in (utr_mrl, yeast_promoter, enhancers, gb1, gfp, splicing, tfbind8, molecules)
    for record in module.SETS
}
IMAGES: dict[str, ImageRecord] = {record.name: record for record in IMAGE_SETS}
ALIASES = {"tfbind8": "tfbind8/SIX6_REF_R1"}


def names() -> list[str]:
    """The names of the data sets, aliases left out."""
    return list(SETS)


def dataset(name: str) -> DataSet:
    """The record of a data set.

    Raises:
        ConfigError: an unknown name; the nearest is proposed.
    """
    record = SETS.get(ALIASES.get(name, name))
    if record is None:
        raise nearest(name, [*SETS, *ALIASES], what="data set")
    return record


def image_names() -> list[str]:
    """The names of the sets of images."""
    return list(IMAGES)


def record_of(name: str) -> DataSet | ImageRecord:
    """The record of a set of whatever kind.

    Raises:
        ConfigError: an unknown name; the nearest is proposed.
    """
    if name in IMAGES:
        return IMAGES[name]
    if name in SETS or name in ALIASES:
        return dataset(name)
    raise nearest(name, [*SETS, *ALIASES, *IMAGES], what="data set")
