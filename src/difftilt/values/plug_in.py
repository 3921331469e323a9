r"""Soft values from one network call: the reward of the mean, and the mean over one-jump designs.

.. math::
    \hat v_t(x) &= r( E[x_0 \mid x_t = x] )                                                            \qquad (1) \\
    \hat v_t(x) &= \alpha \log \frac1n \sum_{i=1}^n e^{r(x_0^i)/\alpha}, \quad
        x_0^i \sim p(x_0 \mid x_t = x) \text{ of a single step } t \to 0                               \qquad (2)

(1), :class:`PlugIn`, needs ``on_probabilities``; it ignores the spread of :math:`x_0`, and on tokens reads a reward
off letters that it has never seen mixed. (2), :class:`OneJump`, works with any reward: on tokens the designs are drawn
with independent letters, as the token laws stand at ``x_t`` (which is not the law of :math:`x_0` given
:math:`x_t`); on Gaussian chains the jump is the mean itself, so that (2) is (1) for black boxes. Neither is the soft
value (theory 3), even for infinite ``n``.

That none of ``n`` drawn designs is feasible does not say that none can be. Such a state counts as if one design more
had been drawn, feasible, and worth the mean :math:`\bar r` of the feasible designs of the same call and condition (0
without any):

.. math:: \hat v_t(x) = \bar r - \alpha \log (n + 1)                                                   \qquad (3)

So no drawn value before the end is :math:`-\infty`, and no sampler loses for good what may still become feasible.

References:
    Chung et al. 2023 (DPS: (1)), https://arxiv.org/abs/2209.14687; Li et al. 2024 (SVDD-PM: (1)),
    https://arxiv.org/abs/2408.08252; Singhal et al. 2025 (FK steering: (2) on tokens),
    https://arxiv.org/abs/2501.06848.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from difftilt.core.conditions import numbers, repeated
from difftilt.core.policy import Policy
from difftilt.core.reward import DifferentiableReward, Reward, score, under
from difftilt.core.stats import log_mean_exp
from difftilt.core.value import Value
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.types import Condition, Float, Tensor
from difftilt.values.estimate import Estimate, relaxed, reward_of_mean


@dataclass(frozen=True)
class PlugIn(Estimate):
    """Equation (1). Differentiable."""

    def at(self, x_t: Tensor, t: Float[Tensor, ""], cond: Condition | None) -> Float[Tensor, " B"]:
        """Equation (1)."""
        return reward_of_mean(self.policy, self.reward, x_t, t, cond)


@dataclass(frozen=True)
class OneJump(Estimate):
    """Equation (2). Random, not differentiable, ``designs`` reward calls for each state."""

    rng: torch.Generator
    """Noise source, on the policy's device."""
    alpha: float
    """KL temperature, reward units per nat; positive."""
    designs: int = 4
    """Designs drawn for each state, ``n``."""

    def __post_init__(self) -> None:
        check_drawn(self.designs, self.alpha)

    def at(self, x_t: Tensor, t: Float[Tensor, ""], cond: Condition | None) -> Float[Tensor, " B"]:
        """Equation (2); (3) where all ``n`` designs are infeasible."""
        refuse_gradient(self.policy, x_t, "a one-jump")
        with torch.no_grad():
            law = self.policy.step(x_t, t, torch.zeros_like(t), cond)
            designs = torch.cat([law.sample(self.rng) for _ in range(self.designs)])
        return soft_mean(self.policy, self.reward, designs, len(x_t), alpha=self.alpha, cond=cond)


def soft_mean(
    policy: Policy, reward: Reward, x_0: Tensor, rows: int, *, alpha: float, cond: Condition | None = None
) -> Float[Tensor, " B"]:
    r"""Equation (2) of each of ``rows`` states, or (3) where none of its designs is feasible.

    Args:
        policy: decodes designs.
        reward: scores them.
        x_0: finished states, ``[n * rows, *event]``, the states of each draw together.
        rows: number of states.
        alpha: KL temperature, reward units per nat.
        cond: conditions, one row for each state.
    """
    value = score(under(reward, repeated(cond, len(x_0) // rows)), policy.codec, x_0).value.view(-1, rows)
    feasible = ~value.isnan()
    tilt = (value / alpha).where(feasible, -torch.inf)
    found = alpha * torch.stack([log_mean_exp(row) for row in tilt.unbind(1)])
    if feasible.any(0).all():
        return found
    which = numbers(cond, rows, x_0.device)
    count, total = (
        number.new_zeros(int(which.max()) + 1).index_add(0, which, number)
        for number in (feasible.sum(0).double(), value.nansum(0).double())
    )
    return found.where(feasible.any(0), (total / count.clamp(min=1))[which] - alpha * math.log(len(value) + 1))


def check_drawn(n: int, alpha: float) -> None:
    """Refuse an estimate of no designs, or at a temperature that is not positive.

    Raises:
        ConfigError: ``n < 1`` or ``alpha <= 0``.
    """
    if n < 1 or not alpha > 0:
        raise ConfigError(
            f"expected at least 1 design for each state, and alpha > 0 (reward units per nat); got {n} and {alpha}; "
            "raise them"
        )


def refuse_gradient(policy: Policy, x_t: Tensor, kind: str) -> None:
    """Raise where a gradient is asked of an estimate made of drawn designs.

    Raises:
        UnsupportedError: always, if ``x_t`` is relaxed or needs a gradient.
    """
    if relaxed(policy, x_t) or x_t.requires_grad:
        raise UnsupportedError(
            f"expected a differentiable value; got {kind} value, whose designs are drawn; use a plug-in, regressed or "
            "exact value, or guidance by single-site moves"
        )


def default_value(
    policy: Policy, reward: Reward, rng: torch.Generator, *, alpha: float, cond: Condition | None = None
) -> Value:
    """What a sampler uses that was given no value: plug-in where the reward allows it, else one-jump."""
    if isinstance(under(reward, cond), DifferentiableReward):
        return PlugIn(policy, reward)
    return OneJump(policy, reward, rng, alpha)
