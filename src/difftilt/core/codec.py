"""From states to designs and back.

A codec turns a batch of finished states :math:`x_0` into what a user scores and reads (strings here; molecules and
images in their domains), and designs into states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F

from difftilt.core.registry import register
from difftilt.core.sticks import break_sticks, sticks_of
from difftilt.errors import DataError, ShapeError
from difftilt.types import Float, Int, Tensor


@runtime_checkable
class Codec(Protocol):
    """What a policy needs to know of its domain's representation."""

    def decode(self, x_0: Tensor) -> list[Any]:
        """Designs of a batch of finished states, in order."""
        ...

    def encode(self, designs: Sequence[Any]) -> Tensor:
        """States ``[B, *event]`` of designs; raises :class:`DataError` on one that cannot be represented."""
        ...

    def readable(self, x_0: Tensor) -> Tensor:
        """What a reward's ``on_probabilities`` reads of finished differentiable states. Gradient flows.

        Its value is that of the design that :meth:`decode` gives.
        """
        ...

    def config(self) -> dict[str, Any]:
        """Constructor arguments, plain values."""
        ...


def fault_of(codec: Codec, design: Any) -> str | None:
    """Why a design that ``codec`` decoded cannot be encoded, by its ``fault``; ``None`` if it can, or it has none."""
    fault = getattr(codec, "fault", None)
    return None if fault is None else fault(design)


@register("codec", "tokens")
class TokenCodec:
    """Fixed-length strings over an alphabet, one token per letter.

    Args:
        alphabet: the letters, token 0 first; the mask token is ``len(alphabet)`` and never appears in a design.
        length: number of letters ``L``.
        aliases: letters read as another, e.g. ``{"U": "T"}``; lower case is read as upper case where
            the alphabet has no lower-case letter of its own.
    """

    def __init__(self, alphabet: str, length: int, aliases: dict[str, str] | None = None) -> None:
        self.alphabet, self.length, self.aliases = alphabet, length, dict(aliases or {})
        self._bytes = np.frombuffer(alphabet.encode("ascii"), dtype=np.uint8)
        table = np.full(256, 255, dtype=np.uint8)
        for index, letter in enumerate(alphabet):
            table[ord(letter)] = index
            if letter.lower() not in alphabet:
                table[ord(letter.lower())] = index
        for alias, letter in self.aliases.items():
            table[ord(alias)] = table[ord(alias.lower())] = alphabet.index(letter)
        self._table = table

    @property
    def vocabulary(self) -> int:
        """Number of letters ``V``, the mask not counted."""
        return len(self.alphabet)

    def tokens(self, x_0: Tensor) -> Int[Tensor, "B L"]:
        """Letters of finished states, by number."""
        return x_0

    def decode(self, x_0: Tensor) -> list[str]:
        """Strings of finished states.

        Raises:
            ShapeError: a position still holds the mask token.
        """
        tokens = self.tokens(x_0).detach().cpu().numpy()
        if tokens.size and tokens.max() >= self.vocabulary:
            raise ShapeError(
                f"expected finished designs with tokens 0..{self.vocabulary - 1}; got token {tokens.max()} (a mask); "
                "decode only states at t = 0"
            )
        text = self._bytes[tokens].tobytes().decode("ascii")
        width = tokens.shape[1]
        return [text[i : i + width] for i in range(0, len(text), width)]

    def encode(self, designs: Sequence[str]) -> Int[Tensor, "B L"]:
        """Tokens of strings; see the class for the letters read.

        Raises:
            DataError: a wrong length, or a letter outside the alphabet (both with the design's number).
        """
        for number, design in enumerate(designs, start=1):
            if len(design) != self.length:
                raise DataError(
                    f"expected designs of {self.length} letters; got {len(design)} letters in design {number}; "
                    "trim or drop it"
                )
        raw = np.frombuffer("".join(designs).encode("latin-1", "replace"), dtype=np.uint8)
        tokens = self._table[raw].reshape(len(designs), self.length)
        if (tokens == 255).any():
            row, column = map(int, np.argwhere(tokens == 255)[0])
            raise DataError(
                f"expected letters {self.alphabet}; got '{designs[row][column]}' in design {row + 1}, "
                f"position {column + 1}; correct or drop it"
            )
        return torch.from_numpy(tokens.astype(np.int64))

    def readable(self, x_0: Float[Tensor, "B L V1"]) -> Float[Tensor, "B L V"]:
        """Relaxed tokens without the mask."""
        return x_0[..., :-1]

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"alphabet": self.alphabet, "length": self.length, "aliases": self.aliases}


@register("codec", "simplex")
class SimplexCodec(TokenCodec):
    """Strings read off stick-breaking states ``[B, L, V - 1]``: the largest letter of each position, never none."""

    def tokens(self, x_0: Float[Tensor, "B L V1"]) -> Int[Tensor, "B L"]:
        """The largest letter of each position; sticks are read within [0, 1]."""
        return self._probabilities(x_0).argmax(-1)

    def encode(self, designs: Sequence[str]) -> Float[Tensor, "B L V1"]:
        """States of strings, at the corners; see the class for the letters read."""
        return sticks_of(super().encode(designs), self.vocabulary)

    def readable(self, x_0: Float[Tensor, "B L V1"]) -> Float[Tensor, "B L V"]:
        """Straight-through: one-hot letters forward, the probabilities' gradient backward; they are nearly one-hot."""
        soft = self._probabilities(x_0)
        return F.one_hot(soft.argmax(-1), self.vocabulary).to(soft) + (soft - soft.detach())

    @staticmethod
    def _probabilities(x_0: Float[Tensor, "B L V1"]) -> Float[Tensor, "B L V"]:
        return break_sticks(x_0.clamp(0, 1))


@register("codec", "vector")
class VectorCodec:
    """Designs are the states themselves, as numpy vectors."""

    def decode(self, x_0: Float[Tensor, "B d"]) -> list[np.ndarray]:
        """Rows."""
        return list(x_0.detach().cpu().double().numpy())

    def encode(self, designs: Sequence[np.ndarray]) -> Float[Tensor, "B d"]:
        """Rows to states."""
        return torch.from_numpy(np.stack(designs))

    def readable(self, x_0: Float[Tensor, "B *event"]) -> Float[Tensor, "B *event"]:
        """States are designs."""
        return x_0

    def config(self) -> dict[str, Any]:
        """No arguments."""
        return {}


@register("codec", "image")
class ImageCodec:
    """Pixels ``[B, C, H, W]`` in [-1, 1] as numpy arrays ``[H, W, C]`` of 8 bits, ``[H, W]`` for one channel.

    ``PIL.Image.fromarray(design)`` is the picture.
    """

    def decode(self, x_0: Float[Tensor, "B C H W"]) -> list[np.ndarray]:
        """Pixels rounded to 8 bits."""
        pixels = (self._levels(x_0.detach())).round().to(torch.uint8).movedim(1, -1).cpu().numpy()
        return list(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)

    def encode(self, designs: Sequence[np.ndarray]) -> Float[Tensor, "B C H W"]:
        """Pixels of images of one size.

        Raises:
            DataError: another size or type than the first's, or not 8 bits.
        """
        arrays = [np.asarray(design) for design in designs]
        for number, array in enumerate(arrays, start=1):
            if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape != arrays[0].shape:
                raise DataError(
                    f"expected images of 8 bits and one size; got {array.dtype} {array.shape} in design {number}; "
                    "convert it"
                )
        stacked = torch.from_numpy(np.stack(arrays))
        pixels = stacked[:, None] if stacked.ndim == 3 else stacked.movedim(-1, 1)
        return pixels.float() / 127.5 - 1

    def readable(self, x_0: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Pixels in [0, 1], straight-through where they are rounded: the gradient is that of the pixels."""
        levels = self._levels(x_0)
        return (levels + (levels.round() - levels).detach()) / 255

    @staticmethod
    def _levels(x_0: Tensor) -> Tensor:
        return (x_0 / 2 + 0.5).clamp(0, 1) * 255

    def config(self) -> dict[str, Any]:
        """No arguments."""
        return {}
