r"""Linear-Gaussian problems (:class:`~difftilt.problems.problem.Problem`): all laws are Gaussian and in closed form.

.. math::
    p^*(x_0) &= N(m^*, S^*): \quad p_{pre}(x_0)\, e^{r/\alpha} / Z                                       \qquad (1) \\
    p^*_{fixed}(x_0) &: \text{ the soft-optimal kernels run from the fixed prior}                        \qquad (2) \\
    p^\circ(x_0) &: \text{ the Riccati class optimum, means free, variances kept}                        \qquad (3)

from :class:`~difftilt.problems.linear_gaussian.Chain`. With full noise (2) is (1) but for a negligible term, and (3)
approaches it as 1/K (its KL as 1/K^2); with :math:`\eta < 1` much of the tilt is in :math:`x_1`, where training
kernels cannot reach it: (2) stays away from (1) whatever K.
"""

from __future__ import annotations

from functools import cached_property

import torch

from difftilt.core.policy import Policy
from difftilt.problems.exact_value import FunctionValue
from difftilt.problems.linear_gaussian import Chain, LinearGaussian, Matrix, Quadratic, Vector
from difftilt.problems.problem import Histogram
from difftilt.types import Float, Tensor

CELLS = 6  # along each whitened axis


class AffineProblem:
    """Gaussian data, an affine policy and a quadratic reward.

    Args:
        model: data, process and grid.
        reward: the quadratic.
        alpha: KL temperature, reward units per nat.
    """

    def __init__(self, model: LinearGaussian, reward: Quadratic, *, alpha: float) -> None:
        self.model, self.reward, self.alpha = model, reward, alpha
        self.pretrained = model.pretrained().frozen_copy()
        self.chain = Chain.read(self.pretrained)

    def tunable(self) -> Policy:
        """The exact policy, one free affine map per step."""
        return self.model.pretrained()

    def value(self) -> FunctionValue:
        """Soft values of the pretrained chain, quadratics."""
        return self.model.value(self.reward, self.alpha)

    @torch.no_grad()
    def law(self, policy: Policy) -> tuple[Vector, Matrix]:
        """Mean and covariance of :math:`x_0`."""
        return _last(Chain.read(policy))

    @cached_property
    def log_z(self) -> float:
        """Log of the normaliser of (1), nats."""
        return self.chain.log_z(self.reward, self.alpha).item()

    @cached_property
    def tilted(self) -> tuple[Vector, Matrix]:
        """(1)."""
        return self.chain.tilted(self.reward, self.alpha)

    @cached_property
    def target(self) -> tuple[Vector, Matrix]:
        """(2)."""
        return _last(self.chain.optimum(self.reward, self.alpha))

    @cached_property
    def class_optimum(self) -> Chain:
        """(3)."""
        return self.chain.optimum(self.reward, self.alpha, soft=False)

    @cached_property
    def class_kl(self) -> float:
        """KL of (3) to (2), nats."""
        return self.class_optimum.law_kl(*self.target).item()

    @cached_property
    def target_mean_reward(self) -> float:
        """Mean reward under (2)."""
        return self.reward.expectation(*self.target).item()

    def mean_reward(self, policy: Policy) -> float:
        """Mean reward under an affine policy."""
        return self.reward.expectation(*self.law(policy)).item()

    @torch.no_grad()
    def kl(self, policy: Policy) -> float:
        """KL of the law of :math:`x_0` under an affine policy to (2), nats."""
        return Chain.read(policy).law_kl(*self.target).item()

    def law_of(self, x_0: Tensor, log_weight: Float[Tensor, " N"], *, fixed_prior: bool = False) -> Histogram:
        """Against (1), or (2) with ``fixed_prior``, in cells of equal probability: quantiles of whitened axes."""
        mean, covariance = self.target if fixed_prior else self.tilted
        root = torch.linalg.cholesky(covariance)
        white = torch.linalg.solve_triangular(root, (x_0.double() - mean).T, upper=False)
        digit = (torch.special.ndtr(white) * CELLS).long().clamp(max=CELLS - 1)  # [d, N]
        cell = CELLS ** torch.arange(len(mean)) @ digit
        count = CELLS ** len(mean)
        return Histogram.count(cell, log_weight, torch.full((count,), 1 / count, dtype=torch.float64))


def _last(chain: Chain) -> tuple[Vector, Matrix]:
    means, covariances = chain.marginals()
    return means[-1], covariances[-1]
