"""A small convolutional classifier of images."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import nn

from difftilt.core.registry import register
from difftilt.types import Float, Tensor


@register("classifier", "conv")
class ConvClassifier(nn.Module):
    """Three stages of two 3 x 3 convolutions, each halving the side; then the mean over places and a linear head.

    Args:
        channels: of an image, 1 or 3.
        labels: number of classes.
        width: channels of the first stage; twice and four times in the next.
        dropout: probability in training, before the head.
    """

    def __init__(self, channels: int, labels: int, width: int = 24, dropout: float = 0.2) -> None:
        super().__init__()
        self.arguments = {"channels": channels, "labels": labels, "width": width, "dropout": dropout}
        stages: list[nn.Module] = []
        before = channels
        for wide in (width, 2 * width, 4 * width):
            for stride in (1, 2):
                stages += [nn.Conv2d(before, wide, 3, stride=stride, padding=1), nn.GroupNorm(4, wide), nn.SiLU()]
                before = wide
        self.stages, self.dropout, self.head = nn.Sequential(*stages), nn.Dropout(dropout), nn.Linear(before, labels)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B labels"]:
        """Logits of pixels in [0, 1]. Gradient flows to ``pixels``."""
        found = self.stages(2 * pixels - 1)
        return self.head(self.dropout(F.adaptive_avg_pool2d(found, 1).flatten(1)))

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return self.arguments
