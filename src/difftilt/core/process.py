r"""The fixed mathematics of a diffusion process: no network, no parameters, no global state.

Time ``t`` lies in [0, 1]: ``t = 1`` is noise, ``t = 0`` is data, ``s < t`` is the next, less noisy time. Times are
float64 tensors of shape ``[B]`` (or scalars, which serve the whole batch), so that a training batch may mix steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from difftilt.core.schedule import uniform_grid
from difftilt.core.transition import Transition
from difftilt.errors import UnsupportedError
from difftilt.types import Float, Tensor


class Process(ABC):
    """Noise law, reverse kernel and pretraining loss of one kind of diffusion."""

    memoryless: bool = False
    """Whether :math:`x_1` tells (next to) nothing about :math:`x_0`, so that tilting the kernels alone reaches the
    tilted law (theory: the initial law)."""

    discrete: bool = False
    """Whether states are tokens ``[B, L]``, which networks read as ``vocabulary + 1`` symbols."""

    ends_in_corners: bool = False
    """Whether finished states all but coincide with single designs, through which next to no gradient flows."""

    vocabulary: int
    """Number of letters ``V``, of processes over letters."""

    bounds_likelihood: bool = False
    """Whether the mean of :meth:`denoising_loss` bounds :math:`-\\log p(x_0)` from above, in nats."""

    @abstractmethod
    def prior(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Draw :math:`x_1` of ``shape = (B, *event)`` on the generator's device."""

    @abstractmethod
    def corrupt(self, x_0: Tensor, t: Tensor, rng: torch.Generator) -> Tensor:
        r"""Draw :math:`x_t \sim q(x_t \mid x_0)`: the noising law that pretraining inverts."""

    @abstractmethod
    def transition(self, prediction: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Transition:
        r"""The kernel :math:`p(x_s \mid x_t)` of the K-step chain, given the network's ``prediction`` at ``t``."""

    def grid(self, steps: int) -> Float[Tensor, " K1"]:
        """Times of a chain of ``steps``, from 1 to 0: equally spaced unless the process needs some among them."""
        return uniform_grid(steps)

    @abstractmethod
    def denoising_loss(self, prediction: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor) -> Float[Tensor, " B"]:
        r"""Pretraining loss per example at times ``t ~ U(0, 1)``; its mean is the objective.

        Gradient flows to the prediction. Where :attr:`bounds_likelihood` it is a bound on :math:`-\log p(x_0)` in nats.
        """

    def denoised(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        r"""The network's estimate of :math:`E[x_0 \mid x_t]`, on which a reward's ``on_probabilities`` is defined.

        Gradient flows to ``prediction`` and ``x_t``.

        Raises:
            UnsupportedError: the process has no such estimate.
        """
        raise UnsupportedError(
            f"expected a process that estimates x_0 from one prediction; got {type(self).__name__}; "
            "use a Monte Carlo or a regressed value"
        )

    def noiseless(self, t: Tensor, s: Tensor) -> bool:
        """Whether the step ``t -> s`` has no density, whatever the prediction: its KL is 0 or infinite."""
        return False

    def clamp(self, x: Tensor, fixed: Tensor) -> Tensor:
        """Impose held-fixed components on a state before the first step.

        Args:
            x: a state drawn from :meth:`prior`, ``[B, *event]``.
            fixed: values of the event, with -1 where free.

        Raises:
            UnsupportedError: the process has no exact way to hold components fixed.
        """
        raise UnsupportedError(
            f"expected a process that can hold positions fixed (masked); got {type(self).__name__}; leave out --fix"
        )

    def config(self) -> dict[str, Any]:
        """Constructor arguments, plain values, for ``config.json``."""
        return {}
