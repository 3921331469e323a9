"""Tasks over fixed-length sequences: DNA, RNA, proteins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from difftilt.core.codec import SimplexCodec, TokenCodec
from difftilt.core.policy import Policy
from difftilt.core.process import Process
from difftilt.core.registry import construct
from difftilt.core.trajectory import sample_states
from difftilt.data import Table, cluster_split, load, merge_repeats, random_split, read_designs, valid, validate
from difftilt.domains.describing import describe_sequences
from difftilt.domains.references import Lookout, SecondReference
from difftilt.domains.task import DENOISER, FEWEST, MASKED, Designs, Task, TaskData
from difftilt.errors import DataError
from difftilt.metrics import sequences
from difftilt.rewards.ensemble import EnsembleReward
from difftilt.rng import Streams, seeded_initialisation
from difftilt.training.designs import Describe
from difftilt.training.pretrain import denoising_bounds
from difftilt.training.regress import RegressConfig, measure_fit, train_members
from difftilt.types import Int, Tensor

CODECS = {"simplex": SimplexCodec}
"""How states are read, by process; tokens where not named."""
SAMPLES = 1024
"""Designs of a finished p_pre that are compared with held-out ones."""
LARGEST_TABLE = 1 << 22
"""Words of a Markov model that is worth counting."""


def every_row(table: Table) -> np.ndarray:
    """All rows."""
    return np.ones(len(table), dtype=bool)


def no_family(table: Table) -> None:
    """Nothing is known beyond the sequences."""
    return


@dataclass(frozen=True, kw_only=True)
class SequenceTask(Task):
    """A named problem over fixed-length sequences."""

    alphabet: str
    """Letters, as printed."""
    aliases: Mapping[str, str]
    """Letters read as another."""
    rows: Callable[[Table], np.ndarray] = every_row
    """Rows the task uses at all."""
    prior_rows: Callable[[Table], np.ndarray] = every_row
    """Rows, of those used, that p_pre learns."""
    cluster_distance: int | None = 3
    """Sequences within this Hamming distance never fall in different parts; ``None`` splits rows at random."""
    family: Callable[[Table], Sequence[str] | None] = no_family
    """Name of each row's family, e.g. a sequence and mutants of it, which stay together; ``None`` where unknown."""
    judge_set: str | None = None
    """A replicate measurement that judges a table reward."""
    floor: float | None = None
    """Scores below count as this in reward and judge: the limit of detection; ``None`` where there is none."""
    reward: Mapping[str, Any] = field(default_factory=lambda: {"type": "conv"})
    """Regressor of the reward."""
    reward_training: RegressConfig = field(default_factory=RegressConfig)
    """How it is trained."""
    judge: Mapping[str, Any] = field(default_factory=lambda: {"type": "recurrent"})
    """Regressor of the judge."""
    judge_training: RegressConfig = field(default_factory=lambda: RegressConfig(seed=1))
    """How it is trained."""
    motifs: Mapping[str, str] = field(default_factory=dict)
    """Motifs that are counted in designs, IUPAC codes, each with what binds it (empty: not said)."""
    both_strands: bool = False
    """Whether motifs and words of designs are those of both strands."""
    words: tuple[int, ...] = ()
    """Lengths of the words that are compared with those of the data, and of :attr:`second_reference`; 3 to 8."""
    second_reference: SecondReference | None = None
    """Other sequences whose words designs are compared with."""

    parts: ClassVar[tuple[str, ...]] = (DENOISER, "reward", "judge")

    def codec(self, length: int, process: str = MASKED) -> TokenCodec:
        """Codec of this task's letters, for states of a process."""
        return CODECS.get(process, TokenCodec)(self.alphabet, length, dict(self.aliases))

    # --- data ----------------------------------------------------------------------------------------------------

    def read(self, path: Path | None = None, *, skip_invalid: bool = False) -> Table:
        """Its data set, or one's own file, checked for letters and lengths; one row per design."""
        if path is None:
            return load(self.data_set)
        table = read_designs(path, skip_invalid=skip_invalid)
        letters = self.alphabet + "".join(self.aliases)
        if skip_invalid:
            table = table.keep(valid(table.sequences, letters))
        if not len(table):
            raise DataError(
                f"{path}: expected at least {FEWEST} designs of the letters {self.alphabet}; got none, and "
                f"{table.skipped} others that are left out; check that it is the right file"
            )
        read = validate(table.sequences, letters, path=path, lines=table.lines)
        table = self.merged(replace(table, sequences=read))
        if len(table) < FEWEST:
            raise DataError(f"{path}: expected at least {FEWEST} designs; got {len(table)}; add more")
        if table.score_column is not None and np.isnan(table.scores).all():
            raise DataError(
                f"{path}: expected numbers in the column '{table.score_column}'; got none; fill it, or leave it out"
            )
        return table

    def merged(self, table: Table) -> Table:
        """One row per design of one's own table."""
        return merge_repeats(table)

    def split(self, data: Designs, *, seed: int = 0) -> TaskData:
        """10 % test, the rest halved between reward and judge; p_pre learns from both halves.

        Args:
            data: a table of designs with scores; NaN scores are left out of reward and judge.
            seed: of the split.
        """
        table = _table(data)
        used = table.take(self.rows(table))
        if not len(used):
            raise DataError(f"{table.path}: expected rows that {self.name} uses; got none of {len(table)}; add some")
        table = used
        codec = self.codec(len(table.sequences[0]))
        tokens = codec.encode(table.sequences)
        test, reward, judge = self.shares(table.sequences, (0.1, 0.45, 0.45), seed)
        prior, family = self.prior_rows(table), self.family(table)
        if family is not None:
            test, reward, judge = _together(family, prior, (test, reward, judge))
        rest = np.concatenate([reward, judge])
        rest = rest[prior[rest]]
        train, validation = self.shares([table.sequences[i] for i in rest], (0.93, 0.07), seed)
        scores = table.scores if table.score_column is not None else np.full(len(table), np.nan)
        measured = ~np.isnan(scores)
        return TaskData(
            codec=codec,
            states=tokens,
            scores=torch.from_numpy(scores).float(),
            test=torch.from_numpy(test[measured[test]]),
            reward=torch.from_numpy(reward[measured[reward]]),
            judge=torch.from_numpy(judge[measured[judge]]),
            prior_train=torch.from_numpy(rest[train]),
            prior_validation=torch.from_numpy(rest[validation]),
            prior_test=torch.from_numpy(test[prior[test]]),
        )

    def shares(self, designs: list[str], fractions: tuple[float, ...], seed: int) -> list[np.ndarray]:
        """Row numbers of each share; near copies stay together unless the task splits at random."""
        if self.cluster_distance is None:
            return random_split(len(designs), fractions, seed=seed)
        return cluster_split(designs, fractions, max_distance=self.cluster_distance, seed=seed)

    @property
    def split_note(self) -> str:
        """How rows are split."""
        distance = self.cluster_distance
        kin = "" if self.family is no_family else "; mutants stay with what they were made of"
        return (
            f"by cluster: no test row within {distance} mutations of a training row{kin}" if distance else "at random"
        )

    def trainable(self, data: Designs) -> tuple[str, ...]:
        """The denoiser alone where there are no scores."""
        return self.parts if _table(data).score_column is not None else (DENOISER,)

    def check(self, data: Designs, policy: Policy) -> None:
        """Designs are as long as the model's."""
        length, came = policy.event_shape[0], len(_table(data).sequences[0])
        if came != length:
            raise DataError(
                f"{data.path}: expected designs of {length} letters, as the model makes; got {came}; use --models "
                "with a model of that length (see `difftilt pretrain`)"
            )

    # --- models --------------------------------------------------------------------------------------------------

    def untrained(self, process: str, data: TaskData, *, seed: int) -> Policy:
        """The prior's network over the letters of the data."""
        prior = self.prior(process)
        assert isinstance(data.codec, TokenCodec)
        letters, length = data.codec.vocabulary, data.codec.length
        with seeded_initialisation(seed):
            denoiser = construct("denoiser", {**prior.denoiser, "vocabulary": letters, "length": length})
        codec = self.codec(length, process)
        event = tuple(codec.encode(data.codec.decode(data.states[:1])).shape[1:])
        made: Process = construct("process", {"type": process, "vocabulary": letters})
        train, test = data.states[data.prior_train], data.states[data.prior_test]
        card: dict[str, Any] = {"kmer_counts": sequences.kmer_counts(train, 3, letters).long().tolist()}
        if self.motifs or self.words:
            card |= self.lookout.card(
                train, test, self.second_reference, lambda rows: self.codec(len(rows[0])).encode(rows)
            )
        return Policy(denoiser, made, codec, event, steps=prior.steps, card=card)

    def measure(self, policy: Policy, data: TaskData, *, seed: int) -> dict[str, Any]:
        """The bound beside Markov models, and letters and words of samples beside those of held-out designs."""
        train, validation, test = (
            data.states[rows] for rows in (data.prior_train, data.prior_validation, data.prior_test)
        )
        return {
            **_against_markov(policy.denoiser, policy.process, train, validation, test, seed),
            **_likeness(policy, train, test, seed),
        }

    def fit(
        self, part: str, data: TaskData, *, seed: int, told: Callable[[str], None]
    ) -> tuple[EnsembleReward, dict[str, Any]]:
        """An ensemble of regressors, ``reward`` or ``judge``."""
        chosen, settings = (
            (self.reward, self.reward_training) if part == "reward" else (self.judge, self.judge_training)
        )
        if part == "judge" and self.judge_set is not None:
            data = self.split(load(self.judge_set), seed=seed)
        assert isinstance(data.codec, TokenCodec)
        rows, tokens, scores, test = getattr(data, part), data.states, data.scores, data.test
        if self.floor is not None:
            scores = scores.clamp(min=self.floor)
        mean, scale = scores[rows].mean().item(), scores[rows].std().item()
        spec = {**chosen, "vocabulary": data.codec.vocabulary, "length": data.codec.length}
        members = train_members(
            lambda: construct("regressor", spec),
            tokens[rows],
            (scores[rows] - mean) / scale,
            replace(settings, seed=settings.seed + 10 * seed),
            on_member=lambda e, error: told(f"{part}: member {e + 1} of {settings.members}, held out {error:.4f}"),
        )
        reward = EnsembleReward(members, data.codec, mean=mean, scale=scale)
        fitted = measure_fit(reward(tokens[test]), scores[test])
        single = EnsembleReward(members[:1], data.codec, mean=mean, scale=scale)
        alone = measure_fit(single(tokens[test]), scores[test])
        metrics = {
            "members": len(members),
            "parameters": sum(p.numel() for p in reward.parameters()),
            "training_rows": len(rows),
            "test_rows": fitted.rows,
            "test_spearman": round(fitted.spearman, 4),
            "test_r_squared": round(fitted.r_squared, 4),
            "one_member_spearman": round(alone.spearman, 4),
            "one_member_r_squared": round(alone.r_squared, 4),
        }
        return reward, metrics

    # --- what people look at -------------------------------------------------------------------------------------

    def describe(self, policy: Policy, known: Any) -> Describe:
        """Uniqueness, diversity, novelty, words, motifs, and letters by position for logos."""
        common, codec = describe_sequences(policy, known), policy.codec
        assert isinstance(codec, TokenCodec)
        if not self.motifs and not self.words:
            return common
        lookout = self.lookout
        return lambda x_0: {**common(x_0), **lookout.describe(policy.card, codec.tokens(x_0).cpu())}

    @property
    def lookout(self) -> Lookout:
        """What is looked for in designs."""
        return Lookout(alphabet=self.alphabet, motifs=self.motifs, words=self.words, both_strands=self.both_strands)

    def facts(self, policy: Policy) -> dict[str, Any]:
        """Letters and length; motifs, and what held-out designs have of them."""
        facts: dict[str, Any] = {"alphabet": self.alphabet, "length": policy.event_shape[0]}
        if self.motifs:
            facts["motifs"] = dict(self.motifs)
        return facts | {name: policy.card[name] for name in ("second_reference", "held_out") if name in policy.card}


def _together(family: Sequence[str], lead: np.ndarray, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Parts in which each family is where its first row of ``lead`` is, or its first row if none is of ``lead``."""
    part = np.full(len(family), -1)
    for i, rows in enumerate(parts):
        part[rows] = i
    home: dict[str, int] = {}
    for row in [*np.flatnonzero(lead).tolist(), *np.flatnonzero(~lead).tolist()]:
        home.setdefault(family[row], int(part[row]))
    moved = np.array([home[name] for name in family])
    return [np.flatnonzero(moved == i) for i in range(len(parts))]


def _table(data: Designs) -> Table:
    assert isinstance(data, Table)
    return data


def _against_markov(
    denoiser: nn.Module,
    process: Process,
    train: Int[Tensor, "N L"],
    validation: Int[Tensor, "P L"],
    test: Int[Tensor, "M L"],
    seed: int,
) -> dict[str, float]:
    """The bound on held-out designs beside Markov models, nats per token, with standard errors.

    Of orders 2, 3 and 5 as they are, and the one whose order and smoothing do best on the validation designs.
    """
    length, rng = test.shape[1], torch.Generator().manual_seed(seed)
    bounds = denoising_bounds(denoiser, process, test, rng, draws=32) / length
    metrics = {
        "test_bound_nats_per_token": round(bounds.mean().item(), 5),
        "test_bound_error": round((bounds.std() / len(bounds) ** 0.5).item(), 5),
    }
    letters = process.vocabulary
    orders = [order for order in range(1, min(8, length)) if letters ** (order + 1) <= LARGEST_TABLE]
    models = {f"markov_{o}": sequences.MarkovModel(train, o, letters) for o in (2, 3, 5) if o in orders}
    if orders and len(validation):
        best = sequences.best_markov(train, validation, letters, orders)
        models["best_markov"] = best
        metrics |= {"best_markov_order": best.order, "best_markov_smoothing": best.smoothing}
    for name, model in models.items():
        markov = model.log_prob(test) / length
        metrics[f"{name}_nats_per_token"] = round(-markov.mean().item(), 5)
        better = bounds.cpu() + markov  # negative where the denoiser is the better model
        metrics[f"advantage_over_{name}"] = round(-better.mean().item(), 5)
        metrics[f"advantage_over_{name}_error"] = round((better.std() / len(better) ** 0.5).item(), 5)
    return metrics


def _likeness(policy: Policy, train: Int[Tensor, "N L"], test: Int[Tensor, "M L"], seed: int) -> dict[str, float]:
    """How designs of ``policy`` differ from held-out ones in shares of letters and words, and how training ones do."""
    codec = policy.codec
    assert isinstance(codec, TokenCodec)
    letters = codec.vocabulary
    drawn = codec.tokens(sample_states(policy, SAMPLES, Streams(seed)("likeness")))
    metrics: dict[str, float] = {"sampled_designs": SAMPLES, "steps": policy.steps}
    for name, tokens in (("sampled", drawn), ("training", train)):
        for k, word in ((1, "letter"), (3, "3mer")):
            mine, theirs = (sequences.kmer_counts(part, k, letters) for part in (tokens, test))
            gap = (mine / mine.sum() - theirs / theirs.sum()).abs().max().item()
            metrics[f"{name}_{word}_largest_difference"] = round(gap, 5)
        metrics[f"{name}_3mer_correlation"] = round(sequences.kmer_correlation(mine, theirs), 4)
    return metrics
