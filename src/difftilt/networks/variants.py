r"""Networks for near copies of one wild type: sums over mutations, then a perceptron.

In a library of variants nearly all letters are the wild type's ``w``, and what matters is which sites are mutated, to
what, and how many already are. The denoiser starts from a law in closed form: the letters' frequencies in the data,
:math:`b_l(a)`, taken independently of each other but for the *number* of mutations, which has the data's own law,

.. math::
    p_b(x) &\propto c(n(x)) \prod_l b_l(x^l), \qquad r_l = 1 - b_l(w^l), \qquad
    c(n) = \hat q(n) / \mathrm{Poisson}(n; \textstyle\sum_l r_l)                                          \qquad (1) \\
    \frac{\pi_b^l(a \mid x_t)}{\pi_b^l(w^l \mid x_t)} &= \frac{b_l(a)}{b_l(w^l)}\,
    \frac{F_{n+1}(\lambda - r_l)}{F_n(\lambda - r_l)}, \qquad
    F_n(\lambda) = E_{k \sim \mathrm{Poisson}(\lambda)}\, c(n + k)                                         \qquad (2)

for :math:`a \ne w^l`, where ``n`` mutations are shown and :math:`\lambda` is the sum of :math:`r_l` over masked sites:
the conditionals of (1), as far as a sum of rare events is Poisson. What they miss, the network adds. A design is read
as the sum of a vector for each site that differs,

.. math::
    h(x_t) &= f\Big( \sum_l \big( E_l(x_t^l) - E_l(w^l) \big),\, n,\, m \Big)                              \qquad (3) \\
    \pi^l(a \mid x_t) &\propto \pi_b^l(a \mid x_t) \exp\big( u_l(a) \cdot h + g \cdot h\, 1[a \ne w^l] \big) \ (4) \\
    \hat y(x) &= v \cdot h                                                                                \qquad (5) \\
    \hat y(x) &= y_0 + \Big( y_1 + \sum_l \eta_l \Big)\,
        \sigma\Big( s + \sum_l \epsilon_l + \sum_{l < k} \langle \xi_l, \xi_k \rangle \Big)                  \qquad (6)

with ``m`` the share of masked sites and ``f`` a residual perceptron; ``u = g = 0`` at the start, to which weight decay
pulls. The regressor (5) is a global epistasis model: effects add up to a latent trait that a nonlinearity reads. The
regressor (6) is of another kind: a stability with effects :math:`\epsilon_l(x^l)` of single mutations and products of
vectors :math:`\xi_l(x^l)` of pairs, whose sigmoid is the share of molecules that work, and the height of those. No site
is like another, so nothing is shared between sites, and a call costs one row of a table for each mutation, where a
convolution costs its width for each site.

References:
    Otwinowski, McCandlish & Plotkin 2018 (global epistasis), https://doi.org/10.1073/pnas.1804015115;
    Sarkisyan et al. 2016 (a sum of effects and a sigmoid, for GFP), https://doi.org/10.1038/nature17995.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from difftilt.core.registry import register
from difftilt.errors import ConfigError
from difftilt.types import Condition, Float, Int, Tensor

MOST = 40
"""Mutations beyond which (1) tells numbers no longer apart."""
LEAST = 1e-12
"""Largest :math:`c` of a number of mutations that there never is, relative to the largest of the others."""


class MutationSum(nn.Module):
    """Equation (3).

    Args:
        symbols: symbols ``S`` of a site; a mask, where there is one, is the last.
        wild_type: tokens ``w``.
        width: size of the vectors.
        depth: residual layers of the perceptron.
        dropout: probability after every layer, in training.
        masked: whether the last symbol is the mask.
    """

    wild_type: Tensor

    def __init__(
        self, symbols: int, wild_type: Sequence[int], width: int, depth: int, dropout: float, *, masked: bool
    ) -> None:
        super().__init__()
        length = len(wild_type)
        self.symbols, self.masked = symbols, masked
        self.register_buffer("wild_type", torch.tensor(list(wild_type)), persistent=False)
        table = 0.1 * torch.randn(length, symbols, width)
        if masked:  # hundreds of masked sites add up
            table[:, -1] *= length**-0.5
        self.table = nn.Parameter(table)
        self.counts = nn.Linear(2, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)) for _ in range(depth)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Float[Tensor, "B D"]:
        """:math:`h` of tokens ``[B, L]`` or of relaxed tokens ``[B, L, S]``. Gradient flows to relaxed ones."""
        places = torch.arange(len(self.wild_type), device=x.device)
        table = self.table - self.table[places, self.wild_type][:, None]
        if x.ndim == 2:
            hidden = F.embedding_bag(x + places * self.symbols, table.flatten(0, 1), mode="sum")
            mask = (x == self.symbols - 1) if self.masked else torch.zeros_like(x, dtype=torch.bool)
            mutated = ((x != self.wild_type) & ~mask).sum(1).to(hidden.dtype)
            masked = mask.to(hidden.dtype).mean(1)
        else:
            hidden = torch.einsum("blv,lvd->bd", x.to(table.dtype), table)
            share = x[..., -1] if self.masked else torch.zeros_like(x[..., -1])
            kept = x.gather(-1, self.wild_type.expand(len(x), -1)[..., None])[..., 0]
            mutated, masked = (1 - kept - share).sum(1).to(hidden.dtype), share.mean(1).to(hidden.dtype)
        hidden = self.dropout(hidden) + self.counts(torch.stack([mutated / 4, masked], dim=1))
        for norm, layer in zip(self.norms, self.layers, strict=True):
            hidden = hidden + self.dropout(layer(norm(hidden)))
        return hidden


@register("denoiser", "variants")
class VariantDenoiser(nn.Module):
    """Equation (4); does not look at the time.

    Args:
        vocabulary: letters ``V``; the input has one symbol more, the mask.
        length: positions ``L``.
        wild_type: tokens ``w``.
        width: size of :math:`h`.
        depth: residual layers.
        dropout: probability in pretraining; tuning and sampling run in eval mode.

    Raises:
        ConfigError: a wild type of another length.
    """

    time_free = True
    base: Float[Tensor, "L V"]
    log_count: Float[Tensor, " M1"]

    def __init__(
        self,
        vocabulary: int,
        length: int,
        wild_type: Sequence[int],
        width: int = 64,
        depth: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        _check(wild_type, length)
        self.arguments = {
            "vocabulary": vocabulary, "length": length, "wild_type": list(wild_type), "width": width, "depth": depth,
            "dropout": dropout,
        }  # fmt: skip
        self.read = MutationSum(vocabulary + 1, wild_type, width, depth, dropout, masked=True)
        self.norm = nn.LayerNorm(width)
        self.write = nn.Linear(width, length * vocabulary, bias=False)
        self.rate = nn.Linear(width, 1, bias=False)
        self.silence()
        # no parameters: weight decay would flatten them
        self.register_buffer("base", torch.zeros(length, vocabulary))
        self.register_buffer("log_count", torch.zeros(MOST + 1))

    @torch.no_grad()
    def start_from(
        self, frequencies: Float[Tensor, "L V"], shares: Float[Tensor, " M1"] | None = None
    ) -> VariantDenoiser:
        r"""Make (1) the law of the silent network.

        Args:
            frequencies: :math:`b`; rows sum to 1.
            shares: :math:`\hat q` for 0, 1, ... mutations, positive; there are never more. Without it, ``c = 1``: sites
                are independent.
        """
        self.base.copy_(frequencies.log())
        self.log_count.zero_()
        if shares is not None:
            law = shares.double()[: MOST + 1]
            number = torch.arange(len(law), dtype=torch.float64)
            log_count = (law / law.sum()).log() - _log_poisson(number, self._rates().double().sum())
            self.log_count.fill_(log_count.max() + math.log(LEAST))
            self.log_count[: len(law)] = log_count
        return self

    @torch.no_grad()
    def silence(self) -> None:
        """Leave (1) alone: ``u = g = 0``."""
        self.write.weight.zero_()
        self.rate.weight.zero_()

    def _rates(self) -> Float[Tensor, " L"]:
        """:math:`r` of (1)."""
        return 1 - self.base.softmax(-1).gather(1, self.read.wild_type[:, None])[:, 0]

    def _log_odds(self, shown: Float[Tensor, " B"], masked: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        r"""Log of the ratio of :math:`F` in (2): how much likelier than alone a mutation is at each site.

        :math:`F_n' = F_{n+1} - F_n`, so that :math:`F_n(\lambda_t - r)` is had from its Taylor series, to second order.
        """
        rates = self._rates()
        left = (masked @ rates).clamp(min=1e-9).double()
        number = torch.arange(MOST + 1, device=left.device, dtype=torch.float64)
        weight = _log_poisson(number, left[:, None]).exp()
        first = shown.round().long()[:, None] + torch.arange(4, device=left.device)
        place = (first[..., None] + number.long()).clamp(max=MOST)
        highest = self.log_count.max().double()
        count = (self.log_count.double() - highest).exp()[place]
        f = (weight[:, None] * count).sum(-1)[..., None]
        r = rates.double()
        one, zero = (
            (f[:, n] - r * (f[:, n + 1] - f[:, n]) + r**2 / 2 * (f[:, n + 2] - 2 * f[:, n + 1] + f[:, n])).clamp(
                min=LEAST
            )
            for n in (1, 0)
        )
        return (one / zero).log().to(masked.dtype)

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Float[Tensor, "B L V"]:
        """Logits of the token laws; ``x_t`` is ``[B, L]`` tokens or ``[B, L, V + 1]`` relaxed tokens, one-hot in value.

        Gradient flows to relaxed tokens through :math:`h`, not through the number of mutations in (2).
        """
        hidden = self.norm(self.read(x_t))
        letters = self.base.shape[1]
        tokens = x_t if x_t.ndim == 2 else x_t.detach().argmax(-1)
        masked = tokens == letters
        shown = ((tokens != self.read.wild_type) & ~masked).sum(1)
        rise = self._log_odds(shown.to(hidden.dtype), masked.to(hidden.dtype)) + self.rate(hidden)
        mutant = 1 - F.one_hot(self.read.wild_type, letters).to(hidden.dtype)
        return self.base + self.write(hidden).unflatten(1, self.base.shape) + rise[..., None] * mutant

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return self.arguments


@register("regressor", "variants")
class VariantRegressor(nn.Module):
    """Equation (5).

    Args:
        vocabulary: letters ``V``.
        length: positions ``L``.
        wild_type: tokens ``w``.
        width: size of :math:`h`.
        depth: residual layers.
        dropout: probability in training.

    Raises:
        ConfigError: a wild type of another length.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        wild_type: Sequence[int],
        width: int = 32,
        depth: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        _check(wild_type, length)
        self.arguments = {
            "vocabulary": vocabulary, "length": length, "wild_type": list(wild_type), "width": width, "depth": depth,
            "dropout": dropout,
        }  # fmt: skip
        self.read = MutationSum(vocabulary, wild_type, width, depth, dropout, masked=False)
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Float[Tensor, " B"]:
        """Standardised prediction of ``[B, L]`` tokens or ``[B, L, V]`` probabilities. Gradient flows to ``x``."""
        return self.head(self.read(x))[:, 0]

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return self.arguments


@register("regressor", "stability")
class StabilityRegressor(nn.Module):
    """Equation (6).

    Args:
        vocabulary: letters ``V``.
        length: positions ``L``.
        wild_type: tokens ``w``.
        rank: size of the vectors of sites.

    Raises:
        ConfigError: a wild type of another length.
    """

    wild_type: Tensor

    def __init__(self, vocabulary: int, length: int, wild_type: Sequence[int], rank: int = 8) -> None:
        super().__init__()
        _check(wild_type, length)
        self.arguments = {
            "vocabulary": vocabulary, "length": length, "wild_type": list(wild_type), "rank": rank
        }  # fmt: skip
        self.register_buffer("wild_type", torch.tensor(list(wild_type)), persistent=False)
        single = torch.zeros(length, vocabulary, 2)  # of the stability and of the height
        self.table = nn.Parameter(torch.cat([single, 0.1 * torch.randn(length, vocabulary, rank)], dim=2))
        self.start = nn.Parameter(torch.tensor([3.0, 2.0, -1.0]))  # stability and height of the wild type, floor

    def forward(self, x: Tensor) -> Float[Tensor, " B"]:
        """Standardised prediction of ``[B, L]`` tokens or ``[B, L, V]`` probabilities. Gradient flows to ``x``."""
        places = torch.arange(len(self.wild_type), device=x.device)
        table = self.table - self.table[places, self.wild_type][:, None]
        if x.ndim == 2:
            index, flat = x + places * table.shape[1], table.flatten(0, 1)
            total = F.embedding_bag(index, flat, mode="sum")
            own = F.embedding_bag(index, flat[:, 2:].square().sum(1, keepdim=True), mode="sum")[:, 0]
        else:
            sites = torch.einsum("blv,lvd->bld", x.to(table.dtype), table)
            total, own = sites.sum(1), sites[..., 2:].square().sum((1, 2))
        stable = self.start[0] + total[:, 0] + (total[:, 2:].square().sum(1) - own) / 2
        return self.start[2] + (self.start[1] + total[:, 1]) * stable.sigmoid()

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return self.arguments


def _check(wild_type: Sequence[int], length: int) -> None:
    if len(wild_type) != length:
        raise ConfigError(f"expected a wild type of {length} letters; got {len(wild_type)}; pass that of these designs")


def site_frequencies(tokens: Int[Tensor, "N L"], vocabulary: int, *, pseudocount: float) -> Float[Tensor, "L V"]:
    """Frequencies of letters at each site, with ``pseudocount`` added to each count; rows sum to 1. float64."""
    counts = torch.full((tokens.shape[1], vocabulary), pseudocount, dtype=torch.float64)
    for site, column in enumerate(tokens.T):
        counts[site] += torch.bincount(column, minlength=vocabulary)
    return counts / counts.sum(1, keepdim=True)


def _log_poisson(number: Float[Tensor, " K"], rate: Tensor) -> Tensor:
    return number * rate.log() - rate - torch.lgamma(number + 1)
