"""Models of diffusers as denoisers: the states, times and conditions of a chain in the words of each model.

diffusers itself is imported only where a model is made from its description.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from difftilt.core.noise import timestep as integer_timestep
from difftilt.core.registry import register
from difftilt.errors import ConfigError, supported
from difftilt.types import Condition, Float, Tensor

INPUTS: dict[str, dict[str, str]] = {
    "UNet2DModel": {"label": "class_labels"},
    "UNet2DConditionModel": {"prompt": "encoder_hidden_states", "label": "class_labels"},
    "DiTTransformer2DModel": {"label": "class_labels"},
    "SD3Transformer2DModel": {"prompt": "encoder_hidden_states", "pooled": "pooled_projections"},
}
"""What each supported model calls our conditions."""
NEEDED = {
    "UNet2DConditionModel": ("prompt",),
    "DiTTransformer2DModel": ("label",),
    "SD3Transformer2DModel": ("prompt", "pooled"),
}
"""Conditions without which a model cannot be run."""
PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def supported_model(name: str) -> str:
    """``name``, of a class of :data:`INPUTS`.

    Raises:
        UnsupportedError: it is none of them; they are named.
    """
    remedy = "write a small module forward(x_t, t, cond) around it and give difftilt.load that"
    return supported(name, INPUTS, what="a diffusers model of class", remedy=remedy)


def class_name(model: object) -> str:
    """Name of a supported diffusers class.

    Raises:
        UnsupportedError: of another; those that are supported are named.
    """
    names = [base.__name__ for base in type(model).__mro__]
    return supported_model(next((name for name in names if name in INPUTS), names[0]))


@register("denoiser", "diffusers")
class DiffusersDenoiser(nn.Module):
    """A UNet or transformer of diffusers.

    Args:
        model: the network, or its description ``{"class": name, "config": ...}``.
        timesteps: ``N``, see ``continuous``.
        continuous: whether the model is told ``N t`` (flow matching), and not the integer timestep ``N t - 1``.
        precision: ``"bfloat16"`` or ``"float16"`` to run it under autocast; as its weights are when not given.
        patch: ``p``: the model sees squares of ``p x p`` pixels as ``p^2 C`` channels of one, a ``p^2``-th of the
            places (it then has so many channels in and out); 1 leaves pixels as they are.

    Raises:
        ConfigError: the precision is unknown, the patch below 1, or diffusers is not installed.
        UnsupportedError: the class is none of :data:`INPUTS`.
    """

    def __init__(
        self, model: Any, timesteps: int, *, continuous: bool = False, precision: str | None = None, patch: int = 1
    ) -> None:
        super().__init__()
        if patch < 1:
            raise ConfigError(f"expected patches of 1 pixel or more; got {patch}; raise it")
        if isinstance(model, dict):
            model = _made(model["class"], model["config"])
        if precision is not None and precision not in PRECISIONS:
            raise ConfigError(f"expected a precision {' or '.join(PRECISIONS)}; got '{precision}'; correct it")
        self.name = class_name(model)
        self.model: Any = model
        self.timesteps, self.continuous, self.precision, self.patch = timesteps, continuous, precision, patch
        self._first: torch.dtype | None = None
        self._computes_in = torch.float32

    def forward(
        self, x_t: Float[Tensor, "B C H W"], t: Float[Tensor, " B"], cond: Condition | None = None
    ) -> Float[Tensor, "B C H W"]:
        """The prediction, float32. Gradient flows to the weights and to ``x_t``.

        Args:
            x_t: pixels or latents.
            t: times in [0, 1].
            cond: rows named ``prompt``, ``pooled`` or ``label``; other names are left to the reward.

        Raises:
            ConfigError: the model needs a condition that is not there.
        """
        cond = cond or {}
        missing = [name for name in NEEDED.get(self.name, ()) if name not in cond]
        if missing:
            raise ConfigError(
                f"expected a condition '{missing[0]}' with one row per design for {self.name}; got "
                f"{', '.join(cond) or 'none'}; pass cond, or load the model with one"
            )
        dtype = self._dtype()
        told = {
            word: cond[name].to(dtype) if cond[name].is_floating_point() else cond[name]
            for name, word in INPUTS[self.name].items()
            if name in cond
        }
        timestep = (self.timesteps * t).float() if self.continuous else integer_timestep(t, self.timesteps)
        precision = PRECISIONS.get(self.precision or "", torch.float32)
        with torch.autocast(x_t.device.type, dtype=precision, enabled=self.precision is not None):
            seen = x_t.to(dtype) if self.patch == 1 else F.pixel_unshuffle(x_t.to(dtype), self.patch)
            prediction = self.model(seen, timestep=timestep, return_dict=False, **told)[0]
            if self.patch > 1:
                prediction = F.pixel_shuffle(prediction, self.patch)
        return prediction[:, : x_t.shape[1]].float()  # channels beyond those are a learned variance

    def _dtype(self) -> torch.dtype:
        """What the model computes in; asked after a cast only: diffusers walks all modules for it, 1 to 2 % of time."""
        first = next(self.model.parameters()).dtype
        if first != self._first:
            self._first, self._computes_in = first, self.model.dtype
        return self._computes_in

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        config = {name: value for name, value in dict(self.model.config).items() if not name.startswith("_")}
        return {
            "model": {"class": self.name, "config": config},
            "timesteps": self.timesteps,
            "continuous": self.continuous,
            "precision": self.precision,
            "patch": self.patch,
        }


def _made(name: str, config: dict[str, Any]) -> nn.Module:
    """A model with fresh weights, of a class that is supported.

    Raises:
        ConfigError: diffusers is not installed.
    """
    kind = supported_model(name)
    try:
        diffusers = importlib.import_module("diffusers")
    except ImportError:
        raise ConfigError(
            f"expected diffusers for a {kind}; it is not installed; run: pip install 'difftilt[image]'"
        ) from None
    return getattr(diffusers, kind).from_config(config)
