"""A dilated convolutional denoiser: the cheapest good network for short sequences on a CPU."""

from __future__ import annotations

from typing import Any

from torch import nn

from difftilt.core.registry import register
from difftilt.networks.layers import DilatedTower, TokenEmbedding
from difftilt.types import Condition, Float, Tensor


@register("denoiser", "conv")
class ConvDenoiser(nn.Module):
    """Token logits from masked tokens; does not look at the time.

    Args:
        vocabulary: letters ``V``; the input has one symbol more, the mask.
        length: positions ``L``.
        width: channels.
        kernel: odd kernel size.
        dilations: one convolution per entry.
        dropout: probability in pretraining; tuning and sampling run in eval mode.
    """

    time_free = True

    def __init__(
        self,
        vocabulary: int,
        length: int,
        width: int = 64,
        kernel: int = 5,
        dilations: tuple[int, ...] | list[int] = (1, 2, 4, 8),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.arguments = {
            "vocabulary": vocabulary, "length": length, "width": width, "kernel": kernel,
            "dilations": list(dilations), "dropout": dropout,
        }  # fmt: skip
        self.embed = TokenEmbedding(vocabulary + 1, length, width)
        self.tower = DilatedTower(width, kernel, tuple(dilations), dropout)
        self.head = nn.Conv1d(width, vocabulary, 1)

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Float[Tensor, "B L V"]:
        """Logits of the token laws; ``x_t`` is ``[B, L]`` tokens or ``[B, L, V + 1]`` relaxed tokens."""
        return self.head(self.tower(self.embed(x_t).transpose(1, 2))).transpose(1, 2)

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return self.arguments
