r"""The exact law of "draw M, keep one in proportion to its weight", and of a chain that does so at every step.

Of M independent draws from ``p`` one is kept with probability proportional to its weight ``w``. Since
:math:`1/S = \int_0^\infty e^{-uS} du`,

.. math:: P(i) = M\, p_i w_i \int_0^\infty e^{-u w_i} \Big( \sum_j p_j e^{-u w_j} \Big)^{M-1} du        \qquad (1)

With :math:`u = e^y` the integrand is smooth and dies at both ends (as :math:`e^y` and doubly exponentially), where the
trapezoidal rule converges geometrically. Nothing is sampled.
"""

from __future__ import annotations

import math

import torch

from difftilt.problems.tilted import TiltedProblem
from difftilt.types import Float, Tensor

STEP = 0.1  # of y; halving it moves no probability by more than 1e-12
CHUNK = 1 << 22  # numbers held at once


def selection_law(p: Float[Tensor, "R C"], log_weight: Float[Tensor, "R C"], candidates: int) -> Float[Tensor, "R C"]:
    """Equation (1), row by row.

    Args:
        p: probabilities of the outcomes, rows summing to 1.
        log_weight: their weights, nats; finite.
        candidates: ``M``.
    """
    w = (log_weight - log_weight.amax(1, keepdim=True)).exp()
    low = -math.log(candidates) - 32.0  # below: mass e^-32; above: every e^{-u w} has died
    high = -w[w > 0].min().log().item() + 4.0
    nodes = torch.exp(torch.arange(low, high, STEP, dtype=torch.float64, device=p.device))
    total = torch.zeros_like(p)
    for u in nodes.split(max(1, CHUNK // p.numel())):
        decay = torch.exp(-u * w[..., None])  # [R, C, nodes]
        rest = torch.einsum("rc,rcu->ru", p, decay)
        total += (decay * rest[:, None] ** (candidates - 1) * u).sum(-1)
    return candidates * p * w * total * STEP


def value_weighted_law(problem: TiltedProblem, values: Float[Tensor, "K1 S"], candidates: int) -> Float[Tensor, " N"]:
    r"""Law of :math:`x_0` over ``problem.chain.designs``, where every step of p_pre keeps one of ``candidates``.

    Args:
        problem: gives p_pre and alpha.
        values: value of each state at each time, noisiest first, reward units; exact ones are
            ``problem.soft_values()``.
        candidates: ``M``.
    """
    chain = problem.chain
    law = torch.zeros(len(chain.states), dtype=torch.float64, device=chain.states.device)
    law[-1] = 1.0
    for k in range(chain.steps):
        after = torch.zeros_like(law)
        for block in chain.blocks(k):
            kernel = block.log_prob(problem.reference[k]).exp()
            kept = selection_law(kernel, values[k + 1][block.successors] / problem.alpha, candidates)
            after.index_add_(0, block.successors.flatten(), (law[block.index, None] * kept).flatten())
        law = after
    return law[chain.levels[0]]
