"""``torchrun`` makes one command several processes; what they leave is what one process leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import difftilt as package

from .conftest import facts, records

SOURCE = Path(package.__file__).parents[1]


def torchrun(*words: object) -> subprocess.CompletedProcess[str]:
    """A command in two processes, which meet on a free port of this machine."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "difftilt"]
    return subprocess.run(
        [sys.executable, *launcher, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def known(run: Path) -> list[dict[str, object]]:
    """Records without times and without what was not measured."""
    return [{k: v for k, v in record.items() if v is not None} for record in records(run / "metrics.jsonl")]


@pytest.mark.slow
def test_two_processes_leave_the_run_of_one_and_resume_it(difftilt, tiny, work):
    """Records, facts and designs; the log of the scorer shows that nothing is asked twice; one is told the outcome."""
    words = [*tiny, "--reward", "scorer.py:content", "--ema", "0.5", "--log-z-samples", "16"]
    assert difftilt(*words, "--run", "one").code == 0
    log = work / "calls.log"
    asked = sorted(log.read_text().split())
    log.unlink()
    outcome = torchrun(*words, "--run", "two")
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.count("run folder two") == 1
    assert outcome.stdout.count("two/report.html") == 1
    assert sorted(log.read_text().split()) == asked
    for one, two in zip(known(Path("one")), known(Path("two")), strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-5)
    assert facts(Path("two"))["after"]["reward"] == pytest.approx(facts(Path("one"))["after"]["reward"], rel=1e-4)
    assert len((work / "two/samples.csv").read_text().splitlines()) == 33

    before = records(Path("two/metrics.jsonl"))
    again = torchrun("finetune", "--resume", "two")
    assert again.returncode == 0, again.stderr
    assert records(Path("two/metrics.jsonl")) == before
    assert sorted(log.read_text().split()) == asked


@pytest.mark.slow
def test_what_one_process_refuses_ends_the_launcher(difftilt, tiny, work):
    """A reward that fails, and a folder that holds a run: the line is said, and nobody waits."""
    outcome = torchrun(*tiny, "--reward", "scorer.py:raises", "--run", "r")
    assert outcome.returncode != 0
    assert "difftilt: expected 'scorer.py:raises' to score at least one" in outcome.stderr
    assert not Path("r").exists()
    Path("r").mkdir()
    (work / "r" / "config.toml").touch()
    outcome = torchrun(*tiny, "--run", "r")
    assert outcome.returncode != 0
    assert "expected a new run folder; got 'r', which holds a run" in outcome.stderr
