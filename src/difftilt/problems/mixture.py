r"""Mixtures of Gaussians: data with several modes whose exact denoiser is known, and a small net that corrects it.

Data :math:`x_0 \sim \sum_j \omega_j N(m_j, s_j^2 I)`. Under :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon` the
posterior is a mixture again; with :math:`\tau_j^2 = \alpha_t^2 s_j^2 + \sigma_t^2`

.. math::
    \gamma_j &\propto \omega_j\, N(x_t;\; \alpha_t m_j,\; \tau_j^2 I)                                    \qquad (1) \\
    E[x_0 \mid x_t] &= \sum_j \gamma_j \left( m_j + \frac{\alpha_t s_j^2}{\tau_j^2} (x_t - \alpha_t m_j) \right)
                                                                                                      \qquad (2)

told as the process's kind of prediction. The exact answers of a chain on the line, whatever its denoiser, are in
:mod:`difftilt.problems.line`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from difftilt.core.codec import VectorCodec
from difftilt.core.noise import Schedule
from difftilt.core.policy import Policy
from difftilt.core.registry import construct, describe, register
from difftilt.processes.gaussian import Gaussian
from difftilt.rng import seeded_initialisation
from difftilt.types import Condition, Float, Tensor


@register("denoiser", "mixture")
class MixtureDenoiser(nn.Module):
    r"""Equation (2) plus a small network of the state and the time, 0 at the start.

    Args:
        weights: :math:`\omega_j`, normalised here.
        means: :math:`m_j`, one list of ``d`` numbers each.
        stds: :math:`s_j`.
        schedule: of the process, or its description.
        prediction: what is told, ``"epsilon"``, ``"x_0"`` or ``"v"``.
        hidden: units of each of two hidden layers; 0 for no network.
    """

    def __init__(
        self,
        weights: Sequence[float],
        means: Sequence[Sequence[float]],
        stds: Sequence[float],
        schedule: Schedule | Mapping[str, Any],
        prediction: str,
        hidden: int = 0,
    ) -> None:
        super().__init__()
        self.weights, self.stds = list(weights), list(stds)
        self.means = [list(mean) for mean in means]
        self.schedule = schedule if isinstance(schedule, Schedule) else construct("schedule", dict(schedule))
        self.prediction, self.hidden = prediction, hidden
        size = len(self.means[0])
        if hidden:
            layers = nn.Linear(size + 1, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
            last = nn.Linear(hidden, size)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.network = nn.Sequential(*layers, last)

    def posterior_mean(
        self, x_t: Float[Tensor, "B d"], alpha: Float[Tensor, " B"], sigma: Float[Tensor, " B"]
    ) -> Float[Tensor, "B d"]:
        """Equation (2), float64."""
        weight, mean, std = (
            x_t.new_tensor(part, dtype=torch.float64) for part in (self.weights, self.means, self.stds)
        )
        alpha, sigma = alpha[:, None], sigma[:, None]
        variance = alpha**2 * std**2 + sigma**2  # [B, J]
        offset = x_t.double()[:, None] - alpha[..., None] * mean  # [B, J, d]
        log_share = weight.log() - 0.5 * (offset.square().sum(-1) / variance + mean.shape[1] * variance.log())
        centre = mean + (alpha * std**2 / variance)[..., None] * offset
        return (log_share.softmax(-1)[..., None] * centre).sum(1)

    def forward(self, x_t: Float[Tensor, "B d"], t: Tensor, cond: Condition | None = None) -> Float[Tensor, "B d"]:
        """The prediction. Gradient flows to the network and to ``x_t``."""
        alpha, sigma = self.schedule.scales(t)
        x_0 = self.posterior_mean(x_t, alpha, sigma)
        told = x_0
        if self.prediction != "x_0":
            noise = (x_t - alpha[:, None] * x_0) / sigma[:, None]
            told = noise if self.prediction == "epsilon" else alpha[:, None] * noise - sigma[:, None] * x_0
        if self.hidden:
            told = told + self.network(torch.cat([x_t.float(), t[:, None].float()], dim=1))
        return told.to(x_t.dtype)

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            "weights": self.weights,
            "means": self.means,
            "stds": self.stds,
            "schedule": describe(self.schedule),
            "prediction": self.prediction,
            "hidden": self.hidden,
        }


def mixture_policy(
    weights: Sequence[float],
    means: Sequence[Sequence[float]],
    stds: Sequence[float],
    process: Gaussian,
    *,
    grid: Float[Tensor, " K1"],
    hidden: int = 0,
    seed: int = 0,
) -> Policy:
    """The policy whose denoiser is exact for these data, trainable through its network if ``hidden`` > 0.

    Args:
        weights: of the components.
        means: of the components, ``d`` numbers each.
        stds: of the components.
        process: the mathematics of a step.
        grid: times of the chain, from 1 to 0.
        hidden: width of the correcting network.
        seed: of its initial weights.
    """
    with seeded_initialisation(seed):
        denoiser = MixtureDenoiser(weights, means, stds, process.schedule, process.prediction, hidden)
    return Policy(denoiser, process, VectorCodec(), (len(means[0]),), grid=grid)
