"""The named data sets by name. To add one: a file in :mod:`difftilt.data.sets`, and its name in :data:`SETS` here."""

from __future__ import annotations

from difftilt.errors import nearest

from .record import DataSet
from .sets import enhancers, gb1, molecules, splicing, tfbind8, utr_mrl, yeast_promoter

SETS: dict[str, DataSet] = {
    record.name: record
    for module in (utr_mrl, yeast_promoter, enhancers, gb1, splicing, tfbind8, molecules)
    for record in module.SETS
}
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
