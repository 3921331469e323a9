r"""Time grids, noise scales and slowly changing coefficients.

A grid is the decreasing float64 tensor :math:`1 = t_0 > t_1 > \dots > t_K = 0` that a chain of ``K`` steps visits;
step ``k`` goes from ``grid[k]`` to ``grid[k + 1]``.
"""

from __future__ import annotations

import itertools
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


def stepped_grid(
    ends: Sequence[float], steps: int | Sequence[int], most: Sequence[int] | None = None
) -> Float[Tensor, " K1"]:
    """Times from 1 to 0 that include ``ends`` and are equally spaced between neighbours.

    Args:
        ends: decreasing, from 1 to 0.
        steps: in all, shared out by width with at least one between neighbours; or between each two neighbours.
        most: steps between each two neighbours beyond which there is nothing left to do, if others can use them.

    Raises:
        ConfigError: fewer steps than intervals between ends, or another number of counts than intervals.
    """
    widths = [high - low for high, low in itertools.pairwise(ends)]
    if isinstance(steps, int):
        if steps < len(widths):
            raise ConfigError(
                f"expected at least {len(widths)} steps, one for each stage; got {steps}; pass --steps-per-sample "
                f"{len(widths)} or more"
            )
        counts = [1] * len(widths)
        for _ in range(steps - len(widths)):  # the widest step is halved, thirded ...: highest averages
            free = [i for i in range(len(widths)) if most is None or counts[i] < most[i]] or range(len(widths))
            counts[max(free, key=lambda i: widths[i] / counts[i])] += 1
    else:
        counts = list(steps)
        if len(counts) != len(widths) or min(counts) < 1:
            raise ConfigError(
                f"expected {len(widths)} numbers of steps, one for each stage; got {counts}; correct them"
            )
    times = [
        high - (high - low) * k / count
        for (high, low), count in zip(itertools.pairwise(ends), counts, strict=True)
        for k in range(count)
    ]
    return torch.tensor([*times, ends[-1]], dtype=torch.float64)


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
