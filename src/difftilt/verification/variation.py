r"""Total variation between drawn designs and an exact law, with what sampling adds to it.

With :math:`o_g` the shares of the cells in group ``g`` of ``G`` independent ones, :math:`o` their mean, :math:`e` the
exact probabilities and :math:`s_c = \mathrm{sign}(o_c - e_c)`,

.. math::
    TV = \tfrac12 \sum_c | o_c - e_c |, \qquad
    \mathrm{error} = \frac{1}{\sqrt G} \mathop{std}_g \tfrac12 \sum_c s_c\, o_{gc}, \qquad
    \mathrm{noise} = \tfrac12 \sqrt{\tfrac2\pi} \sum_c \frac{\mathop{std}_g o_{gc}}{\sqrt G}          \qquad (1)

On average TV of draws is above that of their law, by at most the noise, which is what draws of the exact law show: a
verdict on TV plus some errors is strict.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from difftilt.types import Float, Tensor

GROUPS = 20
SURE = 3.0
"""Standard errors that an estimate must stay below its bar."""


@dataclass(frozen=True)
class Variation:
    """Equation (1)."""

    found: float
    """Total variation of the draws, 0 to 1."""
    error: float
    """Its standard error."""
    noise: float
    """What as many draws of the exact law show on average."""

    def below(self, bar: float) -> bool:
        """Whether it is at most ``bar``, sampling error included."""
        return self.found + SURE * self.error <= bar

    def told(self, draws: int, bar: float) -> str:
        """In words."""
        return (
            f"TV {self.found:.4f} +- {self.error:.1g} from {draws:,} draws ({self.noise:.4f} of it for draws of the "
            f"law itself); with {SURE:g} standard errors at most {bar:g}"
        )


def variation(observed: Float[Tensor, "G C"], exact: Float[Tensor, " C"]) -> Variation:
    """Equation (1)."""
    away, root = observed.mean(0) - exact, math.sqrt(len(observed))
    error = (0.5 * observed @ away.sign()).std().item() / root
    noise = math.sqrt(1 / (2 * math.pi)) * observed.std(0).sum().item() / root
    return Variation(0.5 * away.abs().sum().item(), error, noise)
