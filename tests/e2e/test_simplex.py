"""Dirichlet diffusion of a task, the tutorial's setting, from pretraining to report, where letters are what counts."""

from __future__ import annotations

import csv
import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from difftilt import build
from difftilt.core.codec import SimplexCodec
from difftilt.core.policy import Policy
from difftilt.networks import TimedConvDenoiser
from difftilt.processes import Simplex
from difftilt.rng import seeded_initialisation

from .conftest import LENGTH, facts, records


@pytest.fixture(scope="session")
def simplex_models(models: Path) -> Path:
    """The same with a simplex model beside the masked one."""
    with seeded_initialisation(0):
        network = TimedConvDenoiser(4, LENGTH, "sticks", width=8, kernel=3, dilations=(1, 2))
    codec = SimplexCodec("ACGT", LENGTH, {"U": "T"})
    Policy(network, Simplex(4), codec, (LENGTH, 3), steps=6).save_pretrained(models / "simplex")
    return models


@pytest.fixture
def simplex(simplex_models: Path) -> list[str]:
    """What any job over the simplex says."""
    return ["utr-mrl", "--process", "simplex", "--models", str(simplex_models)]


SMALL = ["--designs", "64", "--log-z-samples", "32"]
TUNING = ["--steps", "3", "--batch", "16", *SMALL]


def designs(run: Path) -> list[dict[str, str]]:
    with (run / "samples.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("algorithm", ["reward_backprop", "ppo"])
def test_tuning_leaves_every_file_and_reads_letters_everywhere(difftilt, simplex, algorithm):
    """Domain numbers are those of the strings in samples.csv, not of the sticks behind them, which all differ."""
    outcome = difftilt("finetune", *simplex, *TUNING, "--algorithm", algorithm, "--run", "r")
    assert outcome.code == 0, outcome.err
    run = Path("r")
    rows, record = designs(run), facts(run)
    strings = [row["sequence"] for row in rows]
    assert {len(string) for string in strings} == {LENGTH}
    assert record["after"]["unique_fraction"] == len(set(strings)) / 64
    shares = [[string[i] == letter for string in strings] for i in range(LENGTH) for letter in "ACGT"]
    logo = [share for position in record["position_frequencies"]["after"] for share in position]
    assert logo == pytest.approx([sum(share) / 64 for share in shares])
    assert all(float(row["pretrained_log_likelihood"]) < 0 for row in rows)
    assert record["kl_nats"]["mean"] > -5 * record["kl_nats"]["error"]
    assert record["gap"]["verdict"]
    assert len(records(run / "metrics.jsonl")) == 3
    assert tomllib.loads((run / "config.toml").read_text())["settings"]["process"] == "simplex"
    assert json.loads((run / "model" / "config.json").read_text())["process"]["type"] == "simplex"
    assert "<html" in (run / "report.html").read_text()


@pytest.mark.slow
def test_an_update_moves_the_policy_toward_the_reward_and_costs_kl(difftilt, simplex):
    """Thirty updates at a small alpha raise the reward by more than both intervals; twin: alpha large, it stays."""
    risen = {}
    for alpha in ("0.02", "1000"):
        job = ["finetune", *simplex, "--steps", "30", "--batch", "32", "--designs", "256", "--log-z-samples", "0"]
        run = Path(f"alpha{alpha}")
        said = difftilt(
            *job, "--algorithm", "reward_backprop", "--learning-rate", "0.01", "--alpha", alpha, "--run", run
        )
        assert said.code == 0, said.err
        record = facts(run)
        risen[alpha] = record["after"]["reward"]["low"] > record["before"]["reward"]["high"]
        if alpha == "0.02":
            assert record["kl_nats"]["mean"] > 5 * record["kl_nats"]["error"]
    assert risen == {"0.02": True, "1000": False}


def test_a_weighted_sampler_counts_designs_and_not_sticks(difftilt, simplex):
    outcome = difftilt("steer", *simplex, *SMALL, "--sampler", "smc", "--alpha", "0.5", "--run", "r")
    assert outcome.code == 0, outcome.err
    strings = [row["sequence"] for row in designs(Path("r"))]
    after = facts(Path("r"))["after"]
    assert after["distinct_drawn"] == len(set(strings)) / len(strings)
    assert after["unique_fraction"] <= after["distinct_drawn"]


def test_designs_of_the_model_and_of_a_run_are_strings(difftilt, simplex, simplex_models):
    assert difftilt("finetune", *simplex, *TUNING, "--run", "r").code == 0
    for words in (["r"], [simplex_models, "--process", "simplex"]):
        said = difftilt("sample", *words, "-n", "5")
        assert said.code == 0, said.err
        drawn = [row.split(",")[1] for row in said.out.splitlines()[1:]]
        assert [len(string) for string in drawn] == [LENGTH] * 5


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["finetune", "--fix", "2:ACG"], "can hold positions fixed (masked); got Simplex; leave out --fix"),
        (["finetune", "--algorithm", "adjoint_matching"], "got SimplexStep"),
        (["steer", "--sampler", "mcmc"], "got Simplex; use refine"),
        (["finetune", "--process", "simplx"], "did you mean 'simplex'?"),
    ],
)
def test_what_is_not_defined_is_refused_and_leaves_no_run(difftilt, simplex, words, hint):
    outcome = difftilt(words[0], *simplex, *words[1:], "--run", "r")
    assert outcome.code == 2
    assert hint in outcome.err
    assert outcome.err.count("\n") == 1
    assert not Path("r").exists()


def test_a_run_keeps_its_process(difftilt, simplex):
    assert difftilt("finetune", *simplex, *TUNING, "--run", "r").code == 0
    assert "the run's own --process simplex" in difftilt("finetune", "--resume", "r", "--process", "masked").err
    assert "the run's own process, simplex" in difftilt("sample", "r", "--process", "masked").err


def test_a_task_without_the_model_says_how_to_make_it(difftilt, work):
    said = difftilt("finetune", "utr-mrl", "--process", "simplex", "--models", work).err
    assert "got none; make one with `difftilt pretrain utr-mrl --process simplex --output models/utr-mrl`" in said
    assert "models shipped (masked, simplex)" in difftilt("list").out
    said = difftilt("finetune", "tfbind8", "--process", "simplex").err
    assert "expected a known process of tfbind8; got 'simplex'" in said


def test_a_simplex_model_is_trained_beside_the_masked_one(difftilt, work, monkeypatch):
    """Each has its own folder and checkpoints."""
    small = {"width": 8, "kernel": 3, "dilations": [1]}
    task = build.TASKS["utr-mrl"]
    priors = {name: replace(prior, denoiser={**prior.denoiser, **small}) for name, prior in task.priors.items()}
    monkeypatch.setitem(build.TASKS, "utr-mrl", replace(task, priors=priors, cluster_distance=None))
    letters = "ACGT"
    rows = [a + b + c + d + "A" + a + b for a in letters for b in letters for c in letters for d in letters]
    (work / "own.csv").write_text("sequence\n" + "\n".join(rows) + "\n")
    words = ["pretrain", "utr-mrl", "--data", "own.csv", "--updates", "2", "--only", "denoiser", "-o", "mine"]
    assert difftilt(*words).code == 0
    said = difftilt(*words, "--process", "simplex")
    assert said.code == 0, said.err
    assert "next: difftilt finetune utr-mrl --process simplex --models mine" in said.out
    configs = {part: json.loads(Path(f"mine/{part}/config.json").read_text()) for part in ("denoiser", "simplex")}
    assert [config["process"]["type"] for config in configs.values()] == ["masked", "simplex"]
    assert configs["simplex"]["event_shape"] == [7, 3]
    card = configs["simplex"]["card"]
    assert (card["name"], card["process"]) == ("utr-mrl simplex", "simplex")
    assert {"test_bound_nats_per_token", "sampled_3mer_correlation"} <= set(card["metrics"])
    assert sorted(path.name for path in Path("mine/checkpoints").iterdir()) == ["masked", "simplex"]
    assert "a finished denoiser" in difftilt(*words, "--process", "simplex").err
    job = ["--steps", "1", "--batch", "8", "--designs", "16", "--reward", "scorer.py:content", "--data", "own.csv"]
    said = difftilt("finetune", "utr-mrl", "--process", "simplex", "--models", "mine", *job, "--run", "r")
    assert said.code == 0, said.err
    assert {"novelty", "kmer_correlation"} <= set(facts(Path("r"))["after"])
