r"""Time grids, noise scales and slowly changing coefficients.

A grid is the decreasing float64 tensor :math:`1 = t_0 > t_1 > \dots > t_K = 0` that a chain of ``K`` steps visits;
step ``k`` goes from ``grid[k]`` to ``grid[k + 1]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from difftilt.errors import ConfigError
from difftilt.types import Bool, Float, Tensor

ROUNDING = 1e-6
"""Of times that were float32."""


def uniform_grid(steps: int) -> Float[Tensor, " K1"]:
    """``K + 1`` equally spaced times from 1 to 0.

    Raises:
        ConfigError: fewer than one step.
    """
    if steps < 1:
        raise ConfigError(f"expected at least 1 step; got {steps}; pass --steps-per-sample 1 or more")
    return torch.arange(steps, -1, -1, dtype=torch.float64) / steps


def within(t: Tensor, window: tuple[float, float]) -> Bool[Tensor, "..."]:
    """Whether a step that starts at ``t`` is in the window: ``high >= t > low``, to the rounding of float32 times."""
    high, low = window
    return (t <= high + ROUNDING) & (t > low + ROUNDING)


def check_window(window: Sequence[float]) -> None:
    """Refuse a window that no step can start in.

    Raises:
        ConfigError: it is not two times, the later (noisier) first.
    """
    if len(window) != 2 or not 1 >= window[0] > window[1] >= 0:
        raise ConfigError(f"expected a window (high, low) with 1 >= high > low >= 0; got {window}; correct it")


def anneal(start: float, end: float, progress: float) -> float:
    """Geometric interpolation from ``start`` to ``end`` as ``progress`` goes from 0 to 1 (clipped)."""
    u = min(max(progress, 0.0), 1.0)
    return math.exp((1 - u) * math.log(start) + u * math.log(end))
