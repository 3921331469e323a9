r"""What steering samplers share: the proposal with its correction, drawing by log weights, weights of designs.

A step may be proposed by a policy ``q`` instead of the pretrained one; the weight of the move then has the factor

.. math:: p_{pre}(x_s \mid x_t) / q(x_s \mid x_t)                                                     \qquad (1)

Steps without density are always taken by the pretrained policy: there (1) is 0, infinite or 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from difftilt.core.policy import Policy
from difftilt.core.reward import Reward, score
from difftilt.core.transition import Transition
from difftilt.errors import ConfigError
from difftilt.metrics.log_z import log_path_weight
from difftilt.types import Condition, Float, Int, Tensor

ROWS = 4096
"""States per network call."""


@dataclass(frozen=True)
class Move:
    """One step of a batch of chains, as proposed."""

    law: Transition
    """What is drawn from."""
    target: Transition | None
    """The pretrained step, where it is another."""

    @classmethod
    def propose(
        cls, policy: Policy, proposal: Policy | None, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition | None
    ) -> Move:
        """The step of ``proposal`` (``policy`` itself if none) from ``x_t``."""
        own = policy.step(x_t, t, s, cond)
        if proposal is None or not own.has_density:
            return cls(own, None)
        return cls(proposal.step(x_t, t, s, cond), own)

    def log_correction(self, x_s: Tensor) -> Float[Tensor, " B"]:
        """Log of (1), nats; 0 for the pretrained step itself."""
        if self.target is None:
            return torch.zeros(len(x_s), dtype=torch.float64, device=x_s.device)
        return (self.target.log_prob(x_s) - self.law.log_prob(x_s)).double()


def log_design_weight(policy: Policy, reward: Reward, x_0: Tensor, *, alpha: float) -> Float[Tensor, " B"]:
    r""":math:`r(x_0) / \alpha` of finished states, nats; ``-inf`` where infeasible."""
    value = score(reward, policy.codec, x_0).value
    return log_path_weight(value, torch.zeros_like(value), alpha=alpha)


def unweighted(feasible: Tensor) -> Float[Tensor, " B"]:
    """Log weights of equally good designs: 0, and ``-inf`` where infeasible."""
    return torch.zeros(feasible.shape, dtype=torch.float64, device=feasible.device).where(feasible, -torch.inf)


def draw(log_weight: Float[Tensor, "B M"], rng: torch.Generator) -> Int[Tensor, " B"]:
    """One of ``M`` in each row, in proportion to its weight (a float64 Gumbel race); any if all weights are 0."""
    noise = torch.rand(log_weight.shape, generator=rng, device=log_weight.device, dtype=torch.float64)
    return (log_weight - torch.log(-torch.log(noise))).argmax(1)


def check_designs(n: int) -> None:
    """Refuse to draw nothing.

    Raises:
        ConfigError: ``n < 1``.
    """
    if n < 1:
        raise ConfigError(f"expected n >= 1 designs to draw; got {n}; raise it")


def check_alpha(alpha: float) -> None:
    """Refuse a temperature that is not positive.

    Raises:
        ConfigError: ``alpha <= 0``.
    """
    if not alpha > 0:
        raise ConfigError(f"expected alpha > 0 (reward units per nat); got {alpha}; a small one is nearly greedy")
