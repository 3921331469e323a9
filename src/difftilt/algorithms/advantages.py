r"""Advantages of whole paths.

Every step of a path gets the same advantage :math:`R - b`, with the return ``R`` of :mod:`difftilt.algorithms.paths`.
The part of the KL already paid before step ``k`` is known at :math:`x_t`, so keeping it in ``R`` is a control variate
and leaves the gradient unbiased; at the optimum :math:`\alpha \sum_{j<k} l_j = v_t(x_t) - v_1`, so ``R`` is constant
and the gradient's variance vanishes.

With infeasible designs the objective is that of :math:`p_\theta(\cdot | F)`, whose gradient is
:math:`E_F[(R - E_F R) \nabla \log p_\theta]`, plus ``feasibility_weight`` times
:math:`\nabla \log P_\theta(F) = E[(1_F / P(F) - 1) \nabla \log p_\theta]`.
"""

from __future__ import annotations

import torch

from difftilt.types import Bool, Float, Int, Tensor


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
        Advantages, reward units; 0 in groups with fewer than two feasible designs.
    """
    advantage = torch.zeros_like(returns)
    for label in group.unique():
        rows = group == label
        advantage[rows] = centred_advantage(returns[rows], feasible[rows], feasibility_weight=feasibility_weight)
    return advantage


def centred_advantage(
    returns: Float[Tensor, " B"], feasible: Bool[Tensor, " B"], *, feasibility_weight: float
) -> Float[Tensor, " B"]:
    """Leave-one-out centred returns; the mean over the batch of ``advantage * grad log p`` is the gradient above.

    Args:
        returns: path returns, reward units; ignored where infeasible.
        feasible: which designs have a reward.
        feasibility_weight: weight of ``log P(F)``, reward units per nat.

    Returns:
        Advantages, reward units; all 0 when fewer than two designs are feasible.
    """
    batch, n = returns.shape[0], int(feasible.sum())
    if n < 2:
        return torch.zeros_like(returns)
    mean = returns[feasible].mean()
    centred = (returns - mean) * n / (n - 1)  # the same as subtracting the mean of the others
    advantage = torch.where(feasible, centred * batch / n + feasibility_weight * (batch / n - 1), -feasibility_weight)
    return advantage
