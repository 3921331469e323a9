"""Naturalness, diversity and novelty of sequences against brute force."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from difftilt.metrics.sequences import (
    MarkovModel,
    best_markov,
    diversity,
    kmer_correlation,
    kmer_counts,
    nearest_distance,
    position_frequencies,
    unique_fraction,
)


def tokens(n: int = 30, length: int = 7, letters: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randint(letters, (n, length), generator=torch.Generator().manual_seed(seed))


def every(length: int, letters: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(letters), repeat=length)))


# --- k-mers --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(0, 5))
def test_kmer_counts_are_those_of_a_loop(k: int, seed: int) -> None:
    x = tokens(9, 5, 3, seed)
    words = Counter(tuple(row[i : i + k]) for row in x.tolist() for i in range(5 - k + 1))
    expected = [words[word] for word in itertools.product(range(3), repeat=k)]
    assert kmer_counts(x, k, 3).tolist() == expected


def test_kmer_correlation_is_one_for_the_same_usage_and_low_for_another() -> None:
    a = kmer_counts(tokens(200, seed=0), 3, 3)
    assert kmer_correlation(a, 5 * a) == pytest.approx(1.0)
    shuffled = a[torch.randperm(27, generator=torch.Generator().manual_seed(0))]
    assert kmer_correlation(a, shuffled) < 0.5
    assert math.isnan(kmer_correlation(a, torch.ones(27, dtype=torch.float64)))


# --- Markov models -------------------------------------------------------------------------------------------------


def second_order(n: int, length: int, seed: int, noise: float = 0.3) -> torch.Tensor:
    """Sequences whose next letter is the sum of the last two, modulo 3, or with probability ``noise`` any letter."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(3, (n, length), generator=rng)
    for i in range(2, length):
        keep = torch.rand(n, generator=rng) > noise
        x[:, i] = torch.where(keep, (x[:, i - 1] + x[:, i - 2]) % 3, x[:, i])
    return x


def test_the_best_markov_model_has_the_order_of_the_data_and_is_chosen_by_validation() -> None:
    """Twin: chosen by the training designs themselves, the longest context and the least smoothing win."""
    train, validation = second_order(60, 30, 0), second_order(60, 30, 1)
    orders, smoothings = (0, 1, 2, 3, 4), (0.1, 10.0, 100.0)
    best = best_markov(train, validation, 3, orders, smoothings)
    assert best.order == 2
    every = [MarkovModel(train, o, 3, s).log_prob(validation).mean().item() for o in orders for s in smoothings]
    assert best.log_prob(validation).mean().item() == max(every)
    cheated = best_markov(train, train, 3, orders, smoothings)
    assert (cheated.order, cheated.smoothing) == (4, 0.1)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_a_markov_model_is_normalised(order: int) -> None:
    """Probabilities of all sequences sum to 1, also of contexts never seen."""
    model = MarkovModel(tokens(6), order, 3, smoothing=2.0)
    for length in (1, 3, 5):
        assert model.log_prob(every(length, 3)).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


def by_hand(train: list[list[int]], row: list[int], order: int, letters: int, kappa: float) -> float:
    """The definition with dictionaries: p_n = (c_n + kappa p_{n-1}) / (c + kappa), shorter contexts at the start."""

    def probability(context: tuple[int, ...], letter: int) -> float:
        below = 1 / letters if not context else probability(context[1:], letter)
        n = len(context)
        seen = [r[i : i + n + 1] for r in train for i in range(len(r) - n) if tuple(r[i : i + n]) == context]
        return (sum(word[n] == letter for word in seen) + kappa * below) / (len(seen) + kappa)

    return sum(math.log(probability(tuple(row[max(0, i - order) : i]), letter)) for i, letter in enumerate(row))


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_a_markov_model_is_its_definition(order: int) -> None:
    train, test = tokens(12, 6, 3), tokens(5, 6, 3, seed=1)
    model = MarkovModel(train, order, 3, smoothing=1.5)
    expected = [by_hand(train.tolist(), row, order, 3, 1.5) for row in test.tolist()]
    assert model.log_prob(test).tolist() == pytest.approx(expected, rel=1e-12)


def test_a_higher_order_is_better_where_there_is_something_to_learn() -> None:
    """A second-order chain: order 2 beats order 1 beats order 0 on fresh sequences, and order 4 does not lose much."""
    rng = torch.Generator().manual_seed(0)

    def draw(n: int) -> torch.Tensor:
        x = torch.randint(3, (n, 20), generator=rng)
        for i in range(2, 20):
            likely = (x[:, i - 1] + 2 * x[:, i - 2]) % 3
            x[:, i] = torch.where(torch.rand(n, generator=rng) < 0.8, likely, x[:, i])
        return x

    train, test = draw(2000), draw(500)
    per_letter = {n: -MarkovModel(train, n, 3).log_prob(test).mean().item() / 20 for n in (0, 1, 2, 4)}
    assert per_letter[0] == pytest.approx(math.log(3), abs=0.01)
    assert per_letter[2] < per_letter[1] - 0.2
    assert per_letter[4] < per_letter[2] + 0.02


# --- diversity and novelty -----------------------------------------------------------------------------------------


@given(st.integers(2, 12), st.integers(0, 9))
def test_diversity_is_the_mean_distance_of_pairs(n: int, seed: int) -> None:
    x = tokens(n, 5, 3, seed)
    pairs = [(a != b).double().mean().item() for a, b in itertools.combinations(x, 2)]
    assert diversity(x, 3) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


def test_diversity_of_copies_is_zero_and_of_one_design_unknown() -> None:
    assert diversity(torch.zeros(4, 5, dtype=torch.long), 3) == 0
    assert math.isnan(diversity(tokens(1), 3))
    assert diversity(tokens(20_000, 50, 4), 4) == pytest.approx(0.75, abs=1e-3)


@given(st.integers(1, 15), st.integers(1, 15), st.integers(0, 9))
def test_novelty_is_the_distance_to_the_nearest(n: int, m: int, seed: int) -> None:
    x, known = tokens(n, 6, 3, seed), tokens(m, 6, 3, seed + 100)
    expected = [min(int((row != other).sum()) for other in known) for row in x]
    assert nearest_distance(x, known, 3).tolist() == expected


def test_novelty_of_many_designs_is_taken_part_by_part() -> None:
    x = tokens(1200, 6, 3)
    assert (nearest_distance(x, x[700:], 3)[700:] == 0).all()
    assert torch.equal(nearest_distance(x, x[:50], 3)[-5:], nearest_distance(x[-5:], x[:50], 3))


def test_unique_designs_and_letter_shares_are_counted() -> None:
    x = torch.tensor([[0, 1], [0, 1], [2, 1], [0, 2]])
    assert unique_fraction(x) == 0.75
    assert position_frequencies(x, 3).tolist() == [[0.75, 0.0, 0.25], [0.0, 0.75, 0.25]]
