"""What is said of a set of images in every report, and on the card of a pretrained model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from difftilt.core.codec import ImageCodec
from difftilt.metrics import images
from difftilt.rewards.images import jpeg_bytes
from difftilt.training.designs import Describe
from difftilt.types import Float, Tensor


def pixels_of(x_0: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
    """Pixels in [0, 1] of finished states, rounded to the 8 bits of their designs, on the CPU."""
    return ImageCodec().readable(x_0.detach()).cpu()


def blank_fraction(pixels: Float[Tensor, "N C H W"]) -> float:
    """Share of images that are nearly blank: their own mean colour alone would be a near-duplicate; NaN without any."""
    distance = (pixels - pixels.mean((2, 3), keepdim=True)).square().flatten(1).mean(1).sqrt()
    return (distance <= images.NEAR).double().mean().item()


def describe_images(known: Float[Tensor, "M C H W"] | None) -> Describe:
    """Domain metrics of finished states.

    Args:
        known: pixels of the training images, for novelty.
    """

    def describe(x_0: Tensor) -> dict[str, Any]:
        return _facts(pixels_of(x_0), known)

    return describe


def quality(
    drawn: Float[Tensor, "N C H W"], test: Float[Tensor, "M C H W"], train: Float[Tensor, "L C H W"]
) -> dict[str, Any]:
    """Samples beside held-out images, for a card: the metrics of each, by ``sampled_`` and ``test_``."""
    known = pixels_of(train)
    facts = {}
    for name, states in (("sampled", drawn), ("test", test)):
        facts |= {f"{name}_{key}": round(value, 4) for key, value in _facts(pixels_of(states), known).items()}
    return facts


def _facts(pixels: Float[Tensor, "N C H W"], known: Float[Tensor, "M C H W"] | None) -> dict[str, float]:
    designs = ImageCodec().decode(2 * pixels - 1)
    facts = {
        "unique_fraction": images.unique_fraction(pixels),
        "without_near_duplicates": images.without_near_duplicates(pixels),
        "blank_fraction": blank_fraction(pixels),
        "pixel_diversity": images.diversity(pixels),
        "jpeg_bytes": float(np.mean([jpeg_bytes(design) for design in designs])) if designs else math.nan,
        **{f"mean_{name}": value for name, value in images.colours(pixels).items()},
    }
    if known is not None:
        nearest = images.nearest_distance(pixels, known)
        facts["training_distance"] = nearest.mean().item()
        facts["near_training_fraction"] = (nearest <= images.NEAR).double().mean().item()
    return facts
