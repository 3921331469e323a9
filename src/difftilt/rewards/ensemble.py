r"""A learned reward: the mean of an ensemble of regressors, :math:`r(x) = \mu + \sigma \frac1E \sum_e f_e(x)`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from difftilt.core.codec import Codec
from difftilt.core.policy import ModelFolder, load_weights, read_parts, save_parts
from difftilt.core.registry import construct, describe
from difftilt.types import Float, Tensor


class EnsembleReward(nn.Module, ModelFolder):
    """Mean of regressors of one kind trained on the same rows from different seeds.

    Args:
        members: regressors that map ``[B, L]`` tokens or ``[B, L, V]`` probabilities to standardised numbers.
        codec: reads the designs.
        mean: mean of the training scores, reward units.
        scale: their standard deviation, reward units.
        card: facts about the model (task, rows, metrics).
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        codec: Codec,
        *,
        mean: float,
        scale: float,
        card: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.codec, self.mean, self.scale, self.card = codec, mean, scale, dict(card or {})
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Float[Tensor, " B"]:
        """Reward of tokens ``[B, L]`` or probabilities ``[B, L, V]``, reward units. Gradient flows to ``x``."""
        return self.mean + self.scale * torch.stack([member(x) for member in self.members]).mean(0)

    @torch.no_grad()
    def __call__(self, designs: Sequence[str] | Tensor) -> Float[Tensor, " B"]:
        """Reward of designs, reward units. No gradient."""
        x = designs if isinstance(designs, Tensor) else self.codec.encode(designs)
        device = next(self.parameters()).device
        return torch.cat([self.forward(part) for part in x.to(device).split(1024)])

    def on_probabilities(self, p: Float[Tensor, "B L V"]) -> Float[Tensor, " B"]:
        """Reward of relaxed tokens, whatever their precision and device. Gradient flows to ``p``."""
        return self.forward(p.to(next(self.parameters())))

    def _save_pretrained(self, save_directory: Path) -> None:
        config = {
            "library": "difftilt",
            "regressor": describe(self.members[0]),
            "members": len(self.members),
            "codec": describe(self.codec),
            "mean": self.mean,
            "scale": self.scale,
            "card": self.card,
        }
        save_parts(save_directory, config, self.members)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **hub: Any) -> EnsembleReward:
        config, weights = read_parts(model_id, **hub)
        members = [construct("regressor", config["regressor"]) for _ in range(config["members"])]
        reward = cls(
            members,
            construct("codec", config["codec"]),
            mean=config["mean"],
            scale=config["scale"],
            card=config["card"],
        )
        load_weights(reward.members, weights, where=model_id)
        return reward
