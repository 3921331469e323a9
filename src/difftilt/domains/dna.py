"""DNA tasks."""

from __future__ import annotations

import numpy as np

from difftilt.data import Table, names
from difftilt.domains.promoter import SECOND, SECOND_JUDGE, PromoterTask
from difftilt.domains.references import SecondReference
from difftilt.domains.sequence import SequenceTask
from difftilt.domains.task import MASKED, LearnedReward, Prior
from difftilt.training.pretrain import PretrainConfig
from difftilt.training.regress import RegressConfig


def _defined_medium(table: Table) -> np.ndarray:
    """Rows measured in the ``defined`` medium; all rows of a table without that column."""
    return table.column("medium") == "defined" if "medium" in table.columns else np.ones(len(table), dtype=bool)


def _complex_medium(table: Table) -> np.ndarray:
    """Rows measured in the ``complex`` medium; none of a table without that column."""
    return table.column("medium") == "complex" if "medium" in table.columns else np.zeros(len(table), dtype=bool)


def _native(table: Table) -> np.ndarray:
    """Native promoters and their variants: no random, drifted or model-guided (``sswm``) sequences."""
    return table.column("category") == "native" if "category" in table.columns else np.ones(len(table), dtype=bool)


def _lower_half(table: Table) -> np.ndarray:
    """Rows with a score below the median: the best designs are never seen."""
    if table.score_column is None:
        return np.ones(len(table), dtype=bool)
    return table.scores < np.nanmedian(table.scores)


YEAST = PromoterTask(
    name="yeast-promoter",
    domain="dna",
    summary="yeast promoters of 80 bp toward higher expression in defined medium (Vaishnav et al. 2022)",
    data_set="yeast-promoter",
    alphabet="ACGT",
    aliases={"U": "T"},
    score_name="expression (log-scale bin units)",
    naturalness=(
        "p_pre is trained on native promoters and their variants (199 families), so likelihood under it and k-mer "
        "correlation measure likeness to native sequence; model-guided sequences (sswm) are kept out."
    ),
    rows=_defined_medium,
    prior_rows=_native,
    priors={
        MASKED: Prior(
            denoiser={"type": "conv", "width": 64, "kernel": 7, "dilations": [1, 2], "dropout": 0.5},
            training=PretrainConfig(updates=1200, batch=128, learning_rate=1e-3, weight_decay=0.3, validate_every=100),
            steps=20,
        )
    },
    reward={"type": "conv", "width": 64, "kernel": 7, "dilations": [1, 1, 2, 4], "hidden": 64, "dropout": 0.2},
    reward_training=RegressConfig(epochs=20, members=4),
    judge={"type": "recurrent", "width": 48},
    judge_training=RegressConfig(epochs=20, members=3, seed=1),
    rewards={
        "defined": LearnedReward(
            part="reward",
            judge="judge",
            summary="expression in defined medium (SC-Ura)",
            score_name="expression in defined medium (log-scale bin units)",
        ),
        "complex": LearnedReward(
            part=SECOND,
            judge=SECOND_JUDGE,
            summary="expression in complex medium (YPD)",
            score_name="expression in complex medium (log-scale bin units)",
        ),
    },
    second_rows=_complex_medium,
    second_reward={"type": "conv", "width": 32, "kernel": 7, "dilations": [1, 2], "hidden": 32, "dropout": 0.1},
    second_reward_training=RegressConfig(epochs=4, learning_rate=4e-3, members=2, seed=2),
    second_judge={"type": "recurrent", "width": 16},
    second_judge_training=RegressConfig(epochs=4, learning_rate=6e-3, members=1, seed=3),
    motifs={"TTACCCG": "Reb1", "RTCRYNNNNNACG": "Abf1", "TGACTCA": "Gcn4", "AAAAAAA": "poly(dA:dT)"},
    both_strands=True,
    words=(4,),  # of 6 letters, 199 families show too few
)


def _as_found(table: Table) -> np.ndarray:
    """Genomic sequences as they are: no mutants of CRX sites or of shape."""
    return table.column("construct") == "WT" if "construct" in table.columns else np.ones(len(table), dtype=bool)


def _element(table: Table) -> list[str] | None:
    """The genomic element of each row: labels end in the construct."""
    return [label.rpartition("_")[0] for label in table.column("label")] if "label" in table.columns else None


def _native_elements(table: Table) -> np.ndarray:
    """Pieces of a genome: no random or designed elements."""
    return table.column("group") == "native"


CRX = SequenceTask(
    name="crx-enhancer",
    domain="dna",
    summary="CRX-bound elements of 164 bp toward activity in mouse retinas (Friedman et al. 2021)",
    data_set="crx-enhancer",
    alphabet="ACGT",
    aliases={"U": "T"},
    score_name="log2 activity relative to the basal promoter (at least -4)",
    naturalness=(
        "p_pre is trained on 4,335 genomic sequences bound by CRX in mouse, mutants left out; most are turned so that "
        "the CRX site at their centre reads TAATCC. Likelihood under it says how much a design looks like such an "
        "element, in composition, CRX sites and their place."
    ),
    prior_rows=_as_found,
    family=_element,
    floor=-4.0,  # a 16th of basal; what was not detected is listed as -10: 2.5 % of the rows, 41 % of the variance
    priors={
        MASKED: Prior(
            denoiser={"type": "conv", "width": 32, "kernel": 9, "dilations": [1, 2, 4, 8, 16], "dropout": 0.05},
            training=PretrainConfig(
                updates=400, batch=64, learning_rate=4e-3, weight_decay=0.05, ema=0.98, validate_every=100
            ),
            steps=64,
        )
    },
    reward={"type": "scan", "width": 48, "kernel": 7, "hidden": 32, "dropout": 0.3},
    reward_training=RegressConfig(epochs=25, learning_rate=6e-3, weight_decay=0.1, members=3),
    judge={"type": "recurrent", "width": 16, "kernel": 9},
    judge_training=RegressConfig(epochs=8, learning_rate=6e-3, members=1, seed=1),
    motifs={"TAATCC": "CRX", "TTAATCC": "CRX, its best site", "TGCTGAC": "NRL, half a site"},
    both_strands=True,
    words=(4, 6),
    second_reference=SecondReference(
        data_set="k562-enhancer", rows=_native_elements, title="2,000 native elements for human K562 cells"
    ),
)


def _binding(data_set: str) -> SequenceTask:
    """The binding landscape of one transcription factor; ``tfbind8`` alone is SIX6."""
    factor = data_set.partition("/")[2]
    default = factor == "SIX6_REF_R1"
    return SequenceTask(
        name="tfbind8" if default else data_set,
        domain="dna",
        summary=f"DNA 8-mers toward binding by {factor.split('_')[0]} (Barrera et al. 2016); the table is the reward",
        data_set=data_set,
        alphabet="ACGT",
        aliases={"U": "T"},
        score_name="normalised binding enrichment (0 to 1)",
        naturalness="p_pre is trained on the lower-scoring half of all 8-mers, so the best are never seen.",
        prior_rows=_lower_half,
        cluster_distance=None,
        default_reward="table",
        judge_set="tfbind8/SIX6_REF_R2" if default else None,
        priors={
            MASKED: Prior(
                denoiser={"type": "conv", "width": 96, "kernel": 5, "dilations": [1, 1, 1, 1]},
                training=PretrainConfig(updates=6000, weight_decay=0.01),
                steps=8,
            )
        },
        reward={"type": "conv", "width": 64, "kernel": 5, "dilations": [1, 1, 1], "hidden": 128, "dropout": 0.1},
        reward_training=RegressConfig(epochs=20, members=2),
        judge={"type": "recurrent", "width": 48, "kernel": 3},
        judge_training=RegressConfig(epochs=20, members=2, seed=1),
        shipped=default,
    )


TASKS = (YEAST, CRX, *(_binding(name) for name in names() if name.startswith("tfbind8/")))
