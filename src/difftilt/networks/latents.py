r"""Latent diffusion: states are latents :math:`z`, designs are the images :math:`D(z / c + b)` of a VAE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from difftilt.core.codec import ImageCodec
from difftilt.core.registry import register
from difftilt.errors import UnsupportedError
from difftilt.types import Float, Tensor


@register("codec", "latent")
class LatentCodec(ImageCodec):
    """Images of latents ``[B, C, h, w]``.

    Args:
        vae: a diffusers autoencoder; used as it is, never copied or tuned (its parameters are frozen here).
        batch: images decoded at once.
    """

    def __init__(self, vae: Any, batch: int = 8) -> None:
        self.vae, self.batch = vae.requires_grad_(False), batch
        self.factor, self.shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0
        self.scale = 2 ** (len(vae.config.block_out_channels) - 1)

    def __deepcopy__(self, memo: dict[int, Any]) -> LatentCodec:
        """Itself: copies of a policy share the VAE."""
        return self

    def decode(self, x_0: Float[Tensor, "B C h w"]) -> list[np.ndarray]:
        """Images ``[H, W, 3]``, 8 bits a channel."""
        decode = super().decode
        return [image for part in x_0.split(self.batch) for image in decode(self._pixels(part))]

    def readable(self, x_0: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Pixels in [0, 1]; gradient flows through the VAE to the latents."""
        return super().readable(self._pixels(x_0))

    def encode(self, designs: Sequence[np.ndarray]) -> Float[Tensor, "B C h w"]:
        """Latents of images: the mean of the VAE's code."""
        pixels = super().encode(designs).to(self.vae.device, self.vae.dtype)
        with torch.no_grad():
            return ((self.vae.encode(pixels).latent_dist.mean - self.shift) * self.factor).float()

    def config(self) -> dict[str, Any]:
        """Not to be saved here: the VAE belongs to its pipeline.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            "expected a policy whose parts fit a model folder; got a pipeline's, with its VAE; save adapters with "
            "difftilt.save_adapters, a network tuned whole with difftilt.save_network"
        )

    def _pixels(self, x_0: Tensor) -> Tensor:
        latents = (x_0 / self.factor + self.shift).to(self.vae.device, self.vae.dtype)
        return self.vae.decode(latents, return_dict=False)[0].to(torch.promote_types(latents.dtype, torch.float32))
