r"""Means and errors from weighted designs, as a steering sampler returns them.

With weights :math:`w_i`, shares :math:`\bar w_i = w_i / \sum_j w_j` and any number :math:`f_i` of ``n`` designs,

.. math::
    \bar f &= \sum_i \bar w_i f_i                                                                      \qquad (1) \\
    \log \hat Z &= \log \tfrac1n \sum_i w_i                                                            \qquad (2) \\
    KL(p^* \| p_{pre}) &= E_{p^*}[r] / \alpha - \log Z                                                 \qquad (3)

(3) holds for the tilted law alone. Designs come in populations: those of one share ancestors, so that only populations
are independent. Each estimate is a smooth function of sums over populations, and has the standard error

.. math:: \Big( \tfrac{G}{G - 1} \sum_{g=1}^G \big( \textstyle\sum_{i \in g} u_i \big)^2 \Big)^{1/2}, \quad
    u_i = \bar w_i (f_i - \bar f), \quad \bar w_i - \tfrac1n, \quad
    \bar w_i (r_i / \alpha - \overline{r / \alpha}) - \bar w_i + \tfrac1n                              \qquad (4)

for (1), (2) and (3). In populations of one, equal weights give the usual :math:`s / \sqrt n`. Of larger ones it
takes at least :data:`FEWEST`, as (4) is too small with few; the error is else NaN.

Where few of them carry most weight, (4) knows nothing of those that would have carried more. Their own estimates
:math:`\log \hat Z_g` do: with a spread ``s`` of these, and if they were normal, the mean of :math:`\hat Z_g` would have

.. math:: \Big( \frac{s^2}{G} + \frac{s^4}{2 (G - 1)} \Big)^{1/2}                                      \qquad (5)

for the error of its log. That of (2) is the larger of (4) and (5), and unknown, hence infinite, above
:data:`~difftilt.metrics.log_z.MOST`; so then is that of (3).

References:
    Liang and Zeger 1986 (the sandwich (4)), https://doi.org/10.1093/biomet/73.1.13; Owen 2013, *Monte Carlo theory,
    methods and examples*, chapter 9 (self-normalised weights), https://artowen.su.domains/mc/.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from difftilt.metrics.log_z import stated
from difftilt.types import Bool, Float, Tensor

FEWEST = 8
"""Populations of several designs below which no error is given."""


def weighted_mean(
    values: Float[Tensor, " N"], log_weight: Float[Tensor, " N"], *, population: int = 1
) -> tuple[float, float]:
    """Equation (1) over the values that are there, and its standard error, in the unit of ``values``.

    Args:
        values: NaN where there is none.
        log_weight: nats; ``-inf`` is a weight of exactly 0.
        population: designs in each population, in order; the last may be smaller.
    """
    there = ~values.isnan() & (log_weight > -torch.inf)
    if not there.any():
        return math.nan, math.nan
    share = log_weight.double().where(there, -torch.inf).softmax(0)
    f = values.double().where(there, 0)
    mean = share @ f
    return mean.item(), _error(share * (f - mean), there, population)


def log_z_error(log_weight: Float[Tensor, " N"], *, population: int = 1) -> float:
    """Standard error of (2), nats; NaN where every weight is 0, infinite where it is unknown."""
    share = log_weight.double().softmax(0)
    error = _error(share - 1 / len(share), torch.ones_like(share, dtype=torch.bool), population)
    if population == 1 or math.isnan(error):
        return stated(error)
    short = -len(share) % population  # of the last one
    log_z = F.pad(log_weight.double(), (0, short), value=-torch.inf).view(-1, population).logsumexp(1)
    log_z[-1] += math.log(population / (population - short))
    spread = log_z[log_z.isfinite()].var().item() if log_z.isfinite().sum() > 1 else 0.0
    return stated(max(error, math.sqrt(spread / len(log_z) + spread**2 / 2 / (len(log_z) - 1))))


def tilted_kl(
    reward: Float[Tensor, " N"],
    log_weight: Float[Tensor, " N"],
    log_z: float,
    *,
    alpha: float,
    population: int = 1,
) -> tuple[float, float]:
    """Equation (3) and its standard error, nats.

    Args:
        reward: NaN where infeasible.
        log_weight: weights of the tilted law, nats; ``-inf`` where infeasible.
        log_z: (2), of the same weights, nats.
        alpha: KL temperature, reward units per nat; positive.
        population: as in :func:`weighted_mean`.
    """
    tilt = reward / alpha
    mean, _ = weighted_mean(tilt, log_weight)
    share = log_weight.double().softmax(0)
    influence = share * (tilt.nan_to_num(nan=mean) - mean) - share + 1 / len(share)
    error = _error(influence, torch.ones_like(share, dtype=torch.bool), population)
    return mean - log_z, math.inf if math.isinf(log_z_error(log_weight, population=population)) else error


def _error(influence: Float[Tensor, " N"], there: Bool[Tensor, " N"], population: int) -> float:
    """Equation (4); populations without any member that is there do not count."""
    of = torch.arange(len(influence), device=influence.device) // population
    totals = influence.new_zeros(int(of[-1]) + 1).index_add(0, of, influence)
    groups = len(of[there].unique())
    if groups < (2 if population == 1 else FEWEST):
        return math.nan
    return math.sqrt(groups / (groups - 1) * totals.square().sum().item())
