"""Models of diffusers and transformers in local folders and Hub repositories: read whole, or refused.

Weights are read from safetensors only: nothing is ever unpickled. A tensor that is missing, of another shape or not
finite is named; both libraries would fill it with random numbers, and go on.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from torch import nn

from difftilt.core.policy import CONFIG, unreadable
from difftilt.errors import DiffTiltError, StateError
from difftilt.networks.diffusers_model import supported_model
from difftilt.networks.fitting import supported_pipeline, supported_scheduler

INDEX = "model_index.json"


def kind_of(name: str) -> str | None:
    """What a folder or Hub repository holds: ``"pipeline"``, ``"model"``, ``"language"``; ``None`` if none of these."""
    if _file(name, INDEX) is not None:
        return "pipeline"
    found = _described(name, CONFIG)
    return "model" if "_class_name" in found else "language" if "architectures" in found else None


def read_model(name: str, kind: str) -> tuple[Any, dict[str, Any]]:
    """What a folder or Hub repository of one of the kinds of :func:`kind_of` holds, and the settings that it brings.

    Raises:
        StateError: it cannot be read: files missing, not safetensors, or other tensors than its config says.
        UnsupportedError: a pipeline, model or scheduler that is not supported; those that are, are named.
    """
    try:
        if kind == "pipeline":
            return _pipeline(name), {}
        if kind == "model":
            return _model(name), {}
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(name)
        return _whole(AutoModelForMaskedLM, name, ignore_mismatched_sizes=True), {"tokenizer": tokenizer}
    except DiffTiltError:
        raise
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        what = "language model" if kind == "language" else kind
        raise StateError(
            f"expected a {what} with safetensors weights in '{name}'; got {type(error).__name__}: "
            f"{' '.join(str(error).split())[:400]}; correct the folder, or save it again with safe_serialization"
        ) from error


def _model(name: str) -> nn.Module:
    kind = supported_model(str(_described(name, CONFIG)["_class_name"]))
    return _whole(getattr(importlib.import_module("diffusers"), kind), name)


def _pipeline(name: str) -> Any:
    """A supported pipeline; its networks are read one by one, except those that are not run (a safety checker)."""
    index = _described(name, INDEX)
    kind = supported_pipeline(str(index.get("_class_name")))
    supported_scheduler(str(index.get("scheduler", ["", "none"])[1]))
    make = getattr(importlib.import_module("diffusers"), kind)
    folder = name if Path(name).is_dir() else make.download(name, use_safetensors=True)
    parts: dict[str, Any] = {}
    for part, entry in index.items():
        if entry == [None, None]:
            parts[part] = None  # saved without it, such as Stable Diffusion 3 without its T5
        elif isinstance(entry, list) and entry[0] in ("diffusers", "transformers"):
            of = getattr(importlib.import_module(entry[0]), str(entry[1]))
            if issubclass(of, nn.Module):
                more = {"ignore_mismatched_sizes": True} if entry[0] == "transformers" else {}
                parts[part] = _whole(of, folder, subfolder=part, torch_dtype=torch.float32, **more)
    return make.from_pretrained(folder, use_safetensors=True, **parts)


def _whole(make: Any, name: str, **options: Any) -> nn.Module:
    """A network, every number of which is from its file.

    diffusers refuses other shapes itself, and names the tensor; transformers does not name it, unless it is told to
    ignore them (``ignore_mismatched_sizes``).

    Raises:
        StateError: naming the first tensor of another shape, missing, or not finite.
    """
    model, told = make.from_pretrained(name, use_safetensors=True, output_loading_info=True, **options)
    where = "/".join(part for part in (str(name), options.get("subfolder")) if part)
    for tensor, came, expected in sorted(told["mismatched_keys"]):
        raise StateError(
            f"expected {list(expected)} for '{tensor}' of '{where}'; got {list(came)}; is it another model's file?"
        )
    for tensor in sorted(told["missing_keys"]):
        raise StateError(f"expected '{tensor}' in '{where}'; got no such tensor; copy the file again, or save it whole")
    for tensor, value in model.state_dict().items():
        if not value.isfinite().all():
            raise StateError(f"expected finite numbers in '{tensor}' of '{where}'; got others; copy the file again")
    return model


def _described(name: str, file: str) -> dict[str, Any]:
    """What a JSON file of a folder or Hub repository says; nothing where it is not there."""
    path = _file(name, file)
    try:
        return {} if path is None else dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise unreadable(name, error) from error


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
