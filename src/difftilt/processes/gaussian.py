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

**Steps without noise** (:math:`\eta = 0`, and the last step, :math:`\sigma_0 = 0`) have no density: ``log_prob``
raises, ``kl`` is 0 where the means agree and infinite elsewhere. ``sigma_min > 0`` puts a floor under :math:`\sigma`
instead, which gives every step a density and charges (3) for it.

References:
    Ho et al. 2020 (DDPM, eq. 6-7), https://arxiv.org/abs/2006.11239; Song, Meng, Ermon 2021 (DDIM, eq. 12 and 16),
    https://arxiv.org/abs/2010.02502; Song et al. 2021 (VP and VE, eq. 30-33), https://arxiv.org/abs/2011.13456;
    Salimans and Ho 2022 (v), https://arxiv.org/abs/2202.00512.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch

from difftilt.core.process import Process
from difftilt.core.registry import construct, describe, register
from difftilt.core.transition import Transition
from difftilt.errors import ConfigError, NoDensityError, ShapeError, UnsupportedError, nearest
from difftilt.types import Float, Tensor

VARIANCES = ("fixed_small", "fixed_large")
PREDICTIONS = ("epsilon", "x_0", "v")


class Schedule(ABC):
    """Noise scales over time."""

    last: float = 1.0
    """The latest time from which DDPM's step to ``t = 0`` adds no noise (Ho et al., algorithm 2: the last step)."""

    @abstractmethod
    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\alpha_t, \sigma_t` in float64, in the shape of ``t``."""

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return asdict(self)  # ty: ignore


@register("schedule", "vp")
@dataclass(frozen=True)
class VP(Schedule):
    r"""Linear beta: :math:`\log \alpha_t = -\tfrac12 \int_0^t \beta`, :math:`\sigma_t^2 = 1 - \alpha_t^2`."""

    beta_min: float = 0.1
    """Noise rate at ``t = 0``, per unit time; Song et al.: 0.1."""
    beta_max: float = 20.0
    """Noise rate at ``t = 1``, per unit time; Song et al.: 20."""

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        log_alpha = -0.5 * t.double() * (self.beta_min + 0.5 * t.double() * (self.beta_max - self.beta_min))
        return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()


@register("schedule", "cosine")
@dataclass(frozen=True)
class Cosine(Schedule):
    r""":math:`\alpha_t = \cos\theta_t, \sigma_t = \sin\theta_t`, with :math:`\theta_t` proportional to ``t``."""

    alpha_end: float = 1e-3
    r""":math:`\alpha_1`; 0 is zero terminal signal, which an epsilon prediction cannot invert."""

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        angle = t.double() * math.acos(self.alpha_end)
        return angle.cos(), angle.sin()


@register("schedule", "ve")
@dataclass(frozen=True)
class VE(Schedule):
    r"""Geometric: :math:`\alpha_t = 1, \sigma_t^2 = \sigma_{low}^2 ((\sigma_{high}/\sigma_{low})^{2t} - 1)`."""

    sigma_low: float = 0.01
    """Scale of the smallest noise, in units of the data; Song et al.: 0.01."""
    sigma_high: float = 50.0
    """Scale of the largest noise, in units of the data; Song et al.: about the largest distance between examples."""

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        sigma = self.sigma_low * torch.expm1(2 * t.double() * math.log(self.sigma_high / self.sigma_low)).sqrt()
        return torch.ones_like(sigma), sigma


@register("schedule", "table")
class Table(Schedule):
    r"""A table of :math:`\alpha_i^2` at integer timesteps :math:`i = 0 \dots N - 1`, placed at ``t = (i + 1) / N``.

    Other times belong to the next timestep above, so that ``t ~ U(0, 1)`` draws all timesteps alike; a thousandth of
    a timestep is left for the rounding of float32 times.

    Args:
        alphas_cumprod: :math:`\alpha_i^2`, decreasing.
        final: :math:`\alpha_0^2` of ``t = 0``: 1, or ``alphas_cumprod[0]``.
    """

    def __init__(self, alphas_cumprod: list[float], final: float = 1.0) -> None:
        self.alphas_cumprod, self.final = list(alphas_cumprod), final
        self.last = 1.001 / len(self.alphas_cumprod)
        self._table = torch.tensor([final, *self.alphas_cumprod], dtype=torch.float64)

    def timestep(self, t: Tensor) -> Tensor:
        """The integer timestep of ``t``, which the network was trained to be told; -1 at ``t = 0``."""
        return (t.double() * len(self.alphas_cumprod) - 1e-3).ceil().long() - 1

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        alpha_squared = self._table.to(t.device)[self.timestep(t) + 1]
        return alpha_squared.sqrt(), (1 - alpha_squared).sqrt()

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"alphas_cumprod": self.alphas_cumprod, "final": self.final}


@register("process", "gaussian")
class Gaussian(Process):
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
    ) -> None:
        for name, known, what in ((kernel, ("ddpm", "ddim"), "kernel"), (variance, VARIANCES, "variance"),
                                  (prediction, PREDICTIONS, "prediction")):  # fmt: skip
            if name not in known:
                raise nearest(name, known, what=what)
        if not 0 <= eta <= 1 or sigma_min < 0:
            raise ConfigError(f"expected eta in [0, 1] and sigma_min >= 0; got {eta} and {sigma_min}; correct them")
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
        self.sigma_min = sigma_min
        alpha, sigma = (scale.item() for scale in self.schedule.scales(torch.ones((), dtype=torch.float64)))
        if prediction == "epsilon" and alpha < 1e-6 * sigma:
            raise UnsupportedError(
                f"expected some signal at t = 1 for an epsilon prediction; got alpha_1 = {alpha:.1e} (zero terminal "
                "SNR), where x_0 cannot be recovered; use a model that predicts v or x_0"
            )
        self.prior_std = sigma if prior_std is None else prior_std
        self.memoryless = eta == 1 and alpha**2 <= 0.01 * sigma**2

    def prior(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Draw from ``N(0, prior_std^2 I)``."""
        return self.prior_std * torch.randn(shape, generator=rng, device=rng.device)

    def corrupt(self, x_0: Float[Tensor, "B *event"], t: Tensor, rng: torch.Generator) -> Float[Tensor, "B *event"]:
        r""":math:`\alpha_t x_0 + \sigma_t \epsilon`."""
        alpha, sigma = (_per_row(scale, x_0) for scale in self.schedule.scales(t))
        return alpha * x_0 + sigma * torch.randn(x_0.shape, generator=rng, device=x_0.device, dtype=x_0.dtype)

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
        dtype = torch.promote_types(torch.promote_types(x_t.dtype, prediction.dtype), torch.float32)
        x_t, prediction = x_t.to(dtype), prediction.to(dtype)
        state, network = alpha * a + direction * c, alpha * b + direction * d
        mean = _per_row(state, x_t) * x_t + _per_row(network, x_t) * prediction
        return GaussianStep(mean, std.clamp(min=self.sigma_min))

    def noiseless(self, t: Tensor, s: Tensor) -> bool:
        """Whether the step has std 0: DDIM with ``eta = 0``, or the last step, both with ``sigma_min = 0``."""
        anywhere = torch.zeros(1, 1, device=t.device)
        return not self.transition(anywhere, anywhere, t, s).has_density

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
        alpha, sigma = (_per_row(scale, x_0) for scale in self.schedule.scales(t))
        noise = (x_t - alpha * x_0) / sigma.clamp(min=torch.finfo(sigma.dtype).tiny)
        target = {"epsilon": noise, "x_0": x_0, "v": alpha * noise - sigma * x_0}[self.prediction]
        return (prediction - target).square().flatten(1).mean(-1)

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        names = ("kernel", "eta", "variance", "prediction", "sigma_min", "prior_std")
        return {"schedule": describe(self.schedule), **{name: getattr(self, name) for name in names}}


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
        return self.mean + _per_row(self.std, noise) * noise

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
        r"""Equation (3), nats, float64; where the stds differ, the general closed form.

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


def _per_row(scale: Tensor, x: Tensor) -> Tensor:
    """A scalar or ``[B]`` scale, shaped and typed to multiply ``x``."""
    return scale.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


def _squared_distance(x: Tensor, y: Tensor) -> Float[Tensor, " B"]:
    return (x - y).square().flatten(1).sum(-1, dtype=torch.float64)


def from_diffusers(
    config: Mapping[str, Any], steps: int, *, kernel: str = "ddim", eta: float = 1.0, sigma_min: float = 0.0
) -> tuple[Gaussian, Float[Tensor, " K1"]]:
    r"""The chain that a diffusers scheduler runs: its process and its grid. diffusers itself is not imported.

    Timestep ``i`` sits at ``t = (i + 1) / (i_max + 1)``, where ``i_max`` is the first one visited, so that the chain
    starts at ``t = 1``; ``process.schedule.timestep(t)`` gives ``i`` back for the network. A step goes to the next
    timestep visited. Differs from diffusers in: its DDIM goes to ``i - T // steps`` instead, which is another one for
    ``linspace`` and for some ``trailing`` grids.

    Args:
        config: a ``scheduler_config.json`` of the DDPM or DDIM family; missing keys take diffusers' defaults, except
            that clipping is off.
        steps: number of steps ``K``.
        kernel: ``"ddim"`` or ``"ddpm"``.
        eta: DDIM's; diffusers' own default is 0.
        sigma_min: see :class:`Gaussian`.

    Raises:
        ConfigError: an unknown name, or timesteps outside the table.
        UnsupportedError: clipping, thresholding or a learned variance, which the step does not have.
    """
    total = config.get("num_train_timesteps", 1000)
    timesteps = _timesteps(config, total, steps)
    if config.get("clip_sample") or config.get("thresholding"):
        raise UnsupportedError(
            "expected clip_sample and thresholding off; got a scheduler that clips its x_0 estimate; switch both off"
        )
    # DDPM always ends at alpha = 1 and DDIM never reads variance_type; the "log" kind is fixed_small in other words.
    variance = config.get("variance_type", "fixed_small").removesuffix("_log") if kernel == "ddpm" else "fixed_small"
    if variance not in VARIANCES or config.get("variance_type") == "fixed_large_log":
        raise UnsupportedError(
            f"expected variance_type fixed_small or fixed_large; got '{config['variance_type']}'; choose one of them"
        )
    kinds = {"epsilon": "epsilon", "sample": "x_0", "v_prediction": "v"}
    kind = config.get("prediction_type", "epsilon")
    if kind not in kinds:
        raise nearest(kind, kinds, what="prediction_type")
    table = torch.cumprod(1 - _betas(config, total), dim=0).tolist()
    final = 1.0 if kernel == "ddpm" or config.get("set_alpha_to_one", True) else table[0]
    schedule = Table(table[: timesteps[0] + 1], final)
    sampler = {"kernel": kernel, "eta": eta, "variance": variance, "sigma_min": sigma_min}
    grid = torch.tensor([i + 1 for i in timesteps] + [0], dtype=torch.float64) / (timesteps[0] + 1)
    return Gaussian(schedule, prediction=kinds[kind], prior_std=1.0, **sampler), grid


def _timesteps(config: Mapping[str, Any], total: int, steps: int) -> list[int]:
    """Integer timesteps visited, largest first (Lin et al. 2023, table 2, https://arxiv.org/abs/2305.08891)."""
    spacing = config.get("timestep_spacing", "leading")
    if not 1 <= steps <= total:
        raise ConfigError(f"expected 1 to {total} steps; got {steps}; the table has no more timesteps")
    if spacing == "leading":
        visited = np.arange(steps)[::-1] * (total // steps) + config.get("steps_offset", 0)
    elif spacing == "linspace":
        visited = np.linspace(0, total - 1, steps).round()[::-1]
    elif spacing == "trailing":
        visited = np.arange(total, 0, -total / steps)[:steps].round() - 1
    else:
        raise nearest(spacing, ("leading", "linspace", "trailing"), what="timestep_spacing")
    if visited[0] >= total:
        raise ConfigError(f"expected timesteps below {total}; got {int(visited[0])}; lower steps_offset")
    return [int(i) for i in visited]


def _betas(config: Mapping[str, Any], total: int) -> Float[Tensor, " T"]:
    """Betas in float32, the arithmetic of the tables that models were trained with."""
    name, start, end = (
        config.get(key, default)
        for key, default in (("beta_schedule", "linear"), ("beta_start", 0.0001), ("beta_end", 0.02))
    )
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float32)
    elif name == "linear":
        betas = torch.linspace(start, end, total, dtype=torch.float32)
    elif name == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, total, dtype=torch.float32) ** 2
    elif name == "sigmoid":
        betas = torch.sigmoid(torch.linspace(-6, 6, total)) * (end - start) + start
    elif name == "squaredcos_cap_v2":
        bar = [math.cos((i / total + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(total + 1)]
        betas = torch.tensor([min(1 - bar[i + 1] / bar[i], 0.999) for i in range(total)], dtype=torch.float32)
    else:
        raise nearest(name, ("linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2"), what="beta_schedule")
    if config.get("rescale_betas_zero_snr"):
        root = torch.cumprod(1 - betas, dim=0).sqrt()
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        betas = 1 - torch.cat([root[:1] ** 2, root[1:] ** 2 / root[:-1] ** 2])
    return betas
