"""What ``difftilt.finetune`` is asked to do: refused before anything is copied or paid for."""

from __future__ import annotations

import warnings
from typing import Any

from difftilt.core.conditions import Conditions
from difftilt.core.policy import Policy
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.training.loop import LoopConfig


def check_call(policy: Any, algorithm: Any, conditions: Any, loop: LoopConfig) -> None:
    """Refuse arguments of another kind, and a KL budget where alpha cannot follow it; warn of an incomplete noise.

    Raises:
        ConfigError: not a policy, not an algorithm's settings, or not conditions.
        UnsupportedError: a KL budget for a method without a temperature, or one that keeps its first.
    """
    if not isinstance(policy, Policy):
        raise ConfigError(f"expected a policy; got {type(policy).__name__}; make one of it with difftilt.load first")
    if isinstance(algorithm, type) or not hasattr(algorithm, "init"):
        is_class = isinstance(algorithm, type)
        came = f"the class {algorithm.__name__}" if is_class else type(algorithm).__name__
        raise ConfigError(
            f"expected an algorithm with its settings; got {came}; pass {algorithm.__name__ if is_class else 'PPO'}"
            "(alpha=...)"
        )
    if not isinstance(conditions, Conditions | None):
        raise ConfigError(
            f"expected difftilt.Conditions; got {type(conditions).__name__}; make them with difftilt.prompts(pipeline, "
            "texts), or Conditions of a table"
        )
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
            stacklevel=3,
        )
