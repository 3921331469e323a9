"""Several objectives on a page: each by itself before and after, bounds, and the fronts of the first two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from difftilt.metrics.pareto import hypervolume

from . import charts
from .charts import Spot
from .facts import RunFacts
from .figures import Figure
from .rounding import Estimate, decimals, estimate, finite, given
from .svg import Canvas, spanning

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 360, 260, 46, 26, 222


class Row(NamedTuple):
    """One number of the designs."""

    name: str
    role: str
    """Its weight in the sum, or its bound."""
    before: Estimate | None
    after: Estimate | None
    places: int


def objective_rows(facts: RunFacts) -> list[Row]:
    """Objectives with their weights, then what is only required; empty where the reward is one number."""
    roles = {str(term.get("name")): f"weight {_number(term.get('weight'))}" for term in _records(facts, "objectives")}
    for term in _records(facts, "requirements"):
        name, told = str(term.get("name")), f"required {term.get('sense')} {_number(term.get('bound'))}"
        roles[name] = f"{roles[name]}, {told}" if name in roles else told
    rows = []
    for name, role in roles.items():
        before, after = (estimate(facts.get("objectives", side, "means", name)) for side in ("before", "after"))
        halves = [value.half_width for value in (before, after) if value is not None]
        rows.append(Row(name, role, before, after, decimals(halves)))
    return rows


def pareto(facts: RunFacts) -> Figure | None:
    """Feasible designs by the first two objectives, and the fronts; better is up and to the right or as weights say."""
    named = [str(term.get("name")) for term in _records(facts, "objectives")]
    if len(named) < 2:
        return None
    clouds = {side: _points(facts.get("objectives", side, "points")) for side in ("before", "after")}
    fronts = {side: sorted(_points(facts.get("objectives", side, "front"))) for side in ("before", "after")}
    every = [point for points in (*clouds.values(), *fronts.values()) for point in points]
    if not every:
        return None
    canvas = Canvas(WIDTH, HEIGHT, f"{named[1]} against {named[0]} of designs before and after")
    x = spanning([point[0] for point in every], LEFT, WIDTH - 10)
    y = spanning([point[1] for point in every], BOTTOM, TOP)
    canvas.text(2, 12, named[1], "label strong")
    canvas.left_axis(y, LEFT, WIDTH - 10)
    canvas.bottom_axis(x, BOTTOM, TOP, label=named[0])
    for side, kind in (("before", "yardstick"), ("after", "reward")):
        for point in clouds[side]:
            canvas.mark(x(point[0]), y(point[1]), kind, radius=1.8)
        if len(named) == 2 and len(fronts[side]) > 1:
            canvas.curve([(x(a), y(b)) for a, b in fronts[side]], f"curve {kind}")
    key = [("pretrained", "yardstick"), (facts.done, "reward")]
    many = "" if len(named) == 2 else f"; the first two of {len(named)} objectives"
    volumes = [finite(facts.get("objectives", side, "hypervolume")) for side in ("before", "after")]
    told = ""
    if volumes[0] is not None and volumes[1] is not None:
        told = f" Dominated volume: {given(_round(volumes[0]))} before, {given(_round(volumes[1]))} after."
    return Figure(canvas.markup(), f"Lines join designs that no other beats in every objective{many}.{told}", key)


def between_runs(runs: Sequence[RunFacts]) -> Figure | None:
    """Means of the first two objectives of runs that share them, and each run's volume above one common reference."""
    shared = [run for run in runs if len(_records(run, "objectives")) > 1]
    named = [str(term.get("name")) for term in _records(shared[0], "objectives")][:2] if shared else []
    shared = [run for run in shared if {str(t.get("name")) for t in _records(run, "objectives")} >= set(named)]
    spots, bounds = [], []
    for run in shared:
        means = [run.estimate("objectives", "after", "means", name) for name in named]
        before = [run.estimate("objectives", "before", "means", name) for name in named]
        if means[0] is not None and means[1] is not None:
            spots.append(Spot(run.name, means[0], means[1], "reward"))
        own = _records(run, "requirements")
        if before[0] is not None and before[1] is not None and own not in bounds:  # of other bounds others are feasible
            bounds.append(own)
            name = "pretrained" if len(bounds) == 1 else f"pretrained, as {run.name}"
            spots.append(Spot(name, before[0], before[1], "yardstick"))
    if sum(spot.kind == "reward" for spot in spots) < 2:
        return None
    svg = charts.scatter(spots, x_label=named[0], y_label=named[1], include=())
    if svg is None:
        return None
    return Figure(svg, f"Means over the feasible designs of each run, with 95 % intervals.{_volumes(shared)}")


def _volumes(runs: Sequence[RunFacts]) -> str:
    """Dominated volumes of runs with the same objectives and directions, above the worst of their references."""
    terms = [[(str(t.get("name")), finite(t.get("weight"))) for t in _records(run, "objectives")] for run in runs]
    signs = {tuple((name, (weight or 0) > 0) for name, weight in own) for own in terms}
    references = [run.get("objectives", "reference") for run in runs]
    fronts = [run.get("objectives", "after", "front") for run in runs]
    if len(signs) != 1 or not all(isinstance(value, list) and value for value in (*references, *fronts)):
        return ""
    sign = torch.tensor([1.0 if up else -1.0 for _, up in next(iter(signs))], dtype=torch.float64)
    floor = (torch.tensor(references, dtype=torch.float64) * sign).amin(0)
    volumes = [hypervolume(torch.tensor(front, dtype=torch.float64) * sign, floor) for front in fronts]
    told = ", ".join(f"{run.name} {given(_round(volume))}" for run, volume in zip(runs, volumes, strict=True))
    return f" Dominated volumes above one reference: {told}."


def _round(value: float) -> float:
    return float(f"{value:.3g}")


def _number(value: Any) -> str:
    number = finite(value)
    return "?" if number is None else given(number)


def _records(facts: RunFacts, name: str) -> list[dict[str, Any]]:
    found = facts.get("objectives", name)
    return [term for term in found if isinstance(term, dict)] if isinstance(found, list) else []


def _points(stored: Any) -> list[tuple[float, float]]:
    if not isinstance(stored, list):
        return []
    points = []
    for row in stored:
        pair = [finite(value) for value in row[:2]] if isinstance(row, list) else []
        if len(pair) == 2 and pair[0] is not None and pair[1] is not None:
            points.append((pair[0], pair[1]))
    return points
