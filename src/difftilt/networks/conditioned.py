r"""A token denoiser made conditional on a label: logits :math:`T(x_t, t) + f_\phi(x_t, y)`, with f = 0 at the start."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from difftilt.core.policy import Policy
from difftilt.core.registry import construct, describe, register
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.rng import seeded_initialisation
from difftilt.types import Condition, Float, Tensor

LABEL = "y"
"""Name of the condition that holds the label."""


@register("denoiser", "conditioned")
class ConditionedDenoiser(nn.Module):
    """A denoiser plus a perceptron that reads the state and the label.

    Args:
        base: the denoiser, or its description.
        vocabulary: letters ``V``.
        length: positions ``L``.
        labels: number of labels.
        hidden: units of each of two hidden layers.
    """

    time_free = True

    def __init__(
        self, base: nn.Module | dict[str, Any], vocabulary: int, length: int, labels: int, hidden: int = 256
    ) -> None:
        super().__init__()
        self.base = base if isinstance(base, nn.Module) else cast(nn.Module, construct("denoiser", base))
        self.vocabulary, self.length, self.labels, self.hidden = vocabulary, length, labels, hidden
        last = nn.Linear(hidden, length * vocabulary)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        size = length * (vocabulary + 1) + labels
        self.network = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), last)

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Float[Tensor, "B L V"]:
        """Logits of tokens ``[B, L]`` or relaxed tokens ``[B, L, V + 1]``, for labels ``cond["y"] [B]``.

        Raises:
            ConfigError: no label was given.
        """
        if cond is None or LABEL not in cond:
            raise ConfigError(f"expected a condition '{LABEL}' with one label per row; got none; pass cond")
        one_hot = F.one_hot(x_t, self.vocabulary + 1) if x_t.ndim == 2 else x_t
        if not 0 <= cond[LABEL].min() <= cond[LABEL].max() < self.labels:
            raise ConfigError(
                f"expected labels 0 to {self.labels - 1}; got {cond[LABEL].min()} to {cond[LABEL].max()}; correct them"
            )
        label = F.one_hot(cond[LABEL].long(), self.labels)
        own = self.network(torch.cat([one_hot.flatten(1).float(), label.float()], dim=1))
        logits = self.base(x_t, t, None)
        return logits + own.view_as(logits)

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            "base": describe(self.base), "vocabulary": self.vocabulary, "length": self.length,
            "labels": self.labels, "hidden": self.hidden,
        }  # fmt: skip


def conditioned(policy: Policy, labels: int, *, hidden: int = 256, seed: int = 0) -> Policy:
    """``policy`` with a label that it does not look at yet: the start, and the reference, of conditional tuning.

    Args:
        policy: over tokens; copied.
        labels: number of labels.
        hidden: width of the part that reads them.
        seed: of its initial weights.

    Raises:
        UnsupportedError: the policy is not over tokens.
    """
    if not policy.process.discrete:
        raise UnsupportedError(
            f"expected a policy over tokens; got {type(policy.process).__name__}; give your own conditional denoiser"
        )
    copy = policy.frozen_copy()
    with seeded_initialisation(seed):
        denoiser = ConditionedDenoiser(
            copy.denoiser, policy.process.vocabulary, policy.event_shape[0], labels, hidden=hidden
        )
    made = Policy(
        denoiser, policy.process, policy.codec, policy.event_shape, grid=policy.grid.cpu(), fixed=policy.fixed
    )
    denoiser.network.requires_grad_(True)
    return made.to(policy.device)
