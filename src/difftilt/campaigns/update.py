r"""The policy of the next round: optimism within two KL balls.

.. math::
    p^{(i+1)} &= \arg\max_p E_p[\hat r + g] - \alpha\, KL(p \| p_{pre}) - \beta\, KL(p \| p^{(i)}) \\
        &\propto p_{pre}^{\alpha / T}\, (p^{(i)})^{\beta / T}\, e^{(\hat r + g) / T},
        \qquad T = \alpha + \beta                                                                           \qquad (1)

on path laws, equation (7) of SEIKO. With a fixed reward :math:`r` and :math:`p^{(i)} = p_{pre} e^{b_i r}`,

.. math:: b_{i+1} = (\beta b_i + 1) / (\alpha + \beta) \;\to\; 1 / \alpha :                                 \qquad (2)

the rounds approach :math:`p_{pre} e^{r / \alpha}` whatever beta is. Tuning starts from :math:`p^{(i)}`.

*A KL budget* in place of beta. On paths of :math:`p^{(i)}`, with :math:`L = \log p^{(i)} - \log p_{pre}`, (1) has the
weights

.. math:: \log w = (r - \alpha L) / T, \qquad KL(p^{(i+1)} \| p^{(i)}) = E[w \log w] / E[w] - \log E[w]     \qquad (3)

which falls as ``T`` grows, to 0: bisection finds where it is the budget. No policy has to be tuned for that.

Differs from the paper in: any fine-tuning method; beta by budget.

References:
    Uehara, Zhao et al. 2024 (SEIKO, eq. 7), https://arxiv.org/abs/2402.16359.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from difftilt.algorithms.path_consistency import DetailedBalance, PathConsistency, SubtrajectoryBalance
from difftilt.algorithms.ppo import PPO
from difftilt.algorithms.reinforce import Reinforce
from difftilt.algorithms.reward_backprop import RewardBackprop
from difftilt.algorithms.reward_weighted_mle import RewardWeightedMLE
from difftilt.algorithms.trajectory_balance import TrajectoryBalance, VarGrad
from difftilt.campaigns.settings import Tuning
from difftilt.core.algorithm import Algorithm, Anchor
from difftilt.core.policy import Policy
from difftilt.core.reward import Reward, score
from difftilt.core.trajectory import rollout
from difftilt.errors import nearest
from difftilt.rewards.oracle import as_oracle
from difftilt.training.finetune import finetune
from difftilt.training.loop import LoopConfig
from difftilt.types import Float, Tensor

ALGORITHMS: dict[str, type] = {
    "trajectory_balance": TrajectoryBalance,
    "vargrad": VarGrad,
    "ppo": PPO,
    "reinforce": Reinforce,
    "reward_weighted_mle": RewardWeightedMLE,
    "path_consistency": PathConsistency,
    "detailed_balance": DetailedBalance,
    "subtrajectory_balance": SubtrajectoryBalance,
    "reward_backprop": RewardBackprop,
}
"""Those whose law is (1) for any two anchors."""
PILOT = 1024
"""Paths on which (3) is estimated."""
CHECK = 256
"""Paths on which the KLs of a tuned policy are measured."""
Told = Callable[[dict[str, Any]], Any]
"""Is called with each record of the tuning."""


@dataclass(frozen=True)
class Update:
    """A tuned policy, and what it took."""

    policy: Policy
    """:math:`p^{(i+1)}`, frozen."""
    facts: dict[str, Any]
    """Plain numbers; see docs/strategies.md."""


def tune(
    current: Policy, pretrained: Policy, reward: Reward, settings: Tuning, rng: torch.Generator, *, told: Told | None
) -> Update:
    r"""Equation (1), approximately.

    Args:
        current: :math:`p^{(i)}`.
        pretrained: :math:`p_{pre}`, on the same chain.
        reward: :math:`\hat r + g`; asked as often as it takes, since it is no laboratory.
        settings: of the tuning.
        rng: the only source of randomness.
        told: is shown the tuning's records.
    """
    oracle = as_oracle(reward)
    alpha, beta = settings.alpha, settings.beta
    if settings.kl_budget is not None:
        beta = beta_for(current, pretrained, oracle, rng, alpha=alpha, budget=settings.kl_budget)
    start, fixed = current.copy(), pretrained.frozen_copy()
    anchors = [Anchor(fixed, alpha)] + ([Anchor(current.frozen_copy(), beta)] if beta else [])
    loop = LoopConfig(steps=settings.updates, seed=int(torch.randint(2**31, (1,), generator=rng)))
    result = finetune(start, oracle, algorithm_for(current, settings), loop=loop, anchors=anchors, on_step=told)
    facts = {
        "alpha": alpha,
        "beta": beta,
        "updates": settings.updates,
        "surrogate_calls": oracle.calls,
        **distances(result.policy, {"kl_to_pretrained": pretrained, "kl_to_last": current}, rng),
    }
    return Update(result.policy, facts)


def algorithm_for(policy: Policy, settings: Tuning) -> Algorithm:
    """The fine-tuning method, by name or by what the process allows.

    Raises:
        ConfigError: no method of that name takes two anchors.
    """
    name = settings.algorithm or ("trajectory_balance" if policy.process.discrete else "reward_backprop")
    if name not in ALGORITHMS:
        raise nearest(name, ALGORITHMS, what="algorithm of campaigns")
    kind = ALGORITHMS[name]
    own = {"epochs": 2, "minibatches": 4} if issubclass(kind, TrajectoryBalance) and settings.paths >= 64 else {}
    return kind(alpha=settings.alpha, batch=settings.paths, learning_rate=settings.rate, **own)


def beta_for(
    current: Policy, pretrained: Policy, reward: Reward, rng: torch.Generator, *, alpha: float, budget: float
) -> float:
    """Beta with which (3) is the budget, reward units per nat; 0 where even that spends less."""
    paths = rollout(current, PILOT, rng, references=[pretrained])
    value = score(reward, current.codec, paths.x_0)
    pull = value.value - alpha * paths.log_ratio[0].sum(0)
    return max(0.0, total_temperature(pull[value.feasible], budget) - alpha)


def total_temperature(pull: Float[Tensor, " N"], budget: float) -> float:
    r"""``T`` with which (3) is the budget, reward units per nat.

    Args:
        pull: :math:`r - \alpha L` of paths of :math:`p^{(i)}`, reward units.
        budget: nats; below the log of the number of paths, which is all that can be told.
    """
    middle = math.log(max(pull.std().item(), 1e-12))
    low, high = middle - 20, middle + 20
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if spent_nats(pull / math.exp(middle)) > budget else (low, middle)
    return math.exp(high)


def spent_nats(log_weight: Float[Tensor, " N"]) -> float:
    """KL of the weighted law to the plain one, nats: the second equation of (3)."""
    log_share = log_weight.log_softmax(0)
    return (log_share.exp() * log_share).sum().item() + math.log(len(log_weight))


def distances(policy: Policy, others: dict[str, Policy], rng: torch.Generator) -> dict[str, float]:
    """Path KL of a policy to others, nats, by closed-form steps over :data:`CHECK` paths."""
    paths = rollout(policy, CHECK, rng, references=list(others.values()), with_kl=True)
    assert paths.kl is not None
    return dict(zip(others, paths.kl.sum(1).mean(1).tolist(), strict=True))
