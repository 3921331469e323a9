r"""REINFORCE on the denoising chain: the score-function gradient of the objective, one step per rollout.

.. math:: \nabla J / \alpha = E\Big[ A \sum_k \nabla \log p_\theta(x_s \mid x_t) \Big],
    \quad L(\theta) = - \frac1B \sum_b A_b \sum_k \log p_\theta(x_s^b \mid x_t^b)                            \qquad (1)

with the advantage ``A`` of :mod:`difftilt.algorithms.advantages` by default: the path's whole return, the sampled KL
inside, centred by the other paths (others by name: :mod:`difftilt.algorithms.baselines`). Its noise vanishes at the
optimum, where every path has the same return.

Differs from the paper in: DDPO-SF has neither baseline nor KL.

References:
    Black et al. 2023 (DDPO-SF, eq. 5), https://arxiv.org/abs/2305.13301; Uehara et al. 2024, section 4.1,
    https://arxiv.org/abs/2407.13734.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from difftilt.algorithms.baselines import BaselineSettings
from difftilt.algorithms.paths import ScoredPaths, Steps
from difftilt.algorithms.state import TunedState
from difftilt.types import Float, Int, Tensor


def reinforce_loss(
    log_prob: Float[Tensor, " R"], advantage: Float[Tensor, " R"], *, scale: float, paths: int
) -> Float[Tensor, ""]:
    """Equation (1) over the chosen steps of ``paths`` paths.

    Args:
        log_prob: of each step, nats, event-summed. Gradient flows.
        advantage: of each step's path, nats. Never differentiated.
        scale: ``K / n`` for a subset of ``n`` steps.
        paths: number of paths the sum runs over.

    Returns:
        Only its gradient has meaning.
    """
    return -scale * (advantage * log_prob).sum() / paths


@dataclass(frozen=True, kw_only=True)
class Reinforce(BaselineSettings):
    """Settings of REINFORCE; see the module for the method."""

    def loss(
        self,
        state: TunedState,
        data: ScoredPaths,
        targets: Float[Tensor, "K B"],
        steps: Steps,
        rows: Int[Tensor, " P"],
        rng: torch.Generator,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Equation (1)."""
        log_prob = steps.log_prob_under(state.policy)
        return reinforce_loss(log_prob, targets[steps.k, steps.path], scale=steps.scale, paths=len(rows)), {}
