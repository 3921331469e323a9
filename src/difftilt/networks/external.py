"""Policies from other people's models: objects, local folders and Hub repositories, told apart by what they are.

Weights are read from safetensors only: nothing is ever unpickled.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import nn

from difftilt.core.codec import Codec
from difftilt.core.policy import CONFIG, Policy, unreadable
from difftilt.core.process import Process
from difftilt.errors import ConfigError, StateError, nearest
from difftilt.networks.masked_lm import masked_lm_policy
from difftilt.networks.pipeline import model_policy, pipeline_policy
from difftilt.types import Float, Tensor

INDEX = "model_index.json"


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


def kind_of(name: str) -> str | None:
    """What a folder or Hub repository holds: ``"pipeline"``, ``"model"``, ``"language"``; ``None`` if none of these."""
    index, config = _file(name, INDEX), _file(name, CONFIG)
    if index is not None:
        return "pipeline"
    try:
        found = {} if config is None else json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise unreadable(name, error) from error
    return "model" if "_class_name" in found else "language" if "architectures" in found else None


def load_external(name: str, kind: str, settings: dict[str, Any]) -> Policy:
    """A policy of a folder or Hub repository of one of the kinds of :func:`kind_of`.

    Raises:
        StateError: it cannot be read: files missing, not safetensors, or of other shapes than its config says.
    """
    try:
        if kind == "pipeline":
            from diffusers import DiffusionPipeline

            model: Any = DiffusionPipeline.from_pretrained(name, use_safetensors=True)
        elif kind == "model":
            from diffusers import AutoModel

            model = AutoModel.from_pretrained(name, use_safetensors=True)
        else:
            from transformers import AutoModelForMaskedLM, AutoTokenizer

            model = AutoModelForMaskedLM.from_pretrained(name, use_safetensors=True)
            settings = {"tokenizer": AutoTokenizer.from_pretrained(name), **settings}
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        raise StateError(
            f"expected a {kind} with safetensors weights in '{name}'; got {type(error).__name__}: "
            f"{' '.join(str(error).split())[:400]}; correct the folder, or save it again with safe_serialization"
        ) from error
    return external_policy(model, settings)


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
    return make(model, **settings)


def _file(name: str, file: str) -> Path | None:
    """A file of a folder, or of a Hub repository."""
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(name, file))
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise unreadable(name, error) from error
