"""What designs of a nucleic acid are compared with: words and motifs of training, held-out and other sequences.

Everything a run needs is on the card of its p_pre, so no run reads data for it: ``word_counts`` of the training
designs and ``second_word_counts`` of the second reference, of the longest words (shorter ones are summed from
them), and ``held_out``, the same numbers of designs that p_pre has not seen, which is what a perfect p_pre would have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from difftilt.data import Table, find, load
from difftilt.metrics import motifs
from difftilt.types import Float, Int, Tensor

KEPT = ("word_counts", "second_word_counts", "second_reference", "held_out")
"""Keys of a card that are written here."""
ENDINGS = {"word_counts": "", "second_word_counts": "_second"}
"""Of the names of distances, by the key of the card that they are to."""


@dataclass(frozen=True, kw_only=True)
class SecondReference:
    """Other sequences than the task's to compare words with: of the same kind, for another purpose."""

    data_set: str
    """Its name in the registry."""
    rows: Callable[[Table], np.ndarray]
    """Which of its rows."""
    title: str
    """What they are, for cards and pages."""


@dataclass(frozen=True, kw_only=True)
class Lookout:
    """What is looked for in designs of a task."""

    alphabet: str
    """Letter of each token, nucleotides."""
    motifs: Mapping[str, str]
    """Motifs in IUPAC codes, each with what binds it (empty: not said)."""
    words: Sequence[int]
    """Lengths of the words that are compared."""
    both_strands: bool
    """Whether words and motifs are those of both strands."""

    def counts(self, tokens: Int[Tensor, "N L"]) -> Float[Tensor, " Vk"]:
        """Counts of the longest words."""
        return motifs.word_counts(tokens, max(self.words), self.alphabet, both_strands=self.both_strands)

    def sites(self, tokens: Int[Tensor, "N L"]) -> dict[str, float]:
        """Mean number of sites of each motif in a design."""
        return {
            f"sites_{motif}": motifs.sites(tokens, motif, self.alphabet, both_strands=self.both_strands)
            .double()
            .mean()
            .item()
            for motif in self.motifs
        }

    def describe(self, card: Mapping[str, Any], tokens: Int[Tensor, "N L"]) -> dict[str, float]:
        """Sites of motifs, and distances of the designs' words to those that ``card`` keeps."""
        facts, letters = self.sites(tokens), len(self.alphabet)
        known = {ending: unpacked(card[key]) for key, ending in ENDINGS.items() if key in card and self.words}
        if not known:
            return facts
        own = self.counts(tokens)
        for ending, counts in known.items():
            for k in self.words:
                dropped = max(self.words) - k
                mine, theirs = (motifs.shorter_words(each, dropped, letters) for each in (own, counts))
                facts[f"kmer{k}_distance{ending}"] = motifs.spectrum_distance(mine, theirs)
        return facts

    def card(
        self,
        train: Int[Tensor, "N L"],
        test: Int[Tensor, "M L"],
        second: SecondReference | None,
        encode: Callable[[list[str]], Tensor],
    ) -> dict[str, Any]:
        """What the card of a p_pre keeps.

        Args:
            train: designs that it learns.
            test: designs that it does not.
            second: left out where its data are not at hand.
            encode: sequences of any one length to tokens.
        """
        card: dict[str, Any] = {"word_counts": packed(self.counts(train))} if self.words else {}
        if self.words and second is not None and find(second.data_set) is not None:
            table = load(second.data_set)
            others = table.take(second.rows(table)).sequences
            card |= {"second_reference": second.title, "second_word_counts": packed(self.counts(encode(others)))}
        if len(test):
            card["held_out"] = {name: round(value, 5) for name, value in self.describe(card, test).items()}
        return card


def packed(counts: Float[Tensor, " Vk"]) -> list[str]:
    """Counts as lines of 64 numbers."""
    return [" ".join(map(str, line)) for line in counts.long().view(-1, 64).tolist()]


def unpacked(lines: list[str]) -> Float[Tensor, " Vk"]:
    """The opposite of :func:`packed`."""
    return torch.tensor([int(number) for line in lines for number in line.split()], dtype=torch.float64)
