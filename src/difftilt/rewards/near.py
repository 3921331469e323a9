"""A reward of designs near a wild type; the others are infeasible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from difftilt.core.reward import DifferentiableReward, Reward
from difftilt.errors import ConfigError, DataError, UnsupportedError
from difftilt.rewards.function import as_reward
from difftilt.types import Float, Tensor


class Near:
    """``reward`` of designs with at most ``most`` mutations, NaN of the others, which it is not asked about.

    Args:
        reward: of designs as long as the wild type; reward units.
        wild_type: the design to stay near.
        most: mutations allowed, at least 1.

    Raises:
        ConfigError: no mutation allowed.
    """

    def __init__(self, reward: Reward, wild_type: str, most: int) -> None:
        if most < 1:
            raise ConfigError(f"expected at least one mutation; got {most}; raise the limit")
        self.reward, self.wild_type, self.most = as_reward(reward), wild_type, most
        self.reasons: list[str | None] = []
        if isinstance(self.reward, DifferentiableReward):
            self.on_probabilities = self._on_probabilities

    def __call__(self, designs: Sequence[Any]) -> Float[Tensor, " B"]:
        """Reward units, float64; NaN beyond the limit.

        Raises:
            DataError: a design of another length than the wild type.
        """
        designs = list(designs)
        counts = [self.mutations(design) for design in designs]
        near = [number for number, count in enumerate(counts) if count <= self.most]
        value = torch.full((len(designs),), torch.nan, dtype=torch.float64)
        self.reasons = [
            None if count <= self.most else f"{count} mutations from the wild type, more than {self.most}"
            for count in counts
        ]
        if near:
            value[near] = torch.as_tensor(self.reward([designs[i] for i in near]), dtype=torch.float64).cpu()
            for number, reason in zip(near, getattr(self.reward, "reasons", None) or [None] * len(near), strict=True):
                self.reasons[number] = reason
        return value

    def mutations(self, design: str) -> int:
        """Letters that differ from the wild type.

        Raises:
            DataError: another length.
        """
        if len(design) != len(self.wild_type):
            raise DataError(
                f"expected designs of {len(self.wild_type)} letters, as the wild type has; got {len(design)}; "
                "align them"
            )
        return sum(a != b for a, b in zip(design, self.wild_type, strict=True))

    def _on_probabilities(self, p: Float[Tensor, "B L V"]) -> Float[Tensor, " B"]:
        """The reward of relaxed designs, of which no limit is defined. Gradient flows to ``p``."""
        if not isinstance(self.reward, DifferentiableReward):
            raise UnsupportedError("expected a reward with on_probabilities; got one without; use another algorithm")
        return self.reward.on_probabilities(p)
