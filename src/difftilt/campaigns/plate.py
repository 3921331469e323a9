"""Plates: wells of 96, and the CSV that goes to the lab."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from difftilt.campaigns.history import WITHDRAWN, Design, History
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
    """A plate as CSV: ``id, sequence, round, well, mean, std, reason``; what is not predicted is empty.

    Predictions have four digits here, and all of them in the data base.
    """
    return csv_text(
        {
            "id": [design.id for design in designs],
            "sequence": [design.design for design in designs],
            "round": [design.round for design in designs],
            "well": [design.well for design in designs],
            "mean": [_short(design.mean) for design in designs],
            "std": [_short(design.std) for design in designs],
            "reason": [design.reason for design in designs],
        }
    )


def _short(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.4g}")


def plate_again(history: History, number: int) -> tuple[list[Design], int]:
    """The plate of a round that was proposed before, and how many of its designs were withdrawn: these are left out.

    Raises:
        ConfigError: there is no such round, or nothing of it is left.
    """
    if not history.rounds:
        raise ConfigError(f"expected a round that was proposed; got {number}, and none was yet; leave out --round")
    proposed = [design for design in history.designs if design.round == number]
    if not proposed:
        raise ConfigError(f"expected a round from 1 to {len(history.rounds)}; got {number}; see `campaign history`")
    designs = [design for design in proposed if design.state != WITHDRAWN]
    if not designs:
        raise ConfigError(
            f"expected a round with designs to measure; got {number}, whose {len(proposed)} were all withdrawn; ask "
            "for another plate"
        )
    return designs, len(proposed) - len(designs)


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
