r"""The kernel of one reverse step, as an object.

A :class:`Transition` is the law :math:`p(x_s \mid x_t)` of a batch of ``B`` independent chains. The kernel is written
once, by a process, and every algorithm and sampler uses it through this class. Event dimensions are always summed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from difftilt.errors import UnsupportedError
from difftilt.types import Float, Tensor


class Transition(ABC):
    """A law over :math:`x_s` given :math:`x_t`, for a batch of ``B`` chains."""

    discrete: bool = False
    """Whether states are tokens: then :meth:`relax` is the differentiable draw, else :meth:`rsample`."""

    @abstractmethod
    def sample(self, rng: torch.Generator) -> Tensor:
        """Draw :math:`x_s`, shape ``[B, *event]``. No gradient flows."""

    @abstractmethod
    def log_prob(self, x_s: Tensor) -> Float[Tensor, " B"]:
        """Log-probability of ``x_s``, nats, summed over the event. Gradient flows to the prediction.

        Raises:
            NoDensityError: the step is deterministic.
        """

    @abstractmethod
    def kl(self, other: Any) -> Float[Tensor, " B"]:
        r"""Closed-form :math:`KL(self \| other)` in nats, summed over the event; 0 iff the two laws agree.

        Gradient flows to both predictions. For a deterministic step it is 0 where the two agree and infinite
        elsewhere.
        """

    @property
    def has_density(self) -> bool:
        """Whether :meth:`log_prob` is defined (false for ODE-like and noiseless steps)."""
        return True

    def rsample(self, rng: torch.Generator) -> Tensor:
        """A draw through which the pathwise gradient flows, exactly.

        Raises:
            UnsupportedError: the law is discrete, where no exact pathwise gradient exists.
        """
        raise UnsupportedError(
            f"expected a step with an exact pathwise gradient; got {type(self).__name__}, which is discrete; "
            "use relax() (biased) or a score-function algorithm such as ppo"
        )

    def relax(self, rng: torch.Generator, *, tau: float) -> Tensor:
        """A relaxed (Gumbel-softmax) draw: token probabilities ``[B, L, V + 1]``, straight-through, biased.

        Args:
            rng: noise source.
            tau: Gumbel-softmax temperature, no unit. The bias falls with it while the variance grows: to 0 for
                one token, to a floor where networks read relaxed tokens (0.09 of the gradient on a 3-token chain).

        Raises:
            UnsupportedError: the law is continuous, where :meth:`rsample` is exact.
        """
        raise UnsupportedError(
            f"expected a step over tokens; got {type(self).__name__}, which is continuous; use rsample() instead"
        )
