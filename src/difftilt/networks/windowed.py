r"""A denoiser that is tuned in a window of times only; a frozen network runs the rest.

.. math::
    u(x_t, t) = u_\theta(x_t, t) \text{ for } high \ge t > low, \text{ else } u_{pre}(x_t, t)              \qquad (1)

A step without noise has a KL of 0 or infinity: run by the tuned network, it would be free of charge. So where a chain
has noise in a window only (:class:`~difftilt.processes.flow.Flow`), (1) is the denoiser to tune: steps outside are
those of the reference, in every state, and the path KL is the sum over the window's steps. An update costs those alone.
The tilt that such a policy can reach is what its window can make of the states that enter it.

Differs from the papers in: Flow-GRPO-Fast and MixGRPO run the ODE steps by the tuned network, whose KL nobody pays.

References:
    Li et al. 2025 (MixGRPO), https://arxiv.org/abs/2507.21802; Liu et al. 2025 (Flow-GRPO),
    https://arxiv.org/abs/2505.05470.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from difftilt.core.conditions import rows_of
from difftilt.core.policy import Policy, trainable
from difftilt.core.registry import construct, describe, register
from difftilt.core.schedule import check_window, within
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.processes.flow import Flow
from difftilt.types import Condition, Tensor


@register("denoiser", "windowed")
class Windowed(nn.Module):
    """Equation (1). The frozen network stays frozen, and in eval mode, whatever the whole is told.

    Args:
        tuned: runs the steps that start in the window: a network, or its description.
        frozen: runs the others.
        high: the window's first (noisiest) time.
        low: its end: steps from there on are the frozen network's.

    Raises:
        ConfigError: the window is empty.
    """

    def __init__(
        self, tuned: nn.Module | dict[str, Any], frozen: nn.Module | dict[str, Any], high: float, low: float
    ) -> None:
        super().__init__()
        check_window((high, low))
        self.high, self.low = high, low
        self.tuned, self.frozen = _network(tuned), _network(frozen).eval().requires_grad_(False)

    def tuned_at(self, t: Tensor) -> Tensor:
        """Whether steps from ``t`` are the tuned network's."""
        return within(t, (self.high, self.low))

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Tensor:
        """The prediction; a batch that mixes both kinds of times is split."""
        tuned = self.tuned_at(t)
        if tuned.all():
            return self.tuned(x_t, t, cond)
        if not tuned.any():
            return self.frozen(x_t, t, cond)
        parts = [(network, rows.nonzero()[:, 0]) for network, rows in ((self.tuned, tuned), (self.frozen, ~tuned))]
        answers = [network(x_t[rows], t[rows], rows_of(cond, rows)) for network, rows in parts]
        return torch.cat(answers)[torch.cat([rows for _, rows in parts]).argsort()]

    def train(self, mode: bool = True) -> Windowed:
        """The tuned network only."""
        super().train(mode)
        self.frozen.eval()
        return self

    def wake(self) -> None:
        """The tuned network is tuned."""
        getattr(self.tuned, "wake", lambda: None)()

    def trainable(self) -> list[nn.Parameter]:
        """That of the tuned network."""
        return trainable(self.tuned)

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"tuned": describe(self.tuned), "frozen": describe(self.frozen), "high": self.high, "low": self.low}


def _network(part: nn.Module | dict[str, Any]) -> nn.Module:
    return part if isinstance(part, nn.Module) else cast(nn.Module, construct("denoiser", part))


def windowed(policy: Policy, high: float, low: float, *, level: float = 0.7) -> Policy:
    """``policy`` as a chain to tune in a window: noise there, the frozen ODE elsewhere.

    Args:
        policy: a flow; left as it is. What of it is not tuned is shared, not copied.
        high: the window's first (noisiest) time, at most 1.
        low: its end: steps that start at ``high >= t > low`` have noise and are tuned.
        level: of the window's noise, above 0; Flow-GRPO: 0.7.

    Raises:
        ConfigError: no step starts in the window, or the level is 0.
        UnsupportedError: the policy is no flow.
    """
    if not isinstance(policy.process, Flow):
        raise UnsupportedError(
            f"expected a flow, whose marginals are the same at any noise; got {type(policy.process).__name__}; tune "
            "all of its steps (steps_per_path for fewer in an update)"
        )
    process = Flow(level, sigma_min=policy.process.sigma_min, window=(high, low))
    if level == 0 or not within(policy.grid[:-1], process.window).any():
        raise ConfigError(
            f"expected a level above 0 and a window in which a step starts; got level {level} and {high} to {low} on a "
            f"grid of {policy.steps} steps; widen it"
        )
    made = policy.copy()
    made.denoiser = Windowed(made.denoiser, policy.frozen_copy().denoiser, high, low)
    made.process = process
    return made
