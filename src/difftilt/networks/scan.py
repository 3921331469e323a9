r"""A motif scanner: the cheapest network for enhancers, whose sites count wherever they are.

.. math:: h_{if} = \mathrm{relu}\Bigl( b_f + \sum_{j, v} w_{fjv}\, p_{i+j, v} \Bigr), \qquad
    r(x) = g\bigl( \max_i h_{if},\ 10 \cdot \tfrac1L \sum_i h_{if} \bigr)                                (1)

:math:`w_f` is a position weight matrix, the maximum says whether its motif is there and the mean how often; 10 brings
the mean of rare motifs to the size of the maximum. :math:`g` is one hidden layer. Where motifs stand is not seen.

References:
    Alipanahi et al., Nature Biotechnology 33, 831 (2015): scanning filters with both poolings.
    https://doi.org/10.1038/nbt.3300
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from difftilt.core.registry import register
from difftilt.types import Float, Tensor

MEAN_SCALE = 10.0


@register("regressor", "scan")
class ScanRegressor(nn.Module):
    """Equation (1).

    Args:
        vocabulary: letters ``V``.
        length: positions ``L`` of the designs; the network itself reads any length.
        width: filters.
        kernel: odd number of letters of a filter.
        hidden: units of the dense layer.
        dropout: probability in training.
    """

    def __init__(
        self, vocabulary: int, length: int, width: int = 48, kernel: int = 7, hidden: int = 32, dropout: float = 0.3
    ) -> None:
        super().__init__()
        self.arguments = {
            "vocabulary": vocabulary, "length": length, "width": width, "kernel": kernel, "hidden": hidden,
            "dropout": dropout,
        }  # fmt: skip
        self.filters = nn.Conv1d(vocabulary, width, kernel, padding=kernel // 2)
        self.dropout = nn.Dropout(dropout)
        self.hidden, self.head = nn.Linear(2 * width, hidden), nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Float[Tensor, " B"]:
        """Standardised prediction of ``[B, L]`` tokens or ``[B, L, V]`` probabilities. Gradient flows to ``x``."""
        p = F.one_hot(x, self.filters.in_channels).to(self.head.weight) if x.ndim == 2 else x
        found = F.relu(self.filters(p.transpose(1, 2)))
        h = torch.cat([found.amax(2), MEAN_SCALE * found.mean(2)], dim=1)
        return self.head(self.dropout(F.relu(self.hidden(self.dropout(h)))))[:, 0]

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return self.arguments
