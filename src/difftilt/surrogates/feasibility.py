r"""The chance that a design is feasible, learned from which were: logistic regression on features.

.. math::
    \log P(F \mid x) = \log \operatorname{sigmoid}(w^\top \phi(x)), \qquad
    w = \arg\max \sum_i \log P(F_i \mid x_i) - \tfrac{1}{2 \tau^2} |w|^2                                   \qquad (1)

over all measurements, feasible or not; replicates count each. Newton's method, whose step is
:math:`(\Phi^\top S \Phi + \tau^{-2} I)^{-1} \nabla`, :math:`S = \operatorname{diag} P (1 - P)`, halved while it does
not raise (1), which is concave.

The reward's surrogate never sees an infeasible design, and no value is made up for one.

References:
    Bishop 2006, Pattern Recognition and Machine Learning, section 4.3.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from difftilt.core.codec import Codec
from difftilt.errors import ConfigError, DataError
from difftilt.surrogates.features import Features, default_features, features
from difftilt.surrogates.measurements import Measurements, readable
from difftilt.types import Bool, Float, Tensor


@dataclass(frozen=True)
class Feasibility:
    """The fitted (1)."""

    codec: Codec
    """Reads designs."""
    phi: Features
    """Features of readable designs."""
    weights: Float[Tensor, " d"]
    """``w``."""

    def log_probability(self, p: Float[Tensor, "B *event"]) -> Float[Tensor, " B"]:
        """``log P(F | x)`` of relaxed designs, nats. Gradient flows to ``p``."""
        return F.logsigmoid(self.phi(p.double().cpu()) @ self.weights).to(p.device)


@dataclass(frozen=True, kw_only=True)
class Logistic:
    """Settings of (1)."""

    features: tuple[str, ...] | None = None
    """Names of features, see :mod:`~difftilt.surrogates.features`. When not set, letters and counts of words, or the
    numbers of designs without letters."""
    prior_std: float = 3.0
    """Tau, nats per feature."""

    def __post_init__(self) -> None:
        if not self.prior_std > 0:
            raise ConfigError(f"expected a prior std above 0; got {self.prior_std}; raise it")

    def fit(self, codec: Codec, measurements: Measurements) -> Feasibility:
        """Equation (1) over all measurements.

        Raises:
            DataError: there are none.
        """
        if not len(measurements.value):
            raise DataError("expected measurements, feasible or not; got none; measure some designs first")
        x = readable(codec, measurements.designs)
        phi = features(default_features(x) if self.features is None else self.features, x)
        return Feasibility(codec, phi, solve(phi(x), measurements.feasible, prior_std=self.prior_std))


def solve(phi: Float[Tensor, "N d"], feasible: Bool[Tensor, " N"], *, prior_std: float) -> Float[Tensor, " d"]:
    """The maximiser of (1), to a gradient below 1e-8."""
    sign = feasible.double() * 2 - 1
    eye = torch.eye(phi.shape[1], dtype=torch.float64) / prior_std**2

    def objective(w: Tensor) -> float:
        return (F.logsigmoid(sign * (phi @ w)).sum() - w.square().sum() / (2 * prior_std**2)).item()

    w = phi.new_zeros(phi.shape[1])
    value = objective(w)
    for _ in range(100):
        chance = torch.sigmoid(phi @ w)
        slope = phi.T @ (feasible.double() - chance) - w / prior_std**2
        if slope.abs().max() < 1e-8:
            break
        step = torch.linalg.solve(phi.T @ (phi * (chance * (1 - chance))[:, None]) + eye, slope)
        while (reached := objective(w + step)) < value and step.abs().max() > 1e-12:
            step = step / 2
        w, value = w + step, reached
    return w
