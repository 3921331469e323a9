r"""Bootstrap ensemble: networks trained on resamples, whose disagreement is the epistemic std.

With few rows each member holds a random prior function too (:mod:`~difftilt.surrogates.training`, equation (2)), so
that they disagree where no row is near.

.. math::
    \hat r = \frac1E \sum_e f_e, \qquad
    \operatorname{Cov}(x, x') = \frac{1}{E - 1} \sum_e (f_e(x) - \hat r(x)) (f_e(x') - \hat r(x'))          \qquad (1)

    f = \hat r + \frac{1}{\sqrt{E - 1}} \sum_e \xi_e (f_e - \hat r), \qquad \xi \sim N(0, I)                \qquad (2)

(2) is a draw: a Gaussian over functions with exactly the mean and covariance (1). Its misfit is what the held-out
errors hold beyond disagreement and noise.

Differs from the paper in: draws are (2), where SEIKO's code takes one member; members are fitted to weighted rows.

References:
    Uehara, Zhao et al. 2024 (SEIKO), https://arxiv.org/abs/2402.16359.
    Lakshminarayanan et al. 2017, https://arxiv.org/abs/1612.01474.
    Osband, Aslanides & Cassirer 2018 (randomised priors), https://arxiv.org/abs/1806.03335.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from difftilt.core.codec import Codec
from difftilt.errors import ConfigError
from difftilt.surrogates.features import Features, default_features, features
from difftilt.surrogates.measurements import Measurements
from difftilt.surrogates.surrogate import ROWS, Surrogate
from difftilt.surrogates.training import Members, Training, train
from difftilt.types import Float, Tensor

MANY = 2000
"""Designs from which on networks find their own features."""


@dataclass(frozen=True, kw_only=True)
class EnsembleSurrogate(Surrogate):
    """Equations (1) and (2)."""

    networks: Members
    """The members, standardised."""
    phi: Features
    """What they read of readable designs."""

    def members(self, p: Float[Tensor, "B *event"]) -> Float[Tensor, "E B"]:
        """Every member at relaxed designs, reward units, tempered about their mean. Gradient flows to ``p``."""
        value = self.networks(self.phi(p.double().cpu()))
        mean = value.mean(0)
        return (self.center + self.scale * (mean + self.factor * (value - mean))).to(p.device)

    def _joint(self, p: Float[Tensor, "N q *event"]) -> tuple[Float[Tensor, "N q"], Float[Tensor, "N q q"]]:
        value = self.networks(self.phi(p.flatten(0, 1))).unflatten(1, p.shape[:2])
        off = (value - value.mean(0)).movedim(0, -1)
        return value.mean(0), off @ off.mT / (len(value) - 1)

    def _path(self, rng: torch.Generator) -> Callable[[Tensor], Tensor]:
        share = shares(len(self.networks.held_out), rng)
        return lambda p: share @ self.networks(self.phi(p))


def shares(members: int, rng: torch.Generator) -> Float[Tensor, " E"]:
    r"""Weights of the members in (2): :math:`1/E + (\xi_e - \bar \xi) / \sqrt{E - 1}`, summing to 1."""
    xi = torch.randn(members, generator=rng, dtype=torch.float64) / (members - 1) ** 0.5
    return 1 / members + xi - xi.mean()


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Settings of a bootstrap ensemble."""

    members: int = 8
    """Networks ``E``; at least 2."""
    features: tuple[str, ...] | None = None
    """Names of features that members read, see :mod:`~difftilt.surrogates.features`; the design itself if empty. When
    not set, fewer than 2,000 designs are read by letters and counts of words, more by themselves."""
    network: dict[str, Any] | None = None
    """Description of a registered regressor; a small one for what it reads when not set."""
    prior_std: float | None = None
    """Spread over the rows of the random functions that members hold, in standard deviations of the values; 0 for none.
    When not set, 1 with fewer than 2,000 designs and 0 with more, which networks then fit better."""
    training: Training = field(default_factory=Training)
    """How members are trained."""

    def __post_init__(self) -> None:
        if self.members < 2:
            raise ConfigError(f"expected at least 2 members; got {self.members}; one cannot disagree")
        if self.prior_std is not None and not 0 <= self.prior_std < math.inf:
            raise ConfigError(f"expected a prior std of 0 or more; got {self.prior_std}; 0 leaves random functions out")

    def fit(self, codec: Codec, measurements: Measurements, rng: torch.Generator) -> EnsembleSurrogate:
        """The members after the feasible measurements."""
        rows = measurements.rows(codec)
        y, variance = rows.standardised()
        names = self.features
        if names is None:
            names = default_features(rows.x) if len(rows) < MANY else ()
        phi = features(names, rows.x) if names else _itself
        x = phi(rows.x)
        prior_std = float(len(rows) < MANY) if self.prior_std is None else self.prior_std
        networks = train(
            x, y, variance, rng, members=self.members, network=self.network, config=self.training, prior_std=prior_std
        )
        mean, spread, known = _out_of_bag(networks, x)
        left = ((mean - y).square() - spread - variance)[known]
        beyond = left.mean().clamp(min=0).sqrt().item() if len(left) else 1.0  # of too few rows nothing is known
        return EnsembleSurrogate(
            codec=codec, center=rows.center, scale=rows.scale, misfit=beyond * rows.scale, noise=rows.noise,
            held_out=rows.forecast(mean, spread + beyond**2, known),
            networks=networks, phi=phi, event_shape=rows.x.shape[1:],
        )  # fmt: skip


@torch.no_grad()
def _out_of_bag(networks: Members, x: Tensor) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], Tensor]:
    """Mean and variance of the members that have not seen a row, and whether there are two of them."""
    value = torch.cat([networks(part) for part in x.split(ROWS)], dim=1)
    out = networks.held_out.double()
    number = out.sum(0)
    mean = (out * value).sum(0) / number
    return mean, (out * (value - mean).square()).sum(0) / (number - 1), number > 1


def _itself(p: Tensor) -> Tensor:
    return p
