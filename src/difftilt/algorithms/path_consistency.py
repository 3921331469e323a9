r"""Path consistency: policy and soft value agree on every stretch of every path, whoever drew it.

With :math:`\ell_k = \sum_a \frac{w_a}{\alpha} l_{a,k}`, the soft-optimal kernels (theory 5) obey, from step ``i`` to a
later one ``j``,

.. math:: v_i(x_i) - v_j(x_j) + \alpha \sum_{k=i}^{j-1} \ell_k = 0, \qquad v_K = r                        \qquad (1)

The loss is the mean square of (1) over pairs ``j = min(i + span, K)``, or over all pairs where no span is given; a
network :math:`v_\phi` is trained along. The same loss has other names: with the flows
:math:`F_t = p_{pre,t} e^{v_t/\alpha}` and p_pre's own reversal as the backward policy, ``span = 1`` is *detailed
balance* and longer spans are *subtrajectory balance*, both times :math:`\alpha^2`. Updates divide (1) by alpha: they
work in nats.

Paths with an infeasible design are left out of (1) and pushed down as in trajectory balance: by own paths.

Differs from the papers in: the span may be any number, all pairs count alike, and the policy stands against p_pre.

References:
    Nachum et al. 2017 (PCL, eq. 15), https://arxiv.org/abs/1702.08892; Bengio et al. 2021 (detailed balance),
    https://arxiv.org/abs/2111.09266; Madan et al. 2022 (subtrajectory balance), https://arxiv.org/abs/2209.12782;
    Uehara et al. 2024, section 4.4, https://arxiv.org/abs/2407.13734.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from difftilt.algorithms.advantages import FeasibilitySettings, feasibility_push
from difftilt.algorithms.paths import PathInfo, ScoredPaths, Steps
from difftilt.algorithms.replay import OffPolicySettings, OffPolicyState, own_log_weight
from difftilt.algorithms.state import check_settings, refuse_conditions
from difftilt.core.algorithm import Anchor
from difftilt.core.conditions import Conditions
from difftilt.core.policy import Policy
from difftilt.errors import ConfigError
from difftilt.rng import seeded_initialisation
from difftilt.types import Float, Int, Tensor
from difftilt.values.network import ValueNetwork


@dataclass(frozen=True, kw_only=True)
class PathConsistencyInfo(PathInfo):
    """What one update logs."""

    log_z: float
    """The value of the initial states, nats; settles at log Z where the initial law does not matter."""
    residual: float
    """Root mean square of (1), nats; 0 at the optimum."""


class PathConsistencyState(OffPolicyState):
    """:class:`OffPolicyState` with the value: ``offset`` + ``value(x_t, t)``, nats."""

    def __init__(
        self, policy: Policy, anchors: list[Anchor], *, learning_rate: float, value_learning_rate: float, capacity: int
    ) -> None:
        with seeded_initialisation(0):
            own = getattr(policy.denoiser, "value_network", None)  # of a denoiser that knows what values can be
            self.value = (ValueNetwork(policy) if own is None else own()).to(policy.device)
        self.offset = 0.0
        extra = [{"params": list(self.value.parameters()), "lr": value_learning_rate}]
        super().__init__(policy, anchors, learning_rate=learning_rate, capacity=capacity, extra=extra)

    def state_dict(self) -> dict[str, Any]:
        """As the base, and the value."""
        return {**super().state_dict(), "value": self.value.state_dict(), "offset": self.offset}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        super().load_state_dict(state)
        self.value.load_state_dict(state["value"])
        self.offset = state["offset"]


def path_consistency_loss(
    log_ratio: Float[Tensor, "K B"],
    value: Float[Tensor, "K B"],
    reward: Float[Tensor, " B"],
    *,
    alpha: float,
    span: int | None = None,
) -> Float[Tensor, ""]:
    r"""Mean squared residual of (1) over ``B`` trajectories of ``K`` steps, noisiest first.

    Args:
        log_ratio: :math:`\ell_k`, nats, event-summed. Gradient flows.
        value: :math:`v_\phi(x_t)` at the start of each step, reward units. Gradient flows.
        reward: :math:`r(x_0)` of the finished samples. Never differentiated.
        alpha: KL temperature, reward units per nat; positive.
        span: steps between the ends of a stretch; all lengths when ``None``.

    Returns:
        Squared reward units; 0 iff (1) holds on every pair visited, whoever generated it.

    Raises:
        ConfigError: ``alpha <= 0`` (the target does not exist), or a span below 1.
    """
    if not alpha > 0 or (span is not None and span < 1):
        raise ConfigError(f"expected alpha > 0 and span >= 1; got {alpha} and {span}; raise them")
    spent = torch.cat([torch.zeros_like(log_ratio[:1]), log_ratio.cumsum(0)])
    level = torch.cat([value, reward[None]]) - alpha * spent  # equal all along a consistent path
    steps = len(log_ratio)
    first = torch.arange(steps, device=level.device)
    if span is None:
        first, last = torch.triu_indices(steps + 1, steps + 1, offset=1, device=level.device)
    else:
        last = (first + span).clamp(max=steps)
    return (level[first] - level[last]).square().mean()


@dataclass(frozen=True, kw_only=True)
class PathConsistency(OffPolicySettings, FeasibilitySettings):
    """Settings of path consistency; see the module for the method."""

    span: int | None = None
    """Steps between the ends of a stretch; all lengths when not set."""
    value_learning_rate: float = 1e-2
    """Of the value network."""
    epochs: int = 1
    """Passes over the paths of an update."""
    minibatches: int = 2
    """Optimiser steps per pass."""

    info = PathConsistencyInfo

    def init(self, policy: Policy, anchors: list[Anchor], conditions: Conditions | None = None) -> PathConsistencyState:
        """Start tuning ``policy`` in place."""
        check_settings(self)
        refuse_conditions(conditions, "path consistency")
        return PathConsistencyState(
            policy,
            anchors,
            learning_rate=self.learning_rate,
            value_learning_rate=self.value_learning_rate,
            capacity=self.replay_paths,
        )

    def passes(self) -> tuple[int, int]:
        """As set: with all steps the residual is recomputed, so every pass is exact."""
        return self.epochs, self.minibatches

    def targets(self, state: PathConsistencyState, data: ScoredPaths) -> Float[Tensor, "K B"]:
        """Step log-ratios as stored, nats; the value starts at the first batch's mean return."""
        if state.updates == 0 and data.scores.feasible.any():
            state.offset = (data.returns(state.weights) / state.alpha)[data.scores.feasible].mean().item()
        return ((state.weights / state.alpha)[:, None, None] * data.path.log_ratio).sum(0)

    def loss(
        self,
        state: PathConsistencyState,
        data: ScoredPaths,
        targets: Float[Tensor, "K B"],
        steps: Steps,
        rows: Int[Tensor, " P"],
        rng: torch.Generator,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Equation (1) in nats over the feasible paths, and the push of the others towards feasibility."""
        log_prob = steps.log_prob_under(state.policy)
        change = log_prob - (steps.log_prob if steps.scale == 1 else log_prob.detach())
        place = torch.arange(len(rows), device=rows.device).repeat(len(steps.k) // len(rows))
        log_ratio = targets[:, rows].index_put((steps.k, place), steps.scale * change, accumulate=True)
        path = data.path
        x_t, times = path.states[:-1, rows].flatten(0, 1), path.times[:-1].repeat_interleave(len(rows))
        value = (state.offset + state.value(x_t, times).double()).view(path.steps, len(rows))
        feasible = data.scores.feasible[rows]
        loss = 0 * (change.sum() + value.sum())
        if feasible.any():
            target = data.scores.value[rows][feasible] / state.alpha
            loss = path_consistency_loss(log_ratio[:, feasible], value[:, feasible], target, alpha=1.0, span=self.span)
        seen = {"log_z": value[0].detach().mean(), "residual": loss.detach().sqrt()}
        if not feasible.all():
            weight = self.weigh_feasibility(state.alpha) / state.alpha
            counted = own_log_weight(data)[rows]
            push = feasibility_push(counted, feasible, data.condition[rows], feasibility_weight=weight)
            loss = loss - 2 * steps.scale * (push[place] * log_prob).sum()
        return loss, seen


@dataclass(frozen=True, kw_only=True)
class DetailedBalance(PathConsistency):
    """Detailed balance of flows: path consistency with ``span = 1``, divided by alpha squared."""

    span: int | None = 1
    """One step."""


@dataclass(frozen=True, kw_only=True)
class SubtrajectoryBalance(PathConsistency):
    """Subtrajectory balance of flows: path consistency with any span, divided by alpha squared."""
