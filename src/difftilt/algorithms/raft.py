r"""RAFT: maximum likelihood on the best share of each batch, the hard limit of reward weighting.

With :math:`\mathrm{top}(c)` the share ``c`` of highest rewards among the feasible paths of the batch,

.. math:: L(\theta) = - \frac1{cB} \sum_{b \in \mathrm{top}(c)} \sum_k \log p_\theta(x_s^b | x_t^b)          \qquad (1)

Steps are those stored at rollout. It raises the reward until the policy repeats itself, and claims no law: alpha does
not enter (1). Anchors are only watched; stop by their KL.

Differs from the paper in: whole batches are ranked, not the samples of each prompt.

References:
    Dong et al. 2023 (RAFT), https://arxiv.org/abs/2304.06767; Uehara et al. 2024, section 4.3,
    https://arxiv.org/abs/2407.13734.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from difftilt.algorithms.paths import PathSettings, ScoredPaths, Steps
from difftilt.algorithms.reward_weighted_mle import weighted_mle_loss
from difftilt.algorithms.state import TunedState
from difftilt.errors import ConfigError
from difftilt.types import Float, Int, Tensor


@dataclass(frozen=True, kw_only=True)
class RAFT(PathSettings):
    """Settings of RAFT; see the module for the method."""

    keep: float = 0.1
    """Share c of each batch that is learned from, above 0 to 1."""

    tempered: ClassVar[bool] = False
    """No alpha in the loss, which a KL budget could move."""

    def __post_init__(self) -> None:
        if 1 < self.keep < math.inf:
            raise ConfigError(f"expected keep of at most 1; got {self.keep}; lower it")

    def targets(self, state: TunedState, data: ScoredPaths) -> Float[Tensor, " B"]:
        """Coefficients: B over the number kept for the best paths, 0 for others. No gradient flows."""
        value = data.scores.value.nan_to_num(nan=-math.inf)
        coefficient = torch.zeros_like(value)
        kept = min(math.ceil(self.keep * len(value)), int(data.scores.feasible.sum()))
        coefficient[value.topk(kept).indices] = len(value) / max(1, kept)
        return coefficient

    def loss(
        self,
        state: TunedState,
        data: ScoredPaths,
        targets: Float[Tensor, " B"],
        steps: Steps,
        rows: Int[Tensor, " P"],
        rng: torch.Generator,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Equation (1)."""
        log_prob = steps.log_prob_under(state.policy)
        return weighted_mle_loss(log_prob, targets[steps.path], scale=steps.scale, paths=len(rows)), {}
