"""Defects that reviewers found with commands: one test each, named by what broke."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

import difftilt as dt
from difftilt import build
from difftilt.cli import main
from difftilt.core.algorithm import Anchor
from difftilt.domains import pretraining, sequence
from difftilt.errors import ConfigError, StateError
from difftilt.rewards.function import FunctionReward
from difftilt.rewards.oracle import Answer, Oracle
from difftilt.training.finetune import LoopConfig, finetune

SCORERS = """
import sys

def huge(designs):
    return [-sys.float_info.max if d[0] == "A" else float(d.count("G")) for d in designs]

def counts(designs):
    return [float(d.count("A")) for d in designs]

def leaves(designs):
    sys.exit(3)
"""


@pytest.fixture
def scorers(work):
    (work / "own.py").write_text(SCORERS)
    return work


def random_rows(n, length):
    generator = torch.Generator().manual_seed(0)
    return ["".join("ACGT"[i] for i in torch.randint(4, (length,), generator=generator)) for _ in range(n)]


def one_line(outcome):
    assert outcome.code == 2
    lines = [line for line in outcome.err.splitlines() if line.startswith("difftilt:")]
    assert len(lines) == 1
    assert "Traceback" not in outcome.err
    return lines[0]


def test_a_penalty_beyond_float_range_does_not_turn_the_policy_into_nan(difftilt, tiny, scorers):
    said = one_line(difftilt(*tiny, "--reward", "own.py:huge", "--log-z-samples", "0", "--run", "r"))
    assert "expected a finite gradient in update 1" in said
    assert "lower the learning rate" in said


def test_a_learning_rate_that_blows_up_ends_the_run_with_the_last_checkpoint_kept(difftilt, tiny, scorers):
    words = [*tiny, "--reward", "own.py:counts", "--learning-rate", "1e30", "--log-z-samples", "0", "--run", "r"]
    said = one_line(difftilt(*words, "--checkpoint-every", "1"))
    assert "expected a finite" in said
    for line in (
        (scorers / "r" / "metrics.jsonl").read_text().splitlines() if (scorers / "r/metrics.jsonl").is_file() else []
    ):
        assert json.loads(line)["kl_nats"] is not None
    assert not (scorers / "r" / "evaluation.json").exists()


def test_a_model_folder_with_nan_weights_is_refused(difftilt, models, work):
    policy = dt.load(str(models / "denoiser"))
    policy.save_pretrained(work / "broken")
    weights = load_file(work / "broken" / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] * math.nan}, work / "broken" / "model.safetensors")
    assert "expected finite numbers in" in one_line(difftilt("sample", "broken", "-n", "3", "-o", "x.csv"))


def test_evaluating_a_diverged_policy_is_an_error(models):
    policy = dt.load(str(models / "denoiser"))
    broken = policy.frozen_copy()
    for parameter in broken.parameters():
        parameter.data *= math.nan
    with pytest.raises(StateError, match="the policy has diverged"):
        dt.evaluate(broken, policy, lambda designs: [1.0] * len(designs), alpha=0.1, designs=8, pool=8)


def test_own_data_are_not_judged_by_the_replicate_of_the_shipped_table(monkeypatch, work):
    """The judge of tfbind8 is trained on a replicate of SIX6, whatever --data was."""
    rows = random_rows(200, 10)
    (work / "own.csv").write_text("sequence,score\n" + "".join(f"{row},{row.count('A')}\n" for row in rows))
    asked = []
    monkeypatch.setattr(sequence, "load", asked.append)
    monkeypatch.setattr(pretraining, "load", asked.append)
    monkeypatch.setattr(sequence, "train_members", lambda make, x, y, config, on_member: [make().eval()])
    assert main(["pretrain", "tfbind8", "--data", "own.csv", "--only", "judge", "-o", "m"]) == 0
    assert asked == []
    card = json.loads((work / "m" / "judge" / "config.json").read_text())["card"]
    assert card["data"]["set"] == card["data"]["file"] == "own.csv"


def test_the_shipped_judge_of_tfbind8_names_the_replicate_it_learned_from():
    card = build.load_judge(build.task("tfbind8")).card
    assert card["data"]["set"] == "tfbind8/SIX6_REF_R2"
    reward = build.load_reward(build.task("yeast-promoter"), None).card
    assert "by cluster" in reward["data"]["split"]


def test_a_resumed_function_is_as_proven_as_it_was():
    """One failing batch of few designs must not end a resumed run that would have gone on uninterrupted."""

    def fails(designs):
        raise ValueError("no")

    fresh, resumed = FunctionReward(fails), FunctionReward(fails)
    Oracle(resumed, history=[Answer("a", 1.0, None)])
    assert not fresh.proven
    assert resumed(["b", "c"]).isnan().all()


def test_a_run_is_resumed_from_another_working_directory(difftilt, tiny, scorers, monkeypatch, tmp_path_factory):
    words = [*tiny, "--log-z-samples", "0", "--reward", "scorer.py:stop_at_third_batch", "--run", "r"]
    assert difftilt(*words).code == 130
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert difftilt("finetune", "--resume", scorers / "r").code == 0


@pytest.mark.parametrize("alpha", [math.nan, math.inf, 0.0, -1.0])
def test_a_temperature_that_is_no_positive_number_is_refused(models, alpha):
    policy, method = dt.load(str(models / "denoiser")), dt.TrajectoryBalance(alpha=alpha, batch=8)
    with pytest.raises(ConfigError, match="expected alpha > 0"):
        finetune(policy, lambda d: [1.0] * len(d), method, loop=LoopConfig(steps=1))
    with pytest.raises(ConfigError, match="expected alpha > 0"):
        dt.PPO().init(policy.requires_grad_(True), [Anchor(policy.frozen_copy(), alpha)])


def test_a_column_of_scores_without_a_score_is_named(difftilt, work):
    (work / "own.csv").write_text("sequence,score\n" + "".join(f"{row},nan\n" for row in random_rows(64, 50)))
    said = one_line(difftilt("pretrain", "utr-mrl", "--data", "own.csv", "-o", "m"))
    assert "expected numbers in the column 'score'; got none" in said


def test_a_scorer_that_exits_is_an_error_of_the_scorer(difftilt, tiny, scorers):
    said = one_line(difftilt(*tiny, "--reward", "own.py:leaves", "--log-z-samples", "0", "--run", "r"))
    assert "SystemExit" in said


@pytest.mark.parametrize("name", ["evaluation.json", "log_z.json"])
def test_a_damaged_file_of_a_run_is_named(difftilt, tiny, work, name):
    assert difftilt(*tiny, "--run", "r").code == 0
    (work / "r" / name).write_text("{oops")
    said = one_line(difftilt("finetune", "--resume", "r"))
    assert name in said
    assert "got a damaged file; delete it" in said


def test_a_method_on_the_command_line_wins_over_that_of_the_file(difftilt, tiny, work):
    assert difftilt(*tiny, "--clip", "0.3", "--alpha", "0.4", "--run", "a").code == 0
    words = ["finetune", "utr-mrl", "--config", "a/config.toml", "--algorithm", "trajectory_balance", "--run", "b"]
    assert difftilt(*words).code == 0
    text = (work / "b" / "config.toml").read_text()
    assert "alpha = 0.4" in text
    assert "clip" not in text


def test_no_designs_are_refused(models):
    with pytest.raises(ConfigError, match="expected at least one design"):
        dt.load(str(models / "denoiser")).sample(0)


def test_too_few_scored_rows_are_found_before_anything_is_trained(difftilt, work):
    rows = random_rows(40, 50)
    (work / "own.csv").write_text("sequence,score\n" + "".join(f"{row},{i}\n" for i, row in enumerate(rows)))
    said = one_line(difftilt("pretrain", "utr-mrl", "--data", "own.csv", "-o", "m", "--updates", "5"))
    assert "expected at least 20" in said
    assert not (work / "m" / "denoiser").exists()
