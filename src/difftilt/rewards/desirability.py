r"""Desirability curves: what a property is worth, from 0 (useless) to 1 (as good as it need be).

One curve serves all three of Derringer and Suich's cases, a trapezoid with the corners ``a <= b <= c <= d``:

.. math:: d(y) = \begin{cases} ((y - a) / (b - a))^s & a < y < b \\ 1 & b \le y \le c \\
    ((d - y) / (d - c))^s & c < y < d \\ 0 & \text{else} \end{cases}                                        \qquad (1)

- *larger is better*: ``c = d = inf``;  *smaller is better*: ``a = b = -inf``;  *a window*: all four finite.
- ``a = b``, or ``c = d``: a step, and the value on the step itself is 1.

Several properties are put together as the weighted geometric mean

.. math:: D = \Big( \prod_i d_i^{w_i} \Big)^{1 / \sum_i w_i},                                              \qquad (2)

which is 0 as soon as one of them is useless: no amount of the others makes up for it.

References:
    Derringer and Suich 1980, J. Quality Technology 12, 214, https://doi.org/10.1080/00224065.1980.11980968.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from difftilt.errors import ConfigError


@dataclass(frozen=True)
class Desirability:
    """The curve (1).

    Attributes:
        corners: ``a, b, c, d``, ascending, in the unit of the property; infinite where it has no such side.
        shape: exponent ``s``; 1 is straight, above 1 asks for more, below 1 is lenient.
    """

    corners: tuple[float, float, float, float]
    shape: float = 1.0

    def __post_init__(self) -> None:
        a, b, c, d = self.corners
        if not (a <= b <= c <= d and b < math.inf and c > -math.inf):
            raise ConfigError(f"expected corners that ascend; got {self.corners}; sort them")
        if (math.isinf(a) and not math.isinf(b)) or (math.isinf(d) and not math.isinf(c)):
            raise ConfigError(f"expected a side that starts somewhere; got {self.corners}; name its other corner")
        if not 0 < self.shape < math.inf:
            raise ConfigError(f"expected a positive shape; got {self.shape}; 1 is straight")

    def __call__(self, value: float) -> float:
        """What ``value`` is worth, 0 to 1; NaN for NaN."""
        a, b, c, d = self.corners
        if math.isnan(value):
            return math.nan
        if b <= value <= c:
            return 1.0
        if not a < value < d:
            return 0.0
        return ((value - a) / (b - a) if value < b else (d - value) / (d - c)) ** self.shape


def larger(useless: float, enough: float, shape: float = 1.0) -> Desirability:
    """0 up to ``useless``, 1 from ``enough`` on."""
    return Desirability((useless, enough, math.inf, math.inf), shape)


def smaller(enough: float, useless: float, shape: float = 1.0) -> Desirability:
    """1 down from ``enough``, 0 from ``useless`` on."""
    return Desirability((-math.inf, -math.inf, enough, useless), shape)


def window(low: float, high: float, margin: float = 0.0, shape: float = 1.0) -> Desirability:
    """1 from ``low`` to ``high``, 0 beyond ``margin`` of them."""
    return Desirability((low - margin, low, high, high + margin), shape)


def geometric_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """The weighted geometric mean (2) of values from 0 on; NaN if one of them is."""
    if any(math.isnan(value) for value in values):
        return math.nan
    if any(value <= 0 for value in values):
        return 0.0
    logs = [w * math.log(value) for w, value in zip(weights, values, strict=True)]
    return math.exp(sum(logs) / sum(weights))
