r"""Value-weighted maximum likelihood: one-step regression on the soft-optimal kernel (theory 5).

At any state :math:`x_t`, whoever got there, with candidates of the *pretrained* step and a given soft value ``v``,

.. math::
    w = e^{(v_s(x_s) - v_t(x_t)) / \alpha}, \quad x_s \sim p_{pre}(\cdot | x_t), \qquad
    L(\theta) = - E\Big[ \sum_k (w - \rho)\, \log p_\theta(x_s | x_t) \Big]                             \qquad (1)

:math:`w\, p_{pre}` is the soft-optimal kernel, so (1) is its forward KL step by step. The ratio
:math:`\rho = p_\theta / p_{pre}`, held fixed, changes the gradient in no mean, because
:math:`E_{pre}[\rho \nabla \log p_\theta] = 0`, and makes its noise vanish at the optimum. Candidates drawn by the tuned
policy instead would compound the tilt from update to update. Where ``v`` is off, so is the law: the claim is that of
the value.

Values are fitted once, by the regression of :mod:`difftilt.values.regression` on rollouts of p_pre, unless the state is
given one. At the last step the value is the reward itself, asked for every candidate.

Roll-in paths may be old or explored (:mod:`difftilt.algorithms.replay`): only their states are used.

Differs from the paper in: the control variate, and values that are not refitted while the policy moves.

References:
    Su et al. 2025 (VIDD), https://arxiv.org/abs/2507.00445; Uehara et al. 2024, section 4.3,
    https://arxiv.org/abs/2407.13734.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from difftilt.algorithms.paths import ScoredPaths, Steps
from difftilt.algorithms.replay import OffPolicySettings, OffPolicyState
from difftilt.algorithms.reward_weighted_mle import weighted_mle_loss
from difftilt.algorithms.state import check_settings, refuse_conditions
from difftilt.core.algorithm import Anchor
from difftilt.core.conditions import Conditions, repeated
from difftilt.core.policy import Policy
from difftilt.core.reward import Reward
from difftilt.core.value import Value
from difftilt.errors import UnsupportedError
from difftilt.types import Float, Int, Tensor
from difftilt.values.network import ValueNetwork
from difftilt.values.regression import Regressed, Regression, fit_value


class ValueWeightedMLEState(OffPolicyState):
    """:class:`OffPolicyState` with the soft value, free to be given before the first update."""

    value: Value | None = None
    """Of the pretrained chain; fitted at the first update where not given."""
    saved: dict[str, Any] | None = None
    """A fitted value as the checkpoint has it, until the reward is at hand again."""

    def state_dict(self) -> dict[str, Any]:
        """As the base, and a fitted value; one that was given must be given again."""
        if not isinstance(self.value, Regressed):
            return super().state_dict()
        return {
            **super().state_dict(),
            "value": {"network": self.value.network.state_dict(), "offset": self.value.offset},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        super().load_state_dict(state)
        self.saved = state.get("value")


def value_weight(after: Float[Tensor, "M R"], before: Float[Tensor, " R"], *, alpha: float) -> Float[Tensor, "M R"]:
    r""":math:`w` of (1), no unit.

    Args:
        after: :math:`v_s` of each candidate, reward units; ``-inf`` where nothing feasible can follow.
        before: :math:`v_t`, reward units.
        alpha: KL temperature, reward units per nat; positive.

    Returns:
        Weights with mean 1 under exact values; 0 from states without a feasible future.
    """
    weight = ((after - before) / alpha).exp()
    return weight.where(before > -torch.inf, 0.0)


@dataclass(frozen=True, kw_only=True)
class ValueWeightedMLE(OffPolicySettings):
    """Settings of value-weighted maximum likelihood; see the module for the method."""

    candidates: int = 4
    """Candidates M of the pretrained step at each state; also reward calls at each last step."""
    value_paths: int = 8192
    """Rollouts of p_pre that the value is fitted to: also reward calls, once."""
    value_updates: int = 2000
    """Optimiser steps of that fit."""

    tempered: ClassVar[bool] = False
    """The value keeps the alpha that it was fitted at."""

    def init(
        self, policy: Policy, anchors: list[Anchor], conditions: Conditions | None = None
    ) -> ValueWeightedMLEState:
        """Start tuning ``policy`` in place.

        Raises:
            UnsupportedError: several anchors, whose common kernel has no closed form.
        """
        check_settings(self)
        refuse_conditions(conditions, "value-weighted likelihood")
        state = ValueWeightedMLEState(
            policy, anchors, conditions, learning_rate=self.learning_rate, capacity=self.replay_paths
        )
        if len(anchors) > 1:
            raise UnsupportedError(
                f"expected one anchor, whose steps are weighted; got {len(anchors)}; use --algorithm ppo or "
                "trajectory_balance"
            )
        return state

    def collect(self, state: ValueWeightedMLEState, reward: Reward, rng: torch.Generator) -> ScoredPaths:
        """Paths whose states are rolled in to; the value is fitted first if need be."""
        calls, reference = 0, state.references[0]
        if state.value is None and state.saved is not None:
            network = ValueNetwork(reference).to(reference.device)
            network.load_state_dict(state.saved["network"])
            network.eval().requires_grad_(False)
            state.value = Regressed(reference, reward, network, state.alpha, state.saved["offset"])
        if state.value is None:
            settings = Regression(alpha=state.alpha, paths=self.value_paths, updates=self.value_updates)
            state.value = fit_value(reference, reward, rng, settings)
            calls = self.value_paths
        data = super().collect(state, reward, rng)
        fitted = calls * state.policy.steps
        return replace(
            data,
            network_evaluations=data.network_evaluations + fitted,
            oracle_calls=data.oracle_calls + calls,
        )

    def targets(self, state: ValueWeightedMLEState, data: ScoredPaths) -> Value:
        """The soft value."""
        assert state.value is not None
        return state.value

    def loss(
        self,
        state: ValueWeightedMLEState,
        data: ScoredPaths,
        targets: Value,
        steps: Steps,
        rows: Int[Tensor, " P"],
        rng: torch.Generator,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Equation (1)."""
        law = steps.law(state.policy)
        with torch.no_grad():
            theirs = steps.law(state.references[0])
            tries = [theirs.sample(rng) for _ in range(self.candidates)]
            after = targets(torch.cat(tries), steps.s.repeat(self.candidates), repeated(steps.cond, self.candidates))
            before = targets(steps.x_t, steps.t, steps.cond)
            weight = value_weight(after.view(self.candidates, -1), before, alpha=state.alpha)
            reference = torch.stack([theirs.log_prob(x_s).double() for x_s in tries])
        log_prob = torch.stack([law.log_prob(x_s).double() for x_s in tries])
        coefficient = (weight - (log_prob.detach() - reference).exp()).flatten()
        share = steps.scale / self.candidates
        return weighted_mle_loss(log_prob.flatten(), coefficient, scale=share, paths=len(rows)), {}

    def scored(self, steps: Steps) -> int:
        """Every candidate of a last step."""
        return self.candidates * int((steps.s == 0).sum())
