"""A small network for soft values: it reads a state, the time and which condition, and returns one number."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from difftilt.core.conditions import as_vectors
from difftilt.core.policy import Policy
from difftilt.errors import UnsupportedError
from difftilt.types import Condition, Float, Tensor

MOST = 256
"""Different conditions that a network tells apart."""


class ValueNetwork(nn.Module):
    """A perceptron over the flattened state (tokens one-hot, the mask included) and the time; 0 at the start.

    Args:
        policy: gives the event shape and the alphabet.
        hidden: units of each of two hidden layers.
        cond: conditions that it will be asked about, each at least once; it knows which one a row has, by number.

    Raises:
        UnsupportedError: there are more than :data:`MOST` different ones.
    """

    conditions: Tensor | None

    def __init__(self, policy: Policy, hidden: int = 128, cond: Condition | None = None) -> None:
        super().__init__()
        known = None if cond is None else as_vectors(cond).unique(dim=0)
        if known is not None and len(known) > MOST:
            raise UnsupportedError(
                f"expected at most {MOST} different conditions, which the value network tells apart by number; got "
                f"{len(known)}; pass a network of your own that reads them"
            )
        self.register_buffer("conditions", known)
        self.symbols = policy.process.vocabulary + 1 if policy.process.discrete else None
        size = math.prod(policy.event_shape) * (self.symbols or 1) + (0 if known is None else len(known))
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.Linear(size + 1, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last)

    def forward(self, x_t: Tensor, t: Float[Tensor, " B"], cond: Condition | None = None) -> Float[Tensor, " B"]:
        """Nats; ``x_t`` is ``[B, *event]`` or relaxed tokens, ``[B, L, V + 1]``.

        Raises:
            UnsupportedError: a condition that it was not made for.
        """
        if self.symbols and not x_t.is_floating_point():
            x_t = F.one_hot(x_t, self.symbols)
        parts = [x_t.flatten(1).float(), t[:, None].float()]
        if self.conditions is not None:
            parts.append(self._which(self.conditions, cond, len(x_t)))
        return self.layers(torch.cat(parts, dim=1))[:, 0]

    @staticmethod
    def _which(known: Float[Tensor, "M d"], cond: Condition | None, n: int) -> Float[Tensor, "B M"]:
        """One-hot numbers of conditions."""
        asked = known.new_full((n, 1), torch.nan) if cond is None else as_vectors(cond)
        same = (asked[:, None] == known).all(-1)
        if not same.any(1).all():
            raise UnsupportedError(
                f"expected one of the {len(known)} conditions that the value was fitted to; got "
                f"{'none' if cond is None else 'another'}; fit it to all that you ask about"
            )
        return same.float()
