"""RNA tasks. Sequences are printed in the letters of their task; T and U are both read."""

from __future__ import annotations

import numpy as np

from difftilt.data import Table
from difftilt.domains.sequence import SequenceTask
from difftilt.domains.task import MASKED, Prior
from difftilt.training.pretrain import PretrainConfig
from difftilt.training.regress import RegressConfig


def _upper_half(table: Table) -> np.ndarray:
    """Rows with a score at or above the median; all rows of a table without scores."""
    if table.score_column is None:
        return np.ones(len(table), dtype=bool)
    return table.scores >= np.nanmedian(table.scores)


TASKS = (
    SequenceTask(
        name="utr-mrl",
        domain="rna",
        summary="5'UTRs of 50 nt toward higher ribosome load (Sample et al. 2019, human cells)",
        data_set="utr-mrl",
        alphabet="ACGT",
        aliases={"U": "T"},
        score_name="mean ribosome load (ribosomes per mRNA)",
        naturalness=(
            "The library is random 50-mers: a 3rd-order Markov model has 1.378 nats a base against log 4 = 1.386. "
            "p_pre is trained on the better-loaded half and carries the uORF rule; likelihood under it is no evidence "
            "of naturalness."
        ),
        prior_rows=_upper_half,
        priors={
            MASKED: Prior(
                denoiser={"type": "conv", "width": 64, "kernel": 5, "dilations": [1, 2, 4, 8]},
                training=PretrainConfig(updates=4000, weight_decay=0.05),
            ),
            "simplex": Prior(
                denoiser={"type": "timed_conv", "reads": "sticks", "width": 64, "kernel": 5, "dilations": [1, 2, 4, 8]},
                training=PretrainConfig(updates=2000, batch=128, weight_decay=0.05, ema=0.995, validate_every=250),
                steps=50,
                note=(
                    "What is left of a letter at t = 1, 0.0016 nats a token, is not in the bound: add it before you "
                    "compare with the Markov models (tests/unit/test_shipped_simplex.py)."
                ),
            ),
        },
        reward={"type": "conv", "width": 64, "kernel": 5, "dilations": [1, 1, 2, 4], "hidden": 64, "dropout": 0.3},
        reward_training=RegressConfig(epochs=20, members=5),
        judge={"type": "recurrent", "width": 48},
        judge_training=RegressConfig(epochs=20, members=3, seed=1),
    ),
)
