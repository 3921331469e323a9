"""SELFIES: molecules as words of which every sentence is a molecule (Krenn et al. 2020).

A state is ``L`` tokens: the words of a molecule in order, then the pad, token 0, to the end. **Reading stops at the
first pad**: what stands behind it is not looked at, so every row of tokens has one molecule, and a molecule of ``n <
L`` words has many rows, of which :meth:`SelfiesCodec.encode` gives the one that is all pads behind it.

Designs are RDKit's canonical SMILES, whatever SMILES went in: a state is a function of the molecule and not of how it
was written. What is not SELFIES' to say (isotopes and rare ions whose words are not in the alphabet) cannot be
represented.

References:
    Krenn et al. 2020, https://arxiv.org/abs/1905.13741.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from difftilt.core.molecules import canonical, chemistry, read_molecule
from difftilt.core.registry import register
from difftilt.errors import ConfigError, DataError, ShapeError
from difftilt.types import Float, Int, Tensor

PAD = 0


@register("codec", "selfies")
class SelfiesCodec:
    """Molecules of at most ``length`` SELFIES words.

    Args:
        alphabet: the words, e.g. ``["[C]", "[=C]", "[Ring1]"]``; token 1 is the first, token 0 the pad.
        length: most words ``L`` of a molecule.

    Raises:
        ConfigError: a word that is none, or twice.
    """

    def __init__(self, alphabet: Sequence[str], length: int) -> None:
        self.alphabet, self.length = list(alphabet), length
        self._token = {word: token for token, word in enumerate(self.alphabet, start=1)}
        if len(self._token) != len(self.alphabet):
            raise ConfigError(f"expected distinct words; got {len(self.alphabet)} with repeats; name each once")
        for word in self.alphabet:
            if words(word) != [word]:
                raise ConfigError(f"expected SELFIES words such as [C]; got '{word}'; correct the alphabet")

    @property
    def vocabulary(self) -> int:
        """Number of letters ``V``: words and the pad, the mask not counted."""
        return len(self.alphabet) + 1

    def tokens(self, x_0: Tensor) -> Int[Tensor, "B L"]:
        """Words of finished states, by number."""
        return x_0

    def decode(self, x_0: Int[Tensor, "B L"]) -> list[str]:
        """Canonical SMILES; an empty string where the first token is a pad.

        Raises:
            ShapeError: a position still holds the mask token.
        """
        rows = x_0.detach().cpu().tolist()
        if rows and max(map(max, rows)) >= self.vocabulary:
            raise ShapeError(
                f"expected finished molecules with tokens 0..{self.vocabulary - 1}; got {max(map(max, rows))} "
                "(a mask); decode only states at t = 0"
            )
        return [self._smiles(row[: row.index(PAD)] if PAD in row else row) for row in rows]

    def encode(self, designs: Sequence[str]) -> Int[Tensor, "B L"]:
        """Tokens of SMILES.

        Raises:
            DataError: one that is no molecule, or not one of these words, or of too many; its number is named.
        """
        molecules: list[list[str]] = []
        for number, design in enumerate(designs, start=1):
            written = self.words_of(design)
            if isinstance(written, str):
                raise DataError(f"{written} in design {number}, '{design}'; correct or drop it")
            molecules.append(written)
        return self.states(molecules)

    def states(self, molecules: Iterable[Sequence[str]]) -> Int[Tensor, "B L"]:
        """Tokens of molecules in words of the alphabet, none longer than ``length``; pads behind them."""
        rows = [[self._token[word] for word in written] for written in molecules]
        padded = [row + [PAD] * (self.length - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.int64).reshape(len(rows), self.length)

    def knows(self, written: Iterable[str]) -> bool:
        """Whether all words are of the alphabet."""
        return self._token.keys() >= set(written)

    def words_of(self, design: str) -> list[str] | str:
        """Words of a SMILES, or what is wrong: what was expected, and what came."""
        molecule, reason = read_molecule(design)
        if molecule is None:
            return f"expected a molecule; got {reason}"
        written = to_words(design)
        if written is None:
            return "expected a molecule that SELFIES can write; got one that it cannot"
        if len(written) > self.length:
            return f"expected at most {self.length} words; got {len(written)}"
        strange = [word for word in written if word not in self._token]
        if strange:
            return f"expected words of the model's {len(self.alphabet)}; got {strange[0]}"
        return written

    def readable(self, x_0: Float[Tensor, "B L V1"]) -> Float[Tensor, "B L V"]:
        """Relaxed tokens without the mask."""
        return x_0[..., :-1]

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"alphabet": self.alphabet, "length": self.length}

    def _smiles(self, tokens: Sequence[int]) -> str:
        written = chemistry("selfies").decoder("".join(self.alphabet[token - 1] for token in tokens))
        return canonical(written) or written  # an invalid one stays as it is written, for the reward to say why


def words(selfies: str) -> list[str]:
    """The words of a SELFIES text; none where it is not one."""
    try:
        return list(chemistry("selfies").split_selfies(selfies))
    except ValueError:
        return []


def to_words(smiles: str) -> list[str] | None:
    """The words of a molecule's canonical SMILES; ``None`` where it is invalid, or SELFIES cannot write it."""
    package, whole = chemistry("selfies"), canonical(smiles)
    try:
        return None if whole is None else words(package.encoder(whole))
    except package.EncoderError:
        return None


def common_words(molecules: Iterable[Sequence[str]], *, fewest: int) -> list[str]:
    """Words that stand in at least ``fewest`` molecules, the most common first, then by the alphabet."""
    count = Counter(word for written in molecules for word in set(written))
    return [word for word, times in sorted(count.items(), key=lambda item: (-item[1], item[0])) if times >= fewest]


def room_for(lengths: Sequence[int], share: float) -> int:
    """The fewest words that at least ``share`` of the molecules do with, rounded up to a multiple of 4."""
    ascending = sorted(lengths)
    return math.ceil(ascending[math.ceil(share * len(ascending)) - 1] / 4) * 4
