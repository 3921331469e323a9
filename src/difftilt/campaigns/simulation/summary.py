r"""What many simulated campaigns say: means with intervals, and ranks of strategies over tasks.

An interval of a mean over ``n`` seeds, or tasks, is Student's,

.. math:: \bar x \pm t_{0.975, n - 1}\, s / \sqrt n                                                          \qquad (1)

none with one of them. Strategies are ranked on each task and seed, 1 the best, ties sharing their mean rank; ranks are
averaged over a task's seeds, then over tasks, with (1) over tasks: tasks are what one would generalise over. Two
strategies are compared the same way, by (1) of their differences on each task, seeds averaged, or, where there is one
task, on each seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from difftilt.campaigns.simulation.measures import Row
from difftilt.core.stats import ranks

STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
""":math:`t_{0.975}` with 1 to 30 degrees of freedom."""
NORMAL = 1.96
BETTER = {"best": "largest", "regret": "smallest"}
"""What strategies are ranked by."""


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % interval."""

    mean: float
    half: float | None
    """Half the width of (1); ``None`` of one value."""
    n: int

    def text(self, digits: int = 3) -> str:
        """With its interval, so many decimals."""
        return f"{self.mean:.{digits}f}" + ("" if self.half is None else f" ± {self.half:.{digits}f}")


def mean_of(values: Iterable[float | None]) -> Mean | None:
    """Equation (1); ``None`` where a value is missing, or there is none."""
    known = list(values)
    if not known or any(value is None for value in known):
        return None
    numbers = [float(value) for value in known if value is not None]
    n = len(numbers)
    if n == 1:
        return Mean(numbers[0], None, 1)
    t = STUDENT[n - 2] if n - 2 < len(STUDENT) else NORMAL
    return Mean(statistics.fmean(numbers), t * statistics.stdev(numbers) / n**0.5, n)


def unique(rows: Iterable[Row], key: Callable[[Row], str]) -> list[str]:
    """Distinct keys in the order of their first row."""
    return list(dict.fromkeys(key(row) for row in rows))


def last(rows: Sequence[Row]) -> list[Row]:
    """The last round of each campaign."""
    return list({(row.task, row.strategy, row.seed): row for row in sorted(rows, key=lambda row: row.round)}.values())


def mean_ranks(rows: Sequence[Row], by: str) -> dict[str, Mean]:
    """Mean rank of each strategy over the tasks and seeds that all of them have finished.

    Args:
        rows: of every round of every campaign.
        by: a name of :data:`BETTER`; strategies that never have it are left out.
    """
    final = {(row.task, row.seed, row.strategy): getattr(row, by) for row in last(rows)}
    strategies = [name for name in unique(rows, lambda row: row.strategy)
                  if any(value is not None for key, value in final.items() if key[2] == name)]  # fmt: skip
    sign = -1.0 if BETTER[by] == "largest" else 1.0
    of_task: dict[str, list[torch.Tensor]] = {}
    for task, seed in dict.fromkeys(key[:2] for key in final):
        values = [final.get((task, seed, name)) for name in strategies]
        known = [value for value in values if value is not None]
        if len(known) == len(strategies) > 1:
            of_task.setdefault(task, []).append(ranks(sign * torch.tensor(known, dtype=torch.float64)))
    if not of_task:
        return {}
    table = torch.stack([torch.stack(found).mean(0) for found in of_task.values()])
    found = {name: mean_of(table[:, i].tolist()) for i, name in enumerate(strategies)}
    return {name: mean for name, mean in found.items() if mean is not None}


def final_values(rows: Sequence[Row], by: str) -> dict[str, dict[str | int, float]]:
    """Of each strategy, the last round's value by task, seeds averaged; by seed where there is one task."""
    finals = [row for row in last(rows) if getattr(row, by) is not None]
    many = len({row.task for row in rows}) > 1
    found: dict[str, dict[str | int, list[float]]] = {}
    for row in finals:
        found.setdefault(row.strategy, {}).setdefault(row.task if many else row.seed, []).append(getattr(row, by))
    return {name: {unit: statistics.fmean(each) for unit, each in own.items()} for name, own in found.items()}


def differences(rows: Sequence[Row], by: str) -> dict[str, dict[str, Mean]]:
    """Mean of the first strategy less that of the second, paired; of those that have ``by`` on the same units."""
    values = final_values(rows, by)
    found: dict[str, dict[str, Mean]] = {name: {} for name in values}
    for first, own in values.items():
        for second, other in values.items():
            mean = mean_of(own[unit] - other[unit] for unit in own) if own.keys() == other.keys() else None
            if first != second and mean is not None:
                found[first][second] = mean
    return found


def pooled_coverage(rows: Sequence[Row], first: int = 3) -> dict[str, float]:
    """Share of the measurements of round ``first`` and later within the 90 % intervals forecast of them."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.round >= first and row.coverage_90 is not None:
            found.setdefault(row.strategy, []).append(row.coverage_90)
    return {name: statistics.fmean(each) for name, each in found.items()}


COLUMNS = {
    "best": "best found",
    "top_share": "top share",
    "batch_mean": "mean of the last plate",
    "reward": "E[r]",
    "regret": "regret of J",
    "infeasible": "infeasible",
    "diversity": "diversity",
    "coverage_90": "90 % coverage",
    "seconds": "s a round",
}
"""Of the table."""
OVER_ROUNDS = ("infeasible", "diversity", "coverage_90", "seconds")
"""Of these the mean over rounds; of the others the last round's."""


def final_means(rows: Sequence[Row], task: str, strategy: str) -> dict[str, Mean | None]:
    """Each of :data:`COLUMNS`, over seeds."""
    own = [row for row in rows if (row.task, row.strategy) == (task, strategy)]
    seeds = sorted({row.seed for row in own})

    def of_seed(name: str, seed: int) -> float | None:
        mine = sorted((row for row in own if row.seed == seed), key=lambda row: row.round)
        if name not in OVER_ROUNDS:
            return getattr(mine[-1], name)
        known = [value for row in mine if (value := getattr(row, name)) is not None]
        return statistics.fmean(known) if known else None

    return {name: mean_of([of_seed(name, seed) for seed in seeds]) for name in COLUMNS}


def markdown(rows: Sequence[Row]) -> str:
    """Ranks, then a table for each task."""
    parts = ["# Simulated campaigns\n", "Means with 95 % intervals: of ranks over tasks, of all else over seeds.\n"]
    by_what = {name: mean_ranks(rows, name) for name in BETTER}
    if any(by_what.values()):
        names = list(dict.fromkeys(name for found in by_what.values() for name in found))
        head = [f"mean rank by {COLUMNS[name]}" for name in BETTER]
        lines = [[name, *(_cell(found.get(name), "rank") for found in by_what.values())] for name in names]
        tasks = max(mean.n for found in by_what.values() for mean in found.values())
        parts.append(f"## Over {tasks} task{'s' if tasks > 1 else ''}\n\n" + _table(["strategy", *head], lines))
    parts += _compared(rows)
    for task in unique(rows, lambda row: row.task):
        means = {
            name: final_means(rows, task, name)
            for name in unique((row for row in rows if row.task == task), lambda row: row.strategy)
        }
        shown = [column for column in COLUMNS if any(found[column] is not None for found in means.values())]
        lines = [[name, *(_cell(found[column], column) for column in shown)] for name, found in means.items()]
        parts.append(f"## {task}\n\n" + _table(["strategy", *(COLUMNS[column] for column in shown)], lines))
    return "\n".join(parts)


def _compared(rows: Sequence[Row]) -> list[str]:
    """Strategies against one another, and how far their forecasts could be trusted."""
    parts = []
    for by, name in {"regret": "Regret of J", "best": "Best found"}.items():
        found = differences(rows, by)
        if any(found.values()):
            lines = [[first, *(_cell(own.get(second), by) for second in found)] for first, own in found.items()]
            told = f"## {name}, paired\n\nThe row's strategy less the column's, after the last round.\n\n"
            parts.append(told + _table(["", *found], lines))
    covered = pooled_coverage(rows)
    if covered:
        lines = [[name, f"{100 * share:.1f} %"] for name, share in covered.items()]
        told = "## Measurements within the 90 % intervals forecast of them\n\nFrom round 3 on, all tasks and seeds.\n\n"
        parts.append(told + _table(["strategy", "within"], lines))
    return parts


def _cell(mean: Mean | None, column: str) -> str:
    return "" if mean is None else mean.text({"rank": 2, "top_share": 5}.get(column, 3))


def _table(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
