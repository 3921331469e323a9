r"""Several processes as one: a network's rows are split over them, everything else is done alike by all of them.

A network maps rows independently, :math:`y_b = f_\theta(x_b)`. Of ``W`` processes, number ``r`` runs the rows
:math:`S_r`, a stretch of :math:`\lceil B / W \rceil`; the predictions are gathered, so that all go on with the same
numbers. For a loss whose gradient :math:`g_b = \partial L / \partial y_b` is then alike everywhere,

.. math:: \frac{\partial L}{\partial x_b} = g_b^T \frac{\partial f_\theta(x_b)}{\partial x_b},
    \quad \text{gathered from the process that has row } b,                                              \qquad (1)

.. math:: \frac{\partial L}{\partial \theta}
    = \sum_r \sum_{b \in S_r} g_b^T \frac{\partial f_\theta(x_b)}{\partial \theta}                           \qquad (2)

so the split network is the network itself, gradients included, whatever an algorithm does with it: paths, pathwise
gradients, adjoints. Random numbers, rewards and optimiser steps need nothing, being alike; what must be done once
(asking a paid reward, writing files) is done by the first process, which tells the others.

Rows that do not fill the last stretch are made up by repeating the last row, whose gradient there is 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import distributed, nn

from difftilt import errors
from difftilt.errors import StateError
from difftilt.types import Float, Int, Shaped, Tensor

_TOGETHER = ContextVar("together", default=False)


def count() -> int:
    """Number of processes ``W`` that ``torch.distributed`` has joined; 1 without it."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the first process, or the only one."""
    return count() == 1 or distributed.get_rank() == 0


@contextmanager
def together(*networks: nn.Module) -> Generator[None]:
    """All processes run the same inside the block; rows of ``networks`` are split, equations (1) and (2).

    Without other processes nothing changes. The networks are alike in all of them, and are called with rows first:
    ``(x_t, t, cond)``. A network called by another is not split again.

    Raises:
        StateError: a network has other numbers in another process.
    """
    if count() == 1:
        yield
        return
    distinct = list({id(network): network for network in networks}.values())
    split, token = _Split(), _TOGETHER.set(True)
    handles = []
    try:
        for network in distinct:
            refuse_unlike("networks", _fingerprint(network))
            handles.append(network.register_forward_pre_hook(split.share))
            handles.append(network.register_forward_hook(split.gather, always_call=True))
        trained = {id(p): p for network in distinct for p in network.parameters() if p.requires_grad}
        handles += [parameter.register_hook(_sum) for parameter in trained.values()]
        yield
    finally:
        for handle in handles:
            handle.remove()
        _TOGETHER.reset(token)


def of_first(function: Callable[[], Any]) -> Any:
    """What ``function`` returns in the first process, the only one that runs it inside :func:`together`.

    Args:
        function: returns what JSON can hold; the others get it as JSON has it (NaN included).

    Raises:
        DiffTiltError: what it raised, in all processes.
    """
    if not _TOGETHER.get():
        return function()
    failure: BaseException | None = None
    answer, text = None, ""
    if is_first():
        try:
            answer = function()
            text = json.dumps([answer, None])
        except BaseException as error:  # also Ctrl-C: the others must not wait for ever
            failure = error
            text = json.dumps([None, [type(error).__name__, str(error)]])
    text = _broadcast(text)
    if failure is not None:
        raise failure
    if is_first():
        return answer
    answer, failed = json.loads(text)
    if failed is not None:
        name, message = failed
        kind = getattr(errors, name, None)
        if kind is None:
            raise StateError(f"expected the first process to go on; got {name}: {message}; see what it says")
        raise kind(message)
    return answer


def refuse_unlike(what: str, numbers: Float[Tensor, " n"]) -> None:
    """Inside :func:`together`, what is done alike must come out alike.

    Raises:
        StateError: ``numbers`` are others in another process.
    """
    if not _TOGETHER.get():
        return
    everyone = _gathered(numbers[None].to(_device()))
    unlike = ~torch.isclose(everyone, everyone[:1], rtol=1e-6, atol=1e-12, equal_nan=True).all(1)
    if unlike.any():
        raise StateError(
            f"expected the same {what} in all {count()} processes; got others in process {int(unlike.nonzero()[0])}; "
            "load the same model in each, on the same kind of device, and use no random numbers of its own"
        )


class _Split:
    """The two ends of a split network. Calls inside another's are left whole: their rows are split already."""

    def __init__(self) -> None:
        self.rows: list[int | None] = []
        """Rows of the calls under way, the innermost last; ``None``: left whole."""

    def share(self, network: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Arguments of this process."""
        split = not self.rows
        self.rows.append(len(arguments[0]) if split else None)
        return tuple(_rows(argument) for argument in arguments) if split else None

    def gather(self, network: nn.Module, arguments: tuple[Any, ...], prediction: Tensor | None) -> Tensor | None:
        """Predictions of all; there is none if the network raised, as checkpoints do where they have what they need."""
        n = self.rows.pop()
        return None if n is None or prediction is None else _Gather.apply(prediction)[:n]


def _rows(argument: Any) -> Any:
    if isinstance(argument, Mapping):
        return {name: _rows(value) for name, value in argument.items()}
    return None if argument is None else _Share.apply(argument)


class _Share(torch.autograd.Function):
    """The rows of this process; backward, equation (1)."""

    @staticmethod
    def forward(ctx: Any, whole: Shaped[Tensor, "B *any"]) -> Shaped[Tensor, "S *any"]:
        ctx.rows = len(whole)
        size = math.ceil(len(whole) / count())
        own: Int[Tensor, " S"] = distributed.get_rank() * size + torch.arange(size, device=whole.device)
        return whole[own.clamp(max=len(whole) - 1)]

    @staticmethod
    def backward(ctx: Any, *gradients: Shaped[Tensor, "S *any"]) -> Shaped[Tensor, "B *any"]:
        return _gathered(gradients[0])[: ctx.rows]


class _Gather(torch.autograd.Function):
    """The rows of all processes; backward, those of this one: the inner sum of (2)."""

    @staticmethod
    def forward(ctx: Any, own: Shaped[Tensor, "S *any"]) -> Shaped[Tensor, "WS *any"]:
        ctx.rows = len(own)
        return _gathered(own)

    @staticmethod
    def backward(ctx: Any, *gradients: Shaped[Tensor, "WS *any"]) -> Shaped[Tensor, "S *any"]:
        return gradients[0].narrow(0, distributed.get_rank() * ctx.rows, ctx.rows)


def _gathered(own: Shaped[Tensor, "S *any"]) -> Shaped[Tensor, "WS *any"]:
    parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(count())]
    distributed.all_gather(parts, own.contiguous())
    return torch.cat(parts)


def _sum(gradient: Tensor) -> Tensor:
    """The outer sum of (2)."""
    total = gradient.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total


def _fingerprint(network: nn.Module) -> Float[Tensor, " n"]:
    """Two numbers for each tensor."""
    values = [value.detach().double() for value in network.state_dict().values()]
    return torch.stack([total for value in values for total in (value.sum(), value.abs().sum())])


def _broadcast(text: str) -> str:
    """``text`` of the first process."""
    letters = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8).to(_device())
    size = torch.tensor(len(letters), device=_device())
    distributed.broadcast(size, 0)
    if not is_first():
        letters = torch.empty(int(size), dtype=torch.uint8, device=_device())
    distributed.broadcast(letters, 0)
    return bytes(letters.tolist()).decode()


def _device() -> torch.device:
    """Where the process group takes what is on no device yet."""
    return torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
