"""Drawings of campaigns: values over rounds, predictions against measurements, a plate, the budget.

A failed design is a cross in a strip of its own and a pending one an open circle in another: neither has a value, so
neither has a place on an axis of values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from difftilt.campaigns.history import FAILED, PENDING, Design
from difftilt.campaigns.plate import COLUMNS, ROWS, WELLS

from .campaign_rounds import RoundView
from .charts import WIDTH
from .svg import Canvas, Scale, spanning

WIDE = 440
LEFT, TOP = 44, 24
STRIP = 15
"""Height of a strip of marks without a value."""
CROWD = 300
"""Measurements beyond which dots are smaller."""
STRIPS = ((FAILED, "failed"), (PENDING, "pending"))

Text = Callable[[float | None], str]


def over_rounds(rounds: Sequence[RoundView], *, label: str, text: Text) -> Markup | None:
    """Every measurement as a dot, replicates joined, with the best design so far as a line; ``None`` without designs.

    Args:
        rounds: equally wide columns, designs in the order of their plate.
        label: of the vertical axis, with its unit.
        text: writes values.
    """
    designs = [design for view in rounds for design in view.designs]
    values = [value for design in designs for value in design.values]
    if not designs:
        return None
    strips = [(state, name) for state, name in STRIPS if any(design.state == state for design in designs)]
    floor = TOP + (220 if values else 0)
    height = floor + STRIP * len(strips) + 40
    canvas = Canvas(WIDE, height, f"{label} over rounds")
    right, bottom = WIDE - 12, floor + STRIP * len(strips) + 4
    width = (right - LEFT) / len(rounds)
    y = spanning(values, floor, TOP, pad=0.08) if values else None
    if y is not None:
        canvas.text(2, 12, label, "label strong")
        canvas.left_axis(y, LEFT, right)
        _best(canvas, rounds, y, width)
    levels = {state: floor + STRIP * (k + 0.5) + 2 for k, (state, _) in enumerate(strips)}
    for state, name in strips:
        canvas.text(2, levels[state] + 3.5, name, "tick")
    every, radius = -(-len(rounds) // 20), 2.2 if len(values) <= CROWD else 1.5
    for i, view in enumerate(rounds):
        left = LEFT + width * i
        canvas.line(left, TOP, left, bottom, "rule")
        if i % every == 0:
            canvas.text(left + width / 2, bottom + 14, str(view.number), "tick", "middle")
        for j, design in enumerate(view.designs):
            x = left + width * (0.06 + 0.88 * (j + 0.5) / len(view.designs))
            if y is not None:
                _measured(canvas, design, x, y, radius, text)
            if design.state in levels:
                _valueless(canvas, design, x, levels[design.state])
    canvas.line(LEFT, bottom, right, bottom, "axis")
    canvas.text((LEFT + right) / 2, bottom + 30, "round, designs in the order of the plate", "label", "middle")
    return canvas.markup()


def _measured(canvas: Canvas, design: Design, x: float, y: Scale, radius: float, text: Text) -> None:
    if len(design.values) > 1:
        canvas.line(x, y(min(design.values)), x, y(max(design.values)), "whisker")
    for value in design.values:
        canvas.mark(x, y(value), "reward", radius=radius, title=f"{design.id}: {text(value)}")


def _valueless(canvas: Canvas, design: Design, x: float, level: float) -> None:
    if design.state == FAILED:
        canvas.cross(x, level, title=f"{design.id}: failed, {design.failure}")
    else:
        canvas.mark(x, level, "yardstick", radius=2.2, title=f"{design.id}: pending")


def _best(canvas: Canvas, rounds: Sequence[RoundView], y: Scale, width: float) -> None:
    """The best design's value, level over each round, up to the last one with a value."""
    last = max((i for i, view in enumerate(rounds) if view.measured), default=-1)
    points: list[tuple[float, float]] = []
    for i, view in enumerate(rounds[: last + 1]):
        if view.best is not None:
            level = y(view.best.value or 0.0)
            points += [(LEFT + width * i, level), (LEFT + width * (i + 1), level)]
    if points:
        canvas.curve(points, "curve")


def predicted_measured(view: RoundView, *, scale: tuple[float, float], unit: str, text: Text) -> Markup | None:
    """Measurements of a round upwards, predictions across, on one scale; ``None`` without a pair.

    Args:
        view: the round.
        scale: ends of both axes, the same for every round.
        unit: of both axes.
        text: writes values.
    """
    pairs = [design for design in view.designs if design.mean is not None and design.values]
    if not pairs:
        return None
    side = 250
    canvas = Canvas(WIDTH, side + 66, f"Round {view.number}: measured against predicted values{unit}")
    x, y = spanning(scale, LEFT, LEFT + side), spanning(scale, TOP + side, TOP)
    canvas.text(2, 12, f"measured{unit}", "label strong")
    canvas.left_axis(y, LEFT, LEFT + side)
    canvas.bottom_axis(x, TOP + side, TOP, label=f"predicted{unit}")
    canvas.line(LEFT, TOP + side, LEFT + side, TOP, "target")
    for design in pairs:
        mean, value = design.mean or 0.0, design.value or 0.0
        if design.std:
            canvas.line(x(mean - design.std), y(value), x(mean + design.std), y(value), "whisker")
        if len(design.values) > 1:
            canvas.line(x(mean), y(min(design.values)), x(mean), y(max(design.values)), "whisker")
        title = f"{design.id}: predicted {text(mean)}, measured {text(value)}"
        canvas.mark(x(mean), y(value), "reward", radius=2.6, title=title)
    return canvas.markup()


def span_of(rounds: Sequence[RoundView]) -> tuple[float, float]:
    """Ends of an axis that holds every measured design's prediction with its std, and its values."""
    ends = [
        end
        for view in rounds
        for design in view.designs
        if design.mean is not None and design.values
        for end in (*design.values, design.mean - (design.std or 0.0), design.mean + (design.std or 0.0))
    ]
    return (min(ends), max(ends)) if ends else (0.0, 1.0)


def predictions(designs: Sequence[Design], best: float | None, *, label: str, text: Text) -> Markup | None:
    """Predicted mean and std of a plate in its order, with the best value so far dashed; ``None`` without any."""
    known = [(i, design, design.mean, design.std or 0.0) for i, design in enumerate(designs) if design.mean is not None]
    if not known:
        return None
    height, right = 240, WIDE - 12
    canvas = Canvas(WIDE, height, f"{label} of the pending designs")
    ends = [end for _, _, mean, std in known for end in (mean - std, mean + std)]
    bottom = height - 26
    y = spanning([*ends, *([] if best is None else [best])], bottom, TOP)
    canvas.text(2, 12, label, "label strong")
    canvas.left_axis(y, LEFT, right)
    if best is not None:
        canvas.line(LEFT, y(best), right, y(best), "target")
    for i, design, mean, std in known:
        x = LEFT + (right - LEFT) * (i + 0.5) / len(designs)
        canvas.line(x, y(mean - std), x, y(mean + std), "whisker")
        canvas.mark(x, y(mean), "judge", radius=2.4, title=f"{design.id}, {design.well}: {text(mean)} ± {text(std)}")
    canvas.line(LEFT, bottom, right, bottom, "axis")
    canvas.text(
        (LEFT + right) / 2, height - 8, f"designs in the order of the plate, 1 to {len(designs)}", "label", "middle"
    )
    return canvas.markup()


def plate_map(designs: Sequence[Design]) -> Markup | None:
    """Which wells of a plate are taken, the fuller the higher the prediction; ``None`` of several plates."""
    wells = {design.well: design for design in designs}
    places = {f"{row}{column + 1}": (i, column) for i, row in enumerate(ROWS) for column in range(COLUMNS)}
    if not wells or len(wells) != len(designs) or len(wells) > WELLS or not set(wells) <= set(places):
        return None
    means = [design.mean for design in designs if design.mean is not None]
    low, high = min(means, default=0.0), max(means, default=0.0)
    pitch, left, top = 26.0, 20.0, 20.0
    canvas = Canvas(left + pitch * COLUMNS + 4, top + pitch * len(ROWS) + 4, "wells of the pending designs")
    for column in range(COLUMNS):
        canvas.text(left + pitch * (column + 0.5), 13, str(column + 1), "tick", "middle")
    for i, row in enumerate(ROWS):
        canvas.text(8, top + pitch * (i + 0.5) + 3.5, row, "tick", "middle")
    for well, (i, column) in places.items():
        x, y = left + pitch * (column + 0.5), top + pitch * (i + 0.5)
        if well not in wells:
            canvas.mark(x, y, "well", radius=10)
            continue
        mean = wells[well].mean
        full = 1.0 if mean is None or high == low else 0.15 + 0.85 * (mean - low) / (high - low)
        canvas.add(
            '<circle class="well taken" cx="{}" cy="{}" r="10" fill-opacity="{}"><title>{}</title></circle>',
            *(x, y, full, f"{well}: {wells[well].id}"),
        )
    return canvas.markup()


def budget_bar(parts: Sequence[tuple[str, int, str]], *, budget: int) -> Markup:
    """The budget as a bar of parts: name, designs and class of each."""
    canvas = Canvas(WIDE, 64, "Budget of designs")
    x = Scale(0.0, max(1.0, float(budget)), 2.0, WIDE - 2.0)
    canvas.text(2, 12, f"designs of a budget of {budget:,}", "label strong")
    at = 0
    for name, number, kind in parts:
        if number:
            canvas.add(
                '<rect class="part {}" x="{}" y="20" width="{}" height="20"><title>{}</title></rect>',
                *(kind, x(at), x(at + number) - x(at), f"{name}: {number:,}"),
            )
            at += number
    for tick, anchor in ((0, "start"), (budget, "end")):
        canvas.text(x(tick), 56, f"{tick:,}", "tick", anchor)
    return canvas.markup()
