r"""Advantages of whole paths, and the random subset of steps an update uses.

With anchors :math:`(p_a, w_a)`, :math:`\alpha = \sum_a w_a` and :math:`L_a = \sum_k l_{a,k}` the return of a path is

.. math:: R = r(x_0) - \sum_a w_a L_a                                                                  \qquad (1)

Every step of the path gets the same advantage :math:`R - b`. The part of the KL already paid before step ``k`` is known
at :math:`x_t`, so keeping it in (1) is a control variate and leaves the gradient unbiased; at the optimum
:math:`\alpha \sum_{j<k} l_j = v_t(x_t) - v_1`, so (1) is constant and the gradient's variance vanishes.

With infeasible designs the objective is that of :math:`p_\theta(\cdot | F)`, whose gradient is
:math:`E_F[(R - E_F R) \nabla \log p_\theta]`, plus ``feasibility_weight`` times
:math:`\nabla \log P_\theta(F) = E[(1_F / P(F) - 1) \nabla \log p_\theta]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from difftilt.core.trajectory import Trajectory
from difftilt.types import Bool, Condition, Float, Int, Tensor


def path_return(
    reward: Float[Tensor, " B"], log_ratio: Float[Tensor, "A K B"], weights: Float[Tensor, " A"]
) -> Float[Tensor, " B"]:
    """Equation (1), reward units; NaN where the reward is."""
    return reward - (weights[:, None] * log_ratio.sum(1)).sum(0)


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


@dataclass(frozen=True)
class Steps:
    """Some steps of some paths, flattened to one batch of ``R`` rows."""

    x_t: Tensor
    x_s: Tensor
    t: Float[Tensor, " R"]
    s: Float[Tensor, " R"]
    log_prob: Float[Tensor, " R"]
    """As stored at rollout, nats."""
    path: Int[Tensor, " R"]
    """Index of the path in the batch."""
    scale: float
    """``K / n``: makes sums over the ``n`` chosen steps unbiased for sums over all ``K``."""
    cond: Condition | None


def choose_steps(trajectory: Trajectory, paths: Int[Tensor, " P"], count: int | None, rng: torch.Generator) -> Steps:
    """A uniformly random subset of ``count`` steps of each path in ``paths`` (all steps, in order, for ``None``)."""
    steps = trajectory.steps
    count = steps if count is None else min(count, steps)
    if count == steps:
        k = torch.arange(steps, device=paths.device).expand(len(paths), -1)
    else:
        k = torch.rand((len(paths), steps), generator=rng, device=paths.device).topk(count, dim=1).indices
    k, path = k.T.flatten(), paths.repeat(count)
    cond = None if trajectory.cond is None else {name: value[path] for name, value in trajectory.cond.items()}
    return Steps(
        x_t=trajectory.states[k, path],
        x_s=trajectory.states[k + 1, path],
        t=trajectory.times[k],
        s=trajectory.times[k + 1],
        log_prob=trajectory.log_prob[k, path],
        path=path,
        scale=steps / count,
        cond=cond,
    )
