"""Splits by cluster do not leak; checked by brute force."""

from __future__ import annotations

import time

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import difftilt.data as data
from difftilt.data import cluster_split, hamming_clusters, random_split
from difftilt.errors import ConfigError, DataError


def _letters(sequences: list[str]) -> np.ndarray:
    return np.array(sequences, dtype="S").view(np.uint8).reshape(len(sequences), -1)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a[:, None] != b[None]).sum(axis=-1)


def _brute_clusters(sequences: list[str], max_distance: int) -> list[int]:
    """Flood fill over all pairs, labels in order of first appearance."""
    near = _distances(_letters(sequences), _letters(sequences)) <= max_distance
    label = [-1] * len(sequences)
    for start in range(len(sequences)):
        if label[start] < 0:
            fresh, todo = max(label) + 1, [start]
            while todo:
                row = todo.pop()
                if label[row] < 0:
                    label[row] = fresh
                    todo.extend(np.flatnonzero(near[row]).tolist())
    return label


def _families(n: int, length: int, seed: int) -> list[str]:
    """``n`` mutants, up to 6 letters from one of ``n / 8`` parents."""
    rng = np.random.default_rng(seed)
    parents = rng.choice(list("ACGT"), (max(n // 8, 1), length))
    rows = parents[rng.integers(len(parents), size=n)]
    for row in rows:
        places = rng.choice(length, rng.integers(7), replace=False)
        row[places] = rng.choice(list("ACGT"), len(places))
    return ["".join(row) for row in rows]


@given(
    st.integers(1, 6).flatmap(lambda n: st.lists(st.text("ACG", min_size=n, max_size=n), min_size=1, max_size=25)),
    st.integers(0, 7),
)
def test_clusters_are_the_connected_components_of_all_pairs(sequences, max_distance):
    assert hamming_clusters(sequences, max_distance).tolist() == _brute_clusters(sequences, max_distance)


@pytest.mark.parametrize("max_distance", [0, 1, 3, 5])
def test_clusters_of_long_sequences_are_right_too(max_distance):
    sequences = _families(400, 40, seed=max_distance)
    label = hamming_clusters(sequences, max_distance)
    assert label.tolist() == _brute_clusters(sequences, max_distance)
    assert 1 < label.max() + 1 < 400


@pytest.mark.parametrize("seed", range(3))
def test_no_pair_within_reach_crosses_splits(seed):
    sequences = _families(600, 50, seed)
    splits = cluster_split(sequences, [0.6, 0.2, 0.2], seed=seed)
    assert sorted(np.concatenate(splits).tolist()) == list(range(600))
    assert [len(split) for split in splits] == pytest.approx([360, 120, 120], abs=20)
    letters = _letters(sequences)
    for i, a in enumerate(splits):
        for b in splits[i + 1 :]:
            assert _distances(letters[a], letters[b]).min() > 3


def test_a_random_split_of_the_same_rows_does_leak():
    """The twin that must fail: without clusters the same check finds kin on both sides."""
    letters = _letters(_families(600, 50, seed=0))
    a, b = random_split(600, [0.5, 0.5], seed=0)
    assert _distances(letters[a], letters[b]).min() <= 3


def test_the_outcome_depends_on_seed_and_sequences_but_not_on_row_order():
    sequences = _families(300, 30, seed=1)
    first = cluster_split(sequences, [0.5, 0.5], seed=4)
    again = cluster_split(sequences, [0.5, 0.5], seed=4)
    other = cluster_split(sequences, [0.5, 0.5], seed=5)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    shuffled = np.random.default_rng(0).permutation(300)
    moved = cluster_split([sequences[i] for i in shuffled], [0.5, 0.5], seed=4)
    assert all(set(shuffled[a].tolist()) == set(b.tolist()) for a, b in zip(moved, first, strict=True))


def test_every_cluster_may_land_in_either_split():
    """Over 200 seeds a cluster's home is a fair coin: |#first - 100| <= 40 fails with chance 1.5e-8 each."""
    sequences = ["AAAAAAAA", "CCCCCCCC", "GGGGGGGG", "TTTTTTTT"]
    homes = np.zeros(4)
    for seed in range(200):
        homes[cluster_split(sequences, [0.5, 0.5], seed=seed)[0]] += 1
    assert (abs(homes - 100) <= 40).all()


def test_repeats_stay_together_even_at_distance_0():
    sequences = ["ACGT", "TTTT", "ACGT", "TTTT", "GGGG"]
    for split in cluster_split(sequences, [0.5, 0.5], max_distance=0, seed=0):
        rest = set(range(5)) - set(split.tolist())
        assert not {sequences[i] for i in split} & {sequences[i] for i in rest}


def test_random_split_is_a_partition_with_the_sizes_asked_for():
    splits = random_split(1003, [0.7, 0.2, 0.1], seed=1)
    assert [len(split) for split in splits] == [702, 201, 100]
    assert sorted(np.concatenate(splits).tolist()) == list(range(1003))
    assert all(np.array_equal(a, b) for a, b in zip(splits, random_split(1003, [0.7, 0.2, 0.1], seed=1), strict=True))
    assert not np.array_equal(splits[0], random_split(1003, [0.7, 0.2, 0.1], seed=2)[0])


@pytest.mark.parametrize("fractions", [[], [0.5, 0.6], [1.2, -0.2], [0.5], [1.0, 0.0], [0.5, float("nan")]])
def test_fractions_must_be_shares(fractions):
    with pytest.raises(ConfigError, match="sum to 1"):
        cluster_split(["AC", "GT"], fractions, seed=0)
    with pytest.raises(ConfigError, match="sum to 1"):
        random_split(10, fractions, seed=0)


def test_what_cannot_be_split_is_refused():
    with pytest.raises(DataError, match="expected clusters enough for 2 splits; got 1 of 3"):
        cluster_split(["ACGT", "ACGA", "ACGC"], [0.5, 0.5], seed=0)
    with pytest.raises(DataError, match="equally long"):
        hamming_clusters(["AC", "ACG"])
    with pytest.raises(DataError, match="equally long"):
        hamming_clusters([])
    with pytest.raises(ConfigError, match="max_distance >= 0"):
        hamming_clusters(["AC"], -1)
    with pytest.raises(DataError, match="rows enough"):
        random_split(1, [0.5, 0.5], seed=0)


def test_yeast_promoters_split_fast_and_without_leaks():
    if data.find("yeast-promoter") is None:
        pytest.skip("yeast-promoter is not on this machine")
    table = data.load("yeast-promoter")
    start = time.perf_counter()
    splits = cluster_split(table.sequences, [0.45, 0.45, 0.1], seed=0)
    assert time.perf_counter() - start < 20
    assert [len(split) / len(table) for split in splits] == pytest.approx([0.45, 0.45, 0.1], abs=0.002)
    letters, drift = _letters(table.sequences), table.column("category") == "drift"
    home = np.empty(len(table), dtype=int)
    for i, split in enumerate(splits):
        home[split] = i
    for row in np.flatnonzero(drift)[::40]:  # each against every other row
        near = (letters != letters[row]).sum(axis=1) <= 3
        assert near.sum() >= 1
        assert (home[near] == home[row]).all()


def test_large_clusters_are_spread_over_the_splits_like_small_ones() -> None:
    """Broke once: ordering clusters by the least hash of their members sent every large one into the large splits."""
    rng = np.random.default_rng(0)
    letters = np.array(list("ACGT"))
    parents = rng.choice(letters, (1000, 40))
    families = [parents[i].copy() for i in range(200) for _ in range(20)]
    for member in families:
        member[rng.integers(40)] = rng.choice(letters)
    sequences = ["".join(x) for x in (*families, *parents[200:])]
    test, *_ = cluster_split(sequences, (0.1, 0.45, 0.45), seed=0)
    # 200 families of 20 beside 800 singles: with a fair draw about 20 families fall in the test split
    assert 5 <= (test < 4000).sum() / 20 <= 40
