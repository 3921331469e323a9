"""The figures of a run: curves over steps, dots with intervals, and judge against KL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from .rounding import Estimate, compact, decimals, finite, fixed
from .svg import Canvas, Scale, spanning

WIDTH, CURVE_WIDTH = 360, 330
LEFT, RIGHT = 44, CURVE_WIDTH - 18
POINTS = 500


class Series(NamedTuple):
    """One line of a chart: a key of the records and its class."""

    key: str
    kind: str


class Row(NamedTuple):
    """One row of :func:`dots`: a label and an estimate per series."""

    label: str
    values: Sequence[Estimate | None]
    emphasis: bool = False


def curve(
    records: Sequence[dict[str, Any]],
    series: Sequence[Series],
    *,
    label: str,
    include: Sequence[float] = (),
    targets: Sequence[float] = (),
    height: float = 210,
    calls: bool = True,
    over: str = "step",
    first: float = 0,
) -> Markup | None:
    """Numbers over steps, with the oracle calls they had cost along the top; ``None`` if no step has any.

    Args:
        records: as in ``metrics.jsonl``.
        series: what to draw; steps without a number are skipped.
        label: of the vertical axis, with its unit.
        include: values the axis must reach.
        targets: drawn as dashed lines.
        height: of the drawing.
        calls: whether the oracle calls are shown.
        over: what the records' steps are.
        first: where the horizontal axis begins.
    """
    lines = {line: _points(records, line.key) for line in series}
    values = [value for points in lines.values() for _, value in points]
    if not values:
        return None
    top, bottom = 46 if calls else 24, height - 36
    canvas = Canvas(CURVE_WIDTH, height, f"{label} over {over}s")
    steps = [record["step"] for record in records]
    x = spanning(steps, LEFT, RIGHT, include=[first, max(steps)])
    y = spanning([*values, *targets], bottom, top, include=include)
    canvas.text(2, 12, label, "label strong")
    canvas.left_axis(y, LEFT, RIGHT)
    ticks = canvas.bottom_axis(x, bottom, top, label=over, whole=True)
    if calls:
        _oracle_axis(canvas, records, x, ticks, top)
    for target in targets:
        canvas.line(LEFT, y(target), RIGHT, y(target), "target")
    for line, points in lines.items():
        pixels = [(x(step), y(value)) for step, value in points]
        if len(pixels) > 1:
            canvas.curve(pixels, f"curve {line.kind}")
        if len(pixels) <= 40:
            for pixel in pixels:
                canvas.mark(*pixel, line.kind, radius=2.2 if len(pixels) > 1 else 4)
    return canvas.markup()


def _points(records: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """Step and value where there is one; evenly thinned to ``POINTS``, the last one kept."""
    points = [(float(r["step"]), value) for r in records if (value := finite(r.get(key))) is not None]
    stride = -(-len(points) // POINTS) or 1
    return points[(len(points) - 1) % stride :: stride]


def _oracle_axis(
    canvas: Canvas, records: Sequence[dict[str, Any]], x: Scale, ticks: Sequence[float], top: float
) -> None:
    calls = {record["step"]: count for record in records if (count := finite(record.get("oracle_calls"))) is not None}
    here = [tick for tick in ticks if tick in calls and x(tick) > LEFT + 45]
    if not here or not any(calls.values()):
        return
    for tick in here:
        canvas.line(x(tick), top, x(tick), top - 4, "axis")
        canvas.text(x(tick), top - 7, compact(calls[tick]), "tick", "middle")
    canvas.text(2, top - 7, "oracle calls", "tick")


def dots(rows: Sequence[Row], kinds: Sequence[str], *, label: str, names: Sequence[str]) -> Markup | None:
    """Estimates as dots with 95 % intervals, one row each, the numbers at its right end.

    Args:
        rows: from top to bottom.
        kinds: class of each series, e.g. ``("reward", "judge")``.
        label: of the axis, with its unit.
        names: of the series.
    """
    known = [value for row in rows for value in row.values if value is not None]
    if not known:
        return None
    pitch = 20 + 13 * len(kinds)
    bottom = 8 + pitch * len(rows)
    canvas = Canvas(WIDTH, bottom + 36, f"{' and '.join(names)} of each policy, {label}")
    ends = [end for value in known for end in value if end is not None]
    x = spanning(ends, 2, WIDTH - 2)
    places = decimals(value.half_width for value in known)
    canvas.bottom_axis(x, bottom, 4, label=label)
    for i, row in enumerate(rows):
        y = 4 + pitch * i
        canvas.line(2, y, WIDTH - 2, y, "rule")
        canvas.text(2, y + 14, row.label, "label strong" if row.emphasis else "label")
        right = float(WIDTH - 2)
        for kind, value in reversed(list(zip(kinds, row.values, strict=True))):
            if value is not None:
                canvas.text(right, y + 14, fixed(value.mean, places), f"value {kind}", "end")
            right -= 48
        for j, (kind, name, value) in enumerate(zip(kinds, names, row.values, strict=True)):
            if value is None:
                continue
            level = y + 25 + 12 * j
            if value.low is not None and value.high is not None:
                canvas.line(x(value.low), level, x(value.high), level, f"bar {kind}")
            canvas.mark(x(value.mean), level, kind, title=f"{row.label}, {name}: {fixed(value.mean, places)}")
    return canvas.markup()


class Spot(NamedTuple):
    """One point of :func:`scatter`."""

    label: str
    x: Estimate
    y: Estimate
    kind: str


def scatter(spots: Sequence[Spot], *, x_label: str, y_label: str, include: Sequence[float] = (0.0,)) -> Markup | None:
    """Points with intervals both ways, each with its name beside it; ``include`` are values that ``x`` must reach."""
    if not spots:
        return None
    width, height, left, top = 440, 320, 44, 28
    bottom = height - 38
    canvas = Canvas(width, height, f"{y_label} against {x_label}")
    x = spanning([e for s in spots for e in s.x if e is not None], left, width - 16, include=include)
    y = spanning([e for s in spots for e in s.y if e is not None], bottom, top)
    canvas.text(2, 12, y_label, "label strong")
    canvas.left_axis(y, left, width - 16, wanted=5)
    canvas.bottom_axis(x, bottom, top, label=x_label)
    taken: list[tuple[float, float]] = []
    for spot in spots:
        px, py = x(spot.x.mean), y(spot.y.mean)
        if spot.x.low is not None and spot.x.high is not None:
            canvas.line(x(spot.x.low), py, x(spot.x.high), py, f"bar {spot.kind}")
        if spot.y.low is not None and spot.y.high is not None:
            canvas.line(px, y(spot.y.low), px, y(spot.y.high), f"bar {spot.kind}")
        canvas.mark(px, py, spot.kind, title=f"{spot.label}: {fixed(spot.y.mean)} at {fixed(spot.x.mean)} nats")
        if spot.label:
            level = py - 7
            while any(abs(level - other) < 12 and abs(px - at) < 100 for at, other in taken):
                level += 13
            taken.append((px, level))
            near_edge = px > width - 110
            canvas.text(px + (-8 if near_edge else 8), level, spot.label, "label", "end" if near_edge else "start")
    return canvas.markup()
