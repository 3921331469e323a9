"""The fine-tuning loop: any algorithm, any policy, any reward; checkpoints, resume, KL budget, live gap.

A resumed run repeats the numbers of an uninterrupted one (one thread), and never pays for an oracle call twice.
"""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from difftilt.core.algorithm import Algorithm, Anchor
from difftilt.core.conditions import Conditions
from difftilt.core.policy import Policy
from difftilt.core.reward import Reward, score
from difftilt.core.trajectory import sample_states
from difftilt.errors import ConfigError, StateError, UnsupportedError
from difftilt.rewards.function import as_reward
from difftilt.rewards.oracle import Answer, Oracle, as_oracle
from difftilt.rng import Streams
from difftilt.tracking.checkpoint import checkpoint_steps, load_checkpoint, save_checkpoint
from difftilt.tracking.run import RunFolder

PILOT = 64
"""Designs of the pretrained policy that are scored to choose the first alpha of a KL budget."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Settings of the loop around an algorithm."""

    steps: int = 100
    """Updates."""
    seed: int = 0
    """Seed of every random stream of the run."""
    kl_budget: float | None = None
    """KL to the pretrained policy to meet, nats: alpha is found, starting from the spread of a few rewards. Alpha stays
    fixed when not set."""
    final_learning_rate: float = 0.05
    """Learning rate at the last update, as a share of the first; linear in between."""
    checkpoint_every: int = 10
    """Updates between checkpoints: a crash loses at most this many."""
    judge_every: int = 5
    """Updates between evaluations of the batch by the judge."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"expected at least 1 step; got {self.steps}; raise --steps")
        if min(self.checkpoint_every, self.judge_every) < 1:
            came = f"checkpoint_every {self.checkpoint_every} and judge_every {self.judge_every}"
            raise ConfigError(f"expected intervals of at least 1 update; got {came}; raise them")
        if self.kl_budget is not None and not self.kl_budget > 0:
            raise ConfigError(f"expected a KL budget above 0 nats; got {self.kl_budget}; raise --kl-budget")


@dataclass
class FinetuneResult:
    """A finished (or interrupted) fine-tuning run."""

    policy: Policy
    """The tuned policy."""
    pretrained: Policy
    """The policy it started from, frozen."""
    alpha: float
    """The temperature at the end: the given one, or the one that meets the KL budget."""
    oracle: Oracle
    """The counted reward."""
    history: list[dict[str, Any]] = field(repr=False)
    """One record per step, as in ``metrics.jsonl``."""


def first_alpha(reward_std: float, budget: float) -> float:
    r""":math:`\mathrm{std}(r) / \sqrt{2 B}`: the temperature whose tilt spends ``B`` nats if rewards are normal.

    Args:
        reward_std: spread of the pretrained policy's rewards, reward units.
        budget: ``B``, nats.
    """
    return reward_std / math.sqrt(2 * budget)


def overspent(kl: float, budget: float, progress: float) -> float:
    r""":math:`e = \mathrm{clip}((KL - B') / B', -1, 1)`, where :math:`B'` grows to the budget over the first half.

    Args:
        kl: nats spent.
        budget: nats.
        progress: share of the updates done, above 0.
    """
    due = budget * min(1.0, 2 * progress)
    return max(-1.0, min(1.0, (kl - due) / due))


def adapt_alpha(alpha: float, error: float, before: float) -> float:
    r"""One step of the KL controller, :math:`\log \alpha \leftarrow \log \alpha + 0.1\, e_k + 0.5\, (e_k - e_{k-1})`.

    Alpha grows while too much is spent, and while spending grows. The policy follows alpha with a delay: without the
    second term alpha would swing, or run away.

    Args:
        alpha: reward units per nat.
        error: :math:`e_k`, see :func:`overspent`.
        before: :math:`e_{k-1}`.
    """
    return alpha * math.exp(0.1 * error + 0.5 * (error - before))


def finetune(
    policy: Policy,
    reward: Reward,
    algorithm: Algorithm,
    *,
    loop: LoopConfig | None = None,
    anchors: list[Anchor] | None = None,
    conditions: Conditions | None = None,
    judge: Reward | None = None,
    log_z: float | None = None,
    folder: RunFolder | None = None,
    resume: bool = False,
    on_step: Callable[[dict[str, Any]], Any] | None = None,
) -> FinetuneResult:
    """Tune a copy of ``policy`` towards its tilted law.

    Args:
        policy: the pretrained policy; left as it is. Its parameters that require gradients are tuned; where none does,
            its adapters, else all.
        reward: what to raise; counted, cached and (with a folder) recorded.
        algorithm: its settings; ``algorithm.alpha`` weighs the pretrained policy where ``anchors`` is not given.
        loop: settings of the loop.
        anchors: reference policies and weights, reward units per nat.
        conditions: what designs are made for, where the policy is conditional.
        judge: a held-out reward that is only logged; not asked where there are conditions.
        log_z: log Z of the target where known, nats: then each record has ``gap_nats``, of one noisy batch. It needs a
            fixed alpha and one anchor.
        folder: where the run is kept; nothing is written without it.
        resume: continue from the folder's latest checkpoint.
        on_step: called with each record; training ends where it returns something true.

    Raises:
        StateError: the folder holds a run and ``resume`` is false.
        UnsupportedError: a KL budget for a method without a temperature, or one that keeps its first.
    """
    loop = loop or LoopConfig()
    if loop.kl_budget is not None and not getattr(algorithm, "tempered", True):
        raise UnsupportedError(
            f"expected a method whose alpha a KL budget can move; got {type(algorithm).__name__}, whose law does not "
            "follow it; leave out --kl-budget and end the run by its logged kl_nats, or use --algorithm ppo"
        )
    if not policy.process.memoryless:
        warnings.warn(
            f"expected a memoryless process; got {type(policy.process).__name__} whose noise still knows the design: "
            "tuning keeps its prior and reaches the tilted law only as far as the prior allows (docs/concepts.md); use "
            "full noise (eta = 1), or smc or refine",
            stacklevel=2,
        )
    pretrained = policy.frozen_copy()
    tuned = policy.copy().requires_grad_(True)
    anchors = anchors or [Anchor(pretrained, algorithm.alpha)]
    state = algorithm.init(tuned, anchors) if conditions is None else algorithm.init(tuned, anchors, conditions)
    streams = Streams(loop.seed, policy.device)
    oracle, first, spent = recorded_oracle(reward, folder), 0, 0.0
    history: list[dict[str, Any]] = []
    totals = {"network_evaluations": 0}
    if folder is not None and not resume and (checkpoint_steps(folder.checkpoints) or folder.metrics.is_file()):
        raise StateError(
            f"expected an empty run folder; got one that holds a run, '{folder.path}'; add --resume to continue it, "
            "or choose another with --run"
        )
    if resume and folder is not None and checkpoint_steps(folder.checkpoints):
        first, saved = load_checkpoint(folder.checkpoints)
        state.load_state_dict(saved["algorithm"])
        streams.load_state_dict(saved["streams"])
        oracle.load_state_dict(saved["oracle"])
        totals, spent = saved["totals"], saved["seconds"]
        folder.rewind_metrics(first)
        history = folder.read(folder.metrics)
    else:
        if folder is not None:
            folder.rewind_metrics(0)
        if loop.kl_budget is not None and len(state.anchors) == 1 and conditions is None:
            x_0 = sample_states(pretrained, PILOT, streams("alpha"))
            totals["network_evaluations"] += PILOT * pretrained.steps
            spread = score(oracle, policy.codec, x_0).std
            if spread > 0:
                state.anchors[0] = Anchor(state.anchors[0].policy, first_alpha(spread, loop.kl_budget))
    started = time.monotonic() - spent
    for step in range(first + 1, loop.steps + 1):
        state.scale_learning_rate(1 + (loop.final_learning_rate - 1) * (step - 1) / max(1, loop.steps - 1))
        info = dataclasses.asdict(algorithm.step(state, oracle, streams("train")))
        totals["network_evaluations"] += info.pop("network_evaluations")
        info.pop("oracle_calls")
        alpha = state.anchors[0].weight
        record: dict[str, Any] = {
            "step": step,
            "reward": info.pop("reward"),
            "judge": None,
            "kl_nats": info["kl_nats"],
            "gap_nats": None,
            "oracle_calls": oracle.calls,
            **totals,
            "seconds": time.monotonic() - started,
            "alpha": alpha,
            **info,
        }
        _check_finite(record, tuned)
        if (
            judge is not None
            and conditions is None
            and state.x_0 is not None
            and (step % loop.judge_every == 0 or step == loop.steps)
        ):
            record["judge"] = score(as_reward(judge), tuned.codec, state.x_0).mean
        if log_z is not None and loop.kl_budget is None and len(state.anchors) == 1:
            log_feasible = math.log(max(info.get("feasible_fraction", 1.0), 1e-300))
            record["gap_nats"] = log_z - (record["reward"] / alpha - record["kl_nats"]) - log_feasible
        if loop.kl_budget is not None:
            before = history[-1] if history else record
            errors = [overspent(r["kl_nats"], loop.kl_budget, r["step"] / loop.steps) for r in (before, record)]
            state.anchors[0] = Anchor(state.anchors[0].policy, adapt_alpha(alpha, errors[1], errors[0]))
        history.append(record)
        if folder is not None:
            folder.append(folder.metrics, [record])
            if step % loop.checkpoint_every == 0 or step == loop.steps:
                saved = {
                    "algorithm": state.state_dict(),
                    "streams": streams.state_dict(),
                    "oracle": oracle.state_dict(),
                    "totals": totals,
                    "seconds": record["seconds"],
                }
                save_checkpoint(folder.checkpoints, step, saved)
        if on_step is not None and on_step(record):
            break
    tuned.eval().requires_grad_(False)
    return FinetuneResult(tuned, pretrained, state.anchors[0].weight, oracle, history)


def _check_finite(record: dict[str, Any], policy: Policy) -> None:
    """Nothing of a diverged policy is kept.

    Raises:
        StateError: the KL is not finite, or a parameter is not.
    """
    broken = [name for name, value in policy.named_parameters() if not value.isfinite().all()]
    if broken or not math.isfinite(record["kl_nats"]):
        came = f"'{broken[0]}' with other numbers" if broken else f"a KL of {record['kl_nats']} nats"
        raise StateError(
            f"expected a finite policy after update {record['step']}; got {came}; lower the learning rate (the last "
            "checkpoint is kept) or raise alpha"
        )


def recorded_oracle(reward: Reward, folder: RunFolder | None) -> Oracle:
    """The counted reward; with a folder, its history is read from and its answers are written to ``oracle.jsonl``.

    A reward that is an oracle already is returned as it is.
    """
    if folder is None or isinstance(reward, Oracle):
        return as_oracle(reward)
    rows = folder.read(folder.oracle)
    history = [
        Answer(row["design"], math.nan if row["value"] is None else row["value"], row["reason"], row["purpose"])
        for row in rows
    ]
    return as_oracle(
        reward,
        history=history,
        record=lambda answers: folder.append(folder.oracle, [answer._asdict() for answer in answers]),
    )
