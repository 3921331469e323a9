r"""Rewards of images: how well they compress, how bright they are, of what colour, and of which class.

==================  ==================================================================  ============================
compressibility     minus the kilobytes (1,000 bytes) of the image as a JPEG            black box
incompressibility   the kilobytes themselves                                            black box
brightness          mean of the luma :math:`0.299 R + 0.587 G + 0.114 B`, 0 to 1        differentiable
redness             mean of :math:`R - (G + B) / 2`, -1 to 1; and so green and blue     differentiable
label               :math:`\log p(y | x)` of a classifier, nats                         differentiable
==================  ==================================================================  ============================

The size of a JPEG is what Pillow writes at quality 95, header included, as in DDPO: a blank image of 32 x 32 RGB pixels
has 0.643 kB, so compressibility cannot exceed -0.643 there. What is differentiable reads pixels in [0, 1], as
:meth:`~difftilt.core.codec.ImageCodec.readable` gives them, and agrees with the call on the 8-bit design. Label
likelihood at alpha = 1 makes conditional generation of tuning: the target is p_pre(x | y) (:mod:`~.likelihood`).

Designs are numpy arrays of 8 bits, ``[H, W]`` or ``[H, W, 3]``, or Pillow's images.

References:
    Black et al. 2023 (DDPO, section 5.2), https://arxiv.org/abs/2305.13301; Rec. ITU-R BT.601 (luma).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from difftilt.errors import ConfigError, DataError, nearest
from difftilt.types import Float, Tensor

QUALITY = 95
"""Of JPEG, as in DDPO."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G, B."""
COLOURS = ("red", "green", "blue")
BATCH = 256
"""Images scored at once."""


def jpeg_bytes(design: Any, quality: int = QUALITY) -> int:
    """Bytes of an image as a JPEG, header included.

    Args:
        design: array of 8 bits, ``[H, W]`` or ``[H, W, 3]``, or a Pillow image.
        quality: of JPEG, 1 to 95.

    Raises:
        ConfigError: Pillow is not installed.
        DataError: it is no image.
    """
    image = _pillow()
    picture = design if isinstance(design, image.Image) else image.fromarray(_array(design))
    buffer = io.BytesIO()
    picture.convert("L" if picture.mode in ("L", "1") else "RGB").save(buffer, format="JPEG", quality=quality)
    return buffer.tell()


class JpegSize:
    """Kilobytes (1,000 bytes) as a JPEG, with a sign.

    Args:
        sign: -1 for compressibility, 1 for incompressibility.
        quality: of JPEG, 1 to 95.

    Raises:
        ConfigError: another sign or quality, or Pillow is not installed.
    """

    def __init__(self, sign: int, quality: int = QUALITY) -> None:
        if sign not in (-1, 1) or not 1 <= quality <= 95:
            raise ConfigError(
                f"expected sign -1 or 1 and a quality of 1 to 95; got {sign} and {quality}; 95 is what DDPO uses"
            )
        _pillow()
        self.sign, self.quality = sign, quality

    def __call__(self, designs: Sequence[Any]) -> Float[Tensor, " B"]:
        """Signed kilobytes, float64."""
        return torch.tensor(
            [self.sign * jpeg_bytes(design, self.quality) / 1000 for design in designs], dtype=torch.float64
        )


def compressibility(quality: int = QUALITY) -> JpegSize:
    """Minus the kilobytes as a JPEG: higher is smaller."""
    return JpegSize(-1, quality)


def incompressibility(quality: int = QUALITY) -> JpegSize:
    """The kilobytes as a JPEG: higher is larger."""
    return JpegSize(1, quality)


class PixelReward:
    """A differentiable function of pixels as a reward of images.

    Args:
        function: pixels ``[B, C, H, W]`` in [0, 1] -> ``[B]``. Gradient flows.
        name: for messages and provenance.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], name: str) -> None:
        self.function, self.name = function, name

    @torch.no_grad()
    def __call__(self, designs: Sequence[Any]) -> Float[Tensor, " B"]:
        """Reward of 8-bit designs of one size, float64. No gradient.

        Raises:
            DataError: a design is no image, or not of the size of the first.
        """
        if not len(designs):
            return torch.zeros(0, dtype=torch.float64)
        parts = [designs[start : start + BATCH] for start in range(0, len(designs), BATCH)]
        return torch.cat([self.function(as_pixels(part)).double().cpu() for part in parts])

    def on_probabilities(self, p: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
        """Reward of pixels in [0, 1]. Gradient flows to ``p``."""
        return self.function(p)


def brightness() -> PixelReward:
    """Mean luma, 0 (black) to 1 (white)."""
    return PixelReward(luma, "brightness")


def colour(name: str) -> PixelReward:
    """How much of one colour there is, over the mean of the other two: -1 to 1, 0 for grey.

    Args:
        name: ``"red"``, ``"green"`` or ``"blue"``.
    """
    if name not in COLOURS:
        raise nearest(name, COLOURS, what="colour")
    channel = COLOURS.index(name)

    def share(pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
        if pixels.shape[1] != 3:
            raise DataError(
                f"expected images with red, green and blue for a colour; got {pixels.shape[1]} channels; use "
                "brightness for grey ones"
            )
        means = pixels.mean((2, 3))
        return 1.5 * means[:, channel] - 0.5 * means.sum(1)

    return PixelReward(share, f"{name}ness" if name != "red" else "redness")


def luma(pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """Mean luma of grey or RGB pixels in [0, 1]. Gradient flows."""
    means = pixels.mean((2, 3))
    return means[:, 0] if means.shape[1] == 1 else means @ torch.tensor(LUMA).to(means)


def as_pixels(designs: Sequence[Any]) -> Float[Tensor, "B C H W"]:
    """Images of one size as float32 pixels in [0, 1].

    Raises:
        DataError: one is no image, or not of the size of the first.
    """
    arrays = [_array(design) for design in designs]
    for number, array in enumerate(arrays, start=1):
        if array.shape != arrays[0].shape:
            raise DataError(
                f"expected images of one size; got {arrays[0].shape} and, in design {number}, {array.shape}; resize it"
            )
    stacked = torch.from_numpy(np.stack(arrays))
    return (stacked[:, None] if stacked.ndim == 3 else stacked.movedim(-1, 1)).float() / 255


def _array(design: Any) -> np.ndarray:
    array = np.asarray(design)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise DataError(
            f"expected an image of 8 bits, [H, W] or [H, W, 3]; got {array.dtype} {list(array.shape)}; convert it"
        )
    return array


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ConfigError(
            "expected Pillow for the size of a JPEG; it is not installed; run: pip install 'difftilt[image]'"
        ) from None
    return Image
