r"""Proximal policy optimisation of a diffusion chain.

Each denoising step is an action with an advantage :math:`A` in nats, by default the centred return of its path, alike
for all its steps (:mod:`difftilt.algorithms.advantages`; others by name: :mod:`difftilt.algorithms.baselines`). With
the ratio :math:`\rho_k = p_\theta(x_s|x_t) / p_{old}(x_s|x_t)`, the denominator *stored at rollout*:

.. math::

    L(\theta) = - \frac1B \sum_b \sum_{k}
        \min\big( \rho_k A_b,\; \mathrm{clip}(\rho_k, 1 - \epsilon, 1 + \epsilon) A_b \big)          \qquad (1)

At the first pass :math:`\rho = 1` and the gradient of (1) is the unbiased score-function gradient of the objective.
An update may use a random subset of the steps, scaled by K / n; those without density have no ratio and do not count.

The KL to the anchors is either *sampled*, inside the return, whose noise then vanishes at the optimum; or in *closed
form*: the return is :math:`r - \sum_a w_a \sum_k KL_{a,k}` and the loss gains the direct gradient

.. math:: L_{KL}(\theta) = \frac1B \sum_b \sum_k \sum_a \frac{w_a}{\alpha}
        KL\big( p_\theta(\cdot|x_t) \,\|\, p_a(\cdot|x_t) \big)                                          \qquad (2)

Either part alone is wrong (0.13 to 0.24 nats off on a small chain). Where designs can be infeasible the objective has
the KL of :math:`p_\theta(\cdot | F)`, which no sum over steps gives in closed form: there it is refused.

**Many dimensions.** For Gaussian steps of one std, moved by :math:`\Delta` in the mean,
:math:`\log\rho \sim N(-KL, 2 KL)`, where :math:`KL = |\Delta|^2 / 2 \sigma^2` sums over the event's ``d`` dimensions. A
move by :math:`\sigma / 50` in each of 10,000 is 2 nats: most :math:`\rho` lie outside the clip range, and few carry all
the weight. So ``ratio`` names one of three surrogates, whose gradients agree at the first pass:

- ``"exact"``: (1), importance sampling.
- ``"per_dimension"``: (1) with :math:`\rho^{1/d}` for :math:`\rho` and :math:`\epsilon` in that unit, times ``d``. Away
  from the first pass this is no importance sampling: its gradient is the score function at old samples,
  :math:`\rho^{1/d} A \nabla \log p_\theta`, within a trust region on :math:`\log\rho / d`.
- ``"gaussian_kl"``: with the means :math:`\mu_{old}` stored at rollout, (3). It is linear in the mean, so that nothing
  degenerates; a step that has moved by more than :math:`\delta` nats is left alone.

.. math::

    L(\theta) = - \frac1B \sum_b \sum_{k:\; KL_k \le \delta} A_b \big( \log\rho_k + KL_k \big), \quad
    \log\rho + KL = \langle x_s - \mu_{old},\, \mu_\theta - \mu_{old} \rangle / \sigma^2                \qquad (3)

Differs from the papers in: advantages are centred by the other paths' mean, and not divided by a standard deviation
unless asked (that turns alpha into alpha * std); log-probabilities are sums, not means, over the event, unless asked.

References:
    Black et al. 2023 (DDPO-IS), https://arxiv.org/abs/2305.13301; Fan et al. 2023 (DPOK), https://arxiv.org/abs/2305.16381;
    Liu et al. 2025 (Flow-GRPO, whose ratio is the one per dimension), https://arxiv.org/abs/2505.05470;
    Uehara et al. 2024, section 4.1, https://arxiv.org/abs/2407.13734.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from difftilt.algorithms.baselines import BaselineInfo, BaselineSettings, BaselineState
from difftilt.algorithms.paths import ScoredPaths, Steps, collect
from difftilt.algorithms.state import TunedState
from difftilt.core.algorithm import Anchor
from difftilt.core.conditions import Conditions
from difftilt.core.gaussian_step import GaussianStep, GaussianSteps, per_row
from difftilt.core.policy import Policy
from difftilt.core.reward import Reward
from difftilt.errors import UnsupportedError, nearest
from difftilt.types import Float, Int, Tensor

KL = ("sampled", "closed_form")
CLIPS = {"exact": 0.2, "per_dimension": 1e-4}
"""Clip ranges where none is set."""
RATIOS = (*CLIPS, "gaussian_kl")


@dataclass(frozen=True, kw_only=True)
class PPOInfo(BaselineInfo):
    """What one update logs."""

    ratio_first_pass: float
    """Largest ``|log ratio|`` against the stored log-prob in the first minibatch, nats; healthy: below 1e-4."""
    clip_fraction: float
    """Share of steps outside the clip range or trust region; healthy: 0.02 to 0.3. Exactly 0: it never acts."""
    log_ratio_rms: float
    r"""Root mean square of :math:`\log\rho`, summed over the event, in the last minibatch, nats: about
    :math:`\sqrt{2 KL}`. Healthy for exact ratios: below 0.3; above 1 they have degenerated."""


def ppo_loss(
    log_prob: Float[Tensor, " R"],
    old_log_prob: Float[Tensor, " R"],
    advantage: Float[Tensor, " R"],
    *,
    clip: float,
    scale: float,
    paths: int,
    dimensions: int = 1,
) -> Float[Tensor, ""]:
    r"""Equation (1) over the chosen steps of ``paths`` paths; the surrogate per dimension for ``dimensions = d``.

    Args:
        log_prob: :math:`\log p_\theta(x_s|x_t)`, nats, event-summed. Gradient flows.
        old_log_prob: the same, as stored at rollout. Never differentiated.
        advantage: of each step's path, nats. Never differentiated.
        clip: :math:`\epsilon`, in the unit of the ratio: none.
        scale: ``K / n`` for a subset of ``n`` steps.
        paths: number of paths the sum runs over.
        dimensions: ``d``, the root that is taken of the ratio; 1 is the exact one.

    Returns:
        Nats. Its value at the first pass is ``-scale * dimensions * advantage.sum() / paths``; only the gradient has
        meaning, which is there the same for any ``dimensions``.
    """
    ratio = ((log_prob - old_log_prob) / dimensions).exp()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return -scale * dimensions * surrogate.sum() / paths


def gaussian_kl_loss(
    mean: Float[Tensor, "R *event"],
    old_mean: Float[Tensor, "R *event"],
    x_s: Float[Tensor, "R *event"],
    std: Float[Tensor, " R"],
    advantage: Float[Tensor, " R"],
    *,
    trust_kl: float,
    scale: float,
    paths: int,
) -> tuple[Float[Tensor, ""], Float[Tensor, " R"]]:
    r"""Equation (3) over the chosen steps of ``paths`` paths.

    Args:
        mean: :math:`\mu_\theta(x_t)`. Gradient flows.
        old_mean: :math:`\mu_{old}(x_t)`, as stored at rollout. Never differentiated.
        x_s: the state drawn, as stored.
        std: :math:`\sigma`, of both steps.
        advantage: of each step's path, nats. Never differentiated.
        trust_kl: :math:`\delta`, nats per step, summed over the event.
        scale: ``K / n`` for a subset of ``n`` steps.
        paths: number of paths the sum runs over.

    Returns:
        Nats, of which only the gradient has meaning; and each step's KL, nats, without gradient.
    """
    moved, drawn = ((x - old_mean).flatten(1) / per_row(std, mean).flatten(1) for x in (mean, x_s))
    kl = 0.5 * moved.detach().square().sum(1, dtype=torch.float64)
    surrogate = advantage * (drawn * moved).sum(1, dtype=torch.float64)
    return -scale * surrogate.where(kl <= trust_kl, 0.0).sum() / paths, kl


@dataclass(frozen=True, kw_only=True)
class PPO(BaselineSettings):
    """Settings of PPO; see the module for the method."""

    kl: str = "sampled"
    """How the KL enters: ``"sampled"`` or ``"closed_form"`` (one more pass of every reference per step)."""
    ratio: str = "exact"
    """``"exact"``, ``"per_dimension"`` or ``"gaussian_kl"`` (Gaussian and flow processes only); see the module."""
    clip: float | None = None
    """Clip range, in the ratio's unit; default 0.2, per dimension 0.0001. Healthy: 0.1 to 0.3; 0.2 / d to 1 / d."""
    trust_kl: float = 0.1
    """Trust region of ``"gaussian_kl"``, nats per step, summed over the event; healthy: 0.01 to 1."""
    epochs: int = 2
    """Passes over the rollout."""
    minibatches: int = 4
    """Optimiser steps per pass."""

    info = PPOInfo

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kl not in KL:
            raise nearest(self.kl, KL, what="kl")
        if self.ratio not in RATIOS:
            raise nearest(self.ratio, RATIOS, what="ratio")

    def init(self, policy: Policy, anchors: list[Anchor], conditions: Conditions | None = None) -> BaselineState:
        """Start tuning ``policy`` in place.

        Raises:
            UnsupportedError: a trust region of Gaussians for a process without them.
        """
        if self.ratio == "gaussian_kl" and not isinstance(policy.process, GaussianSteps):
            raise UnsupportedError(
                "expected steps that are Gaussian with one std, for ratio 'gaussian_kl'; got "
                f"{type(policy.process).__name__}; use ratio 'exact' or 'per_dimension'"
            )
        return super().init(policy, anchors, conditions)

    def passes(self) -> tuple[int, int]:
        """As set."""
        return self.epochs, self.minibatches

    def collect(self, state: TunedState, reward: Reward, rng: torch.Generator) -> ScoredPaths:
        """One rollout.

        Raises:
            UnsupportedError: some design is infeasible, where the closed form is not the KL of the feasible paths.
        """
        closed = self.kl == "closed_form"
        data = collect(state, reward, self.batch, rng, with_kl=closed, with_means=self.ratio == "gaussian_kl")
        lost = int((~data.scores.feasible).sum())
        if closed and lost:
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
        """Equation (1) or (3), and (2) where the KL is in closed form."""
        law, advantage = steps.law(state.policy), targets[steps.k, steps.path]
        log_prob = law.log_prob(steps.x_s).double()
        log_ratio = (log_prob - steps.log_prob).detach()
        sums: dict[str, Any] = {"scale": steps.scale, "paths": len(rows)}
        if self.ratio == "gaussian_kl":
            assert isinstance(law, GaussianStep)
            assert steps.mean is not None
            drawn, trust = (law.mean, steps.mean, steps.x_s, law.std), self.trust_kl
            loss, moved = gaussian_kl_loss(*drawn, advantage, trust_kl=trust, **sums)
            outside = moved > trust
        else:
            dimensions = steps.x_s[0].numel() if self.ratio == "per_dimension" else 1
            clip = CLIPS[self.ratio] if self.clip is None else self.clip
            loss = ppo_loss(log_prob, steps.log_prob, advantage, clip=clip, dimensions=dimensions, **sums)
            outside = ((log_ratio / dimensions).exp() - 1).abs() > clip
        if self.kl == "closed_form" and state.anchors:
            with torch.no_grad():
                others = [steps.law(other) for other in state.references]
            kl = torch.stack([law.kl(other) for other in others]).double()
            loss = loss + steps.scale * (state.weights[:, None] / state.alpha * kl).sum() / len(rows)
        return loss, {"log_ratio": log_ratio, "outside": outside.double()}

    def watch(self, watched: list[dict[str, Tensor]]) -> dict[str, float]:
        """Ratios of the first and last minibatch, and steps outside the region in all."""
        return {
            "ratio_first_pass": watched[0]["log_ratio"].abs().max().item(),
            "clip_fraction": torch.stack([seen["outside"].mean() for seen in watched]).mean().item(),
            "log_ratio_rms": watched[-1]["log_ratio"].square().mean().sqrt().item(),
        }
