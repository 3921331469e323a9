"""The short table at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from difftilt.cli.progress import duration, number

MANY = 1_000_000
"""Designs beyond which a number of them is not told."""


def print_outcome(facts: Mapping[str, Any], report: Path) -> None:
    """Print the facts of ``evaluation.json`` for people."""
    if "sampler" in facts:
        how = f"steered by {facts['sampler']}, {facts['designs']:,} designs"
    else:
        how = f"tuned by {facts['algorithm']}, {facts['updates']} updates"
    print(f"\n{facts['task']} {how}; means, 95 % intervals:\n")
    rows: list[tuple[str, ...]] = [("", "reward", "judge")]
    rows += [
        (side, *(_interval(facts[side].get(name)) for name in ("reward", "judge"))) for side in ("before", "after")
    ]
    for kind, what in (("equal_calls", "equal calls"), ("equal_kl", "equal KL")):
        best = facts["best_of_n"][kind]
        if best is None:
            continue
        wanted = f"{best['wanted']:,}" if best["wanted"] < MANY else f"more than {MANY:,}"
        cut = f" would be {wanted}" if best["wanted"] > best["n"] else ""
        rows.append((f"best of {best['n']} ({what}{cut})", number(best["reward"]), number(best["judge"])))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        print("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print()
    for line in [*summary_lines(facts), f"report      {report}"]:
        print(line)


def summary_lines(facts: Mapping[str, Any]) -> list[str]:
    """Everything but the table: alpha, KL, gap or log Z, uniqueness, cost."""
    after, cost, doing = facts["after"], facts["cost"], "steering" if "sampler" in facts else "training"
    lines = _steered(facts) if "sampler" in facts else _tuned(facts)
    if "objectives" in facts:
        lines += _objectives(facts["objectives"])
    feasible = [facts[side]["feasible_fraction"] for side in ("before", "after")]
    if min(feasible) < 1:
        lines.append(f"feasible    {feasible[0]:.1%} before, {feasible[1]:.1%} after")
    if "unique_fraction" in after:
        lines.append(f"unique      {after['unique_fraction']:.1%} of {facts['designs']:,} designs{_weighed(after)}")
    lines.append(f"calls       {cost['oracle_calls']:,} in {doing}, {cost['evaluation_calls']:,} more to evaluate")
    lines.append(f"time        {duration(cost['seconds'])} {doing}, {duration(cost['evaluation_seconds'])} evaluation")
    return lines


def _objectives(several: Mapping[str, Any]) -> list[str]:
    """The mean of each number before and after, and dominated volumes."""
    names = list(several["after"]["means"])
    width = max(10, *map(len, names))
    lines = [
        f"{name.ljust(width)}  {number(several['before']['means'][name]['mean'])} before, "
        f"{number(several['after']['means'][name]['mean'])} after"
        for name in names
    ]
    volumes = [several[side].get("hypervolume") for side in ("before", "after")]
    if None not in volumes:
        lines.append(f"front       dominates a volume of {number(volumes[0])} before, {number(volumes[1])} after")
    return lines


def _weighed(after: Mapping[str, Any]) -> str:
    """What repeats are made by weights alone."""
    drawn = after.get("distinct_drawn")
    return "" if drawn is None else f" drawn again by weight; {drawn:.1%} before"


def _tuned(facts: Mapping[str, Any]) -> list[str]:
    gap, kl, budget = facts["gap"], facts["kl_nats"], facts.get("kl_budget")
    found = "" if budget is None else f", found for a KL budget of {budget:g} nats"
    return [
        f"alpha       {facts['alpha']:.4g} reward units per nat{found}",
        f"KL          {_with_error(kl['mean'], kl['error'])} nats from the pretrained model",
        f"gap         {_with_error(gap['gap_nats'], gap['error'])} nats to the optimum, {gap['verdict']}",
    ]


def _steered(facts: Mapping[str, Any]) -> list[str]:
    kl, log_z, effective = facts["kl_nats"], facts["log_z"], facts["effective_designs"]
    bound = f"{kl['sense']} " if kl["sense"].startswith("at ") else ""
    lines = [] if facts["alpha"] is None else [f"alpha       {facts['alpha']:.4g} reward units per nat"]
    spent = f"{bound}{_with_error(kl['mean'], kl['error'] or None)} nats from the pretrained model"
    lines.append(f"KL          {'not known' if kl['mean'] is None else spent}")
    if log_z is not None:
        pair = [_with_error(log_z[name], log_z[f"{name}_error"], "unknown") for name in ("sampler", "independent")]
        lines.append(f"log Z       {pair[0]} nats; independently {pair[1]}")
    if round(effective) < facts["designs"]:
        lines.append(f"weights     worth {effective:,.0f} equal ones of {facts['designs']:,}")
    return lines


def _interval(value: Mapping[str, float | None] | None) -> str:
    if value is None or value["mean"] is None:
        return "-"
    if value["low"] is None:
        return number(value["mean"])
    return f"{number(value['mean'])} [{number(value['low'])}, {number(value['high'])}]"


def _with_error(value: float | None, error: float | None, missing: str | None = None) -> str:
    shown = missing if error is None else number(error, 2)
    return number(value, 2) if shown is None else f"{number(value, 2)} ± {shown}"
