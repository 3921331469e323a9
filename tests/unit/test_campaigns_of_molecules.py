"""Campaigns over molecules: not every design that a model makes can be read back, and no plate has one that cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("rdkit")

from difftilt.campaigns import candidates, constraints
from difftilt.campaigns.campaign import Campaign
from difftilt.campaigns.checks import check_settings
from difftilt.campaigns.history import CampaignSettings
from difftilt.campaigns.settings import Picking, Tuning
from difftilt.campaigns.strategies import STRATEGIES, strategy
from difftilt.core.codec import fault_of
from difftilt.core.policy import Policy
from difftilt.core.registry import construct
from difftilt.domains.molecule.codec import SelfiesCodec
from difftilt.domains.molecule.graph_codec import GraphCodec
from difftilt.domains.molecule.graphs import staged
from difftilt.errors import ConfigError, DataError, StateError, UnsupportedError
from difftilt.rewards.chemistry import PropertyReward
from difftilt.rng import seeded_initialisation

QUICK = Tuning(alpha=0.05, beta=0.05, updates=2, paths=16)


def graphs() -> Policy:
    """Untrained: most of its graphs are no molecules."""
    codec = GraphCodec(["C", "N", "O"], 4)
    with seeded_initialisation(0):
        spec = {"type": "graph_transformer", "width": 16, "edge_width": 8, "depth": 1, "heads": 2}
        denoiser = construct("denoiser", {**spec, "nodes": 4, "atoms": 4, "bonds": codec.bonds})
    return Policy(denoiser, staged(codec), codec, (codec.length,), steps=6)


def words() -> Policy:
    """Untrained SELFIES of so few words that canonical spellings of some molecules do not fit."""
    codec = SelfiesCodec(["[C]", "[O]", "[=C]", "[Branch1]", "[C][C]", "[Ring1]", "[O][C][C]"], 4)
    with seeded_initialisation(0):
        denoiser = construct("denoiser", {"type": "conv", "vocabulary": codec.vocabulary, "length": 4, "width": 8})
    return Policy(
        denoiser, construct("process", {"type": "masked", "vocabulary": codec.vocabulary}), codec, (4,), steps=4
    )


MODELS = {"graphs": graphs, "words": words}
BRED = ("genetic", "batch-bo")


@pytest.mark.parametrize("name", MODELS)
def test_some_designs_of_these_models_cannot_be_read_back(name: str) -> None:
    """What the tests below are about is there."""
    policy = MODELS[name]()
    designs = policy.sample(200, seed=0)
    faults = [fault_of(policy.codec, design) for design in designs]
    assert 0 < sum(fault is None for fault in faults) < 200
    for design, fault in zip(designs, faults, strict=True):
        if fault is None:
            policy.codec.encode([design])
        else:
            with pytest.raises(DataError):
                policy.codec.encode([design])


@pytest.mark.parametrize("who", BRED)
@pytest.mark.parametrize("name", MODELS)
def test_strategies_that_change_letters_are_refused(tmp_path: Path, name: str, who: str) -> None:
    with pytest.raises(UnsupportedError, match="model of letters"):
        strategy(who)(MODELS[name](), tmp_path)


def play(folder: Path, policy: Policy, who: str) -> Campaign:
    settings = CampaignSettings(
        name="lab", task="none", strategy=who, batch=6, budget=18, tuning=QUICK, picking=Picking(surrogate="gp")
    )
    campaign = Campaign.create(folder, settings)
    for _ in range(2):
        plate = campaign.propose(proposer=strategy(who)(policy, campaign.folder))
        values = PropertyReward("qed")([design.design for design in plate]).tolist()
        campaign.record([{"id": d.id, "value": v} for d, v in zip(plate, values, strict=True)])
    return campaign


@pytest.mark.parametrize("who", sorted(set(STRATEGIES) - {"seiko-bootstrap", *BRED}))
@pytest.mark.parametrize("name", MODELS)
def test_every_design_of_a_plate_can_be_learned_from(tmp_path: Path, name: str, who: str) -> None:
    policy = MODELS[name]()
    history = play(tmp_path, policy, who).history()
    assert len(history.designs) > 6
    states = policy.codec.encode([design.design for design in history.designs])
    assert torch.is_tensor(states)


@pytest.mark.parametrize("name", MODELS)
def test_without_the_sieve_a_plate_has_designs_of_which_nothing_is_learned(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin."""
    for module in (candidates, constraints):
        monkeypatch.setattr(module, "fault_of", lambda codec, design: None)
    with pytest.raises((DataError, StateError)):
        play(tmp_path, MODELS[name](), "greedy")


@pytest.mark.parametrize(
    ("who", "surrogate", "refused"),
    [
        ("seiko-ucb", "auto", True),
        ("seiko-ucb", "linear", False),
        ("conservative", "auto", False),
        ("random", "auto", False),
    ],
)
def test_a_missing_package_is_named_before_the_first_plate(
    who: str, surrogate: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("difftilt.surrogates.gaussian_process.importlib.util.find_spec", lambda name: None)
    settings = CampaignSettings(
        name="lab", task="none", strategy=who, batch=6, budget=18, picking=Picking(surrogate=surrogate)
    )
    policy = MODELS[next(iter(MODELS))]()
    if refused:
        with pytest.raises(ConfigError, match=r"got no botorch; run: pip install 'difftilt\[bo\]'"):
            check_settings(settings, policy)
    else:
        check_settings(settings, policy)
