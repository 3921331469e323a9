r"""What a round tunes for, and which of its candidates are measured.

With mean :math:`\mu`, epistemic std :math:`\sigma` and covariance :math:`k` of a surrogate, the reward to tune for is

.. math::
    \text{ucb: } \mu + C \sigma \qquad \text{lcb: } \mu - C \sigma \qquad \text{mean: } \mu \qquad
    \text{bootstrap: } \max_e f_e \qquad \text{thompson: one draw } f                                       \qquad (1)

each plus :math:`T \log P(F \mid x)` where designs have failed. From a pool of candidates a plate is picked one by one,
each the best by (1) given those before. A pick is as good as measured for what is *not known*, whatever its value will
be, so that the next one's std is that of

.. math:: k(x, x') \leftarrow k(x, x') - \frac{k(x, x_j)\, k(x_j, x')}{k(x_j, x_j) + m^2 + s^2}              \qquad (2)

with the misfit ``m`` and the noise ``s``: near a pick there is less left to learn. This is what ucb trades against
value; for thompson every pick is the best of a new draw. The others pick by value alone, and designs are kept apart by
their number of different letters.

References:
    Desautels et al. 2014 (GP-BUCB, eq. 8), https://jmlr.org/papers/v15/desautels14a.html;
    Uehara, Zhao et al. 2024 (SEIKO), https://arxiv.org/abs/2402.16359.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from difftilt.campaigns.learning import Learned
from difftilt.campaigns.settings import Picking
from difftilt.core.reward import DifferentiableReward
from difftilt.errors import ConfigError
from difftilt.surrogates.ensemble import EnsembleSurrogate
from difftilt.surrogates.measurements import readable
from difftilt.surrogates.rewards import Bound, Feasible, Largest
from difftilt.surrogates.surrogate import Surrogate
from difftilt.types import Float, Int, Tensor

ACQUISITIONS = ("ucb", "lcb", "mean", "bootstrap", "thompson")


def acquisition(
    name: str, learned: Learned, rng: torch.Generator, *, c: float, temperature: float
) -> DifferentiableReward:
    """Equation (1).

    Args:
        name: of :data:`ACQUISITIONS`.
        learned: gives the surrogate.
        rng: for a draw.
        c: ``C``, standard deviations.
        temperature: ``T``, the sum of the anchors' weights, reward units per nat.

    Raises:
        ConfigError: bootstrap of a surrogate without members.
    """
    surrogate = learned.surrogate
    if name == "bootstrap":
        if not isinstance(surrogate, EnsembleSurrogate):
            raise ConfigError("expected an ensemble for seiko-bootstrap; got another; leave out --surrogate")
        reward: DifferentiableReward = Largest(surrogate)
    elif name == "thompson":
        reward = surrogate.draw(rng)
    else:
        reward = Bound(surrogate, {"ucb": c, "lcb": -c, "mean": 0.0}[name])
    return reward if learned.feasibility is None else Feasible(reward, learned.feasibility, temperature)


@dataclass(frozen=True)
class Picks:
    """Some of a pool, in the order of picking."""

    index: Int[Tensor, " n"]
    """Places in the pool."""
    mean: Float[Tensor, " n"]
    """Predicted, reward units."""
    std: Float[Tensor, " n"]
    """Epistemic, before the plate."""
    given: Float[Tensor, " n"]
    """Epistemic, given the picks before: equation (2)."""


@torch.no_grad()
def pick(
    name: str, pool: Sequence[Any], learned: Learned, n: int, settings: Picking, rng: torch.Generator, *,
    temperature: float,
) -> Picks:  # fmt: skip
    """At most ``n`` of a pool of distinct designs: by (1) and (2), or as they were drawn.

    Args:
        name: of :data:`ACQUISITIONS`.
        pool: designs in the order in which they were drawn.
        learned: gives the surrogate.
        n: how many.
        settings: the rule, ``C`` and how far apart.
        rng: for draws.
        temperature: ``T``, reward units per nat.
    """
    surrogate = learned.surrogate
    p = readable(surrogate.codec, pool)
    mean, covariance = surrogate.joint(p)
    std = surrogate.at(p).std
    bonus = torch.zeros_like(mean)
    if learned.feasibility is not None:
        bonus = temperature * learned.feasibility.log_probability(p)
    noise = surrogate.misfit**2 + surrogate.noise**2
    root = draw_root(covariance) if name == "thompson" and settings.rule == "greedy" else None
    free = torch.ones(len(pool), dtype=torch.bool)
    chosen: list[int] = []
    given: list[Tensor] = []
    for _ in range(n):
        if not free.any():
            break
        now = covariance.diagonal().clamp(min=0).sqrt()
        if settings.rule == "as_drawn":
            value = -torch.arange(len(pool), dtype=torch.float64)
        elif root is not None:
            value = mean + root @ torch.randn(root.shape[1], generator=rng, dtype=torch.float64)
        else:
            value = _value(name, surrogate, p, mean, std, now, settings.c)
        best = int((value + bonus).where(free, -torch.inf).argmax())
        chosen.append(best)
        given.append(now[best])
        covariance = conditioned(covariance, best, noise)
        free = free & (differences(p, p[best]) >= settings.apart)
        free[best] = False
    index = torch.tensor(chosen, dtype=torch.long)
    return Picks(index, mean[index], std[index], torch.stack(given) if given else mean[index])


def _value(
    name: str, surrogate: Surrogate, p: Tensor, mean: Tensor, std: Tensor, now: Tensor, c: float
) -> Float[Tensor, " N"]:
    """Equation (1) of a pool, the std of ucb being that of (2)."""
    if name == "bootstrap":
        assert isinstance(surrogate, EnsembleSurrogate)
        return surrogate.members(p).amax(0)
    return mean + {"ucb": c * now, "lcb": -c * std}.get(name, torch.zeros_like(mean))


def conditioned(covariance: Float[Tensor, "N N"], j: int, noise: float) -> Float[Tensor, "N N"]:
    """Equation (2): the covariance once ``j`` is measured with the variance ``noise``."""
    along = covariance[:, j]
    total = along[j] + noise
    return covariance - torch.outer(along, along) / total if total > 0 else covariance


def draw_root(covariance: Float[Tensor, "N N"]) -> Float[Tensor, "N N"]:
    """``R`` with ``R R'`` the covariance."""
    value, vector = torch.linalg.eigh(covariance)
    return vector * value.clamp(min=0).sqrt()


def differences(p: Float[Tensor, "N *event"], one: Float[Tensor, "*event"]) -> Int[Tensor, " N"]:
    """Number of letters in which designs differ from one; of designs without letters, of numbers."""
    apart = (p != one).any(-1) if p.ndim == 3 else p != one
    return apart.flatten(1).sum(1)
