r"""The law of one Gaussian step, :math:`N(\mu, \sigma^2 I)`: what Gaussian and flow processes share.

.. math::
    \log p(x_s) &= -\frac{|x_s - \mu|^2}{2 \sigma^2} - d \log \sigma - \frac d2 \log 2\pi             \qquad (1) \\
    KL &= \frac{|\mu - \mu'|^2}{2 \sigma'^2}
        + d \Big[ \frac12 \Big( \frac{\sigma^2}{\sigma'^2} - 1 \Big) - \log \frac{\sigma}{\sigma'} \Big]     \qquad (2)

Steps of one process have one :math:`\sigma`: (2) is its first term.
"""

from __future__ import annotations

import math

import torch

from difftilt.core.noise import Schedule
from difftilt.core.process import Process
from difftilt.core.transition import Transition
from difftilt.errors import NoDensityError, ShapeError
from difftilt.types import Float, Tensor


class GaussianStep(Transition):
    """The law ``N(mean, std^2 I)`` of one step, row by row.

    Args:
        mean: ``[B, *event]``, float32 or float64.
        std: one number, or one per row; 0 where the step adds no noise.
    """

    def __init__(self, mean: Float[Tensor, "B *event"], std: Float[Tensor, "..."]) -> None:
        self.mean, self.std = mean, std.double().expand(mean.shape[0])

    @property
    def has_density(self) -> bool:
        """Whether every row adds noise.

        Raises:
            NoDensityError: some rows do and some do not, so that neither answer serves the batch.
        """
        silent = int((self.std == 0).sum())
        if 0 < silent < len(self.std):
            raise NoDensityError(
                f"expected rows that all add noise, or none; got {silent} of {len(self.std)} rows without; "
                "evaluate the rows with std == 0 apart from the others, or set sigma_min > 0"
            )
        return silent == 0

    def rsample(self, rng: torch.Generator) -> Float[Tensor, "B *event"]:
        """``mean + std * noise``: exact pathwise gradient; the mean itself where there is no noise."""
        noise = torch.randn(self.mean.shape, generator=rng, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + per_row(self.std, noise) * noise

    @torch.no_grad()
    def sample(self, rng: torch.Generator) -> Float[Tensor, "B *event"]:
        """The same draw as :meth:`rsample`, outside any graph."""
        return self.rsample(rng)

    def log_prob(self, x_s: Float[Tensor, "B *event"]) -> Float[Tensor, " B"]:
        """Log-density of ``x_s`` as it is stored, nats, summed over the event in float64.

        Raises:
            NoDensityError: the step adds no noise.
            ShapeError: ``x_s`` has another shape than the mean.
        """
        if x_s.shape != self.mean.shape:
            raise ShapeError(
                f"expected x_s of shape {tuple(self.mean.shape)}; got {tuple(x_s.shape)}; pass one state per chain"
            )
        if not self.has_density:
            raise NoDensityError(
                "expected a step with noise; got std 0 (DDIM with eta = 0, or the last step); skip steps whose "
                "has_density is False, or set sigma_min > 0"
            )
        normaliser = self._size * (self.std.log() + 0.5 * math.log(2 * math.pi))
        return -_squared_distance(x_s, self.mean) / (2 * self.std**2) - normaliser

    def kl(self, other: GaussianStep) -> Float[Tensor, " B"]:
        r"""Equation (2), nats, float64.

        Rows without noise: 0 if the means are equal to the last digit, else infinite.
        """
        distance = _squared_distance(self.mean, other.mean)
        dirac = (self.std == 0) | (other.std == 0)
        mine, theirs = self.std.where(~dirac, 1.0), other.std.where(~dirac, 1.0)
        log_ratio = (mine / theirs).log()
        smooth = distance / (2 * theirs**2) + self._size * (0.5 * torch.expm1(2 * log_ratio) - log_ratio)
        same = (distance == 0) & (self.std == other.std)
        return torch.where(dirac, torch.where(same, 0.0, torch.inf).to(smooth), smooth)

    @property
    def _size(self) -> int:
        return self.mean[0].numel()


class GaussianSteps(Process):
    r"""A process that noises by :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon`, with Gaussian steps."""

    schedule: Schedule
    """Noise scales."""
    prediction: str
    """What the network predicts."""
    sigma_min: float
    """Floor under the std of every step, in units of the state."""
    prior_std: float
    """Std of :math:`x_1`."""
    full_noise: bool
    """Whether steps have the noise of the posterior of the noising law, or more: then means move by ``std^2`` times a
    change of score."""

    def prior(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Draw from ``N(0, prior_std^2 I)``."""
        return self.prior_std * torch.randn(shape, generator=rng, device=rng.device)

    def corrupt(self, x_0: Float[Tensor, "B *event"], t: Tensor, rng: torch.Generator) -> Float[Tensor, "B *event"]:
        r""":math:`\alpha_t x_0 + \sigma_t \epsilon`."""
        alpha, sigma = (per_row(scale, x_0) for scale in self.schedule.scales(t))
        return alpha * x_0 + sigma * torch.randn(x_0.shape, generator=rng, device=x_0.device, dtype=x_0.dtype)

    def noiseless(self, t: Tensor, s: Tensor) -> bool:
        """Whether the step has std 0, as deterministic steps and the last one have with ``sigma_min = 0``."""
        anywhere = torch.zeros(1, 1, device=t.device)
        step = self.transition(anywhere, anywhere, t, s)
        assert isinstance(step, GaussianStep)
        return not step.has_density

    def _linear_step(
        self,
        x_t: Float[Tensor, "B *event"],
        prediction: Float[Tensor, "B *event"],
        state: Tensor,
        network: Tensor,
        std: Tensor,
    ) -> GaussianStep:
        """The mean ``state * x_t + network * prediction``, in at least float32, and ``std`` over its floor."""
        dtype = torch.promote_types(torch.promote_types(x_t.dtype, prediction.dtype), torch.float32)
        x_t, prediction = x_t.to(dtype), prediction.to(dtype)
        mean = per_row(state, x_t) * x_t + per_row(network, x_t) * prediction
        return GaussianStep(mean, std.clamp(min=self.sigma_min))

    def _noise_in(
        self, x_0: Float[Tensor, "B *event"], x_t: Float[Tensor, "B *event"], t: Tensor
    ) -> Float[Tensor, "B *event"]:
        r""":math:`\epsilon`, recovered from ``x_t``; 0 where there is none, at ``t = 0``."""
        alpha, sigma = (per_row(scale, x_0) for scale in self.schedule.scales(t))
        return (x_t - alpha * x_0) / sigma.clamp(min=torch.finfo(sigma.dtype).tiny)


def per_row(scale: Tensor, x: Tensor) -> Tensor:
    """A scalar or ``[B]`` scale, shaped and typed to multiply ``x``."""
    return scale.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


def _squared_distance(x: Tensor, y: Tensor) -> Float[Tensor, " B"]:
    return (x - y).square().flatten(1).sum(-1, dtype=torch.float64)
