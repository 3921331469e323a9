r"""Rows of a network's calls dealt out: the two ends of a split network.

Equations (1) and (2) of :mod:`difftilt.core.ranks`. Where a process runs several shares, each sees the parameters under
another name, so that its gradients are added up before they meet those of the others: share by share, halves of the
shares after that, in the order in which two processes with half of the shares each would add them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.func import functional_call

from difftilt.types import Int, Shaped, Tensor


def count() -> int:
    """Number of processes ``W`` that ``torch.distributed`` has joined; 1 without it."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, 0 the first."""
    return distributed.get_rank() if count() > 1 else 0


class Split:
    """The two ends of a split network. Calls inside another's are left whole: their rows are split already.

    The hook after the first share's call makes those of the others.

    Args:
        shares: of all processes.
    """

    def __init__(self, shares: int) -> None:
        self.shares = shares
        self.calls: list[_Call | None] = []
        """Those under way, the innermost last; ``None``: left whole."""
        self.names: dict[int, tuple[int, list[Tensor]]] = {}
        """A parameter, by its id: its version, and the names under which the shares of this process see it."""

    def share(self, network: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Arguments of this process, first share."""
        if self.calls:
            self.calls.append(None)
            return None
        if torch.is_grad_enabled() and self.shares > count():
            self._name(network)
        n = len(arguments[0])
        size = math.ceil(n / self.shares)
        own = _each(arguments, lambda whole: _Share.apply(whole, size * (self.shares // count())))
        self.calls.append(_Call(n, size, own))
        return self._part(0)

    def _call(self, network: nn.Module, number: int) -> Tensor:
        """Another share: the same call, of which nobody is told again."""
        if not torch.is_grad_enabled():
            return network.forward(*self._part(number))
        inside = _Inside(network)
        seen = {name: self.names[id(p)][1][number] for name, p in inside.named_parameters() if id(p) in self.names}
        return functional_call(inside, seen, self._part(number))

    def _name(self, network: nn.Module) -> None:
        """Before the first call with these values: where one was written to, torch makes its names anew."""
        for parameter in network.parameters():
            version, _ = self.names.get(id(parameter), (None, None))
            if parameter.requires_grad and version != parameter._version:
                self.names[id(parameter)] = parameter._version, _names(parameter, self.shares // count())

    def _part(self, number: int) -> tuple[Any, ...]:
        call = self.calls[0]
        assert call is not None
        return _each(call.own, lambda rows: rows[number * call.size : (number + 1) * call.size])

    def gather(self, network: nn.Module, arguments: tuple[Any, ...], prediction: Tensor | None) -> Tensor | None:
        """Predictions of all; there is none if the network raised, as checkpoints do where they have what they need."""
        try:
            call = self.calls[-1]
            if call is None or prediction is None:
                return None
            others = [self._call(network, number) for number in range(1, self.shares // count())]
            return _Gather.apply(torch.cat([prediction, *others]) if others else prediction)[: call.rows]
        finally:
            self.calls.pop()


class _Inside(nn.Module):
    """A network without the hooks on it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *arguments: Any) -> Tensor:
        return self.network.forward(*arguments)


@dataclass(frozen=True)
class _Call:
    """A split call."""

    rows: int
    size: int
    """Rows of a share."""
    own: tuple[Any, ...]
    """Arguments of this process, all of its shares."""


def _names(tensor: Tensor, shares: int) -> list[Tensor]:
    """A tensor for each share; the gradients of the second half meet before they reach the first."""
    if shares == 1:
        return [tensor]
    second = tensor.view_as(tensor)  # made before all else: autograd, which goes backwards, comes to it last
    return _names(tensor, (shares + 1) // 2) + _names(second, shares // 2)


def _each(argument: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Of every tensor in the arguments of a call."""
    if isinstance(argument, tuple):
        return tuple(_each(value, function) for value in argument)
    if isinstance(argument, Mapping):
        return {name: _each(value, function) for name, value in argument.items()}
    return None if argument is None else function(argument)


class _Share(torch.autograd.Function):
    """The ``size`` rows of this process; backward, equation (1)."""

    @staticmethod
    def forward(ctx: Any, whole: Shaped[Tensor, "B *any"], size: int) -> Shaped[Tensor, "S *any"]:
        ctx.rows = len(whole)
        own: Int[Tensor, " S"] = rank() * size + torch.arange(size, device=whole.device)
        return whole[own.clamp(max=len(whole) - 1)]

    @staticmethod
    def backward(ctx: Any, *gradients: Shaped[Tensor, "S *any"]) -> tuple[Shaped[Tensor, "B *any"], None]:
        return gathered(gradients[0])[: ctx.rows], None


class _Gather(torch.autograd.Function):
    """The rows of all processes; backward, those of this one: the inner sum of (2)."""

    @staticmethod
    def forward(ctx: Any, own: Shaped[Tensor, "S *any"]) -> Shaped[Tensor, "WS *any"]:
        ctx.rows = len(own)
        return gathered(own)

    @staticmethod
    def backward(ctx: Any, *gradients: Shaped[Tensor, "WS *any"]) -> Shaped[Tensor, "S *any"]:
        return gradients[0].narrow(0, rank() * ctx.rows, ctx.rows)


def gathered(own: Shaped[Tensor, "S *any"]) -> Shaped[Tensor, "WS *any"]:
    """The rows of all processes."""
    if count() == 1:
        return own.clone()
    parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(count())]
    distributed.all_gather(parts, own.contiguous())
    return torch.cat(parts)
