r"""Adjoint matching on a chain of Gaussian steps: regress each step's mean on the lean adjoint.

The anchors' steps are :math:`N(\mu_a(x_t), \sigma_k^2 I)`, with :math:`\alpha = \sum_a w_a` and
:math:`\bar\mu = \sum_a w_a \mu_a / \alpha`. On a path of the tuned policy the adjoint runs backward from the reward,

.. math::
    a_K &= \nabla r(x_0), \qquad m_k = \bar\mu(x_t) + \sigma_k^2\, a_{k+1} / \alpha                      \qquad (1) \\
    a_k &= - \nabla_{x_t} \sum_a \frac{w_a}{2 \sigma_k^2} | m_k - \mu_a(x_t) |^2
        \quad \big( = J_{\mu_{pre}}^\top a_{k+1} \text{ for one anchor} \big)                            \qquad (2) \\
    L(\theta) &= \frac1B \sum_b \sum_k \frac{1}{2 \sigma_k^2} | \mu_\theta(x_t) - m_k |^2              \qquad (3)

with :math:`m_k` held fixed in (2) and (3). Steps without noise are no part of (3); there
:math:`a_k = J_\mu^\top a_{k+1}` for the anchors' common mean. The adjoint is *lean*: only the anchors' means are
differentiated, never the tuned network's. At the class optimum ``W`` (best J to go with these variances), stationarity
and the envelope theorem say :math:`\mu^* = E[m_k]` and :math:`\nabla W_k = E[a_k \mid x_t]`: the fixed point is the
class optimum itself, at any K, and its distance to the tilted law falls as 1 / K. Compared with the pathwise gradient
there is no backward pass through the tuned network's chain.

Differs from the paper in: derived for the K-step chain, so no error of discretisation enters; any noise level, not
only the memoryless one (where the chain is not memoryless the target is (2)* of the theory, as for every method);
several anchors.

References:
    Domingo-Enrich et al. 2024 (adjoint matching, eq. 38-40), https://arxiv.org/abs/2409.08861; Uehara et al. 2024,
    https://arxiv.org/abs/2407.13734.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from difftilt.algorithms.paths import PathSettings, ScoredPaths, Steps
from difftilt.algorithms.state import TunedState
from difftilt.core.algorithm import Anchor
from difftilt.core.conditions import Conditions, first_row
from difftilt.core.gaussian_step import GaussianStep
from difftilt.core.policy import Policy, counting_passes
from difftilt.core.reward import DifferentiableReward, Reward, Scores, score_relaxed, under
from difftilt.core.trajectory import Trajectory, rollout
from difftilt.errors import UnsupportedError
from difftilt.types import Condition, Float, Int, Tensor


def adjoint_matching_loss(
    mean: Float[Tensor, "R *event"],
    target: Float[Tensor, "R *event"],
    std: Float[Tensor, " R"],
    *,
    scale: float,
    paths: int,
) -> Float[Tensor, ""]:
    r"""Equation (3) over the chosen steps of ``paths`` paths.

    Args:
        mean: :math:`\mu_\theta(x_t)`. Gradient flows.
        target: :math:`m_k`. Never differentiated.
        std: :math:`\sigma_k`.
        scale: ``K / n`` for a subset of ``n`` steps.
        paths: number of paths the sum runs over.

    Returns:
        Nats: the path KL between the tuned steps and their targets.
    """
    distance = (mean.double() - target.double()).square().flatten(1).sum(1)
    return scale * (distance / (2 * std.double() ** 2)).sum() / paths


def lean_adjoint(
    path: Trajectory, anchors: list[Anchor], slope: Float[Tensor, "B *event"]
) -> Float[Tensor, "K B *event"]:
    r"""Targets :math:`m_k` of every step, equations (1) and (2).

    Args:
        path: finished paths of the tuned policy.
        anchors: reference policies with Gaussian steps, and their weights, reward units per nat.
        slope: :math:`\nabla r(x_0)`, reward units per unit of the state.

    Returns:
        Targets, noisiest step first, in the unit of the state. No gradient flows.
    """
    alpha = sum(anchor.weight for anchor in anchors)
    adjoint, targets = slope, []
    for k in reversed(range(path.steps)):
        x_t = path.states[k].detach().requires_grad_(True)
        laws = [_step(anchor.policy, x_t, path.times[k], path.times[k + 1], path.cond) for anchor in anchors]
        variance = (laws[0].std ** 2).to(x_t.dtype).view(-1, *[1] * (x_t.ndim - 1))
        centre = sum(anchor.weight / alpha * law.mean for anchor, law in zip(anchors, laws, strict=True))
        target = (centre + variance * adjoint / alpha).detach()
        if laws[0].has_density:
            pulls = [
                -anchor.weight * ((target - law.mean).square() / (2 * variance)).sum()
                for anchor, law in zip(anchors, laws, strict=True)
            ]
        else:
            pulls = [(adjoint * laws[0].mean).sum()]
        (adjoint,) = torch.autograd.grad(torch.stack(pulls).sum(), x_t)
        targets.append(target)
    return torch.stack(targets[::-1])


def _step(policy: Policy, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition | None) -> GaussianStep:
    """A step whose mean can be regressed.

    Raises:
        UnsupportedError: the step is not Gaussian: tokens have no adjoint.
    """
    law = policy.step(x_t, t, s, cond)
    if not isinstance(law, GaussianStep):
        raise UnsupportedError(
            f"expected a chain of Gaussian steps, whose means have a gradient; got {type(law).__name__}; use "
            "--algorithm ppo, trajectory_balance or, for a differentiable reward, reward_backprop"
        )
    return law


@dataclass(frozen=True, kw_only=True)
class AdjointMatching(PathSettings):
    """Settings of adjoint matching; see the module for the method."""

    epochs: int = 1
    """Passes over the paths of an update."""
    minibatches: int = 1
    """Optimiser steps per pass."""

    def init(self, policy: Policy, anchors: list[Anchor], conditions: Conditions | None = None) -> TunedState:
        """Start tuning ``policy`` in place.

        Raises:
            UnsupportedError: steps are not Gaussian.
        """
        state = super().init(policy, anchors, conditions)
        with torch.no_grad():
            some = policy.prior(1, torch.Generator(policy.device).manual_seed(0))
            _step(policy, some, policy.grid[0], policy.grid[1], first_row(conditions, some.device))
        return state

    def collect(self, state: TunedState, reward: Reward, rng: torch.Generator) -> ScoredPaths:
        """One rollout, and the gradient of the reward at its designs.

        Raises:
            UnsupportedError: the reward cannot be differentiated, or some design is infeasible.
        """
        condition, cond = state.draw_conditions(self.batch, rng)
        reward = under(reward, cond)
        if not isinstance(reward, DifferentiableReward):
            raise UnsupportedError(
                "expected a reward with on_probabilities(p); got one that only scores finished designs; "
                "use --algorithm ppo or trajectory_balance"
            )
        with counting_passes(state.policy, *state.references) as passes:
            path = rollout(state.policy, self.batch, rng, references=state.references, cond=cond)
        state.x_0 = path.x_0
        x_0 = path.x_0.detach().requires_grad_(True)
        value = score_relaxed(reward, state.policy.codec.readable(x_0))
        lost = int((~value.isfinite()).sum())
        if lost:
            raise UnsupportedError(
                f"expected a finite reward for every design; got {lost} of {self.batch} infeasible, where there is no "
                "gradient; use --algorithm ppo or trajectory_balance"
            )
        (slope,) = torch.autograd.grad(value.sum(), x_0)
        return ScoredPaths(
            path,
            Scores(value.detach().double()),
            path.log_prob.sum(0),
            own=torch.ones_like(value, dtype=torch.bool),
            condition=condition,
            network_evaluations=passes.rows + path.steps * self.batch * len(state.anchors),
            oracle_calls=self.batch,
            slope=slope,
        )

    def passes(self) -> tuple[int, int]:
        """As set: the regression targets stay valid within an update."""
        return self.epochs, self.minibatches

    def targets(self, state: TunedState, data: ScoredPaths) -> Float[Tensor, "K B *event"]:
        """Targets :math:`m_k` of every step."""
        assert data.slope is not None
        return lean_adjoint(data.path, state.anchors, data.slope)

    def loss(
        self,
        state: TunedState,
        data: ScoredPaths,
        targets: Float[Tensor, "K B *event"],
        steps: Steps,
        rows: Int[Tensor, " P"],
        rng: torch.Generator,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Equation (3)."""
        law = _step(state.policy, steps.x_t, steps.t, steps.s, steps.cond)
        target = targets[steps.k, steps.path]
        return adjoint_matching_loss(law.mean, target, law.std, scale=steps.scale, paths=len(rows)), {}
