"""Drawings of a domain on the page: shown as they are, never run, and left out where they are damaged."""

from __future__ import annotations

import json
import re
from base64 import b64decode

import pytest

from difftilt.report import write_report
from difftilt.report.drawings import read_drawings
from difftilt.tracking.run import RunFolder

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><script>alert(1)</script></svg>'
HISTOGRAM = {
    "name": "qed",
    "title": "Drug-likeness",
    "axis": "QED (0 to 1)",
    "edges": [0.0, 0.5, 1.0],
    "shares": {"data": [0.5, 0.5], "before": [0.4, 0.6], "after": [0.1, 0.9]},
}
PICTURE = {"name": "grid", "title": "Best <b>", "caption": "twelve & more", "data": SVG}


@pytest.fixture
def run(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.config.write_text('[task]\nname = "t"\n')
    return folder


def test_files_are_shown_as_pictures_so_that_nothing_in_them_runs(run):
    run.write_pictures([PICTURE])
    page = write_report(run).read_text()
    data = re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert data
    assert b64decode(data[1]).decode() == SVG
    assert "<script" not in page
    assert "img-src data:" in page, "or the page's own policy hides them"
    assert "Best &lt;b&gt;" in page
    assert "twelve &amp; more" in page


def test_a_png_comes_back_byte_for_byte(run):
    run.write_pictures([{**PICTURE, "data": b"\x89PNG\r\n"}])
    assert (run.pictures / "grid.png").read_bytes() == b"\x89PNG\r\n"
    assert "data:image/png;base64," in write_report(run).read_text()


def test_a_histogram_is_drawn_to_scale_with_a_line_for_each_set(run):
    run.write_pictures([HISTOGRAM])
    (drawing,) = read_drawings(run, "tuned", [])
    assert [label for label, _ in drawing.key] == ["data", "pretrained", "tuned"]
    lines = re.findall(r'class="curve (\w+)" d="M([^"]+)"', drawing.content)
    tops = {}
    for kind, path in lines:
        points = [tuple(map(float, point.split())) for point in path.split("L")]
        base = points[0][1]
        tops[kind] = [base - points[i][1] for i in (1, 3)]
    for kind, shares in (("yardstick", [0.5, 0.5]), ("plain", [0.4, 0.6]), ("reward", [0.1, 0.9])):
        assert tops[kind][0] / tops[kind][1] == pytest.approx(shares[0] / shares[1], rel=1e-2)
    assert tops["reward"][1] / tops["plain"][1] == pytest.approx(1.5, rel=1e-2)


@pytest.mark.parametrize(
    "wrong",
    [
        {**HISTOGRAM, "edges": [0.0, 1.0]},
        {**HISTOGRAM, "edges": None},
        {**HISTOGRAM, "shares": {"after": [None, 1.0]}},
        {**HISTOGRAM, "shares": {}},
        {"title": "away", "file": "gone.png"},
        {"title": "above", "file": "../config.toml"},
        {"title": "kind", "file": "index.json"},
    ],
)
def test_a_damaged_drawing_is_named_and_left_out(run, wrong):
    run.pictures.mkdir()
    (run.pictures / "index.json").write_text(json.dumps({"drawings": [wrong, HISTOGRAM]}))
    problems: list[str] = []
    assert [drawing.title for drawing in read_drawings(run, "tuned", problems)] == ["Drug-likeness"]
    assert len(problems) == 1
    assert wrong["title"] in problems[0]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"drawings": 3}'])
def test_a_damaged_index_costs_the_drawings_only(run, text):
    run.pictures.mkdir()
    (run.pictures / "index.json").write_text(text)
    problems: list[str] = []
    assert read_drawings(run, "tuned", problems) == []
    assert "index.json" in problems[0]


def test_a_run_without_drawings_has_no_section_for_them(run):
    assert 'id="pictures"' not in write_report(run).read_text()
