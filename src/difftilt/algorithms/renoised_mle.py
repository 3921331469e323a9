r"""Reward-weighted denoising: pretrain again on weighted designs, noised afresh. The usual cheap variant of weighting.

With the path weights ``w`` and the running Z of :mod:`difftilt.algorithms.reward_weighted_mle`, and the process's own
pretraining loss at a time and noise drawn anew,

.. math:: L(\theta) = \frac1B \sum_b \frac{w_b}{Z}\, \ell_{denoise}( \theta; x_0^b, x_t, t ), \quad
    x_t \sim q(\cdot | x_0^b), \; t \sim U(0, 1)                                                         \qquad (1)

One network pass per path instead of K. It learns the reversal of the noising law ``q``, not of the chain's own bridge
:math:`p_{pre}(x_t | x_0)`: its law is the tilted one where the two agree (masked chains that show one token a step, by
a denoiser that is consistent in every order; K to infinity), and off by the chain's own discretisation elsewhere. There
is no control variate: its noise does not vanish at the optimum.

References:
    Lee et al. 2023, https://arxiv.org/abs/2302.12192; Uehara et al. 2024, section 4.3, https://arxiv.org/abs/2407.13734.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from difftilt.algorithms.paths import ScoredPaths, Steps
from difftilt.algorithms.reward_weighted_mle import RewardWeightedMLEState, WeightedMLE
from difftilt.core.algorithm import Anchor
from difftilt.core.conditions import Conditions, rows_of
from difftilt.core.policy import Policy
from difftilt.errors import UnsupportedError
from difftilt.types import Float, Int, Tensor


@dataclass(frozen=True, kw_only=True)
class RenoisedMLE(WeightedMLE):
    """Settings of reward-weighted denoising; see the module for the method."""

    steps_per_path: int | None = None
    """Noise levels drawn for each path; one when not set."""

    def init(
        self, policy: Policy, anchors: list[Anchor], conditions: Conditions | None = None
    ) -> RewardWeightedMLEState:
        """Start tuning ``policy`` in place.

        Raises:
            UnsupportedError: some steps are run by a frozen network, which times drawn at random would ask for nothing.
        """
        frozen = sum(not policy.tuned_at(t) for t in policy.grid[:-1])
        if frozen:
            raise UnsupportedError(
                f"expected a network that is tuned at all times, as they are drawn; got {frozen} of {policy.steps} "
                "steps run by a frozen one; use --algorithm reward_weighted_mle"
            )
        return super().init(policy, anchors, conditions)

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
        policy, rows = state.policy, rows.repeat(self.steps_per_path or 1)
        x_0 = data.path.x_0[rows]
        t = torch.rand(len(rows), generator=rng, device=rng.device, dtype=torch.float64)
        x_t = policy.process.corrupt(x_0, t, rng)
        if policy.fixed is not None:
            x_t = policy.process.clamp(x_t, policy.fixed)
        cond = rows_of(data.path.cond, rows)
        loss = policy.process.denoising_loss(policy.denoiser(x_t, t, cond), x_0, x_t, t)
        return (targets[rows] * loss).mean(), self.watched(state, data)
