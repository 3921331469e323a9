"""The one place where names become objects: tasks, models, rewards, algorithms, samplers, soft values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from difftilt.core.policy import CONFIG, Policy
from difftilt.core.reward import DifferentiableReward, Reward
from difftilt.core.value import Value
from difftilt.data import Table, load
from difftilt.domains import dna, image, molecule, protein, rna
from difftilt.domains.sequence import SequenceTask
from difftilt.domains.task import DENOISER, LearnedReward, NamedReward, Task
from difftilt.errors import ConfigError, nearest
from difftilt.networks.external import external_policy, load_external
from difftilt.networks.stored import kind_of
from difftilt.rewards.combined import Objective, Requirement, combined
from difftilt.rewards.ensemble import EnsembleReward
from difftilt.rewards.function import as_reward, load_function
from difftilt.rewards.pool import Pool
from difftilt.rewards.spec import bound, short, terms
from difftilt.rewards.table import TableReward
from difftilt.samplers.best_of_n import BestOfN
from difftilt.samplers.classifier_guidance import ClassifierGuidance
from difftilt.samplers.mcmc import MCMC
from difftilt.samplers.refine import Refine
from difftilt.samplers.smc import SMC
from difftilt.samplers.value_weighted import ValueWeighted
from difftilt.values.monte_carlo import MonteCarlo
from difftilt.values.plug_in import OneJump, PlugIn
from difftilt.values.regression import Regression, fit_value

TASKS: dict[str, Task] = {
    task.name: task for task in (*rna.TASKS, *dna.TASKS, *protein.TASKS, *molecule.TASKS, *image.TASKS)
}
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
ZOO = Path(__file__).parent / "zoo"


def task(name: str) -> Task:
    """The task called ``name`` (``tfbind8/SIX6_REF_R1`` is ``tfbind8``)."""
    known = {entry.data_set: entry for entry in TASKS.values()} | TASKS
    if name not in known:
        raise nearest(name, known, what="task")
    return known[name]


def tuning_rate(name: str, process: str | None = None) -> float | None:
    """Learning rate at which a task's p_pre is tuned; ``None``, as for any other model, is the method's own.

    Args:
        name: a task, or whatever else a user may tilt.
        process: one of the task's; its first when not given.
    """
    try:
        entry = task(name)
    except ConfigError:
        return None
    return entry.prior(process or entry.process).tuning_rate


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
        settings: of a task or a folder of its models, ``process`` (``"masked"`` if not given); for other libraries'
            models and one's own, docs/models.md has them all.

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
    process = settings.get("process")
    by_name = process is None or isinstance(process, str)
    folder = stored(Path(name), process if by_name else None)
    ours = named or (folder / CONFIG).is_file()
    kind = None if ours else kind_of(name)
    if kind is not None:
        return load_external(name, kind, settings)
    if by_name and settings.pop("process", None) and not ours:
        raise ConfigError(
            f"expected a folder of models with a {process} one; got '{name}' without '{folder.name}/{CONFIG}'; leave "
            "out process, or make one with `difftilt pretrain`"
        )
    if settings:
        raise ConfigError(
            f"expected no settings with '{name}', whose folder says all; got {', '.join(settings)}; use "
            "policy.with_steps and policy.holding"
        )
    if named:
        return load_task_policy(task(name), process if by_name else None)
    return Policy.from_pretrained(str(folder if ours else name))


def stored(models: Path, process: str | None) -> Path:
    """Where a folder of models has its p_pre over ``process``; the first one where none is named."""
    first = models / DENOISER
    if process is None:
        return first
    try:
        over = json.loads((first / CONFIG).read_text(encoding="utf-8"))["process"]["type"]
    except (OSError, ValueError, LookupError, TypeError):
        over = None
    return first if over == process else models / process


def load_task_policy(entry: Task, process: str | None = None, models: Path | None = None) -> Policy:
    """The pretrained policy of a task, over a process, its first where none is named.

    Raises:
        ConfigError: the task has none over this process, or it is not there.
    """
    return Policy.from_pretrained(str(_part(entry, entry.folder(process or entry.process), models)))


def _part(entry: Task, part: str, models: Path | None) -> Path:
    """Where a task's model is.

    Raises:
        ConfigError: it is not there.
    """
    folder = model_folder(entry, part, models)
    if folder is None:
        raise ConfigError(_missing(entry, part, models))
    return folder


def _missing(entry: Task, part: str, models: Path | None) -> str:
    where = f"in '{models}'" if models else "in the package"
    which = f" --process {part}" if part in entry.priors else ""
    return (
        f"expected a {part} model for '{entry.name}' {where}; got none; make one with `difftilt pretrain {entry.name}"
        f"{which} --output models/{entry.name}` and pass --models models/{entry.name}"
    )


def load_reward(
    entry: Task,
    spec: str | None,
    models: Path | None = None,
    table: Table | None = None,
    require: Sequence[str] = (),
    *,
    workers: int = 1,
    timeout: float | None = None,
) -> Reward:
    """The reward of a task.

    Args:
        entry: the task.
        spec: ``"table"``, ``"model"``, one of the task's rewards, ``"scorer.py:function"``, or a weighted sum of such
            (:mod:`difftilt.rewards.spec`); ``None`` for the task's own.
        models: folder of own models in place of the zoo.
        table: own data in place of the task's set, for a table reward.
        require: bounds that designs must meet, such as ``"sa_score<=3"``.
        workers: processes that score designs with each function and computed reward (:class:`~difftilt.rewards.Pool`).
        timeout: seconds that one design may take there; ``None`` for no limit.

    Raises:
        ConfigError: an unknown name, a sum or bound that makes no sense, a model that is not there; workers or a
            timeout, and nothing that they are for.
    """
    summands, bounds = terms(spec or entry.default_reward), [bound(text) for text in require]
    made: dict[str, Reward] = {}
    for name in dict.fromkeys([*(term.name for term in summands), *(limit.name for limit in bounds)]):
        made[name] = _one_reward(entry, name, models, table)
    if workers != 1 or timeout is not None:
        pooled = {
            name: Pool(name if ":" in name else reward, workers=workers, timeout=timeout)
            for name, reward in made.items()
            if _in_processes(entry, name, reward)
        }
        if not pooled:
            raise ConfigError(
                f"expected a function or a computed reward for --workers and --timeout; got {', '.join(made)}, which "
                "this process scores; leave them out"
            )
        made |= pooled
    if not bounds and len(summands) == 1 and summands[0].weight == 1:
        return made[summands[0].name]
    return combined(
        [Objective(short(term.name), as_reward(made[term.name]), term.weight) for term in summands],
        [Requirement(short(limit.name), as_reward(made[limit.name]), limit.sense, limit.value) for limit in bounds],
    )


def _in_processes(entry: Task, name: str, reward: Reward) -> bool:
    """Whether worker processes can score a reward, and are worth it: no network, no table, no gradient."""
    named = entry.rewards.get(name)
    computed = isinstance(named, NamedReward) and named.part is None and not isinstance(reward, DifferentiableReward)
    return ":" in name or computed


def _one_reward(entry: Task, spec: str, models: Path | None, table: Table | None) -> Reward:
    if ":" in spec:
        return load_function(spec)
    named = entry.rewards.get(spec)
    if isinstance(named, NamedReward):
        return named.make() if named.part is None else named.make(_part(entry, named.part, models))
    if spec == "table":
        table = table or load(entry.data_set)
        table = table.take(entry.rows(table)) if isinstance(entry, SequenceTask) else table
        return TableReward(dict(zip(table.sequences, table.scores.tolist(), strict=True)), f"{entry.name} table")
    if spec != "model" and named is None:
        raise nearest(spec, ["table", "model", *entry.rewards, "scorer.py:my_function"], what="reward")
    part = "reward" if named is None else named.part
    return EnsembleReward.from_pretrained(str(_part(entry, part, models)))


def judge_of(entry: Task, spec: str | None, models: Path | None = None) -> Reward | None:
    """The judge of a reward: of learned rewards that are named each its own, summed alike; else the task's.

    Args:
        entry: the task.
        spec: as of :func:`load_reward`.
        models: folder of own models in place of the zoo.

    Returns:
        ``None`` where a judge that is needed is not there: another's would judge something else.
    """
    summands = terms(spec or entry.default_reward)
    learned = {"model": "judge"} | {
        name: named.judge for name, named in entry.rewards.items() if isinstance(named, LearnedReward)
    }
    if spec is None or len(learned) == 1 or not all(term.name in learned for term in summands):
        return load_judge(entry, models)
    folders = {term.name: model_folder(entry, learned[term.name], models) for term in summands}
    judges = {name: EnsembleReward.from_pretrained(str(folder)) for name, folder in folders.items() if folder}
    if len(judges) < len(folders):
        return None
    if len(summands) == 1 and summands[0].weight == 1:
        return judges[summands[0].name]
    return combined([Objective(short(term.name), as_reward(judges[term.name]), term.weight) for term in summands])


def load_judge(entry: Task, models: Path | None = None) -> EnsembleReward | None:
    """The judge of a task, ``None`` if it has none."""
    folder = model_folder(entry, "judge", models)
    return None if folder is None else EnsembleReward.from_pretrained(str(folder))
