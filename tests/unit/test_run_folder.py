"""Run folders: JSON lines that survive a crash, rewinding, and folders that cannot be written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from difftilt.errors import StateError
from difftilt.tracking.run import RunFolder, plain, provenance


def test_records_come_back_in_order_with_nan_as_null(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a" / "b")
    run.append(run.metrics, [{"step": 1, "reward": math.nan}, {"step": 2, "reward": np.float64(0.5)}])
    run.append(run.metrics, [{"step": 3, "reward": -math.inf, "nested": {"x": (1, math.inf)}}])
    assert run.read(run.metrics) == [
        {"step": 1, "reward": None},
        {"step": 2, "reward": 0.5},
        {"step": 3, "reward": None, "nested": {"x": [1, None]}},
    ]
    for line in run.metrics.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert run.read(run.oracle) == []


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_torn_last_line_is_dropped_wherever_it_was_torn(cut: int, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.append(run.metrics, [{"step": 1, "note": "ü"}, {"step": 2}])
    first = run.metrics.read_bytes().splitlines(keepends=True)[0]
    whole = run.metrics.read_bytes()
    run.metrics.write_bytes(whole[:-cut])
    expected = [{"step": 1, "note": "ü"}] if len(whole) - cut >= len(first) else []
    assert run.read(run.metrics) == expected
    run.append(run.metrics, [{"step": 2, "again": True}])
    assert run.read(run.metrics) == [*expected, {"step": 2, "again": True}]


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.metrics.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(StateError, match=r"metrics.jsonl', line 2; got a damaged line"):
        run.read(run.metrics)


def test_rewinding_drops_later_steps_only(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.append(run.metrics, [{"step": step} for step in range(1, 6)])
    run.rewind_metrics(3)
    assert [record["step"] for record in run.read(run.metrics)] == [1, 2, 3]
    run.rewind_metrics(0)
    assert not run.metrics.exists()
    run.rewind_metrics(0)
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_a_folder_below_a_file_or_that_is_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(StateError) as caught:
            RunFolder(path)
        assert "expected a run folder that can be written" in str(caught.value)
        assert str(caught.value).endswith("choose another with --run")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_vanished_is_explained_when_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.rmdir()
    with pytest.raises(StateError, match=r"expected to write .*; got 'No such file or directory'"):
        run.append(run.metrics, [{"step": 1}])


def test_opening_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not run.started
    run.checkpoints.mkdir()
    assert run.started


def test_only_a_folder_with_a_run_is_an_existing_one(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"got no config.toml in it"):
        RunFolder.existing(tmp_path)
    with pytest.raises(StateError, match="got no such folder"):
        RunFolder.existing(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "config.toml").write_text("")
    assert RunFolder.existing(tmp_path).started


def test_an_object_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path)
    run.write_json(run.evaluation, {"gap": math.inf, "alpha": 0.1})
    assert json.loads(run.evaluation.read_text()) == {"gap": None, "alpha": 0.1}

    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run.write_json(run.evaluation, {"gap": 1.0})
    assert json.loads(run.evaluation.read_text()) == {"gap": None, "alpha": 0.1}


def test_plain_values_stay_what_they_are() -> None:
    value = {"a": [1, "x", None, True, 0.5]}
    assert plain(value) == value
    assert plain({3: math.nan}) == {"3": None}


def test_provenance_names_versions_and_no_place() -> None:
    facts = provenance()
    assert set(facts) == {"difftilt", "commit", "python", "torch", "numpy"}
    assert all("/" not in value and value for value in facts.values())
