"""The shipped model of SELFIES keeps what its card promises; molecules are drawn again here."""

from __future__ import annotations

import pytest
import torch

from difftilt import build
from difftilt.core.policy import Policy
from difftilt.core.trajectory import sample_states

pytest.importorskip("rdkit")
pytest.importorskip("selfies")

from difftilt.rewards.chemistry import PropertyReward

DRAWN = 256


@pytest.fixture(scope="module")
def policy() -> Policy:
    return build.load_policy("zinc-qed")


def qed(policy: Policy) -> torch.Tensor:
    """Of molecules drawn here."""
    states = sample_states(policy, DRAWN, torch.Generator().manual_seed(1))
    return PropertyReward("qed")(policy.codec.decode(states))


def test_the_card_says_how_good_it_is(policy):
    metrics = policy.card["metrics"]
    assert policy.card["training"]["command"].startswith("difftilt pretrain zinc-qed")
    assert metrics["sampled_designs"] == 10_000
    assert metrics["unique_fraction"] >= 0.98
    assert metrics["novel_fraction"] >= 0.90
    assert abs(metrics["qed_mean"] - metrics["training_qed_mean"]) <= 0.05
    assert metrics["advantage_over_markov_2"] > 10 * metrics["advantage_over_markov_2_error"]
    assert {f"{name}_distance" for name in ("qed", "logp", "sa_score", "rings")} <= set(metrics)


def test_it_is_small_and_shows_one_word_a_step(policy):
    folder = build.ZOO / "zinc-qed" / "denoiser"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 6 * 2**20
    assert policy.process.in_order
    assert policy.steps == policy.event_shape[0]


def test_molecules_are_as_drug_like_as_the_card_says_and_less_so_without_its_temperature(policy):
    """H0: the mean QED of the card; 256 molecules, |z| below 5. The twin is blunted."""

    def z(chain: Policy) -> float:
        values = qed(chain)
        return ((values.mean() - policy.card["metrics"]["qed_mean"]) / values.std() * DRAWN**0.5).item()

    assert abs(z(policy)) < 5
    plain = policy.frozen_copy()
    plain.denoiser.temperature = 2.0
    assert z(plain) < -5
