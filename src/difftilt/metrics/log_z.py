r"""Estimates of log Z that do not look at the tuned policy.

Where the tilt is mild, plain samples of p_pre do: :math:`\hat Z = \frac1N \sum_n e^{r_n / \alpha}`, unbiased, at one
reward call each. Where their effective sample size is too small, tempered sequential Monte Carlo on paths of p_pre
takes over. Its particles are whole paths. Their law moves from p_pre to the tilted path law through

.. math::

    \pi_\beta(\text{path}) \propto p_{pre}(\text{path}) \exp(\beta r(x_0) / \alpha), \quad 0 = \beta_0 < \dots <
    \beta_T = 1

At each stage weights :math:`e^{(\beta' - \beta) r / \alpha}` are averaged into

.. math:: \hat Z = \prod_i \frac1N \sum_n e^{(\beta_i - \beta_{i-1}) r_n / \alpha}                       \qquad (1)

paths are resampled, and each is moved by restarts that leave :math:`\pi_\beta` exactly invariant: keep the path up to a
random step, run the rest again under p_pre, accept with probability :math:`\min(1, e^{\beta (r' - r) / \alpha})`. The
next beta keeps the effective sample size at half of N (this choice gives up exact unbiasedness). Particles are split
into independent groups, whose spread gives the standard error.

Infeasible designs have weight exactly 0 from the first stage on: (1) then starts with log P_pre(F). A group without
any feasible path estimates Z by exactly 0; the others go on without it.

A relative error of Z above :data:`MOST` says little more than that what carries Z was hardly seen. The error is then
unknown, and infinite.

References:
    Del Moral, Doucet, Jasra 2006, https://doi.org/10.1111/j.1467-9868.2006.00553.x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from difftilt.core.policy import Policy
from difftilt.core.reward import Reward, score
from difftilt.core.stats import effective_sample_size, log_mean_exp
from difftilt.core.trajectory import rollout, sample_states
from difftilt.types import Condition, Float, Int, Tensor

GROUPS = 16
MOST = 0.5
"""The largest standard error of log Z that is stated, nats."""


@dataclass(frozen=True)
class LogZ:
    """An estimate of log Z with what it cost."""

    value: float
    """log Z, nats; ``-inf`` if no feasible design was seen."""
    error: float
    """Standard error, nats; infinite where it is not known, see :func:`stated`."""
    ess: float
    """Independent samples that would give the same relative error of Z."""
    oracle_calls: int
    """Designs scored."""
    network_evaluations: int
    """Denoiser passes, counted per design and step."""


def log_path_weight(
    reward: Float[Tensor, " B"], path_log_ratio: Float[Tensor, " B"], *, alpha: float
) -> Float[Tensor, " B"]:
    r""":math:`\log w = r / \alpha - \sum_k l_k`, nats; ``-inf`` where infeasible (NaN reward)."""
    return torch.where(reward.isnan(), -torch.inf, reward / alpha - path_log_ratio)


def stated(error: float) -> float:
    """A standard error of log Z, nats, as it may be told: infinite above :data:`MOST`; NaN stays NaN."""
    return math.inf if error > MOST else error


def from_samples(log_weight: Float[Tensor, " N"], *, oracle_calls: int = 0, network_evaluations: int = 0) -> LogZ:
    """Plain importance sampling: log mean weight, delta-method error as :func:`stated`, effective sample size."""
    n, ess = log_weight.shape[0], effective_sample_size(log_weight).item()
    error = math.sqrt(max(0.0, n / ess - 1) / n) if ess > 0 else math.inf
    return LogZ(log_mean_exp(log_weight).item(), stated(error), ess, oracle_calls, network_evaluations)


def independent_log_z(
    policy: Policy,
    reward: Reward,
    rng: torch.Generator,
    *,
    alpha: float,
    samples: int = 8192,
    enough: float = 100.0,
) -> LogZ:
    """Log Z from plain samples of ``policy``, or by tempering where these are worth too little.

    Args:
        policy: p_pre.
        reward: scored on every sample.
        rng: noise source.
        alpha: KL temperature, reward units per nat.
        samples: plain samples; the tempered estimate takes an eighth as many particles.
        enough: effective sample size at which plain samples will do.
    """
    x_0 = sample_states(policy, samples, rng)
    value = score(reward, policy.codec, x_0).value
    log_weight = log_path_weight(value, torch.zeros_like(value), alpha=alpha)
    plain = from_samples(log_weight, oracle_calls=samples, network_evaluations=samples * policy.steps)
    particles = samples // 8 // GROUPS * GROUPS
    if plain.ess >= enough or not particles:
        return plain
    tempered = tempered_log_z(policy, reward, rng, alpha=alpha, particles=particles)
    best = max(plain, tempered, key=lambda estimate: estimate.ess)
    return replace(
        best,
        oracle_calls=plain.oracle_calls + tempered.oracle_calls,
        network_evaluations=plain.network_evaluations + tempered.network_evaluations,
    )


def tempered_log_z(
    policy: Policy,
    reward: Reward,
    rng: torch.Generator,
    *,
    alpha: float,
    particles: int = 1024,
    groups: int = GROUPS,
    moves: int = 6,
    ess_fraction: float = 0.5,
) -> LogZ:
    """Equation (1) over ``groups`` independent groups; log of their mean.

    Args:
        policy: p_pre.
        reward: scored on every proposed design.
        rng: noise source.
        alpha: KL temperature, reward units per nat.
        particles: paths in all.
        groups: independent groups, for the standard error; at least 2.
        moves: restarts of each path at each stage.
        ess_fraction: effective sample size, as a share of the particles, that the choice of the next beta keeps.
    """
    path = rollout(policy, particles, rng)
    states = path.states
    value = score(reward, policy.codec, states[-1]).value
    calls, evaluations, steps = particles, particles * policy.steps, policy.steps
    log_z = torch.zeros(groups, dtype=torch.float64, device=value.device)
    beta, pending = 0.0, torch.where(value.isnan(), -torch.inf, 0.0)  # the weights not yet used for resampling
    if torch.isneginf(pending).all():
        return LogZ(-math.inf, math.inf, 0.0, calls, evaluations)
    while True:
        grow = _next_beta(value / alpha, pending, beta, ess_fraction)
        log_weight = pending + (grow - beta) * torch.nan_to_num(value / alpha, nan=0.0)
        beta, by_group = grow, log_weight.view(groups, -1)
        log_z += torch.stack([log_mean_exp(row) for row in by_group])
        if beta >= 1:
            break
        parents = torch.arange(particles, device=value.device).view(groups, -1)
        for g in range(groups):
            if log_z[g] > -torch.inf:
                parents[g] = parents[g][systematic(by_group[g], rng)]
        states, value = states[:, parents.flatten()], value[parents.flatten()]
        pending = log_z.where(log_z.isneginf(), 0.0).repeat_interleave(particles // groups)  # weight 0 stays so
        for _ in range(moves):
            first = restart_point(steps, rng)
            value = restart(policy, reward, states, value, first, beta / alpha, rng)
            calls, evaluations = calls + particles, evaluations + particles * (steps - first)
    spread = (log_z - log_mean_exp(log_z)).exp()
    error = (spread.std() / math.sqrt(groups)).item()
    ess = 1 / error**2 if error > 0 else math.inf
    return LogZ(log_mean_exp(log_z).item(), stated(error), ess, calls, evaluations)


def _next_beta(energy: Float[Tensor, " N"], pending: Float[Tensor, " N"], beta: float, fraction: float) -> float:
    """The largest next beta whose weights keep ``fraction`` of the effective sample size, by bisection."""
    energy = torch.nan_to_num(energy, nan=0.0)
    target = fraction * effective_sample_size(pending).item()

    def enough(candidate: float) -> bool:
        return effective_sample_size(pending + (candidate - beta) * energy).item() >= target

    if enough(1.0):
        return 1.0
    low, high = beta, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    return max(low, beta + 1e-9)


def restart_point(steps: int, rng: torch.Generator) -> int:
    """A step to restart from; what is left is log-uniform: short restarts are cheap and accepted often."""
    u = torch.rand((), generator=rng, device=rng.device).item()
    return steps - max(1, min(steps, round(math.exp(u * math.log(steps + 0.5)))))


@torch.no_grad()
def restart(
    policy: Policy,
    reward: Reward,
    states: Tensor,
    value: Float[Tensor, " N"],
    first: int,
    tilt: float,
    rng: torch.Generator,
    *,
    cond: Condition | None = None,
) -> Float[Tensor, " N"]:
    r"""One move that leaves :math:`p_{pre}(\text{path})\, 1_F\, e^{\text{tilt} \cdot r}` exactly invariant.

    Every path is run again from its own stored state at step ``first`` (from a fresh :math:`x_1` at 0) and accepted
    with probability :math:`\min(1, e^{\text{tilt} (r' - r)})`; one that has no feasible design yet accepts anything.

    Args:
        policy: p_pre.
        reward: scored on every proposed design.
        states: ``[K + 1, N, *event]``; accepted paths are written into it.
        value: reward of each path's design; NaN where infeasible.
        first: step index, 0 to K - 1.
        tilt: nats per reward unit, positive.
        rng: noise source.
        cond: conditions, one row per path.

    Returns:
        The rewards after the move; NaN where still infeasible.
    """
    x = states[first] if first else policy.prior(states.shape[1], rng)
    fresh = [x]
    for k in range(first, policy.steps):
        x = policy.step(x, policy.grid[k], policy.grid[k + 1], cond).sample(rng)
        fresh.append(x)
    proposed = score(reward, policy.codec, x).value
    u = torch.rand(value.shape, generator=rng, device=value.device, dtype=torch.float64)
    accept = value.isnan() | (u.log() < tilt * (proposed - value))  # False where only the proposal is infeasible
    states[first:, accept] = torch.stack(fresh)[:, accept]
    return torch.where(accept, proposed, value)


def systematic(log_weight: Float[Tensor, " N"], rng: torch.Generator) -> Int[Tensor, " N"]:
    """Systematic resampling: ``N`` parents, each expected in proportion to its weight."""
    n = log_weight.shape[0]
    edges = log_weight.softmax(0).cumsum(0)
    u = (torch.rand((), generator=rng, device=rng.device, dtype=torch.float64) + torch.arange(n, device=rng.device)) / n
    return torch.searchsorted(edges, u).clamp(max=n - 1)
