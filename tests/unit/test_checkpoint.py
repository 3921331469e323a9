"""Checkpoints: they come back as they were, and a kill at any moment leaves a whole one behind."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

from difftilt.errors import StateError
from difftilt.tracking import checkpoint
from difftilt.tracking.checkpoint import checkpoint_steps, load_checkpoint, save_checkpoint

DTYPES = (
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)


def same(a: Any, b: Any) -> bool:
    """Equality with types, tensors bit by bit, NaN equal to itself; tuples come back as lists."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return type(a) is type(b) and a == b


def state(seed: int = 0) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 6, generator=rng)
    return {
        "policy": {"weight": weight, "transposed": weight.T, "view": weight[1:3], "scalar": torch.tensor(3.0)},
        "dtypes": [torch.ones(2, 2).to(dtype) for dtype in DTYPES],
        "empty": torch.zeros(0, 3),
        "optimiser": {"state": {0: {"step": torch.tensor(2.0)}, 1: {"step": None}}, "groups": [{"betas": (0.9, 0.99)}]},
        "plain": {
            "none": None,
            "true": True,
            "int": 3,
            "float": 0.1 + 0.2,
            "inf": math.inf,
            "nan": math.nan,
            "s": "ü\n",
        },
        "nothing": {},
        "seed": seed,
    }


def test_a_nested_state_comes_back_as_it_was(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 7, state())
    step, back = load_checkpoint(tmp_path)
    assert step == 7
    assert same(state(), back)
    assert not same(state(seed=1), back)
    assert list(back["optimiser"]["state"]) == [0, 1], "keys of a dict stay numbers"


def test_tensors_under_keys_that_look_alike_are_kept_apart(tmp_path: Path) -> None:
    tricky = {
        0: torch.tensor(1.0), "0": torch.tensor(2.0),
        "a/b": torch.tensor(3.0), "a": {"b": torch.tensor(4.0)},
        "dict": {"__tensor__": "no tensor"},
    }  # fmt: skip
    save_checkpoint(tmp_path, 1, {"x": tricky})
    assert same(tricky, load_checkpoint(tmp_path)[1]["x"])


def test_an_optimiser_and_its_moments_are_restored(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.Adam([parameter], lr=0.1, betas=(0.9, 0.99))
    for _ in range(3):
        optimiser.zero_grad()
        (parameter**2).sum().backward()
        optimiser.step()
    save_checkpoint(tmp_path, 1, {"optimiser": optimiser.state_dict(), "parameter": parameter})
    saved = load_checkpoint(tmp_path)[1]
    other = torch.nn.Parameter(saved["parameter"])
    again = torch.optim.Adam([other], lr=0.5)
    again.load_state_dict(saved["optimiser"])
    for one, two in ((optimiser, parameter), (again, other)):
        one.zero_grad()
        (two**2).sum().backward()
        one.step()
    assert torch.equal(parameter, other)


def test_nothing_on_disk_is_a_pickle(tmp_path: Path) -> None:
    final = save_checkpoint(tmp_path, 1, state())
    assert sorted(path.name for path in final.iterdir()) == ["state.json", "state.safetensors"]
    json.loads((final / "state.json").read_text())
    with safetensors.safe_open(final / "state.safetensors", "pt") as file:
        assert len(list(file.keys())) == 4 + len(DTYPES) + 2
    for path in final.iterdir():
        assert b"\x80\x04" not in path.read_bytes()[:2]


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 100, 20):
        save_checkpoint(tmp_path, step, {"step": step})
    assert checkpoint_steps(tmp_path) == [20, 100]
    assert load_checkpoint(tmp_path) == (100, {"step": 100})
    assert load_checkpoint(tmp_path, 20) == (20, {"step": 20})
    assert checkpoint_steps(tmp_path / "nowhere") == []


class Killed(BaseException):
    """What a kill looks like from inside: nothing after it runs."""


OPERATIONS = ("save_file", "write_text", "fsync", "rmtree", "rename")


@pytest.mark.parametrize("step", [2, 1], ids=["a new step", "the same step again"])
@pytest.mark.parametrize("moment", ["before", "halfway", "after"])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_kill_at_any_write_leaves_a_whole_checkpoint(
    operation: str, moment: str, count: int, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at the ``count``-th call of each operation that touches the disk; halfway, a folder is half removed."""
    save_checkpoint(tmp_path, 0, state(0))
    save_checkpoint(tmp_path, 1, state(1))
    where = {"save_file": checkpoint, "write_text": Path, "fsync": checkpoint.os, "rmtree": shutil, "rename": Path}
    real, calls = getattr(where[operation], operation), 0

    def deadly(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and moment == "halfway" and operation == "rmtree":
            for path in [path for path in Path(arguments[0]).glob("*") if path.is_file()][:1]:
                path.unlink()
        if calls == count and moment != "after":
            raise Killed
        result = real(*arguments, **options)
        if calls == count:
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(where[operation], operation, deadly)
        try:
            save_checkpoint(tmp_path, step, state(9))
            killed = False
        except Killed:
            killed = True
    assert killed or calls < count
    seeds = [load_checkpoint(tmp_path, s)[1]["seed"] for s in checkpoint_steps(tmp_path)]
    assert seeds, "no checkpoint is left"
    assert set(seeds) <= {0, 1, 9}
    assert seeds[-1] in (1, 9) or (step == 1 and seeds[-1] == 0)
    save_checkpoint(tmp_path, 3, state(3))  # leftovers are in nobody's way
    assert load_checkpoint(tmp_path)[1]["seed"] == 3


def test_a_checkpoint_gets_its_name_at_once_and_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, renamed = Path.rename, []

    def watched(self: Path, target: Path) -> Path:
        renamed.append((sorted(path.name for path in self.iterdir()), Path(target), Path(target).exists()))
        return real(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    final = save_checkpoint(tmp_path, 1, state())
    assert renamed == [(["state.json", "state.safetensors"], final, False)]


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("left", [0, 10, 0.9])
def test_a_truncated_checkpoint_is_one_line_with_a_remedy(name: str, left: float, tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state(step))
    file = tmp_path / "2" / name
    whole = file.read_bytes()
    file.write_bytes(whole[: int(left * len(whole)) if left < 1 else int(left)])
    with pytest.raises(StateError) as caught:
        load_checkpoint(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert f"expected a complete checkpoint at '{tmp_path / '2'}'" in message
    assert message.endswith("delete that folder to continue from step 1")
    shutil.rmtree(tmp_path / "2")
    assert load_checkpoint(tmp_path)[1]["seed"] == 1


def test_a_missing_file_or_the_only_checkpoint_damaged_says_so(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="got none; start the run again without --resume"):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, 1, state())
    (tmp_path / "1" / "state.json").unlink()
    with pytest.raises(StateError, match=r"start the run again$"):
        load_checkpoint(tmp_path)


def test_an_unwritable_folder_and_a_full_disk_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"expected a writable folder .*file.*; got .*directory"):
        save_checkpoint(tmp_path / "file" / "checkpoints", 1, state())

    def full(*_: Any) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    save_checkpoint(tmp_path, 1, state())
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(StateError, match="No space left on device"):
        save_checkpoint(tmp_path, 2, state())
    assert load_checkpoint(tmp_path)[0] == 1
