"""A small network for soft values: it reads a state and the time, and returns one number."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from difftilt.core.policy import Policy
from difftilt.processes.masked import Masked
from difftilt.types import Condition, Float, Tensor


class ValueNetwork(nn.Module):
    """A perceptron over the flattened state (tokens one-hot, the mask included) and the time; 0 at the start.

    Args:
        policy: gives the event shape and the alphabet.
        hidden: units of each of two hidden layers.
    """

    def __init__(self, policy: Policy, hidden: int = 128) -> None:
        super().__init__()
        self.symbols = policy.process.vocabulary + 1 if isinstance(policy.process, Masked) else None
        size = math.prod(policy.event_shape) * (self.symbols or 1)
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.Linear(size + 1, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last)

    def forward(self, x_t: Tensor, t: Float[Tensor, " B"], cond: Condition | None = None) -> Float[Tensor, " B"]:
        """Nats; ``x_t`` is ``[B, *event]`` or relaxed tokens, ``[B, L, V + 1]``. Does not look at ``cond``."""
        if self.symbols and not x_t.is_floating_point():
            x_t = F.one_hot(x_t, self.symbols)
        return self.layers(torch.cat([x_t.flatten(1).float(), t[:, None].float()], dim=1))[:, 0]
