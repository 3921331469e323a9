"""A small pre-norm transformer denoiser for sequences."""

from __future__ import annotations

from typing import Any

from torch import nn

from difftilt.core.registry import register
from difftilt.networks.layers import AttentionBlock, TokenEmbedding
from difftilt.types import Condition, Float, Tensor


@register("denoiser", "transformer")
class TransformerDenoiser(nn.Module):
    """Token logits from masked tokens by full self-attention; does not look at the time. No dropout.

    Args:
        vocabulary: letters ``V``; the input has one symbol more, the mask.
        length: positions ``L``.
        width: model width, a multiple of ``heads``.
        depth: number of layers.
        heads: attention heads.
    """

    time_free = True

    def __init__(self, vocabulary: int, length: int, width: int = 64, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.arguments = {
            "vocabulary": vocabulary, "length": length, "width": width, "depth": depth, "heads": heads
        }  # fmt: skip
        self.embed = TokenEmbedding(vocabulary + 1, length, width)
        self.tower = nn.Sequential(*(AttentionBlock(width, heads) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocabulary))

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Float[Tensor, "B L V"]:
        """Logits of the token laws; ``x_t`` is ``[B, L]`` tokens or ``[B, L, V + 1]`` relaxed tokens."""
        return self.head(self.tower(self.embed(x_t)))

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return self.arguments
