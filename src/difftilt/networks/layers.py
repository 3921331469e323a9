"""Layers shared by the sequence networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from difftilt.errors import ConfigError
from difftilt.types import Float, Tensor


class TokenEmbedding(nn.Module):
    """Embeds tokens ``[B, L]`` or relaxed tokens ``[B, L, S]`` (probabilities over ``S`` symbols), plus position.

    Args:
        symbols: number of symbols ``S``, the mask included where there is one.
        length: number of positions ``L``.
        width: embedding size.
    """

    def __init__(self, symbols: int, length: int, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(symbols, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))

    def forward(self, x: Tensor) -> Float[Tensor, "B L D"]:
        """Sum of token and position embeddings."""
        token = self.token(x) if x.ndim == 2 else x @ self.token.weight
        return token + self.position


class DilatedTower(nn.Module):
    r"""Residual dilated convolutions :math:`h \leftarrow h + \mathrm{relu}(\mathrm{conv}_d(h))`, no normalisation.

    Residual branches start small, which trains as well as normalisation at this depth and halves the CPU time.

    Args:
        width: channels.
        kernel: odd kernel size.
        dilations: one per layer; the receptive field is ``1 + (kernel - 1) * sum(dilations)``.
        dropout: probability, on the input and after every layer, in training.
    """

    def __init__(self, width: int, kernel: int, dilations: tuple[int, ...], dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            nn.Conv1d(width, width, kernel, dilation=d, padding=d * (kernel // 2)) for d in dilations
        )

    def forward(self, h: Float[Tensor, "B D L"]) -> Float[Tensor, "B D L"]:
        """Same shape as the input."""
        h = self.dropout(h)
        for layer in self.layers:
            h = self.dropout(h + F.relu(layer(h)))
        return h


class AttentionBlock(nn.Module):
    """Pre-norm self-attention and a dense layer of four times the width, each added to its input.

    torch's own layer is not used: its fused kernel, taken only where gradients are off, rounds differently, and ratios
    to stored log-probabilities would not be exactly 1.

    Args:
        width: model width.
        heads: attention heads.
        causal: whether a position sees itself and those before it alone.

    Raises:
        ConfigError: ``width`` is not a multiple of ``heads``.
    """

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"expected a width that is a multiple of {heads} heads; got {width}; change one of them")
        self.heads, self.causal = heads, causal
        self.norm, self.dense_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.read, self.write = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, h: Float[Tensor, "B L D"], memory: Memory | None = None) -> Float[Tensor, "B L D"]:
        """Same shape as the input, which with a ``memory`` is the one position after those that it holds."""
        query, key, value = self.read(self.norm(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if memory is not None:
            key, value = memory.added(key, value)
        heads = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal and memory is None)
        h = h + self.write(heads.transpose(1, 2).flatten(2))
        return h + self.dense(self.dense_norm(h))


class Memory:
    """Keys and values of the positions that a causal block has read."""

    def __init__(self) -> None:
        self.held: tuple[Tensor, Tensor] | None = None

    @property
    def positions(self) -> int:
        """How many."""
        return 0 if self.held is None else self.held[0].shape[2]

    def added(
        self, key: Float[Tensor, "B H 1 E"], value: Float[Tensor, "B H 1 E"]
    ) -> tuple[Float[Tensor, "B H N E"], Float[Tensor, "B H N E"]]:
        """Those of all positions, one more than before."""
        if self.held is not None:
            key, value = torch.cat([self.held[0], key], dim=2), torch.cat([self.held[1], value], dim=2)
        self.held = key, value
        return key, value
