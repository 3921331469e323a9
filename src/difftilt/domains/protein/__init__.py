"""Protein tasks: ``gb1`` (four sites, every combination) and ``gfp`` (variants of a whole protein)."""

from __future__ import annotations

import numpy as np

from difftilt.data import Table
from difftilt.data.sets import gb1, gfp
from difftilt.domains.protein.alignment import Line, alignment
from difftilt.domains.protein.task import ProteinTask
from difftilt.domains.task import MASKED, Prior
from difftilt.training.pretrain import PretrainConfig
from difftilt.training.regress import RegressConfig

BRIGHT = 3.0
"""log10 brightness that parts the two modes of ``gfp``, 1.3 to 2 and 2.8 to 4.1; 316 of 46,546 lie between them."""
MOST = 8
"""Mutations of ``gfp`` that p_pre learns and its sampler keeps to; 11 of 26,567 bright variants have more."""


def _not_better(table: Table) -> np.ndarray:
    """Functional, but never better than the wild type: 0.01 < fitness <= 1. All rows where there are no scores."""
    if table.score_column is None:
        return np.ones(len(table), dtype=bool)
    return (table.scores > 0.01) & (table.scores <= 1)


def _whole(table: Table) -> np.ndarray:
    """Genotypes without a stop codon."""
    return np.array([gfp.STOP not in design for design in table.sequences])


def _functional(table: Table) -> np.ndarray:
    """Bright variants with an intact chromophore and at most :data:`MOST` mutations; one's own data are all learned."""
    if "n_barcodes" not in table.columns or len(table.sequences[0]) != len(gfp.WILD_TYPE):
        return np.ones(len(table), dtype=bool)
    count = np.array([sum(map(str.__ne__, design, gfp.WILD_TYPE)) for design in table.sequences])
    intact = np.array([design[63:66] == "SYG" for design in table.sequences])
    return (table.scores > BRIGHT) & (count <= MOST) & intact


GB1 = ProteinTask(
    name="gb1",
    domain="protein",
    summary="four sites of protein G domain B1 toward binding of IgG-Fc (Wu et al. 2016); the table is the reward",
    data_set="gb1",
    wild_type=gb1.WILD_TYPE,
    numbers=(39, 40, 41, 54),
    score_name="fitness (wild type = 1)",
    naturalness=(
        "p_pre is trained on variants with 0.01 < fitness <= 1: functional, never better than the wild type. "
        "Likelihood under it means likeness to those."
    ),
    prior_rows=_not_better,
    cluster_distance=None,
    default_reward="table",
    exact=True,
    priors={
        MASKED: Prior(
            denoiser={"type": "variants", "width": 96, "depth": 2, "dropout": 0.1},
            training=PretrainConfig(
                updates=1000, batch=256, learning_rate=2e-3, weight_decay=0.1, ema=0.99, validate_every=250
            ),
            steps=4,
        )
    },
    reward={"type": "conv", "width": 48, "kernel": 3, "dilations": [1, 1], "hidden": 96, "dropout": 0.1},
    reward_training=RegressConfig(epochs=3, batch=256, members=1),
    judge={"type": "variants", "width": 64, "depth": 2, "dropout": 0.1},
    judge_training=RegressConfig(epochs=4, batch=256, members=2, seed=1),
)
GFP = ProteinTask(
    name="gfp",
    domain="protein",
    summary="green fluorescent protein (avGFP, 237 residues) toward brighter variants (Sarkisyan et al. 2016)",
    data_set="gfp",
    wild_type=gfp.WILD_TYPE,
    numbers=range(2, len(gfp.WILD_TYPE) + 2),
    noted={"chromophore": (65, 66, 67)},
    bright=BRIGHT,
    score_name="brightness (log10, arbitrary units)",
    naturalness=(
        "p_pre is trained on bright variants of avGFP (log10 brightness above 3) with at most 8 mutations, so "
        "likelihood under it means likeness to working near copies of one protein, not to natural proteins."
    ),
    rows=_whole,
    prior_rows=_functional,
    cluster_distance=None,
    priors={
        MASKED: Prior(
            denoiser={"type": "variants", "width": 16, "depth": 1, "dropout": 0.2},
            training=PretrainConfig(
                updates=200, batch=512, learning_rate=5e-4, weight_decay=1.0, ema=0.98, validate_every=100
            ),
            steps=32,
            note=(
                "Its sampler holds the chromophore S65-Y66-G67 (usual numbers; the design leaves out Met 1) and shows "
                "at most 8 mutations."
            ),
        )
    },
    reward={"type": "variants", "width": 16, "depth": 2, "dropout": 0.0},
    reward_training=RegressConfig(epochs=6, weight_decay=0.1, members=2),
    judge={"type": "stability", "rank": 8},
    judge_training=RegressConfig(epochs=6, learning_rate=1e-2, members=2, seed=1),
)
TASKS = (GB1, GFP)

__all__ = ["GB1", "GFP", "TASKS", "Line", "ProteinTask", "alignment"]
