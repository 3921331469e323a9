r"""Proximal policy optimisation of a diffusion chain.

Each denoising step is an action with an advantage :math:`A` in nats, by default the centred return of its path, alike
for all its steps (:mod:`difftilt.algorithms.advantages`; others by name: :mod:`difftilt.algorithms.baselines`). With
the ratio :math:`\rho_k = p_\theta(x_s|x_t) / p_{old}(x_s|x_t)`, the denominator *stored at rollout*:

.. math::

    L(\theta) = - \frac1B \sum_b \sum_{k}
        \min\big( \rho_k A_b,\; \mathrm{clip}(\rho_k, 1 - \epsilon, 1 + \epsilon) A_b \big)          \qquad (1)

At the first pass :math:`\rho = 1` and the gradient of (1) is the unbiased score-function gradient of the objective.
An update may use a random subset of the K steps, scaled by K / n.

The KL is either *sampled*, inside the return, whose noise then vanishes at the optimum; or in *closed form*: the return
is :math:`r - \sum_a w_a \sum_k KL_{a,k}` and the loss gains the direct gradient

.. math:: L_{KL}(\theta) = \frac1B \sum_b \sum_k \sum_a \frac{w_a}{\alpha}
        KL\big( p_\theta(\cdot|x_t) \,\|\, p_a(\cdot|x_t) \big)                                          \qquad (2)

Either part alone is wrong (0.13 to 0.24 nats off on a small chain). Where designs can be infeasible the objective has
the KL of :math:`p_\theta(\cdot | F)`, which no sum over steps gives in closed form: there it is refused.

Differs from the papers in: advantages are centred by the other paths' mean, and not divided by a standard deviation
unless asked (that turns alpha into alpha * std); log-probabilities are sums, not means, over the event.

References:
    Black et al. 2023 (DDPO-IS), https://arxiv.org/abs/2305.13301; Fan et al. 2023 (DPOK), https://arxiv.org/abs/2305.16381;
    Uehara et al. 2024, section 4.1, https://arxiv.org/abs/2407.13734.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from difftilt.algorithms.baselines import BaselineSettings
from difftilt.algorithms.paths import PathInfo, ScoredPaths, Steps, collect
from difftilt.algorithms.state import TunedState
from difftilt.core.reward import Reward
from difftilt.errors import UnsupportedError, nearest
from difftilt.types import Float, Int, Tensor

KL = ("sampled", "closed_form")


@dataclass(frozen=True, kw_only=True)
class PPOInfo(PathInfo):
    """What one update logs."""

    ratio_first_pass: float
    """Largest ``|log ratio|`` against the stored log-prob in the first minibatch, nats; healthy: below 1e-4."""
    clip_fraction: float
    """Share of ratios outside the clip range; healthy: 0.02 to 0.3. Exactly 0 means that clipping never acts."""


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
class PPO(BaselineSettings):
    """Settings of PPO; see the module for the method."""

    kl: str = "sampled"
    """How the KL enters: ``"sampled"`` or ``"closed_form"`` (one more pass of every reference per step)."""
    clip: float = 0.2
    """Clip range of the step ratio, no unit."""
    epochs: int = 2
    """Passes over the rollout."""
    minibatches: int = 4
    """Optimiser steps per pass."""

    info = PPOInfo

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kl not in KL:
            raise nearest(self.kl, KL, what="kl")

    def passes(self) -> tuple[int, int]:
        """As set."""
        return self.epochs, self.minibatches

    def collect(self, state: TunedState, reward: Reward, rng: torch.Generator) -> ScoredPaths:
        """One rollout.

        Raises:
            UnsupportedError: some design is infeasible, where the closed form is not the KL of the feasible paths.
        """
        data = collect(state, reward, self.batch, rng, with_kl=self.kl == "closed_form")
        lost = int((~data.scores.feasible).sum())
        if self.kl == "closed_form" and lost:
            raise UnsupportedError(
                "expected a feasible design on every path for kl 'closed_form', which averages over all that a step "
                f"may draw; got {lost} of {self.batch} infeasible; use kl 'sampled'"
            )
        return data

    def loss(
        self,
        state: TunedState,
        data: ScoredPaths,
        targets: Float[Tensor, "K B"],
        steps: Steps,
        rows: Int[Tensor, " P"],
        rng: torch.Generator,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Equation (1), and (2) where the KL is in closed form."""
        law = state.policy.step(steps.x_t, steps.t, steps.s, steps.cond)
        log_prob = law.log_prob(steps.x_s).double()
        settings = {"clip": self.clip, "scale": steps.scale, "paths": len(rows)}
        loss = ppo_loss(log_prob, steps.log_prob, targets[steps.k, steps.path], **settings)
        if self.kl == "closed_form":
            with torch.no_grad():
                others = [other.step(steps.x_t, steps.t, steps.s, steps.cond) for other in state.references]
            kl = torch.stack([law.kl(other) for other in others]).double()
            loss = loss + steps.scale * (state.weights[:, None] / state.alpha * kl).sum() / len(rows)
        log_ratio = (log_prob - steps.log_prob).detach()
        return loss, {"log_ratio": log_ratio}

    def evaluations(self, state: TunedState, steps: Steps) -> int:
        """The policy's pass, and the references' for (2)."""
        return len(steps.path) * (1 + len(state.anchors) * (self.kl == "closed_form"))

    def watch(self, watched: list[dict[str, Tensor]]) -> dict[str, float]:
        """Ratios of the first minibatch and clipping in all."""
        clipped = [((seen["log_ratio"].exp() - 1).abs() > self.clip).double().mean() for seen in watched]
        first = watched[0]["log_ratio"].abs().max().item()
        return {"ratio_first_pass": first, "clip_fraction": torch.stack(clipped).mean().item()}
