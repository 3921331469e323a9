"""Practice runs of the tutorial: tune on a problem whose answer is known, and look at the answer on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from drawing import REDUCED

from difftilt.core.algorithm import Anchor
from difftilt.core.policy import Policy
from difftilt.problems.problem import Problem


@dataclass
class Practice:
    """A finished run."""

    policy: Policy
    calls: list[int] = field(default_factory=list)
    """Designs scored until then."""
    kl: list[float] = field(default_factory=list)
    """Exact KL to the claimed law, nats."""
    reward: list[float] = field(default_factory=list)
    """Exact mean reward."""
    infos: list[Any] = field(default_factory=list)
    """What each update logged."""


def tune(
    problem: Problem,
    algorithm: Any,
    updates: int,
    *,
    looks: int = 30,
    value: Any = None,
    seed: int = 0,
) -> Practice:
    """Tune from the pretrained policy, the learning rate falling to 0, and tell exact numbers ``looks`` times."""
    updates = min(updates, 2) if REDUCED else updates
    rng = torch.Generator().manual_seed(seed)
    state = algorithm.init(
        problem.tunable(), [Anchor(problem.pretrained, problem.alpha)]
    )
    if value is not None:
        state.value = value
    run, calls = Practice(state.policy), 0
    for update in range(updates + 1):
        if update % max(1, updates // looks) == 0 or update == updates:
            run.calls.append(calls)
            run.kl.append(problem.kl(state.policy))
            run.reward.append(problem.mean_reward(state.policy))
        if update < updates:
            state.scale_learning_rate(1 - update / updates)
            run.infos.append(algorithm.step(state, problem.reward, rng))
            calls += algorithm.batch
    return run
