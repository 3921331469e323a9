"""The fine-tuning loop: any algorithm, any policy, any reward; checkpoints, resume, KL budget, live gap.

A resumed run repeats the numbers of an uninterrupted one (one thread), and never pays for an oracle call twice. Of
several processes (:mod:`difftilt.core.ranks`) the first asks the oracle and the judge, writes and calls back.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from difftilt.algorithms.state import restore
from difftilt.core.algorithm import Algorithm, Anchor
from difftilt.core.conditions import Conditions
from difftilt.core.policy import Policy
from difftilt.core.ranks import is_first, of_first, refuse_unlike, together
from difftilt.core.reward import Reward, score
from difftilt.core.trajectory import sample_states
from difftilt.errors import ConfigError, StateError
from difftilt.rewards.combined import CombinedReward
from difftilt.rewards.function import as_reward
from difftilt.rewards.oracle import Answer, Oracle, as_oracle
from difftilt.rng import Streams
from difftilt.tracking.checkpoint import checkpoint_steps, load_checkpoint, save_checkpoint
from difftilt.tracking.run import RunFolder
from difftilt.training.asked import check_call
from difftilt.training.budget import adapt_alpha, first_alpha, overspent
from difftilt.training.ema import Ema
from difftilt.training.loop import LoopConfig
from difftilt.types import Tensor

PILOT = 64
"""Designs of the pretrained policy that are scored to choose the first alpha of a KL budget."""


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
        algorithm: its settings; ``algorithm.alpha`` weighs the pretrained policy where ``anchors`` is not given. At 0
            no reference is run, and there is no law to reach (``ppo``, ``reinforce``, ``reward_backprop`` only).
        loop: settings of the loop.
        anchors: reference policies and weights, reward units per nat.
        conditions: what designs are made for, where the policy is conditional.
        judge: a held-out reward that is only logged; not asked where there are conditions.
        log_z: log Z of the target where known, nats: then each record has ``gap_nats``, of one noisy batch. It needs a
            fixed alpha and one anchor.
        folder: where the run is kept; nothing is written without it.
        resume: continue from the folder's latest checkpoint; of several processes, each reads it.
        on_step: called with each record; training ends where it returns something true.

    Raises:
        ConfigError: an argument of another kind: a pipeline in place of a policy, texts in place of conditions.
        StateError: the folder holds a run and ``resume`` is false; or several processes do not agree.
        UnsupportedError: a KL budget for a method without a temperature, or one that keeps its first.
    """
    loop = loop or LoopConfig()
    check_call(policy, algorithm, conditions, loop)
    pretrained = policy.frozen_copy()
    tuned = policy.copy().requires_grad_(True)
    if loop.kl_budget is not None and not (anchors or algorithm.alpha):
        raise ConfigError("expected alpha > 0 with a KL budget, which finds it; got 0; leave out alpha or the budget")
    anchors = anchors or ([Anchor(pretrained, algorithm.alpha)] if algorithm.alpha else [])
    everyone = (tuned, pretrained, *(anchor.policy for anchor in anchors))
    with together(*(each.denoiser for each in everyone), shares=loop.shares):
        state = algorithm.init(tuned, anchors) if conditions is None else algorithm.init(tuned, anchors, conditions)
        streams = Streams(loop.seed, policy.device)
        oracle = recorded_oracle(reward, folder if is_first() else None)
        trained = {name: value for name, value in tuned.named_parameters() if value.requires_grad}
        average = None if loop.ema is None else Ema(trained, loop.ema)
        totals, spent = {"network_evaluations": 0}, 0.0
        first, history = of_first(lambda: _begin(folder, resume=resume))
        if first:
            assert folder is not None
            _, saved = load_checkpoint(folder.checkpoints, first)
            try:
                state.load_state_dict(saved["algorithm"])
            except (KeyError, ValueError) as error:
                raise StateError(
                    f"expected the checkpoint of a {type(algorithm).__name__} run with these settings; got another's "
                    f"({error}); resume with the settings the run was started with"
                ) from error
            streams.load_state_dict(saved["streams"])
            of_first(lambda: oracle.load_state_dict(saved["oracle"]))
            totals, spent = saved["totals"], saved["seconds"]
            if (average is not None) != ("average" in saved):
                raise StateError(f"expected a checkpoint for ema {loop.ema}; got another; resume with the ema it had")
            if average is not None:
                average.load_state_dict(saved["average"])
        elif loop.kl_budget is not None and len(state.anchors) == 1 and conditions is None:
            x_0 = sample_states(pretrained, PILOT, streams("alpha"))
            totals["network_evaluations"] += PILOT * pretrained.steps
            spread = score(oracle, policy.codec, x_0).std
            if spread > 0:
                state.anchors[0] = Anchor(state.anchors[0].policy, first_alpha(spread, loop.kl_budget))
        started = time.monotonic() - spent

        def keep(record: dict[str, Any]) -> tuple[dict[str, Any], bool]:
            """Judge, write and tell: what is done once, after an update; says whether the training ends here."""
            step, alpha = record["step"], record["alpha"]
            if (
                judge is not None
                and conditions is None
                and state.x_0 is not None
                and (step % loop.judge_every == 0 or step == loop.steps)
            ):
                record["judge"] = score(as_reward(judge), tuned.codec, state.x_0).mean
            if log_z is not None and loop.kl_budget is None and len(state.anchors) == 1:
                log_feasible = math.log(max(record.get("feasible_fraction", 1.0), 1e-300))
                record["gap_nats"] = log_z - (record["reward"] / alpha - record["kl_nats"]) - log_feasible
            if folder is not None:
                folder.append(folder.metrics, [record])
                if step % loop.checkpoint_every == 0 or step == loop.steps:
                    saved: dict[str, Any] = {
                        "algorithm": state.state_dict(),
                        "streams": streams.state_dict(),
                        "oracle": oracle.state_dict(),
                        "totals": totals,
                        "seconds": record["seconds"],
                    }
                    if average is not None:
                        saved["average"] = average.state_dict()
                    save_checkpoint(folder.checkpoints, step, saved)
            return record, on_step is not None and bool(on_step(record))

        for step in range(first + 1, loop.steps + 1):
            state.scale_learning_rate(1 + (loop.final_learning_rate - 1) * (step - 1) / max(1, loop.steps - 1))
            info = dataclasses.asdict(algorithm.step(state, oracle, streams("train")))
            totals["network_evaluations"] += info.pop("network_evaluations")
            info.pop("oracle_calls")
            record: dict[str, Any] = {
                "step": step,
                "reward": info.pop("reward"),
                "judge": None,
                "kl_nats": info["kl_nats"],
                "gap_nats": None,
                "oracle_calls": oracle.calls,
                **totals,
                "seconds": time.monotonic() - started,
                "alpha": state.anchors[0].weight if state.anchors else 0.0,
                **info,
            }
            if not state.anchors:
                record["kl_nats"] = None
            _check_finite(record, trained)
            shown = [record["reward"], record["kl_nats"] or 0.0]
            refuse_unlike("reward and KL", torch.tensor(shown, dtype=torch.float64))
            if average is not None:
                average.update(trained)
            if loop.kl_budget is not None:
                before = history[-1] if history else record
                errors = [overspent(r["kl_nats"], loop.kl_budget, r["step"] / loop.steps) for r in (before, record)]
                state.anchors[0] = Anchor(state.anchors[0].policy, adapt_alpha(record["alpha"], errors[1], errors[0]))
            record, stop = of_first(partial(keep, record))
            history.append(record)
            if stop:
                break
    if average is not None:
        restore(trained, average.average)
    tuned.eval().requires_grad_(False)
    return FinetuneResult(tuned, pretrained, state.anchors[0].weight if state.anchors else 0.0, oracle, history)


def _begin(folder: RunFolder | None, *, resume: bool) -> tuple[int, list[dict[str, Any]]]:
    """The update to go on from, 0 for a new run, and the records until there.

    Raises:
        StateError: the folder holds a run that is not to be resumed.
    """
    if folder is None:
        return 0, []
    steps = checkpoint_steps(folder.checkpoints)
    if not resume and (steps or folder.metrics.is_file()):
        raise StateError(
            f"expected an empty run folder; got one that holds a run, '{folder.path}'; add --resume to continue it, "
            "or choose another with --run"
        )
    first = steps[-1] if steps else 0
    folder.rewind_metrics(first)
    return first, folder.read(folder.metrics)


def _check_finite(record: dict[str, Any], trained: Mapping[str, Tensor]) -> None:
    """Nothing of a diverged policy is kept.

    Raises:
        StateError: the KL is not finite, or a parameter is not.
    """
    broken = [name for name, value in trained.items() if not value.isfinite().all()]
    if broken or not math.isfinite(record["kl_nats"] or 0.0):
        came = f"'{broken[0]}' with other numbers" if broken else f"a KL of {record['kl_nats']} nats"
        raise StateError(
            f"expected a finite policy after update {record['step']}; got {came}; lower the learning rate (the last "
            "checkpoint is kept) or raise alpha"
        )


def recorded_oracle(reward: Reward, folder: RunFolder | None) -> Oracle:
    """The counted reward; with a folder, its history is read from and its answers are written to ``oracle.jsonl``.

    The numbers that a combined reward is made of are kept likewise, in ``objectives.jsonl``.

    A reward that is an oracle already is returned as it is.
    """
    if folder is None or isinstance(reward, Oracle):
        return as_oracle(reward)
    inner = getattr(reward, "reward", reward)  # within a limit
    if isinstance(inner, CombinedReward):
        inner.keep(folder.read(folder.objectives), lambda rows: folder.append(folder.objectives, rows))
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
