"""The short table at the end of a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from difftilt.cli.progress import duration, number


def print_outcome(facts: Mapping[str, Any], report: Path) -> None:
    """Print the facts of ``evaluation.json`` for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), title_justify="left")
    calls, kl = (facts["best_of_n"][kind] for kind in ("equal_calls", "equal_kl"))
    for title in ("", "before", "after", f"best of {calls['n']}", f"best of {kl['n']}"):
        table.add_column(title, no_wrap=True)
    notes = [f"equal {what}{_cut(best)}" for what, best in (("calls", calls), ("KL", kl))]
    table.add_row(*(f"[dim]{text}[/dim]" for text in ("mean, 95 % interval", "", "", *notes)))
    for name in ("reward", "judge"):
        cells = [_interval(facts[side].get(name)) for side in ("before", "after")]
        table.add_row(name, *cells, number(calls[name]), number(kl[name]))
    console.print(f"\n[bold]{facts['task']}[/bold] tuned by {facts['algorithm']}, {facts['updates']} updates")
    console.print(table)
    for line in summary_lines(facts):
        console.print(line, soft_wrap=True)
    console.print(f"report      {report}", soft_wrap=True)


def summary_lines(facts: Mapping[str, Any]) -> list[str]:
    """Everything but the table: alpha, KL, gap, uniqueness, cost."""
    gap, kl, after, cost = facts["gap"], facts["kl_nats"], facts["after"], facts["cost"]
    budget = facts.get("kl_budget")
    found = "" if budget is None else f", found for a KL budget of {budget:g} nats"
    lines = [
        f"alpha       {facts['alpha']:.4g} reward units per nat{found}",
        f"KL          {_with_error(kl['mean'], kl['error'])} nats from the pretrained model",
        f"gap         {_with_error(gap['gap_nats'], gap['error'])} nats to the optimum, {gap['verdict']}",
    ]
    if after["feasible_fraction"] < 1:
        lines.append(
            f"feasible    {facts['before']['feasible_fraction']:.1%} before, {after['feasible_fraction']:.1%} after"
        )
    if "unique_fraction" in after:
        lines.append(f"unique      {after['unique_fraction']:.1%} of {facts['designs']:,} designs")
    lines.append(f"calls       {cost['oracle_calls']:,} in training, {cost['evaluation_calls']:,} more to evaluate")
    lines.append(f"time        {duration(cost['seconds'])} training, {duration(cost['evaluation_seconds'])} evaluation")
    return lines


def _cut(best: Mapping[str, Any]) -> str:
    return f" would be {best['wanted']}" if best["wanted"] > best["n"] else ""


def _interval(value: Mapping[str, float | None] | None) -> str:
    if value is None or value["mean"] is None:
        return "-"
    return f"{number(value['mean'])} [{number(value['low'])}, {number(value['high'])}]".replace("[", r"\[")


def _with_error(value: float | None, error: float | None) -> str:
    return number(value, 2) if error is None else f"{number(value, 2)} ± {number(error, 2)}"
