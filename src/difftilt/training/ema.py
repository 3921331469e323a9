r"""Exponential moving average of parameters.

.. math:: \bar\theta \leftarrow \lambda_k \bar\theta + (1 - \lambda_k) \theta                            \qquad (1)

The decay warms up as :math:`\lambda_k = \min(\lambda, (1 + k) / (10 + k))`, so that early averages forget the
initialisation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from difftilt.types import Tensor


class Ema:
    r"""Average of named tensors; of half-precision ones in float32, where a small step is not rounded away.

    Args:
        values: what to follow, e.g. a module's ``state_dict()``; the average starts there.
        decay: the limit :math:`\lambda`; 0 follows the values exactly.
    """

    def __init__(self, values: Mapping[str, Tensor], decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.average = {name: _wide(value.detach()).clone() for name, value in values.items()}

    @torch.no_grad()
    def update(self, values: Mapping[str, Tensor]) -> None:
        """Take one step towards the present values; integers are copied."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in values.items():
            if value.is_floating_point():
                self.average[name].lerp_(_wide(value), 1 - decay)
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


def _wide(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() and value.itemsize < 4 else value
