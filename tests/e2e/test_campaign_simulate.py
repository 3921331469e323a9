"""`difftilt campaign simulate`, also when it is killed."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from .conftest import spawn

COMMAND = ["campaign", "simulate", "ehrlich-8", "--strategies", "random", "--rounds", "2", "--batch", "5"]


def rows(folder: str) -> list[str]:
    """Without seconds, which differ."""
    header, *lines = Path(folder, "rounds.csv").read_text().splitlines()
    place = header.split(",").index("seconds")
    return [",".join(cell for i, cell in enumerate(line.split(",")) if i != place) for line in lines]


def test_a_simulation_writes_what_it_says(difftilt, work):
    outcome = difftilt(*COMMAND, "--seeds", "2", "-o", "out")
    assert outcome.code == 0
    assert outcome.out.splitlines()[-1] == f"see {Path('out/summary.md')}, {Path('out/ehrlich-8.png')}"
    assert len(rows("out")) == 2 * 2
    assert "| random |" in Path("out/summary.md").read_text()


def test_a_simulation_that_was_killed_ends_as_if_it_was_not(difftilt, work):
    difftilt(*COMMAND, "--seeds", "3", "-o", "whole")
    for pause in (0.0, 0.3):
        process = spawn(*COMMAND, "--seeds", "3", "-o", "killed")
        deadline = time.monotonic() + 120
        while process.poll() is None and not list(Path("killed").glob("*/*/*/seconds.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert difftilt(*COMMAND, "--seeds", "3", "-o", "killed").code == 0
    assert rows("killed") == rows("whole")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["ehrlich-9"], "did you mean 'ehrlich-"),
        (["ehrlich-8", "--strategies", "randon"], "did you mean 'random'"),
        (["ehrlich-8", "--noise", "-1"], "noise 0 or more"),
        (["ehrlich-8", "--rounds", "0"], "expected rounds and batch 1 or more"),
        (["ehrlich-8", "--seeds", "0"], "1 or more seeds"),
        (["ehrlich-8", "--rouns", "3"], "--rounds"),
    ],
)
def test_a_mistyped_simulation_is_one_line(difftilt, work, words, hint):
    outcome = difftilt("campaign", "simulate", *words)
    assert outcome.code == 2
    assert hint in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not Path("simulations").exists()


def test_other_settings_in_the_same_folder_are_refused(difftilt, work):
    difftilt(*COMMAND, "--seeds", "1", "-o", "out")
    outcome = difftilt(*COMMAND[:-1], "6", "--seeds", "1", "-o", "out")
    assert outcome.code == 2
    assert "batch 5" in outcome.err
