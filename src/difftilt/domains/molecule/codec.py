"""SELFIES: molecules as words of which every sentence is a molecule (Krenn et al. 2020).

A word is a symbol, or several that often stand together (:mod:`~.words`).
A state is ``L`` tokens: the words of a molecule in order, then the pad, token 0, to the end. **Reading stops at the
first pad**: what stands behind it is not looked at, so every row of tokens has one molecule, and a molecule has many
rows, of which :meth:`SelfiesCodec.encode` gives one: the longest words from the left, and all pads behind them.

Designs are RDKit's canonical SMILES, whatever SMILES went in: a state is a function of the molecule and not of how it
was written. What is not in the words (isotopes, rare ions) cannot be represented.

**Free valences are hydrogens.** Symbols such as ``[C@H1]`` say how many hydrogens an atom has, and where one stands
with too few bonds SELFIES' own reading is a radical, in one of eight sentences of a good model. As in graphs, words
here say heavy atoms, charges, bonds and stereochemistry, and hydrogens fill what is left: no state is a radical.

References:
    Krenn et al. 2020, https://arxiv.org/abs/1905.13741.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from difftilt.core.molecules import chemistry, closed_shell, radicals, read_molecule
from difftilt.core.registry import register
from difftilt.domains.molecule.words import Reader, symbols, to_symbols
from difftilt.errors import ConfigError, DataError, ShapeError
from difftilt.types import Float, Int, Tensor

PAD = 0


@register("codec", "selfies")
class SelfiesCodec:
    """Molecules of at most ``length`` SELFIES words.

    Args:
        alphabet: the words, e.g. ``["[C]", "[=C]", "[Ring1]", "[C][C]"]``; token 1 is the first, token 0 the pad.
        length: most words ``L`` of a molecule.

    Raises:
        ConfigError: a word that is none, or twice.
    """

    def __init__(self, alphabet: Sequence[str], length: int) -> None:
        self.alphabet, self.length = list(alphabet), length
        if len(set(self.alphabet)) != len(self.alphabet):
            raise ConfigError(f"expected distinct words; got {len(self.alphabet)} with repeats; name each once")
        for word in self.alphabet:
            if not word or "".join(symbols(word)) != word:
                raise ConfigError(f"expected SELFIES words such as [C]; got '{word}'; correct the alphabet")
        self._reader = Reader(self.alphabet)

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
        rows: list[list[int]] = []
        for number, design in enumerate(designs, start=1):
            tokens = self.tokens_of(design)
            if isinstance(tokens, str):
                raise DataError(f"{tokens} in design {number}, '{design}'; correct or drop it")
            rows.append(tokens)
        return self.states(rows)

    def states(self, rows: Iterable[Sequence[int]]) -> Int[Tensor, "B L"]:
        """Tokens of molecules, none longer than ``length``, with pads behind them."""
        padded = [[*row, *[PAD] * (self.length - len(row))] for row in rows]
        return torch.tensor(padded, dtype=torch.int64).reshape(len(padded), self.length)

    def tokens_of(self, design: str) -> list[int] | str:
        """Tokens of a SMILES without pads, or what is wrong: what was expected, and what came."""
        molecule, reason = read_molecule(design)
        if molecule is None:
            return f"expected a molecule; got {reason}"
        if radicals(molecule):
            return "expected a molecule without radicals; got one"
        written = to_symbols(design)
        if written is None:
            return "expected a molecule that SELFIES can write; got one that it cannot"
        tokens = self.read(written)
        if isinstance(tokens, str):
            return f"expected the model's {len(self.alphabet)} words; got {tokens}"
        if len(tokens) > self.length:
            return f"expected at most {self.length} words; got {len(tokens)}"
        return tokens

    def fault(self, design: str) -> str | None:
        """Why a SMILES has no state; ``None`` if it has. The canonical SMILES of a state may need more words."""
        tokens = self.tokens_of(design)
        return tokens if isinstance(tokens, str) else None

    def read(self, written: Sequence[str]) -> list[int] | str:
        """Tokens of symbols, without pads; or the symbol at which no word fits."""
        found = self._reader.read(written)
        return found if isinstance(found, str) else [number + 1 for number in found]

    def readable(self, x_0: Float[Tensor, "B L V1"]) -> Float[Tensor, "B L V"]:
        """Relaxed tokens without the mask."""
        return x_0[..., :-1]

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"alphabet": self.alphabet, "length": self.length}

    def _smiles(self, tokens: Sequence[int]) -> str:
        written = chemistry("selfies").decoder("".join(self.alphabet[token - 1] for token in tokens))
        return closed_shell(written) or written  # an invalid one stays as it is written, for the reward to say why
