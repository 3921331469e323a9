r"""Exponential moving average of parameters.

.. math:: \bar\theta \leftarrow \lambda_k \bar\theta + (1 - \lambda_k) \theta                            \qquad (1)

The decay warms up as :math:`\lambda_k = \min(\lambda, (1 + k) / (10 + k))`, so that early averages forget the
initialisation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Ema:
    r"""Average of a module's parameters.

    Args:
        module: whose parameters to follow.
        decay: the limit :math:`\lambda`; 0 follows the parameters exactly.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.average = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take one step towards the module's present parameters."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def state_dict(self) -> dict[str, Tensor | int | dict]:
        """The average and its age."""
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict) -> None:
        """Restore :meth:`state_dict`."""
        self.updates = state["updates"]
        for name, value in state["average"].items():
            self.average[name].copy_(value)
