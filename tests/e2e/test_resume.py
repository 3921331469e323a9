"""A run that was killed goes on to the same numbers, and buys nothing twice."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from difftilt.tracking.checkpoint import checkpoint_steps

from .conftest import facts, records, spawn

LONGER = ["--steps", "12", "--checkpoint-every", "3"]


def killed_at_random(words: list[str], run: Path, log: Path, *, kills: int, seed: int) -> int:
    """Start, kill and resume ``kills`` times, then finish; returns how often a live process was killed."""
    rng, hits = random.Random(seed), 0
    for attempt in range(kills + 1):
        resume = (run / "config.toml").is_file()
        recorded = {str(record["design"]) for record in records(run / "oracle.jsonl")}
        lines = len(records(run / "metrics.jsonl"))
        called = len(log.read_text().split()) if log.is_file() else 0
        process = spawn("finetune", "--resume", run) if resume else spawn(*words, "--run", run)
        if attempt < kills:
            while process.poll() is None and len(records(run / "metrics.jsonl")) in (0, lines):
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.4))
            hits += process.poll() is None
            process.kill()
        _, err = process.communicate()
        again = recorded & set(log.read_text().split()[called:]) if log.is_file() else set()
        assert not again, "designs on record were bought again"
        if attempt == kills:
            assert process.returncode == 0, err
    return hits


def same_run(a: Path, b: Path) -> None:
    """Everything but times is equal."""
    assert records(a / "metrics.jsonl") == records(b / "metrics.jsonl")
    assert records(a / "oracle.jsonl") == records(b / "oracle.jsonl")
    assert facts(a) == facts(b)
    assert (a / "samples.csv").read_text() == (b / "samples.csv").read_text()


def test_ppo_killed_at_random_moments_repeats_the_numbers(difftilt, tiny, work):
    words = [*tiny, *LONGER, "--reward", "scorer.py:content"]
    assert difftilt(*words, "--run", "whole").code == 0
    (work / "calls.log").unlink()
    assert killed_at_random(words, Path("killed"), work / "calls.log", kills=2, seed=1) >= 1
    same_run(Path("whole"), Path("killed"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    "extra",
    [
        ["--algorithm", "ppo", "--reward", "scorer.py:picky", "--log-z-samples", "32"],
        ["--algorithm", "trajectory_balance", "--reward", "scorer.py:content", "--log-z", "learned"],
        ["--algorithm", "reward_backprop", "--random-truncation", "--steps", "40"],
        ["--algorithm", "ppo", "--kl-budget", "1", "--reward", "scorer.py:content"],
    ],
    ids=["ppo", "trajectory_balance", "reward_backprop", "kl_budget"],
)
def test_any_algorithm_killed_at_random_moments_repeats_the_numbers(difftilt, tiny, work, extra, seed):
    words = [*tiny, *LONGER, *extra]
    assert difftilt(*words, "--run", "whole").code == 0
    (work / "calls.log").unlink(missing_ok=True)
    killed_at_random(words, Path("killed"), work / "calls.log", kills=4, seed=seed)
    same_run(Path("whole"), Path("killed"))


def test_ctrl_c_says_how_to_go_on_and_loses_nothing_that_was_paid_for(difftilt, tiny):
    words = [*tiny, "--log-z-samples", "0", "--checkpoint-every", "1", "--reward"]
    assert difftilt(*words, "scorer.py:content", "--run", "whole").code == 0
    outcome = difftilt(*words, "scorer.py:stop_at_third_batch", "--run", "r")
    assert outcome.code == 130
    assert outcome.err == "difftilt: stopped after update 2; go on with: difftilt finetune --resume r\n"
    assert checkpoint_steps(Path("r/checkpoints")) == [1, 2]
    assert difftilt("finetune", "--resume", "r").code == 0
    same_run(Path("whole"), Path("r"))


def test_a_run_that_died_before_its_evaluation_is_finished(difftilt, tiny, work):
    assert difftilt(*tiny, "--reward", "scorer.py:content", "--run", "r").code == 0
    before, paid = facts(Path("r")), (work / "calls.log").read_text()
    samples = Path("r/samples.csv").read_text()
    for name in ("evaluation.json", "samples.csv", "report.html"):
        Path("r", name).unlink()
    assert difftilt("finetune", "--resume", "r").code == 0
    assert facts(Path("r")) == before
    assert Path("r/samples.csv").read_text() == samples
    assert Path("r/report.html").is_file()
    assert (work / "calls.log").read_text() == paid


def test_resuming_a_finished_run_only_prints_it(difftilt, tiny):
    assert difftilt(*tiny, "--run", "r").code == 0
    before = Path("r/evaluation.json").read_text()
    outcome = difftilt("finetune", "--resume", "r")
    assert outcome.code == 0
    assert "before" in outcome.out
    assert Path("r/evaluation.json").read_text() == before


def test_a_run_killed_before_its_first_checkpoint_starts_over_without_buying_again(difftilt, tiny, work):
    words = [*tiny, "--checkpoint-every", "4", "--log-z-samples", "0", "--reward"]
    assert difftilt(*words, "scorer.py:stop_at_third_batch", "--run", "r").code == 130
    recorded = {record["design"] for record in records(Path("r/oracle.jsonl"))}
    (work / "calls.log").unlink()
    assert difftilt("finetune", "--resume", "r").code == 0
    assert not recorded & set((work / "calls.log").read_text().split())


def test_a_resumed_run_keeps_its_settings(difftilt, tiny):
    assert difftilt(*tiny, "--run", "r").code == 0
    for words, hint in [
        (["--alpha", "0.3"], "the run's own --alpha 0.1; got 0.3"),
        (["--steps", "9"], "the run's own --steps 4; got 9"),
        (["--fix", "1:A"], "the run's own --fix ()"),
        (["tfbind8"], "the run's own task utr-mrl; got tfbind8"),
        (["--algorithm", "trajectory_balance"], "the run's own --algorithm ppo"),
        (["--run", "other"], "--run or --resume; got both"),
        (["--config", "r/config.toml"], "--resume or --config; got both"),
    ]:
        outcome = difftilt("finetune", *words, "--resume", "r")
        assert outcome.code == 2
        assert hint in outcome.err
    assert difftilt("finetune", "utr-mrl", "--alpha", "0.1", "--resume", "r").code == 0


def test_a_truncated_checkpoint_is_named_and_the_one_before_serves(difftilt, tiny):
    assert difftilt(*tiny, "--run", "r").code == 0
    before = facts(Path("r"))
    state = Path("r/checkpoints/4/state.safetensors")
    state.write_bytes(state.read_bytes()[:100])
    Path("r/evaluation.json").unlink()
    outcome = difftilt("finetune", "--resume", "r")
    assert outcome.code == 2
    assert "r/checkpoints/4" in outcome.err
    assert "delete that folder to continue from step 2" in outcome.err
    state.with_name("state.json").unlink()
    state.unlink()
    state.parent.rmdir()
    assert difftilt("finetune", "--resume", "r").code == 0
    assert facts(Path("r")) == before
