"""The short table at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from difftilt.cli.progress import duration, number


def print_outcome(facts: Mapping[str, Any], report: Path) -> None:
    """Print the facts of ``evaluation.json`` for people."""
    print(f"\n{facts['task']} tuned by {facts['algorithm']}, {facts['updates']} updates; means, 95 % intervals:\n")
    rows: list[tuple[str, ...]] = [("", "reward", "judge")]
    rows += [
        (side, *(_interval(facts[side].get(name)) for name in ("reward", "judge"))) for side in ("before", "after")
    ]
    for kind, what in (("equal_calls", "equal calls"), ("equal_kl", "equal KL")):
        best = facts["best_of_n"][kind]
        cut = f" would be {best['wanted']:,}" if best["wanted"] > best["n"] else ""
        rows.append((f"best of {best['n']} ({what}{cut})", number(best["reward"]), number(best["judge"])))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        print("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print()
    for line in [*summary_lines(facts), f"report      {report}"]:
        print(line)


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


def _interval(value: Mapping[str, float | None] | None) -> str:
    if value is None or value["mean"] is None:
        return "-"
    return f"{number(value['mean'])} [{number(value['low'])}, {number(value['high'])}]"


def _with_error(value: float | None, error: float | None) -> str:
    return number(value, 2) if error is None else f"{number(value, 2)} ± {number(error, 2)}"
