"""Tasks over molecules written as SELFIES; the reward is computed, so that p_pre is all there is to train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from difftilt.core.codec import Codec
from difftilt.core.policy import Policy
from difftilt.core.registry import construct
from difftilt.core.trajectory import sample_states
from difftilt.data import Table, find, load, random_split
from difftilt.domains.molecule.codec import SelfiesCodec
from difftilt.domains.molecule.drawing import before_and_after, histograms
from difftilt.domains.molecule.quality import REFERENCE, Known, quality
from difftilt.domains.molecule.reading import read_own
from difftilt.domains.molecule.words import Reader, common, joined, room_for, to_symbols
from difftilt.domains.task import Designs, Histogram, Picture, Scene, Task, TaskData
from difftilt.errors import DataError
from difftilt.metrics.sequences import MarkovModel
from difftilt.processes.masked import in_order
from difftilt.rng import Streams, seeded_initialisation
from difftilt.training.designs import Describe
from difftilt.training.pretrain import denoising_bounds
from difftilt.types import Int, Tensor

SHARES = (0.86, 0.04, 0.1)
"""Of the molecules: for training, to choose the average that is kept, and for tests."""
VALIDATED = 1024
"""Most molecules that choose the average."""
MEASURED = 2048
"""Held-out molecules that a finished p_pre is measured on."""


@dataclass(frozen=True)
class MoleculeData(TaskData):
    """Molecules as states."""

    outside: Mapping[str, int]
    """Molecules that no state can be, by why: ``not_written``, ``rare_symbols``, ``too_long``; and those
    ``repeated``."""


@dataclass(frozen=True, kw_only=True)
class MoleculeTask(Task):
    """A named problem over molecules."""

    rarest: float = 1e-4
    """Symbols that stand in a smaller share of the molecules are not learned, and molecules with them left out."""
    joins: int = 256
    """Most words that are joined of symbols that often stand together."""
    room: float = 0.995
    """The share of the molecules that states have room for; longer ones are left out."""
    sampled: int = 10_000
    """Designs of a finished p_pre that its card describes; fewer where it has learned from few."""

    column: ClassVar[str] = "smiles"

    # --- data ----------------------------------------------------------------------------------------------------

    def read(self, path: Path | None = None, *, skip_invalid: bool = False) -> Table:
        """Its data set as it is, or one's own file as canonical SMILES, one row per molecule."""
        return load(self.data_set) if path is None else read_own(path, skip_invalid=skip_invalid)

    def split(self, data: Designs, *, seed: int = 0) -> MoleculeData:
        """At random: 86 % for training, 4 % to choose the average that is kept, 10 % for tests.

        Words and length are those of all the molecules, so that they do not depend on the seed. Writing molecules as
        SELFIES takes about a millisecond each.

        Raises:
            DataError: nothing is left.
        """
        assert isinstance(data, Table)
        written = [to_symbols(design) for design in data.sequences]
        known = [molecule for molecule in written if molecule is not None]
        if not known:
            raise DataError(f"{data.path}: expected molecules that SELFIES can write; got none; check the file")
        alphabet = common(known, fewest=max(1, round(self.rarest * len(known))))
        alphabet += joined(known, alphabet, self.joins)
        reader = Reader(alphabet)
        rows = [row for row in map(reader.read, known) if not isinstance(row, str)]
        codec = SelfiesCodec(alphabet, room_for([len(row) for row in rows], self.room))
        short = [row for row in rows if len(row) <= codec.length]
        states = codec.states(dict.fromkeys(tuple(word + 1 for word in row) for row in short))
        outside = {
            "not_written": len(written) - len(known),
            "rare_symbols": len(known) - len(rows),
            "too_long": len(rows) - len(short),
            "repeated": len(short) - len(states),
        }
        parts = random_split(len(states), SHARES, seed=seed)
        train, validation, test = (torch.from_numpy(rows) for rows in parts)
        validation = validation[:VALIDATED]  # one look at thousands would cost as much as hundreds of updates
        nobody = torch.zeros(0, dtype=torch.int64)
        return MoleculeData(
            codec=codec, states=states, scores=torch.full((len(states),), torch.nan), test=test,
            reward=nobody, judge=nobody, prior_train=train, prior_validation=validation, prior_test=test,
            outside=outside,
        )  # fmt: skip

    def known(self, path: Path | None = None) -> Known | None:
        """The molecules of the file, held-out ones too, as they stand there."""
        if path is None and find(self.data_set) is None:
            return None
        return Known.of(self.read(path, skip_invalid=True).sequences)

    # --- models --------------------------------------------------------------------------------------------------

    def untrained(self, process: str, data: TaskData, *, seed: int) -> Policy:
        """The prior's network over the words of the data, which are shown in order, one a step."""
        codec = data.codec
        assert isinstance(codec, SelfiesCodec)
        with seeded_initialisation(seed):
            sizes = {"vocabulary": codec.vocabulary, "length": codec.length}
            denoiser = construct("denoiser", {**self.prior(process).denoiser, **sizes})
        spec = {"type": process, "vocabulary": codec.vocabulary, "stages": in_order(codec.length)}
        return Policy(denoiser, construct("process", spec), codec, (codec.length,), steps=codec.length)

    def measure(self, policy: Policy, data: TaskData, *, seed: int) -> dict[str, Any]:
        """The bound beside a Markov model, and designs beside held-out molecules; both also for training molecules.

        What training molecules show against held-out ones is what a perfect model would: chance.
        """
        train, test = data.states[data.prior_train], data.states[data.prior_test][:MEASURED]
        held_out = Known.of(data.codec.decode(test))
        sampled = min(self.sampled, max(100, 5 * len(train)))
        drawn = data.codec.decode(sample_states(policy, sampled, Streams(seed)("likeness")))
        mine = quality(drawn, held_out) | {"novel_fraction": _novel(drawn, data.codec, train)}
        chance = quality(data.codec.decode(train[:REFERENCE]), held_out)
        return {
            **(dict(data.outside) if isinstance(data, MoleculeData) else {}),
            **_likelihood(policy, train, test, seed),
            "sampled_designs": sampled,
            "steps": policy.steps,
            **{name: round(value, 4) for name, value in mine.items()},
            **{f"training_{name}": round(chance[name], 4) for name in chance if "distance" in name or "mean" in name},
        }

    # --- what people look at -------------------------------------------------------------------------------------

    def describe(self, policy: Policy, known: Any) -> Describe:
        """Validity with reasons, uniqueness, novelty, diversity, and properties with their distance to the data's."""
        return described(policy, known)

    def facts(self, policy: Policy) -> dict[str, Any]:
        """How molecules are written."""
        codec = policy.codec
        assert isinstance(codec, SelfiesCodec)
        return {"representation": "SELFIES", "words": len(codec.alphabet), "length": codec.length}

    def pictures(self, scene: Scene) -> list[Picture | Histogram]:
        """Structures before and after, and histograms of properties."""
        return [*before_and_after(scene, scene.score_name), *histograms(scene)]


def described(policy: Policy, known: Any) -> Callable[[Tensor], dict[str, Any]]:
    """:func:`quality` of finished states."""
    return lambda x_0: quality(policy.codec.decode(x_0), known if isinstance(known, Known) else None)


def _novel(designs: list[str], codec: Codec, train: Int[Tensor, "N L"]) -> float:
    """Share of distinct molecules that are not among the training states."""
    assert isinstance(codec, SelfiesCodec)
    seen = {tuple(row) for row in train.tolist()}
    written = [codec.tokens_of(design) for design in set(designs)]
    fit = [tokens for tokens in written if not isinstance(tokens, str)]  # the others cannot have been trained on
    old = sum(tuple(row) in seen for row in codec.states(fit).tolist())
    return 1 - old / max(1, len(written))


def _likelihood(policy: Policy, train: Int[Tensor, "N L"], test: Int[Tensor, "M L"], seed: int) -> dict[str, float]:
    """The bound on held-out molecules beside a second-order Markov model, nats per molecule, with standard errors."""
    rng = torch.Generator().manual_seed(seed)
    bounds = denoising_bounds(policy.denoiser, policy.process, test, rng, draws=16).cpu()
    markov = -MarkovModel(train, 2, policy.process.vocabulary).log_prob(test)
    better = markov - bounds
    return {
        "test_bound_nats": round(bounds.mean().item(), 3),
        "test_bound_error": round((bounds.std() / len(bounds) ** 0.5).item(), 3),
        "markov_2_nats": round(markov.mean().item(), 3),
        "advantage_over_markov_2": round(better.mean().item(), 3),
        "advantage_over_markov_2_error": round((better.std() / len(better) ** 0.5).item(), 3),
    }
