"""Figures of simulated campaigns: a page for each task, and mean ranks over tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from difftilt.campaigns.simulation.measures import Row
from difftilt.campaigns.simulation.summary import COLUMNS, mean_of, mean_ranks, unique
from difftilt.data.files import replacing

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Told apart with any colour vision (Okabe and Ito)."""
STYLES = ("-", "--", ":")
FORMATS = ("png", "svg")
PANELS = {
    "best": "best found",
    "batch_mean": "mean of the round's designs",
    "reward": "E[r] of the tuned policy",
    "regret": "regret of J (p_pre = 1)",
    "infeasible": "infeasible share of the round",
    "coverage_90": "90 % intervals: share within",
}
WITHOUT_UNIT = {"regret": "share of p_pre's", "infeasible": "share", "coverage_90": "share"}
"""Labels of the axes of panels that are not in units of the reward."""


def look_of(strategies: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and line of each strategy."""
    return {name: (COLOURS[i % 7], STYLES[i // 7 % 3]) for i, name in enumerate(strategies)}


def draw_task(rows: Sequence[Row], batch: int, unit: str, stem: Path) -> list[Path]:
    """A panel for each number over measurements; lines are means over seeds, bands their 95 % intervals.

    Axes span what was seen; with few seeds bands may run out of the frame.

    Args:
        rows: of one task.
        batch: designs of a round.
        unit: of the reward.
        stem: of the files.
    """
    shown = [name for name in PANELS if any(getattr(row, name) is not None for row in rows)]
    if not any(row.infeasible for row in rows):
        shown.remove("infeasible")
    columns = min(3, len(shown))
    height = -(-len(shown) // columns)
    figure = _figure(4.0 * columns, 3.1 * height + 0.9)
    look = look_of(unique(rows, lambda row: row.strategy))
    for i, name in enumerate(shown, start=1):
        axes = figure.add_subplot(height, columns, i)
        for strategy, (colour, style) in look.items():
            _line(axes, [row for row in rows if row.strategy == strategy], name, batch, strategy, colour, style)
        axes.set_title(PANELS[name], fontsize=10)
        axes.set_xlabel("measurements")
        axes.set_ylabel(WITHOUT_UNIT.get(name, unit))
        axes.grid(alpha=0.3)
        seen = [value for row in rows if (value := getattr(row, name)) is not None]
        margin = 0.06 * (max(seen) - min(seen)) or 0.05
        axes.set_ylim(min(seen) - margin, max(seen) + margin)
        if name == "coverage_90":
            axes.axhline(0.9, color="0.4", linewidth=0.8)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=min(4, len(labels)), frameon=False, fontsize=9)
    seeds = len({row.seed for row in rows})
    figure.suptitle(f"{rows[0].task}: mean of {seeds} seed{'s' if seeds > 1 else ''}, 95 % intervals", fontsize=11)
    figure.tight_layout(rect=(0, 0.06 + 0.05 * (len(labels) // 5), 1, 0.98))
    return _save(figure, stem)


def draw_ranks(rows: Sequence[Row], stem: Path) -> list[Path]:
    """Mean ranks over tasks, 1 the best, by what was found and by regret."""
    found = {name: ranked for name in ("best", "regret") if (ranked := mean_ranks(rows, name))}
    if not found:
        return []
    figure = _figure(4.4 * len(found), 1.4 + 0.34 * max(map(len, found.values())))
    look = look_of(unique(rows, lambda row: row.strategy))
    for i, (name, ranked) in enumerate(found.items(), start=1):
        axes = figure.add_subplot(1, len(found), i)
        order = sorted(ranked, key=lambda strategy: ranked[strategy].mean, reverse=True)
        for y, strategy in enumerate(order):
            mean = ranked[strategy]
            axes.errorbar(mean.mean, y, xerr=mean.half, fmt="o", color=look[strategy][0], capsize=3)
        axes.set_yticks(range(len(order)), order)
        axes.set_xlabel("mean rank (1 is the best)")
        tasks = next(iter(ranked.values())).n
        axes.set_title(f"by {COLUMNS[name]}, {tasks} task{'s' if tasks > 1 else ''}", fontsize=10)
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    return _save(figure, stem)


def _line(axes: Any, rows: Sequence[Row], name: str, batch: int, label: str, colour: str, style: str) -> None:
    """Means and intervals of the rounds in which every seed has the number."""
    seeds = len({row.seed for row in rows})
    x, middle, low, high = [], [], [], []
    for number in sorted({row.round for row in rows}):
        values = [value for row in rows if row.round == number and (value := getattr(row, name)) is not None]
        mean = mean_of(values)
        if mean is None or mean.n < seeds:
            continue
        half = 0.0 if mean.half is None else mean.half
        x.append(number * batch)
        middle.append(mean.mean)
        low.append(mean.mean - half)
        high.append(mean.mean + half)
    axes.plot(x, middle, style, color=colour, label=label, linewidth=1.6, marker="o", markersize=2.5)
    axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _save(figure: Any, stem: Path) -> list[Path]:
    import matplotlib

    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in FORMATS]
    with matplotlib.rc_context({"svg.hashsalt": "difftilt"}):
        for path in paths:
            with replacing(path) as temporary:
                own = {"Date": None} if path.suffix == ".svg" else None
                figure.savefig(temporary, format=path.suffix[1:], dpi=130, metadata=own)
    return paths
