r"""Several processes as one: a network's rows are split over them, everything else is done alike by all of them.

A network maps rows independently, :math:`y_b = f_\theta(x_b)`. Of ``W`` processes, number ``r`` runs the rows
:math:`S_r`, a share of :math:`\lceil B / W \rceil`; the predictions are gathered, so that all go on with the same
numbers. For a loss whose gradient :math:`g_b = \partial L / \partial y_b` is then alike everywhere,

.. math:: \frac{\partial L}{\partial x_b} = g_b^T \frac{\partial f_\theta(x_b)}{\partial x_b},
    \quad \text{gathered from the process that has row } b,                                              \qquad (1)

.. math:: \frac{\partial L}{\partial \theta}
    = \sum_r \sum_{b \in S_r} g_b^T \frac{\partial f_\theta(x_b)}{\partial \theta}                           \qquad (2)

so the split network is the network itself, gradients included, whatever an algorithm does with it: paths, pathwise
gradients, adjoints. Random numbers, rewards and optimiser steps need nothing, being alike; what must be done once
(asking a paid reward, writing files) is done by the first process, which tells the others.

Rows that do not fill the last share are made up by repeating the last row, whose gradient there is 0.

Floats of a row depend in their last bits on how many rows are run with it. With ``shares`` given, each process runs
``shares / W`` of them, one after the other, so that however many processes there are, the network is called with the
same rows; the sum over :math:`r` in (2) is then made by halves (:mod:`difftilt.core.shares`), so that one process and
two come to the same to the last bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import distributed, nn

from difftilt import errors
from difftilt.core.shares import Split, count, gathered, rank
from difftilt.errors import ConfigError, StateError
from difftilt.types import Float, Tensor

_TOGETHER = ContextVar("together", default=False)


def is_first() -> bool:
    """Whether this is the first process, or the only one."""
    return rank() == 0


@contextmanager
def together(*networks: nn.Module, shares: int = 1) -> Generator[None]:
    """All processes run the same inside the block; rows of ``networks`` are split, equations (1) and (2).

    With one process and one share nothing changes. The networks are alike in all processes, and are called with rows
    first: ``(x_t, t, cond)``. A network called by another is not split again.

    Args:
        networks: what is split.
        shares: of all processes; as many as there are processes, or a multiple; 1 is as many.

    Raises:
        ConfigError: shares that cannot be dealt out evenly.
        StateError: a network has other numbers in another process.
    """
    shares = count() if shares == 1 else shares
    if shares % count():
        raise ConfigError(
            f"expected shares that {count()} processes can run evenly; got {shares}; choose a multiple of {count()}"
        )
    if shares == 1:
        yield
        return
    distinct = list({id(network): network for network in networks}.values())
    split, token = Split(shares), _TOGETHER.set(count() > 1)
    handles = []
    try:
        for network in distinct:
            refuse_unlike("networks", _fingerprint(network))
            handles.append(network.register_forward_pre_hook(split.share))
            handles.append(network.register_forward_hook(split.gather, always_call=True))
        trained = {id(p): p for network in distinct for p in network.parameters() if p.requires_grad}
        handles += [parameter.register_hook(_sum) for parameter in trained.values() if count() > 1]
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
    everyone = gathered(numbers[None].to(_device()))
    unlike = ~torch.isclose(everyone, everyone[:1], rtol=1e-6, atol=1e-12, equal_nan=True).all(1)
    if unlike.any():
        raise StateError(
            f"expected the same {what} in all {count()} processes; got others in process {int(unlike.nonzero()[0])}; "
            "load the same model in each, on the same kind of device, and use no random numbers of its own"
        )


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
