r"""What a reward is, and what one batch of scores looks like.

A reward maps designs to numbers, higher is better. NaN means infeasible: such a design has weight exactly 0 wherever
weights are used, and no number is ever invented for it. A reward that can be differentiated also offers
``on_probabilities(p)`` for relaxed tokens ``[B, L, V]`` or pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch

from difftilt.core.codec import Codec
from difftilt.errors import OracleError
from difftilt.types import Bool, Condition, Float, Tensor


@runtime_checkable
class Reward(Protocol):
    """Scores designs; reward units; NaN = infeasible."""

    def __call__(self, designs: Sequence[Any]) -> Sequence[float] | Tensor:
        """One number per design, in order."""
        ...


@runtime_checkable
class DifferentiableReward(Reward, Protocol):
    """A reward that is also defined, differentiably, on relaxed designs."""

    def on_probabilities(self, p: Float[Tensor, "B *event"]) -> Float[Tensor, " B"]:
        """Reward of relaxed designs. Gradient flows to ``p``; the reward's own parameters stay frozen."""
        ...


@runtime_checkable
class ConditionalReward(Protocol):
    """A reward that depends on what a design was made for: a prompt, a label, a target."""

    def under(self, cond: Condition) -> Reward:
        """The reward of designs made for these conditions, one row for each design of the next batch."""
        ...


def under(reward: Reward | ConditionalReward, cond: Condition | None) -> Reward:
    """``reward`` for these conditions; itself where it depends on none."""
    if cond is not None and isinstance(reward, ConditionalReward):
        return reward.under(cond)
    return cast(Reward, reward)


def score_relaxed(reward: DifferentiableReward, p: Float[Tensor, "B *event"]) -> Float[Tensor, " B"]:
    """Reward of relaxed designs. Gradient flows to ``p``.

    Raises:
        OracleError: not one number for each.
    """
    value = reward.on_probabilities(p)
    if not isinstance(value, Tensor) or value.shape != p.shape[:1]:
        came = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise OracleError(
            f"expected on_probabilities to return a tensor of {len(p)} numbers, one per design; got {came}; reduce "
            "over all axes but the first"
        )
    return value


@dataclass(frozen=True)
class Scores:
    """Rewards of one batch: float64 values with NaN where infeasible."""

    value: Float[Tensor, " B"]

    @property
    def feasible(self) -> Bool[Tensor, " B"]:
        """True where the design has a reward."""
        return ~torch.isnan(self.value)

    @property
    def mean(self) -> float:
        """Mean over feasible designs; NaN if there is none."""
        return self.value[self.feasible].mean().item() if self.feasible.any() else float("nan")

    @property
    def std(self) -> float:
        """Standard deviation over feasible designs; NaN if there are fewer than two."""
        return self.value[self.feasible].std().item() if self.feasible.sum() > 1 else float("nan")


def score(reward: Reward, codec: Codec, x_0: Tensor) -> Scores:
    """Decode a batch of finished states and score it, outside any graph, on the device of ``x_0``."""
    with torch.no_grad():
        value = torch.as_tensor(reward(codec.decode(x_0)), dtype=torch.float64)
    return Scores(value.to(x_0.device))
