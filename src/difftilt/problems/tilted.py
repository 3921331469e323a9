r"""A reward on an enumerated chain: the tilted law, exact objective and gap of any policy, and the best in its class.

.. math::
    p^*(x_0) &= p_{pre}(x_0)\, 1_F(x_0)\, e^{r(x_0)/\alpha} / Z, \quad Z = E_{pre}[1_F e^{r/\alpha}]     \quad (1) \\
    J(\theta) &= E_\theta[r \mid F] - \alpha\, KL( p_\theta(\text{path} \mid F) \| p_{pre}(\text{path}) )
        = \frac{E_\theta[1_F (r - \alpha \sum_k l_k)]}{P_\theta(F)} + \alpha \log P_\theta(F)            \quad (2) \\
    KL( p_\theta(&\text{path} \mid F) \| p^*(\text{path}) ) = \log Z - J(\theta) / \alpha                  \quad (3)

``F`` is the set of designs with a reward (NaN = infeasible); where all have one, these are the plain tilted law and
objective. The class optimum maximises (2) over *all* token laws that are independent within a step, one law for each
state and step:

.. math::
    W_t(x) = \max_{q^1..q^m} \sum_R \rho(R)\, E_{a \sim q^R}[ W_s(x_{R \leftarrow a}) ]
        - \alpha \frac{E|R|}{m} \sum_i KL( q^i \| \pi^i ), \quad W_0 = r                                 \quad (4)

It is linear in each :math:`q^i` but for that law's own KL, so with the other positions held the best one is

.. math:: q^i(a) \propto \pi^i(a) \exp( g_i(a) / \alpha ), \quad
    g_i(a) = E[ W_s(x_s) \mid i \in R, x_s^i = a, \text{others} \sim q ]                                 \quad (5)

and sweeps of (5) never lower (4). With one token per step one sweep is the exact maximum. With several it ends at a
stationary point: its value is reached by an explicit policy, hence a lower bound on the maximum, and the value
:math:`v_1` of the unrestricted soft-optimal kernels bounds it from above.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from difftilt.core.policy import Policy
from difftilt.core.reward import Reward, score
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.problems.enumerated import Block, EnumeratedChain, TokenLaws, expected_fraction
from difftilt.problems.exact_value import TableValue
from difftilt.problems.joint import JointDenoiser
from difftilt.problems.problem import Histogram
from difftilt.types import Condition, Float, Tensor


@dataclass(frozen=True)
class ClassOptimum:
    """The best policy with independent token laws within a step."""

    value: float
    r""":math:`J^\circ`, reward units."""
    bound: float
    """:math:`v_1`, reward units: no policy on this chain does better."""
    law: Float[Tensor, " N"]
    """Its law of :math:`x_0`."""
    kl: float
    r""":math:`KL(p^\circ \| p^*)` at :math:`x_0`, nats: what an exact bar must allow for."""
    laws: TokenLaws
    """Its token laws."""


class TiltedProblem:
    """A pretrained policy on an enumerable chain, a reward and a temperature.

    Args:
        pretrained: :math:`p_{pre}`; put in eval mode and frozen by the caller.
        reward: scores designs, NaN where infeasible; asked once for each design.
        alpha: KL temperature, reward units per nat.
        cond: one condition, used for every state.
        start: where fine-tuning starts, a policy with the law of ``pretrained``; by default a copy of it.

    Attributes:
        chain: the enumerated chain.
        table: reward of each of ``chain.designs``, float64.
        start: as given.

    Raises:
        ConfigError: ``alpha <= 0``, or no design is feasible.
    """

    def __init__(
        self,
        pretrained: Policy,
        reward: Reward,
        *,
        alpha: float,
        cond: Condition | None = None,
        start: Policy | None = None,
    ) -> None:
        if not alpha > 0:
            raise ConfigError(f"expected alpha > 0 (reward units per nat); got {alpha}; a small one is nearly greedy")
        self.pretrained, self.reward, self.alpha, self.start = pretrained, reward, alpha, start
        self.chain = EnumeratedChain(pretrained, cond=cond)
        self.table = score(reward, pretrained.codec, self.chain.designs).value
        self.feasible = ~self.table.isnan()
        if not self.feasible.any():
            raise ConfigError("expected at least one feasible design; got NaN for all of them; correct the reward")
        self.reference = self.chain.laws(pretrained)

    @cached_property
    def pretrained_law(self) -> Float[Tensor, " N"]:
        """:math:`p_{pre}(x_0)`."""
        return self.chain.occupancy(self.reference)[-1][self.chain.levels[0]]

    @cached_property
    def _log_weight(self) -> Float[Tensor, " N"]:
        return self.pretrained_law.log() + (self.table / self.alpha).where(self.feasible, -math.inf)

    @cached_property
    def log_z(self) -> float:
        """Equation (1), nats."""
        return self._log_weight.logsumexp(0).item()

    @cached_property
    def tilted(self) -> Float[Tensor, " N"]:
        """:math:`p^*(x_0)`, equation (1)."""
        return self.log_tilted.exp()

    @cached_property
    def log_tilted(self) -> Float[Tensor, " N"]:
        """Its log, finite where the law itself is too small for a float."""
        return self._log_weight.log_softmax(0)

    def soft_values(self) -> Float[Tensor, "K1 S"]:
        """:math:`v_t` of every state the chain can visit, reward units, noisiest time first; NaN elsewhere."""
        return self.chain.soft_values(self.reference, self.table.where(self.feasible, -math.inf), alpha=self.alpha)

    def value(self) -> TableValue:
        """:meth:`soft_values` as a value to steer by."""
        chain = self.chain
        return TableValue(self.pretrained.grid, self.soft_values(), chain.positions[-1][0], chain.letters)

    def feasibility(self, policy: Policy) -> float:
        r""":math:`P_\theta(F)`."""
        return self.chain.marginal(policy)[self.feasible].sum().item()

    def objective(self, policy: Policy, *, grad: bool = False) -> Float[Tensor, ""]:
        """:math:`J` of equation (2), reward units; with ``grad`` its graph to the denoiser's parameters."""
        with torch.set_grad_enabled(grad):
            reach, gain = self.chain.expected_gain(
                self.chain.laws(policy, grad=grad), self.reference, self.table, alpha=self.alpha
            )
            return gain / reach + self.alpha * reach.log()

    def gap(self, policy: Policy) -> float:
        """Equation (3), nats; 0 iff ``policy`` runs the soft-optimal kernels."""
        return self.log_z - self.objective(policy).item() / self.alpha

    def kl(self, policy: Policy) -> float:
        r""":math:`KL(p_\theta(\cdot | F) \| p^*)` at :math:`x_0`, nats; at most :meth:`gap`."""
        law = self.chain.marginal(policy).where(self.feasible, 0)
        return kl_from_log(law / law.sum(), self.log_tilted)

    @cached_property
    def target_mean_reward(self) -> float:
        """Mean reward under the tilted law."""
        return (self.tilted * self.table.where(self.feasible, 0)).sum().item()

    def mean_reward(self, policy: Policy) -> float:
        r""":math:`E_\theta[r \mid F]`."""
        law = self.chain.marginal(policy).where(self.feasible, 0)
        return (law @ self.table.where(self.feasible, 0) / law.sum()).item()

    @cached_property
    def class_kl(self) -> float:
        r""":math:`KL(p^\circ \| p^*)` at :math:`x_0`, nats: 0 where the conditionals of :math:`p^*` close the gap."""
        if self.pretrained.fixed is None:
            exact = self.pretrained.frozen_copy()
            exact.denoiser = JointDenoiser.of(self.tilted.view([self.chain.letters] * self.chain.states.shape[1]))
            if self.gap(exact) < 1e-9:
                return 0.0
        return self.optimum().kl

    def law_of(self, x_0: Tensor, log_weight: Float[Tensor, " N"], *, fixed_prior: bool = False) -> Histogram:
        """Finished states against :attr:`tilted`, design by design; a fixed prior is no restriction to tokens."""
        letters, free = self.chain.letters, self.chain.positions[-1][0]
        place = letters ** torch.arange(len(free) - 1, -1, -1, device=x_0.device)
        return Histogram.count(x_0[:, free] @ place, log_weight, self.tilted)

    def tunable(self) -> Policy:
        """A copy of :attr:`start`, or of the pretrained policy with gradients: where fine-tuning starts."""
        if self.start is not None:
            return copy.deepcopy(self.start)
        return copy.deepcopy(self.pretrained).requires_grad_(True)

    @torch.no_grad()
    def optimum(self, *, tolerance: float = 1e-8, sweeps: int = 500) -> ClassOptimum:
        """Solve (4), backward in time, from two starts per state (pretrained laws; the soft-optimal kernel's own).

        Args:
            tolerance: stop when no token probability moved by more in a sweep; the value is off by its square.
            sweeps: at most so many.

        Raises:
            UnsupportedError: some design is infeasible: (2) is then no sum over steps.
        """
        if not self.feasible.all():
            raise UnsupportedError(
                "expected a reward for every design; got NaN for some, where (4) fails; use log_z and gap instead"
            )
        chain, soft = self.chain, self.soft_values()
        laws: TokenLaws = [{m: law.clone() for m, law in step.items()} for step in self.reference]
        value = chain.spread(self.table)
        for k in reversed(range(chain.steps)):
            earlier = torch.full_like(value, math.nan)
            for block in chain.blocks(k):
                prior = self.reference[k][block.level][block.part]
                tilt = soft[k + 1][block.successors] / self.alpha + block.log_prob(self.reference[k])
                starts = prior.exp(), _token_marginals(block, tilt.softmax(-1), prior.exp())
                found = [self._ascend(k, block, value[block.successors], q, tolerance, sweeps) for q in starts]
                better = found[1][0] > found[0][0]
                earlier[block.index] = found[1][0].where(better, found[0][0])
                laws[k][block.level][block.part] = found[1][1].where(better[:, None, None], found[0][1]).log()
            value = earlier
        law = chain.occupancy(laws)[-1][chain.levels[0]]
        return ClassOptimum(value[-1].item(), soft[0, -1].item(), law, kl_from_log(law, self.log_tilted), laws)

    def _ascend(
        self, k: int, block: Block, after: Tensor, q: Tensor, tolerance: float, sweeps: int
    ) -> tuple[Float[Tensor, " R"], Float[Tensor, "R m V"]]:
        """Sweeps of (5) for the states of one block; returns (4) and the laws."""
        prior = self.reference[k][block.level][block.part]
        fraction = expected_fraction(self.chain.reveals[k][block.level])
        base = block.log_reveal.exp() * after
        one_shown = bool(block.filling.lt(self.chain.letters).sum(-1).max() <= 1)
        q = q.clone()

        def factor(j: int) -> Float[Tensor, "R C"]:
            return F.pad(q[:, j], (0, 1), value=1.0).index_select(1, block.filling[:, j])

        for _ in range(sweeps):
            moved, product, later = 0.0, base, [torch.ones_like(base)]
            for j in reversed(range(1, block.level)):
                later.append(later[-1] * factor(j))
            for i in range(block.level if fraction > 0 else 0):
                one_hot = F.one_hot(block.filling[:, i], self.chain.letters + 1).double()[:, :-1]
                gain = (product * later.pop()) @ one_hot / fraction
                new = (prior[:, i] + gain / self.alpha).softmax(-1)
                moved = max(moved, (new - q[:, i]).abs().max().item())
                q[:, i] = new
                product = product * factor(i)
            if moved < tolerance or one_shown:
                break
        kl = (torch.xlogy(q, q) - q * prior.where(q > 0, 0)).sum((1, 2))
        return product.sum(-1) - self.alpha * fraction * kl, q


def _token_marginals(block: Block, kernel: Float[Tensor, "R C"], empty: Float[Tensor, "R m V"]) -> Tensor:
    """Token laws of a joint kernel at each masked position, given that it is shown; ``empty`` where it never is."""
    rows = [kernel @ F.one_hot(block.filling[:, j], empty.shape[-1] + 1).double()[:, :-1] for j in range(block.level)]
    mass = torch.stack(rows, dim=1) if rows else empty
    total = mass.sum(-1, keepdim=True)
    return (mass / total).where(total > 0, empty)


def kl_divergence(p: Float[Tensor, " N"], q: Float[Tensor, " N"]) -> float:
    r""":math:`KL(p \| q)` of two laws on the same designs, nats; infinite where ``q`` misses mass of ``p``."""
    return kl_from_log(p, q.log())


def kl_from_log(p: Float[Tensor, " N"], log_q: Float[Tensor, " N"]) -> float:
    r""":math:`KL(p \| q)`, nats, of which the second law may be too small for a float."""
    return (torch.xlogy(p, p) - p * log_q.where(p > 0, 0)).sum().item()
