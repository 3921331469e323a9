"""A reward that reads the prompt each design was made for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from difftilt.core.reward import Reward
from difftilt.errors import ConfigError
from difftilt.types import Condition, Float, Tensor

INDEX = "index"
"""Name of the condition that numbers the prompts."""


class PromptReward:
    """``score(designs, prompts)``, one number for each pair.

    Args:
        score: the function; ``None`` or NaN where a design is infeasible.
        texts: the prompts, as they were given to :func:`difftilt.prompts`.
    """

    def __init__(
        self, score: Callable[[Sequence[Any], Sequence[str]], Sequence[float | None] | Tensor], texts: Sequence[str]
    ) -> None:
        self.score, self.texts = score, list(texts)

    def under(self, cond: Condition) -> Reward:
        """The reward of designs made for these prompts, one row for each design of the next batch."""
        if INDEX not in cond:
            raise ConfigError(
                f"expected a condition '{INDEX}' that numbers the prompts; got {', '.join(cond)}; make the conditions "
                "with difftilt.prompts"
            )
        return self._reward([self.texts[number] for number in cond[INDEX].tolist()])

    def __call__(self, designs: Sequence[Any]) -> Float[Tensor, " B"]:
        """For designs made without conditions: those of the first prompt.

        Raises:
            ConfigError: there are several prompts.
        """
        if len(self.texts) != 1:
            raise ConfigError(
                f"expected to be told which of {len(self.texts)} prompts each design was made for; got none; pass "
                "conditions=difftilt.prompts(...)"
            )
        return torch.as_tensor(self._reward(self.texts * len(designs))(designs))

    def _reward(self, texts: Sequence[str]) -> Reward:
        def reward(designs: Sequence[Any]) -> Float[Tensor, " B"]:
            values = self.score(designs, texts)
            if isinstance(values, Tensor):
                return values.detach().double().cpu()
            return torch.tensor([math.nan if value is None else float(value) for value in values], dtype=torch.float64)

        return reward
