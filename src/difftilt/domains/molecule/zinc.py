"""``zinc-qed``: drug-like molecules toward drug-likeness, or another computed property."""

from __future__ import annotations

from difftilt.domains.molecule.named import REWARDS
from difftilt.domains.molecule.task import MoleculeTask
from difftilt.domains.task import MASKED, Prior
from difftilt.rewards.chemistry import PROPERTIES
from difftilt.training.pretrain import PretrainConfig

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
            tuning_rate=2e-4,
            training=PretrainConfig(
                updates=16_000, batch=128, learning_rate=2e-3, weight_decay=0.01, ema=0.999, validate_every=1000
            ),
            note=(
                "Words are shown from left to right. Its laws are sharpened by the temperature 0.7 after training: "
                "QED, logP, synthetic accessibility and rings are then nearer to the data's, and the bound is that of "
                "the sharpened law."
            ),
        )
    },
)  # fmt: skip
