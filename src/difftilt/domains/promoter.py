"""Promoters measured in two media: a second objective, learned like the first, and from the same split.

A table has one row per design and medium. p_pre and the rewards ``model`` (or by its name, e.g. ``defined``) belong to
the first medium; the second has a reward and a judge of its own. Their rows follow the split of the first medium by
clusters over both: whatever is near a design that the first medium's reward has learned (within the distance of the
split) is learned by the second's reward, what is near a test row is tested on, and a cluster that is near designs of
two parts is used by nobody. So neither judge has learned from a design that a reward has, whichever the medium.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch

from difftilt.data import Table, hamming_clusters, merge_repeats
from difftilt.domains.sequence import SequenceTask
from difftilt.domains.task import DENOISER, Designs, LearnedReward, TaskData
from difftilt.rewards.ensemble import EnsembleReward
from difftilt.training.regress import RegressConfig

SECOND = "complex"
"""Folder of the second medium's reward."""
SECOND_JUDGE = "complex-judge"
"""Folder of its judge."""
SHARES = {"test": 0.1, "reward": 0.45, "judge": 0.45}


@dataclass(frozen=True, kw_only=True)
class PromoterTask(SequenceTask):
    """A named problem over promoters, with a second medium."""

    second_rows: Callable[[Table], np.ndarray]
    """Rows measured in the second medium; none of a table of one's own that does not say."""
    second_reward: Mapping[str, Any] = field(default_factory=lambda: {"type": "conv"})
    """Regressor of its reward."""
    second_reward_training: RegressConfig = field(default_factory=RegressConfig)
    """How it is trained."""
    second_judge: Mapping[str, Any] = field(default_factory=lambda: {"type": "recurrent"})
    """Regressor of its judge."""
    second_judge_training: RegressConfig = field(default_factory=lambda: RegressConfig(seed=1))
    """How it is trained."""

    parts: ClassVar[tuple[str, ...]] = (DENOISER, "reward", "judge", SECOND, SECOND_JUDGE)

    def merged(self, table: Table) -> Table:
        """One row per design and medium."""
        second = self.second_rows(table)
        one, two = merge_repeats(table.take(~second)), merge_repeats(table.take(second))
        return replace(
            one,
            sequences=[*one.sequences, *two.sequences],
            columns={name: np.concatenate([column, two.columns[name]]) for name, column in one.columns.items()},
            lines=None if one.lines is None or two.lines is None else np.concatenate([one.lines, two.lines]),
        )

    def trainable(self, data: Designs) -> tuple[str, ...]:
        """The parts of the second medium only where the table has rows of it."""
        possible = super().trainable(data)
        assert isinstance(data, Table)
        both = len(possible) > 1 and bool(self.second_rows(data).any())
        return possible if both else tuple(part for part in possible if part not in (SECOND, SECOND_JUDGE))

    def score_of(self, part: str) -> str:
        """That of the reward by whose name it is asked for."""
        named = [r for r in self.rewards.values() if isinstance(r, LearnedReward) and part in (r.part, r.judge)]
        return named[0].score_name if named else super().score_of(part)

    def rows_of(self, part: str, data: Designs, split: TaskData, *, seed: int) -> TaskData:
        """The second medium's rows for its parts."""
        if part not in (SECOND, SECOND_JUDGE):
            return split
        assert isinstance(data, Table)
        table = data.take(self.second_rows(data))
        first = split.codec.decode(split.states)
        home = {name: getattr(split, name).tolist() for name in SHARES}
        shares = self.followed(first, home, table.sequences, seed)
        measured = np.flatnonzero(~np.isnan(table.scores))
        rows = {name: torch.from_numpy(np.intersect1d(shares[name], measured)) for name in SHARES}
        none = torch.zeros(0, dtype=torch.long)
        return replace(
            split,
            states=split.codec.encode(table.sequences),
            scores=torch.from_numpy(table.scores).float(),
            prior_train=none,
            prior_validation=none,
            prior_test=none,
            **rows,
        )

    def followed(
        self, first: list[str], home: Mapping[str, list[int]], second: list[str], seed: int
    ) -> dict[str, np.ndarray]:
        """Row numbers of ``second`` by part, after where near designs of ``first`` are.

        Args:
            first: designs that are split already.
            home: their row numbers by part; what is in none has no say.
            second: designs to split; those near designs of two parts are left out, those near none are split anew.
            seed: of that split.
        """
        cluster = hamming_clusters([*first, *second], self.cluster_distance or 0)
        mine = cluster[len(first) :]
        found = {name: np.unique(cluster[rows]) for name, rows in home.items()}
        near = {name: np.isin(mine, clusters) for name, clusters in found.items()}
        count = np.sum(list(near.values()), axis=0)
        rest = np.flatnonzero(count == 0)
        anew = self.shares([second[i] for i in rest], tuple(SHARES.values()), seed) if len(rest) else []
        shares = {name: np.flatnonzero(near[name] & (count == 1)) for name in SHARES}
        return shares | {
            name: np.sort(np.concatenate([shares[name], rest[rows]])) for name, rows in zip(SHARES, anew, strict=False)
        }

    def fit(
        self, part: str, data: TaskData, *, seed: int, told: Callable[[str], None]
    ) -> tuple[EnsembleReward, dict[str, Any]]:
        """An ensemble of regressors for either medium; ``data`` as :meth:`rows_of` has them."""
        if part not in (SECOND, SECOND_JUDGE):
            return super().fit(part, data, seed=seed, told=told)
        entry = replace(
            self,
            reward=self.second_reward,
            reward_training=self.second_reward_training,
            judge=self.second_judge,
            judge_training=self.second_judge_training,
        )
        role = "reward" if part == SECOND else "judge"
        return super(PromoterTask, entry).fit(role, data, seed=seed, told=told)
