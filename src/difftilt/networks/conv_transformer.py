"""Convolutions, then attention: a denoiser that knows local grammar at once and sees the whole sequence."""

from __future__ import annotations

from typing import Any

from torch import nn

from difftilt.core.registry import register
from difftilt.networks.layers import AttentionBlock, DilatedTower, TokenEmbedding
from difftilt.types import Condition, Float, Tensor


@register("denoiser", "conv_transformer")
class ConvTransformerDenoiser(nn.Module):
    """Token logits from masked tokens by dilated convolutions and then full self-attention; does not look at the time.

    Attention alone has to learn first which positions are neighbours; convolutions alone see far only through many
    layers. For sequences of some tens of words with long-range rules (brackets, rings, where the end is) both together
    need fewer updates than either.

    Args:
        vocabulary: letters ``V``; the input has one symbol more, the mask.
        length: positions ``L``.
        width: channels, a multiple of ``heads``.
        kernel: odd kernel size.
        dilations: one convolution per entry.
        depth: layers of attention.
        heads: attention heads.
        dropout: probability in pretraining, in the convolutions; tuning and sampling run in eval mode.
    """

    time_free = True

    def __init__(
        self,
        vocabulary: int,
        length: int,
        width: int = 128,
        kernel: int = 5,
        dilations: tuple[int, ...] | list[int] = (1, 2, 4, 8),
        depth: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.arguments = {
            "vocabulary": vocabulary, "length": length, "width": width, "kernel": kernel,
            "dilations": list(dilations), "depth": depth, "heads": heads, "dropout": dropout,
        }  # fmt: skip
        self.embed = TokenEmbedding(vocabulary + 1, length, width)
        self.local = DilatedTower(width, kernel, tuple(dilations), dropout)
        self.tower = nn.Sequential(*(AttentionBlock(width, heads) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocabulary))

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Float[Tensor, "B L V"]:
        """Logits of the token laws; ``x_t`` is ``[B, L]`` tokens or ``[B, L, V + 1]`` relaxed tokens."""
        near = self.local(self.embed(x_t).transpose(1, 2)).transpose(1, 2)
        return self.head(self.tower(near))

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return self.arguments
