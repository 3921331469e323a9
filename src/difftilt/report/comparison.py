"""Several runs side by side: plain rows for the command line, and a page with judge against KL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from difftilt.data.files import replacing
from difftilt.errors import ConfigError
from difftilt.tracking.run import RunFolder

from . import charts, sentences
from .charts import Spot
from .facts import RunFacts, read_run
from .figures import Figure
from .objectives import between_runs
from .page import render
from .rounding import Estimate, finite
from .tables import naturalness


def comparison_rows(runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """One plain record per run, in the order given; what a run does not have is ``None``.

    Keys: ``run, task, method, alpha, reward, reward_low, reward_high, judge, judge_low, judge_high, kl_nats, kl_error,
    kl_sense, gap_nats, gap_error, verdict, unique, oracle_calls, seconds``.

    Raises:
        StateError: a folder holds no run.
    """
    return [_row(read_run(run)) for run in runs]


def compare(runs: Sequence[RunFolder]) -> str:
    """The page that sets runs side by side, as HTML.

    Raises:
        ConfigError: no run was given.
        StateError: a folder holds no run.
    """
    if not runs:
        raise ConfigError("expected at least one run folder to compare; got none; name the folders of some runs")
    facts = [read_run(run) for run in runs]
    tasks = list(dict.fromkeys(run.task for run in facts))
    of_task = {task: [run for run in facts if run.task == task] for task in tasks}
    figures = [(task, figure) for task, runs_of in of_task.items() if (figure := _figure(runs_of))]
    several = [(task, figure) for task, runs_of in of_task.items() if (figure := between_runs(runs_of))]
    looks = [(task, runs_of, likeness(runs_of)) for task, runs_of in of_task.items()]
    return render(
        "comparison.html.j2",
        title=f"{len(facts)} runs compared",
        tasks=tasks,
        rewards=list(dict.fromkeys(run.reward_name for run in facts)),
        figures=figures,
        several=several,
        looks=[look for look in looks if look[2]],
        rows=[(_row(run), run) for run in facts],
        places=min(map(sentences.score_places, facts)),
        spent=sentences.spent,
        plus_minus=sentences.plus_minus,
    )


def write_comparison(runs: Sequence[RunFolder], path: Path) -> Path:
    """Write :func:`compare` to a file.

    Raises:
        ConfigError: no run was given, or the page cannot be written.
        StateError: a folder holds no run.
    """
    text = compare(runs)
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _row(facts: RunFacts) -> dict[str, Any]:
    reward, judge = facts.estimate("after", "reward"), facts.estimate("after", "judge")
    nothing = (None, None, None)
    return {
        "run": facts.name,
        "task": facts.task,
        "method": facts.method,
        "alpha": facts.alpha,
        **dict(zip(("reward", "reward_low", "reward_high"), reward or nothing, strict=True)),
        **dict(zip(("judge", "judge_low", "judge_high"), judge or nothing, strict=True)),
        "kl_nats": facts.number("kl_nats", "mean"),
        "kl_error": facts.number("kl_nats", "error"),
        "kl_sense": facts.get("kl_nats", "sense"),
        "gap_nats": facts.number("gap", "gap_nats"),
        "gap_error": facts.number("gap", "error"),
        "verdict": _verdict(facts),
        "unique": facts.number("after", "unique_fraction"),
        "oracle_calls": finite(facts.cost("oracle_calls")),
        "seconds": finite(facts.cost("seconds")),
    }


class Likeness(NamedTuple):
    """How designs look in one property: of the pretrained model, and of each run."""

    label: str
    note: str
    pretrained: tuple[str, float | None]
    """Text, and the number behind it."""
    runs: list[tuple[str, float | None]]


def likeness(runs: Sequence[RunFacts]) -> list[Likeness]:
    """Properties of the designs of runs of one task; that of the pretrained model is of the first run that has it."""
    tables = [{row.label: row for row in naturalness(run)} for run in runs]
    rows = []
    for label in dict.fromkeys(label for table in tables for label in table):
        found = [table.get(label) for table in tables]
        first = next(row for row in found if row is not None)
        pretrained = next((row for row in found if row is not None and row.before is not None), first)
        rows.append(
            Likeness(
                label,
                first.note,
                (pretrained.shown[0], None if pretrained.before is None else pretrained.before.mean),
                [("–", None) if row is None or row.after is None else (row.shown[1], row.after.mean) for row in found],
            )
        )
    return rows


def _verdict(facts: RunFacts) -> str:
    """What is known of the gap; a sampler has none."""
    if facts.sampler is not None and facts.estimate("after", "reward") is not None:
        return "steered: no gap"
    return str(facts.get("gap", "verdict") or "not evaluated")


def _figure(runs: Sequence[RunFacts]) -> Figure | None:
    """Judge (reward, where no run has a judge) against KL: the runs, where they started, and best-of-N at equal KL."""
    judged = any(run.estimate("after", "judge") is not None for run in runs)
    name = "judge" if judged else "reward"
    spots, yardsticks = [], []
    for run in runs:
        after, kl = run.estimate("after", name), run.number("kl_nats", "mean")
        if after is None or kl is None or run.get("kl_nats", "sense") == "at least":
            continue
        error = run.number("kl_nats", "error") or 0.0
        spots.append(Spot(run.name, Estimate(kl, kl - sentences.Z95 * error, kl + sentences.Z95 * error), after, name))
        best, spent = run.estimate("best_of_n", "equal_kl", name), run.number("best_of_n", "equal_kl", "kl_bound_nats")
        if best is not None and spent is not None:
            n = run.number("best_of_n", "equal_kl", "n")
            yardsticks.append(Spot(f"best of {n:.0f}" if n else "best of N", Estimate(spent), best, "yardstick"))
        before = run.estimate("before", name)
        if before is not None and not any(spot.label == "pretrained" for spot in yardsticks):
            yardsticks.append(Spot("pretrained", Estimate(0.0), before, "yardstick"))
    axis = runs[0].score_name if judged or runs[0].same_scale else runs[0].reward_axis
    label = f"{name.capitalize()}, {axis}"
    distinct = list({(spot.label, spot.x.mean): spot for spot in yardsticks}.values())
    svg = charts.scatter([*spots, *distinct], x_label="KL to pretrained, nats", y_label=label) if spots else None
    if svg is None:
        return None
    caption = (
        "Bars: 95 % intervals. Open circles: the pretrained model, and best-of-N at its bound on the KL. "
        "Up and left is better."
    )
    if len(spots) < len(runs):
        caption += " Runs whose KL is not known, or only from below, are left out."
    return Figure(svg, caption)
