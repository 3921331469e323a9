"""``zinc-qed``: drug-like molecules toward drug-likeness, or another computed property."""

from __future__ import annotations

from difftilt.domains.molecule.task import MoleculeTask
from difftilt.domains.task import MASKED, NamedReward, Prior
from difftilt.rewards.chemistry import PROPERTIES, Objectives, PropertyReward
from difftilt.rewards.desirability import smaller, window
from difftilt.training.pretrain import PretrainConfig


def _property(name: str, summary: str) -> NamedReward:
    return NamedReward(make=lambda: PropertyReward(name), summary=summary, score_name=PROPERTIES[name].unit)


REWARDS = {
    "qed": _property("qed", "drug-likeness, 0 to 1 (Bickerton et al. 2012)"),
    "ease_of_synthesis": _property("ease_of_synthesis", "negative synthetic accessibility score: -10 hard to -1 easy"),
    "sa_score": _property(
        "sa_score", "synthetic accessibility score, 1 easy to 10 hard: for -1*sa_score and sa_score<=3, less is better"
    ),
    "logp": _property("logp", "Crippen's logP"),
    "logp_window": NamedReward(
        make=lambda: PropertyReward("logp", window(1.0, 3.0, 1.0)),
        summary="desirability of logP: 1 from 1 to 3, 0 beyond 0 and 4",
        score_name="desirability of logP (0 to 1)",
    ),
    "mol_weight": _property("mol_weight", "molecular mass, g/mol: for bounds"),
    "qed_and_ease": NamedReward(
        make=lambda: Objectives((PropertyReward("qed"), PropertyReward("sa_score", smaller(2.0, 5.0)))),
        summary="geometric mean of QED and a desirability of synthesis, 1 at a score of 2 and 0 at 5",
        score_name="drug-like and easy to make (0 to 1)",
    ),
}
"""Rewards by the names that ``--reward`` takes."""

ZINC = MoleculeTask(
    name="zinc-qed",
    domain="molecule",
    summary="drug-like molecules toward higher QED, or another property that RDKit computes (ZINC250k, SELFIES)",
    data_set="zinc250k",
    score_name=PROPERTIES["qed"].unit,
    naturalness=(
        "p_pre is trained on 192,000 purchasable drug-like molecules, so likelihood under it says how usual a "
        "molecule's words are among them, in one of its spellings. It is no evidence that a molecule can be made, is "
        "stable or does anything. QED, logP and synthetic accessibility are computed, not measured."
    ),
    rewards=REWARDS,
    default_reward="qed",
    priors={
        MASKED: Prior(
            denoiser={"type": "causal_transformer", "width": 128, "depth": 4, "heads": 4, "temperature": 0.7},
            training=PretrainConfig(
                updates=5000, batch=128, learning_rate=2e-3, weight_decay=0.01, ema=0.999, validate_every=500
            ),
            note=(
                "Words are shown from left to right. Its laws are sharpened by the temperature 0.7 after training: "
                "QED, logP, synthetic accessibility and rings are then nearer to the data's (mean QED 0.70, at 1 it is "
                "0.65), and the bound is that of the sharpened law."
            ),
        )
    },
)  # fmt: skip
