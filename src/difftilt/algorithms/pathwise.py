r"""Chains with a graph: reparametrised states, checkpointed step by step.

Each step with a graph is checkpointed, except the last, with which the backward pass begins: its network activations
are recomputed there, with the same noise, so memory grows with the number of steps only by the stored states. Equations
(1) to (3) are those of :mod:`difftilt.algorithms.reward_backprop`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

from difftilt.core.conditions import repeated
from difftilt.core.policy import Policy
from difftilt.types import Bool, Condition, Float, Int, Tensor


def differentiable_rollout(
    policy: Policy,
    n: int,
    rng: torch.Generator,
    references: list[Policy],
    *,
    tau: float,
    cut: Int[Tensor, " B"],
    read: Int[Tensor, " B"] | None = None,
    cond: Condition | None = None,
) -> tuple[Tensor, Float[Tensor, "A B"], Tensor]:
    """Run ``n`` chains with a graph from step ``cut`` of each on, which at step ``read`` falls apart into single steps.

    Returns:
        Finished states (relaxed tokens ``[B, L, V + 1]`` or continuous), the path KLs to each reference, nats, float64,
        and the states before step ``read``, the finished ones where it is not given. Gradient flows through all.
    """
    x_t: Tensor = policy.prior(n, rng)
    seen = x_t
    total = torch.zeros((len(references), n), dtype=torch.float64, device=x_t.device)
    first = int(cut.min())
    step = differentiable_step(policy, rng, references, tau=tau, cond=cond)
    for k in range(policy.steps):
        if read is not None:
            seen, x_t = _where(k <= read, x_t, seen), _where(k < read, x_t, x_t.detach())
        if k < first:
            with torch.no_grad():
                x_t, kl = step(x_t, k)
        else:
            if k == policy.steps - 1:  # its recomputation would save nothing that grows
                x_t, kl = step(x_t, k)
            else:
                x_t, kl = checkpoint(step, x_t, k, use_reentrant=False, preserve_rng_state=False)
            live = k >= cut
            if not live.all():
                x_t, kl = _where(live, x_t, x_t.detach()), torch.where(live, kl, kl.detach())
        total = total + kl
    return x_t, total, x_t if read is None else seen


def _where(rows: Bool[Tensor, " B"], here: Tensor, there: Tensor) -> Tensor:
    """``here`` in some rows, ``there`` in the others, which may differ in shape where no row is of both."""
    return here if rows.all() else torch.where(rows.view(-1, *[1] * (here.ndim - 1)), here, there)


def last_step_again(
    policy: Policy,
    x_0: Tensor,
    times: int,
    rng: torch.Generator,
    references: list[Policy],
    *,
    tau: float,
    cond: Condition | None = None,
) -> tuple[Tensor, Float[Tensor, "A B"]]:
    """The last step ``times`` more from each finished state ``x_0``, noised afresh to its time: equation (2).

    Returns:
        As :func:`differentiable_rollout`; no gradient flows to ``x_0``.
    """
    x_0 = x_0.repeat(times, *[1] * (x_0.ndim - 1))
    x_t = policy.process.corrupt(x_0, policy.grid[-2], rng)
    if policy.fixed is not None:
        x_t = policy.process.clamp(x_t, policy.fixed)
    step = differentiable_step(policy, rng, references, tau=tau, cond=repeated(cond, times))
    return checkpoint(step, x_t, policy.steps - 1, use_reentrant=False, preserve_rng_state=False)


def differentiable_step(
    policy: Policy, rng: torch.Generator, references: list[Policy], *, tau: float, cond: Condition | None
) -> Callable[[Tensor, int], tuple[Tensor, Float[Tensor, "A B"]]]:
    """A function of state and step index that draws the next state, and says the step's KL to each reference.

    Called again with the same arguments, as the backward pass does, it repeats its noise.
    """
    seeds = torch.randint(2**62, (policy.steps,), generator=rng, device=rng.device).tolist()

    def step(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        noise = torch.Generator(x.device)
        noise.manual_seed(seeds[k])
        t, s = policy.grid[k], policy.grid[k + 1]
        law = policy.step(x, t, s, cond)
        spent = [law.kl(other.step(x, t, s, cond)) for other in references]
        kl = torch.stack(spent).double() if spent else torch.zeros((0, len(x)), device=x.device).double()
        return (law.relax(noise, tau=tau) if law.discrete else law.rsample(noise)), kl

    return step
