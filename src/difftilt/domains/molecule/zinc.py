"""``zinc-qed``: drug-like molecules toward drug-likeness, or another computed property."""

from __future__ import annotations

from difftilt.domains.molecule.task import MoleculeTask
from difftilt.domains.task import MASKED, Prior
from difftilt.training.pretrain import PretrainConfig

ZINC = MoleculeTask(
    name="zinc-qed",
    domain="molecule",
    summary="drug-like molecules toward higher QED, or another property that RDKit computes (ZINC250k, SELFIES)",
    data_set="zinc250k",
    score_name="QED (0 to 1)",
    naturalness="",
    priors={
        MASKED: Prior(
            denoiser={
                "type": "conv_transformer", "width": 96, "kernel": 5, "dilations": [1, 2, 4, 8], "depth": 2, "heads": 4
            },
            training=PretrainConfig(
                updates=5000, batch=64, learning_rate=1.5e-3, weight_decay=0.01, ema=0.998, validate_every=500
            ),
            steps=32,
        )
    },
)  # fmt: skip
