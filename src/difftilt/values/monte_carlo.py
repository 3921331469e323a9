r"""The soft value by rollouts of the pretrained policy.

.. math:: \hat v_t(x) = \alpha \log \frac1n \sum_{i=1}^n e^{r(x_0^i)/\alpha}, \quad
    x_0^i \sim p_{pre}(x_0 \mid x_t = x)                                                               \qquad (1)

:math:`e^{\hat v/\alpha}` is unbiased, so (1) is biased low (Jensen), by about
:math:`\frac{\alpha}{2n} \operatorname{Var}(e^{r/\alpha}) / E[e^{r/\alpha}]^2`. It costs ``n`` reward calls and ``n``
times the steps left for each state: the yardstick of cheaper estimates, rarely a method.

References:
    Uehara et al. 2024, https://arxiv.org/abs/2407.13734.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from difftilt.core.conditions import repeated
from difftilt.errors import ConfigError
from difftilt.types import Condition, Float, Tensor
from difftilt.values.estimate import Estimate
from difftilt.values.plug_in import check_drawn, refuse_gradient, soft_mean


@dataclass(frozen=True)
class MonteCarlo(Estimate):
    """Equation (1). Random, not differentiable; ``t`` must be a time of the policy's grid."""

    rng: torch.Generator
    """Noise source, on the policy's device."""
    alpha: float
    """KL temperature, reward units per nat; positive."""
    rollouts: int = 16
    """Rollouts of each state, ``n``; also reward calls."""

    def __post_init__(self) -> None:
        check_drawn(self.rollouts, self.alpha)

    @torch.no_grad()
    def at(self, x_t: Tensor, t: Float[Tensor, ""], cond: Condition | None) -> Float[Tensor, " B"]:
        """Equation (1); (3) of :mod:`~difftilt.values.plug_in` where all rollouts end infeasible."""
        refuse_gradient(self.policy, x_t, "a Monte Carlo")
        grid = self.policy.grid
        distance, start = (grid - t).abs().min(0)
        if distance > 1e-6:
            raise ConfigError(f"expected a time of the grid {grid.tolist()}; got {t.item()}; run the chain's own times")
        x = x_t.repeat(self.rollouts, *(1,) * (x_t.ndim - 1))
        rows = repeated(cond, self.rollouts)
        for k in range(int(start), self.policy.steps):
            x = self.policy.step(x, grid[k], grid[k + 1], rows).sample(self.rng)
        return soft_mean(self.policy, self.reward, x, len(x_t), alpha=self.alpha, cond=cond)
