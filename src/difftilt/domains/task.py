"""What a task is: a data set, the part of it that p_pre learns, a reward, a judge, and how they are split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from difftilt.core.codec import SimplexCodec, TokenCodec
from difftilt.data import Table, cluster_split, random_split
from difftilt.errors import nearest
from difftilt.training.pretrain import PretrainConfig
from difftilt.training.regress import RegressConfig
from difftilt.types import Float, Int, Tensor

MASKED = "masked"
"""The process that is meant where none is named."""
CODECS = {"simplex": SimplexCodec}
"""How states are read, by process; tokens where not named."""


def every_row(table: Table) -> np.ndarray:
    """All rows."""
    return np.ones(len(table), dtype=bool)


def prior_folder(process: str) -> str:
    """Folder of a p_pre among a task's models."""
    return "denoiser" if process == MASKED else process


@dataclass(frozen=True, kw_only=True)
class Prior:
    """A p_pre of a task, over one process."""

    denoiser: Mapping[str, Any] = field(default_factory=lambda: {"type": "conv"})
    """Its network; vocabulary and length are filled in."""
    training: PretrainConfig = field(default_factory=PretrainConfig)
    """How it is trained."""
    steps: int = 16
    """Steps K of its chain."""
    note: str | None = None
    """What its card says besides."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A named problem over fixed-length sequences."""

    name: str
    """What the user types."""
    domain: str
    """``"dna"`` or ``"rna"``."""
    summary: str
    """One line."""
    data_set: str
    """Name of its data set."""
    alphabet: str
    """Letters, as printed."""
    aliases: Mapping[str, str]
    """Letters read as another."""
    score_name: str
    """What the reward is, with its unit."""
    naturalness: str
    """What likelihood under p_pre does and does not mean here."""
    rows: Callable[[Table], np.ndarray] = every_row
    """Rows the task uses at all."""
    prior_rows: Callable[[Table], np.ndarray] = every_row
    """Rows, of those used, that p_pre learns."""
    cluster_distance: int | None = 3
    """Sequences within this Hamming distance never fall in different parts; ``None`` splits rows at random."""
    table_reward: bool = False
    """Whether the measured table itself is the reward (the data set is complete)."""
    judge_set: str | None = None
    """A replicate measurement that judges a table reward."""
    priors: Mapping[str, Prior] = field(default_factory=lambda: {MASKED: Prior()})
    """Every p_pre it has, by process."""
    reward: Mapping[str, Any] = field(default_factory=lambda: {"type": "conv"})
    """Regressor of the reward."""
    reward_training: RegressConfig = field(default_factory=RegressConfig)
    """How it is trained."""
    judge: Mapping[str, Any] = field(default_factory=lambda: {"type": "recurrent"})
    """Regressor of the judge."""
    judge_training: RegressConfig = field(default_factory=lambda: RegressConfig(seed=1))
    """How it is trained."""
    shipped: bool = True
    """Whether its models are in the zoo."""

    def codec(self, length: int, process: str = MASKED) -> TokenCodec:
        """Codec of this task's letters, for states of a process."""
        return CODECS.get(process, TokenCodec)(self.alphabet, length, dict(self.aliases))

    def prior(self, process: str) -> Prior:
        """The p_pre over a process.

        Raises:
            ConfigError: the task has none.
        """
        if process not in self.priors:
            raise nearest(process, self.priors, what=f"process of {self.name}")
        return self.priors[process]


@dataclass(frozen=True)
class TaskData:
    """A task's table as tensors, split: test rows are seen by nobody, reward and judge rows are disjoint."""

    codec: TokenCodec
    tokens: Int[Tensor, "N L"]
    scores: Float[Tensor, " N"]
    test: Int[Tensor, " T"]
    reward: Int[Tensor, " R"]
    judge: Int[Tensor, " J"]
    prior_train: Int[Tensor, " P"]
    prior_validation: Int[Tensor, " Q"]
    prior_test: Int[Tensor, " S"]


def split_task(task: Task, table: Table, *, seed: int = 0) -> TaskData:
    """Split a table for ``task``: 10 % test, the rest halved between reward and judge; p_pre learns from both halves.

    Args:
        task: says which rows count, and how they may be split.
        table: designs with scores; NaN scores are left out of reward and judge.
        seed: of the split.
    """
    table = table.take(task.rows(table))
    codec = task.codec(len(table.sequences[0]))
    tokens = codec.encode(table.sequences)
    parts = _split(task, table.sequences, (0.1, 0.45, 0.45), seed)
    test, reward, judge = parts
    prior = task.prior_rows(table)
    rest = np.concatenate([reward, judge])
    rest = rest[prior[rest]]
    train, validation = _split(task, [table.sequences[i] for i in rest], (0.93, 0.07), seed)
    scores = table.scores if table.score_column is not None else np.full(len(table), np.nan)
    measured = ~np.isnan(scores)
    return TaskData(
        codec=codec,
        tokens=tokens,
        scores=torch.from_numpy(scores).float(),
        test=torch.from_numpy(test[measured[test]]),
        reward=torch.from_numpy(reward[measured[reward]]),
        judge=torch.from_numpy(judge[measured[judge]]),
        prior_train=torch.from_numpy(rest[train]),
        prior_validation=torch.from_numpy(rest[validation]),
        prior_test=torch.from_numpy(test[prior[test]]),
    )


def _split(task: Task, sequences: list[str], fractions: tuple[float, ...], seed: int) -> list[np.ndarray]:
    if task.cluster_distance is None:
        return random_split(len(sequences), fractions, seed=seed)
    return cluster_split(sequences, fractions, max_distance=task.cluster_distance, seed=seed)
