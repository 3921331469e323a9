r"""Noise schedules: the scales of :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon` over time.

References:
    Song et al. 2021 (VP and VE, eq. 30-33), https://arxiv.org/abs/2011.13456; Nichol and Dhariwal 2021 (cosine, eq.
    17), https://arxiv.org/abs/2102.09672.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

import torch

from difftilt.core.registry import register
from difftilt.types import Tensor


class Schedule(ABC):
    """Noise scales over time."""

    last: float = 1.0
    """The latest time from which DDPM's step to ``t = 0`` adds no noise (Ho et al., algorithm 2: the last step)."""

    @abstractmethod
    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\alpha_t, \sigma_t` in float64, in the shape of ``t``."""

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return asdict(self)  # ty: ignore


@register("schedule", "vp")
@dataclass(frozen=True)
class VP(Schedule):
    r"""Linear beta: :math:`\log \alpha_t = -\tfrac12 \int_0^t \beta`, :math:`\sigma_t^2 = 1 - \alpha_t^2`."""

    beta_min: float = 0.1
    """Noise rate at ``t = 0``, per unit time; Song et al.: 0.1."""
    beta_max: float = 20.0
    """Noise rate at ``t = 1``, per unit time; Song et al.: 20."""

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        log_alpha = -0.5 * t.double() * (self.beta_min + 0.5 * t.double() * (self.beta_max - self.beta_min))
        return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()


@register("schedule", "cosine")
@dataclass(frozen=True)
class Cosine(Schedule):
    r""":math:`\alpha_t = \cos\theta_t, \sigma_t = \sin\theta_t`, with :math:`\theta_t` proportional to ``t``."""

    alpha_end: float = 1e-3
    r""":math:`\alpha_1`; 0 is zero terminal signal, which an epsilon prediction cannot invert."""

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        angle = t.double() * math.acos(self.alpha_end)
        return angle.cos(), angle.sin()


@register("schedule", "ve")
@dataclass(frozen=True)
class VE(Schedule):
    r"""Geometric: :math:`\alpha_t = 1, \sigma_t^2 = \sigma_{low}^2 ((\sigma_{high}/\sigma_{low})^{2t} - 1)`."""

    sigma_low: float = 0.01
    """Scale of the smallest noise, in units of the data; Song et al.: 0.01."""
    sigma_high: float = 50.0
    """Scale of the largest noise, in units of the data; Song et al.: about the largest distance between examples."""

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        sigma = self.sigma_low * torch.expm1(2 * t.double() * math.log(self.sigma_high / self.sigma_low)).sqrt()
        return torch.ones_like(sigma), sigma


@register("schedule", "linear")
@dataclass(frozen=True)
class Linear(Schedule):
    r""":math:`\alpha_t = 1 - t, \sigma_t = t`: the straight path of flow matching."""

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        return 1 - t.double(), t.double()


@register("schedule", "table")
class Table(Schedule):
    r"""A table of :math:`\alpha_i^2` at integer timesteps :math:`i = 0 \dots N - 1`, placed at ``t = (i + 1) / N``.

    Other times belong to the next timestep above, so that ``t ~ U(0, 1)`` draws all timesteps alike; a thousandth of
    a timestep is left for the rounding of float32 times.

    Args:
        alphas_cumprod: :math:`\alpha_i^2`, decreasing.
        final: :math:`\alpha_0^2` of ``t = 0``: 1, or ``alphas_cumprod[0]``.
    """

    def __init__(self, alphas_cumprod: list[float], final: float = 1.0) -> None:
        self.alphas_cumprod, self.final = list(alphas_cumprod), final
        self.last = 1.001 / len(self.alphas_cumprod)
        self._table = torch.tensor([final, *self.alphas_cumprod], dtype=torch.float64)

    def timestep(self, t: Tensor) -> Tensor:
        """The integer timestep of ``t``, which the network was trained to be told; -1 at ``t = 0``."""
        return timestep(t, len(self.alphas_cumprod))

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        alpha_squared = self._table.to(t.device)[self.timestep(t) + 1]
        return alpha_squared.sqrt(), (1 - alpha_squared).sqrt()

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"alphas_cumprod": self.alphas_cumprod, "final": self.final}


def timestep(t: Tensor, total: int) -> Tensor:
    """The integer timestep ``i`` of ``total`` that ``t`` belongs to, which sits at ``(i + 1) / total``; -1 at 0."""
    return (t.double() * total - 1e-3).ceil().long() - 1
