"""``difftilt verify``: the truth table."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difftilt.cli import flags
from difftilt.cli.progress import duration, say
from difftilt.errors import ConfigError

COMMAND = "difftilt verify"


@dataclass(frozen=True, kw_only=True)
class VerifyFlags:
    """Flags of `difftilt verify`."""

    algorithm: str | None = None
    """Only this algorithm or sampler, all its variants unless one is named (smc:bootstrap)."""
    process: str | None = None
    """Only problems over this process."""
    problem: str | None = None
    """Only this problem; tfbind8 for all its factors."""
    full: bool = False
    """All pairs, not only those that matter most."""
    json: Path | None = None
    """File for the rows, written as they finish; pairs it has are not run again."""
    jobs: int = 2
    """Processes, one thread each."""
    seed: int = 0
    """Seed of every random stream."""
    render: Path | None = None
    """Run nothing: print the rows of this file as Markdown."""


def command(argv: Sequence[str]) -> None:
    """Run ``difftilt verify``; leaves with status 1 where a claim failed."""
    asked = flags.parse(
        VerifyFlags,
        argv,
        command=COMMAND,
        summary="Run methods on problems with exact answers, and judge each against the law that it claims.",
    )
    if asked.jobs < 1:
        raise ConfigError(f"expected --jobs 1 or more; got {asked.jobs}; correct it")
    from difftilt.verification import table

    if asked.render is not None:
        say(table.page(asked.render).rstrip())
        return
    from difftilt.verification.claims import pairs

    chosen = pairs(asked.algorithm, asked.process, asked.problem, full=asked.full)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes
    file = table.RowFile(asked.json, asked.seed)
    missing = file.missing(chosen)
    wanted = {(pair.label, pair.problem) for pair in chosen}
    rows = [row for row in file.rows if (row["algorithm"], row["problem"]) in wanted]
    try:
        with Shown(len(chosen), rows) as shown:
            for row in table.run(missing, asked.seed, jobs=asked.jobs):
                file.add(row)
                shown.add(row)
    except KeyboardInterrupt:
        again = f"go on with: {shlex.join([*COMMAND.split(), *argv])}"
        raise KeyboardInterrupt(f"stopped; {again if asked.json else '--json FILE keeps what was made'}") from None
    verdicts = [row["passed"] for row in rows]
    spent = sum(row["seconds"] or 0 for row in rows)
    say(
        f"{verdicts.count(True)} claims hold, {verdicts.count(False)} fail, {verdicts.count(None)} pairs without a "
        f"claim, undefined or without data; {duration(spent)} of one core"
    )
    if False in verdicts:
        raise SystemExit(1)


class Shown:
    """The table as it grows: drawn again on a terminal, a line for each row and the table at the end elsewhere.

    Args:
        total: rows in the end.
        rows: those at hand; added to.
    """

    def __init__(self, total: int, rows: list[dict[str, Any]]) -> None:
        self.total, self.rows, self._live = total, rows, None

    def __enter__(self) -> Shown:
        if sys.stdout.isatty():
            from rich.live import Live

            self._live: Any = Live(self._table(), auto_refresh=False, vertical_overflow="visible")
            self._live.start(refresh=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
        elif error[0] is None:
            from rich.console import Console

            Console(width=150).print(self._table())

    def add(self, row: dict[str, Any]) -> None:
        """One more row."""
        from difftilt.verification.table import cells

        self.rows.append(row)
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            return
        say(f"{len(self.rows)}/{self.total}  {'  '.join(cells(row))}")
        say(f"    {row['reason']}")

    def _table(self) -> Any:
        from rich.table import Table

        from difftilt.verification.table import COLUMNS, cells

        colours = {True: "green", False: "bold red", None: "dim"}
        drawn = Table(caption=f"{len(self.rows)} of {self.total}")
        for name in COLUMNS:
            drawn.add_column(name, justify="left" if name in COLUMNS[:3] else "right")
        for row in self.rows:
            drawn.add_row(*cells(row), style=colours[row["passed"]])
        return drawn
