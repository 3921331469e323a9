r"""The soft value by regression, with a loss whose minimiser is the soft value and not the mean reward.

.. math::
    L(f) &= E_{pre}\big[ e^{d} - d - 1 \big], \quad d = ( y - f(x_t, t) ) / \alpha                      \qquad (1) \\
    f^* &= \alpha \log E_{pre}[ e^{y/\alpha} \mid x_t ]                                                 \qquad (2)

With :math:`y = r(x_0)` (``target="reward"``) the minimiser (2) is the soft value (theory 3). With :math:`y = v_s(x_s)`
(``target="bellman"``: the same network one step later, held fixed, and :math:`v_0 = r`) it is again, by soft Bellman
(theory 4): less noise, but errors travel. Squared error to ``r`` would give :math:`E[r \mid x_t]`, whatever alpha is.

**Stability.** The network learns nats above :math:`\log \hat Z` of its own data, so that :math:`E[e^d] = 1` already at
the start, and (1) goes on linearly from :math:`d` = ``most`` on: nothing overflows, and the minimiser is (2) wherever
no residual gets there. A NaN reward is :math:`y = -\infty`; the infinite constant :math:`-y/\alpha` of its loss is
dropped.

At :math:`t = 0` the value is the reward. Where a gradient is asked of a reward that has none, the network stands in: it
learns :math:`v_0 = r` as well.

Differs from SVDD-MC, which regresses on ``r`` with squared error. References:
    Uehara et al. 2024, https://arxiv.org/abs/2407.13734; Li et al. 2024 (SVDD-MC), https://arxiv.org/abs/2408.08252;
    Varian 1975 (LINEX, the loss (1)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from difftilt.core.conditions import rows_of
from difftilt.core.policy import Policy
from difftilt.core.reward import DifferentiableReward, Reward, score, under
from difftilt.core.stats import log_mean_exp
from difftilt.core.trajectory import rollout
from difftilt.errors import ConfigError, DataError
from difftilt.rng import seeded_initialisation
from difftilt.types import Condition, Float, Tensor
from difftilt.values.estimate import Estimate, relaxed
from difftilt.values.network import ValueNetwork

TARGETS = ("reward", "bellman")


@dataclass(frozen=True, kw_only=True)
class Regression:
    """Settings of the regression."""

    alpha: float = 0.1
    """KL temperature, reward units per nat; positive."""
    target: str = "reward"
    """``"reward"`` or ``"bellman"``, see the module."""
    paths: int = 2048
    """Rollouts of the pretrained policy to learn from: also reward calls."""
    updates: int = 2000
    """Optimiser steps."""
    batch: int = 512
    """Transitions per update, drawn from all steps of all paths."""
    learning_rate: float = 3e-3
    """Of Adam; falls to 0 along a half cosine."""
    most: float = 10.0
    """Residual, nats, from which (1) is linear."""

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ConfigError(f"expected alpha > 0 (reward units per nat); got {self.alpha}; correct it")
        if min(self.paths, self.updates, self.batch) < 1:
            raise ConfigError(
                "expected paths, updates and batch of at least 1; got "
                f"{self.paths}, {self.updates} and {self.batch}; raise them"
            )
        if self.target not in TARGETS:
            raise ConfigError(f"expected target to be one of {', '.join(TARGETS)}; got '{self.target}'; correct it")


def soft_value_loss(
    value: Float[Tensor, " B"], target: Float[Tensor, " B"], *, alpha: float, most: float = 10.0
) -> Float[Tensor, ""]:
    r"""Equation (1), mean over the batch.

    Args:
        value: :math:`f(x_t, t)`, reward units. Gradient flows.
        target: :math:`y`, reward units; ``-inf`` where infeasible. Never differentiated.
        alpha: KL temperature, reward units per nat; positive.
        most: residual, nats, from which the exponential goes on as its tangent.

    Returns:
        No unit; 0 iff every target is its value (targets of ``-inf`` drop an infinite constant).
    """
    feasible = target > -math.inf
    residual = (target.where(feasible, 0.0) - value) / alpha
    near = residual.clamp(max=most)
    loss = torch.expm1(near) + near.exp() * (residual - near) - residual
    return loss.where(feasible, value / alpha).mean()


@dataclass(frozen=True)
class Regressed(Estimate):
    """A fitted value: ``alpha * (offset + network)``; the reward itself at ``t = 0``."""

    network: nn.Module
    """``(x_t, t [B], cond) -> [B]``, nats above the offset."""
    alpha: float
    """KL temperature, reward units per nat; positive."""
    offset: float
    """Log Z of the data it was fitted to, nats."""

    def at(self, x_t: Tensor, t: Float[Tensor, ""], cond: Condition | None) -> Float[Tensor, " B"]:
        """The network's. Gradient flows to ``x_t`` and to the network."""
        return self.alpha * (self.offset + self.network(x_t, t.expand(len(x_t)), cond).double())

    def at_end(self, x_0: Tensor, cond: Condition | None) -> Float[Tensor, " B"]:
        """The reward; the network's where a black box is asked for a gradient."""
        wanted = x_0.requires_grad or relaxed(self.policy, x_0)
        if wanted and not isinstance(under(self.reward, cond), DifferentiableReward):
            return self.at(x_0, x_0.new_zeros((), dtype=torch.float64), cond)
        return super().at_end(x_0, cond)


def fit_value(
    policy: Policy,
    reward: Reward,
    rng: torch.Generator,
    settings: Regression,
    *,
    network: nn.Module | None = None,
    cond: Condition | None = None,
) -> Regressed:
    """Minimise (1) on rollouts of ``policy``.

    Args:
        policy: p_pre.
        reward: scored once on each of ``settings.paths`` designs.
        rng: noise source.
        settings: see :class:`Regression`.
        network: trained in place; :class:`~difftilt.values.network.ValueNetwork` when not given, which tells
            the conditions of ``cond`` apart, and knows no others.
        cond: conditions, one row per path.

    Raises:
        DataError: no design was feasible.
        UnsupportedError: too many conditions for the network of this library.
    """
    path, asked = rollout(policy, settings.paths, rng, cond=cond), under(reward, cond)
    tilt = score(asked, policy.codec, path.x_0).value / settings.alpha
    tilt = tilt.where(~tilt.isnan(), -math.inf)
    offset = log_mean_exp(tilt).item()
    if offset == -math.inf:
        raise DataError(f"expected a feasible design among {settings.paths} samples; got none; draw more paths")
    if network is None:
        seed = int(torch.randint(2**31, (), generator=rng, device=rng.device))
        with seeded_initialisation(seed):
            network = ValueNetwork(policy, cond=cond).to(policy.device)
    value = Regressed(policy, reward, network, settings.alpha, offset)
    optimiser = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.updates)
    times = path.steps + (not isinstance(asked, DifferentiableReward))
    network.train()
    for _ in range(settings.updates):
        rows = torch.randint(settings.paths, (settings.batch,), generator=rng, device=rng.device)
        k = torch.randint(times, (settings.batch,), generator=rng, device=rng.device)
        part = rows_of(cond, rows)
        target = tilt[rows]
        if settings.target == "bellman":
            with torch.no_grad():
                later = (k + 1).clamp(max=path.steps)
                after = offset + network(path.states[later, rows], policy.grid[later], part).double()
            target = after.where(later < path.steps, target)
        own = offset + network(path.states[k, rows], policy.grid[k], part).double()
        loss = soft_value_loss(own, target, alpha=1.0, most=settings.most)  # in nats
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        decay.step()
    network.eval().requires_grad_(False)
    return value
