"""The few drawing primitives that the figures need: inline SVG, coloured by the page's style sheet.

Figures carry classes, never colours, so one drawing serves light, dark and print. Every label is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from .rounding import fixed, given


class Scale(NamedTuple):
    """A linear map from data ``low .. high`` to pixels ``start .. end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, wanted: int = 5, *, whole: bool = False) -> tuple[list[float], int]:
        """Round values inside the range, and the decimals they need."""
        raw = (self.high - self.low) / wanted
        power = 10.0 ** math.floor(math.log10(raw))
        step = min((m * power for m in (1, 2, 5, 10)), key=lambda candidate: abs(math.log(candidate / raw)))
        if whole:
            step = max(1.0, step)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)], max(0, -math.floor(math.log10(step) + 1e-9))


def spanning(
    values: Iterable[float], start: float, end: float, *, include: Sequence[float] = (), pad: float = 0.06
) -> Scale:
    """A scale that holds every value, with ``pad`` of its width to spare (not beyond an included bound)."""
    known = [*values, *include]
    low, high = min(known), max(known)
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - max(0.5, abs(low) * 0.05), high + max(0.5, abs(high) * 0.05)
    margin = pad * (high - low)
    return Scale(low if low in include else low - margin, high if high in include else high + margin, start, end)


class Canvas:
    """An SVG being drawn.

    Args:
        width: of the view box, in the pixels of a phone held upright; the page scales it.
        height: likewise.
        label: what the figure shows, for readers who do not see it.
    """

    def __init__(self, width: float, height: float, label: str) -> None:
        self.width, self.height, self.label = width, height, label
        self._parts: list[Markup] = []

    def add(self, template: str, *values: object) -> None:
        """An element; the values are escaped."""
        self._parts.append(Markup(template).format(*(_short(v) if isinstance(v, float) else v for v in values)))

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A straight line."""
        self.add('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>', kind, *map(float, (x1, y1, x2, y2)))

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> None:
        """A label; ``anchor`` is start, middle or end."""
        self.add('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>', kind, float(x), float(y), anchor, text)

    def curve(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A line through points, in pixels."""
        path = "M" + "L".join(f"{_short(x)} {_short(y)}" for x, y in points)
        self.add('<path class="{}" d="{}"/>', kind, path)

    def mark(self, x: float, y: float, kind: str, *, radius: float = 4.0, title: str = "") -> None:
        """A dot; a diamond for the judge, so that the two differ without colour."""
        if "judge" in kind.split():
            r = radius * 1.25
            shape = f"M{_short(x)} {_short(y - r)}L{_short(x + r)} {_short(y)}L{_short(x)} {_short(y + r)}"
            self.add(
                '<path class="mark {}" d="{}L{} {}Z"><title>{}</title></path>', kind, shape, x - r, float(y), title
            )
        else:
            template = '<circle class="mark {}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>'
            self.add(template, kind, float(x), float(y), float(radius), title)

    def cross(self, x: float, y: float, *, title: str = "") -> None:
        """A mark of what has no value."""
        shape = "M{0} {2}L{1} {3}M{0} {3}L{1} {2}".format(*map(_short, (x - 3.0, x + 3.0, y - 3.0, y + 3.0)))
        self.add('<path class="cross" d="{}"><title>{}</title></path>', shape, title)

    def bottom_axis(self, scale: Scale, y: float, top: float, *, label: str, whole: bool = False) -> list[float]:
        """Ticks, grid lines up to ``top`` and a label below a horizontal axis; the tick values."""
        ticks, places = scale.ticks(whole=whole)
        for tick in ticks:
            self.line(scale(tick), y, scale(tick), top, "gridline")
            x, text = scale(tick), _tick(tick, places)
            room = 3.0 * len(text)
            anchor = "start" if x < room else "end" if x > self.width - room else "middle"
            self.text(x, y + 14, text, "tick", anchor)
        self.line(scale.start, y, scale.end, y, "axis")
        self.text((scale.start + scale.end) / 2, y + 29, label, "label", "middle")
        return ticks

    def left_axis(self, scale: Scale, x: float, right: float, *, wanted: int = 4) -> None:
        """Ticks and grid lines of a vertical axis."""
        ticks, places = scale.ticks(wanted)
        for tick in ticks:
            self.line(x, scale(tick), right, scale(tick), "gridline")
            self.text(x - 6, scale(tick) + 3.5, _tick(tick, places), "tick", "end")

    def markup(self) -> Markup:
        """The drawing."""
        head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}" style="max-width:{}px">').format(
            _short(self.width), _short(self.height), self.label, _short(self.width * 1.25)
        )
        return head + Markup("").join(self._parts) + Markup("</svg>")


def _tick(value: float, places: int) -> str:
    return fixed(value, places) if places <= 4 else given(round(value, places + 1)).replace("e−0", "e−")


def _short(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
