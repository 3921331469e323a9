"""What every gradient-trained policy carries: parameters, optimiser, anchors, and the number of updates."""

from __future__ import annotations

from typing import Any

import torch

from difftilt.core.algorithm import Anchor
from difftilt.core.policy import Policy
from difftilt.errors import ConfigError, StateError
from difftilt.types import Float, Tensor


class TunedState:
    """A policy under training; the optimiser lives as long as the state does.

    Args:
        policy: tuned in place; put in eval mode, because train-time randomness would make ratios meaningless.
        anchors: reference policies and their weights; at least one, all weights positive.
        learning_rate: of Adam.
        extra: further parameters to train, each with its own learning rate.
    """

    def __init__(
        self,
        policy: Policy,
        anchors: list[Anchor],
        *,
        learning_rate: float,
        extra: list[dict[str, Any]] | None = None,
    ) -> None:
        if not anchors or any(anchor.weight <= 0 for anchor in anchors):
            came = [anchor.weight for anchor in anchors]
            raise ConfigError(
                f"expected alpha > 0 for every anchor; got {came}; the tilted law needs a positive temperature"
            )
        self.policy, self.anchors, self.updates = policy.eval(), anchors, 0
        self.x_0: Tensor | None = None
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        if not self.parameters:
            raise ConfigError("expected a policy with trainable parameters; got none; call policy.requires_grad_(True)")
        groups: list[dict[str, Any]] = [{"params": self.parameters, "lr": learning_rate}, *(extra or [])]
        self.optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self._rates = [group["lr"] for group in self.optimiser.param_groups]

    def scale_learning_rate(self, factor: float) -> None:
        """Set every learning rate to ``factor`` times its configured value."""
        for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = factor * rate

    @property
    def references(self) -> list[Policy]:
        """The anchors' policies."""
        return [anchor.policy for anchor in self.anchors]

    @property
    def weights(self) -> Float[Tensor, " A"]:
        """The anchors' weights, ``[A]``, float64, reward units per nat."""
        return torch.tensor([a.weight for a in self.anchors], dtype=torch.float64, device=self.policy.device)

    @property
    def alpha(self) -> float:
        """Total temperature, the sum of the weights."""
        return sum(anchor.weight for anchor in self.anchors)

    def state_dict(self) -> dict[str, Any]:
        """Parameters, optimiser, anchor weights and update count (the references are fixed and not stored)."""
        return {
            "policy": self.policy.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "anchor_weights": [anchor.weight for anchor in self.anchors],
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        if len(state["anchor_weights"]) != len(self.anchors):
            raise StateError(
                f"expected {len(self.anchors)} anchors; got {len(state['anchor_weights'])} in the checkpoint; "
                "resume with the settings the run was started with"
            )
        self.policy.load_state_dict(state["policy"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.anchors = [Anchor(a.policy, w) for a, w in zip(self.anchors, state["anchor_weights"], strict=True)]
        self.updates = state["updates"]
