r"""Ready problems with exact answers, and a denoiser that is a table.

A pairwise function of a sequence, used both for the data law and for the reward:

.. math:: f(x) = \sum_i h_i(x_i) + \sum_{i<j} J_{ij}(x_i, x_j)                                       \qquad (1)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from difftilt.core.codec import Codec, TokenCodec
from difftilt.core.policy import Policy
from difftilt.core.registry import register
from difftilt.problems.exact_value import corner_weights
from difftilt.problems.tilted import TiltedProblem, kl_divergence
from difftilt.processes.masked import Masked
from difftilt.rng import seeded_initialisation
from difftilt.types import Condition, Float, Tensor


@register("denoiser", "tabular")
class TabularDenoiser(nn.Module):
    r"""One free row of logits for every partial state and position: every time-free policy there is.

    A relaxed input is read by the multilinear extension of the table (its value at one-hot inputs, linear in each
    position), so that straight-through gradients are defined.

    Args:
        vocabulary: letters ``V``.
        length: positions ``L``; the table has :math:`(V+1)^L L V` entries, 0 at the start (uniform laws).
    """

    time_free = True
    strides: Tensor

    def __init__(self, vocabulary: int, length: int) -> None:
        super().__init__()
        self.vocabulary, self.length = vocabulary, length
        base = vocabulary + 1
        self.logits = nn.Parameter(torch.zeros(base**length, length, vocabulary, dtype=torch.float64))
        self.register_buffer("strides", base ** torch.arange(length - 1, -1, -1), persistent=False)

    @classmethod
    def from_joint(cls, joint: Float[Tensor, "*V"]) -> TabularDenoiser:
        r"""The exact conditionals :math:`p(x^i \mid \text{shown letters})` of a joint law, one axis per position.

        They agree in whatever order positions are shown, so that the one-token-per-step chain samples ``joint``.
        """
        length, vocabulary = joint.ndim, joint.shape[0]
        table = joint.double() / joint.sum()
        for axis in range(length):  # the mask sums its position out
            table = torch.cat([table, table.sum(axis, keepdim=True)], dim=axis)
        denoiser = cls(vocabulary, length)
        logits = denoiser.logits.data.view(*table.shape, length, vocabulary)
        for i in range(length):
            logits[..., i, :] = table.log().narrow(i, 0, vocabulary).movedim(i, -1).unsqueeze(i)
        return denoiser

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Float[Tensor, "B L V"]:
        """Rows of the table; ``x_t`` is ``[B, L]`` tokens or ``[B, L, V + 1]`` relaxed tokens."""
        if x_t.ndim == 2:
            return self.logits[x_t @ self.strides]
        return (corner_weights(x_t) @ self.logits.flatten(1)).view(-1, self.length, self.vocabulary)

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"vocabulary": self.vocabulary, "length": self.length}


@register("denoiser", "corrected")
class CorrectedDenoiser(nn.Module):
    r"""A frozen table plus a small trained network: logits :math:`T(x_t) + f_\theta(x_t)`, with f = 0 at the start.

    The network shares what it learns between states, as a real denoiser does, while the start is exact.

    Args:
        vocabulary: letters ``V``.
        length: positions ``L``.
        hidden: units of each of two hidden layers.
    """

    time_free = True

    def __init__(self, vocabulary: int, length: int, hidden: int = 256) -> None:
        super().__init__()
        self.hidden = hidden
        self.table = TabularDenoiser(vocabulary, length)
        self.network = silent_network(vocabulary, length, hidden)

    def requires_grad_(self, requires_grad: bool = True) -> CorrectedDenoiser:
        """Switch the network's gradients; the table stays frozen."""
        super().requires_grad_(requires_grad)
        self.table.requires_grad_(False)
        return self

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Float[Tensor, "B L V"]:
        """Logits; ``x_t`` is ``[B, L]`` tokens or ``[B, L, V + 1]`` relaxed tokens."""
        table = self.table(x_t, t, cond)
        one_hot = F.one_hot(x_t, self.table.vocabulary + 1) if x_t.ndim == 2 else x_t
        return table + self.network(one_hot.flatten(1).float()).view_as(table)

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**self.table.config(), "hidden": self.hidden}


def silent_network(vocabulary: int, length: int, hidden: int) -> nn.Sequential:
    """From flattened one-hot letters, the mask included, to logits of every position: 0 until it is trained."""
    last = nn.Linear(hidden, length * vocabulary)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        nn.Linear(length * (vocabulary + 1), hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), last
    )


def corrected(policy: Policy, *, hidden: int = 256, seed: int = 0) -> Policy:
    """The law of a tabular policy, ready to be tuned through a :class:`CorrectedDenoiser`.

    Args:
        policy: with a :class:`TabularDenoiser`.
        hidden: width of the network.
        seed: of its initial weights.
    """
    table = policy.denoiser
    assert isinstance(table, TabularDenoiser)
    with seeded_initialisation(seed):
        denoiser = CorrectedDenoiser(table.vocabulary, table.length, hidden=hidden)
    denoiser.table.load_state_dict(table.state_dict())
    tuned = Policy(denoiser, policy.process, policy.codec, policy.event_shape, grid=policy.grid, fixed=policy.fixed)
    denoiser.requires_grad_(True)
    return tuned


class PairwiseReward:
    """Equation (1) on designs, and its multilinear extension on probabilities.

    Args:
        single: :math:`h`, ``[L, V]``, reward units.
        pair: :math:`J`, ``[L, L, V, V]``; only ``i < j`` is read.
        codec: reads designs.
    """

    def __init__(self, single: Float[Tensor, "L V"], pair: Float[Tensor, "L L V V"], codec: Codec) -> None:
        upper = torch.ones(len(single), len(single), dtype=torch.bool).triu(1)
        self.single, self.pair, self.codec = single, pair * upper[:, :, None, None], codec

    def __call__(self, designs: Sequence[Any]) -> Float[Tensor, " B"]:
        """Reward of each design."""
        return self.on_probabilities(F.one_hot(self.codec.encode(designs), self.single.shape[1]).double())

    def on_probabilities(self, p: Float[Tensor, "B L V"]) -> Float[Tensor, " B"]:
        """Reward expected of independent letters with laws ``p``. Gradient flows to ``p``."""
        field = torch.einsum("ijab,njb->nia", self.pair.to(p.dtype), p) + self.single.to(p.dtype)
        return (p * field).sum((1, 2))

    def scaled(self, factor: float) -> PairwiseReward:
        """The same reward in other units."""
        return PairwiseReward(factor * self.single, factor * self.pair, self.codec)


class TableReward:
    """A reward that is a table; designs it lacks are infeasible (NaN).

    Args:
        table: value of each design.
    """

    def __init__(self, table: Mapping[str, float]) -> None:
        self.table = table

    def __call__(self, designs: Sequence[str]) -> list[float]:
        """Reward of each design."""
        return [self.table.get(design, math.nan) for design in designs]


def random_pairwise(
    length: int = 6,
    letters: int = 4,
    *,
    alpha: float = 0.5,
    target_kl: float = 2.0,
    seed: int = 0,
    reveal: str = "count",
    steps: int | None = None,
) -> TiltedProblem:
    r"""A random data law and a random reward, both pairwise (1), the reward scaled to a given tilt.

    Args:
        length: positions ``L``.
        letters: alphabet size ``V`` (ACGT for four).
        alpha: KL temperature, reward units per nat.
        target_kl: :math:`KL(p^* \| p_{pre})` at :math:`x_0`, nats.
        seed: of both functions.
        reveal: reveal law of the process.
        steps: ``K``; ``length`` by default (one token per step with ``reveal="count"``).

    Returns:
        The problem; its pretrained policy holds the data law's exact conditionals, float64.
    """
    rng = torch.Generator().manual_seed(seed)
    codec = TokenCodec("ACGTEFHIKLMNPQRSVWYD"[:letters], length)

    def draw(single: float, pair: float) -> PairwiseReward:
        h = torch.randn(length, letters, generator=rng, dtype=torch.float64)
        j = torch.randn(length, length, letters, letters, generator=rng, dtype=torch.float64)
        return PairwiseReward(single * h, pair / math.sqrt(length) * j, codec)

    data, reward = draw(0.5, 0.5), draw(1.0, 1.0)
    every = torch.cartesian_prod(*[torch.arange(letters)] * length).view(-1, length)
    joint = data(codec.decode(every)).softmax(0).view([letters] * length)
    policy = Policy(
        TabularDenoiser.from_joint(joint), Masked(letters, reveal), codec, (length,), steps=steps or length
    ).frozen_copy()
    plain = TiltedProblem(policy, reward, alpha=alpha)
    scale = _scale_for(plain.pretrained_law, plain.table / alpha, target_kl)
    return TiltedProblem(policy, reward.scaled(scale), alpha=alpha)


def _scale_for(law: Float[Tensor, " N"], exponent: Float[Tensor, " N"], target: float) -> float:
    r"""Factor ``c`` with :math:`KL(p\, e^{c r/\alpha} / Z \| p)` equal to ``target`` nats (it grows with c)."""
    low, high = 0.0, 1.0
    while _tilt_kl(law, exponent, high) < target and high < 1e6:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _tilt_kl(law, exponent, middle) < target else (low, middle)
    return high


def _tilt_kl(law: Float[Tensor, " N"], exponent: Float[Tensor, " N"], factor: float) -> float:
    return kl_divergence((law.log() + factor * exponent).softmax(0), law)
