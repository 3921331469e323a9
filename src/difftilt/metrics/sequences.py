r"""Naturalness, diversity and novelty of equal-length token sequences ``[N, L]`` over ``V`` letters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from difftilt.types import Float, Int, Tensor


class MarkovModel:
    r"""Position-free Markov model of order ``n``: the yardstick a sequence prior has to beat.

    .. math:: p(x) = \prod_i p(x_i \mid x_{i-n}, \dots, x_{i-1})

    Counts are smoothed by back-off, :math:`p_n = (c_n + \kappa p_{n-1}) / (c + \kappa)`; the first positions use the
    shorter contexts.

    Args:
        tokens: training sequences.
        order: context length ``n``.
        vocabulary: letters ``V``.
        smoothing: strength :math:`\kappa` of the back-off, in counts.
    """

    def __init__(self, tokens: Int[Tensor, "N L"], order: int, vocabulary: int, smoothing: float = 20.0) -> None:
        self.order, self.vocabulary, self.smoothing = order, vocabulary, smoothing
        self.tables: list[Float[Tensor, "contexts V"]] = []
        below = torch.full((1, vocabulary), 1 / vocabulary, dtype=torch.float64)
        for n in range(order + 1):
            counts = kmer_counts(tokens, n + 1, vocabulary).view(-1, vocabulary)
            prior = below.repeat(counts.shape[0] // below.shape[0], 1)
            below = (counts + smoothing * prior) / (counts.sum(-1, keepdim=True) + smoothing)
            self.tables.append(below.log())

    def log_prob(self, tokens: Int[Tensor, "N L"]) -> Float[Tensor, " N"]:
        """Log-likelihood of each sequence, nats."""
        total = torch.zeros(tokens.shape[0], dtype=torch.float64)
        for i in range(tokens.shape[1]):
            n = min(i, self.order)
            context = _kmer_index(tokens[:, i - n : i], self.vocabulary)
            total += self.tables[n][context, tokens[:, i]]
        return total


def best_markov(
    train: Int[Tensor, "N L"],
    validation: Int[Tensor, "M L"],
    vocabulary: int,
    orders: Sequence[int],
    smoothings: Sequence[float] = (1.0, 5.0, 20.0, 100.0, 300.0, 1000.0),
) -> MarkovModel:
    """The Markov model of ``train`` whose order and smoothing make ``validation`` likeliest: the fairest yardstick.

    Args:
        train: training sequences.
        validation: sequences that choose.
        vocabulary: letters ``V``.
        orders: context lengths to choose from.
        smoothings: strengths of the back-off to choose from.
    """
    models = (MarkovModel(train, order, vocabulary, smoothing) for order in orders for smoothing in smoothings)
    return max(models, key=lambda model: model.log_prob(validation).mean().item())


def _kmer_index(window: Int[Tensor, "N k"], vocabulary: int) -> Int[Tensor, " N"]:
    place = vocabulary ** torch.arange(window.shape[1] - 1, -1, -1)
    return (window * place).sum(-1)


def kmer_counts(tokens: Int[Tensor, "N L"], k: int, vocabulary: int) -> Float[Tensor, " Vk"]:
    """How often each of the ``V**k`` words occurs, at any position, first letter most significant."""
    windows = tokens.unfold(1, k, 1).reshape(-1, k)
    return torch.bincount(_kmer_index(windows, vocabulary), minlength=vocabulary**k).double()


def kmer_correlation(a: Float[Tensor, " Vk"], b: Float[Tensor, " Vk"]) -> float:
    """Pearson correlation of two k-mer frequency vectors: 1 if the words are used alike; NaN if one is constant."""
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


def unique_fraction(tokens: Int[Tensor, "N L"]) -> float:
    """Share of distinct sequences."""
    return torch.unique(tokens, dim=0).shape[0] / tokens.shape[0]


def diversity(tokens: Int[Tensor, "N L"], vocabulary: int) -> float:
    """Mean Hamming distance between two different members, per position; ``1 - 1/V`` for uniform random sequences."""
    n = tokens.shape[0]
    if n < 2:
        return math.nan
    counts = torch.stack([(tokens == v).sum(0) for v in range(vocabulary)]).double()
    agreeing_pairs = (counts * (counts - 1)).sum(0) / (n * (n - 1))
    return (1 - agreeing_pairs).mean().item()


def nearest_distance(tokens: Int[Tensor, "N L"], known: Int[Tensor, "M L"], vocabulary: int) -> Int[Tensor, " N"]:
    """Hamming distance from each sequence to its nearest neighbour among ``known``: novelty, in letters."""
    one_hot = torch.nn.functional.one_hot(known, vocabulary).flatten(1).float()
    nearest = []
    for part in tokens.split(512):
        same = torch.nn.functional.one_hot(part, vocabulary).flatten(1).float() @ one_hot.T
        nearest.append(tokens.shape[1] - same.amax(1).round().long())
    return torch.cat(nearest)


def position_frequencies(tokens: Int[Tensor, "N L"], vocabulary: int) -> Float[Tensor, "L V"]:
    """Share of each letter at each position (what a sequence logo draws)."""
    return torch.nn.functional.one_hot(tokens, vocabulary).double().mean(0)
