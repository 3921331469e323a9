"""Molecules as graphs: the tasks, over masked diffusion in three stages (how many atoms, which, and their bonds)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from difftilt.core.policy import Policy
from difftilt.core.registry import construct
from difftilt.core.trajectory import sample_states
from difftilt.data import Table, find, load, read_designs
from difftilt.domains.molecule.graph_codec import GraphCodec
from difftilt.domains.molecule.graph_quality import likeness, validity
from difftilt.domains.task import FEWEST, MASKED, Designs, Prior, Task, TaskData
from difftilt.errors import DataError
from difftilt.processes.masked import Masked
from difftilt.rng import Streams, seeded_initialisation
from difftilt.training.designs import Describe
from difftilt.training.pretrain import PretrainConfig, denoising_bounds

SHARES = (0.03, 0.2, 0.77)
"""Parts of the time, and so of the steps and of the training, for size, atoms and bonds."""
SAMPLES = 10_000
"""Designs of a finished p_pre that are looked at, and held-out ones that they are compared with, at most."""
BOUNDED = 1_000
"""Held-out designs whose likelihood is bounded."""


@dataclass(frozen=True, kw_only=True)
class GraphTask(Task):
    """Molecules of some kinds of atoms up to a size."""

    atoms: Sequence[str]
    """Kinds of atoms, with their charges."""
    nodes: int
    """Most heavy atoms."""
    validation: int = 1000
    """Designs that choose the average that is kept."""
    batch: int = 256
    """Designs per network call where quality is measured."""

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
        return replace(table, skipped=int(wrong.sum()))

    def split(self, data: Designs, *, seed: int = 0) -> TaskData:
        """10 % test, at random, and some for validation; designs without a graph of this kind are left out."""
        assert isinstance(data, Table)
        codec = self.codec
        states, rows, _ = codec.states(data.sequences)
        order = torch.randperm(len(states), generator=Streams(seed)("split"))  # files are sorted by size
        tests, held = len(states) // 10, min(self.validation, len(states) // 10)
        test, validation, train = order.split([tests, held, len(states) - tests - held])
        scores = data.scores[rows] if data.score_column is not None else np.full(len(states), np.nan)
        nobody = torch.zeros(0, dtype=torch.long)
        return TaskData(
            codec=codec,
            states=states,
            scores=torch.from_numpy(scores).float(),
            test=test,
            reward=nobody,
            judge=nobody,
            prior_train=train,
            prior_validation=validation,
            prior_test=test,
        )

    # --- models --------------------------------------------------------------------------------------------------

    def untrained(self, process: str, data: TaskData, *, seed: int) -> Policy:
        """A graph transformer over the stages of :data:`SHARES`."""
        prior, codec = self.prior(process), self.codec
        sizes = {"nodes": self.nodes, "atoms": len(self.atoms) + 1, "bonds": codec.bonds}
        with seeded_initialisation(seed):
            denoiser = construct("denoiser", {**prior.denoiser, **sizes})
        return Policy(denoiser, staged(codec), codec, (codec.length,), steps=prior.steps)

    def measure(self, policy: Policy, data: TaskData, *, seed: int) -> dict[str, Any]:
        """The bound on held-out molecules; validity by reason, and how samples differ from held-out molecules."""
        test, streams = data.states[data.prior_test], Streams(seed)
        bounds = denoising_bounds(
            policy.denoiser, policy.process, test[:BOUNDED], streams("bound"), draws=16, batch=self.batch
        )
        drawn = sample_states(policy, SAMPLES, streams("likeness"), batch=self.batch)
        known = set(data.codec.decode(data.states[data.prior_train]))
        return {
            "test_bound_nats_per_molecule": round(bounds.mean().item(), 3),
            "test_bound_error": round((bounds.std() / len(bounds) ** 0.5).item(), 3),
            "bound_on_molecules": len(bounds),
            "steps": policy.steps,
            **validity(data.codec.decode(drawn), known),
            **likeness(data.codec.decode(drawn), data.codec.decode(test[:SAMPLES])),
        }

    # --- what people look at -------------------------------------------------------------------------------------

    def known(self, path: Path | None = None) -> set[str] | None:
        """Canonical SMILES of all molecules of the data but those for tests."""
        if path is None and find(self.data_set) is None:
            return None
        data = self.split(self.read(path))
        return set(data.codec.decode(data.states[torch.cat([data.prior_train, data.prior_validation])]))

    def describe(self, policy: Policy, known: Any) -> Describe:
        """Validity, uniqueness, novelty, diversity."""
        return lambda x_0: validity(policy.codec.decode(x_0), known)

    def facts(self, policy: Policy) -> dict[str, Any]:
        """Kinds of atoms, and how many at most."""
        return {"atoms": list(self.atoms), "nodes": self.nodes}

    def check(self, data: Designs, policy: Policy) -> None:
        """Designs have graphs of the model's kind."""
        assert isinstance(data, Table)
        assert isinstance(policy.codec, GraphCodec)
        fault = next(filter(None, map(policy.codec.fault, data.sequences)), None)
        if fault is not None:
            raise DataError(
                f"{data.path}: {fault}; use --models with a model of such molecules (see `difftilt pretrain`)"
            )


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
    naturalness="p_pre is trained on QM9, an enumeration of small stable molecules: to be like them is not drug-like.",
    atoms=("C", "N", "O", "F"),
    nodes=9,
    priors={
        MASKED: Prior(
            denoiser={"type": "graph_transformer", "width": 96, "edge_width": 48, "depth": 4, "heads": 6},
            training=PretrainConfig(updates=7000, batch=128, learning_rate=1e-3),
            steps=32,
        )
    },
)
ZINC = GraphTask(
    name="zinc-graph",
    domain="molecule",
    summary="drug-like molecules of up to 38 heavy atoms as graphs (ZINC, Irwin et al. 2012) toward drug-likeness",
    data_set="zinc250k",
    score_name="QED (0 to 1)",
    naturalness="p_pre is trained on drug-like molecules that are for sale, so likeness to them is drug-like in part.",
    atoms=("C", "N", "O", "F", "S", "Cl", "Br", "N+", "O-", "N-", "I", "S-", "P", "O+"),
    nodes=38,
    validation=200,
    batch=64,
    priors={
        MASKED: Prior(
            denoiser={"type": "graph_transformer", "width": 64, "edge_width": 32, "depth": 4, "heads": 4},
            training=PretrainConfig(updates=3000, batch=32, learning_rate=1e-3),
            steps=96,
        )
    },
)
GRAPH_TASKS = (QM9, ZINC)
