"""From settings to objects: everything a run needs, checked before anything is paid for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from difftilt import build
from difftilt.algorithms.reward_backprop import RewardBackprop
from difftilt.cli.progress import say
from difftilt.cli.settings import JobSettings, Plan
from difftilt.core.algorithm import Anchor
from difftilt.core.fixing import hold
from difftilt.core.policy import Policy
from difftilt.core.reward import DifferentiableReward, Reward
from difftilt.data import Table, find, record_of
from difftilt.data.table import SEQUENCE_NAMES
from difftilt.domains.sequence import SequenceTask
from difftilt.domains.task import Designs, Task
from difftilt.errors import ConfigError, StateError, UnsupportedError
from difftilt.metrics.motifs import checked_motif
from difftilt.rewards.combined import CombinedReward
from difftilt.rewards.ensemble import EnsembleReward
from difftilt.samplers.classifier_guidance import ClassifierGuidance
from difftilt.samplers.smc import SMC

LOG_Z_SAMPLES = 8192


@dataclass(frozen=True)
class Job:
    """A plan with its objects; the plan's open choices are made."""

    plan: Plan
    entry: Task
    policy: Policy
    reward: Reward
    """What is raised, infeasible where the task has limits."""
    asked: Reward
    """The same without the task's limits, for words and for the numbers that it is made of."""
    judge: Reward | None
    known: Any
    """What novelty is told by (:meth:`Task.known`), where the data are at hand."""

    def facts(self) -> dict[str, Any]:
        """What a report says of the task, plain values."""
        entry, settings = self.entry, self.plan.settings
        several = isinstance(self.judge, CombinedReward)
        own = ", each by a judge of its own" if several else ""
        return {
            "name": entry.name,
            "domain": entry.domain,
            "summary": entry.summary,
            "data_set": settings.data.name if settings.data else entry.data_set,
            **entry.facts(self.policy),
            **self._in_training(),
            "score_name": _describe(self.judge, "") if several else score_name(entry, settings.reward),
            "reward_name": _describe(self.asked, str(settings.reward)),
            "judge_name": None if self.judge is None else _describe(self.judge, "model") + own,
            "naturalness": entry.naturalness,
            "citation": record_of(entry.data_set).citation,
        }

    def _in_training(self) -> dict[str, Any]:
        """Motifs that the model's card does not know, counted in the training designs where these are at hand."""
        if not isinstance(self.entry, SequenceTask) or not isinstance(self.known, torch.Tensor):
            return {}
        held_out = self.policy.card.get("held_out", {})
        found = {name: value for name, value in self.entry.lookout.sites(self.known).items() if name not in held_out}
        return {"in_training": found} if found else {}


def looking_for(entry: Task, asked: Sequence[str]) -> Task:
    """A task that counts more motifs in designs.

    Raises:
        ConfigError: one is no motif, or the designs are no nucleic acids.
    """
    if not asked:
        return entry
    if not isinstance(entry, SequenceTask) or entry.domain not in ("dna", "rna"):
        raise ConfigError(
            f"expected a task of DNA or RNA for --motif; got {entry.name}, of domain {entry.domain}; leave it out"
        )
    motifs = {motif: entry.motifs.get(motif, "") for motif in map(checked_motif, asked)}
    return dataclasses.replace(entry, motifs={**entry.motifs, **motifs})


def _parts(reward: Reward) -> list[Reward]:
    """What a reward is combined of, or itself."""
    if not isinstance(reward, CombinedReward):
        return [reward]
    return [part.reward for part in (*reward.objectives, *reward.requirements)]


def _describe(reward: Reward, name: str) -> str:
    """A reward in a few words."""
    if isinstance(reward, CombinedReward):
        return reward.name
    if not isinstance(reward, EnsembleReward):
        return "the measured table" if name == "table" else name.rpartition("/")[2]
    metrics = reward.card.get("metrics", {})
    rows = f" on {metrics['training_rows']:,} designs" if "training_rows" in metrics else ""
    fit = f", held-out Spearman {metrics['test_spearman']:.2f}" if "test_spearman" in metrics else ""
    what = "a network" if len(reward.members) == 1 else f"mean of {len(reward.members)} networks"
    return f"{what} trained{rows}{fit}"


def load_job(plan: Plan) -> Job:
    """Load what a plan names.

    Raises:
        DiffTiltError: something is missing, or does not fit together.
    """
    settings = plan.settings
    entry = looking_for(build.task(settings.task), settings.motif)
    process = settings.process or entry.process
    device = choose_device(settings.device, settings.threads)
    policy = build.load_task_policy(entry, process, settings.models).to(device)
    if settings.steps_per_sample is not None:
        policy = policy.with_steps(settings.steps_per_sample)
    policy = hold(policy, settings.fix)
    table = None if settings.data is None else _own_table(entry, settings, policy)
    reward = build.load_reward(
        entry,
        settings.reward,
        settings.models,
        table,
        settings.require,
        workers=settings.workers,
        timeout=settings.timeout,
    )
    judge = build.judge_of(entry, settings.reward, settings.models)
    for model in (*_parts(reward), *(() if judge is None else _parts(judge))):
        if isinstance(model, EnsembleReward):
            check_fit(model, policy)
            model.to(device)
    asked, reward = reward, entry.limited(reward, policy)
    name = settings.reward or entry.default_reward
    if not isinstance(reward, DifferentiableReward):
        _refuse_black_box(plan, name)
    if plan.kind.role == "algorithm":  # what is not defined for the process is refused here, before anything is paid
        plan.method.init(policy.copy().requires_grad_(True), [Anchor(policy, plan.method.alpha)])
    chosen = dataclasses.replace(
        settings,
        process=process,
        reward=name,
        device=str(device),
        steps_per_sample=policy.steps,
        log_z_samples=_log_z_samples(plan, name),
    )
    known = _known(entry, settings, policy)
    return Job(dataclasses.replace(plan, settings=chosen), entry, policy, reward, asked, judge, known)


def _refuse_black_box(plan: Plan, reward: str) -> None:
    """Methods that need a gradient of the reward say so before anything is paid for."""
    method, settings = plan.method, plan.settings
    if isinstance(method, RewardBackprop):
        raise UnsupportedError(
            f"expected a reward with gradients for reward_backprop; got --reward {reward}; "
            "use ppo or trajectory_balance"
        )
    if plan.kind.role != "sampler":
        return
    if settings.value == "plug_in":
        raise UnsupportedError(
            f"expected a reward with gradients for --value plug_in, read off the expected design; got --reward "
            f"{reward}; use --value one_jump or regression"
        )
    if isinstance(method, ClassifierGuidance) and method.tokens == "first_order" and settings.value != "regression":
        raise UnsupportedError(
            f"expected a reward with gradients for classifier_guidance; got --reward {reward}; use --value regression, "
            "--tokens exact with --steps-per-sample as large as the length, or --sampler smc"
        )


def _log_z_samples(plan: Plan, reward: str) -> int:
    """As asked for; else as many as are worth their cost."""
    if plan.settings.log_z_samples is not None:
        return plan.settings.log_z_samples
    if ":" in reward:
        return 0
    if plan.kind.role == "sampler":
        return LOG_Z_SAMPLES // 2 if isinstance(plan.method, SMC) else 0
    return LOG_Z_SAMPLES


def choose_device(name: str | None, threads: int) -> torch.device:
    """The device asked for, or the GPU if there is one; sets torch's threads.

    Raises:
        ConfigError: an unknown device, or a GPU that is not there.
    """
    torch.set_num_threads(threads)
    there = torch.cuda.is_available()
    try:
        device = torch.device(name) if name is not None else torch.device("cuda" if there else "cpu")
    except RuntimeError:
        raise ConfigError(f"expected --device cpu or cuda; got '{name}'; correct it") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"expected --device cpu or cuda; got '{name}'; correct it")
    if device.type == "cuda" and not there:
        raise ConfigError(f"expected a GPU for --device {name}; got none; use --device cpu")
    return device


def check_fit(model: EnsembleReward, policy: Policy) -> None:
    """A learned reward reads designs of one length.

    Raises:
        StateError: not those of the policy.
    """
    own, need = getattr(model.codec, "length", None), getattr(policy.codec, "length", None)
    if own != need:
        name = model.card.get("name", "a reward model")
        raise StateError(
            f"expected '{name}' to read designs of {need} letters; got a model for {own}; use models that fit"
        )


def _own_table(entry: Task, settings: JobSettings, policy: Policy) -> Table | None:
    data = entry.read(settings.data, skip_invalid=settings.skip_invalid)
    tell_read(data)
    entry.check(data, policy)
    return data if isinstance(data, Table) else None


def tell_read(data: Designs) -> None:
    """Say what one might not expect of how a file was read: designs left out, or a column taken for them."""
    if isinstance(data, Table) and data.sequence_column.lower() not in SEQUENCE_NAMES:
        named = " or ".join(SEQUENCE_NAMES)
        say(f"{data.path}: no column is called {named}; designs are read from the first, '{data.sequence_column}'")
    if data.skipped:
        say(f"{data.path}: {data.skipped:,} designs cannot be read and are left out; {len(data):,} are used")


def score_name(entry: Task, reward: str | None) -> str:
    """What a reward of a task is, with its unit; one that the task does not know is called what it is asked by."""
    asked = reward or entry.default_reward
    if asked in entry.rewards:
        return entry.rewards[asked].score_name
    return entry.score_name if asked in ("model", "table") else asked


def _known(entry: Task, settings: JobSettings, policy: Policy) -> Any:
    """The designs p_pre was trained on, for novelty, if the file that its card names is at hand."""
    name = policy.card.get("data", {}).get("file")
    for own, path in ((settings.data, settings.data), (None, find(entry.data_set))):
        if path is not None and path.name == name:
            return entry.known(own)
    return None
