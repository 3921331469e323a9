"""A task's model that asks for small steps is tuned at them, unless the user says otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

import difftilt as dt
from difftilt import build
from difftilt.campaigns.settings import Tuning
from difftilt.cli.kinds import plan_from

OWN = build.TASKS["zinc-qed"].priors["masked"].tuning_rate


def test_the_command_takes_the_rate_of_the_model() -> None:
    assert plan_from(["zinc-qed"]).method.learning_rate == OWN
    assert plan_from(["zinc-qed", "--algorithm", "trajectory_balance"]).method.learning_rate == OWN
    assert plan_from(["emoji"]).method.learning_rate == 2e-5
    assert plan_from(["utr-mrl"]).method.learning_rate == dt.PPO().learning_rate != OWN
    assert plan_from(["./a-model-of-my-own"]).method.learning_rate == dt.PPO().learning_rate


def test_a_flag_and_a_file_win_over_it(tmp_path: Path) -> None:
    usual = dt.PPO().learning_rate
    assert plan_from(["zinc-qed", "--learning-rate", str(usual)]).method.learning_rate == usual
    table = plan_from(["zinc-qed"]).kind.role
    (tmp_path / "mine.toml").write_text(f'[settings]\ntask = "zinc-qed"\n[{table}]\nlearning_rate = {usual}\n')
    assert plan_from(["--config", str(tmp_path / "mine.toml")]).method.learning_rate == usual
    (tmp_path / "mine.toml").write_text(f'[settings]\ntask = "zinc-qed"\n[{table}]\nbatch = 8\n')
    assert plan_from(["--config", str(tmp_path / "mine.toml")]).method.learning_rate == OWN


@pytest.mark.parametrize(
    ("strategy", "asked", "kept"),
    [("greedy", {}, OWN), ("online-ppo", {}, OWN), ("greedy", {"learning_rate": 0.01}, 0.01), ("random", {}, None)],
)
def test_so_does_a_campaign(strategy: str, asked: dict[str, float], kept: float | None, tmp_path: Path) -> None:
    settings = dt.CampaignSettings(name="lab", task="zinc-qed", strategy=strategy, tuning=Tuning(**asked))
    dt.Campaign.create(tmp_path, settings)
    assert dt.Campaign.open(tmp_path).settings.tuning.learning_rate == kept


def test_a_campaign_of_another_model_has_the_usual_rate() -> None:
    assert Tuning().rate == 4e-3
    assert Tuning(learning_rate=OWN).rate == OWN
