r"""How noisy each design's measurements are, told from replicates: variances moderated by those of the others.

Design ``i`` has :math:`d_i + 1` replicates with the squares :math:`S_i` about their mean, and the noise variance
:math:`s_i^2`, itself drawn from a scaled inverse :math:`\chi^2` law with scale :math:`s_0^2` and :math:`d_0` degrees of
freedom:

.. math::
    \frac{S_i}{s_i^2} \sim \chi^2_{d_i}, \qquad \frac{d_0 s_0^2}{s_i^2} \sim \chi^2_{d_0}, \qquad
    \hat s_i^2 = \frac{d_0 s_0^2 + S_i}{d_0 + d_i}                                                           \qquad (1)

With :math:`e_i = \log(S_i / d_i) - \psi(d_i / 2) + \log(d_i / 2)`, the law's two numbers are those of

.. math::
    \operatorname{var} e_i = \psi'(d_0 / 2) + \overline{\psi'(d_i / 2)}, \qquad
    \log s_0^2 = \bar e + \psi(d_0 / 2) - \log(d_0 / 2)                                                      \qquad (2)

Where the :math:`e_i` do not vary more than chance, :math:`d_0 = \infty`: one variance for all, pooled. A design without
replicates has :math:`s_0^2`.

References:
    Smyth 2004, equations of section 6.2, https://doi.org/10.2202/1544-6115.1027 (what limma does for genes).
"""

from __future__ import annotations

import torch

from difftilt.types import Float, Int, Tensor

FEWEST = 4
"""Designs with replicates from which (2) is told; with fewer, one variance is pooled."""
LEAST = 1e-5
"""Replicates that are equal are as far apart as this share of the pooled variance."""


def moderated(squares: Float[Tensor, " D"], freedom: Int[Tensor, " D"]) -> Float[Tensor, " D"]:
    """Equation (1): the noise variance of each design; all 0 where nothing is told.

    Args:
        squares: :math:`S_i`, reward units squared.
        freedom: :math:`d_i`, replicates less one.
    """
    total = int(freedom.sum())
    pooled = squares.sum() / total if total else squares.new_zeros(())
    known = freedom > 0
    if int(known.sum()) < FEWEST or pooled == 0:
        return pooled.expand(len(squares))
    half = freedom[known].double() / 2
    own = (squares[known] / freedom[known]).clamp(min=LEAST * pooled.item())
    e = own.log() - torch.digamma(half) + half.log()
    more = e.var() - torch.polygamma(1, half).mean()
    if more <= 0:
        return pooled.expand(len(squares))
    half_prior = inverse_trigamma(more)
    scale = (e.mean() + torch.digamma(half_prior) - half_prior.log()).exp()
    return (2 * half_prior * scale + squares) / (2 * half_prior + freedom)


def inverse_trigamma(value: Float[Tensor, ""]) -> Float[Tensor, ""]:
    r"""``x`` with :math:`\psi'(x)` the value, which is above 0; by bisection of :math:`\log x`."""
    low, high = torch.tensor(-20.0, dtype=torch.float64), torch.tensor(40.0, dtype=torch.float64)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if torch.polygamma(1, middle.exp()) > value else (low, middle)
    return high.exp()
