"""The chain that a diffusers scheduler runs, from its config alone; diffusers itself is not imported."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from difftilt.core.noise import Table
from difftilt.errors import ConfigError, UnsupportedError, nearest
from difftilt.processes.flow import Flow
from difftilt.processes.gaussian import VARIANCES, Gaussian
from difftilt.types import Float, Tensor


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
            that clipping is off where it is not mentioned.
        steps: number of steps ``K``.
        kernel: ``"ddim"`` or ``"ddpm"``.
        eta: DDIM's; diffusers' own default is 0.
        sigma_min: see :class:`Gaussian`.

    Raises:
        ConfigError: an unknown name, or timesteps outside the table.
        UnsupportedError: thresholding or a learned variance, which the step does not have.
    """
    total = config.get("num_train_timesteps", 1000)
    timesteps = _timesteps(config, total, steps)
    if config.get("thresholding"):
        raise UnsupportedError("expected thresholding off; got a scheduler with dynamic thresholds; switch it off")
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
    clip = config.get("clip_sample_range", 1.0) if config.get("clip_sample") else None
    sampler = {"kernel": kernel, "eta": eta, "variance": variance, "sigma_min": sigma_min, "clip": clip}
    grid = torch.tensor([i + 1 for i in timesteps] + [0], dtype=torch.float64) / (timesteps[0] + 1)
    return Gaussian(schedule, prediction=kinds[kind], prior_std=1.0, **sampler), grid


UNSUPPORTED_FLOW = (
    "use_dynamic_shifting", "shift_terminal", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
    "invert_sigmas", "stochastic_sampling",
)  # fmt: skip
"""Options of the flow-matching scheduler that make another chain than ours."""


def flow_from_diffusers(
    config: Mapping[str, Any],
    steps: int,
    *,
    level: float = 0.0,
    sigma_min: float = 0.0,
    shift: float | None = None,
) -> tuple[Flow, Float[Tensor, " K1"]]:
    r"""The chain of diffusers' ``FlowMatchEulerDiscreteScheduler``: its process, and its grid, the sigmas.

    The network is told ``num_train_timesteps * t``. diffusers shifts twice, by
    :math:`\sigma \leftarrow f \sigma / (1 + (f - 1) \sigma)`: the table, from which it takes the smallest sigma, and
    then the equally spaced sigmas down to that.

    Args:
        config: a ``scheduler_config.json``; missing keys take diffusers' defaults.
        steps: number of steps ``K``.
        level: noise, see :class:`~difftilt.processes.flow.Flow`; 0 is the scheduler's own ODE.
        sigma_min: likewise.
        shift: of the second shift, as the scheduler's ``set_shift`` changes it; the config's when not given.

    Raises:
        ConfigError: not 1 to ``num_train_timesteps`` steps.
        UnsupportedError: an option that makes another chain; it is named.
    """
    for name in UNSUPPORTED_FLOW:
        if config.get(name):
            raise UnsupportedError(
                f"expected a flow-matching scheduler without {name}; got {config[name]!r}; switch it off, or give the "
                "policy a grid of your own"
            )
    total, first = config.get("num_train_timesteps", 1000), config.get("shift", 1.0)
    if not 1 <= steps <= total:
        raise ConfigError(f"expected 1 to {total} steps; got {steps}; the table has no more timesteps")

    def shifted(sigma: Tensor, by: float) -> Tensor:
        return by * sigma / (1 + (by - 1) * sigma)

    least = shifted(torch.tensor(1 / total, dtype=torch.float64), first).item()
    sigmas = shifted(torch.linspace(1.0, least, steps, dtype=torch.float64), first if shift is None else shift)
    return Flow(level, sigma_min=sigma_min), torch.cat([sigmas, sigmas.new_zeros(1)])


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
