r"""Networks for near copies of one wild type: sums over mutations, then a perceptron.

In a library of variants nearly all letters are the wild type's ``w``, and what matters is which sites are mutated, to
what, and how many already are. A design is read as the sum of a vector for each site that differs,

.. math:: z(x_t) = \sum_l \big( E_l(x_t^l) - E_l(w^l) \big), \qquad h = f(z, n, m)                        \qquad (1)

where ``n`` counts the mutations shown and ``m`` the masked sites, and ``f`` is a residual perceptron. The denoiser adds
what it says to the letters' frequencies in the data, :math:`b_l(a)`, and the regressor reads it out:

.. math::
    \pi^l(a \mid x_t) &\propto \exp\big( b_l(a) + u_l(a) \cdot h + g \cdot h\, 1[a \ne w^l] \big)        \qquad (2) \\
    \hat y(x) &= v \cdot h                                                                                \qquad (3)

With ``u = g = 0``, the start, (2) is the site-independent model, to which weight decay pulls. :math:`g` raises or
lowers all mutations together, so that their number has the data's law at once; (1) in (3) is a global epistasis model:
effects add up to a latent trait that a nonlinearity reads. No site is like another, so nothing is shared between sites,
and a call costs one row of a table for each mutation, where a convolution costs its width for each site.

References:
    Otwinowski, McCandlish & Plotkin 2018 (global epistasis), https://doi.org/10.1073/pnas.1804015115;
    Sarkisyan et al. 2016 (a sum of effects and a sigmoid, for GFP), https://doi.org/10.1038/nature17995.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from difftilt.core.registry import register
from difftilt.errors import ConfigError
from difftilt.types import Condition, Float, Int, Tensor


class MutationSum(nn.Module):
    """Equation (1).

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
        table = 0.5 * torch.randn(length, symbols, width)
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
    """Equation (2); does not look at the time.

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
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.rate.weight)
        self.register_buffer("base", torch.zeros(length, vocabulary))  # no parameter: weight decay would flatten it

    @torch.no_grad()
    def start_from(self, frequencies: Float[Tensor, "L V"]) -> VariantDenoiser:
        """Set ``b`` to the log of letters' frequencies at each site; where the network is silent, that is its law."""
        self.base.copy_(frequencies.log())
        return self

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Float[Tensor, "B L V"]:
        """Logits of the token laws; ``x_t`` is ``[B, L]`` tokens or ``[B, L, V + 1]`` relaxed tokens."""
        hidden = self.norm(self.read(x_t))
        mutant = 1 - F.one_hot(self.read.wild_type, self.base.shape[1]).to(hidden.dtype)
        return self.base + self.write(hidden).unflatten(1, self.base.shape) + self.rate(hidden)[..., None] * mutant

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return self.arguments


@register("regressor", "variants")
class VariantRegressor(nn.Module):
    """Equation (3).

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


def _check(wild_type: Sequence[int], length: int) -> None:
    if len(wild_type) != length:
        raise ConfigError(f"expected a wild type of {length} letters; got {len(wild_type)}; pass that of these designs")


def site_frequencies(tokens: Int[Tensor, "N L"], vocabulary: int, *, pseudocount: float) -> Float[Tensor, "L V"]:
    """Frequencies of letters at each site, with ``pseudocount`` added to each count; rows sum to 1. float64."""
    counts = torch.full((tokens.shape[1], vocabulary), pseudocount, dtype=torch.float64)
    for site, column in enumerate(tokens.T):
        counts[site] += torch.bincount(column, minlength=vocabulary)
    return counts / counts.sum(1, keepdim=True)
