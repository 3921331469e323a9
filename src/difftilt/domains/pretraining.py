"""A task's models made from its data: every part trained, measured on held-out rows, and saved with its card."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy
from difftilt.core.process import Process
from difftilt.core.registry import construct
from difftilt.core.trajectory import sample_states
from difftilt.data import Table, find, load, names
from difftilt.domains.task import MASKED, Task, TaskData, prior_folder, split_task
from difftilt.errors import DataError
from difftilt.metrics import sequences
from difftilt.rewards.ensemble import EnsembleReward
from difftilt.rng import Streams, seeded_initialisation
from difftilt.tracking.run import provenance
from difftilt.training.pretrain import denoising_bounds, pretrain
from difftilt.training.regress import measure_fit, train_members
from difftilt.types import Int, Tensor

PARTS = ("denoiser", "reward", "judge")
FEWEST = 20
"""Designs below which nothing is trained."""
SAMPLES = 1024
"""Designs of a finished p_pre that are compared with held-out ones."""


@dataclass(frozen=True)
class Pretraining:
    """What to train for a task, and where to put it."""

    entry: Task
    table: Table
    output: Path
    command: str
    process: str = MASKED
    seed: int = 0
    resume: bool = False
    on_event: Callable[[str], None] = lambda message: None

    def run(self, parts: tuple[str, ...] = PARTS) -> dict[str, dict[str, Any]]:
        """Train the named parts; returns each one's metrics."""
        data = split_task(self.entry, self.table, seed=self.seed)
        for part in parts:
            rows = len(data.prior_train) if part == "denoiser" else len(getattr(data, part))
            if rows < FEWEST:
                what = "designs" if part == "denoiser" else "scored designs"
                raise DataError(f"expected at least {FEWEST} {what} for the {part}; got {rows}; add more")
        done = {}
        for part in parts:
            started = time.monotonic()
            if part == "denoiser":
                model, metrics = self._denoiser(data)
            else:
                model, metrics = self._regressor(part, data)
            metrics["seconds"] = round(time.monotonic() - started, 1)
            model.card = self._card(part, metrics) | model.card
            model.save_pretrained(self.folder(part))
            done[part] = metrics
            self.on_event(f"{part}: {metrics}")
        return done

    def folder(self, part: str) -> Path:
        """Where a part is saved."""
        return self.output / (prior_folder(self.process) if part == "denoiser" else part)

    @property
    def checkpoints(self) -> Path:
        """Where an interrupted training of the denoiser is."""
        return self.output / "checkpoints" / self.process

    def _card(self, part: str, metrics: dict[str, Any]) -> dict[str, Any]:
        entry = self.entry
        own = {"process": self.process, "note": entry.prior(self.process).note} if part == "denoiser" else {}
        return {
            "name": f"{entry.name} {self.folder(part).name}",
            "summary": entry.summary,
            "task": entry.name,
            "part": part,
            **{name: fact for name, fact in own.items() if fact is not None},
            "score": entry.score_name,
            "naturalness": entry.naturalness,
            "data": self._source(part),
            "training": {"command": self.command, "seed": self.seed, **provenance()},
            "metrics": metrics,
        }

    def _source(self, part: str) -> dict[str, Any]:
        """Which rows a part was trained and tested on."""
        entry, table = self.entry, self.table
        if part == "judge" and entry.judge_set is not None:
            table = load(entry.judge_set)
        known = {path.resolve(): name for name in names() if (path := find(name)) is not None}
        distance = entry.cluster_distance
        split = f"by cluster: no test row within {distance} mutations of a training row" if distance else "at random"
        return {
            "set": known.get(table.path.resolve(), table.path.name),
            "file": table.path.name,
            "rows": len(table),
            "split": split,
        }

    def _denoiser(self, data: TaskData) -> tuple[Policy, dict[str, Any]]:
        prior, letters, length = self.entry.prior(self.process), data.codec.vocabulary, data.codec.length
        with seeded_initialisation(self.seed):
            denoiser = construct("denoiser", {**prior.denoiser, "vocabulary": letters, "length": length})
        process: Process = construct("process", {"type": self.process, "vocabulary": letters})
        train, validation, test = (
            data.tokens[rows] for rows in (data.prior_train, data.prior_validation, data.prior_test)
        )
        result = pretrain(
            denoiser,
            process,
            train,
            validation,
            replace(prior.training, seed=self.seed),
            folder=self.checkpoints,
            resume=self.resume,
            on_update=lambda r: self.on_event(
                f"denoiser: update {r['update']}, validation {r['validation'] / length:.4f} nats per token"
            ),
        )
        codec = self.entry.codec(length, self.process)
        event = tuple(codec.encode(data.codec.decode(train[:1])).shape[1:])
        policy = Policy(denoiser, process, codec, event, steps=prior.steps)
        policy.card = {"kmer_counts": sequences.kmer_counts(train, 3, letters).long().tolist()}
        metrics = {
            "parameters": sum(p.numel() for p in denoiser.parameters()),
            "training_designs": len(train),
            "test_designs": len(test),
            **_against_markov(denoiser, process, train, test, self.seed),
            **_likeness(policy, codec, train, test, self.seed),
        }
        return policy, metrics | {"updates": result.history[-1]["update"]}

    def _regressor(self, part: str, data: TaskData) -> tuple[EnsembleReward, dict[str, Any]]:
        entry, codec = self.entry, data.codec
        chosen, settings = (
            (entry.reward, entry.reward_training) if part == "reward" else (entry.judge, entry.judge_training)
        )
        rows, tokens, scores, test = getattr(data, part), data.tokens, data.scores, data.test
        if part == "judge" and entry.judge_set is not None:
            replicate = split_task(entry, load(entry.judge_set), seed=self.seed)
            rows, tokens, scores, test = replicate.judge, replicate.tokens, replicate.scores, replicate.test
        mean, scale = scores[rows].mean().item(), scores[rows].std().item()
        spec = {**chosen, "vocabulary": codec.vocabulary, "length": codec.length}
        members = train_members(
            lambda: construct("regressor", spec),
            tokens[rows],
            (scores[rows] - mean) / scale,
            replace(settings, seed=settings.seed + 10 * self.seed),
            on_member=lambda e, error: self.on_event(
                f"{part}: member {e + 1} of {settings.members}, held out {error:.4f}"
            ),
        )
        reward = EnsembleReward(members, codec, mean=mean, scale=scale)
        fit = measure_fit(reward(tokens[test]), scores[test])
        single = EnsembleReward(members[:1], codec, mean=mean, scale=scale)
        alone = measure_fit(single(tokens[test]), scores[test])
        metrics = {
            "members": len(members),
            "parameters": sum(p.numel() for p in reward.parameters()),
            "training_rows": len(rows),
            "test_rows": fit.rows,
            "test_spearman": round(fit.spearman, 4),
            "test_r_squared": round(fit.r_squared, 4),
            "one_member_spearman": round(alone.spearman, 4),
            "one_member_r_squared": round(alone.r_squared, 4),
        }
        return reward, metrics


def _against_markov(
    denoiser: nn.Module, process: Process, train: Int[Tensor, "N L"], test: Int[Tensor, "M L"], seed: int
) -> dict[str, float]:
    """The bound on held-out designs beside Markov models of several orders, nats per token, with standard errors."""
    length, rng = test.shape[1], torch.Generator().manual_seed(seed)
    bounds = denoising_bounds(denoiser, process, test, rng, draws=32) / length
    metrics = {
        "test_bound_nats_per_token": round(bounds.mean().item(), 5),
        "test_bound_error": round((bounds.std() / len(bounds) ** 0.5).item(), 5),
    }
    for order in (2, 3, 5):
        markov = sequences.MarkovModel(train, order, process.vocabulary).log_prob(test) / length
        metrics[f"markov_{order}_nats_per_token"] = round(-markov.mean().item(), 5)
        better = bounds.cpu() + markov  # negative where the denoiser is the better model
        metrics[f"advantage_over_markov_{order}"] = round(-better.mean().item(), 5)
        metrics[f"advantage_over_markov_{order}_error"] = round((better.std() / len(better) ** 0.5).item(), 5)
    return metrics


def _likeness(
    policy: Policy, codec: TokenCodec, train: Int[Tensor, "N L"], test: Int[Tensor, "M L"], seed: int
) -> dict[str, float]:
    """How designs of ``policy`` differ from held-out ones in shares of letters and words, and how training ones do."""
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
