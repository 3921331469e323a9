r"""A dilated convolutional denoiser that is told the time: for uniform and simplex diffusion of short sequences."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from difftilt.core.registry import register
from difftilt.core.sticks import break_sticks
from difftilt.errors import nearest
from difftilt.types import Condition, Float, Tensor

READS = ("tokens", "sticks")


@register("denoiser", "timed_conv")
class TimedConvDenoiser(nn.Module):
    r"""Letter logits from noisy letters and the time.

    .. math:: h \leftarrow h + \mathrm{relu}( \mathrm{conv}_d( \mathrm{norm}(h + W_d\, e(t)) ) ), \qquad
        \mathrm{logits} = \mathrm{head}(h) + k(t)\, x_t

    with Fourier features ``e`` of the time; the last term lets the network trust what it sees, by an amount of its own
    for every time.

    Args:
        vocabulary: letters ``V``.
        length: positions ``L``.
        reads: ``"tokens"``, ``[B, L]`` or relaxed ``[B, L, V + 1]``, or ``"sticks"``, ``[B, L, V - 1]``.
        width: channels.
        kernel: odd kernel size.
        dilations: one convolution per entry.
        dropout: probability in pretraining; tuning and sampling run in eval mode.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        reads: str = "tokens",
        width: int = 64,
        kernel: int = 5,
        dilations: tuple[int, ...] | list[int] = (1, 2, 4, 8),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if reads not in READS:
            raise nearest(reads, READS, what="reads")
        self.arguments = {
            "vocabulary": vocabulary, "length": length, "reads": reads, "width": width, "kernel": kernel,
            "dilations": list(dilations), "dropout": dropout,
        }  # fmt: skip
        self.vocabulary, self.reads = vocabulary, reads
        self.letter = nn.Linear(vocabulary, width, bias=False)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU())
        self.shifts = nn.ModuleList(nn.Linear(width, width) for _ in dilations)
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for _ in dilations)
        self.layers = nn.ModuleList(
            nn.Conv1d(width, width, kernel, dilation=d, padding=d * (kernel // 2)) for d in dilations
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv1d(width, vocabulary, 1)
        self.trust = nn.Linear(width, 1)

    def forward(self, x_t: Tensor, t: Float[Tensor, " B"], cond: Condition | None = None) -> Float[Tensor, "B L V"]:
        """Logits of the letter laws."""
        x = self._letters(x_t)
        e = self.time(_fourier(t, x.dtype))
        h = self.dropout((self.letter(x) + self.position).transpose(1, 2))
        for shift, norm, layer in zip(self.shifts, self.norms, self.layers, strict=True):
            h = h + self.dropout(F.relu(layer(norm(h + shift(e)[:, :, None]))))
        return self.head(h).transpose(1, 2) + self.trust(e)[:, None] * x

    def _letters(self, x_t: Tensor) -> Float[Tensor, "B L V"]:
        dtype = self.position.dtype
        if self.reads == "sticks":
            return break_sticks(x_t.clamp(0, 1).to(dtype))
        if x_t.ndim == 2:
            return F.one_hot(x_t, self.vocabulary).to(dtype)
        return x_t[..., : self.vocabulary].to(dtype)

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return self.arguments


FREQUENCIES = 16


def _fourier(t: Float[Tensor, " B"], dtype: torch.dtype) -> Float[Tensor, "B F"]:
    """Cosines and sines of the time, from half a turn on, in half octaves."""
    turns = 0.5 * 2 ** (0.5 * torch.arange(FREQUENCIES, device=t.device, dtype=torch.float64))
    angle = 2 * math.pi * t.double()[:, None] * turns
    return torch.cat([angle.cos(), angle.sin()], dim=1).to(dtype)
