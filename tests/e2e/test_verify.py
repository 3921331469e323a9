"""``difftilt verify`` on its fastest pairs."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from difftilt.verification.rows import Row

from .conftest import spawn

NAMES = {"process": "masked", "algorithm": "ppo", "problem": "tfbind8/SIX6_REF_R1", "target": "none"}
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


def test_the_default_pairs_of_a_method_and_a_problem_are_its_variants(difftilt, work):
    shown = difftilt("verify", "--algorithm", "smc", "--problem", "pairwise", "--jobs", "1", "--json", "rows.json")
    assert (shown.code, shown.err) == (0, "")
    found = {row["algorithm"]: row for row in json.loads(Path("rows.json").read_text())["rows"]}
    assert set(found) == {"smc", "smc:default", "smc:bootstrap"}
    assert all(row["passed"] and abs(row["kl_nats"]) < 0.01 < row["kl_removed"] for row in found.values())


def test_missing_data_are_a_row_without_a_verdict_that_is_made_later(difftilt, work, monkeypatch):
    words = ("verify", "--algorithm", "adjoint_matching", "--problem", "tfbind8/SIX6_REF_R1", "--json", "rows.json")
    with monkeypatch.context() as without:
        without.setattr("difftilt.verification.rows.find", lambda name: None)
        shown = difftilt(*words)
    assert (shown.code, shown.err) == (0, "")
    assert "difftilt data prepare tfbind8/SIX6_REF_R1" in shown.out
    (row,) = json.loads(Path("rows.json").read_text())["rows"]
    assert (row["passed"], row["kl_nats"]) == (None, None)
    monkeypatch.setattr("difftilt.verification.table.verify", lambda pair, seed: Row(**NAMES, reason="made"))
    assert difftilt(*words).code == 0
    assert [row["reason"] for row in json.loads(Path("rows.json").read_text())["rows"]] == ["made"]


@pytest.mark.parametrize("whole_group", [True, False])
def test_stopped_by_ctrl_c_it_says_how_to_go_on(work, whole_group):
    """A terminal signals every process of the command; `kill -INT` the first only."""
    words = ("verify", "--algorithm", "smc", "--process", "gaussian", "--full", "--json", "rows.json", "--jobs", "2")
    process = spawn(*words, new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("1/18")
    started = time.monotonic()
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == f"difftilt: stopped; go on with: difftilt {' '.join(words)}\n"
    assert time.monotonic() - started < 20
    rows = json.loads(Path("rows.json").read_text())["rows"]
    assert 0 < len(rows) < 18


def test_killed_it_leaves_no_process_behind_and_every_row_made(work):
    words = ("verify", "--algorithm", "smc", "--process", "gaussian", "--full", "--json", "rows.json", "--jobs", "2")
    process = spawn(*words, new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("1/18")
    process.kill()
    process.communicate(timeout=30)  # workers hold the other end of its pipes
    assert len(json.loads(Path("rows.json").read_text())["rows"]) >= 1


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--algorithm", "reinfroce"), "'reinforce'"),
        (("--problem", "mixtures"), "'mixture'"),
        (("--process", "gauss"), "'gaussian'"),
        (("--jobs", "0"), "--jobs 1 or more"),
        (("--render", "missing.json"), "name a file that --json made"),
        (("--process", "gaussian", "--problem", "pairwise"), "'gaussian' and 'pairwise'"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_status_2(difftilt, work, words, hint):
    outcome = difftilt("verify", *words)
    assert outcome.code == 2
    assert hint in outcome.err
    assert outcome.err.count("\n") == 1
