r"""Advantages of whole paths.

Every step of a path gets the same advantage :math:`R - b`, with the return ``R`` of :mod:`difftilt.algorithms.paths`.
The part of the KL already paid before step ``k`` is known at :math:`x_t`, so keeping it in ``R`` is a control variate
and leaves the gradient unbiased; at the optimum :math:`\alpha \sum_{j<k} l_j = v_t(x_t) - v_1`, so ``R`` is constant
and the gradient's variance vanishes.

With infeasible designs the objective is that of :math:`p_\theta(\cdot | F)`, whose gradient is
:math:`E_F[(R - E_F R) \nabla \log p_\theta]`, plus ``feasibility_weight`` ``w`` times :math:`\nabla \log P_\theta(F)`.
With ``n`` of ``B`` designs feasible, and :math:`\bar R` the mean return of the *other* feasible ones,

.. math:: A_b = 1_F \frac{B}{n} (R_b - \bar R) + w \Big( 1_F \frac{B}{n} - 1 \Big)                      \qquad (1)

with 0 in place of the first term for ``n = 1``, which has no others, and of both for ``n = 0``, where all are alike.
Over batches :math:`E[\frac1B \sum_b A_b \nabla \log p_\theta]` is exactly the first gradient times
:math:`P(n \ge 2)` plus :math:`w\, \nabla \log P_\theta(F)` times the chance that any of ``B - 1`` designs is feasible:
where feasible designs are rare both are that much smaller, and point the right way.

With conditions all this is for each of them alone: against returns of another condition the first term would gain a
multiple of :math:`\nabla \log P_\theta(F | c)`, and conditions with low returns would be tuned out of ``F``.

Methods that learn from anybody's paths push as (1) does, by their *own* ones: over paths of a behaviour ``b``,
:math:`E_b[\nabla \log p_\theta | F]` is not :math:`\nabla \log P_\theta(F)`. Without any own path each counts as
:math:`\omega = p_\theta / b`, in shares:

.. math:: C_b = w \frac{B_c}{B} \omega_b \Big( \frac{1_F}{\sum_{c, F} \omega} - \frac{1}{\sum_c \omega} \Big) \qquad (2)

so that :math:`\sum_b C_b \nabla \log p_\theta` estimates :math:`w\, E_c \nabla \log P_\theta(F | c)`; with
:math:`\omega = 1` for own paths and 0 for others it is the mean of the last term of (1) over own paths.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from difftilt.algorithms.paths import PathSettings
from difftilt.types import Bool, Float, Int, Tensor

ALIKE = 1e-12
"""Spread of returns that are alike but for rounding, as a share of their size."""


def grouped_advantage(
    returns: Float[Tensor, " B"],
    feasible: Bool[Tensor, " B"],
    group: Int[Tensor, " B"],
    *,
    feasibility_weight: float,
) -> Float[Tensor, " B"]:
    """:func:`centred_advantage` within each group: paths are compared with those of the same condition only.

    Args:
        returns: path returns, reward units; ignored where infeasible.
        feasible: which designs have a reward.
        group: number of each path's group.
        feasibility_weight: weight of ``log P(F)``, reward units per nat.

    Returns:
        Advantages, reward units.
    """
    advantage = torch.zeros_like(returns)
    for label in group.unique():
        rows = group == label
        advantage[rows] = centred_advantage(returns[rows], feasible[rows], feasibility_weight=feasibility_weight)
    return advantage


def mean_of_others(
    returns: Float[Tensor, " B"], feasible: Bool[Tensor, " B"], group: Int[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Mean return of the other feasible paths of each path's group: independent of the path itself.

    Args:
        returns: path returns, reward units; ignored where infeasible.
        feasible: which designs have a reward.
        group: number of each path's group.

    Returns:
        Reward units; NaN where no other path is feasible.
    """
    others = torch.full_like(returns, torch.nan)
    for label in group[feasible].unique():
        rows = group == label
        known = returns[rows & feasible]
        mean = known.mean()
        others[rows] = mean
        if len(known) > 1:
            others[rows & feasible] = mean - (known - mean) / (len(known) - 1)
        else:
            others[rows & feasible] = torch.nan
    return others


def feasibility_push(
    log_weight: Float[Tensor, " B"],
    feasible: Bool[Tensor, " B"],
    group: Int[Tensor, " B"],
    *,
    feasibility_weight: float,
) -> Float[Tensor, " B"]:
    """Coefficients of equation (2), to be summed over paths.

    Args:
        log_weight: log of omega, nats; ``-inf`` for paths that do not count.
        feasible: which designs have a reward.
        group: number of each path's condition.
        feasibility_weight: weight of ``log P(F)``, reward units per nat.

    Returns:
        Reward units per nat; 0 in conditions all of whose counted paths are alike.
    """
    push, counted = torch.zeros_like(log_weight), log_weight.isfinite()
    for label in group[counted & feasible].unique():
        rows = (group == label) & counted
        among = log_weight.where(rows & feasible, -torch.inf).softmax(0)
        push = push + rows.sum() / counted.sum() * (among - log_weight.where(rows, -torch.inf).softmax(0))
    return feasibility_weight * push


def centred_advantage(
    returns: Float[Tensor, " B"], feasible: Bool[Tensor, " B"], *, feasibility_weight: float
) -> Float[Tensor, " B"]:
    """Equation (1).

    Args:
        returns: path returns, reward units; ignored where infeasible.
        feasible: which designs have a reward.
        feasibility_weight: weight of ``log P(F)``, reward units per nat.

    Returns:
        Advantages, reward units; all 0 where no design is feasible. The first term is exactly 0 where all returns are
        alike, of which their mean would leave the rounding.
    """
    batch, n = returns.shape[0], int(feasible.sum())
    if n == 0:
        return torch.zeros_like(returns)
    known = returns[feasible]
    mean = known.mean()
    if known.max() - known.min() <= ALIKE * known.abs().max():
        mean = returns
    centred = (returns - mean) * n / max(1, n - 1)  # the same as subtracting the mean of the others
    return torch.where(feasible, centred * batch / n + feasibility_weight * (batch / n - 1), -feasibility_weight)


@dataclass(frozen=True, kw_only=True)
class FeasibilitySettings(PathSettings):
    """Settings of methods that are told of infeasible designs by (1)."""

    feasibility_weight: float | None = None
    """Weight w of log P(feasible), reward units per nat; alpha when not set, 1 where alpha is 0."""

    def weigh_feasibility(self, alpha: float) -> float:
        """``feasibility_weight`` or its default, alpha."""
        return alpha if self.feasibility_weight is None else self.feasibility_weight
