r"""A soft value: :math:`v_t(x) = \alpha \log E_{pre}[ e^{r(x_0)/\alpha} \mid x_t = x ]`, or an estimate of it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from difftilt.types import Condition, Float, Tensor


@runtime_checkable
class Value(Protocol):
    """Soft value of a batch of states, reward units."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Float[Tensor, " B"]:
        """Values, float64, of ``x_t [B, *event]`` (tokens also relaxed, ``[B, L, V + 1]``, if it is differentiable).

        ``t`` is a scalar or ``[B]``. ``-inf`` where no feasible design can follow; at ``t = 0`` the reward itself.
        Gradient flows to ``x_t`` where the estimate is differentiable.
        """
        ...
