"""Molecules of one's own file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from difftilt.core.molecules import chemistry, read_molecules
from difftilt.data import Table, merge_repeats, read_designs
from difftilt.data.table import NAMED, named_rows
from difftilt.domains.task import FEWEST
from difftilt.errors import DataError


def read_own(path: Path, *, skip_invalid: bool = False) -> Table:
    """A file's molecules as canonical SMILES, one row per molecule.

    Args:
        path: CSV, FASTA or Parquet with a column ``smiles`` (else the first column is read).
        skip_invalid: leave out what is no molecule; :attr:`Table.skipped` says how many.

    Raises:
        DataError: a design is no molecule (lines and reasons are named), or there are too few.
    """
    table = read_designs(path, skip_invalid=skip_invalid)
    molecules, reasons = read_molecules(table.sequences)
    bad = [row for row, reason in enumerate(reasons) if reason is not None]
    if bad and not skip_invalid:
        raise DataError(f"{path}, {named_rows(bad, table.lines)}: {_fault(table, reasons, bad)}")
    to_smiles = chemistry("rdkit.Chem").MolToSmiles
    good = np.array([reason is None for reason in reasons])
    written = [to_smiles(molecule) for molecule in molecules if molecule is not None]
    table = merge_repeats(replace(table.keep(good), sequences=written))
    if len(table) < FEWEST:
        left_out = f" and {table.skipped} that are none" if table.skipped else ""
        raise DataError(f"{path}: expected at least {FEWEST} molecules; got {len(table)}{left_out}; add more")
    return table


def _fault(table: Table, reasons: list[str | None], rows: list[int]) -> str:
    said = "; ".join(f"'{table.sequences[row][:60]}' is {reasons[row]}" for row in rows[:NAMED])
    return (
        f"expected molecules in column '{table.sequence_column}'; got others ({said}); correct them, or --skip-invalid"
    )
