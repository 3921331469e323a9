"""The shipped protein models keep what their cards promise; every number is drawn again here, or recomputed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from difftilt import build
from difftilt.data import find
from difftilt.domains.protein import GB1, GFP, TASKS
from difftilt.metrics import proteins
from difftilt.metrics.proteins import mutant
from difftilt.problems.tilted import TiltedProblem

LARGEST = 6_000_000
"""Bytes of a shipped model."""


def card(task: str, part: str) -> dict[str, Any]:
    return json.loads((build.ZOO / task / part / "config.json").read_text())["card"]["metrics"]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_part_is_shipped_small_and_made_by_the_committed_command(task):
    needed = [part for part in task.parts if part != "reward" or task.default_reward == "model"]
    for part in needed:
        folder = build.ZOO / task.name / part
        assert (folder / "model.safetensors").stat().st_size <= LARGEST
        training = json.loads((folder / "config.json").read_text())["card"]["training"]
        assert training["command"].startswith(f"difftilt pretrain {task.name} ")
        assert training["command"].endswith(f"--output src/difftilt/zoo/{task.name}")


def test_designs_of_gfp_lie_within_the_mutations_of_the_data_and_keep_the_chromophore():
    """1,024 designs; the shares by number of mutations differ from the held-out ones' by chance alone by about 0.03."""
    policy = build.load_task_policy(GFP)
    tokens = policy.codec.encode([GFP.wild_type])[0]
    designs = policy.sample(1024, seed=5)
    drawn = policy.codec.encode(designs)
    count = proteins.mutations(drawn, tokens)
    assert count.max() <= 8
    assert count.min() >= 0
    assert all(design[63:66] == "SYG" for design in designs)
    test = torch.tensor([float(share) for share in card("gfp", "denoiser")["test_shares_by_mutations"].split()])
    mine = proteins.mutation_shares(drawn, tokens, len(test) - 1)
    assert proteins.total_variation(mine, test.double()) < 0.06
    assert len(set(designs)) > 0.97 * len(designs)


def test_a_site_independent_law_with_the_same_frequencies_would_fail_that():
    """The known-bad twin: a Poisson number of mutations of the same mean is 0.2 away."""
    test = torch.tensor([float(share) for share in card("gfp", "denoiser")["test_shares_by_mutations"].split()])
    number = torch.arange(len(test), dtype=torch.float64)
    mean = (number * test).sum()
    poisson = (number * mean.log() - mean - torch.lgamma(number + 1)).exp()
    assert proteins.total_variation(poisson, test.double()) > 0.15


def test_p_pre_of_gfp_is_likelier_on_held_out_designs_than_independent_sites():
    metrics = card("gfp", "denoiser")
    assert metrics["advantage_over_independent_sites"] > 2 * metrics["advantage_over_independent_sites_error"]
    assert metrics["test_mutations_most"] <= 8


@pytest.mark.parametrize("part", ["reward", "judge"])
def test_models_of_brightness_know_the_modes_and_a_broken_chromophore(part):
    metrics = card("gfp", part)
    assert metrics["test_auc_upper_mode"] > 0.98
    assert metrics["test_r_squared"] > 0.85
    load = build.load_reward(GFP, "model") if part == "reward" else build.load_judge(GFP)
    assert load is not None
    broken = [mutant(GFP.wild_type, change, GFP.numbers) for change in ("G67D", "G67R", "Y66D")]
    value = torch.as_tensor(load([GFP.wild_type, *broken]))
    assert value[0] > 3.4
    assert (value[1:] < value[0] - 0.5).all()


def test_reward_and_judge_are_of_different_kinds_and_saw_different_rows():
    kinds = {
        part: json.loads((build.ZOO / "gfp" / part / "config.json").read_text())["regressor"]["type"]
        for part in ("reward", "judge")
    }
    assert kinds["reward"] != kinds["judge"]


@pytest.mark.slow
def test_exact_numbers_of_gb1_on_its_card_are_those_of_the_enumerated_chain():
    if find("gb1") is None:
        pytest.skip("gb1 is not on this machine")
    metrics = card("gb1", "denoiser")
    assert metrics["exact_test_nats_per_design"] < metrics["markov_1_test_nats_per_design"]
    problem = TiltedProblem(build.load_task_policy(GB1), build.load_reward(GB1, "table"), alpha=0.5)
    assert problem.pretrained_law.sum().item() == pytest.approx(1)
    assert problem.feasible.sum().item() == 149_361
    assert problem.feasibility(problem.pretrained) == pytest.approx(metrics["share_measured"], abs=1e-3)
    assert problem.mean_reward(problem.pretrained) == pytest.approx(metrics["mean_score"], abs=1e-3)
    assert problem.tilted[~problem.feasible].sum() == 0
    assert problem.target_mean_reward > problem.mean_reward(problem.pretrained)
    assert problem.gap(problem.pretrained) >= problem.kl(problem.pretrained) > 0
