r"""Classifier-free guidance as part of the chain, and the condition a policy has of its own.

.. math:: f_w(x_t, t, c) = f(x_t, t, c_-) + w\, \big( f(x_t, t, c) - f(x_t, t, c_-) \big)              \qquad (1)

with the *negative* condition :math:`c_-` (an empty prompt, a null label). The guided prediction is the prediction of
the chain: log-probabilities, KL and reference all have it, for policies of any process. ``w = 1`` is no guidance and
costs nothing; any other ``w`` runs the network on both conditions in one batch of ``2B`` rows.

References:
    Ho and Salimans 2022, https://arxiv.org/abs/2207.12598.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from difftilt.core.policy import trainable
from difftilt.core.registry import construct, describe, register
from difftilt.errors import ConfigError, ShapeError
from difftilt.types import Condition, Float, Tensor

NEGATIVE = "negative_"
"""Before the name of a condition: the negative one, for each row."""


@register("denoiser", "guided")
class Guided(nn.Module):
    """A denoiser with guidance, and with a condition that serves where none is given.

    Args:
        base: the denoiser, or its description.
        scale: ``w`` of (1).
        default: one row of each condition, used where ``cond`` is ``None``.
        negative: one row of each condition for :math:`c_-`; ``cond`` may name others (``negative_prompt``).

    Raises:
        ConfigError: guidance without a negative condition.
    """

    def __init__(
        self,
        base: nn.Module | dict[str, Any],
        scale: float = 1.0,
        default: Condition | dict[str, Any] | None = None,
        negative: Condition | dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.base = base if isinstance(base, nn.Module) else cast(nn.Module, construct("denoiser", base))
        self.scale = scale
        self._default, self._negative = list(default or {}), list(negative or {})
        if scale != 1 and not negative:
            raise ConfigError(
                f"expected a negative condition for guidance; got none with scale {scale}; give one, such as the empty "
                "prompt, or take scale 1"
            )
        for kind, rows in (("default", default), ("negative", negative)):
            for name, row in (rows or {}).items():
                self.register_buffer(f"{kind}_{name}", row if isinstance(row, Tensor) else _blank(row))

    def forward(self, x_t: Tensor, t: Float[Tensor, " B"], cond: Condition | None = None) -> Tensor:
        """Equation (1). Gradient flows as in the denoiser.

        Raises:
            ConfigError: no condition, and no default; or a negative one without guidance.
            ShapeError: a condition of another shape than its negative.
        """
        n = len(x_t)
        if cond is None:
            cond = {name: _rows(getattr(self, f"default_{name}"), n) for name in self._default}
        if self.scale == 1:
            idle = next((name for name in cond if name.startswith(NEGATIVE)), None)
            if idle is not None:
                raise ConfigError(f"expected no condition '{idle}' without guidance; got one; take a scale above 1")
            return self.base(x_t, t, cond)
        missing = [name for name in self._negative if name not in cond]
        if missing:
            raise ConfigError(
                f"expected a condition '{missing[0]}' with one row per design; got {', '.join(cond) or 'none'}; pass "
                "cond, or give the policy a default"
            )
        for name in self._negative:
            own, away = cond[name].shape[1:], getattr(self, f"negative_{name}").shape[1:]
            if own != away:
                raise ShapeError(
                    f"expected rows of shape {tuple(away)} for the condition '{name}', as its negative has; got "
                    f"{tuple(own)}; encode both by the same pipeline"
                )
        both = {
            name: torch.cat([self._away(name, cond, n).to(own), own])
            for name, own in cond.items()
            if not name.startswith(NEGATIVE)
        }
        without, wanted = self.base(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        return without + self.scale * (wanted - without)

    def trainable(self) -> list[nn.Parameter]:
        """That of the denoiser."""
        return trainable(self.base)

    def wake(self) -> None:
        """It is tuned."""
        getattr(self.base, "wake", lambda: None)()

    def _away(self, name: str, cond: Condition, n: int) -> Tensor:
        """Rows of the negative condition; the condition itself where there is none."""
        if name in self._negative:
            return cond.get(NEGATIVE + name, _rows(getattr(self, f"negative_{name}"), n))
        return cond[name]

    def config(self) -> dict[str, Any]:
        """Constructor arguments; of conditions their shapes, the values are among the weights."""
        kinds = {"default": self._default, "negative": self._negative}
        rows = {
            kind: {name: _shape(getattr(self, f"{kind}_{name}")) for name in names} for kind, names in kinds.items()
        }
        return {"base": describe(self.base), "scale": self.scale, **rows}


def _rows(row: Tensor, n: int) -> Tensor:
    return row.expand(n, *row.shape[1:])


def _shape(row: Tensor) -> dict[str, Any]:
    return {"shape": list(row.shape), "integer": not row.is_floating_point()}


def _blank(spec: dict[str, Any]) -> Tensor:
    return torch.zeros(spec["shape"], dtype=torch.long if spec["integer"] else torch.float32)
