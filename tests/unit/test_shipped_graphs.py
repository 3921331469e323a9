"""The shipped models of molecular graphs keep what their cards promise; designs are drawn again here."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binom

from difftilt import build
from difftilt.core.molecules import read_molecules
from difftilt.core.policy import Policy
from difftilt.core.trajectory import sample_states

pytest.importorskip("rdkit")

DRAWN, FALSE_ALARM = 200, 1e-6


LEAST = {"qm9-graph": 0.95, "zinc-graph": 0.7}
"""Share of valid designs, without repair, that a card is to have."""
STAGES = {"qm9-graph": [1, 9, 36], "zinc-graph": [1, 38, 703]}
STEPS = {"qm9-graph": 46, "zinc-graph": 96}


@pytest.fixture(scope="module", params=list(LEAST))
def task(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def policy(task: str) -> Policy:
    return build.load_policy(task)


def valid(policy: Policy, seed: int) -> int:
    """How many of 200 designs are molecules."""
    states = sample_states(policy, DRAWN, torch.Generator().manual_seed(seed))
    return sum(molecule is not None for molecule in read_molecules(policy.codec.decode(states))[0])


def test_the_card_says_how_good_it_is(task, policy):
    card, metrics = policy.card, policy.card["metrics"]
    assert card["training"]["command"].startswith(f"difftilt pretrain {task}")
    assert metrics["valid_fraction"] >= LEAST[task]
    invalid = sum(share for name, share in metrics.items() if name.startswith("invalid_"))
    assert metrics["valid_fraction"] + invalid == pytest.approx(1, abs=1e-3)
    assert {"unique_fraction", "novel_fraction", "heavy_atoms_total_variation", "qed_distance"} <= set(metrics)


def test_it_is_small_and_runs_in_its_stages(task, policy):
    folder = build.ZOO / task / "denoiser"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 6 * 2**20
    assert [count for count, _, _ in policy.process.stages] == STAGES[task]
    assert policy.steps == STEPS[task]


@pytest.mark.slow
def test_designs_are_valid_as_often_as_the_card_says_and_seldom_so_in_few_steps() -> None:
    """H0: binomial with the card's share, once in 10^6. The twin shows 36 bonds in 4 steps."""
    policy = build.load_policy("qm9-graph")
    least = binom.ppf(FALSE_ALARM, DRAWN, policy.card["metrics"]["valid_fraction"])
    assert valid(policy, 1) >= least
    assert valid(policy.with_steps(6), 1) < least
