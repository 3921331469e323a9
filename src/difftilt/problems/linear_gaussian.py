r"""Gaussian data, affine policies, quadratic rewards: every quantity of the theory in closed form, in float64.

Data :math:`x_0 \sim N(m, S)`; the denoiser is its exact posterior mean; the reward is

.. math:: r(x) = -\tfrac12 (x - c)^\top A (x - c) + b^\top x                                        \qquad (1)

A policy whose step means are affine is a :class:`Chain` :math:`x_s \sim N(M x_t + u, P)`, read off the policy as it
runs. Its marginals are Gaussian by recursion. If :math:`v_s(x) = -\tfrac12 x^\top A x + g^\top x + h`, then in terms
of the step's mean :math:`\mu = M x_t + u`, and with :math:`C = (I + P A / \alpha)^{-1} P`,

.. math::
    v_t = -\tfrac12 \mu^\top (A - A C A / \alpha) \mu + (g - A C g / \alpha)^\top \mu + h
          + \tfrac{1}{2\alpha} g^\top C g - \delta                                                     \qquad (2)

- soft value (theory 3 and 4): :math:`\delta = \tfrac\alpha2 \log\det(I + P A / \alpha)`;
- class optimum (Riccati), the best J to go over means with the variance ``P`` kept:
  :math:`\delta = \tfrac12 \operatorname{tr}(P A)`, never smaller: :math:`J^\circ \le E[v_1(x_1)] \le \alpha\log Z`.

Both have the optimal step mean :math:`(I + P A / \alpha)^{-1} (\mu + P g / \alpha)`, affine again; the soft-optimal
kernel (theory 5) also has another covariance, ``C``. Steps without noise (``P = 0``) stay at the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from difftilt.core.codec import VectorCodec
from difftilt.core.gaussian_step import GaussianStep, GaussianSteps
from difftilt.core.policy import Policy
from difftilt.core.registry import register
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.problems.exact_value import FunctionValue
from difftilt.types import Condition, Float, Tensor

Matrix = Float[Tensor, "d d"]
Vector = Float[Tensor, " d"]


@dataclass(frozen=True)
class Quadratic:
    r""":math:`-\tfrac12 x^\top A x + g^\top x + h`: a reward or a value, in reward units."""

    curvature: Matrix
    """``A``, symmetric."""
    slope: Vector
    """``g``."""
    height: Float[Tensor, ""]
    """``h``."""

    @classmethod
    def reward(cls, curvature: Matrix, centre: Vector, slope: Vector) -> Quadratic:
        """Equation (1)."""
        pull = curvature @ centre
        return cls(curvature, pull + slope, -0.5 * centre @ pull)

    def __call__(self, designs: Sequence[np.ndarray] | Tensor) -> Float[Tensor, " B"]:
        """Values of designs (vectors) or of states ``[B, d]``; differentiable in the latter."""
        x = designs if isinstance(designs, Tensor) else torch.from_numpy(np.stack(designs))
        x = x.to(self.slope.dtype)
        return -0.5 * ((x @ self.curvature) * x).sum(-1) + x @ self.slope + self.height

    def on_probabilities(self, p: Float[Tensor, "B d"]) -> Float[Tensor, " B"]:
        """The same: states are their own relaxation."""
        return self(p)

    def expectation(self, mean: Vector, covariance: Matrix) -> Float[Tensor, ""]:
        """Mean over ``N(mean, covariance)``."""
        return self(mean[None])[0] - 0.5 * (self.curvature * covariance).sum()

    def after(self, gain: Matrix, shift: Vector) -> Quadratic:
        """As a function of ``x``, where it was one of ``gain @ x + shift``."""
        slope = gain.T @ (self.slope - self.curvature @ shift)
        return Quadratic(gain.T @ self.curvature @ gain, slope, self(shift[None])[0])

    def tilt(self, noise: Matrix, alpha: float) -> tuple[Matrix, Matrix, Vector]:
        r"""``N(mu, noise)`` tilted by ``exp(self / alpha)``.

        Returns:
            Its covariance ``C``, and ``F, f`` of its mean ``F mu + f``.

        Raises:
            ConfigError: ``alpha <= 0``.
            UnsupportedError: the reward grows faster than the Gaussian decays, so that Z is infinite.
        """
        if alpha <= 0:
            raise ConfigError(f"expected alpha > 0; got {alpha}; use a small positive temperature")
        eye = torch.eye(len(noise), dtype=noise.dtype)
        matrix = eye + noise @ self.curvature / alpha
        if torch.linalg.eigvals(matrix.detach()).real.min() <= 0:
            raise UnsupportedError(
                f"expected E exp(r / alpha) to be finite; got alpha = {alpha}, too small for a reward that curves "
                "upwards; raise alpha"
            )
        gain = torch.linalg.solve(matrix, eye)
        covariance = gain @ noise
        return 0.5 * (covariance + covariance.T), gain, covariance @ self.slope / alpha

    def before(self, noise: Matrix, alpha: float, *, soft: bool) -> Quadratic:
        """Equation (2) as a function of the step's mean; ``soft`` chooses the soft value or the class optimum."""
        _, gain, shift = self.tilt(noise, alpha)
        curvature = self.curvature @ gain
        loss = -0.5 * alpha * torch.logdet(gain) if soft else 0.5 * (noise * self.curvature).sum()
        return Quadratic(
            0.5 * (curvature + curvature.T), gain.T @ self.slope, self.height + 0.5 * self.slope @ shift - loss
        )


@dataclass(frozen=True)
class Chain:
    """An affine Gaussian chain of ``K`` steps from a centred :math:`x_1`, and its exact answers."""

    gain: Float[Tensor, "K d d"]
    """``M``."""
    shift: Float[Tensor, "K d"]
    """``u``."""
    noise: Float[Tensor, "K d d"]
    """``P``."""
    prior: Matrix
    """Covariance of :math:`x_1`."""

    @classmethod
    def read(cls, policy: Policy) -> Chain:
        """The chain that ``policy`` runs. Gradient flows to the policy's parameters.

        Raises:
            UnsupportedError: the policy is not over vectors, or a step is not affine Gaussian.
        """
        if not isinstance(policy.process, GaussianSteps) or len(policy.event_shape) != 1:
            raise UnsupportedError(
                f"expected a Gaussian or flow process over vectors; got {type(policy.process).__name__} over "
                f"{policy.event_shape}; use problems.enumerated for tokens"
            )
        eye = torch.eye(policy.event_shape[0], dtype=torch.float64)
        probes = torch.cat([torch.zeros_like(eye[:1]), eye, 3 * eye.sum(0, keepdim=True)])
        rows = []
        for t, s in zip(policy.grid[:-1], policy.grid[1:], strict=True):
            law = cast(GaussianStep, policy.step(probes, t, s))
            gain, shift = (law.mean[1:-1] - law.mean[0]).T, law.mean[0]
            if not torch.allclose(law.mean[-1], gain @ probes[-1] + shift, rtol=1e-5, atol=1e-5):
                raise UnsupportedError(
                    f"expected step means affine in x_t; got a bent one at t = {t.item():.3g}; use an affine denoiser"
                )
            rows.append((gain, shift, law.std[0] ** 2 * eye))
        gain, shift, noise = (torch.stack(part) for part in zip(*rows, strict=True))
        return cls(gain, shift, noise, policy.process.prior_std**2 * eye)

    def marginals(self) -> tuple[Float[Tensor, "K1 d"], Float[Tensor, "K1 d d"]]:
        """Means and covariances at the grid's times, noisiest first; the last one is the law of :math:`x_0`."""
        means, covariances = [torch.zeros_like(self.prior[0])], [self.prior]
        for gain, shift, noise in zip(self.gain, self.shift, self.noise, strict=True):
            means.append(gain @ means[-1] + shift)
            covariances.append(gain @ covariances[-1] @ gain.T + noise)
        return torch.stack(means), torch.stack(covariances)

    def values(self, reward: Quadratic, alpha: float, *, soft: bool = True) -> list[Quadratic]:
        """:math:`v_t` at the grid's times, noisiest first; with ``soft=False`` the best J to go in the class."""
        values = [reward]
        for gain, shift, noise in zip(self.gain.flip(0), self.shift.flip(0), self.noise.flip(0), strict=True):
            values.insert(0, values[0].before(noise, alpha, soft=soft).after(gain, shift))
        return values

    def optimum(self, reward: Quadratic, alpha: float, *, soft: bool = True) -> Chain:
        """The soft-optimal kernels (theory 5), whose law is (2)*; with ``soft=False`` the best chain in the class."""
        values = self.values(reward, alpha, soft=soft)[1:]
        parts = [value.tilt(noise, alpha) for value, noise in zip(values, self.noise, strict=True)]
        return replace(
            self,
            gain=torch.stack([tilt @ gain for (_, tilt, _), gain in zip(parts, self.gain, strict=True)]),
            shift=torch.stack([tilt @ u + f for (_, tilt, f), u in zip(parts, self.shift, strict=True)]),
            noise=torch.stack([covariance for covariance, _, _ in parts]) if soft else self.noise,
        )

    def expected_value(self, reward: Quadratic, alpha: float, *, soft: bool = True) -> Float[Tensor, ""]:
        r""":math:`E[v_1(x_1)]`, the best J of all kernels; with ``soft=False`` the class optimum :math:`J^\circ`."""
        return self.values(reward, alpha, soft=soft)[0].expectation(torch.zeros_like(self.prior[0]), self.prior)

    def log_z(self, reward: Quadratic, alpha: float) -> Float[Tensor, ""]:
        r""":math:`\log E[e^{r(x_0)/\alpha}]` under the chain's own law."""
        means, covariances = self.marginals()
        return reward.before(covariances[-1], alpha, soft=True)(means[-1:])[0] / alpha

    def tilted(self, reward: Quadratic, alpha: float) -> tuple[Vector, Matrix]:
        """Mean and covariance of the tilted law (theory 2) of the chain's own law."""
        means, covariances = self.marginals()
        covariance, gain, shift = reward.tilt(covariances[-1], alpha)
        return gain @ means[-1] + shift, covariance

    def kl(self, other: Chain) -> Float[Tensor, ""]:
        """Path KL(self || other), nats: expected sum of step KLs; infinite if a noiseless step differs."""
        means, covariances = self.marginals()
        total = torch.zeros_like(means[0, 0])
        for k, (mine, theirs) in enumerate(zip(self.noise, other.noise, strict=True)):
            gain, shift = self.gain[k] - other.gain[k], self.shift[k] - other.shift[k]
            if (mine == 0).all() or (theirs == 0).all():
                same = (mine == theirs).all() and (gain == 0).all() and (shift == 0).all()
                total = total if same else total + torch.inf
                continue
            offset = gain @ means[k] + shift
            total = total + _kl(mine, theirs, gain @ covariances[k] @ gain.T + torch.outer(offset, offset))
        return total

    def law_kl(self, mean: Vector, covariance: Matrix) -> Float[Tensor, ""]:
        r""":math:`KL(p(x_0) \| N(mean, covariance))`, nats, e.g. of a class optimum to the tilted law."""
        means, covariances = self.marginals()
        return _kl(covariances[-1], covariance, torch.outer(means[-1] - mean, means[-1] - mean))

    def objective(self, reward: Quadratic, alpha: float, reference: Chain) -> Float[Tensor, ""]:
        """J of theory (1), reward units."""
        means, covariances = self.marginals()
        return reward.expectation(means[-1], covariances[-1]) - alpha * self.kl(reference)


def _kl(mine: Matrix, theirs: Matrix, spread: Matrix) -> Float[Tensor, ""]:
    """KL of two Gaussians whose means differ by an offset of second moment ``spread``, nats."""
    ratio = torch.linalg.solve(theirs, mine)
    return 0.5 * (torch.linalg.solve(theirs, spread).trace() + ratio.trace() - len(mine) - torch.logdet(ratio))


@register("denoiser", "affine")
class AffineDenoiser(nn.Module):
    """One affine map per step: every affine policy on a grid has this form.

    Args:
        size: dimension ``d`` of a state.
        grid: the times of the chain, as a list; other times raise :class:`~difftilt.errors.UnsupportedError`.
    """

    def __init__(self, size: int, grid: list[float]) -> None:
        super().__init__()
        self.size, self.grid = size, list(grid)
        self.weight = nn.Parameter(torch.zeros(len(grid) - 1, size, size, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(len(grid) - 1, size, dtype=torch.float64))

    def forward(self, x_t: Float[Tensor, "B d"], t: Tensor, cond: Condition | None = None) -> Float[Tensor, "B d"]:
        """The step's own ``weight @ x_t + bias``."""
        distance, step = (t[:, None] - t.new_tensor(self.grid[:-1])).abs().min(-1)
        if distance.max() > 1e-6:
            other = t[distance.argmax()].item()
            raise UnsupportedError(
                f"expected times of the grid, where an affine denoiser is defined; got {other:.4g}; make the problem "
                "on the grid you run"
            )
        return (torch.einsum("bij,bj->bi", self.weight[step], x_t.double()) + self.bias[step]).to(x_t.dtype)

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"size": self.size, "grid": self.grid}


@dataclass(frozen=True)
class LinearGaussian:
    """Gaussian data seen by one process on one grid."""

    mean: Vector
    """``m``."""
    covariance: Matrix
    """``S``."""
    process: GaussianSteps
    """The mathematics of a step."""
    grid: Float[Tensor, " K1"]
    """Times of the chain, from 1 to 0."""

    def pretrained(self) -> Policy:
        r"""The policy whose denoiser is exact, told as the process's kind of prediction.

        .. math:: E[x_0 | x_t] = m + \alpha_t S (\alpha_t^2 S + \sigma_t^2 I)^{-1} (x_t - \alpha_t m)
        """
        eye = torch.eye(len(self.mean), dtype=torch.float64)
        weight, bias = [], []
        for t in self.grid[:-1]:
            alpha, sigma = self.process.schedule.scales(t)
            gain = alpha * torch.linalg.solve(alpha**2 * self.covariance + sigma**2 * eye, self.covariance)
            shift = self.mean - alpha * gain @ self.mean
            on_x, on_x_0 = {
                "x_0": (0.0, 1.0),
                "epsilon": (1 / sigma, -alpha / sigma),
                "v": (alpha / sigma, -(alpha**2) / sigma - sigma),
                "velocity": (1 / sigma, -alpha / sigma - 1),
            }[self.process.prediction]
            weight.append(on_x * eye + on_x_0 * gain)
            bias.append(on_x_0 * shift)
        return self._policy(torch.stack(weight), torch.stack(bias))

    @torch.no_grad()
    def value(self, reward: Quadratic, alpha: float) -> FunctionValue:
        """Soft values of the pretrained chain, to steer by."""
        return FunctionValue(self.grid, Chain.read(self.pretrained()).values(reward, alpha))

    def policy(self, chain: Chain) -> Policy:
        """The policy that runs the means of ``chain`` with the process's own variance.

        Steps equal to the pretrained ones get its very parameters, so that noiseless steps stay free of KL.
        """
        base = self.pretrained()
        weight, bias = (value.detach() for value in cast(AffineDenoiser, base.denoiser).parameters())
        own, moved = Chain.read(base), Chain.read(self._policy(weight, bias + 1))
        scale = (moved.shift - own.shift)[:, :1].detach()  # of the prediction in the mean, alike in every coordinate
        scale = scale.where(scale != 0, 1.0)
        gain, shift = (chain.gain - own.gain).detach(), (chain.shift - own.shift).detach()
        return self._policy(weight + gain / scale[..., None], bias + shift / scale)

    def _policy(self, weight: Float[Tensor, "K d d"], bias: Float[Tensor, "K d"]) -> Policy:
        denoiser = AffineDenoiser(len(self.mean), self.grid.tolist())
        with torch.no_grad():
            denoiser.weight.copy_(weight)
            denoiser.bias.copy_(bias)
        return Policy(denoiser, self.process, VectorCodec(), (len(self.mean),), grid=self.grid)
