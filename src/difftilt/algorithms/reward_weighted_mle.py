r"""Reward-weighted maximum likelihood: fit the tuned chain to paths weighted as the tilted law weighs them.

With the log-weight :math:`\log w` of a path, equation (2) of :mod:`difftilt.algorithms.paths`, and log Z estimated by a
running mean of weights,

.. math:: L(\theta) = - \frac1B \sum_b \Big( \frac{w_b}{Z} - c_b \Big) \sum_k \log p_\theta(x_s^b | x_t^b) \qquad (1)

whose expectation, with :math:`c = 0`, is :math:`KL(p^*(\text{path}) \| p_\theta(\text{path}))` plus a constant: forward
KL, covering every mode. On fresh paths of the tuned policy :math:`c = 1` changes the gradient in no mean, because
:math:`E \nabla \log p_\theta = 0`, and makes its noise vanish at the optimum, where every :math:`w = Z`. Paths of
others have :math:`c = 0`.

Steps are those *stored* at rollout, so that the chain's own bridge is learned. ``path_correction=False`` drops the
log-ratios from the weights of own paths: the tilt then compounds from update to update (the law drifts to
:math:`p_{pre} e^{n r/\alpha}`); it is there to be compared, not to be used. The weights' mean runs over updates
(``running``, in logs): normalising each batch by its own mean leaves a bias of order 1 / B.

Differs from the papers in: path correction and running normaliser, which they lack.

References:
    Lee et al. 2023 (reward-weighted likelihood), https://arxiv.org/abs/2302.12192; Uehara et al. 2024, section 4.3,
    https://arxiv.org/abs/2407.13734.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from difftilt.algorithms.paths import PathInfo, ScoredPaths, Steps
from difftilt.algorithms.replay import OffPolicySettings, OffPolicyState
from difftilt.algorithms.state import check_settings
from difftilt.core.algorithm import Anchor
from difftilt.core.conditions import Conditions
from difftilt.core.policy import Policy
from difftilt.core.stats import effective_sample_size, log_mean_exp
from difftilt.errors import ConfigError
from difftilt.types import Float, Int, Tensor


@dataclass(frozen=True, kw_only=True)
class RewardWeightedMLEInfo(PathInfo):
    """What one update logs."""

    log_z: float
    """The running log mean weight, nats; settles at log Z."""
    ess_fraction: float
    """Effective sample size of the weights as a share of the batch; healthy: rising, above 0.1."""


class RewardWeightedMLEState(OffPolicyState):
    """:class:`OffPolicyState` with the running normaliser of each condition, ``log_z``, nats."""

    def __init__(
        self,
        policy: Policy,
        anchors: list[Anchor],
        conditions: Conditions | None = None,
        *,
        learning_rate: float,
        capacity: int,
    ) -> None:
        super().__init__(policy, anchors, conditions, learning_rate=learning_rate, capacity=capacity)
        count = 1 if conditions is None else len(conditions)
        self.log_z = torch.full((count,), -torch.inf, dtype=torch.float64, device=policy.device)
        self.seen = torch.zeros(count, dtype=torch.float64, device=policy.device)

    def normalise(
        self, log_weight: Float[Tensor, " B"], condition: Int[Tensor, " B"], memory: float
    ) -> Float[Tensor, " B"]:
        """Log running mean weight of each path's condition, nats, after one more batch; the first ones count alike."""
        for label in condition.unique():
            batch = log_mean_exp(log_weight[condition == label])
            self.seen[label] += 1
            share = torch.clamp(1 / self.seen[label], min=1 - memory)
            self.log_z[label] = torch.logaddexp(self.log_z[label] + torch.log1p(-share), batch + share.log())
        return self.log_z[condition]

    def state_dict(self) -> dict[str, Any]:
        """As the base, and the normaliser."""
        return {**super().state_dict(), "log_z": self.log_z, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        super().load_state_dict(state)
        self.log_z.copy_(state["log_z"])
        self.seen.copy_(state["seen"])


def weighted_mle_loss(
    log_prob: Float[Tensor, " R"], coefficient: Float[Tensor, " R"], *, scale: float, paths: int
) -> Float[Tensor, ""]:
    """Equation (1) over the chosen steps of ``paths`` paths.

    Args:
        log_prob: of each step, nats, event-summed. Gradient flows.
        coefficient: :math:`w / Z - c` of each step's path, no unit. Never differentiated.
        scale: ``K / n`` for a subset of ``n`` steps.
        paths: number of paths the sum runs over.

    Returns:
        Nats; with ``c = 0`` the cross-entropy to the weighted paths.
    """
    return -scale * (coefficient * log_prob).sum() / paths


@dataclass(frozen=True, kw_only=True)
class WeightedMLE(OffPolicySettings):
    """Settings of methods that weigh paths; see the module."""

    running: float = 0.9
    """Memory of the running normaliser per update, 0 (each batch its own) to below 1."""
    path_correction: bool = True
    """Whether the weights of own paths undo the tilt already made; see the module."""

    info = RewardWeightedMLEInfo

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.running < 1:
            raise ConfigError(f"expected running of 0 to below 1; got {self.running}; lower it")

    def init(
        self, policy: Policy, anchors: list[Anchor], conditions: Conditions | None = None
    ) -> RewardWeightedMLEState:
        """Start tuning ``policy`` in place."""
        check_settings(self)
        return RewardWeightedMLEState(
            policy, anchors, conditions, learning_rate=self.learning_rate, capacity=self.replay_paths
        )

    def targets(self, state: RewardWeightedMLEState, data: ScoredPaths) -> Float[Tensor, " B"]:
        """Normalised weights :math:`w / Z`, no unit; all 0 as long as no design was feasible. No gradient flows."""
        log_weight = self.log_weight(state, data)
        log_z = state.normalise(log_weight, data.condition, self.running)
        return (log_weight - log_z).exp().where(log_z.isfinite(), 0.0)

    def log_weight(self, state: RewardWeightedMLEState, data: ScoredPaths) -> Float[Tensor, " B"]:
        """Log path weights, nats."""
        if self.path_correction:
            return data.log_weight(state.weights)
        return (data.scores.value / state.alpha).where(data.scores.feasible, -math.inf)

    def watched(self, state: RewardWeightedMLEState, data: ScoredPaths) -> dict[str, Tensor]:
        """The normaliser and how even the weights are."""
        ess = effective_sample_size(self.log_weight(state, data)) / data.path.batch
        known = state.log_z[state.log_z.isfinite()]
        return {"log_z": known.mean() if len(known) else torch.zeros_like(ess), "ess_fraction": ess}


@dataclass(frozen=True, kw_only=True)
class RewardWeightedMLE(WeightedMLE):
    """Settings of reward-weighted maximum likelihood; see the module for the method."""

    control_variate: bool = True
    """c = 1 on fresh own paths; else 0 everywhere, plain likelihood."""

    def targets(self, state: RewardWeightedMLEState, data: ScoredPaths) -> Float[Tensor, " B"]:
        """Coefficients :math:`w / Z - c`, no unit. No gradient flows."""
        weight = super().targets(state, data)
        if not (self.control_variate and self.path_correction):
            return weight
        return weight - (data.own & state.log_z[data.condition].isfinite()).double()

    def loss(
        self,
        state: RewardWeightedMLEState,
        data: ScoredPaths,
        targets: Float[Tensor, " B"],
        steps: Steps,
        rows: Int[Tensor, " P"],
        rng: torch.Generator,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Equation (1)."""
        log_prob = steps.log_prob_under(state.policy)
        loss = weighted_mle_loss(log_prob, targets[steps.path], scale=steps.scale, paths=len(rows))
        return loss, self.watched(state, data)
