r"""Variety, novelty and colours of sets of images of one size, pixels in [0, 1].

The distance of two images is the root mean square of their pixels' differences,

.. math:: \delta(x, y) = \sqrt{ \tfrac1d \sum_i (x_i - y_i)^2 }, \qquad 0 \le \delta \le 1            \qquad (1)

It is strict: an image moved by one pixel is far away. So it tells copies from what is not one, and is no measure of
likeness to the eye. Two images closer than :data:`NEAR` are near-duplicates: 8 of 256 levels, which the eye hardly
sees.
"""

from __future__ import annotations

import math

import torch

from difftilt.types import Float, Tensor

NEAR = 8 / 255
"""Distance below which two images are near-duplicates."""
ROUNDING = 1e-5
"""Of distances; two different images of 8 bits and less than 100,000 pixels are further apart."""
PART = 512
"""Images compared at once."""
LUMA = (0.299, 0.587, 0.114)


def unique_fraction(pixels: Float[Tensor, "N C H W"]) -> float:
    """Share of distinct images, as 8 bits."""
    if not len(pixels):
        return math.nan
    return len(torch.unique(_bytes(pixels).flatten(1), dim=0)) / len(pixels)


def without_near_duplicates(pixels: Float[Tensor, "N C H W"], near: float = NEAR) -> float:
    """Share of images that are left when each that is near one kept before it is dropped; NaN without any.

    Args:
        pixels: images in [0, 1].
        near: distance (1) up to which two images are one.
    """
    if not len(pixels):
        return math.nan
    close = pairwise(pixels, pixels) <= near
    kept: list[int] = []
    for i in range(len(pixels)):
        if not bool(close[i, kept].any()):
            kept.append(i)
    return len(kept) / len(pixels)


def diversity(pixels: Float[Tensor, "N C H W"]) -> float:
    """Mean distance (1) of two different members, 0 to 1; NaN for fewer than two."""
    n = len(pixels)
    if n < 2:
        return math.nan
    return (pairwise(pixels, pixels).sum() / (n * (n - 1))).item()


def nearest_distance(pixels: Float[Tensor, "N C H W"], known: Float[Tensor, "M C H W"]) -> Float[Tensor, " N"]:
    """Distance (1) from each image to its nearest among ``known``: novelty, 0 for a copy."""
    if not len(known):
        return torch.full((len(pixels),), math.inf)
    return pairwise(pixels, known).amin(1)


def pairwise(a: Float[Tensor, "N *event"], b: Float[Tensor, "M *event"]) -> Float[Tensor, "N M"]:
    """Distances (1), float64; 0 to the last digit for copies."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    if not len(a) or not len(b):
        return torch.zeros(len(a), len(b), dtype=torch.float64)
    rows = [torch.cdist(part, b, compute_mode="use_mm_for_euclid_dist") for part in a.split(PART)]
    distances = torch.cat(rows) / a.shape[1] ** 0.5
    return distances.where(distances > ROUNDING, 0.0)


def colours(pixels: Float[Tensor, "N C H W"]) -> dict[str, float]:
    """Means over images: brightness (luma), of RGB ones also each channel and saturation (largest minus least)."""
    means = pixels.double().mean((0, 2, 3))
    if len(means) == 1:
        return {"brightness": means.item()}
    luma = (means * torch.tensor(LUMA, dtype=torch.float64)).sum().item()
    saturation = (pixels.amax(1) - pixels.amin(1)).double().mean().item()
    named = dict(zip(("red", "green", "blue"), means.tolist(), strict=True))
    return {"brightness": luma, **named, "saturation": saturation}


def _bytes(pixels: Tensor) -> Tensor:
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8)
