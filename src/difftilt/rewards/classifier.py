r"""An image classifier as a reward: :math:`r(x) = \log p(y | x)`, nats, differentiable.

.. math:: \log p(y | x) = \log \mathrm{softmax}_y( f(x) / T )                                        \qquad (1)

with the temperature ``T`` that minimises the negative log-likelihood of held-out labels (calibration: a classifier
that is sure of what it does not know would be hacked at once). At alpha = 1 the target of tuning is
:math:`p_{pre}(x)\, p(y | x) \propto p_{pre}(x | y)`: conditional generation as tilting.

References:
    Guo et al. 2017 (temperature scaling), https://arxiv.org/abs/1706.04599; Zhao et al. 2024 (CTRL),
    https://arxiv.org/abs/2406.12120.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from difftilt.core.policy import ModelFolder, load_weights, read_parts, save_parts
from difftilt.core.registry import construct, describe
from difftilt.errors import nearest
from difftilt.rewards.images import BATCH, PixelReward, as_pixels
from difftilt.types import Float, Tensor


class ImageClassifier(nn.Module, ModelFolder):
    """A network of logits with names for its labels and a temperature. Frozen, in eval mode.

    Args:
        network: pixels ``[B, C, H, W]`` in [0, 1] to logits ``[B, labels]``.
        labels: their names.
        temperature: ``T`` of (1).
        card: facts about the model.
    """

    def __init__(
        self, network: nn.Module, labels: Sequence[str], *, temperature: float = 1.0, card: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.network, self.labels, self.temperature = network, tuple(labels), temperature
        self.card = dict(card or {})
        self.eval().requires_grad_(False)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B labels"]:
        """Log-probabilities (1) of pixels in [0, 1], nats. Gradient flows to ``pixels``."""
        return F.log_softmax(self.network(pixels.to(next(self.parameters()))) / self.temperature, dim=1)

    @torch.no_grad()
    def log_likelihood(self, designs: Sequence[Any]) -> Float[Tensor, "N labels"]:
        """Log-probabilities of 8-bit designs, nats: what :class:`~difftilt.rewards.likelihood.LabelLikelihood` takes.

        Raises:
            DataError: a design is no image, or not of the size of the first.
        """
        device = next(self.parameters()).device
        parts = [designs[start : start + BATCH] for start in range(0, len(designs), BATCH)]
        return torch.cat([self.forward(as_pixels(part).to(device)) for part in parts]).double().cpu()

    def reward(self, label: str | int) -> PixelReward:
        """The log-probability of one label as a reward.

        Args:
            label: its name or number.

        Raises:
            ConfigError: no such label.
        """
        name = self.labels[label] if isinstance(label, int) and 0 <= label < len(self.labels) else str(label)
        if name not in self.labels:
            raise nearest(name, self.labels, what="label")
        number = self.labels.index(name)
        return PixelReward(lambda pixels: self.forward(pixels.to(next(self.parameters())))[:, number], f"label {name}")

    def _save_pretrained(self, save_directory: Path) -> None:
        config = {
            "library": "difftilt",
            "classifier": describe(self.network),
            "labels": list(self.labels),
            "temperature": self.temperature,
            "card": self.card,
        }
        save_parts(save_directory, config, self.network)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **hub: Any) -> ImageClassifier:
        config, weights = read_parts(model_id, **hub)
        network = construct("classifier", config["classifier"])
        made = cls(network, config["labels"], temperature=config["temperature"], card=config["card"])
        load_weights(made.network, weights, where=model_id)
        return made
