r"""The Gaussian process's kernel over readable designs, as GPyTorch has them; imported where GPyTorch is needed.

.. math::
    k(x, x') = a_1 \exp\Big( -\tfrac12 \sum_l w_l |x_l - x'_l|^2 \Big)
        + a_2 \exp\Big( -\tfrac{c}{2} |\phi(x) - \phi(x')|^2 \Big)                                         \qquad (1)

The first part compares place by place (the letters at ``l``, a coordinate of a vector, a channel of an image); for
letters it is :math:`a_1 \exp(-\sum_l w_l [x_l \ne x'_l])`. The second compares features :math:`\phi` that forget the
place, and is there for letters only. Both are smooth in relaxed designs. With random frequencies
:math:`\omega_f \sim N(0, I)` and ``z`` the scaled coordinates of a part (:math:`\sqrt{w_l} x_l` or
:math:`\sqrt c \phi`), a function of the prior is, in the limit of many,

.. math:: f(x) = \sqrt{a / F} \sum_f \xi_f \cos \omega_f^\top z + \zeta_f \sin \omega_f^\top z, \qquad
    \xi, \zeta \sim N(0, I)                                                                                 \qquad (2)

with its variance exact for any ``F``.

References:
    Rahimi & Recht 2007 (random features), https://papers.nips.cc/paper/3182.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gpytorch
import torch
from gpytorch.priors import NormalPrior
from torch import nn

from difftilt.surrogates.features import Features
from difftilt.types import Float, Tensor

FREQUENCIES = 1024
"""``F`` of (2), for each part."""


class DesignKernel(gpytorch.kernels.Kernel):
    """Equation (1) over flattened designs; its parameters are logs, each with a normal prior about its start.

    Args:
        like: designs, whose spread sets the start: correlations of about e^-1 to e^-3 between any two.
        phi: features that forget the place; the second part is left out where there are none.
    """

    log_height: Tensor
    """``log a`` of each part."""
    log_place: Tensor
    """``log w`` of each place."""
    log_feature: Tensor
    """``log c``, where there are features."""

    def __init__(self, like: Float[Tensor, "N *event"], phi: Features | None) -> None:
        super().__init__()
        self.event, self.phi = like.shape[1:], phi
        self._start("log_height", like.new_zeros(1 if phi is None else 2), 0.5)
        places = like.new_ones(self.event[0])
        self._start("log_place", (3 / _spread(like) * places).log(), 0.5)
        if phi is not None:
            self._start("log_feature", (1 / _spread(phi(like))).log()[None], 1.0)

    def _start(self, name: str, value: Tensor, std: float) -> None:
        self.register_parameter(name, nn.Parameter(value.clone()))
        self.register_prior(f"{name}_prior", NormalPrior(value, torch.full_like(value, std)), name)

    def coordinates(self, x: Float[Tensor, "*batch d"]) -> list[Float[Tensor, "*batch e"]]:
        """``z`` of each part. Gradient flows."""
        designs = x.unflatten(-1, self.event)
        root = (0.5 * self.log_place).exp().view(-1, *[1] * (len(self.event) - 1))
        parts = [(root * designs).flatten(-len(self.event))]
        if self.phi is not None:
            counts = self.phi(designs.flatten(0, -len(self.event) - 1))
            parts.append((0.5 * self.log_feature).exp() * counts.unflatten(0, x.shape[:-1]))
        return parts

    def forward(
        self,
        x1: Float[Tensor, "*b n d"],
        x2: Float[Tensor, "*c m d"],
        diag: bool = False,
        last_dim_is_batch: bool = False,
        **params: Any,
    ) -> Float[Tensor, "..."]:
        """Equation (1) between the rows of ``x1`` and ``x2``, or between equal rows."""
        total = x1.new_zeros(())
        for height, a, b in zip(self.log_height.exp(), self.coordinates(x1), self.coordinates(x2), strict=True):
            if diag:
                apart = (a - b).square().sum(-1)
            else:
                apart = a.square().sum(-1)[..., None] + b.square().sum(-1)[..., None, :] - 2 * a @ b.mT
            total = total + height * torch.exp(-apart.clamp(min=0) / 2)
        return total

    def prior_path(self, rng: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Equation (2): one function of flattened designs. Gradient flows to them."""
        sizes = [z.shape[-1] for z in self.coordinates(self.log_height.new_zeros(1, math.prod(self.event)))]
        drawn = [
            (
                torch.randn(size, FREQUENCIES, generator=rng, dtype=torch.float64),
                torch.randn(2 * FREQUENCIES, generator=rng, dtype=torch.float64) * (height / FREQUENCIES).sqrt(),
            )
            for size, height in zip(sizes, self.log_height.detach().exp(), strict=True)
        ]

        def path(x: Tensor) -> Tensor:
            total = x.new_zeros(len(x))
            for z, (omega, xi) in zip(self.coordinates(x), drawn, strict=True):
                angle = z @ omega
                total = total + torch.cat([angle.cos(), angle.sin()], dim=1) @ xi
            return total

        return path


def _spread(x: Tensor) -> Float[Tensor, ""]:
    """Total variance over rows."""
    return x.flatten(1).var(0).sum().clamp(min=1e-6)
