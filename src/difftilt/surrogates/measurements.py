r"""Measurements as surrogates read them: replicates merged, infeasible designs apart.

A measurement ``j`` of a design ``x_i`` is the reward, plus what the surrogate's form misses there, plus noise:

.. math::
    y_{ij} = f(x_i) + u_i + e_{ij}, \qquad u_i \sim N(0, m^2), \quad e_{ij} \sim N(0, s_{ij}^2)           \qquad (1)

``f`` is what a surrogate has a posterior of, whose std is *epistemic*: more data shrink it. The *misfit* ``m`` stays,
and replicates do not average it out; the *noise* ``s`` they do. The replicates of a design therefore enter as

.. math:: \bar y_i = v_i \sum_j y_{ij} / s_{ij}^2, \qquad v_i = 1 / \sum_j s_{ij}^{-2}                     \qquad (2)

Without stated noise, a design's ``s`` is told from its replicates, moderated by those of the others
(:mod:`~difftilt.surrogates.replicates`), and that of one more measurement is pooled from all of them, :math:`s^2 =
\sum_{ij} (y_{ij} - \bar y_i)^2 / (n - \#\text{designs})`; without replicates it is 0 here, and a surrogate's misfit
then holds both.

NaN is an infeasible design: it never becomes a number. Surrogates of the reward are fitted to the feasible rows and
know nothing of the others; :mod:`~difftilt.surrogates.feasibility` learns from both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from difftilt.core.codec import Codec
from difftilt.errors import DataError
from difftilt.surrogates.replicates import moderated
from difftilt.types import Bool, Float, Tensor


def readable(codec: Codec, designs: Sequence[Any]) -> Float[Tensor, "N *event"]:
    """Designs as a reward's ``on_probabilities`` reads them, float64: one-hot letters, pixels, vectors."""
    x = codec.encode(designs)
    if x.is_floating_point():
        return codec.readable(x).double()
    return F.one_hot(x, codec.vocabulary).double()  # ty: ignore[missing-attribute]


@dataclass(frozen=True)
class Forecast:
    """Predictions of measurements that their model had not seen, and what was measured; reward units."""

    mean: Float[Tensor, " N"]
    r""":math:`\hat r`."""
    model: Float[Tensor, " N"]
    r""":math:`\sqrt{\sigma^2 + m^2}` before tempering."""
    noise: Float[Tensor, " N"]
    """``s`` of the measurement."""
    measured: Float[Tensor, " N"]
    """``y``; NaN = infeasible, which counts nowhere."""


@dataclass(frozen=True)
class Rows:
    """Equation (2): each feasible design once."""

    x: Float[Tensor, "N *event"]
    """Readable designs."""
    y: Float[Tensor, " N"]
    """Mean of its measurements, reward units."""
    variance: Float[Tensor, " N"]
    """Noise variance of that mean, reward units squared."""
    noise: float
    """Noise std of one more measurement, reward units."""

    def __len__(self) -> int:
        return len(self.y)

    @property
    def center(self) -> float:
        """Mean of the values: what is taken off before a fit."""
        return self.y.mean().item()

    @property
    def scale(self) -> float:
        """Their standard deviation: what they are divided by before a fit."""
        return self.y.std().item()

    def standardised(self) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """Values with mean 0 and standard deviation 1, and their noise variances in that unit."""
        return (self.y - self.center) / self.scale, self.variance / self.scale**2

    def forecast(
        self, mean: Float[Tensor, " N"], variance: Float[Tensor, " N"], known: Bool[Tensor, " N"] | None = None
    ) -> Forecast:
        """Standardised means and model variances of rows, each found without its row, in reward units.

        Args:
            mean: of each row.
            variance: sigma^2 + m^2 of each row.
            known: rows for which there are such predictions; all when not given.
        """
        mean, model = self.center + self.scale * mean, self.scale * variance.clamp(min=0).sqrt()
        parts = (mean, model, self.variance.sqrt(), self.y)
        return Forecast(*(part if known is None else part[known] for part in parts))


@dataclass(frozen=True)
class Measurements:
    """Every measurement of a campaign, replicates as rows of their own."""

    designs: Sequence[Any]
    """What the codec reads."""
    value: Float[Tensor, " N"]
    """Reward units; NaN = infeasible."""
    noise_std: Float[Tensor, " N"] | None = None
    """Known noise of each measurement, reward units; told from the replicates when not set."""

    def __post_init__(self) -> None:
        if len(self.designs) != len(self.value):
            raise DataError(
                f"expected a value for each of {len(self.designs)} designs; got {len(self.value)}; NaN is infeasible"
            )
        if self.value.isinf().any():
            raise DataError("expected finite values, or NaN where infeasible; got an infinite one; correct it")
        if self.noise_std is not None and not ((self.noise_std > 0) & self.noise_std.isfinite()).all():
            raise DataError("expected a noise std above 0 for each measurement; got others; leave it out if unknown")

    @property
    def feasible(self) -> Bool[Tensor, " N"]:
        """True where a value was measured."""
        return ~self.value.isnan()

    def rows(self, codec: Codec) -> Rows:
        """Equation (2) over the feasible measurements.

        Raises:
            DataError: there are no two designs of different values.
        """
        keep = self.feasible
        designs = [design for design, feasible in zip(self.designs, keep.tolist(), strict=True) if feasible]
        y = self.value[keep].double()
        if len(y) == 0:
            raise DataError(f"expected feasible measurements; got none among {len(self.value)}; measure other designs")
        x = readable(codec, designs)
        _, which = torch.unique(x.flatten(1), dim=0, return_inverse=True)
        number = int(which.max()) + 1
        first = torch.full((number,), len(y)).scatter_reduce(0, which, torch.arange(len(y)), "amin")

        def total(values: Tensor) -> Tensor:
            return values.new_zeros(number).index_add(0, which, values)

        precision = torch.ones_like(y) if self.noise_std is None else self.noise_std[keep].double() ** -2
        mean = total(precision * y) / total(precision)
        if self.noise_std is None:
            squares, freedom = total((y - mean[which]).square()), which.bincount(minlength=number) - 1
            squared = squares.sum().item() / max(1, int(freedom.sum()))
            variance = moderated(squares, freedom) / total(precision)
        else:
            squared = self.noise_std[keep].double().square().mean().item()
            variance = 1.0 / total(precision)
        if (mean == mean[0]).all():
            raise DataError(
                f"expected designs of at least 2 different values; got {number} with one value; measure more designs"
            )
        return Rows(x[first], mean, variance, squared**0.5)
