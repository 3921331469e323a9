r"""What a problem with exact answers offers, so that all methods are judged alike on all of them.

Two target laws (theory 2): the *tilted* law :math:`p^* \propto p_{pre}\, e^{r/\alpha}`, which weighted samples reach,
and :math:`p^*_{fixed}`, the marginal of the soft-optimal kernels run from the fixed prior, which fine-tuning aims at:

.. math:: p^*_{fixed}(x_0) = E_{x_1}\left[ p_{pre}(x_0 \mid x_1)\, e^{(r(x_0) - v_1(x_1))/\alpha} \right]   \qquad (1)

They are one law iff :math:`v_1` is constant. ``kl`` is to (1); what the trained class can reach at best is
``class_kl``, the KL of the class optimum to (1).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch

from difftilt.core.policy import Policy
from difftilt.core.reward import Reward
from difftilt.core.value import Value
from difftilt.types import Float, Int, Tensor


@dataclass(frozen=True)
class Histogram:
    """Weighted samples beside the exact law, over the same cells."""

    observed: Float[Tensor, " C"]
    """Share of the weight in each cell; sums to 1."""
    expected: Float[Tensor, " C"]
    """Exact probability of each cell under the target."""

    @classmethod
    def count(
        cls, cell: Int[Tensor, " N"], log_weight: Float[Tensor, " N"], expected: Float[Tensor, " C"]
    ) -> Histogram:
        """From the cell of each sample and its log weight, nats."""
        observed = torch.zeros_like(expected).index_add_(0, cell, log_weight.double().softmax(0))
        return cls(observed, expected)

    @property
    def total_variation(self) -> float:
        """Half the sum of absolute differences, 0 to 1; of N samples of the law itself it is not 0."""
        return 0.5 * (self.observed - self.expected).abs().sum().item()


class TiltedLaw(ABC):
    """The tilted law of a table of designs, all of which have a reward, from the pretrained one."""

    table: Float[Tensor, " N"]
    """Reward of every design, reward units."""
    alpha: float
    """KL temperature, reward units per nat."""

    @property
    @abstractmethod
    def pretrained_law(self) -> Float[Tensor, " N"]:
        """:math:`p_{pre}(x_0)`."""

    @cached_property
    def log_z(self) -> float:
        """Log of the normaliser of the tilted law, nats."""
        return (self.pretrained_law.log() + self.table / self.alpha).logsumexp(0).item()

    @cached_property
    def tilted(self) -> Float[Tensor, " N"]:
        """:math:`p^*(x_0)`."""
        return (self.pretrained_law.log() + self.table / self.alpha).softmax(0)


@runtime_checkable
class Problem(Protocol):
    """A pretrained policy, a reward and a temperature, with exact numbers for any policy on the same chain."""

    @property
    def pretrained(self) -> Policy:
        """:math:`p_{pre}`, frozen."""
        ...

    @property
    def reward(self) -> Reward:
        """What designs are worth."""
        ...

    @property
    def alpha(self) -> float:
        """KL temperature, reward units per nat."""
        ...

    @property
    def log_z(self) -> float:
        """Log of the normaliser of the tilted law, nats."""
        ...

    @property
    def class_kl(self) -> float:
        """KL of the class optimum to (1), nats: what an exact bar must allow for."""
        ...

    @property
    def target_mean_reward(self) -> float:
        """Mean reward under (1)."""
        ...

    def value(self) -> Value:
        """Exact soft values of the pretrained chain, to steer by and to calibrate against."""
        ...

    def tunable(self) -> Policy:
        """A policy with gradients and the law of the pretrained one: where fine-tuning starts; new at each call."""
        ...

    def kl(self, policy: Policy) -> float:
        """KL of the law of :math:`x_0` under ``policy`` to (1), nats; given feasibility where designs are not."""
        ...

    def mean_reward(self, policy: Policy) -> float:
        """Mean reward under ``policy``, over its feasible designs."""
        ...

    def law_of(self, x_0: Tensor, log_weight: Float[Tensor, " N"], *, fixed_prior: bool = False) -> Histogram:
        """Finished states, weighted, against the tilted law, or against (1) with ``fixed_prior``."""
        ...
