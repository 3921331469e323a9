"""Sequence-to-number networks of two different kinds, for rewards and for judges."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from difftilt.core.registry import register
from difftilt.networks.layers import DilatedTower, TokenEmbedding
from difftilt.types import Float, Tensor


@register("regressor", "conv")
class ConvRegressor(nn.Module):
    """Dilated convolutions, then a dense layer over all positions (so that reading frame and distance count).

    Args:
        vocabulary: letters ``V``.
        length: positions ``L``.
        width: channels.
        kernel: odd kernel size.
        dilations: one convolution per entry.
        hidden: units of the dense layer.
        dropout: probability in training.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        width: int = 48,
        kernel: int = 7,
        dilations: tuple[int, ...] | list[int] = (1, 1, 3),
        hidden: int = 48,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.arguments = {
            "vocabulary": vocabulary, "length": length, "width": width, "kernel": kernel,
            "dilations": list(dilations), "hidden": hidden, "dropout": dropout,
        }  # fmt: skip
        self.embed = TokenEmbedding(vocabulary, length, width)
        self.tower = DilatedTower(width, kernel, tuple(dilations))
        self.dropout = nn.Dropout(dropout)
        self.squeeze = nn.Conv1d(width, 16, 1)
        self.hidden = nn.Linear(16 * length, hidden)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Float[Tensor, " B"]:
        """Standardised prediction of ``[B, L]`` tokens or ``[B, L, V]`` probabilities. Gradient flows to ``x``."""
        h = self.dropout(self.tower(self.embed(x).transpose(1, 2)))
        h = self.dropout(F.relu(self.squeeze(h)).flatten(1))
        return self.head(self.dropout(F.relu(self.hidden(h))))[:, 0]

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return self.arguments


@register("regressor", "recurrent")
class RecurrentRegressor(nn.Module):
    """A convolution, a bidirectional GRU, then its end states and its mean and maximum over positions.

    Args:
        vocabulary: letters ``V``.
        length: positions ``L``.
        width: channels and GRU units per direction.
        kernel: odd kernel size of the convolution.
        dropout: probability in training.
    """

    def __init__(self, vocabulary: int, length: int, width: int = 48, kernel: int = 7, dropout: float = 0.2) -> None:
        super().__init__()
        self.arguments = {
            "vocabulary": vocabulary, "length": length, "width": width, "kernel": kernel, "dropout": dropout
        }  # fmt: skip
        self.embed = TokenEmbedding(vocabulary, length, width)
        self.tower = DilatedTower(width, kernel, (1,))
        self.gru = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Sequential(nn.Linear(6 * width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Float[Tensor, " B"]:
        """Standardised prediction of ``[B, L]`` tokens or ``[B, L, V]`` probabilities. Gradient flows to ``x``."""
        h = self.dropout(self.tower(self.embed(x).transpose(1, 2))).transpose(1, 2)
        with torch.backends.cudnn.flags(enabled=self.training or not h.requires_grad):  # cuDNN has no eval gradient
            states, last = self.gru(h)
        summary = torch.cat([last[0], last[1], states.mean(1), states.amax(1)], dim=-1)
        return self.head(self.dropout(summary))[:, 0]

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return self.arguments


@register("regressor", "perceptron")
class PerceptronRegressor(nn.Module):
    """Two hidden layers over the flattened design: vectors, small images, latents.

    Args:
        size: numbers of a design.
        hidden: units of each layer.
    """

    def __init__(self, size: int, hidden: int = 64) -> None:
        super().__init__()
        self.arguments = {"size": size, "hidden": hidden}
        self.layers = nn.Sequential(
            nn.Linear(size, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1)
        )

    def forward(self, x: Float[Tensor, "B *event"]) -> Float[Tensor, " B"]:
        """Standardised prediction. Gradient flows to ``x``."""
        return self.layers(x.flatten(1))[:, 0]

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return self.arguments


@register("regressor", "windows")
class WindowRegressor(nn.Module):
    """One layer of filters over windows of letters, read place by place and on average, then a dense layer.

    A convolution as one matrix product, which many members share at the speed of matrix products.

    Args:
        vocabulary: letters ``V``.
        length: positions ``L``.
        kernel: letters of a window.
        width: filters.
        hidden: units of the dense layer.
    """

    def __init__(self, vocabulary: int, length: int, kernel: int = 6, width: int = 16, hidden: int = 32) -> None:
        super().__init__()
        self.kernel = min(kernel, length)
        self.arguments = {
            "vocabulary": vocabulary, "length": length, "kernel": self.kernel, "width": width, "hidden": hidden
        }  # fmt: skip
        self.filters = nn.Linear(self.kernel * vocabulary, width)
        self.hidden = nn.Linear((length - self.kernel + 2) * width, hidden)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Float[Tensor, "B L V"]) -> Float[Tensor, " B"]:
        """Standardised prediction of probabilities. Gradient flows to ``x``."""
        windows = x.unfold(1, self.kernel, 1).flatten(2)
        found = F.relu(self.filters(windows))
        places = torch.cat([found.flatten(1), found.sum(1)], dim=1)
        return self.head(F.relu(self.hidden(places)))[:, 0]

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return self.arguments
