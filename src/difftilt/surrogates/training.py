r"""Bootstrap members of one network, trained together in one batched computation.

Member ``e`` minimises a weighted squared error on standardised values,

.. math:: \sum_i n_{ei} w_i (f_e(x_i) - y_i)^2, \qquad w_i \propto 1 / (v_i + \epsilon), \quad
    n_e \sim \mathrm{Multinomial}(N, 1/N)                                                                   \qquad (1)

where :math:`n_{ei}` is how often its resample holds row ``i``, :math:`v_i` is the noise variance of the row and
:math:`\epsilon` = 0.01 is a floor. Its rows with :math:`n_{ei} = 0`, about 37 %, are its held-out rows: training
keeps the parameters with the least error there, weighted by ``w`` too, and stops when no member improves. All members
see the same batches, so that one pass over a batch serves them all.

References:
    Breiman 1996, Bagging Predictors, https://doi.org/10.1007/BF00058655.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from difftilt.core.registry import construct
from difftilt.errors import ConfigError, DataError
from difftilt.rng import seeded_initialisation
from difftilt.types import Bool, Float, Tensor

FLOOR = 0.01
"""Epsilon of (1): a row without noise still misses by this share of the values' variance."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of the members' training."""

    epochs: int = 6
    """Most passes over the rows."""
    updates: int = 500
    """Steps of the optimiser that few rows are given, in place of epochs."""
    batch: int = 128
    """Rows per step."""
    learning_rate: float = 1e-2
    """AdamW's."""
    weight_decay: float = 1e-2
    """Decoupled, AdamW."""
    patience: int = 10
    """Looks at the held-out rows, 30 in all, without a better one by any member before training stops."""

    def __post_init__(self) -> None:
        if min(self.epochs, self.updates, self.batch, self.patience) < 1:
            raise ConfigError("expected epochs, updates, batch and patience of at least 1; got less; raise them")


def default_network(event_shape: tuple[int, ...]) -> dict[str, Any]:
    """A small network for designs of this shape: filters over windows of letters, else a perceptron."""
    if len(event_shape) == 2:
        length, vocabulary = event_shape
        return {"type": "windows", "vocabulary": vocabulary, "length": length}
    return {"type": "perceptron", "size": math.prod(event_shape)}


@dataclass(frozen=True)
class Members:
    """Trained networks of one form, with their parameters stacked."""

    network: nn.Module
    """The form; its own parameters are not used."""
    state: dict[str, Tensor]
    """Parameters and buffers ``[E, ...]``."""
    held_out: Bool[Tensor, "E N"]
    """Rows that a member's resample does not hold."""

    def __call__(self, p: Float[Tensor, "B *event"]) -> Float[Tensor, "E B"]:
        """Standardised predictions, float64. Gradient flows to ``p``."""
        return forward(self.network, self.state, p.float()).double()


def forward(network: nn.Module, state: dict[str, Tensor], p: Tensor) -> Float[Tensor, "E B"]:
    """All members at once."""
    return vmap(lambda one: functional_call(network, one, (p,)), randomness="different")(state)


def train(
    x: Float[Tensor, "N *event"],
    y: Float[Tensor, " N"],
    variance: Float[Tensor, " N"],
    rng: torch.Generator,
    *,
    members: int,
    network: dict[str, Any] | None,
    config: Training,
) -> Members:
    """Equation (1).

    Args:
        x: readable designs.
        y: standardised values.
        variance: their noise variances in the same unit.
        rng: draws resamples, initial parameters, order and dropout.
        members: ``E``.
        network: description of a registered regressor; :func:`default_network` when not given.
        config: settings.

    Raises:
        DataError: a loss that is no number.
    """
    x, y = x.float(), y.float()
    precision = 1 / (variance + FLOOR)
    drawn = torch.randint(len(x), (members, len(x)), generator=rng)
    counts = torch.zeros(members, len(x)).scatter_add_(1, drawn, torch.ones(members, len(x)))
    precision = (precision / precision.mean()).float()
    weight = counts * precision
    held_out = counts == 0
    held_out[~held_out.any(1)] = True  # a resample of few rows may hold them all
    total = max(config.updates, config.epochs * math.ceil(len(x) / config.batch))
    look = math.ceil(total / 30)
    with seeded_initialisation(int(torch.randint(2**31, (1,), generator=rng))):
        made = [construct("regressor", network or default_network(x.shape[1:])) for _ in range(members)]
        params, buffers = stack_module_state(made)
        form = copy.deepcopy(made[0]).train()
        optimiser = torch.optim.AdamW(params.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, total, eta_min=0.05 * config.learning_rate)
        best, since = torch.full((members,), math.inf), 0
        kept = {name: value.detach().clone() for name, value in params.items()}
        order = torch.empty(0, dtype=torch.long)
        for update in range(1, total + 1):
            if not len(order):
                order = torch.randperm(len(x), generator=rng)
            part, order = order[: config.batch], order[config.batch :]
            error = forward(form, params | buffers, x[part]) - y[part]
            optimiser.zero_grad(set_to_none=True)
            (weight[:, part] * error.square()).mean(1).sum().backward()
            optimiser.step()
            schedule.step()
            if update % look and update != total:
                continue
            form.eval()
            missed = _held_out_error(form, params | buffers, x, y, held_out * precision)
            form.train()
            better = missed < best
            best = missed.where(better, best)
            for name, value in params.items():
                kept[name][better] = value.detach()[better]
            since = 0 if better.any() else since + 1
            if since == config.patience:
                break
    if best.isinf().any():
        raise DataError("expected values that a network can fit; got a loss that is no number; check the values")
    return Members(form.eval().requires_grad_(False), kept | buffers, held_out)


@torch.no_grad()
def _held_out_error(
    form: nn.Module, state: dict[str, Tensor], x: Tensor, y: Tensor, weight: Tensor
) -> Float[Tensor, " E"]:
    """Weighted mean squared error of each member on its held-out rows."""
    predicted = torch.cat([forward(form, state, part) for part in x.split(512)], dim=1)
    return ((predicted - y).square() * weight).sum(1) / weight.sum(1)


def last_layer_features(members: Members) -> Callable[[Tensor], Tensor]:
    """What the first member's last linear layer reads, after a 1. Gradient flows."""
    network = copy.deepcopy(members.network)
    network.load_state_dict({name: value[0] for name, value in members.state.items()})
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    read: list[Tensor] = []
    last.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))

    def phi(p: Tensor) -> Tensor:
        network(p.float())
        hidden = read.pop().double()
        return torch.cat([hidden.new_ones(len(hidden), 1), hidden], dim=1)

    return phi
