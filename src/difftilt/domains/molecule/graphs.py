"""Molecules as graphs: the tasks, over masked diffusion in three stages (how many atoms, which, and their bonds)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from difftilt.core.policy import Policy
from difftilt.core.registry import construct
from difftilt.data import Table, load, random_split, read_designs
from difftilt.domains.molecule.graph_codec import GraphCodec
from difftilt.domains.task import FEWEST, MASKED, Designs, Prior, Task, TaskData
from difftilt.errors import DataError
from difftilt.processes.masked import Masked
from difftilt.rng import seeded_initialisation
from difftilt.training.pretrain import PretrainConfig
from difftilt.types import Int, Tensor

SHARES = (0.03, 0.2, 0.77)
"""Parts of the time, and so of the steps and of the training, for size, atoms and bonds."""


@dataclass(frozen=True, kw_only=True)
class GraphTask(Task):
    """Molecules of some kinds of atoms up to a size."""

    atoms: Sequence[str]
    """Kinds of atoms, with their charges."""
    nodes: int
    """Most heavy atoms."""
    validation: int = 1000
    """Designs that choose the average that is kept."""

    column: ClassVar[str] = "smiles"

    @property
    def codec(self) -> GraphCodec:
        """Graphs and their SMILES."""
        return GraphCodec(self.atoms, self.nodes)

    # --- data ----------------------------------------------------------------------------------------------------

    def read(self, path: Path | None = None, *, skip_invalid: bool = False) -> Table:
        """The named set, or one's own file, every design of which has a graph of this kind."""
        if path is None:
            return load(self.data_set)
        table, codec = read_designs(path), self.codec
        faults = [codec.fault(design) for design in table.sequences]
        wrong = np.array([fault is not None for fault in faults])
        if wrong.any() and not skip_invalid:
            row = int(wrong.argmax())
            line = "" if table.lines is None else f", line {table.lines[row]}"
            raise DataError(
                f"{path}{line}: {faults[row]} in '{table.sequences[row]}' ({wrong.sum()} such designs); correct it, or "
                "leave such designs out with --skip-invalid"
            )
        table = table.take(~wrong)
        if len(table) < FEWEST:
            raise DataError(f"{path}: expected at least {FEWEST} designs; got {len(table)}; add more")
        return Table(**{**vars(table), "skipped": int(wrong.sum())})

    def split(self, data: Designs, *, seed: int = 0) -> TaskData:
        """10 % test, at random, and some for validation; designs without a graph of this kind are left out."""
        assert isinstance(data, Table)
        codec = self.codec
        states, rows, _ = codec.states(data.sequences)
        test, rest = random_split(len(states), (0.1, 0.9), seed=seed)
        held = min(self.validation, len(rest) // 10)
        scores = data.scores[rows] if data.score_column is not None else np.full(len(states), np.nan)
        nobody = torch.zeros(0, dtype=torch.long)
        return TaskData(
            codec=codec,
            states=states,
            scores=torch.from_numpy(scores).float(),
            test=torch.from_numpy(test),
            reward=nobody,
            judge=nobody,
            prior_train=torch.from_numpy(rest[held:]),
            prior_validation=torch.from_numpy(rest[:held]),
            prior_test=torch.from_numpy(test),
        )

    # --- models --------------------------------------------------------------------------------------------------

    def untrained(self, process: str, data: TaskData, *, seed: int) -> Policy:
        """A graph transformer over the stages of :data:`SHARES`."""
        prior, codec = self.prior(process), self.codec
        with seeded_initialisation(seed):
            denoiser = construct(
                "denoiser", {**prior.denoiser, "nodes": self.nodes, "atoms": len(self.atoms) + 1, "bonds": codec.bonds}
            )
        return Policy(denoiser, staged(codec), codec, (codec.length,), steps=prior.steps)


def staged(codec: GraphCodec, shares: Sequence[float] = SHARES) -> Masked:
    """Masked diffusion that shows how many atoms there are, then the atoms, then their bonds."""
    ends = [1.0, 1.0 - shares[0], shares[2], 0.0]
    positions = (1, codec.nodes, len(codec.pairs))
    return Masked(
        codec.vocabulary,
        stages=[(count, ends[i], ends[i + 1]) for i, count in enumerate(positions)],
    )


QM9 = GraphTask(
    name="qm9-graph",
    domain="molecule",
    summary="small molecules of up to 9 heavy atoms as graphs (QM9, Ramakrishnan et al. 2014) toward drug-likeness",
    data_set="qm9",
    score_name="QED (0 to 1)",
    naturalness="p_pre is trained on QM9, an enumeration of stable small molecules: likeness to it is no drug-likeness.",
    atoms=("C", "N", "O", "F"),
    nodes=9,
    priors={
        MASKED: Prior(
            denoiser={"type": "graph_transformer", "width": 96, "edge_width": 48, "depth": 5, "heads": 6},
            training=PretrainConfig(updates=9000, batch=128, learning_rate=1e-3),
            steps=32,
        )
    },
)
GRAPH_TASKS = (QM9,)
