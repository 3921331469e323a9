r"""Exact answers for any policy on the line, by quadrature: one number per state, Gaussian steps, any denoiser.

On a grid of ``n`` states :math:`x_i`, spaced :math:`\Delta`, step ``k`` is the matrix

.. math:: P_k[i, j] = N(x_j;\; \mu_k(x_i),\; \sigma_k^2)\, \Delta                                        \qquad (1)

and marginals, soft values and objectives are products with it:

.. math::
    p_{k+1} &= p_k P_k, \quad p_0 = N(0, \sigma_1^2)                                                  \qquad (2) \\
    e^{v_k/\alpha} &= P_k\, e^{v_{k+1}/\alpha}, \quad v_K = r                                         \qquad (3) \\
    p^*_{fixed} &= \left( p_0\, e^{-v_1/\alpha} \right) P_0 \cdots P_{K-1}\, e^{r/\alpha}             \qquad (4) \\
    W_k(x) &= \max_m \; E_{N(m, \sigma_k^2)} W_{k+1} - \frac{\alpha (m - \mu_k(x))^2}{2 \sigma_k^2},
        \quad W_K = r                                                                                 \qquad (5)

(4) is the law of the soft-optimal kernels run from the fixed prior; (5) is the class optimum over step means, found
on the grid and polished by Newton steps on :math:`m = \mu + \sigma^2 G'(m) / \alpha`, :math:`G(m) = E W`.

**Accuracy.** The rule of equal weights converges faster than any power of :math:`\Delta / \sigma`: its error is below
1e-12 for :math:`\Delta \le \sigma_{least} / 1.5`, as here, and closed forms for one Gaussian agree to 1e-10. What
leaves the grid is lost, and told. A network in float32 limits its own law to about 1e-6.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import cast

import torch

from difftilt.core.gaussian_step import GaussianStep
from difftilt.core.policy import Policy
from difftilt.core.reward import DifferentiableReward, Reward, score
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.problems.exact_value import FunctionValue
from difftilt.problems.problem import Histogram
from difftilt.processes.gaussian import Gaussian
from difftilt.types import Float, Tensor

LOST = 1e-6  # mass that may leave the grid before a law counts as not on it


@dataclass(frozen=True)
class Kernels:
    """The steps of a policy on a grid of states."""

    mean: Float[Tensor, "K n"]
    """Mean of the next state."""
    std: Float[Tensor, " K"]
    matrix: Float[Tensor, "K n n"]
    """Equation (1); rows sum to 1 but for what leaves the grid."""


class LineProblem:
    """A pretrained policy on the line, a reward and a temperature (:class:`~difftilt.problems.problem.Problem`).

    Args:
        pretrained: :math:`p_{pre}`, over one number, every step with noise.
        reward: scores designs (vectors of one number).
        alpha: KL temperature, reward units per nat.
        start: where fine-tuning starts, a policy with the law of ``pretrained``; by default a copy of it.
        reach: the grid covers ``[-reach, reach]``, in units of the state.

    Attributes:
        x: the grid.
        table: reward on the grid.

    Raises:
        ConfigError: ``alpha <= 0``.
        UnsupportedError: not a Gaussian chain on the line, a step without noise, or a law that leaves the grid.
    """

    def __init__(
        self, pretrained: Policy, reward: Reward, *, alpha: float, start: Policy | None = None, reach: float = 8.0
    ) -> None:
        if not alpha > 0:
            raise ConfigError(f"expected alpha > 0 (reward units per nat); got {alpha}; a small one is nearly greedy")
        process = pretrained.process
        if not isinstance(process, Gaussian) or pretrained.event_shape != (1,):
            raise UnsupportedError(
                f"expected a Gaussian process over one number; got {type(process).__name__} over "
                f"{pretrained.event_shape}; use a problem of its own kind"
            )
        self.pretrained, self.reward, self.alpha, self.start = pretrained, reward, alpha, start
        self.prior_std = process.prior_std
        stds = [self._law(pretrained, torch.zeros(1, 1), k).std.item() for k in range(pretrained.steps)]
        if min(stds) == 0:
            raise UnsupportedError(
                f"expected noise at every step; got none at step {stds.index(0)}; set sigma_min > 0 in the process"
            )
        half = math.ceil(1.5 * reach / min(stds))
        self.x = torch.arange(-half, half + 1, dtype=torch.float64) * (reach / half)
        self.width = reach / half
        self.table = score(reward, pretrained.codec, self.x[:, None]).value
        if not self.table.isfinite().all():
            raise UnsupportedError("expected a reward everywhere on the line; got NaN; use an enumerated chain")
        self.reference = self.kernels(pretrained)
        lost = 1 - self.pretrained_law.sum().item()
        if lost > LOST:
            raise UnsupportedError(
                f"expected the pretrained law within +-{reach:g}; got {lost:.1g} of it outside; raise reach"
            )

    def _law(self, policy: Policy, x: Tensor, k: int) -> GaussianStep:
        return cast(GaussianStep, policy.step(x, policy.grid[k], policy.grid[k + 1]))

    @torch.no_grad()
    def kernels(self, policy: Policy) -> Kernels:
        """Equation (1)."""
        laws = [self._law(policy, self.x[:, None], k) for k in range(policy.steps)]
        return self._kernels(torch.stack([law.mean[:, 0] for law in laws]), torch.stack([law.std[0] for law in laws]))

    def _kernels(self, mean: Float[Tensor, "K n"], std: Float[Tensor, " K"]) -> Kernels:
        return Kernels(mean, std, torch.stack([self._normal(m, s) for m, s in zip(mean, std, strict=True)]))

    def _normal(self, mean: Float[Tensor, " m"], std: Tensor) -> Float[Tensor, "m n"]:
        z = (self.x - mean[:, None]) / std
        return torch.exp(-0.5 * z**2) * (self.width / math.sqrt(2 * math.pi) / std)

    @cached_property
    def prior(self) -> Float[Tensor, " n"]:
        """Law of :math:`x_1` on the grid."""
        return self._normal(torch.zeros_like(self.x[:1]), torch.tensor(self.prior_std, dtype=torch.float64))[0]

    def law(self, kernels: Kernels, first: Float[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """Equation (2): probabilities of :math:`x_0` on the grid, from ``first``, by default the prior."""
        law = self.prior if first is None else first
        for matrix in kernels.matrix:
            law = law @ matrix
        return law

    @cached_property
    def pretrained_law(self) -> Float[Tensor, " n"]:
        """Law of :math:`x_0` under the pretrained policy."""
        return self.law(self.reference)

    @cached_property
    def _log_weight(self) -> Float[Tensor, " n"]:
        return self.pretrained_law.log() + self.table / self.alpha

    @cached_property
    def log_z(self) -> float:
        """Log of the normaliser of the tilted law, nats."""
        return self._log_weight.logsumexp(0).item()

    @cached_property
    def tilted(self) -> Float[Tensor, " n"]:
        """The tilted law on the grid."""
        return self._log_weight.softmax(0)

    @cached_property
    def soft_values(self) -> Float[Tensor, "K1 n"]:
        """Equation (3), reward units, noisiest time first."""
        values = [self.table]
        for matrix in self.reference.matrix.flip(0):
            values.insert(0, self.alpha * (matrix.log() + values[0] / self.alpha).logsumexp(1))
        return torch.stack(values)

    def value(self) -> FunctionValue:
        """(3) at any state, by the quadrature of the step from there; differentiable if the reward is."""
        steps = [partial(self._value_before, k) for k in range(self.pretrained.steps)]
        return FunctionValue(self.pretrained.grid, [*steps, self._value_at_the_end])

    def _value_before(self, k: int, x_t: Float[Tensor, "B d"]) -> Float[Tensor, " B"]:
        law = self._law(self.pretrained, x_t.double(), k)
        log_kernel = -0.5 * ((self.x - law.mean) / law.std[0]) ** 2 - (law.std[0] / self.width).log()
        log_mean = (log_kernel + self.soft_values[k + 1] / self.alpha).logsumexp(1) - 0.5 * math.log(2 * math.pi)
        return self.alpha * log_mean

    def _value_at_the_end(self, x_0: Float[Tensor, "B d"]) -> Float[Tensor, " B"]:
        if isinstance(self.reward, DifferentiableReward):
            return self.reward.on_probabilities(x_0)
        return score(self.reward, self.pretrained.codec, x_0).value

    @cached_property
    def target(self) -> Float[Tensor, " n"]:
        """Equation (4) on the grid."""
        centre = self.soft_values[0] @ self.prior  # takes the size out of both exponents
        first = self.prior * ((centre - self.soft_values[0]) / self.alpha).exp()
        return self.law(self.reference, first) * ((self.table - centre) / self.alpha).exp()

    @cached_property
    def target_mean_reward(self) -> float:
        """Mean reward under (4)."""
        return (self.target @ self.table).item()

    def mean_reward(self, policy: Policy) -> float:
        """Mean reward under ``policy``, over what stays on the grid."""
        law = self.law(self.kernels(policy))
        return (law @ self.table / law.sum()).item()

    def kl(self, policy: Policy) -> float:
        """KL of the law of :math:`x_0` to (4), nats; infinite where more than 1e-6 of it leaves the grid."""
        return self._kl(self.law(self.kernels(policy)))

    def _kl(self, law: Float[Tensor, " n"]) -> float:
        if not 1 - law.sum() < LOST:
            return math.inf
        return (torch.xlogy(law, law) - torch.xlogy(law, self.target)).sum().item()

    @cached_property
    def optimum(self) -> tuple[float, Float[Tensor, " n"]]:
        r""":math:`J^\circ` of (5), reward units, and the law of :math:`x_0` that it has."""
        value, means = self.table, []
        for mu, std in zip(self.reference.mean.flip(0), self.reference.std.flip(0), strict=True):
            there = self._average(self.x, std, value)[0]
            nearest = self.x[(there - self.alpha * (self.x - mu[:, None]) ** 2 / (2 * std**2)).argmax(1)]
            best, scale = nearest, std**2 / self.alpha
            for _ in range(8):
                _, slope, bend = self._average(best, std, value)
                step = (mu + scale * slope - best) / (1 - scale * bend)
                best = (best + step).clamp(nearest - self.width, nearest + self.width)
            value = self._average(best, std, value)[0] - (best - mu) ** 2 / (2 * scale)
            means.insert(0, best)
        law = self.law(self._kernels(torch.stack(means), self.reference.std))
        return (value @ self.prior).item(), law

    def _average(
        self, mean: Float[Tensor, " m"], std: Tensor, value: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"], Float[Tensor, " m"]]:
        """Mean of ``value`` under the Gaussian restricted to the grid, and its two derivatives by ``mean``."""
        kernel = self._normal(mean, std)
        kernel = kernel / kernel.sum(1, keepdim=True)
        score = self.x / std**2
        score = score - (kernel @ score)[:, None]
        bend = score**2 - (kernel * score**2).sum(1, keepdim=True)
        return kernel @ value, (kernel * score) @ value, (kernel * bend) @ value

    @cached_property
    def class_kl(self) -> float:
        """KL of the class optimum (5) to (4), nats."""
        return self._kl(self.optimum[1])

    def tunable(self) -> Policy:
        """A copy of :attr:`start`, or of the pretrained policy with gradients."""
        if self.start is not None:
            return copy.deepcopy(self.start)
        return copy.deepcopy(self.pretrained).requires_grad_(True)

    def law_of(self, x_0: Tensor, log_weight: Float[Tensor, " N"], *, fixed_prior: bool = False) -> Histogram:
        """Against the tilted law, or (4) with ``fixed_prior``, in at most 32 cells of about equal probability.

        Cells end midway between two grid points, where the sum gets its Euler-Maclaurin term: to 1e-4 in all.
        """
        law = self.target if fixed_prior else self.tilted
        total = law.cumsum(0) + law.diff(append=law.new_zeros(1)) / 24
        total = total / total[-1].clone()
        edge = torch.searchsorted(total, torch.arange(1, 32, dtype=torch.float64) / 32).unique()
        expected = torch.cat([total[edge], total[-1:]]).diff(prepend=total.new_zeros(1))
        cell = torch.bucketize(x_0[:, 0].double(), self.x[edge] + self.width / 2)
        return Histogram.count(cell, log_weight, expected)
