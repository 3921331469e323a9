r"""Surrogates as rewards to tune for: the mean, with a bonus or a penalty, the largest member, one draw.

.. math::
    r_C(x) &= \hat r(x) + C \sigma(x)                                                                       \qquad (1)

    r_{max}(x) &= \max_e f_e(x)                                                                             \qquad (2)

    r_F(x) &= r(x) + w \log P(F \mid x)                                                                     \qquad (3)

(1) is the optimistic reward of SEIKO (UCB) for :math:`C > 0`, the mean (greedy) for 0, and the pessimistic one of
BRAID (LCB) for :math:`C < 0`; (2) is SEIKO's bootstrap over members :math:`f_e`. Thompson's reward is
:meth:`~difftilt.surrogates.surrogate.Surrogate.draw`. (3) is for designs that may be infeasible: an infeasible design
has no value, and :math:`p_{pre} P(F \mid x) e^{r/w}` weighs it by its chance, where ``w`` is the sum of the anchors'
weights.

References:
    Uehara, Zhao et al. 2024 (SEIKO), https://arxiv.org/abs/2402.16359.
    Uehara et al. 2024 (BRAID), https://arxiv.org/abs/2405.19673.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from difftilt.core.codec import Codec
from difftilt.core.reward import DifferentiableReward
from difftilt.surrogates.ensemble import EnsembleSurrogate
from difftilt.surrogates.feasibility import Feasibility
from difftilt.surrogates.measurements import readable
from difftilt.surrogates.surrogate import ROWS, Surrogate
from difftilt.types import Float, Tensor


@dataclass(frozen=True)
class Bound:
    """Equation (1)."""

    surrogate: Surrogate
    """Gives mean and epistemic std."""
    c: float = 0.0
    """``C``, epistemic standard deviations; positive is optimistic, negative pessimistic, 0 greedy."""

    def on_probabilities(self, p: Float[Tensor, "B *event"]) -> Float[Tensor, " B"]:
        """Reward of relaxed designs, reward units. Gradient flows to ``p``."""
        mean, std = self.surrogate.at(p)
        return mean + self.c * std if self.c else mean

    @torch.no_grad()
    def __call__(self, designs: Sequence[Any]) -> Float[Tensor, " B"]:
        """Reward of designs, reward units."""
        mean, std = self.surrogate.predict(designs)
        return mean + self.c * std


@dataclass(frozen=True)
class Largest:
    """Equation (2)."""

    surrogate: EnsembleSurrogate
    """Gives the members."""

    def on_probabilities(self, p: Float[Tensor, "B *event"]) -> Float[Tensor, " B"]:
        """Reward of relaxed designs, reward units. Gradient flows to ``p`` through the largest member."""
        return self.surrogate.members(p).amax(0)

    @torch.no_grad()
    def __call__(self, designs: Sequence[Any]) -> Float[Tensor, " B"]:
        """Reward of designs, reward units."""
        return _by_parts(self, self.surrogate.codec, designs)


@dataclass(frozen=True)
class Feasible:
    """Equation (3)."""

    reward: DifferentiableReward
    """``r``, one of the above or a draw."""
    feasibility: Feasibility
    """Gives ``P(F | x)``."""
    weight: float
    """``w``, reward units per nat."""

    def on_probabilities(self, p: Float[Tensor, "B *event"]) -> Float[Tensor, " B"]:
        """Reward of relaxed designs, reward units. Gradient flows to ``p``."""
        return self.reward.on_probabilities(p) + self.weight * self.feasibility.log_probability(p)

    @torch.no_grad()
    def __call__(self, designs: Sequence[Any]) -> Float[Tensor, " B"]:
        """Reward of designs, reward units."""
        return _by_parts(self, self.feasibility.codec, designs)


def _by_parts(reward: DifferentiableReward, codec: Codec, designs: Sequence[Any]) -> Float[Tensor, " B"]:
    """What ``reward`` says of readable designs, :data:`ROWS` at a time."""
    return torch.cat([reward.on_probabilities(part) for part in readable(codec, designs).split(ROWS)])
