r"""A simplex denoiser that is a law of designs: the letters' exact posterior under it.

With :math:`w` the log law of the designs and :math:`q_\tau` the forward law of a stick
(:mod:`difftilt.core.jacobi`), taken relative to its stationary law :math:`q_\infty`,

.. math::
    e_i(c \mid u) &= \sum_{j < c} \log \frac{q_\tau(u_{ij} \mid 0)}{q_\infty(u_{ij})}
        + 1[c < V - 1] \log \frac{q_\tau(u_{ic} \mid 1)}{q_\infty(u_{ic})}                              \qquad (1) \\
    \pi^i(a \mid u) &\propto \sum_{x :\, x^i = a} \exp\Big( w(x) + \sum_j e_j(x^j \mid u) \Big)             \qquad (2)

The posterior of a tilted law is one of these, so that in small steps the class holds what tuning looks for. Where
:math:`w` is a product law, (2) at a position reads the sticks of that position only, and positions are independent
chains. Logs in (1) are linear between points of a table.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import nn

from difftilt.core.jacobi import lines_of_descent, log_densities
from difftilt.core.registry import register
from difftilt.problems.exact_value import step_of
from difftilt.processes.simplex import Simplex
from difftilt.types import Condition, Float, Int, Tensor

POINTS = 257
"""Points of the tables of (1), equally spaced in the arcsine of the root."""


@register("denoiser", "stick_posterior")
class StickPosterior(nn.Module):
    """Equation (2).

    Args:
        vocabulary: letters ``V``.
        length: positions ``L``; sums are over all designs.
        grid: times of the chain, from 1 to 0.
        horizon: of the process.
        edge: of the process; sticks are read within it.
    """

    table: Float[Tensor, "K V1 E P"]

    def __init__(self, vocabulary: int, length: int, grid: list[float], horizon: float, edge: float) -> None:
        super().__init__()
        self.vocabulary, self.length, self.grid = vocabulary, length, list(grid)
        self.horizon, self.edge = horizon, edge
        self.log_law = nn.Parameter(torch.zeros(vocabulary**length, dtype=torch.float64))
        table = evidence(vocabulary, tuple(grid[:-1]), horizon, edge)
        self.register_buffer("table", table, persistent=False)

    @classmethod
    def of(cls, law: Float[Tensor, "*V"], grid: Float[Tensor, " K1"], process: Simplex) -> StickPosterior:
        """The posterior of ``law``, one axis per position."""
        denoiser = cls(law.shape[0], law.ndim, grid.tolist(), process.horizon, process.edge)
        denoiser.log_law.data = law.double().flatten().log()
        return denoiser

    def forward(self, x_t: Float[Tensor, "B L V1"], t: Tensor, cond: Condition | None = None) -> Float[Tensor, "B L V"]:
        """Log of (2). Gradient flows to ``w`` and to ``x_t``."""
        step = step_of(t.new_tensor(self.grid[:-1], dtype=torch.float64), t, len(x_t))
        seen = self._seen(x_t.double(), step)
        total = self.log_law.view(1, *[self.vocabulary] * self.length)
        axes = range(1, self.length + 1)
        for i in axes:
            total = total + seen[:, i - 1].view(-1, *[self.vocabulary if axis == i else 1 for axis in axes])
        law = total.flatten(1).softmax(1).view(total.shape)
        letters = [law.sum([axis for axis in axes if axis != i]) if self.length > 1 else law for i in axes]
        return torch.stack(letters, 1).clamp(min=torch.finfo(law.dtype).tiny).log().to(x_t.dtype)

    def _seen(self, x_t: Float[Tensor, "B L V1"], step: Int[Tensor, " B"]) -> Float[Tensor, "B L V"]:
        """Equation (1)."""
        u = x_t.clamp(self.edge, 1 - self.edge)
        place = u.sqrt().asin() * ((POINTS - 1) / (math.pi / 2))
        left = place.detach().floor().long().clamp(max=POINTS - 2)
        row, stick = step[:, None, None], torch.arange(u.shape[-1], device=u.device)
        low, high = self.table[row, stick, :, left], self.table[row, stick, :, left + 1]
        zero, one = (low + (place - left)[..., None] * (high - low)).unbind(-1)
        before = torch.cat([torch.zeros_like(zero[..., :1]), zero.cumsum(-1)], -1)
        return before + torch.cat([one, torch.zeros_like(one[..., :1])], -1)

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        names = ("vocabulary", "length", "grid", "horizon", "edge")
        return {name: getattr(self, name) for name in names}


@functools.cache
def evidence(vocabulary: int, times: tuple[float, ...], horizon: float, edge: float) -> Float[Tensor, "K V1 E P"]:
    """Log ratios of (1) for a stick that began at 0 and at 1, nats, at decreasing times."""
    process = Simplex(vocabulary, horizon=horizon, edge=edge)
    u = torch.linspace(0, math.pi / 2, POINTS, dtype=torch.float64).sin().square().clamp(edge, 1 - edge)
    sticks = []
    for b, speed in zip(process.b.tolist(), process.speed.tolist(), strict=True):
        weights = lines_of_descent(1 + b, [horizon * t**2 * speed for t in reversed(times)])
        free = math.log(b) + (b - 1) * torch.log1p(-u)
        terms = [torch.stack([part.logsumexp(0) for part in log_densities(u, 1.0, b, w)]) - free for w in weights]
        sticks.append(torch.stack(terms[::-1]))
    return torch.stack(sticks, 1)
