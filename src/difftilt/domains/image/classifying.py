"""Training of a small image classifier, its calibration, and what its card says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from difftilt.core.registry import construct
from difftilt.domains.task import TaskData
from difftilt.errors import DataError
from difftilt.rewards.classifier import ImageClassifier
from difftilt.training.regress import RegressConfig, train_members
from difftilt.types import Float, Int, Tensor

BINS = 10
"""Of confidence, for the calibration error."""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(RegressConfig):
    """Settings of a classifier and its training."""

    epochs: int = 8
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 5e-2
    members: int = 1
    width: int = 16
    """Channels of its first stage."""
    shift: int = 2
    """Training images are moved by up to so many pixels each way."""
    mirror: bool = False
    """Whether half of the training images are mirrored left to right."""
    smoothing: float = 0.05
    """Label smoothing."""


def train_classifier(
    data: TaskData, labels: Sequence[str], config: ClassifierConfig, *, told: Callable[[str], None]
) -> tuple[ImageClassifier, dict[str, Any]]:
    """Fit on the training rows, set the temperature on the validation rows, measure on the test rows.

    Args:
        data: its scores are the numbers of the labels.
        labels: their names.
        config: settings.
        told: is told of progress.

    Raises:
        DataError: labels beyond the names.
    """
    pixels, label = data.states / 2 + 0.5, data.scores.long()
    if int(label.max()) >= len(labels):
        raise DataError(
            f"expected labels of {len(labels)} classes, {', '.join(labels)}; got number {int(label.max())}; train "
            "without labels, or on images of these classes"
        )
    spec = {"type": "conv", "channels": pixels.shape[1], "labels": len(labels), "width": config.width}
    rows = data.prior_train
    (network,) = train_members(
        lambda: construct("classifier", spec),
        pixels[rows],
        label[rows],
        config,
        loss=partial(F.cross_entropy, label_smoothing=config.smoothing),
        seen=lambda images, rng: moved(images, config, rng),
        on_member=lambda _, loss: told(f"classifier: held-out loss {loss:.3f}"),
    )
    classifier = ImageClassifier(network, labels)
    validation, test = data.prior_validation, data.prior_test
    classifier.temperature = calibrated(_logits(classifier, pixels[validation]), label[validation])
    truth, log_p = label[test], (_logits(classifier, pixels[test]) / classifier.temperature).log_softmax(1)
    right = (log_p.argmax(1) == truth).double()
    error = (right.mean() * (1 - right.mean()) / len(right)).sqrt().item()
    return classifier, {
        "parameters": sum(p.numel() for p in classifier.parameters()),
        "training_rows": len(rows),
        "test_rows": len(truth),
        "test_accuracy": round(right.mean().item(), 4),
        "test_accuracy_error": round(error, 4),
        "most_common_class_accuracy": round((truth == label[rows].mode().values).double().mean().item(), 4),
        "test_nats": round(F.nll_loss(log_p, truth).item(), 4),
        "temperature": round(classifier.temperature, 4),
        "test_calibration_error": round(calibration_error(log_p, truth), 4),
    }


def moved(pixels: Float[Tensor, "B C H W"], config: ClassifierConfig, rng: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Images moved by up to ``shift`` pixels, edges repeated, and mirrored where that is allowed."""
    if config.shift:
        s = config.shift
        wide = F.pad(pixels, (s, s, s, s), mode="replicate")
        height, width = pixels.shape[2:]
        by = torch.randint(2 * s + 1, (len(pixels), 2), generator=rng).tolist()
        pixels = torch.stack([w[:, y : y + height, x : x + width] for w, (y, x) in zip(wide, by, strict=True)])
    if config.mirror:
        turned = torch.rand(len(pixels), generator=rng) < 0.5
        pixels = torch.where(turned[:, None, None, None], pixels.flip(3), pixels)
    return pixels


def calibrated(logits: Float[Tensor, "N labels"], label: Int[Tensor, " N"]) -> float:
    """The temperature of the least negative log-likelihood, between 0.2 and 5, to a hundredth of its logarithm."""
    candidates = torch.linspace(-1.6, 1.6, 321, dtype=torch.float64).exp()
    losses = torch.stack([F.cross_entropy(logits.double() / t, label) for t in candidates])
    return candidates[losses.argmin()].item()


def calibration_error(log_p: Float[Tensor, "N labels"], label: Int[Tensor, " N"]) -> float:
    """Mean distance of confidence from accuracy over bins of confidence, weighted by their sizes (ECE)."""
    confidence, guess = log_p.exp().double().max(1)
    right = (guess == label).double()
    where = (confidence * BINS).long().clamp(max=BINS - 1)
    gaps = [(right[where == b].sum() - confidence[where == b].sum()).abs() for b in range(BINS)]
    return (torch.stack(gaps).sum() / len(label)).item()


@torch.no_grad()
def _logits(classifier: ImageClassifier, pixels: Float[Tensor, "N C H W"]) -> Float[Tensor, "N labels"]:
    return torch.cat([classifier.network(part) for part in pixels.split(256)])
