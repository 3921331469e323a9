r"""Reward backpropagation: the pathwise gradient of the objective through the chain.

.. math::

    J(\theta) = E\Big[ r(x_0) - \sum_a w_a \sum_k KL\big( p_\theta(\cdot|x_t) \,\|\, p_a(\cdot|x_t) \big) \Big]
    \qquad (1)

with :math:`x_s` reparametrised, the KL in closed form, and the gradient flowing through every state. Exact for
Gaussian steps. For tokens the states are straight-through Gumbel-softmax draws: hard tokens forward, the relaxed
gradient at temperature tau backward. That gradient is *biased* even untruncated (by 0.28 of the exact one at tau = 1,
0.09 at tau = 0.3 on a small chain), so no law is claimed for tokens and tau is annealed; an update logs its tau, and
the reward of the hard designs.

Truncation drops the graph before the last K' steps (DRaFT-K), or before one random cut per trajectory (AlignProp); the
cut is drawn once per trajectory. Steps with a graph are checkpointed (:mod:`difftilt.algorithms.pathwise`).

With K' = 1 the last step may be redone n times (DRaFT-LV), from its design noised afresh to the time t of that step,

.. math:: x_t^i \sim q(\cdot | x_0), \quad x_0^i \sim p_\theta(\cdot | x_t^i), \qquad
    \hat g = \frac{1}{n + 1} \sum_{i=0}^n \nabla_\theta
        \Big[ r(x_0^i) - \sum_a w_a KL\big( p_\theta(\cdot|x_t^i) \,\|\, p_a(\cdot|x_t^i) \big) \Big]         \qquad (2)

``i = 0`` being the trajectory's own. Its noise is lower for n further reward calls and no further trajectories; its
mean is that of DRaFT-1 iff the chain's law at t is that of its noised designs, and off by as much as these two differ.

Where finished designs are all but corners, as on the simplex, the gradient of r(x_0) vanishes on nearly every
trajectory. The reward may then be read early (ReFL), off the design predicted at a step R of each trajectory,

.. math:: r\big( E_\theta[ x_0 \mid x_{t_R} ] \big), \quad R \sim U\{ \lceil \rho K \rceil, \dots, K - 1 \}
    \qquad (3)

in place of :math:`r(x_0)` in (1): biased, as r of a mean is not the mean of r. Steps from R on are trained by their own
KLs alone, and no gradient flows between them.

Differs from the papers in: the KL is part of the objective; hard tokens go forward; (2) is a mean, not a sum, so that n
does not change the learning rate; (3) has a graph before the step R too, and no clipping of the reward.

References:
    Clark et al. 2023 (DRaFT), https://arxiv.org/abs/2309.17400; Prabhudesai et al. 2023 (AlignProp),
    https://arxiv.org/abs/2310.03739; Wang et al. 2024 (DRAKES), https://arxiv.org/abs/2410.13643; Xu et al. 2023
    (ReFL), https://arxiv.org/abs/2304.05977; Uehara et al. 2024, section 4.2, https://arxiv.org/abs/2407.13734.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from difftilt.algorithms.pathwise import differentiable_rollout, last_step_again
from difftilt.algorithms.state import GreedyState, TunedState, check_settings
from difftilt.core.algorithm import Anchor
from difftilt.core.conditions import Conditions, repeated
from difftilt.core.policy import Policy
from difftilt.core.reward import DifferentiableReward, Reward, score_relaxed, under
from difftilt.core.schedule import anneal
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.types import Float, Int, Tensor
from difftilt.values.plug_in import PlugIn

CORNERS = 0.3
"""Rho of (3) where finished designs are all but corners."""


@dataclass(frozen=True)
class RewardBackpropInfo:
    """What one update logs."""

    reward: float
    """Mean reward of the trajectories' own (hard) designs, reward units."""
    kl_nats: float
    """Sum of closed-form step KLs to the first anchor, mean over the batch, nats."""
    tau: float | None
    """Gumbel-softmax temperature of this update, no unit; ``None`` where states are continuous, which none relaxes."""
    gradient_norm: float
    """Before clipping."""
    network_evaluations: int
    """Denoiser passes, counted per design and step: policy and references, and both again where the backward pass
    recomputes a step."""
    oracle_calls: int
    """Designs scored, predicted ones too."""


def reward_backprop_loss(
    reward: Float[Tensor, " B"], kl: Float[Tensor, "A B"], weights: Float[Tensor, " A"]
) -> Float[Tensor, ""]:
    r"""Minus equation (1), in nats (divided by the total weight).

    Args:
        reward: :math:`r(x_0)`, reward units. Gradient flows.
        kl: path sums of the step KLs to each anchor, nats. Gradient flows.
        weights: :math:`w_a`, reward units per nat; none where there is no KL.

    Returns:
        Nats; smaller is better, bounded below by ``-log Z``. Without weights the reward alone, in its units.
    """
    return -(reward - (weights[:, None] * kl).sum(0)).mean() / (weights.sum() if len(weights) else 1.0)


@dataclass(frozen=True, kw_only=True)
class RewardBackprop:
    """Settings of reward backpropagation; see the module for the method."""

    alpha: float = 0.1
    """KL temperature, reward units per nat; used where no anchors are given."""
    batch: int = 64
    """Paths per update, B: also reward calls per update."""
    learning_rate: float = 1e-3
    """Of Adam; the commands take that of the task's model where it has its own."""
    tau: float = 1.0
    """Gumbel-softmax temperature at the first update (tokens only), no unit."""
    tau_end: float = 0.3
    """The same after ``tau_updates`` updates; geometric in between."""
    tau_updates: int = 500
    """Length of the annealing, updates."""
    truncation: int | None = None
    """Gradient through the last K' steps only; all steps when not set."""
    random_truncation: bool = False
    """One uniformly random cut per trajectory instead."""
    low_variance: int | None = None
    """n of (2): further designs of each trajectory, with ``truncation = 1`` only; a reward call each. The paper: 2."""
    read_from: float | None = None
    """Rho of (3): share of the chain after which the reward is read off predicted designs; 1: off finished ones. When
    not set: 0.3 on the simplex, else 1."""
    max_gradient_norm: float = 10.0
    """Gradients are scaled down to this norm."""

    def __post_init__(self) -> None:
        if self.truncation is not None and (self.truncation < 1 or self.random_truncation):
            raise ConfigError(
                f"expected truncation >= 1, and not together with random_truncation; got {self.truncation}; choose one"
            )
        if self.low_variance is not None and self.truncation != 1:
            raise ConfigError(
                f"expected low_variance together with truncation 1; got truncation {self.truncation}; set it to 1"
            )
        if self.read_from is not None and not 0 < self.read_from <= 1:
            raise ConfigError(f"expected read_from above 0, at most 1; got {self.read_from}; 1 reads finished designs")
        if (self.read_from or 1.0) < 1 and self.low_variance is not None:
            raise ConfigError(
                "expected low_variance, which redoes the last step, without read_from, which reads before it; got "
                f"{self.low_variance} and {self.read_from}; choose one"
            )

    def init(self, policy: Policy, anchors: list[Anchor], conditions: Conditions | None = None) -> TunedState:
        """Start tuning ``policy`` in place."""
        check_settings(self)
        return GreedyState(policy, anchors, conditions, learning_rate=self.learning_rate)

    def step(self, state: TunedState, reward: Reward, rng: torch.Generator) -> RewardBackpropInfo:
        """One differentiable rollout and one optimiser step.

        Raises:
            UnsupportedError: the reward cannot be differentiated, or some design is infeasible: a pathwise gradient
                does not see how the feasible set is entered or left.
        """
        _, cond = state.draw_conditions(self.batch, rng)
        more = self.low_variance or 0
        reward = under(reward, repeated(cond, 1 + more))
        if not isinstance(reward, DifferentiableReward):
            raise UnsupportedError(
                "expected a reward with on_probabilities(p); got one that only scores finished designs; "
                "use --algorithm ppo or trajectory_balance"
            )
        policy = state.policy
        tau = anneal(self.tau, self.tau_end, state.updates / max(1, self.tau_updates))
        read = self._readings(policy, rng)
        cut = self._cuts(read, rng)
        x_0, kl, seen = differentiable_rollout(
            policy, self.batch, rng, state.references, tau=tau, cut=cut, read=read, cond=cond
        )
        tokens = x_0.ndim > 1 + len(policy.event_shape)
        state.x_0 = x_0.detach().argmax(-1) if tokens else x_0.detach()
        if more:
            again, spent = last_step_again(policy, state.x_0, more, rng, state.references, tau=tau, cond=cond)
            x_0, kl = torch.cat([x_0, again]), torch.cat([kl, spent], dim=1)
        early = bool((read < policy.steps).any())
        with torch.set_grad_enabled(not early):
            value = final = score_relaxed(reward, policy.codec.readable(x_0)).to(kl)
        if early:
            value = PlugIn(policy, reward)(seen, policy.grid[read], cond).to(kl)
        lost = int((~value.isfinite()).sum())
        if lost:
            raise UnsupportedError(
                f"expected a finite reward for every design; got {lost} of {len(value)} infeasible, where there is no "
                "pathwise gradient; use --algorithm ppo or trajectory_balance"
            )
        first = int(cut.min())
        recomputed = max(0, policy.steps - 1 - first)
        loss = reward_backprop_loss(value, kl, state.weights)
        norm = state.descend([loss], self.max_gradient_norm)
        state.updates += 1
        return RewardBackpropInfo(
            reward=final[: self.batch].mean().item(),
            kl_nats=kl[0, : self.batch].mean().item() if state.anchors else math.nan,
            tau=tau if tokens else None,
            gradient_norm=norm.item(),
            network_evaluations=(policy.steps + recomputed + 2 * more) * self.batch * (1 + len(state.anchors))
            + (self.batch if early else 0),
            oracle_calls=len(value) + (self.batch if early else 0),
        )

    def _readings(self, policy: Policy, rng: torch.Generator) -> Int[Tensor, " B"]:
        """The step at whose state the reward is read, for each trajectory: K where it is that of the finished one."""
        share, steps = self.read_from or 1.0, policy.steps
        if self.read_from is None and policy.process.ends_in_corners and self.low_variance is None:
            share = CORNERS
        if share == 1 or steps == 1:  # the prior tells nothing of the design
            return torch.full((self.batch,), steps, device=policy.device)
        first = min(math.ceil(share * steps), steps - 1)
        return torch.randint(first, steps, (self.batch,), generator=rng, device=policy.device)

    def _cuts(self, read: Int[Tensor, " B"], rng: torch.Generator) -> Int[Tensor, " B"]:
        """First step with a graph, for each trajectory; drawn once."""
        if self.random_truncation:
            return (torch.rand(self.batch, generator=rng, device=read.device) * read).long()
        return torch.zeros_like(read) if self.truncation is None else (read - self.truncation).clamp(min=0)
