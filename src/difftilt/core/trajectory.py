r"""Rollouts: running the chain, and what one run leaves behind.

For a rollout of ``K`` steps and ``B`` chains, with :math:`l_k = \log p_\theta(x_s|x_t) - \log p_{ref}(x_s|x_t)`:

.. math:: \log p_\theta(\text{path}) - \log p_{ref}(\text{path}) = \sum_{k=0}^{K-1} l_k            \qquad (1)

The initial law is the same for both, so it does not enter. Per-step differences are taken first and then summed, in
float64: sums of large log-probabilities would lose the digits that matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from difftilt.core.conditions import rows_of
from difftilt.core.gaussian_step import GaussianStep
from difftilt.core.policy import Policy
from difftilt.core.transition import Transition
from difftilt.errors import ShapeError
from difftilt.types import Bool, Condition, Float, Int, Tensor


@dataclass(frozen=True)
class Trajectory:
    """A batch of finished chains, noisiest state first."""

    states: Tensor
    """``[K + 1, B, *event]``: :math:`x_{t_0}, \\dots, x_{t_K}`."""
    log_prob: Float[Tensor, "K B"]
    """Behaviour log-probability of each step as taken, nats, float64; 0 on steps without density."""
    reference_log_prob: Float[Tensor, "A K B"]
    """The same steps under each reference policy, nats, float64."""
    times: Float[Tensor, " K1"]
    """The grid visited."""
    cond: Condition | None = None
    """Conditions, one row per chain."""
    kl: Float[Tensor, "A K B"] | None = None
    """Closed-form KL of each step to each reference policy, nats, float64, where asked for."""
    silent: Bool[Tensor, " K"] | None = None
    """Which steps have no density; none where not said."""
    means: Tensor | None = None
    """``[K, B, *event]``: means of the behaviour's Gaussian steps, where asked for."""

    @property
    def x_0(self) -> Tensor:
        """Finished states."""
        return self.states[-1]

    @property
    def steps(self) -> int:
        """Number of steps ``K``."""
        return self.log_prob.shape[0]

    @property
    def batch(self) -> int:
        """Number of chains ``B``."""
        return self.log_prob.shape[1]

    @property
    def noisy(self) -> Int[Tensor, " N"]:
        """Numbers of the steps that have a density, the noisiest first: a policy learns from those alone."""
        every = torch.arange(self.steps, device=self.log_prob.device)
        return every if self.silent is None else every[~self.silent]

    @property
    def log_ratio(self) -> Float[Tensor, "A K B"]:
        """:math:`l_k` against each reference, nats."""
        return self.log_prob - self.reference_log_prob


def step_log_prob(
    policy: Policy, x_t: Tensor, x_s: Tensor, t: Tensor, s: Tensor, cond: Condition | None = None
) -> Float[Tensor, " B"]:
    """Log-probability of a step, nats; exactly 0 for steps without density. Gradient flows to the denoiser."""
    return log_prob_of(policy.step(x_t, t, s, cond), x_s)


def log_prob_of(law: Transition, x_s: Tensor) -> Float[Tensor, " B"]:
    """Log-probability of a step's outcome, nats; exactly 0 for steps without density."""
    return law.log_prob(x_s) if law.has_density else torch.zeros(x_s.shape[0], device=x_s.device)


@torch.no_grad()
def rollout(
    policy: Policy,
    n: int,
    rng: torch.Generator,
    *,
    references: Sequence[Policy] = (),
    cond: Condition | None = None,
    with_kl: bool = False,
    with_means: bool = False,
) -> Trajectory:
    """Run ``n`` chains and keep every state and log-probability. No gradient flows.

    Args:
        policy: the behaviour, run as it is (put it in eval mode first if it has dropout).
        n: number of chains ``B``.
        rng: noise source, on the policy's device.
        references: policies under which the same steps are scored; not asked at steps without noise that no tuning
            moves, where a reference is the same or its KL infinite.
        cond: conditions with batch axis ``n``.
        with_kl: keep the closed-form KL of each step to the references too.
        with_means: keep the means of the steps, which must be Gaussian.
    """
    step, others_step = policy.stepping(), [other.stepping() for other in references]
    x_t = policy.prior(n, rng)
    states, log_prob, reference, kl, means, silent = [x_t], [], [], [], [], []
    nothing = torch.zeros(n, device=x_t.device)
    for t, s in zip(policy.grid[:-1], policy.grid[1:], strict=True):
        law = step(x_t, t, s, cond)
        x_s = law.sample(rng)
        silent.append(not law.has_density)
        log_prob.append(nothing if silent[-1] else law.log_prob(x_s))
        settled = silent[-1] and not policy.tuned_at(t)
        others = [] if settled else [other(x_t, t, s, cond) for other in others_step]
        reference.append([nothing for _ in references] if settled else [log_prob_of(other, x_s) for other in others])
        if with_kl:
            kl.append([nothing for _ in references] if settled else [law.kl(other) for other in others])
        if with_means:
            assert isinstance(law, GaussianStep)
            means.append(law.mean)
        states.append(x_s)
        x_t = x_s

    def by_reference(rows: list[list[Tensor]]) -> Float[Tensor, "A K B"]:
        stacked = [torch.stack([row[a] for row in rows]) for a in range(len(references))]
        nobody = torch.zeros((0, policy.steps, n), device=x_t.device)
        return (torch.stack(stacked) if stacked else nobody).double()

    return Trajectory(
        states=torch.stack(states),
        log_prob=torch.stack(log_prob).double(),
        reference_log_prob=by_reference(reference),
        times=policy.grid,
        cond=cond,
        kl=by_reference(kl) if with_kl else None,
        silent=torch.tensor(silent, device=x_t.device),
        means=torch.stack(means) if with_means else None,
    )


@torch.no_grad()
def sample_states(
    policy: Policy, n: int, rng: torch.Generator, *, batch: int = 256, cond: Condition | None = None
) -> Tensor:
    """``n`` finished states, ``batch`` chains at a time, keeping nothing else.

    Raises:
        ShapeError: not one row of each condition per chain.
    """
    for name, rows in (cond or {}).items():
        if len(rows) != n:
            raise ShapeError(f"expected {n} rows of the condition '{name}', one per design; got {len(rows)}; pass them")
    finished = []
    for start in range(0, n, batch):
        size = min(batch, n - start)
        part = rows_of(cond, slice(start, start + size))
        x_t, step = policy.prior(size, rng), policy.stepping()
        for t, s in zip(policy.grid[:-1], policy.grid[1:], strict=True):
            x_t = step(x_t, t, s, part).sample(rng)
        finished.append(x_t)
    return torch.cat(finished)
