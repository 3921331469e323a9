r"""Sequential Monte Carlo: weighted particles, resampled when their weights grow uneven.

A twist :math:`\psi_t(x) > 0` guesses :math:`e^{v_t(x)/\alpha}`, the weight still to come; at the end it is the reward
itself, :math:`\psi_0 = e^{r/\alpha}` (0 where infeasible). Particles of one population start from the prior with weight
:math:`\psi_1(x_1)`, and each step multiplies it by

.. math:: G(x_t, x_s) = \frac{\psi_s(x_s)}{\psi_t(x_t)} \frac{p_{pre}(x_s \mid x_t)}{q(x_s \mid x_t)}, \qquad
    x_s \sim q(\cdot \mid x_t)                                                                         \qquad (1)

Where the effective sample size of a population of N falls below a fraction of N, it is resampled (systematically), and
every copy goes on with the mean weight. So weights carry everything, whenever and whether one resamples, and

.. math:: \hat Z = \frac1N \sum_i w_i, \qquad
    E\Big[ \frac1N \sum_i w_i f(x_0^i) \Big] = Z \, E_{p^*}[f]                                         \qquad (2)

for any twist, any proposal and any N: the law is (2) of the theory, tilted prior included. The unbiased number is
:math:`\hat Z`, not its log. A twist may be random if each state's is drawn once, as here.

- ``kind="bootstrap"``: :math:`\psi_t = 1` before the end: plain importance sampling, as nothing is known before.
- ``kind="twisted"``: :math:`\log \psi_t = \lambda_t v_t(x_t)/\alpha`, :math:`\lambda_t = (1 - t)^{\text{tempering}}`: a
  positive ``tempering`` trusts values less where there is much noise, and errors of early ones, which ``1/alpha``
  magnifies, kill fewer ancestors. A value of ``-inf`` says that nothing feasible
  can follow; one that says so wrongly biases (2). The drawn estimates of this library never say so before the end.

Copies of a particle never separate at steps without noise; (2) holds there too, at a larger variance.

With exact values, ``tempering=0`` and their own soft-optimal kernel as ``q``, (1) is 1 at every step. N = 1 samples
``q``.

Populations are made of rows with equal conditions only; repeat a row of ``cond`` to give it a population. Weights of
different conditions are not comparable, and log Z is then not given.

Differs from common public code: weights are kept between resamplings and returned; no population spans conditions;
everything stays in logs. References:
    Wu et al. 2023 (TDS), https://arxiv.org/abs/2306.17775; Singhal et al. 2025 (FK steering),
    https://arxiv.org/abs/2501.06848; Kim et al. 2025 (DAS, tempering), https://arxiv.org/abs/2501.05803; Naesseth,
    Lindsten, Schön 2019, https://arxiv.org/abs/1903.04797.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from difftilt.core.algorithm import Weighted
from difftilt.core.conditions import numbers, rows_of
from difftilt.core.policy import Policy
from difftilt.core.reward import Reward, under
from difftilt.core.stats import effective_sample_size, log_mean_exp
from difftilt.core.value import Value
from difftilt.errors import ConfigError
from difftilt.metrics.log_z import systematic
from difftilt.samplers.steering import ROWS, Move, check_alpha, check_designs, log_design_weight
from difftilt.types import Condition, Float, Int, Tensor
from difftilt.values.plug_in import default_value

KINDS = ("twisted", "bootstrap")


@dataclass(frozen=True, kw_only=True)
class SMC:
    """Settings of sequential Monte Carlo; see the module for the method."""

    alpha: float = 0.1
    """KL temperature, reward units per nat; positive."""
    particles: int = 64
    """N: size of a population. ``n`` designs are so many populations, the last of a condition being smaller."""
    kind: str = "twisted"
    """``"twisted"`` or ``"bootstrap"``."""
    ess_fraction: float = 0.5
    """Resample where ESS < fraction * N, in [0, 1]; 0 never does."""
    tempering: float = 2.0
    """Exponent of the twist's schedule, 0 or more; 0 trusts values from the start, as exact ones deserve."""
    proposal: Policy | None = None
    """``q``; the pretrained policy when not given. A guided policy makes this TDS."""

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if self.kind not in KINDS:
            raise ConfigError(f"expected kind to be one of {', '.join(KINDS)}; got '{self.kind}'; correct it")
        if self.particles < 1 or not 0 <= self.ess_fraction <= 1 or not 0 <= self.tempering < math.inf:
            raise ConfigError(
                "expected particles >= 1, ess_fraction in [0, 1] and tempering >= 0, finite; got "
                f"{self.particles}, {self.ess_fraction} and {self.tempering}; correct them"
            )

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
        """``n`` weighted designs and the log of (2), over all populations of the one condition."""
        check_designs(n)
        if value is None and self.kind == "twisted":
            value = default_value(policy, reward, rng, alpha=self.alpha, cond=cond)
        condition = numbers(cond, n, policy.device)
        populations = [
            rows for label in condition.unique() for rows in (condition == label).nonzero()[:, 0].split(self.particles)
        ]
        x_1 = policy.prior(n, rng)
        log_weight = torch.zeros(n, dtype=torch.float64, device=policy.device)
        histories = []
        for part in _batches(populations):
            rows = torch.cat(part)
            sizes = [len(population) for population in part]
            own = rows_of(cond, rows)
            history, log_weight[rows] = self._run(policy, under(reward, own), x_1[rows], sizes, rng, own, value, paths)
            histories.append(history if paths else history[-1:])
        states = torch.cat(histories, dim=1)[:, torch.cat(populations).argsort()]
        one_condition = len(condition.unique()) == 1
        log_z = log_mean_exp(log_weight).item() if one_condition else None
        return Weighted(states[-1], log_weight, log_z, states if paths else None)

    def _run(
        self,
        policy: Policy,
        reward: Reward,
        x_t: Tensor,
        sizes: Sequence[int],
        rng: torch.Generator,
        cond: Condition | None,
        value: Value | None,
        paths: bool,
    ) -> tuple[Tensor, Float[Tensor, " N"]]:
        """Populations of ``sizes``, one after the other, from ``x_t`` at ``t = 1`` to the end, with their ancestors."""
        log_twist = self._log_twist(x_t, policy.grid[0], cond, value)
        log_weight, states = log_twist, [x_t]
        for t, s in zip(policy.grid[:-1], policy.grid[1:], strict=True):
            parents, log_weight = resample(log_weight, sizes, self.ess_fraction, rng)
            x_t, log_twist = x_t[parents], log_twist[parents]  # equal conditions: cond stays in place
            states = [x[parents] for x in states] if paths else []
            move = Move.propose(policy, self.proposal, x_t, t, s, cond)
            x_t = move.law.sample(rng)
            if s > 0:
                after = self._log_twist(x_t, s, cond, value)
            else:
                after = log_design_weight(policy, reward, x_t, alpha=self.alpha)
            grown = log_weight + after - log_twist + move.log_correction(x_t)
            log_weight = grown.where(log_weight > -torch.inf, -torch.inf)  # once 0, always 0
            log_twist = after
            states.append(x_t)
        return torch.stack(states), log_weight

    def _log_twist(self, x_t: Tensor, t: Tensor, cond: Condition | None, value: Value | None) -> Float[Tensor, " N"]:
        trust = (1 - t.item()) ** self.tempering
        if self.kind == "bootstrap" or value is None or trust == 0:
            return torch.zeros(len(x_t), dtype=torch.float64, device=x_t.device)
        return trust * value(x_t, t, cond) / self.alpha


def resample(
    log_weight: Float[Tensor, " N"], sizes: Sequence[int], ess_fraction: float, rng: torch.Generator
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """Parents and new log weights; populations of ``sizes`` never mix, even ones keep themselves and their weights."""
    parents, log_weight = torch.arange(len(log_weight), device=log_weight.device), log_weight.clone()
    start = 0
    for size in sizes:
        own = log_weight[start : start + size]
        if 0 < effective_sample_size(own).item() < ess_fraction * size:
            parents[start : start + size] = start + systematic(own, rng)
            log_weight[start : start + size] = log_mean_exp(own)
        start += size
    return parents, log_weight


def _batches(populations: Sequence[Tensor]) -> list[list[Tensor]]:
    """Neighbouring populations, together up to :data:`ROWS` rows (one alone may have more)."""
    batches, rows = [[]], 0
    for population in populations:
        if batches[-1] and rows + len(population) > ROWS:
            batches.append([])
            rows = 0
        batches[-1].append(population)
        rows += len(population)
    return batches
