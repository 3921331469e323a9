"""Every notebook runs, in a reduced size, so that none rots."""

import os
import runpy
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
NOTEBOOKS = [path for path in sorted(DOCS.rglob("*.py")) if "# %%" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(DOCS).with_suffix("").as_posix())
def test_the_notebook_runs_at_a_few_steps(path, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DIFFTILT_REDUCED", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.syspath_prepend(str(DOCS / "tutorial"))
    monkeypatch.delitem(sys.modules, "drawing", raising=False)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out
    assert os.getcwd() == str(tmp_path)


def test_no_notebook_names_a_path_of_a_machine():
    for path in NOTEBOOKS:
        text = path.read_text(encoding="utf-8")
        assert not any(root in text for root in ("/home/", "/tmp/", "/Users/")), path.name


def test_each_page_of_the_tutorial_ends_with_what_to_take_away_and_an_exercise():
    for path in NOTEBOOKS:
        if path.parent.name == "tutorial":
            text = path.read_text(encoding="utf-8")
            assert "**The question.**" in text, path.name
            assert "## What to take away" in text, path.name
            assert '!!! example "Exercise"' in text, path.name
