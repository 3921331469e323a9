r"""A denoiser that is a law of designs: tables over windows of letters, and the exact conditionals of their law.

.. math:: p_w(x) &\propto p(x) \exp f_w(x), \qquad f_w(x) = \sum_{i \le j} w_{ij}(x^i, \dots, x^j)      \qquad (1) \\
    \pi^i(a \mid x_t) &\propto \sum_{x \sim x_t,\; x^i = a} p_w(x)                                       \qquad (2) \\
    v_w(x_t) / \alpha &= \log \sum_{x \sim x_t} p(x) \exp f_w(x) - \log \sum_{x \sim x_t} p(x)             \qquad (3)

where :math:`p` is a fixed law, :math:`w_{ij}` one table for each window of neighbouring positions (0 at the start),
and :math:`x \sim x_t` are the designs that agree with the letters shown in :math:`x_t`. The window of all positions
has one parameter for each design, so that every law on the support of :math:`p`, hence every tilted law, is in the
class; the shorter windows only share what is learned. The conditionals agree in whatever order positions are shown:
one token per step samples :math:`p_w` exactly, and KL of paths equals KL of designs. Where designs are double strands
of DNA, :math:`f` is summed over both readings. All sums of (2) are made at once, in float64, and again when a table
has changed.

With tables of its own, (3) is every soft value of :math:`p`: for methods that learn one beside the policy, where a
small network would miss a rough value as it misses a rough law.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from difftilt.core.registry import register
from difftilt.errors import UnsupportedError
from difftilt.types import Condition, Float, Tensor


@register("denoiser", "joint")
class JointDenoiser(nn.Module):
    r"""Equation (2).

    Args:
        vocabulary: letters ``V``.
        length: positions ``L``; sums are over :math:`(V+1)^L` partial states.
        both_strands: whether :math:`f(x)` adds that of the reverse complement (letters in the order ACGT).
    """

    time_free = True
    log_law: Float[Tensor, "*V"]
    strides: Tensor
    seen: Float[Tensor, " N"]
    mass: Float[Tensor, " S"]

    def __init__(self, vocabulary: int, length: int, both_strands: bool = False) -> None:
        super().__init__()
        self.vocabulary, self.length, self.both_strands = vocabulary, length, both_strands
        spans = [(i, j) for i in range(length) for j in range(i, length)]
        shapes = [[vocabulary if i <= n <= j else 1 for n in range(length)] for i, j in spans]
        self.windows = nn.ParameterList(torch.zeros(shape, dtype=torch.float64) for shape in shapes)
        self.register_buffer("log_law", torch.zeros([vocabulary] * length, dtype=torch.float64))
        self.register_buffer("strides", (vocabulary + 1) ** torch.arange(length - 1, -1, -1), persistent=False)
        for name in ("seen", "mass"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.float64), persistent=False)

    @classmethod
    def of(cls, law: Float[Tensor, "*V"], *, both_strands: bool = False) -> JointDenoiser:
        """The conditionals of ``law``, one axis per position; 0 is allowed."""
        denoiser = cls(law.shape[0], law.ndim, both_strands)
        denoiser.log_law.copy_(law.double().log())
        return denoiser

    def tilt(self) -> Float[Tensor, "*V"]:
        """:math:`f_w` of (1) for every design, nats. Gradient flows to the tables."""
        tables = iter(self.windows)
        by_start = [sum(itertools.islice(tables, self.length - i)) for i in range(self.length)]
        total = sum(reversed(by_start))  # the shortest first: sums stay small for as long as they can
        assert isinstance(total, Tensor)
        if self.both_strands:
            axes = tuple(range(self.length))
            total = total + total.permute(axes[::-1]).flip(axes)
        return total

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Float[Tensor, "B L V"]:
        """Log of (2), unnormalised, at masked positions. Gradient flows to the tables.

        Raises:
            UnsupportedError: relaxed tokens.
        """
        if x_t.ndim != 2:
            raise UnsupportedError(
                "expected tokens [B, L]; got relaxed ones, for which (2) is not defined; tune a tabular policy instead"
            )
        letters = torch.arange(self.vocabulary, device=x_t.device)
        index = (x_t @ self.strides)[:, None, None] + (letters - x_t[..., None]) * self.strides[:, None]
        return self.log_mass()[index]

    def law(self) -> Float[Tensor, "*V"]:
        """:math:`p_w` of (1): what one token per step samples. Gradient flows to the tables."""
        log_law = self.log_law + self.tilt()
        return log_law.flatten().softmax(0).view_as(log_law)

    def log_mass(self) -> Float[Tensor, " S"]:
        """Log of the sum of :math:`p e^{f_w}` over the designs that agree with each partial state, nats."""
        if torch.is_grad_enabled() and any(table.requires_grad for table in self.windows):
            return self._sums()
        now = torch.cat([self.log_law.flatten(), *[table.detach().flatten() for table in self.windows]])
        if not torch.equal(now, self.seen):
            self.seen, self.mass = now, self._sums()
        return self.mass

    def _sums(self) -> Float[Tensor, " S"]:
        log_law = self.log_law + self.tilt()
        highest = log_law.detach().max()
        total = (log_law - highest).exp()
        for axis in range(self.length):  # the mask sums its position out
            total = torch.cat([total, total.sum(axis, keepdim=True)], dim=axis)
        smallest = torch.finfo(total.dtype).tiny  # a state that no design agrees with gets uniform laws
        return total.flatten().clamp(min=smallest).log() + highest

    def value_network(self) -> JointValue:
        """Soft values of :math:`p`, to be learned; 0 at the start."""
        return JointValue(self)

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"vocabulary": self.vocabulary, "length": self.length, "both_strands": self.both_strands}


class JointValue(nn.Module):
    """Equation (3).

    Args:
        law: gives :math:`p`; its tables are left alone.
    """

    base: Float[Tensor, " S"]

    def __init__(self, law: JointDenoiser) -> None:
        super().__init__()
        self.law = JointDenoiser(**law.config())
        self.law.log_law.copy_(law.log_law)
        self.register_buffer("base", self.law.log_mass().detach(), persistent=False)

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Float[Tensor, " B"]:
        """Nats. Gradient flows to the tables."""
        return (self.law.log_mass() - self.base)[x_t @ self.law.strides]
