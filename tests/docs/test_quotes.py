"""Numbers of pages are those of committed results: each is checked by the source that it names."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "docs"))

import quotes

ROOT = quotes.ROOT
PAGES = quotes.pages()
MEASURED = re.compile(r"[-+−]?(\d+\.\d+( ?%)?|\d+ ?%)( ±.*| \(.*)?")
OF_SETTINGS = {"| name | designs | oracle | p_pre has seen | alpha |": "alpha of the landscapes of simulated campaigns"}
"""Tables, by their first line, whose decimals are no results."""


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_number_is_what_its_source_says(path):
    assert quotes.stale(path.read_text(encoding="utf-8")) == [], "run `python tools/docs/quotes.py --write`"


def unsourced(text):
    """Cells of tables that hold nothing but a decimal or a percentage, and name no source."""
    text = quotes.NUMBER.sub(
        "quoted", quotes.TABLE.sub("", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    )
    tables = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    cells = [
        cell.strip("* ")
        for table in tables
        if table.splitlines()[0] not in OF_SETTINGS
        for cell in re.split(r"[|\n]", table)
    ]
    return [cell for cell in cells if MEASURED.fullmatch(cell)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_result_in_a_table_is_typed_by_hand(path):
    assert unsourced(path.read_text(encoding="utf-8")) == [], "name the file that has it (tools/docs/quotes.py)"


def test_a_result_typed_by_hand_is_found():
    quoted = '0.52<!--= one("run-0", "judge") -->'
    page = f"| a | b |\n|---|---|\n| 0.31 | {quoted} |\n| **7 %** | -1.5 ± 0.2 |\n| 0.1 to 0.3 | 3 |\n"
    assert unsourced(page) == ["0.31", "7 %", "-1.5 ± 0.2"]


def test_the_truth_table_is_what_its_file_says():
    from difftilt.verification import table

    page = (ROOT / "docs" / "truth.md").read_text(encoding="utf-8")
    assert page.rstrip() == table.page(ROOT / "benchmarks" / "truth" / "default.json").rstrip()


@pytest.fixture
def results(tmp_path, monkeypatch):
    rows = '[{"method": "a", "kl": 0.25}, {"method": "b", "kl": 2}]'
    (tmp_path / "run-0.json").write_text(f'{{"judge": 1.0, "rows": {rows}}}')
    (tmp_path / "run-1.json").write_text('{"judge": 4.0, "rows": []}')
    monkeypatch.setattr(quotes, "BENCHMARKS", tmp_path)
    quotes._documents.cache_clear()
    yield
    quotes._documents.cache_clear()


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ('mean("run-?", "judge")', 2.5),
        ('high("run-?", "judge") - low("run-?", "judge")', 3.0),
        ('one("run-0", "rows.kl", method="a") * 100', 25.0),
        ('one("run-0", "rows.-1.kl")', 2.0),
        ('count("run-*", "judge")', 2.0),
        ('-median("run-?", "judge") / 2', -1.25),
    ],
)
def test_a_source_says_a_number(results, source, value):
    assert quotes.value(source) == value


@pytest.mark.parametrize(
    "source",
    [
        'mean("run-?", "jugde")',
        'mean("walk-?", "judge")',
        'one("run-?", "judge")',
        'one("run-0", "rows.method", method="a")',
        '__import__("os").getcwd()',
        'open("run-0.json")',
        "mean(",
    ],
)
def test_a_source_that_says_nothing_is_refused(results, source):
    with pytest.raises(quotes.SourceError, match="expected"):
        quotes.value(source)


def test_a_number_that_is_off_is_found_and_put_right_in_its_own_form(results):
    page = 'A judge of 2.4<!--= mean("run-?", "judge") -->, 25 %<!--= one("run-0", "rows.kl", method="a") -->.'
    assert len(quotes.stale(page)) == 1
    right = quotes.renewed(page)
    assert right == page.replace("2.4", "2.5")
    assert quotes.stale(right) == []


@pytest.mark.parametrize(
    ("number", "typed", "made"),
    [
        (0.1234, "9 %", "12 %"),
        (0.1234, "0.0%", "12.3%"),
        (12345.6, "1", "12,346"),
        (1.5, "+0.00", "+1.50"),
        (-2.0, "−1.0", "−2.0"),
        (1234.0, "1,000", "1,234"),
        (3.0, "2", "3"),
    ],
)
def test_numbers_keep_the_form_in_which_they_stand(number, typed, made):
    assert quotes.written(number, typed) == made


def test_a_source_behind_no_number_is_refused(results):
    with pytest.raises(quotes.SourceError, match="a number before a source"):
        quotes.renewed('A judge of two<!--= mean("run-?", "judge") -->.')
    with pytest.raises(quotes.SourceError, match="an end of a table"):
        quotes.renewed("<!--: methods -->\n| a |\n")


def test_the_site_shows_the_source_of_a_number_and_no_marks(results):
    made = quotes.shown('of 2.5<!--= mean("run-?", "judge") --> nats')
    assert made == 'of <span title="mean(&quot;run-?&quot;, &quot;judge&quot;)">2.5</span> nats'
    assert quotes.shown("<!--: methods -->\n| a |\n<!--/-->") == "| a |"
