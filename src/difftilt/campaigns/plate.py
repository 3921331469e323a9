"""Plates: wells of 96, and the CSV that goes to the lab."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from difftilt.campaigns.history import Design
from difftilt.data.files import check_writable, replacing
from difftilt.data.writers import csv_text
from difftilt.errors import ConfigError

ROWS, COLUMNS = "ABCDEFGH", 12
WELLS = len(ROWS) * COLUMNS


def wells(n: int) -> list[str]:
    """Wells of ``n`` designs, row by row: A1 ... A12, B1 ... H12; of several plates P1-A1 ... P2-A1 ..."""
    names = []
    for i in range(n):
        plate, place = divmod(i, WELLS)
        well = f"{ROWS[place // COLUMNS]}{place % COLUMNS + 1}"
        names.append(well if n <= WELLS else f"P{plate + 1}-{well}")
    return names


def plate_text(designs: Sequence[Design]) -> str:
    """A plate as CSV: ``id, sequence, round, well, mean, std, reason``; what is not predicted is empty."""
    return csv_text(
        {
            "id": [design.id for design in designs],
            "sequence": [design.design for design in designs],
            "round": [design.round for design in designs],
            "well": [design.well for design in designs],
            "mean": [design.mean for design in designs],
            "std": [design.std for design in designs],
            "reason": [design.reason for design in designs],
        }
    )


def check_plate(path: Path) -> None:
    """Find out before designs are paid for that a plate could not be written.

    Raises:
        ConfigError: it is there already, it is no ``.csv``, or its folder cannot be written.
    """
    if path.suffix.lower() != ".csv":
        raise ConfigError(f"expected a file ending in .csv for a plate; got '{path.name}'; rename it")
    if path.exists():
        raise ConfigError(
            f"expected a new file for a plate; got '{path}', which exists and may hold results; choose another name"
        )
    check_writable(path)


def write_plate(path: Path, designs: Sequence[Design]) -> None:
    """Write a plate, whole or not at all, and never over a file.

    Raises:
        ConfigError: see :func:`check_plate`.
    """
    check_plate(path)
    with replacing(path) as temporary:
        temporary.write_text(plate_text(designs), encoding="utf-8")
