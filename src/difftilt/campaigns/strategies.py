"""The strategies by name: the one table to which a new one is added.

A strategy is made from p_pre of the task and the folder of the campaign, where it may keep models, and is a
:class:`~difftilt.campaigns.proposer.Proposer`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from difftilt.campaigns.adaptive import Adaptive, Plan
from difftilt.campaigns.batch_bo import PooledBO
from difftilt.campaigns.genetic import Genetic
from difftilt.campaigns.guided import Guided
from difftilt.campaigns.online import Online
from difftilt.campaigns.proposer import Proposer
from difftilt.campaigns.random_picks import RandomPicks
from difftilt.core.policy import Policy
from difftilt.errors import nearest

STRATEGIES: dict[str, Callable[[Policy, Path], Proposer]] = {
    "random": RandomPicks,
    "seiko-ucb": partial(Adaptive, plan=Plan("ucb")),
    "seiko-bootstrap": partial(Adaptive, plan=Plan("bootstrap")),
    "seiko-thompson": partial(Adaptive, plan=Plan("thompson")),
    "greedy": partial(Adaptive, plan=Plan("mean")),
    "conservative": partial(Adaptive, plan=Plan("lcb", from_last=False)),
    "non-adaptive": partial(Adaptive, plan=Plan("mean", from_last=False, once=True)),
    "guidance": Guided,
    "online-ppo": Online,
    "genetic": Genetic,
    "batch-bo": PooledBO,
}
PICKED = ("surrogate", "rule", "pool", "apart", "start")
TUNED = ("alpha", "algorithm", "updates", "paths", "learning_rate")
NEAR = (*TUNED, "beta", "kl_budget")
READS: dict[str, tuple[str, ...]] = {
    "random": (),
    "seiko-ucb": (*NEAR, *PICKED, "c"),
    "seiko-bootstrap": tuple(name for name in (*NEAR, *PICKED) if name != "surrogate"),
    "seiko-thompson": (*NEAR, *PICKED),
    "greedy": (*NEAR, *PICKED),
    "conservative": (*TUNED, *PICKED, "c"),
    "non-adaptive": (*TUNED, *PICKED),
    "guidance": ("alpha", *PICKED),
    "online-ppo": ("alpha", "learning_rate"),
    "genetic": ("surrogate", "start"),
    "batch-bo": ("surrogate", "start"),
}
"""Which fields of :class:`~difftilt.campaigns.settings.Tuning` and
:class:`~difftilt.campaigns.settings.Picking` a strategy reads; all of them read the constraints."""


def strategy(name: str) -> Callable[[Policy, Path], Proposer]:
    """What makes the strategy called ``name``.

    Raises:
        ConfigError: there is none; the nearest is named.
    """
    if name not in STRATEGIES:
        raise nearest(name, STRATEGIES, what="strategy")
    return STRATEGIES[name]
