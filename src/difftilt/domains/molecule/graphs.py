"""Molecules as graphs: tasks over masked diffusion in three stages (how many atoms, which, and their bonds)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from difftilt.core.molecules import chemistry, read_molecules
from difftilt.core.policy import Policy
from difftilt.core.registry import construct
from difftilt.core.trajectory import sample_states
from difftilt.data import Table, find, load
from difftilt.data.table import NAMED, named_rows
from difftilt.domains.molecule.drawing import before_and_after, histograms
from difftilt.domains.molecule.graph_codec import GraphCodec
from difftilt.domains.molecule.named import REWARDS
from difftilt.domains.molecule.quality import REFERENCE, Known, properties, quality
from difftilt.domains.molecule.reading import read_own
from difftilt.domains.task import MASKED, Designs, Histogram, Picture, Prior, Scene, Task, TaskData
from difftilt.errors import DataError
from difftilt.processes.masked import Masked
from difftilt.rng import Streams, seeded_initialisation
from difftilt.training.designs import Describe
from difftilt.training.pretrain import PretrainConfig, denoising_bounds

SHARES = (0.03, 0.2, 0.77)
"""Parts of the time, and so of the steps and of the training, for size, atoms and bonds."""
MEASURED = 1024
"""Held-out molecules that a finished p_pre is measured on."""


@dataclass(frozen=True)
class GraphData(TaskData):
    """Molecules as graphs."""

    outside: Mapping[str, int]
    """Molecules of the file that are no row of it: ``no_graph`` of these atoms and this size, and ``repeated``."""


@dataclass(frozen=True, kw_only=True)
class GraphTask(Task):
    """Molecules of some kinds of atoms up to a size."""

    atoms: Sequence[str]
    """Kinds of atoms, with their charges."""
    nodes: int
    """Most heavy atoms."""
    validation: int = 1000
    """Molecules that choose the average that is kept."""
    sampled: int = 10_000
    """Designs of a finished p_pre that its card describes."""
    batch: int = 256
    """Designs per network call where quality is measured."""

    column: ClassVar[str] = "smiles"

    @property
    def codec(self) -> GraphCodec:
        """Graphs and their SMILES."""
        return GraphCodec(self.atoms, self.nodes)

    # --- data ----------------------------------------------------------------------------------------------------

    def read(self, path: Path | None = None, *, skip_invalid: bool = False) -> Table:
        """Its data set as it is, or one's own file as canonical SMILES, one row per molecule.

        ``skip_invalid`` also leaves out molecules that have no graph of this task's kind: foreign atoms, or too many.
        """
        if path is None:
            return load(self.data_set)
        table = read_own(path, skip_invalid=skip_invalid)
        if not skip_invalid:
            return table
        return table.keep(np.array([self.codec.fault(design) is None for design in table.sequences], dtype=bool))

    def split(self, data: Designs, *, seed: int = 0) -> GraphData:
        """At random: 10 % for tests, :attr:`validation` (at most 10 %) to choose the average, the rest for training.

        Raises:
            DataError: nothing is left.
        """
        assert isinstance(data, Table)
        codec = self.codec
        states, repeated = codec.states(data.sequences)
        if not len(states):
            fault = codec.fault(data.sequences[0])
            raise DataError(f"{data.path}: {fault} in '{data.sequences[0]}', and no graph in the file; check it")
        order = torch.randperm(len(states), generator=Streams(seed)("split"))
        tests, held = len(states) // 10, min(self.validation, len(states) // 10)
        test, validation, train = order.split([tests, held, len(states) - tests - held])
        nobody = torch.zeros(0, dtype=torch.int64)
        return GraphData(
            codec=codec, states=states, scores=torch.full((len(states),), torch.nan), test=test, reward=nobody,
            judge=nobody, prior_train=train, prior_validation=validation, prior_test=test,
            outside={"no_graph": len(data) - len(states) - repeated, "repeated": repeated},
        )  # fmt: skip

    def known(self, path: Path | None = None) -> Known | None:
        """The molecules of the file, held-out ones too, as graphs know them: canonical, without stereochemistry."""
        if path is None and find(self.data_set) is None:
            return None
        return Known.of(flat(self.read(path, skip_invalid=True).sequences))

    def check(self, data: Designs, policy: Policy) -> None:
        """Designs have graphs of the model's kind."""
        assert isinstance(data, Table)
        assert isinstance(policy.codec, GraphCodec)
        faults = {row: policy.codec.fault(design) for row, design in enumerate(data.sequences)}
        bad = [row for row, fault in faults.items() if fault is not None]
        if bad:
            said = "; ".join(f"'{data.sequences[row]}': {faults[row]}" for row in bad[:NAMED])
            raise DataError(
                f"{data.path}, {named_rows(bad, data.lines)}: expected molecules that have a graph of the model's kind;"
                f" got others ({said}); drop them, --skip-invalid, or use --models with a model of such molecules (see "
                "`difftilt pretrain`)"
            )

    # --- models --------------------------------------------------------------------------------------------------

    def untrained(self, process: str, data: TaskData, *, seed: int) -> Policy:
        """A graph transformer over the stages of :data:`SHARES`."""
        return self.fresh(process, seed=seed)

    def fresh(self, process: str = MASKED, *, seed: int) -> Policy:
        """The same: sizes are the task's, and no data are asked."""
        prior, codec = self.prior(process), self.codec
        sizes = {"nodes": self.nodes, "atoms": len(self.atoms) + 1, "bonds": codec.bonds}
        with seeded_initialisation(seed):
            denoiser = construct("denoiser", {**prior.denoiser, **sizes})
        return Policy(denoiser, staged(codec), codec, (codec.length,), steps=prior.steps)

    def measure(self, policy: Policy, data: TaskData, *, seed: int) -> dict[str, Any]:
        """The bound on held-out molecules, and designs beside held-out molecules; the latter also for training ones.

        What training molecules show against held-out ones is what a perfect model would: chance.
        """
        streams, test = Streams(seed), data.states[data.prior_test][:MEASURED]
        train = data.codec.decode(data.states[data.prior_train])
        bounds = denoising_bounds(
            policy.denoiser, policy.process, test, streams("bound"), draws=16, batch=self.batch
        ).cpu()
        held_out = Known.of(data.codec.decode(test))
        drawn = data.codec.decode(sample_states(policy, self.sampled, streams("likeness"), batch=self.batch))
        mine, chance = quality(drawn, held_out), quality(train[:REFERENCE], held_out)
        molecules, reasons = read_molecules(drawn)
        distinct = {design for design, reason in zip(drawn, reasons, strict=True) if reason is None}
        old = distinct & set(train)
        sizes = [_sizes(part) for part in (molecules, read_molecules(held_out.reference)[0])]
        return {
            **(dict(data.outside) if isinstance(data, GraphData) else {}),
            "test_bound_nats": round(bounds.mean().item(), 3),
            "test_bound_error": round((bounds.std() / len(bounds) ** 0.5).item(), 3),
            "sampled_designs": self.sampled,
            "steps": policy.steps,
            **{name: round(value, 4) for name, value in mine.items()},
            "novel_fraction": round(1 - len(old) / max(1, len(distinct)), 4),
            "heavy_atoms_total_variation": round(float(np.abs(sizes[0] - sizes[1]).sum() / 2), 4),
            **{f"training_{name}": round(chance[name], 4) for name in chance if "distance" in name or "mean" in name},
        }

    # --- what people look at -------------------------------------------------------------------------------------

    def describe(self, policy: Policy, known: Any) -> Describe:
        """Validity with reasons, uniqueness, novelty, diversity, and properties with their distance to the data's."""
        return lambda x_0: quality(policy.codec.decode(x_0), known if isinstance(known, Known) else None)

    def facts(self, policy: Policy) -> dict[str, Any]:
        """How molecules are written."""
        codec = policy.codec
        assert isinstance(codec, GraphCodec)
        return {"representation": "graph", "atoms": codec.atoms, "nodes": codec.nodes}

    def pictures(self, scene: Scene) -> list[Picture | Histogram]:
        """Structures before and after, and histograms of properties."""
        return [*before_and_after(scene, scene.score_name), *histograms(scene)]


def staged(codec: GraphCodec, shares: Sequence[float] = SHARES) -> Masked:
    """Masked diffusion that shows how many atoms there are, then the atoms, then their bonds."""
    ends = [1.0, 1.0 - shares[0], shares[2], 0.0]
    positions = (1, codec.nodes, len(codec.pairs))
    return Masked(codec.vocabulary, stages=[(count, ends[i], ends[i + 1]) for i, count in enumerate(positions)])


def flat(designs: Sequence[str]) -> list[str]:
    """Canonical SMILES without stereochemistry; what is no molecule is left out."""
    to_smiles = chemistry("rdkit.Chem").MolToSmiles
    read = read_molecules(designs)[0]
    return [to_smiles(molecule, isomericSmiles=False) for molecule in read if molecule is not None]


def _sizes(molecules: Sequence[Any]) -> np.ndarray:
    """Shares of molecules by their number of heavy atoms; of those that are molecules."""
    counts = properties([molecule for molecule in molecules if molecule is not None], ("heavy_atoms",))["heavy_atoms"]
    return np.bincount(counts.astype(int), minlength=256) / max(1, len(counts))


QM9 = GraphTask(
    name="qm9-graph",
    domain="molecule",
    summary="small molecules of up to 9 heavy atoms as graphs (QM9, Ramakrishnan et al. 2014) toward drug-likeness",
    data_set="qm9",
    score_name="QED (0 to 1)",
    naturalness="p_pre is trained on QM9, an enumeration of small stable molecules: to be like them is not drug-like.",
    atoms=("C", "N", "O", "F"),
    nodes=9,
    sampled=4096,
    rewards=REWARDS,
    default_reward="qed",
    priors={
        MASKED: Prior(
            denoiser={"type": "graph_transformer", "width": 96, "edge_width": 48, "depth": 4, "heads": 6},
            training=PretrainConfig(updates=8000, batch=64, learning_rate=1.5e-3),
            steps=46,
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
    sampled=1000,
    batch=64,
    rewards=REWARDS,
    default_reward="qed",
    priors={
        MASKED: Prior(
            denoiser={"type": "graph_transformer", "width": 64, "edge_width": 32, "depth": 4, "heads": 4},
            training=PretrainConfig(updates=4000, batch=32, learning_rate=1e-3),
            steps=96,
        )
    },
)
GRAPH_TASKS = (QM9, ZINC)
