"""``difftilt evaluate``, ``report`` and ``compare``: what finished runs are worth."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from difftilt.cli import flags
from difftilt.cli.progress import duration, number
from difftilt.errors import ConfigError
from difftilt.tracking.run import RunFolder


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags:
    """Flags of `difftilt evaluate`."""

    run: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """Folder of a finished run."""
    designs: int | None = None
    """Designs drawn before and after; the run's own number when not set."""
    seed: int | None = None
    """Seed of these designs; the run's own when not set."""


def evaluate_command(argv: Sequence[str]) -> None:
    """Run ``difftilt evaluate``."""
    asked = flags.parse(
        EvaluateFlags,
        argv,
        command="difftilt evaluate",
        summary="Draw new designs of a finished run and measure them again.",
    )
    if asked.designs is not None and asked.designs < 2:
        raise ConfigError(f"expected --designs 2 or more; got {asked.designs}; intervals need more than one")
    RunFolder.existing(asked.run)

    from difftilt.cli.job import load_job
    from difftilt.cli.kinds import plan_from
    from difftilt.cli.outcome import print_outcome
    from difftilt.cli.running import evaluate_again

    plan = plan_from(["--resume", str(asked.run)])
    run = RunFolder(asked.run)
    designs = plan.settings.designs if asked.designs is None else asked.designs
    seed = plan.loop.seed if asked.seed is None else asked.seed
    facts = evaluate_again(load_job(plan), run, designs=designs, seed=seed)
    print_outcome(facts, run.report)


@dataclass(frozen=True, kw_only=True)
class ReportFlags:
    """Flags of `difftilt report`."""

    run: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """Folder of a run, finished or not."""


def report_command(argv: Sequence[str]) -> None:
    """Run ``difftilt report``."""
    asked = flags.parse(
        ReportFlags, argv, command="difftilt report", summary="Write a run's report.html from its files."
    )
    run = RunFolder.existing(asked.run)

    from difftilt.report import write_report

    print(write_report(run))


@dataclass(frozen=True, kw_only=True)
class CompareFlags:
    """Flags of `difftilt compare`."""

    run: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN")]]
    """Folders of runs."""
    output: Annotated[Path, flags.short("-o")] = Path("compare.html")
    """Page to write."""


def compare_command(argv: Sequence[str]) -> None:
    """Run ``difftilt compare``."""
    asked = flags.parse(
        CompareFlags, argv, command="difftilt compare", summary="Put runs side by side: a table and a page."
    )
    if asked.output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"expected a file ending in .html after -o; got '{asked.output.name}'; rename it")
    runs = [RunFolder.existing(path) for path in asked.run]

    from difftilt.report import comparison_rows, write_comparison

    _print_rows(comparison_rows(runs))
    print(f"page  {write_comparison(runs, asked.output)}")


def _print_rows(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("run", "method", "alpha", "reward", "judge", "KL", "gap", "certified", "unique", "calls", "time"):
        table.add_column(title, no_wrap=True, justify="left" if title in ("run", "method", "certified") else "right")
    for row in rows:
        table.add_row(
            row["run"],
            row["method"],
            "-" if row["alpha"] is None else f"{row['alpha']:.3g}",
            _half(row, "reward"),
            _half(row, "judge"),
            {"at least": "≥ ", "at most": "≤ "}.get(row["kl_sense"], "") + number(row["kl_nats"], 2),
            number(row["gap_nats"], 2),
            _certified(row["verdict"]),
            "-" if row["unique"] is None else f"{row['unique']:.1%}",
            "-" if row["oracle_calls"] is None else f"{row['oracle_calls']:,.0f}",
            "-" if row["seconds"] is None else duration(row["seconds"]),
        )
    Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(table)


def _certified(verdict: str) -> str:
    known = {"certified": "yes", "not certified": "no", "steered": "-"}
    kind = verdict.partition(":")[0]
    return known.get(kind, kind)


def _half(row: dict[str, Any], name: str) -> str:
    mean, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
    if mean is None:
        return "-"
    return number(mean) if low is None else f"{number(mean)} ± {number((high - low) / 2)}"
