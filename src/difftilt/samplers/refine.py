r"""Refinement: restart designs along their own trajectories and keep what is better, exactly.

A Markov chain on whole paths :math:`x_{0:1}` of the pretrained policy. One move picks a step ``k``, at random but
whatever the paths are, keeps every path up to its *stored* state there, runs the rest again, and accepts with
probability

.. math:: \min( 1, e^{( r(x_0') - r(x_0) ) / \alpha} )                                                \qquad (1)

The pretrained factors of old and new part cancel, so the move leaves :math:`p_{pre}(\text{path}) 1_F e^{r/\alpha}`
invariant, and its law of :math:`x_0` is (2) of the theory, for any process, deterministic steps included. A restart
from the very start draws a fresh :math:`x_1`, so the prior is tilted too. Designs are not weighted; they start from
p_pre and forget it as ``moves`` grows.

``restart="renoised"`` is the usual cheap variant, which needs no paths: noise the design with the corruption law,

.. math:: x_t \sim q(x_t \mid x_0),                                                                    \qquad (2)

run the rest, accept by (1). The chain's own bridge :math:`p_{pre}(x_t \mid x_0)` is not ``q``, so this leaves another
law invariant, even without a reward: a biased approximation. Where the denoiser reverses ``q`` exactly the bias falls
as 1/K; a trained one keeps some.

Differs from the paper, which re-noises. References:
    Uehara et al. 2025 (iterative refinement), https://arxiv.org/abs/2502.14944.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from difftilt.core.algorithm import Weighted
from difftilt.core.conditions import rows_of
from difftilt.core.policy import Policy
from difftilt.core.reward import Reward, score, under
from difftilt.core.trajectory import rollout
from difftilt.core.value import Value
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.metrics.log_z import restart, restart_point
from difftilt.samplers.steering import ROWS, check_alpha, check_designs, unweighted
from difftilt.types import Condition, Tensor

RESTARTS = ("stored", "renoised")


@dataclass(frozen=True, kw_only=True)
class Refine:
    """Settings of refinement; see the module for the method."""

    alpha: float = 0.1
    """KL temperature, reward units per nat; positive."""
    moves: int = 64
    """Restarts of each path; ``1 + moves`` reward calls per design."""
    restart: str = "stored"
    """``"stored"``, exact, or ``"renoised"``, equation (2)."""

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if self.restart not in RESTARTS:
            raise ConfigError(f"expected restart to be one of {', '.join(RESTARTS)}; got '{self.restart}'; correct it")
        if self.moves < 0:
            raise ConfigError(f"expected moves >= 0; got {self.moves}; 0 is the pretrained policy")

    @torch.no_grad()
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
        """``n`` unweighted designs (``-inf`` where no move met a feasible one), no estimate of log Z; no value used."""
        check_designs(n)
        if paths and self.restart == "renoised":
            raise UnsupportedError(
                "expected a sampler whose designs have whole paths; got refine with restarts renoised, which breaks "
                'them; use restart="stored"'
            )
        parts = []
        for start in range(0, n, ROWS):
            rows = slice(start, min(start + ROWS, n))
            own = rows_of(cond, rows)
            asked = under(reward, own)
            states = rollout(policy, rows.stop - start, rng, cond=own).states
            found = score(asked, policy.codec, states[-1]).value
            for _ in range(self.moves):
                first = restart_point(policy.steps, rng)
                if self.restart == "renoised" and first:
                    states[first] = _renoised(policy, states[-1], first, rng)
                found = restart(policy, asked, states, found, first, 1 / self.alpha, rng, cond=own)
            parts.append((states if paths else states[-1:], unweighted(~found.isnan())))
        states, log_weight = zip(*parts, strict=True)
        states = torch.cat(states, dim=1)
        return Weighted(states[-1], torch.cat(log_weight), None, states if paths else None)


def _renoised(policy: Policy, x_0: Tensor, first: int, rng: torch.Generator) -> Tensor:
    """Equation (2) at step ``first``; what is held fixed stays."""
    x_t = policy.process.corrupt(x_0, policy.grid[first].expand(len(x_0)), rng)
    return x_t if policy.fixed is None else policy.process.clamp(x_t, policy.fixed)
