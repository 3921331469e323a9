r"""Langevin sampling of the tilted density itself, without running the chain to its end.

With the target :math:`\pi \propto p\, e^{r/\alpha}` and a step size ``h``,

.. math::
    y &= x + h \nabla \log \pi(x) + \sqrt{2h}\, \epsilon                                              \qquad (1) \\
    a &= \min\Big( 1, \frac{\pi(y)}{\pi(x)} \frac{ e^{-|x - y - h \nabla \log \pi(y)|^2 / 4h} }
        { e^{-|y - x - h \nabla \log \pi(x)|^2 / 4h} } \Big)                                           \qquad (2)

``kernel="ula"`` takes every step (1). Its ``p`` is the law of *noisy* data at one small time,
:math:`p_t`, whose score the denoiser gives,

.. math:: \nabla \log p_t(x) = ( \alpha_t \hat x_0(x) - x ) / \sigma_t^2                               \qquad (3)

so it aims at :math:`p_t e^{r/\alpha}`, not at (2) of the theory, and misses that by O(h) besides: two biases, both
small where ``t`` and ``h`` are. ``kernel="mala"`` accepts with (2) and leaves :math:`\pi` exactly invariant, but needs
its density, which no denoiser gives: it is defined only with ``log_density``, known in problems with exact answers.

Chains start from the pretrained policy. The reward must be differentiable on states. Tokens have no score.

References:
    Roberts and Tweedie 1996 (ULA, MALA), https://doi.org/10.2307/3318418; Song and Ermon 2019 (Langevin with a learned
    score), https://arxiv.org/abs/1907.05600.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from difftilt.core.algorithm import Weighted
from difftilt.core.gaussian_step import GaussianSteps
from difftilt.core.policy import Policy
from difftilt.core.reward import DifferentiableReward, Reward, score, score_relaxed, under
from difftilt.core.trajectory import sample_states
from difftilt.core.value import Value
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.samplers.steering import check_alpha, check_designs, unweighted
from difftilt.types import Condition, Float, Tensor

KERNELS = ("ula", "mala")
LogDensity = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class MCMC:
    """Settings of Langevin sampling; see the module for the method."""

    alpha: float = 0.1
    """KL temperature, reward units per nat; positive."""
    kernel: str = "ula"
    """``"ula"`` or ``"mala"``."""
    step_size: float = 1e-3
    """``h``, squared units of the state; positive."""
    moves: int = 200
    """Steps (1) of each chain; also gradients of the reward per design."""
    time: float | None = None
    """``t`` of (3), in (0, 1); the last time of the policy's grid before 0 when not given."""
    log_density: LogDensity | None = None
    r""":math:`\log p` of a batch of states, nats, differentiable, up to a constant: in place of (3)."""

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if self.kernel not in KERNELS:
            raise ConfigError(f"expected kernel to be one of {', '.join(KERNELS)}; got '{self.kernel}'; correct it")
        if not self.step_size > 0 or self.moves < 0:
            raise ConfigError(
                f"expected step_size > 0 and moves >= 0; got {self.step_size} and {self.moves}; correct them"
            )
        if self.time is not None and not 0 < self.time < 1:
            raise ConfigError(f"expected a time in (0, 1); got {self.time}; a small one misses less of the law")
        if self.kernel == "mala" and self.log_density is None:
            raise UnsupportedError(
                "expected log_density for mala, whose acceptance needs the density; got none, and a denoiser gives "
                'only its gradient; use kernel="ula", or refine, which is exact without a density'
            )

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
        """``n`` unweighted designs (``-inf`` where infeasible), no estimate of log Z; no value used.

        Raises:
            ConfigError: chains ran away to infinity.
        """
        check_designs(n)
        if not isinstance(policy.process, GaussianSteps):
            raise UnsupportedError(
                f"expected a process with a score, over continuous states; got {type(policy.process).__name__}; use "
                "refine, the Markov chain for any process"
            )
        reward = under(reward, cond)
        if not isinstance(reward, DifferentiableReward):
            raise UnsupportedError(
                f"expected a differentiable reward; got {type(reward).__name__}, a black box without on_probabilities; "
                "use refine, the Markov chain for any reward"
            )
        if paths:
            raise UnsupportedError(
                "expected a sampler that runs the chain; got mcmc, which moves designs and has no paths; use refine"
            )
        x = sample_states(policy, n, rng, cond=cond)
        log_target, drift = self._target(policy, reward, x, cond)
        h = self.step_size
        for _ in range(self.moves):
            noise = torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)
            y = x + h * drift + (2 * h) ** 0.5 * noise
            after, drift_after = self._target(policy, reward, y, cond)
            accept = torch.ones(n, dtype=torch.bool, device=x.device)
            if self.kernel == "mala":
                back, forth = (
                    v.square().flatten(1).sum(1) / (4 * h) for v in (x - y - h * drift_after, y - x - h * drift)
                )
                u = torch.rand(n, generator=rng, device=x.device, dtype=torch.float64)
                accept = log_target.isneginf() | (u.log() < after - log_target + forth - back)
            keep = accept.view(-1, *(1,) * (x.ndim - 1))
            x, drift = y.where(keep, x), drift_after.where(keep, drift)
            log_target = after.where(accept, log_target)
        if not x.isfinite().all():
            raise ConfigError(
                "expected chains that stay finite; got infinite or NaN states with step_size "
                f"{self.step_size}; lower it"
            )
        return Weighted(x, unweighted(score(reward, policy.codec, x).feasible), None)

    def _target(
        self, policy: Policy, reward: DifferentiableReward, x: Tensor, cond: Condition | None
    ) -> tuple[Float[Tensor, " n"], Tensor]:
        r""":math:`\log \pi` (without :math:`\log p` where that is not known) and its gradient, with (3) if need be."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            tilt = score_relaxed(reward, policy.codec.readable(x)).double() / self.alpha
            tilt = tilt.where(~tilt.isnan(), -torch.inf)
            log_target = tilt if self.log_density is None else tilt + self.log_density(x)
            drift = torch.autograd.grad(log_target.sum(), x)[0].nan_to_num(nan=0.0)
        if self.log_density is None:
            drift = drift + self._score(policy, x.detach(), cond)
        return log_target.detach(), drift

    @torch.no_grad()
    def _score(self, policy: Policy, x: Tensor, cond: Condition | None) -> Tensor:
        """Equation (3)."""
        assert isinstance(policy.process, GaussianSteps)
        t = policy.grid[-2] if self.time is None else policy.grid.new_tensor(self.time)
        times = t.expand(len(x))
        alpha_t, sigma_t = policy.process.schedule.scales(t)
        mean = policy.process.denoised(policy.denoiser(x, times, cond), x, times)
        return (alpha_t.item() * mean - x) / sigma_t.item() ** 2
