r"""The expected result of best-of-N from one pool of scored samples, by order statistics.

Of a pool of ``M`` designs sorted by reward, the design of rank ``i`` (1 = lowest) is the best of N drawn without
replacement with probability

.. math:: P(i) = \binom{i - 1}{N - 1} \Big/ \binom{M}{N}                                              \qquad (1)

so that :math:`\sum_i P(i) g_i` is an unbiased estimate of the mean of any ``g`` (reward, judge) under best-of-N, with
far less noise than drawing M / N groups once. Infeasible designs rank below all others.
"""

from __future__ import annotations

import torch

from difftilt.errors import ConfigError
from difftilt.types import Float, Tensor


def best_of_n_weights(reward: Float[Tensor, " M"], n: int) -> Float[Tensor, " M"]:
    """Equation (1) for each member of the pool, in its own order; sums to 1.

    Raises:
        ConfigError: ``n`` exceeds the pool.
    """
    pool = reward.shape[0]
    if not 1 <= n <= pool:
        raise ConfigError(f"expected N between 1 and the pool's {pool} designs; got {n}; enlarge the pool")
    order = torch.nan_to_num(reward.double(), nan=-torch.inf).argsort()
    i = torch.arange(1, pool + 1, dtype=torch.float64, device=reward.device)
    log_p = _log_choose(i - 1, n - 1) - _log_choose(torch.tensor(float(pool), dtype=torch.float64), n)
    weights = torch.zeros(pool, dtype=torch.float64, device=reward.device)
    weights[order] = torch.where(i >= n, log_p, -torch.inf).exp()
    return weights / weights.sum()


def _log_choose(m: Tensor, n: int) -> Tensor:
    n_ = torch.tensor(float(n), dtype=torch.float64)
    safe = torch.clamp(m - n_, min=0.0)
    return torch.lgamma(m + 1) - torch.lgamma(n_ + 1) - torch.lgamma(safe + 1)
