"""The one place where names become objects: tasks, models, rewards, algorithms, samplers, soft values."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from difftilt.algorithms.adjoint_matching import AdjointMatching
from difftilt.algorithms.distill import Distill
from difftilt.algorithms.path_consistency import DetailedBalance, PathConsistency, SubtrajectoryBalance
from difftilt.algorithms.ppo import PPO
from difftilt.algorithms.raft import RAFT
from difftilt.algorithms.reinforce import Reinforce
from difftilt.algorithms.renoised_mle import RenoisedMLE
from difftilt.algorithms.reward_backprop import RewardBackprop
from difftilt.algorithms.reward_weighted_mle import RewardWeightedMLE
from difftilt.algorithms.trajectory_balance import TrajectoryBalance, VarGrad
from difftilt.algorithms.value_weighted_mle import ValueWeightedMLE
from difftilt.core.codec import TokenCodec
from difftilt.core.policy import CONFIG, Policy
from difftilt.core.registry import construct
from difftilt.core.reward import Reward
from difftilt.core.value import Value
from difftilt.data import Table, find, load, merge_repeats, names, read_designs, validate
from difftilt.domains import dna, rna
from difftilt.domains.task import Task, TaskData, split_task
from difftilt.errors import ConfigError, DataError, nearest
from difftilt.metrics import sequences
from difftilt.networks.external import external_policy, kind_of, load_external
from difftilt.processes.masked import Masked
from difftilt.rewards.ensemble import EnsembleReward
from difftilt.rewards.function import load_function
from difftilt.rewards.table import TableReward
from difftilt.rng import seeded_initialisation
from difftilt.samplers.best_of_n import BestOfN
from difftilt.samplers.classifier_guidance import ClassifierGuidance
from difftilt.samplers.mcmc import MCMC
from difftilt.samplers.refine import Refine
from difftilt.samplers.smc import SMC
from difftilt.samplers.value_weighted import ValueWeighted
from difftilt.tracking.run import provenance
from difftilt.training.pretrain import denoising_bounds, pretrain
from difftilt.training.regress import measure_fit, train_members
from difftilt.types import Int, Tensor
from difftilt.values.monte_carlo import MonteCarlo
from difftilt.values.plug_in import OneJump, PlugIn
from difftilt.values.regression import Regression, fit_value

TASKS: dict[str, Task] = {task.name: task for task in (*rna.TASKS, *dna.TASKS)}
ALGORITHMS: dict[str, type] = {
    "ppo": PPO,
    "reward_backprop": RewardBackprop,
    "trajectory_balance": TrajectoryBalance,
    "vargrad": VarGrad,
    "adjoint_matching": AdjointMatching,
    "path_consistency": PathConsistency,
    "detailed_balance": DetailedBalance,
    "subtrajectory_balance": SubtrajectoryBalance,
    "reinforce": Reinforce,
    "reward_weighted_mle": RewardWeightedMLE,
    "renoised_mle": RenoisedMLE,
    "value_weighted_mle": ValueWeightedMLE,
    "raft": RAFT,
    "distill": Distill,
}
SAMPLERS: dict[str, type] = {
    "best_of_n": BestOfN,
    "value_weighted": ValueWeighted,
    "smc": SMC,
    "refine": Refine,
    "classifier_guidance": ClassifierGuidance,
    "mcmc": MCMC,
}
VALUES = ("plug_in", "one_jump", "monte_carlo", "regression")
PARTS = ("denoiser", "reward", "judge")
ZOO = Path(__file__).parent / "zoo"
FEWEST = 20
"""Designs below which nothing is trained."""


def task(name: str) -> Task:
    """The task called ``name`` (``tfbind8/SIX6_REF_R1`` is ``tfbind8``)."""
    known = {entry.data_set: entry for entry in TASKS.values()} | TASKS
    if name not in known:
        raise nearest(name, known, what="task")
    return known[name]


def algorithm(name: str) -> type:
    """The algorithm called ``name``, a frozen dataclass of settings."""
    if name not in ALGORITHMS:
        raise nearest(name, ALGORITHMS, what="algorithm")
    return ALGORITHMS[name]


def sampler(name: str) -> type:
    """The sampler called ``name``, a frozen dataclass of settings."""
    if name not in SAMPLERS:
        raise nearest(name, SAMPLERS, what="sampler")
    return SAMPLERS[name]


def soft_value(
    name: str, policy: Policy, reward: Reward, rng: torch.Generator, *, alpha: float, samples: int | None = None
) -> Value:
    """The estimate of the soft value called ``name``; a regression is fitted here.

    Args:
        name: one of :data:`VALUES`.
        policy: p_pre.
        reward: scores designs.
        rng: noise source.
        alpha: KL temperature, reward units per nat.
        samples: designs or rollouts for each state, or paths of the regression; its own number when not given.
    """
    if name not in VALUES:
        raise nearest(name, VALUES, what="value")
    if name == "plug_in":
        return PlugIn(policy, reward)
    if name == "one_jump":
        jump = OneJump(policy, reward, rng, alpha)
        return jump if samples is None else replace(jump, designs=samples)
    if name == "monte_carlo":
        runs = MonteCarlo(policy, reward, rng, alpha)
        return runs if samples is None else replace(runs, rollouts=samples)
    settings = Regression(alpha=alpha)
    return fit_value(policy, reward, rng, settings if samples is None else replace(settings, paths=samples))


def model_folder(entry: Task, part: str, models: Path | None = None) -> Path | None:
    """Where a task's model is: below ``models`` if given, else in the zoo; ``None`` if it is not there."""
    folder = (models or ZOO / entry.name) / part
    return folder if (folder / CONFIG).is_file() else None


def load_policy(model: Any, **settings: Any) -> Policy:
    """A pretrained policy, of whatever holds one.

    Args:
        model: a task with a shipped model; a model folder or Hub repository of ours; a pipeline, model or masked
            language model of diffusers or transformers, as an object, a local folder or a Hub repository; or any
            module ``(x_t, t, cond) -> prediction``.
        settings: for other libraries' models and one's own; docs/models.md has them all.

    Raises:
        ConfigError: a task whose model is not shipped, an unknown name, or a setting that the model does not have.
        StateError: a folder that is not a model, or a truncated file.
        UnsupportedError: a pipeline, model or scheduler that is not supported; those that are, are named.
    """
    if not isinstance(model, str | Path):
        return external_policy(model, settings)
    name = str(model)
    named = name in TASKS or name in {entry.data_set for entry in TASKS.values()}
    if not named and not Path(name).exists() and name.count("/") != 1:
        raise nearest(name, TASKS, what="task, model folder or Hub repository")
    folder = Path(name) / "denoiser"
    ours = named or (folder / CONFIG).is_file()
    kind = None if ours else kind_of(name)
    if kind is not None:
        return load_external(name, kind, settings)
    if settings:
        raise ConfigError(
            f"expected no settings with '{name}', whose folder says all; got {', '.join(settings)}; use "
            "policy.with_steps and policy.holding"
        )
    return load_task_policy(task(name)) if named else Policy.from_pretrained(str(folder if ours else name))


def load_task_policy(entry: Task, models: Path | None = None) -> Policy:
    """The pretrained policy of a task."""
    folder = model_folder(entry, "denoiser", models)
    if folder is None:
        raise ConfigError(_missing(entry, "denoiser", models))
    return Policy.from_pretrained(str(folder))


def _missing(entry: Task, part: str, models: Path | None) -> str:
    where = f"in '{models}'" if models else "in the package"
    return (
        f"expected a {part} model for '{entry.name}' {where}; got none; make one with "
        f"`difftilt pretrain {entry.name} --output models/{entry.name}` and pass --models models/{entry.name}"
    )


def load_reward(entry: Task, spec: str | None, models: Path | None = None, table: Table | None = None) -> Reward:
    """The reward of a task.

    Args:
        entry: the task.
        spec: ``"table"``, ``"model"``, ``"scorer.py:function"``, or ``None`` for the task's own.
        models: folder of own models in place of the zoo.
        table: own data in place of the task's set, for a table reward.
    """
    if spec is not None and ":" in spec:
        return load_function(spec)
    spec = spec or ("table" if entry.table_reward else "model")
    if spec == "table":
        table = table or load(entry.data_set)
        return TableReward(dict(zip(table.sequences, table.scores.tolist(), strict=True)), f"{entry.name} table")
    if spec != "model":
        raise nearest(spec, ["table", "model", "scorer.py:my_function"], what="reward")
    folder = model_folder(entry, "reward", models)
    if folder is None:
        raise ConfigError(_missing(entry, "reward", models))
    return EnsembleReward.from_pretrained(str(folder))


def load_judge(entry: Task, models: Path | None = None) -> EnsembleReward | None:
    """The judge of a task, ``None`` if it has none."""
    folder = model_folder(entry, "judge", models)
    return None if folder is None else EnsembleReward.from_pretrained(str(folder))


def training_designs(entry: Task, data: Path | None = None) -> Int[Tensor, "N L"] | None:
    """Tokens of the designs that p_pre was trained on (for novelty), ``None`` where the data are not at hand."""
    if data is None and find(entry.data_set) is None:
        return None
    parts = split_task(entry, read_table(entry, data))
    return parts.tokens[torch.cat([parts.prior_train, parts.prior_validation])]


def read_table(entry: Task, data: Path | None = None) -> Table:
    """A task's named set, or one's own file in its place, checked for letters and lengths."""
    if data is None:
        return load(entry.data_set)
    table = read_designs(data)
    letters = entry.alphabet + "".join(entry.aliases)
    table = merge_repeats(replace(table, sequences=validate(table.sequences, letters, path=data, lines=table.lines)))
    if len(table) < FEWEST:
        raise DataError(f"{data}: expected at least {FEWEST} designs; got {len(table)}; add more")
    if table.score_column is not None and np.isnan(table.scores).all():
        raise DataError(
            f"{data}: expected numbers in the column '{table.score_column}'; got none; fill it, or leave it out"
        )
    return table


def describe_sequences(policy: Policy, known: Int[Tensor, "N L"] | None) -> Callable[[Tensor], dict[str, Any]]:
    """Domain metrics of token sequences: uniqueness, diversity, novelty, k-mer correlation with the training data."""
    codec = policy.codec
    assert isinstance(codec, TokenCodec)
    words = policy.card.get("kmer_counts")

    def describe(x_0: Tensor) -> dict[str, Any]:
        tokens = x_0.cpu()
        facts: dict[str, Any] = {
            "unique_fraction": sequences.unique_fraction(tokens),
            "diversity": sequences.diversity(tokens, codec.vocabulary),
            "position_frequencies": sequences.position_frequencies(tokens, codec.vocabulary).tolist(),
        }
        if known is not None and known.shape[1] == tokens.shape[1]:
            distance = sequences.nearest_distance(tokens, known, codec.vocabulary)
            facts["novelty"] = distance.double().mean().item()
        if words is not None:
            counts = sequences.kmer_counts(tokens, 3, codec.vocabulary)
            reference = torch.tensor(words, dtype=torch.float64)
            facts["kmer_correlation"] = sequences.kmer_correlation(counts, reference)
        return facts

    return describe


# --- pretraining ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pretraining:
    """What to train for a task, and where to put it."""

    entry: Task
    table: Table
    output: Path
    command: str
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
            model.card = self._card(part, data, metrics) | model.card
            model.save_pretrained(self.output / part)
            done[part] = metrics
            self.on_event(f"{part}: {metrics}")
        return done

    def _card(self, part: str, data: TaskData, metrics: dict[str, Any]) -> dict[str, Any]:
        entry = self.entry
        return {
            "name": f"{entry.name} {part}",
            "summary": entry.summary,
            "task": entry.name,
            "part": part,
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
        entry, codec = self.entry, data.codec
        spec = {**entry.denoiser, "vocabulary": codec.vocabulary, "length": codec.length}
        with seeded_initialisation(self.seed):
            denoiser = construct("denoiser", spec)
        process = Masked(codec.vocabulary)
        train = data.tokens[data.prior_train]
        validation = data.tokens[data.prior_validation]
        result = pretrain(
            denoiser,
            process,
            train,
            validation,
            replace(entry.pretrain, seed=self.seed),
            folder=self.output / "checkpoints",
            resume=self.resume,
            on_update=lambda r: self.on_event(
                f"denoiser: update {r['update']}, validation {r['validation'] / codec.length:.4f} nats per token"
            ),
        )
        rng = torch.Generator()
        rng.manual_seed(self.seed)
        test = data.tokens[data.prior_test]
        bounds = denoising_bounds(denoiser, process, test, rng, draws=32) / codec.length
        metrics = {
            "parameters": sum(p.numel() for p in denoiser.parameters()),
            "training_designs": len(train),
            "test_designs": len(test),
            "test_bound_nats_per_token": round(bounds.mean().item(), 5),
            "test_bound_error": round((bounds.std() / len(bounds) ** 0.5).item(), 5),
        }
        for order in (2, 3, 5):
            markov = sequences.MarkovModel(train, order, codec.vocabulary).log_prob(test) / codec.length
            metrics[f"markov_{order}_nats_per_token"] = round(-markov.mean().item(), 5)
            better = bounds.cpu() + markov  # negative where the denoiser is the better model
            metrics[f"advantage_over_markov_{order}"] = round(-better.mean().item(), 5)
            metrics[f"advantage_over_markov_{order}_error"] = round((better.std() / len(better) ** 0.5).item(), 5)
        policy = Policy(denoiser, process, codec, (codec.length,), steps=entry.steps)
        policy.card = {"kmer_counts": sequences.kmer_counts(train, 3, codec.vocabulary).long().tolist()}
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
