"""Numbers as people read them: rounded to what is known, with thousands set apart, missing ones as a dash."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

MISSING = "–"


class Estimate(NamedTuple):
    """A mean with its 95 % interval; the ends are ``None`` where none is stored."""

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def finite(value: Any) -> float | None:
    """``value`` as a float; ``None`` if it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def estimate(value: Any) -> Estimate | None:
    """A stored ``{"mean", "low", "high"}``, or a bare number; ``None`` if there is no mean."""
    if not isinstance(value, Mapping):
        value = {"mean": value}
    mean = finite(value.get("mean"))
    return None if mean is None else Estimate(mean, finite(value.get("low")), finite(value.get("high")))


def decimals(errors: Iterable[float | None], *, default: int = 2) -> int:
    """Decimal places at which the smallest positive error still shows: 0.03 -> 2, 0.12 -> 2, 3.4 -> 0."""
    known = [error for error in errors if error is not None and error > 0]
    if not known:
        return default
    exponent = math.floor(math.log10(min(known)))
    leading = round(min(known) / 10**exponent, 6)
    return max(0, min(4, -exponent + (leading < 2)))


def fixed(value: float | None, places: int = 2) -> str:
    """``value`` with ``places`` decimals and a real minus sign."""
    if value is None:
        return MISSING
    text = f"{value:,.{places}f}"
    return text.lstrip("-") if not text.strip("-0.,") else text.replace("-", "−")


def significant(value: float | None, digits: int = 3) -> str:
    """``value`` to ``digits`` significant digits; whole numbers stay whole."""
    if value is None:
        return MISSING
    if value == 0 or (abs(value) < 1e6 and value == int(value)):
        return fixed(value, 0)
    exponent = math.floor(math.log10(abs(value)))
    if not -4 <= exponent < 9:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    return fixed(value, max(0, digits - 1 - exponent))


def given(value: float | None) -> str:
    """A number that somebody chose, such as alpha = 0.1: as short as it was written."""
    return MISSING if value is None else f"{value:.4g}".replace("-", "−")


def share(value: float | None) -> str:
    """A fraction as per cent; never rounded up to 100 % or down to 0 %."""
    if value is None:
        return MISSING
    if 0.9995 <= value < 1:
        return ">99.9 %"
    if 0 < value < 0.0005:
        return "<0.1 %"
    return f"{100 * value:.0f} %" if value in (0, 1) else f"{100 * value:.1f} %"


def compact(value: float) -> str:
    """A count in the space of an axis label: 950, 6.39k, 1.2M."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """Wall time: 2.4 s, 42 s, 2 min 31 s, 1 h 12 min."""
    if seconds is None:
        return MISSING
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
