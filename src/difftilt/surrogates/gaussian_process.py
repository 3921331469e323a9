r"""Gaussian process over designs, by GPyTorch and BoTorch (the extra ``bo``): the surrogate of few measurements.

Standardised values :math:`y_i` with variances :math:`d_i = v_i + m^2`, prior :math:`f \sim GP(0, k)`:

.. math::
    \hat r(x) &= k_x^\top (K + D)^{-1} y, \qquad
    \operatorname{Cov}(x, x') = k(x, x') - k_x^\top (K + D)^{-1} k_{x'}                                    \qquad (1)

    f(x) &= f_0(x) + k_x^\top (K + D)^{-1} (y - f_0(X) - \epsilon), \qquad
    f_0 \sim GP(0, k), \; \epsilon \sim N(0, D)                                                             \qquad (2)

    \hat r_{-i}(x_i) &= y_i - [(K + D)^{-1} y]_i \big/ [(K + D)^{-1}]_{ii}, \qquad
    \text{variance}\; 1 \big/ [(K + D)^{-1}]_{ii}                                                           \qquad (3)

(2) is a draw from (1), with :math:`f_0` by random features (:mod:`~difftilt.surrogates.kernels`); (3) is the
prediction of row ``i`` and its measurement without it. The kernel's parameters and ``m`` maximise the marginal
likelihood times their priors.

References:
    Rasmussen & Williams 2006, Gaussian Processes for Machine Learning, equations 2.23, 2.24 and 5.12.
    Wilson et al. 2020 (pathwise draws), https://arxiv.org/abs/2002.09309.
    Balandat et al. 2020 (BoTorch), https://arxiv.org/abs/1910.06403.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from difftilt.core.codec import Codec
from difftilt.errors import ConfigError, DataError
from difftilt.surrogates.features import kmers
from difftilt.surrogates.measurements import Measurements
from difftilt.surrogates.surrogate import Surrogate
from difftilt.types import Float, Tensor

MOST = 4000
"""Designs of an exact process: (1) takes time n^3 and memory n^2."""
LEAST_VARIANCE = 1e-5
"""Least ``m^2``, standardised: keeps the matrix of (1) invertible."""


@dataclass(frozen=True, kw_only=True)
class ProcessSurrogate(Surrogate):
    """The posterior (1)."""

    kernel: Any
    """:class:`~difftilt.surrogates.kernels.DesignKernel`, frozen."""
    x: Float[Tensor, "n d"]
    """Measured designs, flattened."""
    y: Float[Tensor, " n"]
    """Their values, standardised."""
    variance: Float[Tensor, " n"]
    """``D``, standardised."""
    cholesky: Float[Tensor, "n n"]
    """Of ``K + D``, lower."""

    def _joint(self, p: Float[Tensor, "N q *event"]) -> tuple[Float[Tensor, "N q"], Float[Tensor, "N q q"]]:
        x = p.flatten(2)
        towards = self.kernel(x.flatten(0, 1), self.x).to_dense()
        half = torch.linalg.solve_triangular(self.cholesky, towards.T, upper=False).T.unflatten(0, x.shape[:2])
        return (towards @ self._solved(self.y)).view(x.shape[:2]), self.kernel(x).to_dense() - half @ half.mT

    def _path(self, rng: torch.Generator) -> Callable[[Tensor], Tensor]:
        prior = self.kernel.prior_path(rng)
        noise = self.variance.sqrt() * torch.randn(len(self.y), generator=rng, dtype=torch.float64)
        update = self._solved(self.y - prior(self.x) - noise)

        def path(p: Tensor) -> Tensor:
            x = p.flatten(1)
            return prior(x) + self.kernel(x, self.x).to_dense() @ update

        return path

    def _solved(self, y: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return torch.cholesky_solve(y[:, None], self.cholesky)[:, 0]


def check_installed() -> None:
    """Nothing where Gaussian processes can be fitted.

    Raises:
        ConfigError: BoTorch or GPyTorch is not installed; the command that adds them is named.
    """
    missing = [name for name in ("botorch", "gpytorch") if importlib.util.find_spec(name) is None]
    if missing:
        raise _lacking(f"no {missing[0]}")


def _lacking(came: str) -> ConfigError:
    return ConfigError(
        f"expected BoTorch and GPyTorch for Gaussian processes; got {came}; run: pip install 'difftilt[bo]'"
    )


@dataclass(frozen=True, kw_only=True)
class GaussianProcess:
    """Settings of a Gaussian process."""

    both_strands: bool = False
    """Letters only: words count on both strands; for DNA whose value does not depend on the strand."""
    iterations: int = 20
    """Most steps of L-BFGS."""

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ConfigError(f"expected at least 1 iteration; got {self.iterations}; raise it")

    def fit(self, codec: Codec, measurements: Measurements, rng: torch.Generator) -> ProcessSurrogate:
        """The posterior (1) after the feasible measurements; nothing in it is random.

        Raises:
            ConfigError: more designs than :data:`MOST`.
        """
        rows = measurements.rows(codec)
        if len(rows) > MOST:
            raise ConfigError(f"expected at most {MOST:,} designs; got {len(rows):,}; use an ensemble")
        y, variance = rows.standardised()
        kernel, misfit = self._hyperparameters(rows.x, y, variance)
        x, d = rows.x.flatten(1), variance + misfit**2
        cholesky = torch.linalg.cholesky(kernel(x).to_dense() + d.diag())
        inverse = torch.cholesky_inverse(cholesky)
        own = 1 / inverse.diagonal()
        return ProcessSurrogate(
            codec=codec, center=rows.center, scale=rows.scale, misfit=misfit * rows.scale, noise=rows.noise,
            held_out=rows.forecast(y - inverse @ y * own, own - variance), kernel=kernel, x=x, y=y, variance=d,
            cholesky=cholesky, event_shape=rows.x.shape[1:],
        )  # fmt: skip

    def _hyperparameters(
        self, x: Float[Tensor, "n *event"], y: Float[Tensor, " n"], variance: Float[Tensor, " n"]
    ) -> tuple[Any, float]:
        """The kernel, and ``m`` standardised."""
        try:
            import gpytorch
            from botorch.fit import fit_gpytorch_mll
            from botorch.models import SingleTaskGP
        except ImportError as error:
            raise _lacking(f"'{error}'") from error
        from difftilt.surrogates.kernels import DesignKernel

        letters = x.ndim == 3
        kernel = DesignKernel(x, partial(kmers, both_strands=self.both_strands) if letters else None)
        likelihood = gpytorch.likelihoods.FixedNoiseGaussianLikelihood(
            noise=variance.clamp(min=1e-6),
            learn_additional_noise=True,
            noise_prior=gpytorch.priors.LogNormalPrior(-3.0, 1.0),
            noise_constraint=gpytorch.constraints.GreaterThan(LEAST_VARIANCE, transform=None, initial_value=0.05),
        )
        with warnings.catch_warnings(), gpytorch.settings.fast_computations(False, False, False):
            warnings.simplefilter("ignore")  # that the optimiser stopped at its last iteration
            model = SingleTaskGP(
                x.flatten(1), y[:, None], likelihood=likelihood, covar_module=kernel,
                mean_module=gpytorch.means.ZeroMean(), outcome_transform=None,
            )  # fmt: skip
            evidence = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
            fit_gpytorch_mll(evidence, optimizer_kwargs={"options": {"maxiter": self.iterations}})
        misfit = float(torch.as_tensor(likelihood.second_noise).detach()) ** 0.5
        if math.isnan(misfit):
            raise DataError("expected values that a Gaussian process can fit; got no number; check the values")
        return kernel.eval().requires_grad_(False), misfit
