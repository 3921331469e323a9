r"""Bayesian linear regression on features, fixed or learned: exact linear UCB.

Standardised values :math:`y_i` with variances :math:`d_i = v_i + m^2`, weights :math:`w \sim N(0, \tau^2 I)`:

.. math::
    P &= \tau^{-2} I + \sum_i \phi_i \phi_i^\top / d_i = L L^\top, \qquad
    b = \sum_i \phi_i y_i / d_i, \qquad w \mid D \sim N(P^{-1} b, P^{-1})                                   \qquad (1)

    \sigma(x)^2 &= \phi^\top P^{-1} \phi                                                                    \qquad (2)

    \log p(y) &= -\tfrac12 \Big[ \sum_i y_i^2 / d_i - b^\top P^{-1} b + \log\det P + \log\det(\tau^2 I)
        + \sum_i \log(2 \pi d_i) \Big]                                                                      \qquad (3)

With one variance ``d``, (2) is :math:`d\, \phi^\top (\lambda I + \sum \phi \phi^\top)^{-1} \phi`,
:math:`\lambda = d / \tau^2`: the bonus of linear UCB, over *sums*, so it shrinks as :math:`n^{-1/2}`. What is not
stated of :math:`\tau` and ``m`` maximises the evidence (3), plus :math:`\log N(\log \tau; \log \tau_0, 1)`, where
:math:`\tau_0` gives predictions the spread of the values: with a handful of rows the evidence alone often says that the
features tell nothing and all is misfit, and then there is nothing to be learned any more. One measurement more changes
(1) by :math:`P' = P + \phi \phi^\top / d`, whose Cholesky factor is, with :math:`u = L^{-1} \phi / \sqrt d` and
:math:`a_k = 1 + \sum_{j \le k} u_j^2`,

.. math:: L'_{\cdot k} = \sqrt{a_k / a_{k-1}}\, L_{\cdot k}
    + \frac{u_k}{\sqrt{a_k a_{k-1}}} \sum_{i > k} L_{\cdot i}\, u_i                                         \qquad (4)

Differs from the paper in: the matrix is that of all rows (public code of SEIKO normalises a covariance, whose bonus
does not shrink); hyperparameters by evidence; a network's features come from its last layer but one, frozen.

References:
    Uehara, Zhao et al. 2024 (SEIKO), section 5, https://arxiv.org/abs/2402.16359.
    Bishop 2006, Pattern Recognition and Machine Learning, section 3.5 (evidence).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from difftilt.core.codec import Codec
from difftilt.errors import ConfigError
from difftilt.surrogates.features import Features, default_features, features
from difftilt.surrogates.measurements import Measurements, readable
from difftilt.surrogates.surrogate import ROWS, Surrogate
from difftilt.surrogates.training import Training, last_layer_features, train
from difftilt.types import Float, Tensor

FLOOR = 1e-6
"""Least variance of a row, standardised: what is stated to be exact is so up to a thousandth of the values' spread."""


class Weights(NamedTuple):
    """The posterior (1)."""

    b: Float[Tensor, " d"]
    cholesky: Float[Tensor, "d d"]
    """``L``, lower."""

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """:math:`P^{-1} b`."""
        return torch.cholesky_solve(self.b[:, None], self.cholesky)[:, 0]


def weights(
    phi: Float[Tensor, "N d"], y: Float[Tensor, " N"], variance: Float[Tensor, " N"], *, prior_std: float | Tensor
) -> Weights:
    r"""Equation (1); ``variance`` is :math:`d_i`, ``prior_std`` is :math:`\tau`. Gradient flows."""
    eye = torch.eye(phi.shape[1], dtype=phi.dtype)
    precision = eye / prior_std**2 + (phi / variance[:, None]).T @ phi
    return Weights(phi.T @ (y / variance), torch.linalg.cholesky(precision))


def log_evidence(
    phi: Float[Tensor, "N d"], y: Float[Tensor, " N"], variance: Float[Tensor, " N"], *, prior_std: float | Tensor
) -> Float[Tensor, ""]:
    """Equation (3), nats. Gradient flows."""
    posterior = weights(phi, y, variance, prior_std=prior_std)
    explained = torch.linalg.solve_triangular(posterior.cholesky, posterior.b[:, None], upper=False).square().sum()
    log_det = 2 * posterior.cholesky.diagonal().log().sum() + 2 * phi.shape[1] * torch.as_tensor(prior_std).log()
    return -0.5 * ((y.square() / variance).sum() - explained + log_det + (2 * math.pi * variance).log().sum())


def one_more(posterior: Weights, phi: Float[Tensor, " d"], y: float | Tensor, variance: float | Tensor) -> Weights:
    """Equations (1) and (4): the posterior after one measurement more, in order ``d^2``."""
    lower = posterior.cholesky
    root = torch.as_tensor(variance, dtype=phi.dtype).sqrt()
    u = torch.linalg.solve_triangular(lower, phi[:, None] / root, upper=False)[:, 0]
    a = 1 + u.square().cumsum(0)
    before = torch.cat([a.new_ones(1), a[:-1]])
    scaled = lower * u
    after = scaled.flip(1).cumsum(1).flip(1) - scaled
    return Weights(posterior.b + phi * y / variance, lower * (a / before).sqrt() + after * (u / (a * before).sqrt()))


@dataclass(frozen=True, kw_only=True)
class LinearSurrogate(Surrogate):
    """The posterior of Bayesian linear regression."""

    phi: Features
    """Features of readable designs."""
    weights: Weights
    """Equation (1), standardised."""

    def _joint(self, p: Float[Tensor, "N q *event"]) -> tuple[Float[Tensor, "N q"], Float[Tensor, "N q q"]]:
        phi = self.phi(p.flatten(0, 1))
        half = torch.linalg.solve_triangular(self.weights.cholesky, phi.T, upper=False).T.unflatten(0, p.shape[:2])
        return (phi @ self.weights.mean).view(p.shape[:2]), half @ half.mT

    def _path(self, rng: torch.Generator) -> Callable[[Tensor], Tensor]:
        noise = torch.randn(len(self.weights.b), 1, generator=rng, dtype=torch.float64)
        drawn = self.weights.mean + torch.linalg.solve_triangular(self.weights.cholesky.T, noise, upper=True)[:, 0]
        return lambda p: self.phi(p) @ drawn

    def with_measurement(self, design: Any, value: float, noise_std: float | None = None) -> LinearSurrogate:
        """The posterior after a measurement of a new design, by (4); features, units and hyperparameters stay.

        Args:
            design: measured.
            value: reward units.
            noise_std: its noise, reward units; as those before when not given.
        """
        noise = self.noise if noise_std is None else noise_std
        variance = ((self.misfit / self.factor) ** 2 + noise**2) / self.scale**2
        phi = self.phi(readable(self.codec, [design]))[0]
        return replace(self, weights=one_more(self.weights, phi, (value - self.center) / self.scale, variance))


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Settings of Bayesian linear regression."""

    features: tuple[str, ...] | None = None
    """Names of fixed features, see :mod:`~difftilt.surrogates.features`; those of a network trained first if empty.
    When not set, letters and counts of words, or numbers of designs without letters."""
    prior_std: float | None = None
    """Tau, the weights' prior std, reward units; by evidence when not set."""
    misfit: float | None = None
    """``m``, reward units; by evidence when not set."""
    network: dict[str, Any] | None = None
    """Description of a registered regressor for learned features; a small one when not set."""
    training: Training = field(default_factory=Training)
    """How that network is trained."""

    def __post_init__(self) -> None:
        if (self.prior_std is not None and self.prior_std <= 0) or (self.misfit is not None and self.misfit < 0):
            raise ConfigError("expected a prior std above 0 and a misfit of at least 0; got others; correct them")

    def fit(self, codec: Codec, measurements: Measurements, rng: torch.Generator) -> LinearSurrogate:
        """The posterior (1) after the feasible measurements."""
        rows = measurements.rows(codec)
        y, variance = rows.standardised()
        names = default_features(rows.x) if self.features is None else self.features
        if names:
            phi = features(names, rows.x)
        else:
            members = train(rows.x, y, variance, rng, members=1, network=self.network, config=self.training)
            phi = last_layer_features(members)
        with torch.no_grad():
            seen = torch.cat([phi(part) for part in rows.x.split(ROWS)])
        prior_std, misfit = self._hyperparameters(seen, y, variance, rows.scale)
        d = (variance + misfit**2).clamp(min=FLOOR)
        posterior = weights(seen, y, d, prior_std=prior_std)
        share = torch.linalg.solve_triangular(posterior.cholesky, seen.T, upper=False).square().sum(0) / d
        left = (1 - share).clamp(min=1e-6)  # of the row's own variance, without it
        mean = y - (y - seen @ posterior.mean) / left
        return LinearSurrogate(
            codec=codec, center=rows.center, scale=rows.scale, misfit=misfit * rows.scale, noise=rows.noise,
            held_out=rows.forecast(mean, d / left - variance), phi=phi, weights=posterior,
            event_shape=rows.x.shape[1:],
        )  # fmt: skip

    def _hyperparameters(
        self, phi: Float[Tensor, "N d"], y: Float[Tensor, " N"], variance: Float[Tensor, " N"], scale: float
    ) -> tuple[float, float]:
        """Tau and ``m``, standardised, as stated or where (3) is largest."""
        begin = (-0.5 * phi.square().sum(1).mean().log().item(), math.log(0.3))
        stated = [None if value is None else value / scale for value in (self.prior_std, self.misfit)]
        free = {
            number: torch.tensor(begin[number], dtype=torch.float64, requires_grad=True)
            for number, value in enumerate(stated)
            if value is None
        }

        def values() -> list[Tensor]:
            return [
                free[number].exp() if value is None else torch.tensor(value, dtype=torch.float64)
                for number, value in enumerate(stated)
            ]

        def loss() -> Tensor:
            prior_std, misfit = values()
            optimiser.zero_grad()
            minus = -log_evidence(phi, y, (variance + misfit**2).clamp(min=FLOOR), prior_std=prior_std) / len(y)
            if 0 in free:
                minus = minus + 0.5 * (free[0] - begin[0]).square() / len(y)
            minus.backward()
            return minus

        if free:
            optimiser = torch.optim.LBFGS(list(free.values()), max_iter=30, line_search_fn="strong_wolfe")
            optimiser.step(loss)
        prior_std, misfit = (value.item() for value in values())
        return prior_std, misfit
