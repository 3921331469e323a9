"""Letters held fixed, from text to tokens."""

from __future__ import annotations

import pytest
import torch

from difftilt.core.codec import TokenCodec
from difftilt.core.fixing import fixed_tokens
from difftilt.errors import ConfigError

CODEC = TokenCodec("ACGT", 6, {"U": "T"})


def test_positions_count_from_one_and_letters_may_be_aliases():
    assert fixed_tokens(["2:au", "6:G"], CODEC).tolist() == [-1, 0, 3, -1, -1, 2]


def test_overlaps_that_agree_are_one():
    assert fixed_tokens(["1:ACG", "3:GT"], CODEC).tolist() == [0, 1, 2, 3, -1, -1]


def test_what_was_held_before_stays_held():
    held = torch.tensor([-1, 2, -1, -1, -1, -1])
    assert fixed_tokens(["1:A"], CODEC, held).tolist() == [0, 2, -1, -1, -1, -1]
    assert held.tolist() == [-1, 2, -1, -1, -1, -1]
    with pytest.raises(ConfigError, match="expected one letter for position 2; got A from --fix 2:A and G"):
        fixed_tokens(["2:A"], CODEC, held)


@pytest.mark.parametrize(
    "spec", ["", ":", "2", "2:", ":A", "0:A", "x:A", "6:AC", "99999999999:A", "1:N", "1:ACGTAC", "1.5:A", "²:A"]
)
def test_nonsense_is_refused(spec):
    with pytest.raises(ConfigError, match="expected"):
        fixed_tokens([spec], CODEC)
