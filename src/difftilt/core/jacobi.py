r"""The Jacobi (Wright-Fisher) diffusion on [0, 1] from either end: its law and its score, as mixtures of Betas.

.. math:: du = \tfrac12 \big( a (1 - u) - b u \big) dT + \sqrt{u (1 - u)}\, dW                        \qquad (1)

has the stationary law Beta(a, b). Run for a time ``T`` from 0 or from 1 its law is a mixture over the number ``m`` of
lines of descent that are left of infinitely many (Kingman's coalescent with rate :math:`m (m + \theta - 1) / 2`,
:math:`\theta = a + b`):

.. math::
    q_T(u \mid 0) = \sum_m d_m(T)\, \mathrm{Beta}(u; a, b + m), \qquad
    q_T(u \mid 1) = \sum_m d_m(T)\, \mathrm{Beta}(u; a + m, b)                                        \qquad (2)

All terms are positive, so that, unlike the usual series of Jacobi polynomials, neither density nor score can go wrong
where a truncated series turns negative. With :math:`M(u) = E[m \mid u]` under (2),

.. math::
    u (1 - u)\, \partial_u \log q_T(u \mid 0) &= (a - 1)(1 - u) - (b - 1 + M_0(u))\, u \\
    u (1 - u)\, \partial_u \log q_T(u \mid 1) &= (a - 1 + M_1(u))(1 - u) - (b - 1)\, u                \qquad (3)

:math:`d_m` is carried along the death process from time to time by matrix exponentials (no alternating sums), starting
at ``T = 0.01`` from its normal limit, which serves for all shorter times.

References:
    Griffiths 1984 (normal limit of the lines of descent), https://doi.org/10.1016/0040-5809(84)90007-0; Jenkins and
    Spano 2017 (exact simulation by (2)), https://arxiv.org/abs/1506.06998.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from difftilt.types import Float, Tensor

START = 0.01
"""Time from which the death process is followed, in units of (1)."""
SPREAD = 9.0
"""Standard deviations of ``m`` that are kept above its mean."""


def lines_of_descent(theta: float, times: Sequence[float]) -> Float[Tensor, "N M"]:
    r""":math:`d_m(T)` for increasing times, float64; rows sum to 1.

    Args:
        theta: :math:`a + b`.
        times: ``T``, above 0, increasing.
    """
    most = _most(theta, min(times[0], START))
    rows, known, at = [], None, START
    for time in times:
        if time <= START:
            rows.append(_normal(theta, time, most))
            continue
        if known is None:
            known = _normal(theta, START, _most(theta, START))
        size = min(len(known), _most(theta, at))  # further up there is no mass any more
        known = known[:size] / known[:size].sum()
        known, at = torch.matrix_exp(_rates(theta, size) * (time - at)) @ known, time
        rows.append(torch.cat([known, known.new_zeros(most - size)]))
    return torch.stack(rows)


def _rates(theta: float, size: int) -> Float[Tensor, "M M"]:
    """Generator of the death process: from ``m`` to ``m - 1`` at rate ``m (m + theta - 1) / 2``."""
    m = torch.arange(size, dtype=torch.float64)
    rate = m * (m + theta - 1) / 2
    return torch.diag(rate[1:], 1) - torch.diag(rate)


def moments(theta: float, time: float) -> tuple[float, float]:
    """Mean and standard deviation of ``m`` for short times (Griffiths, eq. 4)."""
    beta = (theta - 1) * time / 2
    if abs(beta) < 1e-9:
        return 2 / time, math.sqrt(2 / (3 * time))
    eta = beta / math.expm1(beta)
    variance = 2 * eta / time * (eta + beta) ** 2 * (1 + eta / (eta + beta) - 2 * eta) / beta**2
    return 2 * eta / time, math.sqrt(max(variance, 1e-12))


def _most(theta: float, time: float) -> int:
    mean, std = moments(theta, min(time, 1.0))
    return math.ceil(mean + SPREAD * std) + 20


def _normal(theta: float, time: float, size: int) -> Float[Tensor, " M"]:
    mean, std = moments(theta, time)
    weight = (-0.5 * ((torch.arange(size, dtype=torch.float64) - mean) / std).square()).exp()
    return weight / weight.sum()


def log_densities(
    u: Float[Tensor, " G"], a: float, b: float, weight: Float[Tensor, " M"]
) -> tuple[Float[Tensor, "M G"], Float[Tensor, "M G"]]:
    """Logs of the terms of (2) at points inside (0, 1), from 0 and from 1."""
    m = torch.arange(len(weight), dtype=torch.float64)[:, None]
    log_u, log_v, log_weight = u.log(), torch.log1p(-u), weight.log()[:, None]

    def beta(first: Tensor, second: Tensor) -> Tensor:
        norm = torch.lgamma(first) + torch.lgamma(second) - torch.lgamma(first + second)
        return (first - 1) * log_u + (second - 1) * log_v - norm

    low, high = torch.full_like(m, a), torch.full_like(m, b)
    return log_weight + beta(low, high + m), log_weight + beta(low + m, high)


def mean_lines(u: Float[Tensor, " G"], a: float, b: float, weight: Float[Tensor, " M"]) -> Float[Tensor, "2 G"]:
    """:math:`M_0` and :math:`M_1` of (3)."""
    m = torch.arange(len(weight), dtype=torch.float64)
    return torch.stack([m @ terms.softmax(0) for terms in log_densities(u, a, b, weight)])


def early_lines(u: Float[Tensor, " G"], theta: float, time: float) -> Float[Tensor, "2 G"]:
    """The same for short times, where ``m`` is normal: tilting it by :math:`(1-u)^m` or :math:`u^m` moves its mean."""
    mean, std = moments(theta, time)
    return (mean + std**2 * torch.stack([torch.log1p(-u), u.log()])).clamp(min=0)
