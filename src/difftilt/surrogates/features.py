r"""Features of relaxed designs, each multilinear in the letters' probabilities, so differentiable and exact on letters.

.. math::
    \text{one\_hot:}\quad & p_{lv} \\
    \text{pairs:}\quad & p_{lv}\, p_{l'v'}, \quad l < l' \\
    \text{kmers:}\quad & \sum_l p_{l v_1} p_{l+1, v_2} \cdots p_{l+k-1, v_k}

for every ``v``; the letters' own (one-hot), those of pairs of positions, and how often each word occurs wherever it
stands. With both strands a word counts also where the reverse complement has it (letters in an order in which
``V - 1 - v`` is the complement, as in ACGT).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch

from difftilt.errors import ConfigError, UnsupportedError, nearest
from difftilt.types import Float, Tensor

Features: TypeAlias = Callable[[Tensor], Tensor]
"""Readable designs ``[B, *event]`` to features ``[B, d]``."""
LARGEST = 4096
"""Features a surrogate takes: the d x d matrix of a linear one, 128 MB."""


def one_hot(p: Float[Tensor, "B *event"]) -> Float[Tensor, "B d"]:
    """The design itself, flattened."""
    return p.flatten(1)


def pairs(p: Float[Tensor, "B L V"]) -> Float[Tensor, "B d"]:
    """Letters of every two positions."""
    first, second = torch.triu_indices(p.shape[1], p.shape[1], offset=1)
    return torch.einsum("bpv,bpw->bpvw", p[:, first], p[:, second]).flatten(1)


def kmers(p: Float[Tensor, "B L V"], k: int | None = None, *, both_strands: bool = False) -> Float[Tensor, "B d"]:
    """Counts of words.

    Args:
        p: letters. Gradient flows.
        k: letters of a word; the most, up to 3, that have no more than 512 words when not given.
        both_strands: add the words of the reverse complement.
    """
    length, vocabulary = p.shape[1:]
    if k is None:
        k = max(k for k in (1, 2, 3) if k == 1 or (vocabulary**k <= 512 and k <= length))
    windows = length - k + 1
    words = p[:, :windows]
    for offset in range(1, k):
        words = torch.einsum("blw,blv->blwv", words, p[:, offset : offset + windows]).flatten(2)
    counts = words.sum(1)
    return counts + kmers(p.flip(1, 2), k) if both_strands else counts


FEATURES: dict[str, Features] = {
    "one_hot": one_hot,
    "pairs": pairs,
    "kmers": kmers,
    "kmers_both_strands": partial(kmers, both_strands=True),
}


def default_features(like: Float[Tensor, "N *event"]) -> tuple[str, ...]:
    """Letters and counts of words; of designs without letters, themselves."""
    return ("one_hot", "kmers") if like.ndim == 3 else ("one_hot",)


def features(names: tuple[str, ...], like: Float[Tensor, "N *event"]) -> Features:
    """The named features side by side, after a 1.

    Args:
        names: of :data:`FEATURES`.
        like: some designs, of whose shape the features will be.

    Raises:
        ConfigError: an unknown name, or more than :data:`LARGEST` features.
        UnsupportedError: features of letters, of designs that have none.
    """
    for name in names:
        if name not in FEATURES:
            raise nearest(name, FEATURES, what="feature")
    if like.ndim != 3 and set(names) != {"one_hot"}:
        raise UnsupportedError(
            f"expected designs of letters [L, V] for features {', '.join(names)}; got {list(like.shape[1:])}; use "
            "features one_hot, or a network's"
        )

    def together(p: Tensor) -> Tensor:
        return torch.cat([p.new_ones(len(p), 1), *[FEATURES[name](p) for name in names]], dim=1)

    size = together(like[:1]).shape[1]
    if size > LARGEST:
        raise ConfigError(
            f"expected at most {LARGEST:,} features; got {size:,} by {', '.join(names)}; leave out pairs, or use a "
            "network's features"
        )
    return together
