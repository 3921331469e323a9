"""What a fine-tuning algorithm and a sampler are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from difftilt.core.conditions import Conditions
from difftilt.core.policy import Policy
from difftilt.core.reward import Reward
from difftilt.core.value import Value
from difftilt.types import Condition, Float, Tensor


@dataclass(frozen=True)
class Anchor:
    r"""A reference policy and its weight in the objective, reward units per nat.

    With anchors :math:`(p_a, w_a)` an algorithm maximises :math:`E[r] - \sum_a w_a KL(p_\theta \| p_a)`; the usual
    case is one anchor, the pretrained policy with weight alpha.
    """

    policy: Policy
    weight: float


@runtime_checkable
class State(Protocol):
    """What an algorithm carries between steps; updated in place."""

    policy: Policy
    anchors: list[Anchor]
    x_0: Tensor | None
    """Finished states of the last step's batch, for whoever watches."""

    def scale_learning_rate(self, factor: float) -> None:
        """Set every learning rate to ``factor`` times its configured value."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, as nested dicts of tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        ...


@runtime_checkable
class Algorithm(Protocol):
    """A frozen dataclass of settings with two methods. ``step`` returns a frozen record of logged numbers."""

    @property
    def alpha(self) -> float:
        """KL temperature, reward units per nat; used where no anchors are given."""
        ...

    def init(self, policy: Policy, anchors: list[Anchor], conditions: Conditions | None = None) -> State:
        """Start tuning ``policy`` (in place) towards the tilted law of ``anchors``, under each of ``conditions``."""
        ...

    def step(self, state: State, reward: Reward, rng: torch.Generator) -> Any:
        """One update; ``reward`` is called on one batch of designs."""
        ...


@dataclass(frozen=True)
class Weighted:
    """Finished states with importance weights, as every sampler returns them."""

    x_0: Tensor
    """``[N, *event]``."""
    log_weight: Float[Tensor, " N"]
    """Log weights, nats; all 0 for unweighted samples."""
    log_z: float | None
    """Estimate of log Z, nats, where the sampler gives one."""
    states: Tensor | None = None
    """Whole paths behind them, ``[K + 1, N, *event]``, noisiest first, where asked for."""


@runtime_checkable
class Sampler(Protocol):
    """Draws designs from a tilted law without training."""

    def __call__(
        self,
        policy: Policy,
        reward: Reward,
        n: int,
        rng: torch.Generator,
        *,
        cond: Condition | None = None,
        value: Value | None = None,
        paths: bool = False,
    ) -> Weighted:
        """``n`` weighted designs, one row of ``cond`` each; with ``paths`` their whole paths too.

        ``value`` estimates the soft value; a sampler that needs one and gets none makes the plug-in estimate, and one
        that needs none ignores it.
        """
        ...
