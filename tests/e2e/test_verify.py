"""``difftilt verify`` on its fastest pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FAST = ("verify", "--algorithm", "smc:bootstrap", "--problem", "initial-law")


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_rows_are_shown_and_kept(difftilt, work, jobs):
    words = ("verify", "--algorithm", "smc", "--process", "gaussian", "--problem", "initial-law", "--full")
    shown = difftilt(*words, "--jobs", jobs, "--json", "rows.json")
    assert (shown.code, shown.err) == (0, "")
    assert "3 claims hold, 0 fail" in shown.out
    table = json.loads(Path("rows.json").read_text())
    assert {row["algorithm"] for row in table["rows"]} == {"smc", "smc:default", "smc:bootstrap"}
    assert all(row["passed"] is True and row["target"] == "p* (tilted)" for row in table["rows"])
    assert table["seed"] == 0
    assert {"commit", "torch"} <= set(table)


def test_a_second_run_goes_on_with_what_is_missing(difftilt, work):
    assert difftilt(*FAST, "--json", "rows.json").code == 0
    before = json.loads(Path("rows.json").read_text())["rows"]
    assert (
        difftilt("verify", "--algorithm", "smc", "--problem", "initial-law", "--full", "--json", "rows.json").code == 0
    )
    after = json.loads(Path("rows.json").read_text())["rows"]
    assert after[:1] == before
    assert len(after) == 3
    other = difftilt(*FAST, "--json", "rows.json", "--seed", "1")
    assert other.code == 2
    assert "expected rows of seed 1" in other.err


def test_a_failed_claim_is_status_1_and_an_undefined_pair_is_not(difftilt, work):
    undefined = difftilt("verify", "--algorithm", "adjoint_matching", "--problem", "pairwise", "--json", "rows.json")
    assert undefined.code == 0
    assert "not defined: expected a chain of Gaussian steps" in undefined.out
    table = json.loads(Path("rows.json").read_text())
    table["rows"][0]["passed"] = False
    Path("rows.json").write_text(json.dumps(table))
    failed = difftilt("verify", "--algorithm", "adjoint_matching", "--problem", "pairwise", "--json", "rows.json")
    assert failed.code == 1
    assert "0 claims hold, 1 fail" in failed.out
    assert failed.err == ""


def test_a_file_is_rendered(difftilt, work):
    assert difftilt(*FAST, "--json", "rows.json").code == 0
    page = difftilt("verify", "--render", "rows.json")
    assert page.code == 0
    assert page.out.startswith("# The truth table\n")
    assert "## `initial-law` (gaussian)\n" in page.out
    assert "| smc:bootstrap | p\\* (tilted) |" in page.out


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--algorithm", "reinfroce"), "'reinforce'"),
        (("--problem", "mixtures"), "'mixture'"),
        (("--process", "gauss"), "'gaussian'"),
        (("--jobs", "0"), "--jobs 1 or more"),
        (("--render", "missing.json"), "make them with --json"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_status_2(difftilt, work, words, hint):
    outcome = difftilt("verify", *words)
    assert outcome.code == 2
    assert hint in outcome.err
    assert outcome.err.count("\n") == 1
