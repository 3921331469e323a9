r"""How good a value estimate is, time by time, where the exact soft value is known.

.. math:: b_t = E[\hat v_t - v_t], \quad e_t = \sqrt{ E[(\hat v_t - v_t)^2] }, \quad
    \rho_t = \operatorname{corr}(\hat v_t, v_t)                                                        \qquad (1)

over the states that one rollout visits at time ``t``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from difftilt.core.trajectory import Trajectory
from difftilt.core.value import Value


@dataclass(frozen=True)
class Calibration:
    """Equation (1) at one time, with the pairs to plot."""

    t: float
    """The time."""
    estimate: list[float]
    r""":math:`\hat v_t`, reward units, of each pair."""
    exact: list[float]
    """:math:`v_t`, reward units, of each pair."""
    bias: float
    """Reward units; NaN without pairs."""
    rmse: float
    """Reward units; NaN without pairs."""
    correlation: float
    """NaN where either side does not vary, as at ``t = 1`` of a masked chain."""
    excluded: int
    """States left out because one of the two is not finite."""


@torch.no_grad()
def calibration(estimate: Value, exact: Value, path: Trajectory) -> list[Calibration]:
    """Equation (1) at every time of ``path`` but ``t = 0``, where values are rewards.

    Args:
        estimate: judged.
        exact: the judge, see ``value()`` of a problem.
        path: states to compare on, e.g. a rollout of the pretrained policy.
    """
    return [
        _compare(t.item(), estimate(x_t, t, path.cond), exact(x_t, t, path.cond))
        for x_t, t in zip(path.states[:-1], path.times[:-1], strict=True)
    ]


def _compare(t: float, estimate: torch.Tensor, exact: torch.Tensor) -> Calibration:
    finite = estimate.isfinite() & exact.isfinite()
    mine, truth = estimate[finite], exact[finite]
    error = mine - truth
    varies = len(mine) > 1 and mine.std() > 1e-12 and truth.std() > 1e-12
    correlation = torch.corrcoef(torch.stack([mine, truth]))[0, 1].item() if varies else math.nan
    return Calibration(
        t, mine.tolist(), truth.tolist(), error.mean().item(), error.square().mean().sqrt().item(), correlation,
        int((~finite).sum()),
    )  # fmt: skip
