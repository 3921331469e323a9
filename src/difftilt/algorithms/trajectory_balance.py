r"""Relative trajectory balance: make every path's log-weight the same number.

With anchors :math:`(p_a, w_a)`, :math:`\alpha = \sum_a w_a` and :math:`L_b = \sum_a \frac{w_a}{\alpha} \sum_k l_{a,k}`:

.. math:: L(\theta, \log Z) = \frac1B \sum_b \big( \log Z + L_b - r(x_0^b) / \alpha \big)^2                 \qquad (1)

It is 0 iff :math:`p_\theta(\text{path}) = p_{pre}(\text{path}) e^{r/\alpha} / Z` on every path visited. With
``log_z="batch"`` (VarGrad) log Z is the batch mean of :math:`r/\alpha - L`, and (1) is the batch variance; with
``"learned"`` it is a parameter with its own learning rate. On-policy, the gradient in theta is twice that of
:math:`-J/\alpha`, with a variance that vanishes at the optimum.

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

from difftilt.algorithms.advantages import centred_advantage, choose_steps, path_return
from difftilt.algorithms.state import TunedState, check_settings
from difftilt.core.algorithm import Anchor
from difftilt.core.policy import Policy
from difftilt.core.reward import Reward, Scores, score
from difftilt.core.trajectory import Trajectory, rollout, step_log_prob
from difftilt.errors import ConfigError
from difftilt.types import Float, Int, Tensor

LOG_Z = ("batch", "learned")


@dataclass(frozen=True)
class TrajectoryBalanceInfo:
    """What one update logs."""

    reward: float
    """Mean reward of the feasible designs of the rollout, reward units."""
    kl_nats: float
    """Path KL of the rollout to the first anchor (k1: sampled log-ratios), nats."""
    feasible_fraction: float
    """Share of designs with a reward."""
    residual_std: float
    """Spread of the residuals, nats; 0 at the optimum."""
    log_z: float
    """The log Z that (1) uses, nats; rises towards the true one."""
    gradient_norm: float
    """Before clipping, mean over minibatches."""
    network_evaluations: int
    """Denoiser passes, counted per design and step."""
    oracle_calls: int
    """Designs scored."""


class TrajectoryBalanceState(TunedState):
    """:class:`TunedState` with the log Z parameter (float64, nats)."""

    def __init__(
        self, policy: Policy, anchors: list[Anchor], *, learning_rate: float, log_z_learning_rate: float
    ) -> None:
        self.log_z = nn.Parameter(torch.zeros((), dtype=torch.float64, device=policy.device))
        extra = [{"params": [self.log_z], "lr": log_z_learning_rate}]
        super().__init__(policy, anchors, learning_rate=learning_rate, extra=extra)

    def state_dict(self) -> dict[str, Any]:
        """As the base, and log Z."""
        return {**super().state_dict(), "log_z": self.log_z.detach()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        super().load_state_dict(state)
        self.log_z.data.copy_(state["log_z"])


def trajectory_balance_loss(
    log_ratio: Float[Tensor, " B"], reward: Float[Tensor, " B"], log_z: Float[Tensor, ""], *, alpha: float
) -> Float[Tensor, ""]:
    r"""Equation (1).

    Args:
        log_ratio: :math:`L_b`, the weighted path log-ratio, nats. Gradient flows.
        reward: :math:`r(x_0)`, reward units. Never differentiated.
        log_z: nats. Gradient flows.
        alpha: KL temperature, reward units per nat; positive.

    Returns:
        Squared nats; 0 iff every path is balanced.
    """
    return (log_z + log_ratio - reward / alpha).square().mean()


@dataclass(frozen=True, kw_only=True)
class TrajectoryBalance:
    """Settings of trajectory balance; see the module for the method."""

    alpha: float = 0.1
    """KL temperature, reward units per nat; used where no anchors are given."""
    batch: int = 256
    """Paths per update, B: also reward calls per update."""
    learning_rate: float = 1e-3
    """Of Adam."""
    log_z: str = "batch"
    """``"batch"`` (VarGrad) or ``"learned"``."""
    log_z_learning_rate: float = 0.1
    """Of the learned log Z."""
    epochs: int = 1
    """Passes over the rollout."""
    minibatches: int = 2
    """Optimiser steps per pass."""
    steps_per_path: int | None = None
    """Random steps of each path in each pass, n; all K when not set."""
    max_gradient_norm: float = 10.0
    """Gradients are scaled down to this norm."""
    feasibility_weight: float | None = None
    """Weight of log P(feasible), reward units per nat; alpha when not set."""

    def __post_init__(self) -> None:
        if self.log_z not in LOG_Z:
            raise ConfigError(f"expected log_z to be one of {', '.join(LOG_Z)}; got '{self.log_z}'; correct it")

    def init(self, policy: Policy, anchors: list[Anchor]) -> TrajectoryBalanceState:
        """Start tuning ``policy`` in place."""
        check_settings(self)
        return TrajectoryBalanceState(
            policy, anchors, learning_rate=self.learning_rate, log_z_learning_rate=self.log_z_learning_rate
        )

    def step(self, state: TrajectoryBalanceState, reward: Reward, rng: torch.Generator) -> TrajectoryBalanceInfo:
        """One rollout of ``batch`` paths, scored once, and ``epochs`` passes over it."""
        policy, alpha = state.policy, state.alpha
        path = rollout(policy, self.batch, rng, references=state.references)
        state.x_0 = path.x_0
        scores = score(reward, policy.codec, path.x_0)
        returns = path_return(scores.value, path.log_ratio, state.weights) / alpha
        if state.updates == 0 and scores.feasible.any():
            state.log_z.data.fill_(returns[scores.feasible].mean())
        evaluations = path.steps * self.batch * (1 + len(state.anchors))
        norms = []
        for _ in range(self.epochs):
            order = torch.randperm(self.batch, generator=rng, device=policy.device)
            for rows in order.tensor_split(self.minibatches):
                norm, count = self._update(state, path, scores, rows, rng)
                evaluations += count
                norms.append(norm)
        state.updates += 1
        feasible = returns[scores.feasible]
        log_z = state.log_z if self.log_z == "learned" else feasible.mean()
        return TrajectoryBalanceInfo(
            reward=scores.mean,
            kl_nats=path.log_ratio[0].sum(0).mean().item(),
            feasible_fraction=scores.feasible.double().mean().item(),
            residual_std=Scores(returns).std,
            log_z=log_z.item(),
            gradient_norm=torch.stack(norms).mean().item(),
            network_evaluations=evaluations,
            oracle_calls=self.batch,
        )

    def _update(
        self,
        state: TrajectoryBalanceState,
        path: Trajectory,
        scores: Scores,
        rows: Int[Tensor, " P"],
        rng: torch.Generator,
    ) -> tuple[Tensor, int]:
        alpha = state.alpha
        steps = choose_steps(path, rows, self.steps_per_path, rng)
        log_prob = step_log_prob(state.policy, steps.x_t, steps.x_s, steps.t, steps.s, steps.cond).double()
        change = log_prob - (steps.log_prob if steps.scale == 1 else log_prob.detach())
        change = steps.scale * change.view(-1, len(rows)).sum(0)
        stored = ((state.weights / alpha)[:, None] * path.log_ratio[:, :, rows].sum(1)).sum(0)
        feasible, log_ratio, value = scores.feasible[rows], stored + change, scores.value[rows]
        loss = change.sum() * 0
        if feasible.any():
            target = value[feasible] / alpha - log_ratio[feasible]
            log_z = state.log_z if self.log_z == "learned" else target.mean()
            loss = trajectory_balance_loss(log_ratio[feasible], value[feasible], log_z, alpha=alpha)
        if not feasible.all():
            weight = alpha if self.feasibility_weight is None else self.feasibility_weight
            push = centred_advantage(torch.zeros_like(value), feasible, feasibility_weight=weight / alpha)
            loss = loss - 2 * (push * change).mean()
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(state.parameters, self.max_gradient_norm)
        state.optimiser.step()
        return norm, len(steps.path)
