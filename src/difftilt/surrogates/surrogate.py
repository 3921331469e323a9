r"""What a surrogate is: the posterior of a learned reward, over designs and relaxed designs.

.. math::
    \hat r(x) = E[f(x) \mid D], \qquad \sigma(x)^2 = \operatorname{Var}[f(x) \mid D]                       \qquad (1)

    y \mid x, D: \quad \text{mean}\; \hat r(x), \quad \text{variance}\; \sigma(x)^2 + m^2 + s^2            \qquad (2)

``D`` are the measurements. :math:`\sigma` is the *epistemic* std: what more data would remove, and what every bonus
is made of. ``m`` (misfit) and ``s`` (noise) are those of :mod:`~difftilt.surrogates.measurements`: they stand about a
next *measurement*, equation (2), and are no reason to explore.

A :class:`Learner` is its settings, a frozen dataclass; its ``fit`` is a function of measurements and a generator, and
returns a :class:`Surrogate`, which does not change. Nothing is saved: a fit is repeated from the measurements.

References:
    Uehara, Zhao et al. 2024 (SEIKO), https://arxiv.org/abs/2402.16359.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch

from difftilt.core.codec import Codec
from difftilt.core.reward import DifferentiableReward
from difftilt.errors import ConfigError, ShapeError
from difftilt.surrogates.measurements import Forecast, Measurements, readable
from difftilt.types import Float, Tensor

S = TypeVar("S", bound="Surrogate")
ROWS = 512
"""Designs that are predicted at a time: more leave the cache, and take three times as long each."""
LEAST = 1e-16
"""Least variance, standardised: the std of a design without doubt keeps a finite gradient."""


class Prediction(NamedTuple):
    """Equation (1), reward units, float64."""

    mean: Float[Tensor, " B"]
    r""":math:`\hat r`."""
    std: Float[Tensor, " B"]
    r""":math:`\sigma`, epistemic."""


@dataclass(frozen=True, kw_only=True)
class Surrogate(ABC):
    """Posterior of a learned reward, equations (1) and (2)."""

    codec: Codec
    """Reads designs."""
    event_shape: tuple[int, ...]
    """Shape of one readable design."""
    center: float
    """Mean of the values, reward units."""
    scale: float
    """Standard deviation of the values: reward units per standardised unit."""
    misfit: float
    """``m``, reward units, tempered."""
    noise: float
    """``s``, reward units; 0 where replicates do not tell it from the misfit."""
    held_out: Forecast
    """The rows, each as predicted without it."""
    factor: float = 1.0
    r"""Multiplies :math:`\sigma`; see :func:`~difftilt.surrogates.calibration.temper`."""

    @abstractmethod
    def _joint(self, p: Float[Tensor, "N q *event"]) -> tuple[Float[Tensor, "N q"], Float[Tensor, "N q q"]]:
        """Mean and covariance of ``N`` sets of designs, standardised and not tempered. Gradient flows to ``p``."""

    @abstractmethod
    def _path(self, rng: torch.Generator) -> Callable[[Tensor], Tensor]:
        """One function of readable designs drawn from the posterior, standardised and not tempered."""

    def joint(self, p: Float[Tensor, "B *event"]) -> tuple[Float[Tensor, " B"], Float[Tensor, "B B"]]:
        """Mean and epistemic covariance of a set of relaxed designs, reward units. Gradient flows to ``p``."""
        mean, covariance = self._joint(p.double()[None])
        return self.center + self.scale * mean[0], (self.factor * self.scale) ** 2 * covariance[0]

    def at(self, p: Float[Tensor, "B *event"]) -> Prediction:
        """Equation (1) at relaxed designs, on their device; computed on the CPU. Gradient flows to ``p``."""
        mean, variance = self._joint(p.double().cpu()[:, None])
        std = variance[:, 0, 0].clamp(min=LEAST).sqrt()
        mean, std = self.center + self.scale * mean[:, 0], self.factor * self.scale * std
        return Prediction(mean.to(p.device), std.to(p.device))

    @torch.no_grad()
    def predict(self, designs: Sequence[Any]) -> Prediction:
        """Equation (1) at designs. No gradient."""
        mean, std = zip(*[self.at(part) for part in readable(self.codec, designs).split(ROWS)], strict=True)
        return Prediction(torch.cat(mean), torch.cat(std))

    def predictive_std(self, std: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Root of the variance of (2) from the epistemic std, reward units."""
        return (std.square() + self.misfit**2 + self.noise**2).sqrt()

    def forecast(self, mean: Float[Tensor, " B"], std: Float[Tensor, " B"], measured: Float[Tensor, " B"]) -> Forecast:
        """What :meth:`predict` said of designs, beside what was then measured (NaN = infeasible).

        Args:
            mean: as predicted.
            std: as predicted, tempered as this surrogate is.
            measured: reward units.
        """
        model = (std.square() + self.misfit**2).sqrt() / self.factor
        return Forecast(mean, model, torch.full_like(mean, self.noise), measured)

    def draw(self, rng: torch.Generator) -> DifferentiableReward:
        """One function of the posterior, the same wherever it is asked (Thompson)."""
        return Draw(self, self._path(rng))

    def tempered(self: S, factor: float) -> S:
        """The same mean with epistemic std and misfit ``factor`` times as large as the fit left them."""
        if not factor > 0:
            raise ConfigError(f"expected a factor above 0; got {factor}; 1 leaves the spread as it was fitted")
        return replace(self, factor=factor, misfit=self.misfit / self.factor * factor)

    # BoTorch reads a surrogate as a model of one output.
    num_outputs = 1

    def posterior(
        self,
        X: Float[Tensor, "*batch q d"],
        output_indices: list[int] | None = None,
        observation_noise: bool = False,
        posterior_transform: Callable[[Any], Any] | None = None,
    ) -> Any:
        """BoTorch's ``GPyTorchPosterior``, joint over ``q`` designs, reward units. Gradient flows to ``X``.

        Args:
            X: readable designs, flattened.
            output_indices: there is one output.
            observation_noise: add misfit and noise: of measurements, equation (2).
            posterior_transform: BoTorch's.

        Raises:
            ShapeError: designs of another size.
        """
        from botorch.posteriors import GPyTorchPosterior
        from gpytorch.distributions import MultivariateNormal

        event, (*batch, q, d) = self.event_shape, X.shape
        size = math.prod(event)
        if d != size:
            raise ShapeError(
                f"expected designs of {size} numbers each; got {d}; pass readable(codec, designs).flatten(1)"
            )
        mean, covariance = self._joint(X.double().reshape(-1, q, *event))
        covariance = covariance * (self.factor * self.scale) ** 2
        if observation_noise:
            covariance = covariance + (self.misfit**2 + self.noise**2) * torch.eye(q, dtype=torch.float64)
        law = MultivariateNormal((self.center + self.scale * mean).view(*batch, q), covariance.view(*batch, q, q))
        posterior = GPyTorchPosterior(law)
        return posterior if posterior_transform is None else posterior_transform(posterior)


@runtime_checkable
class Learner(Protocol):
    """Settings of a kind of surrogate: a frozen dataclass."""

    def fit(self, codec: Codec, measurements: Measurements, rng: torch.Generator) -> Surrogate:
        """The posterior after the feasible measurements.

        Raises:
            DataError: they hold fewer than two different values.
        """
        ...


@dataclass(frozen=True)
class Draw:
    """One function drawn from a surrogate's posterior, as a reward."""

    surrogate: Surrogate
    path: Callable[[Tensor], Tensor]
    """Standardised, not tempered."""

    def on_probabilities(self, p: Float[Tensor, "B *event"]) -> Float[Tensor, " B"]:
        """Its value at relaxed designs, reward units. Gradient flows to ``p``."""
        own, x = self.surrogate, p.double().cpu()
        value = self.path(x)
        if own.factor != 1:
            mean = own._joint(x[:, None])[0][:, 0]
            value = mean + own.factor * (value - mean)
        return (own.center + own.scale * value).to(p.device)

    @torch.no_grad()
    def __call__(self, designs: Sequence[Any]) -> Float[Tensor, " B"]:
        """Its value at designs, reward units. No gradient."""
        parts = readable(self.surrogate.codec, designs).split(ROWS)
        return torch.cat([self.on_probabilities(part) for part in parts])
