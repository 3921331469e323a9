r"""Splits that do not leak.

Designs of one family (drift mutants, evolution trajectories) are near copies of each other, so a random split puts
the answers into the training half. Here designs at Hamming distance at most ``d`` are linked, the connected
components (single-linkage clusters) are found, and a cluster goes to one split as a whole: no pair within ``d``
crosses splits.

Candidate pairs come from the pigeonhole principle: cut every sequence into ``d + 1`` blocks; two sequences with at
most ``d`` mismatches agree on a whole block at the same position. Sorting by block puts candidates next to each
other, and only pairs of different components are compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from difftilt.errors import ConfigError, DataError
from difftilt.rng import Streams


def cluster_split(
    sequences: Sequence[str], fractions: Sequence[float], *, max_distance: int = 3, seed: int
) -> list[np.ndarray]:
    """Split by cluster: no two designs within ``max_distance`` mismatches lie in different splits.

    Clusters are taken in an order drawn by hashing ``seed`` and their first sequence, and each goes to the split that
    lacks the largest share of its rows, so that large clusters are spread over the splits like small ones. The
    outcome depends on the sequences and the seed, not on the order of the rows. Sizes are met up to the size of the
    last clusters. Repeated sequences stay together.

    Args:
        sequences: equally long designs.
        fractions: share of the rows per split; positive, summing to 1.
        max_distance: Hamming distance, in letters, up to which designs are kin.
        seed: another seed, another split.

    Returns:
        Row numbers per split, ascending; together every row once.

    Raises:
        ConfigError: fractions that are no shares, or a negative distance.
        DataError: no sequences or unequal lengths; fewer clusters than it takes to fill every split.
    """
    cluster = hamming_clusters(sequences, max_distance)
    first: dict[int, str] = {}
    for c, sequence in zip(cluster.tolist(), sequences, strict=True):
        first[c] = min(first.get(c, sequence), sequence)
    try:
        return group_split([first[c] for c in cluster.tolist()], fractions, seed=seed)
    except DataError:
        size = np.bincount(cluster)
        raise DataError(
            f"expected clusters enough for {len(fractions)} splits; got {len(size)} of {len(sequences)} designs, the "
            f"largest of {size.max()}; use a smaller max_distance, or random_split"
        ) from None


def group_split(groups: Sequence[str], fractions: Sequence[float], *, seed: int) -> list[np.ndarray]:
    """Split by group: rows of one name go to one split together.

    Groups are taken in an order drawn by hashing ``seed`` and their name, and each goes to the split that lacks the
    largest share of its rows. The outcome depends on names and seed, not on the order of the rows.

    Args:
        groups: a name for each row.
        fractions: share of the rows per split; positive, summing to 1. Met up to the size of the last groups.
        seed: another seed, another split.

    Returns:
        Row numbers per split, ascending; together every row once.

    Raises:
        ConfigError: fractions that are no shares.
        DataError: no rows, or fewer groups than it takes to fill every split.
    """
    shares = _shares(fractions)
    names, label, size = np.unique(np.array(groups, dtype=np.str_), return_inverse=True, return_counts=True)
    # one hash a group: the least over its members would bring large groups to the front, into the large splits
    keys = [hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in names.tolist()]
    lacking = shares * len(groups)
    home = np.zeros(len(names), dtype=np.int64)
    for g in sorted(range(len(names)), key=keys.__getitem__):
        home[g] = int(np.argmax(lacking / shares))
        lacking[home[g]] -= size[g]
    splits = [np.flatnonzero(home[label] == i) for i in range(len(shares))]
    if not all(len(split) for split in splits):
        raise DataError(
            f"expected groups enough for {len(shares)} splits; got {len(names)} of {len(groups)} rows; use random_split"
        )
    return splits


def random_split(n: int, fractions: Sequence[float], *, seed: int) -> list[np.ndarray]:
    """Split ``n`` rows at random, kin or not.

    Args:
        n: number of rows.
        fractions: share of the rows per split; positive, summing to 1. Sizes are met to within one row.
        seed: another seed, another split.

    Returns:
        Row numbers per split, ascending; together every row once.

    Raises:
        ConfigError: fractions that are no shares.
        DataError: a split would be empty.
    """
    ends = np.rint(np.cumsum(_shares(fractions)) * n).astype(np.int64)
    order = torch.randperm(n, generator=Streams(seed)("split")).numpy()
    splits = [np.sort(part) for part in np.split(order, ends[:-1])]
    if not all(len(split) for split in splits):
        raise DataError(f"expected rows enough for shares {list(fractions)}; got {n}; use fewer splits")
    return splits


def hamming_clusters(sequences: Sequence[str], max_distance: int = 3) -> np.ndarray:
    """Single-linkage clusters of equally long sequences under the Hamming distance.

    Args:
        sequences: equally long designs, ASCII.
        max_distance: mismatches up to which two designs are linked.

    Returns:
        int64, one label per row; labels run from 0 in order of first appearance.

    Raises:
        ConfigError: a negative distance.
        DataError: no sequences or unequal lengths.
    """
    if max_distance < 0:
        raise ConfigError(f"expected max_distance >= 0; got {max_distance}; 0 keeps repeats together")
    lengths = {len(sequence) for sequence in sequences}
    if len(lengths) != 1:
        raise DataError(f"expected equally long sequences; got lengths {sorted(lengths)[:5]}; split them by length")
    length = lengths.pop()
    distinct, inverse = np.unique(np.array(sequences, dtype=f"S{length}"), return_inverse=True)
    letters = distinct.view(np.uint8).reshape(len(distinct), length)
    parent = np.arange(len(distinct)) if max_distance < length else np.zeros(len(distinct), dtype=np.int64)
    for block in np.array_split(np.arange(length), max_distance + 1) if max_distance < length else ():
        _link_block(letters, np.ascontiguousarray(letters[:, block]), parent, max_distance)
    _, first, label = np.unique(parent[inverse], return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[label]


def _link_block(letters: np.ndarray, block: np.ndarray, parent: np.ndarray, max_distance: int) -> None:
    """Link rows that share ``block`` and differ in at most ``max_distance`` letters; ``parent`` stays flat."""
    _, key = np.unique(block.view(f"V{block.shape[1]}").ravel(), return_inverse=True)
    order = np.argsort(key, kind="stable")
    key = key[order]
    at, step = np.arange(len(order)), 0
    while len(at) and (parent != parent[0]).any():  # at: positions whose bucket reaches `step` further
        step += 1
        at = at[at + step < len(order)]
        at = at[key[at] == key[at + step]]
        a, b = order[at], order[at + step]
        strange = parent[a] != parent[b]
        a, b = a[strange], b[strange]
        near = (letters[a] != letters[b]).sum(axis=1) <= max_distance
        _union(parent, a[near], b[near])


def _union(parent: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """Join the components of ``a[i]`` and ``b[i]``; afterwards ``parent`` again maps each row to its root."""
    if not len(a):
        return
    for i, j in zip(a.tolist(), b.tolist(), strict=True):
        while parent[i] != i:
            i = parent[i]
        while parent[j] != j:
            j = parent[j]
        parent[max(i, j)] = min(i, j)
    while True:
        root = parent[parent]
        if (root == parent).all():
            return
        parent[:] = root


def _shares(fractions: Sequence[float]) -> np.ndarray:
    shares = np.array(fractions, dtype=np.float64)
    if shares.ndim != 1 or not ((shares > 0).all() and abs(shares.sum() - 1) < 1e-6):  # NaN fails both
        raise ConfigError(f"expected fractions that are positive and sum to 1; got {list(fractions)}; scale them")
    return shares
