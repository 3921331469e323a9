"""Every notebook runs, in a reduced size, so that none rots."""

import os
import runpy
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
NOTEBOOKS = [path for path in sorted(DOCS.rglob("*.py")) if "# %%" in path.read_text(encoding="utf-8")]


WITH_DATA = [path for path in NOTEBOOKS if "difftilt.data import find" in path.read_text(encoding="utf-8")]


def name_of(path):
    return path.relative_to(DOCS).with_suffix("").as_posix()


@pytest.fixture
def reduced(monkeypatch, tmp_path):
    """An empty folder, and a few steps of everything."""
    monkeypatch.setenv("DIFFTILT_REDUCED", "1")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.syspath_prepend(str(DOCS / "tutorial"))
    monkeypatch.delitem(sys.modules, "drawing", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_the_notebook_runs_at_a_few_steps(path, reduced, capsys):
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out
    assert os.getcwd() == str(reduced)


@pytest.mark.parametrize("path", WITH_DATA, ids=name_of)
def test_the_notebook_runs_where_no_data_set_is_at_hand(path, reduced, monkeypatch, capsys):
    monkeypatch.setattr("difftilt.data.places.data_roots", lambda: iter([reduced / "nothing"]))
    runpy.run_path(str(path), run_name="__main__")
    assert "designs of the shipped model" in capsys.readouterr().out
    if path.stem == "08-utr":  # who runs this alone ends with designs and a report
        assert (reduced / "runs" / "utr" / "report.html").stat().st_size > 10_000
        assert "sequence" in (reduced / "runs" / "utr" / "samples.csv").read_text(encoding="utf-8").splitlines()[0]


def test_a_downloaded_notebook_runs_alone_in_an_empty_folder(monkeypatch, tmp_path):
    """Of 8, who knows nothing but the notebook ends with designs and a report."""
    nbformat = pytest.importorskip("nbformat")
    jupytext, nbclient = pytest.importorskip("jupytext"), pytest.importorskip("nbclient")
    monkeypatch.syspath_prepend(str(DOCS.parent / "tools" / "docs"))
    import notebooks

    plain = nbformat.writes(jupytext.read(DOCS / "tutorial" / "08-utr.py", fmt="py:percent")).encode()
    environment = {**os.environ, "DIFFTILT_REDUCED": "1", "PYTHONPATH": str(DOCS.parent / "src")}

    def run(book: bytes, folder: Path) -> None:
        folder.mkdir()
        made = nbformat.reads(book.decode(), as_version=4)
        client = nbclient.NotebookClient(
            made, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        client.execute(env=environment)

    with pytest.raises(nbclient.exceptions.CellExecutionError, match="drawing"):  # the twin: as it stands in docs
        run(plain, tmp_path / "plain")
    run(notebooks.standing_alone(plain, [DOCS / "tutorial" / "drawing.py"]), tmp_path / "alone")
    assert (tmp_path / "alone" / "runs" / "utr" / "report.html").stat().st_size > 10_000
    assert (tmp_path / "alone" / "runs" / "utr" / "samples.csv").is_file()


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


def test_a_page_shows_full_sizes_only(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS.parent / "tools" / "docs"))
    import notebooks

    code = 'n = [1, 2, 4][: size(3, 1)] + rows[: size(40, 4)]\nf"--batch {size(96, 8)}"'
    assert notebooks._full(code) == 'n = [1, 2, 4] + rows[: 40]\nf"--batch 96"'
