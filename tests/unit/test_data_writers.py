"""What is written is read back, to the last bit, and an old file is never half replaced."""

from __future__ import annotations

import sys
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from difftilt.data import read_designs, write_designs
from difftilt.errors import ConfigError, ShapeError

KINDS = ("csv", "fasta", "parquet")
texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=8)
numbers = st.floats(allow_infinity=False) | st.none()


@st.composite
def _columns(draw: st.DrawFn) -> dict[str, list]:
    n = draw(st.integers(1, 5))
    several = {"min_size": n, "max_size": n}
    return {
        "id": [f"d{i}" for i in range(n)],
        "sequence": draw(st.lists(st.text("ACGT", min_size=1, max_size=9), **several)),
        "score": draw(st.lists(numbers, **several)),
        "note": ["x" + text for text in draw(st.lists(texts, **several))],
    }


@pytest.mark.parametrize("kind", KINDS)
@given(columns=_columns())
def test_every_format_gives_back_what_was_written(kind, columns, tmp_path_factory):
    path = tmp_path_factory.mktemp("round") / f"designs.{kind}"
    write_designs(path, columns)
    table = read_designs(path)
    assert table.sequences == columns["sequence"]
    assert table.column("id").tolist() == columns["id"]
    assert table.column("note").tolist() == columns["note"]
    expected = np.array([np.nan if score is None else score for score in columns["score"]])
    if kind == "fasta" and np.isnan(expected).all():  # a key that no record has
        assert table.score_column is None
    else:
        assert np.array_equal(table.scores, expected, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_tensors_and_truth_values_are_numbers(kind, tmp_path):
    columns = {
        "seq": ["AC", "GT"],
        "reward": torch.tensor([0.1, 3.0]),
        "judge": np.array([1 / 3, np.nan]),
        "steps": np.array([3, 10**9]),
        "kept": np.array([True, False]),
    }
    write_designs(tmp_path / f"a.{kind}", columns)
    table = read_designs(tmp_path / f"a.{kind}")
    assert table.scores.tolist() == [float(np.float32(0.1)), 3.0]
    assert np.array_equal(table.column("judge"), [1 / 3, np.nan], equal_nan=True)
    assert table.column("steps").tolist() == [3.0, 1e9]
    assert table.column("kept").tolist() == [1.0, 0.0]


def test_csv_text_is_plain(tmp_path):
    write_designs(tmp_path / "a.csv", {"id": [1, 2], "sequence": ["AC", "GT"], "score": [0.1 + 0.2, float("nan")]})
    assert (tmp_path / "a.csv").read_bytes() == b"id,sequence,score\n1,AC,0.30000000000000004\n2,GT,\n"


def test_fasta_text_is_plain(tmp_path):
    write_designs(tmp_path / "a.fasta", {"sequence": ["AC", "GT"], "log weight": [0.5, None], "note": ["a b", ""]})
    assert (tmp_path / "a.fasta").read_text() == ">design_1 log_weight=0.5 note=a%20b\nAC\n>design_2\nGT\n"


@pytest.mark.parametrize("name", ["a.txt", "a", "a.csv.gz", "a.xlsx"])
def test_an_unknown_suffix_names_the_three(name, tmp_path):
    with pytest.raises(ConfigError, match=r"\.csv, \.fasta or \.parquet"):
        write_designs(tmp_path / name, {"sequence": ["AC"]})
    assert not list(tmp_path.iterdir())


def test_uneven_columns_and_fasta_without_sequences_are_refused(tmp_path):
    with pytest.raises(ShapeError, match="one length"):
        write_designs(tmp_path / "a.csv", {"sequence": ["AC"], "score": [1.0, 2.0]})
    with pytest.raises(ShapeError, match="no column"):
        write_designs(tmp_path / "a.csv", {})
    with pytest.raises(ConfigError, match="expected sequences"):
        write_designs(tmp_path / "a.fasta", {"file": ["a.png"]})
    assert not list(tmp_path.iterdir())


def test_without_pyarrow_the_error_names_the_pip_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'difftilt\[tables\]'"):
        write_designs(tmp_path / "a.parquet", {"sequence": ["AC"]})


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    write_designs(path, {"sequence": ["AC"]})
    old = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        write_designs(path, {"sequence": ["GT"]})
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_a_reader_of_the_old_file_sees_the_old_file_to_its_end(tmp_path):
    path = tmp_path / "a.csv"
    write_designs(path, {"sequence": ["AC"]})
    with path.open() as reader:
        write_designs(path, {"sequence": ["GT", "GT"]})
        assert reader.read() == "sequence\nAC\n"
    assert path.read_text() == "sequence\nGT\nGT\n"


def test_folders_are_made_and_others_may_read_the_file(tmp_path):
    path = tmp_path / "new" / "run" / "a.csv"
    write_designs(path, {"sequence": ["AC"]})
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_unwritable_place_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="choose another place") as caught:
        write_designs(tmp_path / "file" / "a.csv", {"sequence": ["AC"]})
    assert "\n" not in str(caught.value)
