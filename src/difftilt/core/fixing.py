"""``--fix 10:ATG``: letters held fixed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from difftilt.core.codec import Codec, TokenCodec
from difftilt.core.policy import Policy
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.types import Int, Tensor


def hold(policy: Policy, specs: Sequence[str]) -> Policy:
    """The policy with the letters of ``specs`` held fixed, besides those that it holds already.

    Raises:
        ConfigError: a malformed spec, a position or letter the design does not have, two letters for one position.
        UnsupportedError: designs are no strings, or the process cannot hold letters.
    """
    if not specs:
        return policy
    fixed = fixed_tokens(specs, policy.codec, policy.fixed).to(policy.device)
    policy.process.clamp(fixed[None], fixed)  # a process that cannot hold positions says so
    return policy.holding(fixed)


def fixed_tokens(specs: Sequence[str], codec: Codec, held: Tensor | None = None) -> Int[Tensor, " L"]:
    """Tokens held fixed, -1 where free; ``held`` are those held before."""
    if not isinstance(codec, TokenCodec):
        raise UnsupportedError(
            f"expected designs that are strings for --fix; got {type(codec).__name__}; leave out --fix"
        )
    fixed = torch.full((codec.length,), -1) if held is None else held.cpu().clone()
    for spec in specs:
        place, colon, letters = spec.partition(":")
        if not colon or not letters or not place.strip().isdecimal():
            raise ConfigError(f"expected --fix POSITION:LETTERS; got '{spec}'; for example 10:{codec.alphabet[:3]}")
        first = int(place)
        if first < 1 or first + len(letters) - 1 > codec.length:
            last = first + len(letters) - 1
            raise ConfigError(
                f"expected --fix within positions 1 to {codec.length}; got '{spec}', positions {first} to {last}; "
                "correct it"
            )
        for position, token in enumerate(_tokens(letters, spec, codec), start=first - 1):
            if fixed[position] not in (-1, token):
                other = codec.alphabet[int(fixed[position])]
                raise ConfigError(
                    f"expected one letter for position {position + 1}; got {codec.alphabet[token]} from --fix {spec} "
                    f"and {other} from another; drop one of them"
                )
            fixed[position] = token
    if (fixed >= 0).all():
        raise ConfigError(f"expected a free position beside --fix; got all {codec.length} fixed; fix fewer")
    return fixed


def _tokens(letters: str, spec: str, codec: TokenCodec) -> list[int]:
    known = {letter: token for token, letter in enumerate(codec.alphabet)}
    known |= {alias: known[letter] for alias, letter in codec.aliases.items()}
    found = [known.get(letter, known.get(letter.upper(), -1)) for letter in letters]
    if -1 in found:
        raise ConfigError(
            f"expected letters {codec.alphabet} in --fix; got '{letters[found.index(-1)]}' in '{spec}'; correct it"
        )
    return found
