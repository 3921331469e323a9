r"""Proximal policy optimisation of a diffusion chain, the KL inside the return.

Each denoising step is an action; all steps of a path share the advantage :math:`A` of
:mod:`difftilt.algorithms.advantages`. With the ratio :math:`\rho_k = p_\theta(x_s|x_t) / p_{old}(x_s|x_t)`, the
denominator *stored at rollout*:

.. math::

    L(\theta) = - \frac1B \sum_b \sum_{k}
        \min\big( \rho_k A_b,\; \mathrm{clip}(\rho_k, 1 - \epsilon, 1 + \epsilon) A_b \big)          \qquad (1)

At the first pass :math:`\rho = 1` and the gradient of (1) is the unbiased score-function gradient of the objective.
An update may use a random subset of the K steps, scaled by K / n.

Differs from the papers in: advantages are centred by the other paths' mean, never divided by a standard deviation
(that would turn alpha into alpha * std); log-probabilities are sums, not means, over the event.

References:
    Black et al. 2023 (DDPO-IS), https://arxiv.org/abs/2305.13301; Fan et al. 2023 (DPOK), https://arxiv.org/abs/2305.16381;
    Uehara et al. 2024, section 4.1, https://arxiv.org/abs/2407.13734.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from difftilt.algorithms.advantages import Steps, centred_advantage, choose_steps, path_return
from difftilt.algorithms.state import TunedState, check_settings
from difftilt.core.algorithm import Anchor
from difftilt.core.policy import Policy
from difftilt.core.reward import Reward, Scores, score
from difftilt.core.trajectory import rollout, step_log_prob
from difftilt.types import Float, Tensor


@dataclass(frozen=True)
class PPOInfo:
    """What one update logs."""

    reward: float
    """Mean reward of the feasible designs of the rollout, reward units."""
    kl_nats: float
    """Path KL of the rollout to the first anchor (k1: sampled log-ratios), nats."""
    feasible_fraction: float
    """Share of designs with a reward; healthy: rising to 1."""
    return_std: float
    """Spread of the path returns in nats; falls towards 0 as the optimum is approached."""
    ratio_first_pass: float
    """Largest ``|log ratio|`` against the stored log-prob in the first minibatch, nats; healthy: below 1e-4."""
    clip_fraction: float
    """Share of ratios outside the clip range; healthy: 0.02 to 0.3. Exactly 0 means that clipping never acts."""
    gradient_norm: float
    """Before clipping, mean over minibatches."""
    network_evaluations: int
    """Denoiser passes, counted per design and step (rollout, reference and update; a backward is not counted)."""
    oracle_calls: int
    """Designs scored."""


def ppo_loss(
    log_prob: Float[Tensor, " R"],
    old_log_prob: Float[Tensor, " R"],
    advantage: Float[Tensor, " R"],
    *,
    clip: float,
    scale: float,
    paths: int,
) -> Float[Tensor, ""]:
    r"""Equation (1) over the chosen steps of ``paths`` paths.

    Args:
        log_prob: :math:`\log p_\theta(x_s|x_t)`, nats, event-summed. Gradient flows.
        old_log_prob: the same, as stored at rollout. Never differentiated.
        advantage: of each step's path, nats. Never differentiated.
        clip: :math:`\epsilon`, no unit.
        scale: ``K / n`` for a subset of ``n`` steps.
        paths: number of paths the sum runs over.

    Returns:
        Nats. Its value is ``-scale * mean advantage`` at the first pass; only the gradient has meaning.
    """
    ratio = (log_prob - old_log_prob).exp()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return -scale * surrogate.sum() / paths


@dataclass(frozen=True, kw_only=True)
class PPO:
    """Settings of PPO; see the module for the method."""

    alpha: float = 0.1
    """KL temperature, reward units per nat; used where no anchors are given."""
    batch: int = 256
    """Paths per update, B: also reward calls per update."""
    learning_rate: float = 1e-3
    """Of Adam."""
    clip: float = 0.2
    """Clip range of the step ratio, no unit."""
    epochs: int = 2
    """Passes over the rollout."""
    minibatches: int = 4
    """Optimiser steps per pass."""
    steps_per_path: int | None = None
    """Random steps of each path in each pass, n; all K when not set."""
    max_gradient_norm: float = 10.0
    """Gradients are scaled down to this norm."""
    feasibility_weight: float | None = None
    """Weight of log P(feasible), reward units per nat; alpha when not set."""

    def init(self, policy: Policy, anchors: list[Anchor]) -> TunedState:
        """Start tuning ``policy`` in place."""
        check_settings(self)
        return TunedState(policy, anchors, learning_rate=self.learning_rate)

    def step(self, state: TunedState, reward: Reward, rng: torch.Generator) -> PPOInfo:
        """One rollout of ``batch`` paths, scored once, and ``epochs`` passes over it."""
        policy, alpha = state.policy, state.alpha
        path = rollout(policy, self.batch, rng, references=state.references)
        state.x_0 = path.x_0
        scores = score(reward, policy.codec, path.x_0)
        returns = path_return(scores.value, path.log_ratio, state.weights)
        weight = alpha if self.feasibility_weight is None else self.feasibility_weight
        advantage = centred_advantage(returns, scores.feasible, feasibility_weight=weight) / alpha
        evaluations = path.steps * self.batch * (1 + len(state.anchors))
        first, clipped, norms = 0.0, [], []
        for epoch in range(self.epochs):
            order = torch.randperm(self.batch, generator=rng, device=policy.device)
            for number, rows in enumerate(order.tensor_split(self.minibatches)):
                steps = choose_steps(path, rows, self.steps_per_path, rng)
                log_ratio, norm = self._update(state, steps, advantage, len(rows))
                evaluations += len(steps.path)
                clipped.append(((log_ratio.exp() - 1).abs() > self.clip).double().mean())
                norms.append(norm)
                if epoch == 0 and number == 0:
                    first = log_ratio.abs().max().item()
        state.updates += 1
        return PPOInfo(
            reward=scores.mean,
            kl_nats=path.log_ratio[0].sum(0).mean().item(),
            feasible_fraction=scores.feasible.double().mean().item(),
            return_std=Scores(returns).std / alpha,
            ratio_first_pass=first,
            clip_fraction=torch.stack(clipped).mean().item(),
            gradient_norm=torch.stack(norms).mean().item(),
            network_evaluations=evaluations,
            oracle_calls=self.batch,
        )

    def _update(
        self, state: TunedState, steps: Steps, advantage: Float[Tensor, " B"], paths: int
    ) -> tuple[Float[Tensor, " R"], Tensor]:
        log_prob = step_log_prob(state.policy, steps.x_t, steps.x_s, steps.t, steps.s, steps.cond).double()
        loss = ppo_loss(log_prob, steps.log_prob, advantage[steps.path], clip=self.clip, scale=steps.scale, paths=paths)
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(state.parameters, self.max_gradient_norm)
        state.optimiser.step()
        return (log_prob - steps.log_prob).detach(), norm
