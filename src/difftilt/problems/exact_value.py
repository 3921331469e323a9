r"""Exact soft values as callables of a state and a time.

On tokens they are looked up in the table of all partial states. Relaxed tokens are read by the multilinear extension of
the table, so that its derivative with respect to letter ``a`` of a masked position is the value of the state with that
letter shown: first-order guidance by it is exact for single-site moves. (States that the chain never visits at that
time count as 0 there: with several tokens a step it knows nothing of single sites.) On Gaussian chains they are
quadratics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from difftilt.errors import ConfigError
from difftilt.types import Condition, Float, Tensor

FLOOR = -1e6
"""Stands for ``-inf`` in the extension, nats: :math:`0 \\cdot \\infty` has no value."""


@dataclass(frozen=True)
class TableValue:
    """Values of an enumerated chain, for the one condition that it was enumerated under."""

    grid: Float[Tensor, " K1"]
    """Times, from 1 to 0."""
    table: Float[Tensor, "K1 S"]
    """Reward units, noisiest time first; ``-inf`` where infeasible, NaN where no chain comes at that time."""
    free: Tensor
    """Positions that are not held fixed, ``[F]``."""
    letters: int
    """Alphabet size ``V``; the mask is ``V``."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Float[Tensor, " B"]:
        """See :class:`~difftilt.core.value.Value`."""
        step = step_of(self.grid, t, len(x_t))
        if x_t.ndim == 2:
            base = self.letters + 1
            strides = base ** torch.arange(len(self.free) - 1, -1, -1, device=x_t.device)
            return self.table[step, x_t[:, self.free] @ strides]
        weight = corner_weights(x_t[:, self.free].double())
        return (weight * self.table.nan_to_num(nan=0.0, neginf=FLOOR)[step]).sum(-1)


@dataclass(frozen=True)
class FunctionValue:
    """One function of the state at each time, such as the quadratics of a linear-Gaussian chain."""

    grid: Float[Tensor, " K1"]
    """Times, from 1 to 0."""
    functions: Sequence[Callable[[Tensor], Tensor]]
    """Reward units, noisiest time first."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Float[Tensor, " B"]:
        """See :class:`~difftilt.core.value.Value`. Gradient flows to ``x_t``."""
        step = step_of(self.grid, t, len(x_t))
        every = torch.stack([self.functions[k](x_t).double() for k in step.unique()])
        return every.gather(0, torch.unique(step, return_inverse=True)[1][None])[0]


def corner_weights(x: Float[Tensor, "B L S"]) -> Float[Tensor, "B SL"]:
    r"""Weights :math:`\prod_i x^i_{s_i}` of all sequences of symbols in the multilinear extension.

    The last symbol runs fastest. Gradient flows.
    """
    weight = x.new_ones(len(x), 1)
    for position in x.unbind(1):
        weight = (weight[:, :, None] * position[:, None, :]).flatten(1)
    return weight


def step_of(grid: Float[Tensor, " K1"], t: Tensor, rows: int) -> Tensor:
    """Index of each time on the grid, ``[B]``.

    Raises:
        ConfigError: a time is not on it: an exact value is one of its own chain.
    """
    distance, step = (grid - t.double().expand(rows)[:, None]).abs().min(-1)
    if rows and distance.max() > 1e-6:
        off = t.double().expand(rows)[distance.argmax()].item()
        raise ConfigError(
            f"expected times of the grid, {len(grid)} from {grid.max():.4g} to {grid.min():.4g}; got {off:.4g}; "
            "use the chain's own times"
        )
    return step
