r"""CTRL: conditional generation as reward tilting, with :math:`r(x, y) = \log p(y \mid x)` and alpha = 1.

A policy that reads ``y``, tuned towards this reward under each ``y`` with alpha = 1 nat per nat, has as its target the
Bayes posterior of the pretrained law,

.. math:: p^*(x \mid y) \propto p_{pre}(x)\, e^{\log p(y | x)} = p_{pre}(x)\, p(y \mid x)                   \qquad (1)

Any algorithm that takes conditions does it (:class:`~difftilt.core.conditions.Conditions`): it needs samples of the
policy and a classifier, no pairs ``(x, y)``. :func:`difftilt.networks.conditioned.conditioned` makes the start.

References:
    Zhao, Uehara et al. 2024 (CTRL), https://arxiv.org/abs/2406.12120.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from difftilt.core.reward import Reward
from difftilt.errors import OracleError
from difftilt.types import Condition, Float, Tensor


class LabelLikelihood:
    r""":math:`\log p(y \mid x)` of a classifier, for whichever label each design was made for.

    Args:
        log_likelihood: designs to ``[B, labels]``, nats; ``-inf`` and NaN make a design infeasible for that label.
        name: of the condition that holds the label.
    """

    def __init__(self, log_likelihood: Callable[[Sequence[Any]], Tensor], name: str = "y") -> None:
        self.log_likelihood, self.name = log_likelihood, name

    def __call__(self, designs: Sequence[Any]) -> Float[Tensor, " B"]:
        """Refuses: without a label there is no number.

        Raises:
            OracleError: always.
        """
        raise OracleError(
            f"expected a label for each design; got {len(designs)} designs without; tune with conditions={{'y': ...}}"
        )

    def under(self, cond: Condition) -> Reward:
        """The reward of designs made for the labels ``cond[name] [B]``."""
        label = cond[self.name].long()

        def reward(designs: Sequence[Any]) -> Float[Tensor, " B"]:
            table = torch.as_tensor(self.log_likelihood(designs), dtype=torch.float64)
            value = table[torch.arange(len(table)), label.cpu()]
            return value.where(value.isfinite(), torch.nan)

        return reward
