r"""What a simulated campaign searches: p_pre, an oracle without noise, and, where designs can be listed, exact laws.

A law ``p`` of designs, some of them infeasible (NaN), is judged by what it does on the feasible ones, ``F``:

.. math::
    J_\alpha(p) &= E_p[r \mid F] - \alpha\, KL(p(\cdot \mid F) \| p_{pre})                                 \qquad (1) \\
    \text{regret}(p) &= \frac{\alpha \log Z - J_\alpha(p)}{\alpha \log Z - J_\alpha(p_{pre})}, \qquad
    Z = \sum_{x \in F} p_{pre}(x)\, e^{r(x) / \alpha}                                                    \qquad (2)

0 is the tilted law and 1 is p_pre; a law that got worse than p_pre is above 1. The numerator is
:math:`\alpha\, KL(p(\cdot \mid F) \| p^*)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch

from difftilt.core.policy import Policy
from difftilt.core.reward import Reward, Scores, score
from difftilt.core.trajectory import rollout
from difftilt.problems.enumerated import EnumeratedChain
from difftilt.problems.joint import JointDenoiser
from difftilt.types import Float, Tensor

DRAWN = 512
"""Designs from which a law is judged where designs cannot be listed."""


@dataclass(frozen=True)
class Judged:
    """How good the law of a policy is, without noise."""

    reward: float
    """:math:`E_p[r | F]`, reward units."""
    feasible: float
    """:math:`P_p(F)`."""
    kl: float
    r""":math:`KL(p(\cdot | F) \| p_{pre})`, nats; sampled: that of the paths, of feasible and other designs alike."""
    objective: float
    """Equation (1), reward units."""
    regret: float | None = None
    """Equation (2); ``None`` where designs cannot be listed."""


@dataclass(frozen=True, eq=False)
class Landscape:
    """What is searched.

    Args:
        name: what the user types.
        prior: p_pre.
        oracle: without noise; NaN where infeasible.
        alpha: KL temperature of (1), reward units per nat.
        table: reward of every design, in the order of ``torch.cartesian_prod``; ``None`` where there are too many.
        learning_rate: at which p_pre is tuned; that of campaigns when ``None``.
    """

    name: str
    prior: Policy
    oracle: Reward
    alpha: float
    table: Float[Tensor, " N"] | None = None
    learning_rate: float | None = None

    @cached_property
    def _chain(self) -> EnumeratedChain:
        return EnumeratedChain(self.prior)

    @cached_property
    def log_pre(self) -> Float[Tensor, " N"]:
        """Log of p_pre, of every design."""
        return self.law(self.prior).log()

    @cached_property
    def best_value(self) -> float:
        r""":math:`\alpha \log Z`, the largest (1), reward units."""
        assert self.table is not None
        tilted = self.log_pre + (self.table / self.alpha).nan_to_num(nan=-math.inf)
        return self.alpha * tilted.logsumexp(0).item()

    @torch.no_grad()
    def law(self, policy: Policy) -> Float[Tensor, " N"]:
        """Exact law of the designs of a policy on the chain of p_pre."""
        own, prior = policy.denoiser, self.prior
        one_by_one = prior.process.config() == policy.process.config() and policy.steps == prior.steps
        if isinstance(own, JointDenoiser) and one_by_one and policy.steps == own.length and policy.fixed is None:
            return own.law().flatten()
        return self._chain.marginal(policy)

    def judge(self, policy: Policy, rng: torch.Generator) -> Judged:
        """How good a policy is: exactly where designs can be listed, else from :data:`DRAWN` of them."""
        return self._sampled(policy, rng) if self.table is None else self.judge_law(self.law(policy))

    def judge_law(self, law: Float[Tensor, " N"]) -> Judged:
        """Equations (1) and (2), of a law over all designs."""
        objective, *parts = self._objective(law)
        start = self._objective(self.log_pre.exp())[0]
        return Judged(*parts, objective, (self.best_value - objective) / (self.best_value - start))

    def _objective(self, law: Float[Tensor, " N"]) -> tuple[float, float, float, float]:
        """Equation (1), and the mean reward, the feasible share and the KL in it."""
        assert self.table is not None
        feasible = ~self.table.isnan()
        share = law[feasible].sum()
        p = law[feasible] / share
        reward = p @ self.table[feasible]
        kl = (torch.xlogy(p, p) - p * self.log_pre[feasible]).sum()
        return (reward - self.alpha * kl).item(), reward.item(), share.item(), kl.item()

    def _sampled(self, policy: Policy, rng: torch.Generator) -> Judged:
        paths = rollout(policy, DRAWN, rng, references=[self.prior])
        scored: Scores = score(self.oracle, policy.codec, paths.states[-1])
        kl = paths.log_ratio[0].sum(0).mean().item()
        share = scored.feasible.double().mean().item()
        return Judged(scored.mean, share, kl, scored.mean - self.alpha * kl)
