r"""Bootstrap members of one network, trained together in one batched computation.

Member ``e`` minimises a weighted squared error on standardised values,

.. math:: \sum_i n_{ei} w_i (f_e(x_i) - y_i)^2, \qquad w_i \propto 1 / (v_i + \epsilon), \quad
    n_e \sim \mathrm{Multinomial}(N, 1/N)                                                                   \qquad (1)

where :math:`n_{ei}` is how often its resample holds row ``i``, :math:`v_i` is the noise variance of the row and
:math:`\epsilon` = 0.01 is a floor. Its rows with :math:`n_{ei} = 0`, about 37 %, are its held-out rows: training
keeps the parameters with the least error there, weighted by ``w`` too, and stops when no member improves. All members
see the same batches, so that one pass over a batch serves them all.

Away from the rows, members trained alike extrapolate alike, and agree on what none of them can know. A *randomised
prior* makes them disagree there: member ``e`` is

.. math:: f_e = g_e + \beta_E\, (q_e - \bar q), \qquad q_e = (p_e - \mu_e) / \sigma_e, \qquad
    \beta_E = \beta \sqrt{E / (E - 1)}                                                                     \qquad (2)

with :math:`p_e` a network of the same form at its random start, which stays as it is, of mean :math:`\mu_e` and std
:math:`\sigma_e` over the rows, and :math:`g_e` trained so that :math:`f_e` meets (1): near the rows it undoes the
prior, elsewhere it cannot know of it. Priors have the spread :math:`\beta` over the rows, where the values have 1.

Differs from the paper in: :math:`\bar q`, the members' mean, is taken off, so that the mean of the members is not moved
by random functions; heights by the rows.

References:
    Breiman 1996, Bagging Predictors, https://doi.org/10.1007/BF00058655.
    Osband, Aslanides & Cassirer 2018 (randomised priors, section 3), https://arxiv.org/abs/1806.03335.
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
class Priors:
    """Random functions of (2), which no row changes."""

    network: nn.Module
    """The form; its own parameters are not used."""
    state: dict[str, Tensor]
    """Parameters and buffers ``[E, ...]``."""
    shift: Float[Tensor, "E 1"]
    r""":math:`\mu_e`."""
    height: Float[Tensor, "E 1"]
    r""":math:`\beta_E / \sigma_e`."""

    def __call__(self, p: Float[Tensor, "B *event"]) -> Float[Tensor, "E B"]:
        """What is added to each member, standardised, float64; its sum over members is 0. Gradient flows to ``p``."""
        value = self.height * (forward(self.network, self.state, p.float()).double() - self.shift)
        return value - value.mean(0)


@dataclass(frozen=True)
class Members:
    """Trained networks of one form, with their parameters stacked."""

    network: nn.Module
    """The form; its own parameters are not used."""
    state: dict[str, Tensor]
    """Parameters and buffers ``[E, ...]``."""
    held_out: Bool[Tensor, "E N"]
    """Rows that a member's resample does not hold."""
    priors: Priors | None = None
    """Equation (2); ``None`` where beta is 0."""

    def __call__(self, p: Float[Tensor, "B *event"]) -> Float[Tensor, "E B"]:
        """Standardised predictions, float64. Gradient flows to ``p``."""
        value = forward(self.network, self.state, p.float()).double()
        return value if self.priors is None else value + self.priors(p)


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
    prior_std: float = 0.0,
) -> Members:
    r"""Equation (1).

    Args:
        x: readable designs.
        y: standardised values.
        variance: their noise variances in the same unit.
        rng: draws resamples, initial parameters, order and dropout.
        members: ``E``.
        network: description of a registered regressor; :func:`default_network` when not given.
        config: settings.
        prior_std: :math:`\beta` of (2), standardised; needs two members where it is not 0.

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
        described, target, priors = network or default_network(x.shape[1:]), y.expand(members, -1), None
        if prior_std:
            priors = _priors([construct("regressor", described) for _ in range(members)], x, prior_std)
            target = target - torch.cat([priors(part) for part in x.split(512)], dim=1).float()
        made = [construct("regressor", described) for _ in range(members)]
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
            error = forward(form, params | buffers, x[part]) - target[:, part]
            optimiser.zero_grad(set_to_none=True)
            (weight[:, part] * error.square()).mean(1).sum().backward()
            optimiser.step()
            schedule.step()
            if update % look and update != total:
                continue
            form.eval()
            missed = _held_out_error(form, params | buffers, x, target, held_out * precision)
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
    return Members(form.eval().requires_grad_(False), kept | buffers, held_out, priors)


@torch.no_grad()
def _priors(made: list[nn.Module], x: Float[Tensor, "N *event"], std: float) -> Priors:
    """Equation (2) of networks at their random start."""
    form = copy.deepcopy(made[0]).eval().requires_grad_(False)
    params, buffers = stack_module_state(made)
    state = {name: value.detach() for name, value in (params | buffers).items()}
    value = torch.cat([forward(form, state, part) for part in x.split(512)], dim=1).double()
    whole = std * (len(made) / (len(made) - 1)) ** 0.5
    return Priors(form, state, value.mean(1, keepdim=True), whole / value.std(1, keepdim=True).clamp(min=1e-12))


@torch.no_grad()
def _held_out_error(
    form: nn.Module, state: dict[str, Tensor], x: Tensor, target: Float[Tensor, "E N"], weight: Tensor
) -> Float[Tensor, " E"]:
    """Weighted mean squared error of each member on its held-out rows."""
    predicted = torch.cat([forward(form, state, part) for part in x.split(512)], dim=1)
    return ((predicted - target).square() * weight).sum(1) / weight.sum(1)


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
