"""Estimated against exact soft values, one square for each estimate and time; points on the diagonal are right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from difftilt.values.calibration import Calibration

from .rounding import fixed
from .svg import Canvas, Scale, spanning

SIDE, GAP, TOP, HEAD, FOOT = 124, 16, 18, 44, 34
"""Pixels: of a square, between two, above all, above a row, below all."""
POINTS = 120
"""Most points of a square."""
STYLE = Path(__file__).parent / "templates" / "style.css"


def calibration_chart(estimates: Mapping[str, Sequence[Calibration]], *, times: int = 4) -> Markup | None:
    """Squares of estimated (up) against exact value (across), both axes of a column alike; ``None`` without pairs.

    Args:
        estimates: by name, what :func:`~difftilt.values.calibration.calibration` says at the same times of each.
        times: columns, spread evenly over the times of which something is known.
    """
    known = [
        k for k in range(min(map(len, estimates.values()), default=0)) if any(r[k].exact for r in estimates.values())
    ]
    if not known:
        return None
    wanted = min(times, len(known))
    shown = [known[round(i * (len(known) - 1) / max(1, wanted - 1))] for i in range(wanted)]
    pitch = SIDE + HEAD
    width, bottom = wanted * (SIDE + GAP) + 2, TOP + pitch * len(estimates)
    canvas = Canvas(width, bottom + FOOT, f"estimated against exact soft values by {', '.join(estimates)}")
    for column, k in enumerate(shown):
        left = 2.0 + column * (SIDE + GAP)
        values = [v for rows in estimates.values() for v in (*rows[k].estimate, *rows[k].exact)]
        across = spanning(values, left, left + SIDE)
        canvas.text(left, 12, f"t = {fixed(next(iter(estimates.values()))[k].t)}", "label strong")
        for row, (name, rows) in enumerate(estimates.items()):
            above = TOP + pitch * row
            if not column:
                canvas.text(left, above + HEAD - 22, name, "label strong")
            _square(canvas, rows[k], across, above + HEAD, last=row == len(estimates) - 1)
    canvas.text(
        width / 2, bottom + 30, "exact soft value, reward units; estimate upwards, on the same scale", "label", "middle"
    )
    return canvas.markup()


def _square(canvas: Canvas, pairs: Calibration, across: Scale, top: float, *, last: bool) -> None:
    """One estimate at one time."""
    left, right, bottom = across.start, across.end, top + SIDE
    up = Scale(across.low, across.high, bottom, top)
    ticks, places = across.ticks(3)
    for tick in ticks:
        canvas.line(across(tick), bottom, across(tick), top, "gridline")
        canvas.line(left, up(tick), right, up(tick), "gridline")
        if last:
            canvas.text(across(tick), bottom + 14, fixed(tick, places), "tick", "middle")
    canvas.line(left, bottom, right, top, "target")
    pixels = [(across(x), up(y)) for x, y in zip(pairs.exact, pairs.estimate, strict=True)]
    apart = list({(round(x), round(y)): (x, y) for x, y in pixels}.values())
    for x, y in apart[:: math.ceil(len(apart) / POINTS) or 1]:
        canvas.add('<circle class="mark reward" cx="{}" cy="{}" r="1.8"/>', x, y)
    canvas.line(left, bottom, right, bottom, "axis")
    canvas.line(left, bottom, left, top, "axis")
    told = f"bias {fixed(pairs.bias)}, rmse {fixed(pairs.rmse)}" if pairs.exact else "no finite pair"
    canvas.text(left, top - 6, told, "tick")


def standalone(drawing: Markup) -> str:
    """A drawing as a file of its own, with the colours and rules of the pages."""
    sheet = STYLE.read_text(encoding="utf-8")
    colours = sheet[: sheet.index("* {")]
    rules = "\n".join(line for line in sheet.splitlines() if line.startswith("svg "))
    style = f"<style>{colours}svg {{ background: var(--paper); font-family: system-ui, sans-serif; }}\n{rules}</style>"
    head, tag, rest = str(drawing).partition(">")
    return head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + tag + style + rest + "\n"
