r"""Whether a surrogate's intervals hold: coverage, likelihood, ranks; and a factor that makes them hold.

A measurement ``y`` was forecast with mean :math:`\hat r` and variance :math:`V = c^2 (\sigma^2 + m^2) + s^2`.

.. math::
    \text{coverage}_q &= \operatorname{mean} 1[|y - \hat r| \le z_q \sqrt V], \qquad z_{0.9} = 1.645       \qquad (1)

    \text{nll} &= \operatorname{mean} \tfrac12 \big( \log 2 \pi V + (y - \hat r)^2 / V \big)              \qquad (2)

    c_i &= \sqrt{\max(0, (y_i - \hat r_i)^2 / z_{0.9}^2 - s_i^2) \big/ (\sigma_i^2 + m^2)}, \qquad
    c = \text{the } \lceil 0.9 (n + 1) \rceil \text{-th smallest } c_i                                    \qquad (3)

(3) is the smallest factor with which 90 % of the rows lie within 90 % intervals, with conformal prediction's
correction for few rows. On rows held out of the fit it is right for designs like those measured. A next round is
*chosen*, though: it lies where the model knows less and hopes more. The only rows that show how wrong it is there are
those of earlier rounds, forecast before they were measured. :func:`temper` takes the geometric mean of the factor on
held-out rows, many but without the shift, and of that on the last rounds' forecasts, few but with it.

Differs from conformal prediction in: no guarantee is claimed, since rows are not exchangeable across rounds.

References:
    Angelopoulos & Bates 2021 (conformal prediction), https://arxiv.org/abs/2107.07511.
    Kuleshov et al. 2018 (recalibration), https://arxiv.org/abs/1807.00263.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from difftilt.core.stats import spearman
from difftilt.surrogates.measurements import Forecast

QUANTILE = {0.5: 0.674490, 0.9: 1.644854}
"""``z_q``: half-width of a normal's central interval, standard deviations."""
RANGE = (0.2, 5.0)
"""Factors are kept within: beyond it the model is wrong, not its width."""

FEWEST = 9
"""Rows of which one may lie outside a 90 % interval; fewer say nothing of it."""


@dataclass(frozen=True)
class Calibration:
    """Equations (1) and (2) of a set of forecasts."""

    rows: int
    """Feasible measurements."""
    coverage_50: float
    """Share within 50 % intervals."""
    coverage_90: float
    """Share within 90 % intervals."""
    nll: float
    """Nats per measurement, for values in reward units."""
    spearman: float
    """Rank correlation of mean and measurement; NaN where one does not vary."""
    rmse: float
    """Reward units."""


def calibration(forecast: Forecast, *, factor: float = 1.0) -> Calibration:
    """Equations (1) and (2) with ``c = factor``; all NaN without feasible measurements.

    Args:
        forecast: predictions of measurements that their model had not seen.
        factor: with which the model was tempered.
    """
    seen = _feasible(forecast)
    error = seen.measured - seen.mean
    if not len(error):
        return Calibration(0, *[math.nan] * 5)
    variance = (factor * seen.model).square() + seen.noise.square()
    miss = error.abs() / variance.sqrt()
    return Calibration(
        rows=len(error),
        coverage_50=(miss <= QUANTILE[0.5]).double().mean().item(),
        coverage_90=(miss <= QUANTILE[0.9]).double().mean().item(),
        nll=0.5 * ((2 * math.pi * variance).log() + miss.square()).mean().item(),
        spearman=spearman(seen.mean, seen.measured),
        rmse=error.square().mean().sqrt().item(),
    )


def factor_for(forecast: Forecast) -> float:
    """Equation (3), within :data:`RANGE`; 1 with fewer than :data:`FEWEST` rows."""
    seen = _feasible(forecast)
    if len(seen.mean) < FEWEST:
        return 1.0
    beyond = ((seen.measured - seen.mean) / QUANTILE[0.9]).square() - seen.noise.square()
    needed = beyond.clamp(min=0).sqrt() / seen.model
    rank = min(len(needed), math.ceil(0.9 * (len(needed) + 1)))
    low, high = RANGE
    return min(high, max(low, needed.sort().values[rank - 1].item()))


def temper(held_out: Forecast, past: Forecast | None = None) -> float:
    """The factor for :meth:`~difftilt.surrogates.surrogate.Surrogate.tempered`.

    Args:
        held_out: of the surrogate.
        past: of the last two rounds, forecast by the surrogates that chose them; none before the second round.

    Returns:
        Geometric mean of the two factors (3); the held-out rows' alone where there are too few past ones.
    """
    factor = factor_for(held_out)
    if past is None or len(_feasible(past).mean) < FEWEST:
        return factor
    return math.sqrt(factor * factor_for(past))


def _feasible(forecast: Forecast) -> Forecast:
    """The rows that were measured."""
    keep = ~forecast.measured.isnan()
    return Forecast(forecast.mean[keep], forecast.model[keep], forecast.noise[keep], forecast.measured[keep])
