r"""Uniform diffusion on few letters, enumerated: every design is a state, and every step a matrix.

With :math:`P_k(x, y)` the kernel of step ``k`` and :math:`\mu_0` the prior,

.. math::
    \mu_{k+1} &= \mu_k P_k \qquad
    v_k(x) = \alpha \log \sum_y P_k(x, y)\, e^{v_{k+1}(y)/\alpha}, \quad v_K = r                        \qquad (1) \\
    J(\theta) &= E_\theta[r] - \alpha \sum_k \sum_x \mu_k(x) \sum_y P_k(x, y) \log \frac{P_k}{P_k^{pre}}(x, y)
                                                                                                        \qquad (2)

The class of a step are the products of mixtures :math:`\prod_i \sum_a q^i(a)\, q(x_s^i \mid x_t^i, a)` over letter laws
:math:`q^i`, which cannot hold the soft-optimal kernel; its best J is found by gradient ascent on all letter laws of all
states, backward in time: a lower bound on the maximum, reached by an explicit policy.
"""

from __future__ import annotations

import copy
import math
from functools import cached_property
from typing import Any

import torch
from torch import nn

from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy
from difftilt.core.registry import register
from difftilt.core.reward import Reward, score
from difftilt.core.schedule import uniform_grid
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.problems.exact_value import TableValue, corner_weights, step_of
from difftilt.problems.problem import Histogram, TiltedLaw
from difftilt.problems.tilted import kl_divergence
from difftilt.processes.uniform import Uniform, UniformStep
from difftilt.types import Condition, Float, Int, Tensor

MOST = 4096
"""Designs, at most: kernels are squares of it."""


@register("denoiser", "timed_table")
class TimedTable(nn.Module):
    """One free row of logits for every step, state and position.

    A relaxed input is read by the multilinear extension of the table.

    Args:
        vocabulary: letters ``V``.
        length: positions ``L``.
        grid: times of the chain, from 1 to 0.
    """

    strides: Tensor

    def __init__(self, vocabulary: int, length: int, grid: list[float]) -> None:
        super().__init__()
        self.vocabulary, self.length, self.grid = vocabulary, length, list(grid)
        shape = (len(grid) - 1, vocabulary**length, length, vocabulary)
        self.logits = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("strides", vocabulary ** torch.arange(length - 1, -1, -1), persistent=False)

    @classmethod
    def posterior(cls, joint: Float[Tensor, "*V"], grid: Float[Tensor, " K1"]) -> TimedTable:
        r"""The exact letter laws :math:`q(x_0^i \mid x_t)` under a data law, one axis per position."""
        length, vocabulary = joint.ndim, joint.shape[0]
        denoiser = cls(vocabulary, length, grid.tolist())
        eye = torch.eye(vocabulary, dtype=torch.float64)
        designs = _designs(vocabulary, length)
        letters = torch.nn.functional.one_hot(designs, vocabulary).double().flatten(1)
        for k, t in enumerate(grid[:-1]):
            one = (1 - t) * eye + t / vocabulary  # [x_0, x_t] of a letter
            seen = torch.ones(len(designs), len(designs), dtype=torch.float64)
            for i in range(length):
                seen = seen * one[designs[:, i]][:, designs[:, i]]
            both = (joint.double().flatten()[:, None] * seen).T  # [x_t, x_0]
            law = (both @ letters) / both.sum(1, keepdim=True)
            denoiser.logits.data[k] = law.view(len(designs), length, vocabulary).log()
        return denoiser

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Float[Tensor, "B L V"]:
        """Rows of the table; ``x_t`` is ``[B, L]`` tokens or ``[B, L, V + 1]`` relaxed tokens."""
        step = step_of(t.new_tensor(self.grid[:-1], dtype=torch.float64), t, len(x_t))
        if x_t.ndim == 2:
            return self.logits[step, x_t @ self.strides]
        weight = corner_weights(x_t[..., : self.vocabulary].double())
        return torch.einsum("bn,bnlv->blv", weight, self.logits[step])

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"vocabulary": self.vocabulary, "length": self.length, "grid": self.grid}


def _designs(letters: int, length: int) -> Int[Tensor, "N L"]:
    return torch.cartesian_prod(*[torch.arange(letters)] * length).view(-1, length)


class DenseProblem(TiltedLaw):
    """A policy over uniform diffusion, a reward and a temperature, with exact answers.

    Args:
        pretrained: :math:`p_{pre}`, frozen by the caller.
        reward: scores designs; every one must be feasible.
        alpha: KL temperature, reward units per nat.

    Raises:
        UnsupportedError: another process, too many designs, or infeasible ones.
    """

    def __init__(self, pretrained: Policy, reward: Reward, *, alpha: float) -> None:
        process = pretrained.process
        if not isinstance(process, Uniform) or process.vocabulary ** pretrained.event_shape[0] > MOST:
            raise UnsupportedError(
                f"expected uniform diffusion over at most {MOST} designs; got {type(process).__name__} over "
                f"{pretrained.event_shape}; use a shorter design"
            )
        if not alpha > 0:
            raise ConfigError(f"expected alpha > 0 (reward units per nat); got {alpha}; a small one is nearly greedy")
        self.pretrained, self.reward, self.alpha = pretrained, reward, alpha
        self.letters = process.vocabulary
        self.designs = _designs(process.vocabulary, pretrained.event_shape[0])
        self.table = score(reward, pretrained.codec, self.designs).value
        if self.table.isnan().any():
            raise UnsupportedError("expected a reward for every design; got NaN for some; use a masked problem")
        self.reference = self.kernels(pretrained)

    def kernels(self, policy: Policy) -> list[Float[Tensor, "N N"]]:
        """Log kernels of every step, noisiest first. Gradient flows to the denoiser."""
        found = []
        for t, s in zip(policy.grid[:-1], policy.grid[1:], strict=True):
            law = policy.step(self.designs, t, s)
            assert isinstance(law, UniformStep)
            found.append(self._product(law.log_law))
        return found

    def _product(self, log_law: Float[Tensor, "N L V"]) -> Float[Tensor, "N N"]:
        return sum(log_law[:, i, self.designs[:, i]] for i in range(self.designs.shape[1]))  # ty: ignore

    def law(self, kernels: list[Float[Tensor, "N N"]]) -> Float[Tensor, " N"]:
        """The law of :math:`x_0`, by (1)."""
        return self.marginals(kernels)[-1]

    def marginals(self, kernels: list[Float[Tensor, "N N"]]) -> list[Float[Tensor, " N"]]:
        r""":math:`\mu_k`, noisiest first."""
        found = [torch.full((len(self.designs),), 1 / len(self.designs), dtype=torch.float64)]
        for kernel in kernels:
            found.append(found[-1] @ kernel.exp())
        return found

    @cached_property
    def soft_values(self) -> Float[Tensor, "K1 N"]:
        """:math:`v_k` of (1), reward units, noisiest first."""
        values = [self.table]
        for kernel in reversed(self.reference):
            values.insert(0, self.alpha * (kernel + values[0] / self.alpha).logsumexp(1))
        return torch.stack(values)

    @cached_property
    def pretrained_law(self) -> Float[Tensor, " N"]:
        """:math:`p_{pre}(x_0)`."""
        return self.law(self.reference)

    @cached_property
    def target(self) -> Float[Tensor, " N"]:
        """The soft-optimal kernels run from the fixed prior."""
        values = self.soft_values / self.alpha
        kernels = [
            kernel + after - before[:, None]
            for kernel, before, after in zip(self.reference, values[:-1], values[1:], strict=True)
        ]
        return self.law(kernels)

    @cached_property
    def target_mean_reward(self) -> float:
        """Mean reward under :attr:`target`."""
        return (self.target @ self.table).item()

    @torch.no_grad()
    def kl(self, policy: Policy) -> float:
        """KL of the law of :math:`x_0` under ``policy`` to :attr:`target`, nats."""
        return kl_divergence(self.law(self.kernels(policy)), self.target)

    @torch.no_grad()
    def mean_reward(self, policy: Policy) -> float:
        """Mean reward under ``policy``."""
        return (self.law(self.kernels(policy)) @ self.table).item()

    def objective(self, policy: Policy) -> Float[Tensor, ""]:
        """:math:`J` of (2), reward units. Gradient flows to the denoiser."""
        mine = self.kernels(policy)
        marginals = self.marginals(mine)
        spent = sum(
            before @ (kernel.exp() * (kernel - theirs)).sum(1)
            for before, kernel, theirs in zip(marginals[:-1], mine, self.reference, strict=True)
        )
        return marginals[-1] @ self.table - self.alpha * spent

    def gap(self, policy: Policy) -> float:
        """Path KL to the soft-optimal kernels from the fixed prior, nats."""
        best = self.soft_values[0].mean().item()
        return (best - self.objective(policy).item()) / self.alpha

    @cached_property
    def optimum(self) -> Policy:
        """The best policy of the class that was found."""
        policy = self.tunable()
        table = policy.denoiser
        assert isinstance(table, TimedTable)
        value = self.table
        for k in reversed(range(policy.steps)):
            value = self._ascend(policy, table, k, value)
        return policy.eval().requires_grad_(False)

    def _ascend(self, policy: Policy, table: TimedTable, k: int, after: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Improve step ``k`` of every state for the value after it; returns the value before it."""
        logits = table.logits.data[k].clone().requires_grad_(True)
        t, s = policy.grid[k], policy.grid[k + 1]

        def gain() -> Float[Tensor, " N"]:
            kernel = self._product(UniformStep(logits, self.designs, 1 - t, 1 - s).log_law)
            return (kernel.exp() * (after - self.alpha * (kernel - self.reference[k]))).sum(1)

        optimiser = torch.optim.LBFGS([logits], max_iter=60, line_search_fn="strong_wolfe", tolerance_change=1e-12)

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = -gain().sum() / self.alpha
            loss.backward()
            return loss

        optimiser.step(closure)
        table.logits.data[k] = logits.detach()
        with torch.no_grad():
            return gain()

    @cached_property
    def class_kl(self) -> float:
        """KL of the class optimum to :attr:`target`, nats."""
        return self.kl(self.optimum)

    def value(self) -> TableValue:
        """:attr:`soft_values` to steer by."""
        free = torch.arange(self.designs.shape[1])
        spread = torch.full((len(self.soft_values), (self.letters + 1) ** len(free)), math.nan, dtype=torch.float64)
        spread[:, self.designs @ (self.letters + 1) ** free.flip(0)] = self.soft_values
        return TableValue(self.pretrained.grid, spread, free, self.letters)

    def tunable(self) -> Policy:
        """A copy of the pretrained policy, with gradients."""
        return copy.deepcopy(self.pretrained).requires_grad_(True)

    def law_of(self, x_0: Tensor, log_weight: Float[Tensor, " N"], *, fixed_prior: bool = False) -> Histogram:
        """Finished states against :attr:`tilted`, or :attr:`target` with ``fixed_prior``, design by design."""
        place = self.letters ** torch.arange(x_0.shape[1] - 1, -1, -1)
        return Histogram.count(x_0 @ place, log_weight, self.target if fixed_prior else self.tilted)


def uniform_problem(
    joint: Float[Tensor, "*V"], reward: Reward, codec: TokenCodec, *, steps: int, alpha: float
) -> DenseProblem:
    """The exact posterior of a data law, run in ``steps``."""
    grid = uniform_grid(steps)
    policy = Policy(TimedTable.posterior(joint, grid), Uniform(joint.shape[0]), codec, (joint.ndim,), grid=grid)
    return DenseProblem(policy.frozen_copy(), reward, alpha=alpha)
