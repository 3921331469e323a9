"""PPO raises QED on a small model of molecules.

H0: tuning leaves the mean QED as it is. 400 molecules of each model; a one-sided z above 4.76 has a false-alarm rate of
1e-6 under H0. The twin is tuned toward noise (a hash of the molecule), and must not pass.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import pytest
import torch

pytest.importorskip("rdkit")
pytest.importorskip("selfies")
import difftilt as dt
from difftilt.core.policy import Policy
from difftilt.core.reward import score
from difftilt.core.trajectory import sample_states
from difftilt.domains.molecule import TASKS
from difftilt.domains.task import MASKED, Prior
from difftilt.rewards.chemistry import PropertyReward
from difftilt.training.pretrain import PretrainConfig, pretrain

RINGS = ["c1ccccc1", "C1CCNCC1", "c1ccncc1", "C1CCOC1", "c1ccsc1", "C1CCCC1"]
CHAINS = ["", "C", "CC", "CCC", "CCO", "NCC", "CN(C)C", "N#C", "CO", "Cl", "CCOC", "OC(=O)"]
SMILES = [chain + ring for ring in RINGS for chain in CHAINS]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    path = tmp_path_factory.mktemp("data") / "small.csv"
    path.write_text("smiles\n" + "\n".join(SMILES) + "\n")
    network = {"type": "causal_transformer", "width": 16, "depth": 1, "heads": 2}
    settings = PretrainConfig(updates=120, batch=32, learning_rate=1e-2, validate_every=60, ema=0.9)
    task = dataclasses.replace(TASKS[0], priors={MASKED: Prior(denoiser=network, training=settings)})
    data = task.split(task.read(path))
    policy = task.untrained(MASKED, data, seed=0)
    pretrain(
        policy.denoiser, policy.process, data.states[data.prior_train], data.states[data.prior_validation], settings
    )
    return policy


def _noise(designs: Sequence[str]) -> list[float]:
    return [int(hashlib.sha256(design.encode()).hexdigest()[:8], 16) / 16**8 for design in designs]


def _rise(pretrained: Policy, reward: object) -> float:
    """The z of the rise in mean QED after tuning toward ``reward``."""
    settings = dt.PPO(alpha=0.02, learning_rate=5e-3, batch=64)
    tuned = dt.finetune(pretrained, reward, settings, loop=dt.LoopConfig(steps=15, seed=0)).policy
    qed, values = PropertyReward("qed"), []
    for policy in (pretrained, tuned):
        value = score(qed, policy.codec, sample_states(policy, 400, torch.Generator().manual_seed(1))).value
        values.append(value[~value.isnan()])
    before, after = values
    error = (before.var() / len(before) + after.var() / len(after)).sqrt()
    return ((after.mean() - before.mean()) / error).item()


@pytest.mark.slow
def test_ppo_raises_qed(small):
    assert _rise(small, PropertyReward("qed")) > 4.76


@pytest.mark.slow
def test_tuning_toward_noise_does_not_pass_the_same_test(small):
    assert _rise(small, _noise) < 4.76
