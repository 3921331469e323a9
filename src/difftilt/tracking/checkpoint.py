"""Checkpoints without pickles: a nested state becomes one safetensors file and one JSON file.

A checkpoint is a folder ``<step>/`` with ``state.safetensors`` and ``state.json``, written beside its final name and
renamed when complete: a kill at any moment leaves the previous checkpoint whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from difftilt.errors import StateError

_TENSOR = "__tensor__"


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any], *, keep: int = 2) -> Path:
    """Write ``state`` (nested dicts, lists, tensors and plain values) as ``folder/<step>``, keeping the last ``keep``.

    Raises:
        StateError: the folder cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    plain = _split(state, "", tensors)
    final, partial = folder / str(step), folder / f".{step}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(tensors, partial / "state.safetensors")
        (partial / "state.json").write_text(json.dumps(plain), encoding="utf-8")
        for path in partial.iterdir():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
        _set_aside(final)
        partial.rename(final)
        for old in checkpoint_steps(folder)[:-keep]:
            _set_aside(folder / str(old))
    except (OSError, SafetensorError) as error:
        came = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise StateError(f"expected a writable folder '{folder}'; got {came}; free space or choose another") from error
    for rest in (*folder.glob(".*.stale"), *folder.glob(".*.partial")):  # also of a kill before
        shutil.rmtree(rest, ignore_errors=True)
    return final


def _set_aside(path: Path) -> None:
    """Rename a checkpoint that is to go: removed in place, a kill could leave half of it under its name."""
    if path.exists():
        stale = path.with_name(f".{path.name}.stale")
        shutil.rmtree(stale, ignore_errors=True)
        path.rename(stale)


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps with a complete checkpoint, ascending."""
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit()) if folder.is_dir() else []


def load_checkpoint(folder: Path, step: int | None = None) -> tuple[int, dict[str, Any]]:
    """Read a checkpoint (the latest by default) as ``(step, state)``.

    Raises:
        StateError: there is none, or it is truncated.
    """
    steps = checkpoint_steps(folder)
    if not steps:
        raise StateError(f"expected a checkpoint under '{folder}'; got none; start the run again without --resume")
    step = steps[-1] if step is None else step
    path = folder / str(step)
    try:
        tensors = load_file(path / "state.safetensors")
        plain = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return step, _join(plain, tensors)
    except Exception as error:
        others = [s for s in steps if s != step]
        remedy = f"delete that folder to continue from step {others[-1]}" if others else "start the run again"
        raise StateError(
            f"expected a complete checkpoint at '{path}'; got {type(error).__name__}: "
            f"{(str(error).splitlines() or ['empty'])[0]}; {remedy}"
        ) from error


def _split(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = f"{len(tensors)}{path}"  # the number keeps apart the keys 0 and "0", and "a/b" and "a" then "b"
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        return {"dict": [[key, _split(entry, f"{path}/{key}", tensors)] for key, entry in value.items()]}
    if isinstance(value, list | tuple):
        return [_split(entry, f"{path}/{index}", tensors) for index, entry in enumerate(value)]
    return value


def _join(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return {key: _join(entry, tensors) for key, entry in value["dict"]}
    if isinstance(value, list):
        return [_join(entry, tensors) for entry in value]
    return value
