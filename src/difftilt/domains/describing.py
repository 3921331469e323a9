"""What is said of a set of sequences in every report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy
from difftilt.metrics import sequences
from difftilt.types import Int, Tensor


def describe_sequences(policy: Policy, known: Int[Tensor, "N L"] | None) -> Callable[[Tensor], dict[str, Any]]:
    """Domain metrics of token sequences: uniqueness, diversity, novelty, k-mer correlation with the training data."""
    codec = policy.codec
    assert isinstance(codec, TokenCodec)
    words = policy.card.get("kmer_counts")

    def describe(x_0: Tensor) -> dict[str, Any]:
        tokens = codec.tokens(x_0).cpu()
        facts: dict[str, Any] = {
            "unique_fraction": sequences.unique_fraction(tokens),
            "diversity": sequences.diversity(tokens, codec.vocabulary),
            "position_frequencies": sequences.position_frequencies(tokens, codec.vocabulary).tolist(),
        }
        if known is not None and known.shape[1] == tokens.shape[1]:
            distance = sequences.nearest_distance(tokens, known, codec.vocabulary)
            facts["novelty"] = distance.double().mean().item()
        if words is not None:
            counts = sequences.kmer_counts(tokens, 3, codec.vocabulary)
            reference = torch.tensor(words, dtype=torch.float64)
            facts["kmer_correlation"] = sequences.kmer_correlation(counts, reference)
        return facts

    return describe
