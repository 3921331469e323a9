r"""Motifs and word spectra of nucleic acids: what a design holds, and whose words it uses.

A motif is a pattern :math:`m_1 \dots m_k` of sets of letters, written in IUPAC codes. A *site* is a window of a design
that matches the pattern or, on two strands, its reverse complement; a palindrome counts once:

.. math:: \text{sites}(x) = \sum_i \max\Bigl( \prod_j [x_{i+j} \in m_j],\ \prod_j [\bar x_{i+k-1-j} \in m_j] \Bigr)  (1)

A *spectrum* :math:`p` holds the shares of all :math:`V^k` words in a set of designs. Two spectra are compared by the
Jensen-Shannon distance, base 2: a metric, 0 for equal spectra and 1 for spectra without a common word,

.. math:: d(p, q) = \sqrt{\tfrac12 D(p \,\|\, \tfrac{p+q}{2}) + \tfrac12 D(q \,\|\, \tfrac{p+q}{2})}                (2)

The distance of two finite samples of *one* law is not 0: with :math:`N` and :math:`M` independent words it is near
:math:`\sqrt{(V^k - 1)(1/N + 1/M) / (8 \ln 2)}` (a chi-square). Compare distances of sets of equal sizes, or with that
of held-out data, never with 0.

References:
    Cornish-Bowden, Nucleic Acids Res. 13, 3021 (1985): the codes. https://doi.org/10.1093/nar/13.9.3021
    Endres and Schindelin, IEEE Trans. Inf. Theory 49, 1858 (2003): (2) is a metric.
    https://doi.org/10.1109/TIT.2003.813506
"""

from __future__ import annotations

import torch

from difftilt.errors import ConfigError
from difftilt.metrics.sequences import kmer_counts
from difftilt.types import Bool, Float, Int, Tensor

IUPAC = {
    "A": "A", "C": "C", "G": "G", "T": "T", "U": "T", "R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC",
    "B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT",
}  # fmt: skip
"""What each code stands for, in DNA letters."""
COMPLEMENT = {"A": "T", "C": "G", "G": "C", "T": "A"}


def checked_motif(motif: str) -> str:
    """A motif in capital letters.

    Raises:
        ConfigError: it is empty, or holds something else than IUPAC codes.
    """
    strange = sorted(set(motif.upper()) - set(IUPAC))
    if not motif or strange:
        came = f"'{strange[0]}' in '{motif}'" if strange else "an empty one"
        raise ConfigError(f"expected a motif in IUPAC codes, {''.join(IUPAC)}; got {came}; for example TAATYC")
    return motif.upper()


def complements(alphabet: str) -> Int[Tensor, " V"]:
    """Number of the complement of each letter; ``alphabet`` holds A, C, G and T (or U), in any order."""
    letters = alphabet.upper().replace("U", "T")
    return torch.tensor([letters.index(COMPLEMENT[letter]) for letter in letters])


def reverse_complement(tokens: Int[Tensor, "N L"], alphabet: str) -> Int[Tensor, "N L"]:
    """The other strand of each sequence, read from its own start."""
    return complements(alphabet)[tokens].flip(1)


def sites(tokens: Int[Tensor, "N L"], motif: str, alphabet: str, *, both_strands: bool = True) -> Int[Tensor, " N"]:
    """Equation (1): in how many places each design matches ``motif``; 0 where the motif is longer than the design.

    Args:
        tokens: designs.
        motif: IUPAC codes.
        alphabet: letter of each token.
        both_strands: look at both strands, as a protein that binds DNA does.

    Raises:
        ConfigError: ``motif`` is none.
    """
    pattern = _allowed(checked_motif(motif), alphabet)
    if len(pattern) > tokens.shape[1]:
        return torch.zeros(tokens.shape[0], dtype=torch.long)
    found = _matches(tokens, pattern)
    if both_strands:
        found |= _matches(tokens, pattern.flip(0)[:, complements(alphabet)])
    return found.sum(1)


def _allowed(motif: str, alphabet: str) -> Bool[Tensor, "k V"]:
    letters = alphabet.upper().replace("U", "T")
    return torch.tensor([[letter in IUPAC[code] for letter in letters] for code in motif])


def _matches(tokens: Int[Tensor, "N L"], pattern: Bool[Tensor, "k V"]) -> Bool[Tensor, "N W"]:
    windows = tokens.unfold(1, len(pattern), 1)
    return pattern[torch.arange(len(pattern)), windows].all(-1)


def word_counts(
    tokens: Int[Tensor, "N L"], k: int, alphabet: str, *, both_strands: bool = False
) -> Float[Tensor, " Vk"]:
    """How often each word of ``k`` letters occurs, first letter most significant; on both strands if asked for."""
    counts = kmer_counts(tokens, k, len(alphabet))
    return counts + kmer_counts(reverse_complement(tokens, alphabet), k, len(alphabet)) if both_strands else counts


def shorter_words(counts: Float[Tensor, " Vk"], dropped: int, vocabulary: int) -> Float[Tensor, " Vj"]:
    """Counts of the first ``k - dropped`` letters of each word: shorter words, but those at the very end of designs."""
    return counts.view(-1, vocabulary**dropped).sum(1)


def spectrum_distance(a: Float[Tensor, " Vk"], b: Float[Tensor, " Vk"]) -> float:
    """Equation (2) for two sets' counts of words, from 0 to 1; NaN where one set has no words."""
    p, q = a.double() / a.sum(), b.double() / b.sum()
    middle = (p + q) / 2
    divergence = sum((torch.xlogy(x, x) - torch.xlogy(x, middle)).sum() for x in (p, q)) / (
        2 * torch.log(torch.tensor(2.0))
    )
    return float(divergence.clamp(min=0).sqrt())
