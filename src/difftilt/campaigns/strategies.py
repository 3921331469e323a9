"""The strategies by name: the one table to which a new one is added.

A strategy is made from p_pre of the task and the folder of the campaign, where it may keep models, and is a
:class:`~difftilt.campaigns.proposer.Proposer`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from difftilt.campaigns.batch_bo import PooledBO
from difftilt.campaigns.genetic import Genetic
from difftilt.campaigns.proposer import Proposer
from difftilt.campaigns.random_picks import RandomPicks
from difftilt.core.policy import Policy
from difftilt.errors import nearest

STRATEGIES: dict[str, Callable[[Policy, Path], Proposer]] = {
    "random": RandomPicks,
    "genetic": Genetic,
    "batch-bo": PooledBO,
}


def strategy(name: str) -> Callable[[Policy, Path], Proposer]:
    """What makes the strategy called ``name``.

    Raises:
        ConfigError: there is none; the nearest is named.
    """
    if name not in STRATEGIES:
        raise nearest(name, STRATEGIES, what="strategy")
    return STRATEGIES[name]
