r"""Variants of a protein against its wild type ``w``: how many mutations, and how unlike the exchanged residues are.

.. math:: n(x) = \sum_l 1[x^l \ne w^l], \qquad
    D(x) = \sum_l \left( \tfrac12 S(w^l, w^l) + \tfrac12 S(x^l, x^l) - S(w^l, x^l) \right)              \qquad (1)

with :math:`S` = BLOSUM62, in its own units of half a bit: 0 where nothing is mutated, and at least 1 for each mutation
(isoleucine to valine 1, tryptophan to glycine 10.5).

References:
    Henikoff & Henikoff 1992 (BLOSUM62), https://doi.org/10.1073/pnas.89.22.10915.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence

import torch

from difftilt.errors import ConfigError
from difftilt.types import Float, Int, Tensor


def mutations(tokens: Int[Tensor, "N L"], wild_type: Int[Tensor, " L"]) -> Int[Tensor, " N"]:
    """:math:`n(x)` of (1)."""
    return (tokens != wild_type).sum(1)


def mutation_shares(tokens: Int[Tensor, "N L"], wild_type: Int[Tensor, " L"], most: int) -> Float[Tensor, " M1"]:
    """Share of designs with 0, 1, ..., ``most`` mutations; those with more are in the last. float64, sums to 1."""
    counts = mutations(tokens, wild_type).clamp(max=most)
    return torch.bincount(counts, minlength=most + 1).double() / len(tokens)


def mutated_sites(tokens: Int[Tensor, "N L"], wild_type: Int[Tensor, " L"]) -> Float[Tensor, " L"]:
    """Share of designs mutated at each site, float64."""
    return (tokens != wild_type).double().mean(0)


def nearest_distance(
    tokens: Int[Tensor, "N L"], known: Int[Tensor, "M L"], wild_type: Int[Tensor, " L"]
) -> Int[Tensor, " N"]:
    r"""Mutations from each design to the nearest of ``known``, counted over mutated sites only.

    .. math:: d(x, y) = n(x) + n(y) - \#\{\text{sites mutated in both}\} - \#\{\text{those with the same residue}\}
    """
    letters = int(max(tokens.max(), known.max(), wild_type.max())) + 1
    sites = wild_type.shape[0]

    def marks(x: Int[Tensor, "B L"]) -> Tensor:
        """``[B, L (V + 1)]``, sparse: which sites are mutated, and which to what."""
        row, site = (x != wild_type).nonzero(as_tuple=True)
        column = torch.cat([site, sites + site * letters + x[row, site]])
        index = torch.stack([row.repeat(2), column])
        size = len(x), sites * (letters + 1)
        return torch.sparse_coo_tensor(index, torch.ones(2 * len(row)), size, check_invariants=True)

    there = marks(known).coalesce()
    nearest = []
    for part in tokens.split(256):
        shared = torch.sparse.mm(there, marks(part).to_dense().T).round().long()
        distance = mutations(known, wild_type)[:, None] + mutations(part, wild_type) - shared
        nearest.append(distance.amin(0))
    return torch.cat(nearest)


def total_variation(mine: Float[Tensor, " M1"], theirs: Float[Tensor, " M1"]) -> float:
    """Half the sum of absolute differences of two laws, 0 to 1."""
    return 0.5 * (mine - theirs).abs().sum().item()


def has_blosum() -> bool:
    """Whether Biopython, which brings the table, is installed."""
    return importlib.util.find_spec("Bio") is not None


def blosum62(alphabet: str) -> Float[Tensor, "V V"]:
    """:math:`S` for the letters of ``alphabet``, float64.

    Raises:
        ConfigError: Biopython is not installed, or a letter has no row.
    """
    try:
        from Bio.Align import substitution_matrices
    except ImportError:
        raise ConfigError(
            "expected Biopython for BLOSUM62; it is not installed; run: pip install 'difftilt[bio]'"
        ) from None
    table = substitution_matrices.load("BLOSUM62")
    unknown = [letter for letter in alphabet if letter not in str(table.alphabet)]
    if unknown:
        raise ConfigError(f"expected residues of BLOSUM62; got '{unknown[0]}'; leave the distance out")
    return torch.tensor([[float(table[a, b]) for b in alphabet] for a in alphabet], dtype=torch.float64)


def blosum_distance(
    tokens: Int[Tensor, "N L"], wild_type: Int[Tensor, " L"], similarity: Float[Tensor, "V V"]
) -> Float[Tensor, " N"]:
    """:math:`D(x)` of (1), half bits; ``similarity`` is :func:`blosum62` of the codec's letters."""
    own = similarity.diagonal()
    cost = (own[:, None] + own) / 2 - similarity
    return cost[wild_type.expand_as(tokens), tokens].sum(1)


def spelled(design: str, wild_type: str, numbers: Sequence[int]) -> str:
    """Mutations as protein engineers write them, e.g. ``"S65T V163A"``; ``"wild type"`` where there is none.

    Args:
        design: letters.
        wild_type: as many letters.
        numbers: usual number of each residue.
    """
    changes = [f"{old}{number}{new}" for old, new, number in zip(wild_type, design, numbers, strict=True) if old != new]
    return " ".join(changes) or "wild type"


def mutant(wild_type: str, changes: str, numbers: Sequence[int]) -> str:
    """The design that :func:`spelled` spells.

    Args:
        wild_type: letters.
        changes: e.g. ``"S65T V163A"``, with spaces, commas, colons or slashes between them.
        numbers: usual number of each residue.

    Raises:
        ConfigError: a change that is not written so, a residue that there is not, or one that has another letter.
    """
    letters, place = list(wild_type), {number: index for index, number in enumerate(numbers)}
    for change in re.split(r"[\s,:/]+", changes.strip()):
        read = re.fullmatch(r"([A-Z])(\d+)([A-Z])", change)
        if read is None:
            raise ConfigError(f"expected mutations such as S65T; got '{change}'; write old letter, number, new letter")
        old, number, new = read[1], int(read[2]), read[3]
        if number not in place:
            raise ConfigError(f"expected a residue from {min(numbers)} to {max(numbers)}; got '{change}'; correct it")
        index = place[number]
        if wild_type[index] != old:
            raise ConfigError(f"expected {wild_type[index]}{number}, the wild type's residue; got '{change}'; check it")
        letters[index] = new
    return "".join(letters)
