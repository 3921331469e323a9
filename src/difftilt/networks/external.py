"""Policies from other people's models, told apart by what they are; settings are checked against the model's kind."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

from torch import nn

from difftilt.config import convert
from difftilt.core.codec import Codec
from difftilt.core.policy import Policy
from difftilt.core.process import Process
from difftilt.errors import ConfigError, nearest
from difftilt.networks.masked_lm import masked_lm_policy
from difftilt.networks.pipeline import model_policy, pipeline_policy
from difftilt.networks.stored import read_model
from difftilt.types import Float, Tensor

PLAIN = {int, float, str, types.NoneType}
"""Types of settings that are checked here, by their annotation."""


def module_policy(
    module: nn.Module,
    *,
    process: Process,
    codec: Codec,
    event_shape: tuple[int, ...],
    steps: int = 16,
    grid: Float[Tensor, " K1"] | None = None,
) -> Policy:
    """A policy of one's own network ``(x_t, t, cond) -> prediction``: see :class:`~difftilt.core.policy.Policy`."""
    return Policy(module, process, codec, event_shape, steps=steps, grid=grid).eval()


def external_policy(model: Any, settings: dict[str, Any]) -> Policy:
    """A policy of a pipeline, a diffusers model, a masked language model, or any module.

    Raises:
        ConfigError: a setting that this kind of model does not have, or lacks; they are named.
    """
    bases = {base.__name__ for base in type(model).__mro__}
    if "DiffusionPipeline" in bases:
        return _with(pipeline_policy, model, settings)
    if "ModelMixin" in bases:
        return _with(model_policy, model, settings)
    if "PreTrainedModel" in bases:
        return _with(masked_lm_policy, model, settings)
    if isinstance(model, nn.Module):
        return _with(module_policy, model, settings)
    raise ConfigError(
        f"expected a name, a folder, a pipeline or a module; got {type(model).__name__}; see docs/models.md"
    )


def load_external(name: str, kind: str, settings: dict[str, Any]) -> Policy:
    """A policy of a folder or Hub repository of one of the kinds of :func:`~difftilt.networks.stored.kind_of`."""
    model, own = read_model(name, kind)
    return external_policy(model, {**own, **settings})


def _with(make: Callable[..., Policy], model: Any, settings: dict[str, Any]) -> Policy:
    known = dict(list(inspect.signature(make).parameters.items())[1:])
    for name in settings:
        if name not in known:
            raise nearest(name, known, what=f"setting of {type(model).__name__}")
    missing = [name for name, entry in known.items() if entry.default is entry.empty and name not in settings]
    if missing:
        raise ConfigError(
            f"expected {' and '.join(f'{name}=...' for name in missing)} with a {type(model).__name__}; got "
            f"{', '.join(settings) or 'nothing'}; pass it (docs/models.md has an example of each kind)"
        )
    for name, hint in typing.get_type_hints(make).items():
        if name in settings and set(typing.get_args(hint) or (hint,)) <= PLAIN:
            settings = {**settings, name: convert(hint, settings[name], name)}
    return make(model, **settings)
