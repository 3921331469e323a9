r"""Gaussian diffusion (VP and VE) as a discrete-time chain of K steps: DDPM, and DDIM with any eta.

Forward: :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon`, with :math:`\alpha_0 = 1, \sigma_0 = 0` unless a table says
otherwise. The network's prediction (:math:`\epsilon`, :math:`x_0`, or :math:`v = \alpha_t \epsilon - \sigma_t x_0`)
and ``x_t`` are two linear equations for :math:`\hat x_0` and :math:`\hat\epsilon`. With

.. math::
    \kappa = \left( \frac{\alpha_t \sigma_s}{\alpha_s \sigma_t} \right)^2, \qquad
    \sigma_{t|s}^2 = \sigma_t^2 (1 - \kappa), \qquad
    \tilde\sigma^2 = \eta^2 \sigma_s^2 (1 - \kappa)                                                    \qquad (1)

the step is :math:`N(\mu, \sigma^2 I)` with :math:`\sigma^2 = \tilde\sigma^2` and

.. math:: \mu = \alpha_s \hat x_0 + \sqrt{\sigma_s^2 - \tilde\sigma^2} \; \hat\epsilon             \qquad (2)

which for :math:`\eta = 1` is the posterior :math:`q(x_s \mid x_t, \hat x_0)` of DDPM ("fixed small" variance);
"fixed large" keeps the mean and takes :math:`\sigma^2 = \sigma_{t|s}^2`. Steps of one process differ in mean only:

.. math:: KL = \frac{ |\mu - \mu'|^2 }{ 2 \sigma^2 }                                                \qquad (3)

With ``clip`` ``c`` the estimate :math:`\hat x_0` is cut to :math:`[-c, c]` first. DDPM's :math:`\hat\epsilon` is then
that of the cut estimate (2 stays the posterior's mean), DDIM's is the network's own, as in diffusers.

**Steps without noise** (:math:`\eta = 0`, and the last step, :math:`\sigma_0 = 0`) have no density: ``log_prob``
raises, ``kl`` is 0 where the means agree and infinite elsewhere. ``sigma_min > 0`` puts a floor under :math:`\sigma`
instead, which gives every step a density and charges (3) for it.

References:
    Ho et al. 2020 (DDPM, eq. 6-7), https://arxiv.org/abs/2006.11239; Song, Meng, Ermon 2021 (DDIM, eq. 12 and 16),
    https://arxiv.org/abs/2010.02502; Salimans and Ho 2022 (v), https://arxiv.org/abs/2202.00512.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch

from difftilt.core.gaussian_step import GaussianStep, GaussianSteps, per_row
from difftilt.core.noise import Schedule
from difftilt.core.registry import construct, describe, register
from difftilt.errors import ConfigError, UnsupportedError, nearest
from difftilt.types import Float, Tensor

VARIANCES = ("fixed_small", "fixed_large")
PREDICTIONS = ("epsilon", "x_0", "v")


@register("process", "gaussian")
class Gaussian(GaussianSteps):
    r"""VP or VE diffusion with DDPM or DDIM steps.

    ``memoryless`` is true where steps carry full noise (DDPM, or DDIM with ``eta = 1``) and
    :math:`(\alpha_1 / \sigma_1)^2 \le 0.01`: then :math:`x_1` fixes at most 1 % of a unit-variance direction of
    :math:`x_0`, so a fixed prior loses at most that share of the tilt.

    Args:
        schedule: noise scales: an object, its description, or ``"vp"``, ``"cosine"``, ``"ve"`` with their defaults.
        kernel: ``"ddpm"`` or ``"ddim"``.
        eta: share of DDIM's noise, 0 (ODE-like) to 1; DDPM is ``eta = 1``.
        variance: DDPM's, ``"fixed_small"`` or ``"fixed_large"`` (see the module).
        prediction: what the network predicts: ``"epsilon"``, ``"x_0"`` or ``"v"``.
        sigma_min: floor under the std of every step, in units of the state; 0 leaves steps without noise as they are.
        prior_std: std of :math:`x_1`; :math:`\sigma_1` unless given (diffusers' pipelines start from 1).
        clip: ``c``, bound of the estimate of :math:`x_0`, in units of the state; none when not given.

    Raises:
        ConfigError: an argument is unknown or out of range.
        UnsupportedError: epsilon prediction with zero terminal signal, where :math:`\hat x_0` would divide by 0.
    """

    def __init__(
        self,
        schedule: Schedule | Mapping[str, Any] | str = "vp",
        *,
        kernel: str = "ddpm",
        eta: float = 1.0,
        variance: str = "fixed_small",
        prediction: str = "epsilon",
        sigma_min: float = 0.0,
        prior_std: float | None = None,
        clip: float | None = None,
    ) -> None:
        for name, known, what in ((kernel, ("ddpm", "ddim"), "kernel"), (variance, VARIANCES, "variance"),
                                  (prediction, PREDICTIONS, "prediction")):  # fmt: skip
            if name not in known:
                raise nearest(name, known, what=what)
        if not (0 <= eta <= 1 and 0 <= sigma_min < math.inf):
            raise ConfigError(f"expected eta in [0, 1] and sigma_min >= 0; got {eta} and {sigma_min}; correct them")
        if clip is not None and not clip > 0:
            raise ConfigError(f"expected clip above 0; got {clip}; raise it, or leave it out")
        if (kernel == "ddpm" and eta != 1) or (kernel == "ddim" and variance != "fixed_small"):
            raise ConfigError(
                f"expected eta with ddim, variance with ddpm; got eta={eta} and variance='{variance}' with {kernel}; "
                "use the other kernel"
            )
        if not isinstance(schedule, Schedule):
            spec = {"type": schedule} if isinstance(schedule, str) else dict(schedule)
            schedule = cast(Schedule, construct("schedule", spec))
        self.schedule = schedule
        self.kernel, self.eta, self.variance, self.prediction = kernel, eta, variance, prediction
        self.sigma_min, self.clip = sigma_min, clip
        alpha, sigma = (scale.item() for scale in self.schedule.scales(torch.ones((), dtype=torch.float64)))
        if prediction == "epsilon" and alpha < 1e-6 * sigma:
            raise UnsupportedError(
                f"expected some signal at t = 1 for an epsilon prediction; got alpha_1 = {alpha:.1e} (zero terminal "
                "SNR), where x_0 cannot be recovered; use a model that predicts v or x_0"
            )
        self.prior_std = sigma if prior_std is None else prior_std
        self.full_noise = eta == 1
        self.memoryless = eta == 1 and alpha**2 <= 0.01 * sigma**2

    def transition(
        self, prediction: Float[Tensor, "B *event"], x_t: Float[Tensor, "B *event"], t: Tensor, s: Tensor
    ) -> GaussianStep:
        """The kernel (2), its mean in at least float32. Gradient flows to ``prediction`` and ``x_t``."""
        alpha, sigma = self.schedule.scales(s)
        alpha_t, sigma_t = self.schedule.scales(t)
        kappa = (alpha_t * sigma / (alpha * sigma_t)).square()
        direction = sigma * (1 - self.eta**2 + self.eta**2 * kappa).sqrt()
        if self.variance == "fixed_large":
            std = sigma_t * (1 - kappa).sqrt() * ~((s == 0) & (t <= self.schedule.last))
        else:
            std = self.eta * sigma * (1 - kappa).sqrt()
        (a, b), (c, d) = self._solve(alpha_t, sigma_t)
        state, network = alpha * a + direction * c, alpha * b + direction * d
        step = self._linear_step(x_t, prediction, state, network, std)
        if self.clip is not None:
            estimate = self._estimate(prediction, x_t, t)
            pull = alpha - direction * alpha_t / sigma_t if self.kernel == "ddpm" else alpha
            step.mean = step.mean + per_row(pull, step.mean) * (self._cut(estimate) - estimate)
        return step

    def denoised(
        self, prediction: Float[Tensor, "B *event"], x_t: Float[Tensor, "B *event"], t: Tensor
    ) -> Float[Tensor, "B *event"]:
        r""":math:`\hat x_0`, cut where there is a clip."""
        return self._cut(self._estimate(prediction, x_t, t))

    def _estimate(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The estimate of the data as the network gives it."""
        (state, network), _ = self._solve(*self.schedule.scales(t))
        return per_row(state, x_t) * x_t + per_row(network, prediction) * prediction

    def _cut(self, x_0: Tensor) -> Tensor:
        return x_0 if self.clip is None else x_0.clamp(-self.clip, self.clip)

    def _solve(self, alpha: Tensor, sigma: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        r"""Coefficients of ``(x_t, prediction)`` in :math:`\hat x_0` and in :math:`\hat\epsilon`."""
        zero, one, norm = torch.zeros_like(alpha), torch.ones_like(alpha), alpha**2 + sigma**2
        if self.prediction == "epsilon":
            return (1 / alpha, -sigma / alpha), (zero, one)
        if self.prediction == "x_0":
            return (zero, one), (1 / sigma, -alpha / sigma)
        return (alpha / norm, -sigma / norm), (sigma / norm, alpha / norm)

    def denoising_loss(
        self,
        prediction: Float[Tensor, "B *event"],
        x_0: Float[Tensor, "B *event"],
        x_t: Float[Tensor, "B *event"],
        t: Tensor,
    ) -> Float[Tensor, " B"]:
        """Squared error of the prediction, mean over the event; minimised by the conditional mean given ``x_t``.

        The noise is recovered from ``x_t``; it is taken as 0 where there is none, at ``t = 0``.
        """
        alpha, sigma = (per_row(scale, x_0) for scale in self.schedule.scales(t))
        noise = self._noise_in(x_0, x_t, t)
        target = {"epsilon": noise, "x_0": x_0, "v": alpha * noise - sigma * x_0}[self.prediction]
        return (prediction - target).square().flatten(1).mean(-1)

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        names = ("kernel", "eta", "variance", "prediction", "sigma_min", "prior_std", "clip")
        return {"schedule": describe(self.schedule), **{name: getattr(self, name) for name in names}}
