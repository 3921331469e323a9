r"""Best of N: draw N designs from the pretrained policy, keep the one with the highest reward.

The yardstick of every result: no training, and it spends at most

.. math:: KL(p_N \| p_{pre}) \le \log N - \frac{N - 1}{N} \text{ nats.}                                     \qquad (1)

Equality holds where no two designs have equal reward. Infeasible designs are never kept unless all N are.

References:
    Stiennon et al. 2020, https://arxiv.org/abs/2009.01325 (the bound is in its appendix); Beirami et al. 2024 (that it
    is an upper bound), https://arxiv.org/abs/2401.01879.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from difftilt.core.algorithm import Weighted
from difftilt.core.conditions import rows_of
from difftilt.core.policy import Policy
from difftilt.core.reward import Reward, score, under
from difftilt.core.trajectory import rollout, sample_states
from difftilt.core.value import Value
from difftilt.errors import ConfigError
from difftilt.samplers.steering import check_designs, unweighted
from difftilt.types import Condition, Tensor


@dataclass(frozen=True, kw_only=True)
class BestOfN:
    """Settings of best of N."""

    candidates: int = 64
    """N: reward calls per design."""

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ConfigError(f"expected at least 1 candidate; got {self.candidates}; raise it")

    @property
    def kl_bound(self) -> float:
        """Equation (1), nats."""
        return math.log(self.candidates) - (self.candidates - 1) / self.candidates

    @staticmethod
    def candidates_for(kl: float) -> int:
        """The largest N whose bound (1) does not exceed ``kl`` nats (at least 1); for more than 40 nats, as for 40."""
        low, high = 1, 2
        while BestOfN(candidates=high).kl_bound <= min(kl, 40.0):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if BestOfN(candidates=middle).kl_bound <= min(kl, 40.0) else (low, middle)
        return low

    def __call__(
        self,
        policy: Policy,
        reward: Reward,
        n: int,
        rng: torch.Generator,
        *,
        cond: Condition | None = None,
        value: Value | None = None,
        paths: bool = False,
    ) -> Weighted:
        """``n`` designs, each the best of its own N; no weights (``-inf`` where all N are infeasible), no log Z."""
        check_designs(n)
        kept, feasible = [], []
        group = max(1, 4096 // self.candidates)
        for start in range(0, n, group):
            size = min(group, n - start)
            repeated = rows_of(cond, slice(start, start + size), self.candidates)
            states = _draw(policy, size * self.candidates, rng, repeated, paths=paths)
            x_0 = states[-1]
            scores = score(under(reward, repeated), policy.codec, x_0).value.nan_to_num(nan=-torch.inf).view(size, -1)
            best = torch.arange(size, device=x_0.device) * self.candidates + scores.argmax(1)
            kept.append(states[:, best])
            feasible.append(scores.max(1).values > -torch.inf)
        states, log_weight = torch.cat(kept, dim=1), unweighted(torch.cat(feasible))
        return Weighted(states[-1], log_weight, None, states if paths else None)


def _draw(policy: Policy, n: int, rng: torch.Generator, cond: Condition | None, *, paths: bool) -> Tensor:
    """Whole paths, ``[K + 1, n, *event]``, or only their ends."""
    return rollout(policy, n, rng, cond=cond).states if paths else sample_states(policy, n, rng, cond=cond)[None]
