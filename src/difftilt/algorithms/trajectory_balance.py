r"""Relative trajectory balance: make every path's log-weight the same number.

With anchors :math:`(p_a, w_a)`, :math:`\alpha = \sum_a w_a` and :math:`L_b = \sum_a \frac{w_a}{\alpha} \sum_k l_{a,k}`:

.. math:: L(\theta, \log Z) = \frac1B \sum_b \big( \log Z + L_b - r(x_0^b) / \alpha \big)^2                 \qquad (1)

It is 0 iff :math:`p_\theta(\text{path}) = p_{pre}(\text{path}) e^{r/\alpha} / Z` on every path visited. With
``log_z="batch"`` (*VarGrad*, registered by that name too) log Z is the mean of :math:`r/\alpha - L` over the batch's
paths of a condition, and (1) is their variance

.. math:: L(\theta) = \mathrm{Var}_b \big[ L_b - r(x_0^b) / \alpha \big];                             \qquad (2)

with ``"learned"`` it is a parameter with its own learning rate. On-policy, the gradient in theta is twice that of
:math:`-J/\alpha`, with a variance that vanishes at the optimum.

The loss is valid on anybody's paths: see :mod:`difftilt.algorithms.replay` for replay and exploration. Infeasible paths
have no residual; equation (2) of :mod:`difftilt.algorithms.advantages` pushes toward feasibility, by own paths.

A subset of ``n`` of the K steps keeps the residual of the stored path and scales its gradient by K / n: unbiased at the
first pass. With all steps the residual is recomputed, so later passes stay exact.

References:
    Venkatraman et al. 2024 (relative trajectory balance, eq. 8), https://arxiv.org/abs/2405.20971;
    Richter et al. 2020 (VarGrad), https://arxiv.org/abs/2010.10436; Uehara et al. 2024, section 4.4,
    https://arxiv.org/abs/2407.13734.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from difftilt.algorithms.advantages import FeasibilitySettings, feasibility_push
from difftilt.algorithms.paths import PathInfo, ScoredPaths, Steps
from difftilt.algorithms.replay import OffPolicySettings, OffPolicyState, own_log_weight
from difftilt.algorithms.state import check_settings, refuse_lone_paths
from difftilt.core.algorithm import Anchor
from difftilt.core.conditions import Conditions
from difftilt.core.policy import Policy
from difftilt.errors import nearest
from difftilt.types import Float, Int, Tensor

LOG_Z = ("batch", "learned")


@dataclass(frozen=True, kw_only=True)
class TrajectoryBalanceInfo(PathInfo):
    """What one update logs."""

    log_z: float
    """The log Z that (1) uses, nats; rises towards the true one."""


class TrajectoryBalanceState(OffPolicyState):
    """:class:`OffPolicyState` with the log Z of each condition, parameters (float64, nats)."""

    def __init__(
        self,
        policy: Policy,
        anchors: list[Anchor],
        conditions: Conditions | None = None,
        *,
        learning_rate: float,
        log_z_learning_rate: float,
        capacity: int,
    ) -> None:
        self.log_z = nn.Parameter(
            torch.zeros(1 if conditions is None else len(conditions), dtype=torch.float64, device=policy.device)
        )
        extra = [{"params": [self.log_z], "lr": log_z_learning_rate}]
        super().__init__(policy, anchors, conditions, learning_rate=learning_rate, capacity=capacity, extra=extra)

    def state_dict(self) -> dict[str, Any]:
        """As the base, and log Z."""
        return {**super().state_dict(), "log_z": self.log_z.detach()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        super().load_state_dict(state)
        self.log_z.data.copy_(state["log_z"])


def trajectory_balance_loss(
    log_ratio: Float[Tensor, " B"], reward: Float[Tensor, " B"], log_z: Float[Tensor, "..."], *, alpha: float
) -> Float[Tensor, ""]:
    r"""Equation (1).

    Args:
        log_ratio: :math:`L_b`, the weighted path log-ratio, nats. Gradient flows.
        reward: :math:`r(x_0)`, reward units. Never differentiated.
        log_z: nats, one for all or that of each path's condition. Gradient flows.
        alpha: KL temperature, reward units per nat; positive.

    Returns:
        Squared nats; 0 iff every path is balanced.
    """
    return (log_z + log_ratio - reward / alpha).square().mean()


@dataclass(frozen=True, kw_only=True)
class TrajectoryBalance(OffPolicySettings, FeasibilitySettings):
    """Settings of trajectory balance; see the module for the method."""

    log_z: str = "batch"
    """``"batch"`` (VarGrad) or ``"learned"``."""
    log_z_learning_rate: float = 0.1
    """Of the learned log Z."""
    epochs: int = 1
    """Passes over the paths of an update."""
    minibatches: int = 2
    """Optimiser steps per pass."""

    info = TrajectoryBalanceInfo

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.log_z not in LOG_Z:
            raise nearest(self.log_z, LOG_Z, what="log_z")

    def init(
        self, policy: Policy, anchors: list[Anchor], conditions: Conditions | None = None
    ) -> TrajectoryBalanceState:
        """Start tuning ``policy`` in place."""
        check_settings(self)
        if self.log_z == "batch":
            refuse_lone_paths(self.batch, 2 * self.minibatches, "balanced against others of its minibatch")
        return TrajectoryBalanceState(
            policy,
            anchors,
            conditions,
            learning_rate=self.learning_rate,
            log_z_learning_rate=self.log_z_learning_rate,
            capacity=self.replay_paths,
        )

    def passes(self) -> tuple[int, int]:
        """As set: with all steps the residual is recomputed, so every pass is exact."""
        return self.epochs, self.minibatches

    def targets(self, state: TrajectoryBalanceState, data: ScoredPaths) -> Float[Tensor, " B"]:
        """Weighted path log-ratios as stored, nats; a learned log Z starts at the first batch's."""
        if state.updates == 0 and data.scores.feasible.any():
            state.log_z.data.fill_((data.returns(state.weights) / state.alpha)[data.scores.feasible].mean())
        return ((state.weights / state.alpha)[:, None] * data.path.log_ratio.sum(1)).sum(0)

    def loss(
        self,
        state: TrajectoryBalanceState,
        data: ScoredPaths,
        targets: Float[Tensor, " B"],
        steps: Steps,
        rows: Int[Tensor, " P"],
        rng: torch.Generator,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Equation (1) over the feasible paths, and the push of the others towards feasibility."""
        alpha = state.alpha
        log_prob = steps.log_prob_under(state.policy)
        change = log_prob - (steps.log_prob if steps.scale == 1 else log_prob.detach())
        change = steps.scale * change.view(-1, len(rows)).sum(0)
        feasible, log_ratio, value = data.scores.feasible[rows], targets[rows] + change, data.scores.value[rows]
        condition = data.condition[rows][feasible]
        loss, log_z = change.sum() * 0, state.log_z[condition]
        if feasible.any():
            if self.log_z == "batch":
                log_z = mean_by((value / alpha - log_ratio)[feasible], condition)
            loss = trajectory_balance_loss(log_ratio[feasible], value[feasible], log_z, alpha=alpha)
        if not feasible.all():
            weight = self.weigh_feasibility(alpha) / alpha
            counted = own_log_weight(data)[rows]
            push = feasibility_push(counted, feasible, data.condition[rows], feasibility_weight=weight)
            loss = loss - 2 * (push * change).sum()
        return loss, {"log_z": log_z.detach().mean() if feasible.any() else state.log_z.detach().mean()}


@dataclass(frozen=True, kw_only=True)
class VarGrad(TrajectoryBalance):
    """VarGrad: the variance (2), which is trajectory balance with the batch's own log Z."""

    log_z: str = "batch"
    """``"batch"``."""


def mean_by(values: Float[Tensor, " B"], label: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """In each place the mean of the values with its label. Gradient flows."""
    count = int(label.max()) + 1
    total = values.new_zeros(count).index_add(0, label, values)
    return (total / torch.bincount(label, minlength=count).clamp(min=1))[label]
