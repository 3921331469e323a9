r"""What every estimate of the soft value has in common: its end, and the estimate of a finished design.

.. math:: v_t(x) = \alpha \log E_{pre}[ e^{r(x_0)/\alpha} \mid x_t = x ], \qquad v_0 = r                \qquad (1)

At :math:`t = 0` every estimate is the reward itself, :math:`-\infty` where that is NaN. Relaxed tokens and states that
carry a gradient get there through the reward's ``on_probabilities``, which knows no infeasible design.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from difftilt.core.conditions import rows_of
from difftilt.core.gaussian_step import GaussianSteps
from difftilt.core.policy import Policy
from difftilt.core.reward import DifferentiableReward, Reward, score, score_relaxed, under
from difftilt.errors import UnsupportedError
from difftilt.processes.masked import Masked
from difftilt.types import Condition, Float, Tensor


@dataclass(frozen=True)
class Estimate(ABC):
    """A :class:`~difftilt.core.value.Value` of one policy and one reward."""

    policy: Policy
    """The pretrained policy."""
    reward: Reward
    """Scores designs, reward units."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Float[Tensor, " B"]:
        """Equation (1), estimated; see :class:`~difftilt.core.value.Value`. Rows may be at different times."""
        times = t.expand(len(x_t))
        value = torch.zeros(len(x_t), dtype=torch.float64, device=x_t.device)
        for time in times.unique():
            rows = (times == time).nonzero()[:, 0]
            part = rows_of(cond, rows)
            estimate = self.at(x_t[rows], time, part) if time > 0 else self.at_end(x_t[rows], part)
            value = value.index_put((rows,), estimate.double())
        return value

    @abstractmethod
    def at(self, x_t: Tensor, t: Float[Tensor, ""], cond: Condition | None) -> Float[Tensor, " B"]:
        """The estimate at one time ``t > 0``."""

    def at_end(self, x_0: Tensor, cond: Condition | None) -> Float[Tensor, " B"]:
        """The reward, ``-inf`` where infeasible."""
        if x_0.requires_grad or relaxed(self.policy, x_0):
            return reward_of_mean(self.policy, self.reward, x_0, x_0.new_zeros((), dtype=torch.float64), cond)
        value = score(under(self.reward, cond), self.policy.codec, x_0).value
        return value.where(~value.isnan(), -torch.inf)


def relaxed(policy: Policy, x_t: Tensor) -> bool:
    """Whether ``x_t`` are relaxed tokens, ``[B, L, V + 1]``, of a policy over tokens."""
    return x_t.ndim > len(policy.event_shape) + 1


def reward_of_mean(
    policy: Policy, reward: Reward, x_t: Tensor, t: Float[Tensor, ""], cond: Condition | None
) -> Float[Tensor, " B"]:
    r""":math:`r(E[x_0 \mid x_t])`, reward units. Gradient flows to ``x_t``.

    Relaxed tokens may still hold masks at ``t = 0``; the network fills them, asked as before the last step.

    Raises:
        UnsupportedError: the reward is a black box, or the process estimates no mean.
    """
    reward = under(reward, cond)
    if not isinstance(reward, DifferentiableReward):
        raise UnsupportedError(
            f"expected a reward with on_probabilities, which is defined on the mean of x_0; got {type(reward).__name__}"
            ", a black box; use a one-jump, Monte Carlo or regressed value"
        )
    if t > 0 or isinstance(policy.process, Masked):
        times = t.clamp(min=policy.grid[-2]).expand(len(x_t))
        mean = policy.process.denoised(policy.denoiser(x_t, times, cond), x_t, t)
        if isinstance(policy.process, GaussianSteps):  # a state; others estimate probabilities of letters
            mean = policy.codec.readable(mean)
    else:
        mean = policy.codec.readable(x_t)
    return score_relaxed(reward, mean).double()
