"""Tasks over molecules written as SELFIES."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from difftilt.core.molecules import canonical, read_molecules
from difftilt.core.policy import Policy
from difftilt.core.registry import construct
from difftilt.core.trajectory import sample_states
from difftilt.data import Table, load, merge_repeats, random_split, read_designs
from difftilt.domains.molecule.codec import SelfiesCodec, common_words, room_for, to_words
from difftilt.domains.task import FEWEST, MASKED, Designs, Prior, Task, TaskData
from difftilt.errors import DataError
from difftilt.rng import Streams, seeded_initialisation
from difftilt.training.pretrain import denoising_bounds
from difftilt.types import Tensor

RAREST = 1e-4
"""Words that stand in fewer of the data's molecules than this share are not learned."""
ROOM = 0.995
"""The share of the data's molecules that states have room for."""
SHARES = (0.86, 0.04, 0.1)
"""Of the molecules: for training, to choose the average that is kept, and for tests."""


@dataclass(frozen=True)
class MoleculeData(TaskData):
    """Molecules as states; what cannot be one is left out, and counted."""

    outside: Mapping[str, int]
    """Molecules left out, by why: ``"rare words"``, ``"too long"``, ``"not written"``, ``"repeated"``."""


@dataclass(frozen=True, kw_only=True)
class MoleculeTask(Task):
    """A named problem over molecules; the reward is computed, so that p_pre is all there is to train."""

    rarest: float = RAREST
    room: float = ROOM

    column: ClassVar[str] = "smiles"

    def read(self, path: Path | None = None, *, skip_invalid: bool = False) -> Table:
        """Its data set, or one's own file: canonical SMILES, one row per molecule."""
        if path is None:
            return load(self.data_set)
        return read_own(path, skip_invalid=skip_invalid)

    def split(self, data: Designs, *, seed: int = 0) -> MoleculeData:
        """At random: 86 % for training, 4 % to choose the average that is kept, 10 % for tests.

        Words and length are those of all the molecules, so that they do not depend on the seed.
        """
        assert isinstance(data, Table)
        written = [to_words(design) for design in data.sequences]
        known = [molecule for molecule in written if molecule is not None]
        alphabet = common_words(known, fewest=max(1, round(self.rarest * len(known))))
        length, words = room_for([len(molecule) for molecule in known], self.room), set(alphabet)
        kept: dict[tuple[str, ...], int] = {}
        outside = {"not written": len(written) - len(known), "rare words": 0, "too long": 0, "repeated": 0}
        for row, molecule in enumerate(written):
            if molecule is None:
                continue
            fault = (
                "too long" if len(molecule) > length
                else "rare words" if not words.issuperset(molecule)
                else "repeated" if tuple(molecule) in kept
                else None
            )  # fmt: skip
            if fault is None:
                kept[tuple(molecule)] = row
            else:
                outside[fault] += 1
        codec = SelfiesCodec(alphabet, length)
        states = codec.states(kept)
        train, validation, test = (torch.from_numpy(rows) for rows in random_split(len(kept), SHARES, seed=seed))
        nobody = torch.zeros(0, dtype=torch.int64)
        return MoleculeData(
            codec=codec, states=states, scores=torch.full((len(kept),), torch.nan), test=test, reward=nobody,
            judge=nobody, prior_train=train, prior_validation=validation, prior_test=test, outside=outside,
        )  # fmt: skip

    def untrained(self, process: str, data: TaskData, *, seed: int) -> Policy:
        """The prior's network over the words of the data."""
        prior, codec = self.prior(process), data.codec
        assert isinstance(codec, SelfiesCodec)
        sizes = {"vocabulary": codec.vocabulary, "length": codec.length}
        with seeded_initialisation(seed):
            denoiser = construct("denoiser", {**prior.denoiser, **sizes})
        made = construct("process", {"type": process, "vocabulary": codec.vocabulary})
        return Policy(denoiser, made, codec, (codec.length,), steps=prior.steps)

    def measure(self, policy: Policy, data: TaskData, *, seed: int) -> dict[str, Any]:
        return {}

    def describe(self, policy: Policy, known: Any) -> Any:
        return lambda x: {}
