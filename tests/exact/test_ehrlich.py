"""Ehrlich functions against their definition, written a second time letter by letter."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from difftilt.errors import ConfigError
from difftilt.problems.ehrlich import Ehrlich, EhrlichSettings

SIZES = {
    "tiny": EhrlichSettings(letters=3, length=6, motifs=2, motif_length=2, quantisation=2, banned=0.34, seed=1),
    "dna": EhrlichSettings(letters=4, length=8, motifs=2, motif_length=3, quantisation=3, seed=3),
    "coarse": EhrlichSettings(letters=20, length=24, motifs=2, motif_length=4, quantisation=2, seed=2),
    "odd": EhrlichSettings(letters=8, length=23, motifs=3, motif_length=5, quantisation=3, seed=5),
    "standard": EhrlichSettings(),
    "long": EhrlichSettings(length=128, motifs=8, motif_length=8, quantisation=8, seed=7),
}


def by_hand(function: Ehrlich, design: str) -> float:
    """Equation (3) in loops."""
    own, letters = function.settings, [function.codec.alphabet.index(letter) for letter in design]
    if any(function.transition[a, b] == 0 for a, b in itertools.pairwise(letters)):
        return math.nan
    value = 1.0
    for motif, spacing in zip(function.motifs.tolist(), function.spacings.tolist(), strict=True):
        best = 0
        for start in range(own.length - spacing[-1]):
            best = max(best, sum(letters[start + s] == a for a, s in zip(motif, spacing, strict=True)))
        value *= (best * own.quantisation // own.motif_length) / own.quantisation
    return value


@pytest.fixture(params=SIZES)
def function(request: pytest.FixtureRequest) -> Ehrlich:
    return Ehrlich(SIZES[request.param])


def mutants(function: Ehrlich, n: int, seed: int = 0) -> torch.Tensor:
    """Feasible designs and the optimum, each with a few letters changed: many values, feasible and not."""
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.cat([function.sample(n, rng), function.codec.encode([function.optimum()]).repeat(n, 1)])
    change = torch.rand(tokens.shape, generator=rng) < 2 / tokens.shape[1]
    return torch.randint(function.settings.letters, tokens.shape, generator=rng).where(change, tokens)


def test_the_largest_value_is_1_and_a_feasible_design_has_it(function: Ehrlich) -> None:
    best = function.optimum()
    assert function([best]).item() == 1.0 == by_hand(function, best)
    assert function.reasons == [None]


def test_values_are_those_of_the_definition(function: Ehrlich) -> None:
    designs = function.codec.decode(mutants(function, 60))
    ours, theirs = function(designs).tolist(), [by_hand(function, design) for design in designs]
    assert len({value for value in ours if value == value}) > 2
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, abs=1e-12, nan_ok=True)


def test_a_design_is_infeasible_iff_it_has_a_banned_transition(function: Ehrlich) -> None:
    tokens = mutants(function, 60)
    values = function(function.codec.decode(tokens))
    banned = [any(function.transition[a, b] == 0 for a, b in itertools.pairwise(row)) for row in tokens.tolist()]
    assert values.isnan().tolist() == banned
    assert any(banned)
    assert [reason is not None for reason in function.reasons] == banned


def test_a_factor_is_1_iff_its_motif_is_there_in_full(function: Ehrlich) -> None:
    tokens = mutants(function, 60)
    factors = function.factors(tokens)
    for motif, spacing, factor in zip(function.motifs, function.spacings, factors.T, strict=True):
        starts = range(function.settings.length - int(spacing[-1]))
        full = [any((row[start + spacing] == motif).all() for start in starts) for row in tokens]
        assert (factor == 1).tolist() == full


def test_factors_take_the_values_of_the_quantisation(function: Ehrlich) -> None:
    q = function.settings.quantisation
    levels = {round(value * q, 9) for value in function.factors(mutants(function, 300)).flatten().tolist()}
    assert levels <= set(range(q + 1))
    assert len(levels) > 1


def test_fewer_letters_than_a_level_asks_for_count_nothing() -> None:
    """With q = 2 and k = 4 one letter is none, and three are two."""
    function = Ehrlich(SIZES["coarse"])
    other = next(i for i in range(20) if i not in function.motifs)
    motif, spacing = function.motifs[0], function.spacings[0]
    for count, level in ((0, 0.0), (1, 0.0), (2, 0.5), (3, 0.5), (4, 1.0)):
        tokens = torch.full((1, 24), other)
        tokens[0, spacing[:count]] = motif[:count]
        assert function.factors(tokens)[0, 0] == level


def test_enumeration_finds_nothing_above_1_and_designs_that_have_it() -> None:
    for name in ("tiny", "dna"):
        function = Ehrlich(SIZES[name])
        own = function.settings
        every = torch.cartesian_prod(*[torch.arange(own.letters)] * own.length)
        values = function(function.codec.decode(every))
        assert values.nan_to_num(0).max() == 1.0
        rows = function.transition > 0
        allowed = torch.ones(own.letters, dtype=torch.long)
        for _ in range(own.length - 1):
            allowed = rows.long() @ allowed
        assert (~values.isnan()).sum() == allowed.sum(), "as many feasible designs as there are allowed paths"


def test_banned_transitions_are_so_many_never_to_itself_and_leave_every_letter_within_reach(function: Ehrlich) -> None:
    own, allowed = function.settings, function.transition > 0
    assert (function.transition.sum(1) - 1).abs().max() < 1e-12
    assert ((~allowed).sum(1) == min(round(own.banned * own.letters), own.letters - 2)).all()
    assert allowed.diagonal().all()
    reach = torch.linalg.matrix_power(allowed.double(), own.letters)
    assert (reach > 0).all()


def test_samples_are_feasible_and_follow_the_transitions() -> None:
    """H0: neighbours follow ``A``. Hoeffding, n visits of a letter, 1e-10 for each of 1,024 pairs; twin: moved rows."""
    function = Ehrlich(SIZES["standard"])
    tokens = function.sample(4000, torch.Generator().manual_seed(1))
    assert function.feasible(tokens).all()
    start, pairs = tokens[:, :-1].flatten(), tokens[:, :-1].flatten() * 32 + tokens[:, 1:].flatten()
    seen = torch.bincount(pairs, minlength=1024).view(32, 32).double()
    n = torch.bincount(start, minlength=32)[:, None]
    bar = (math.log(2 / 1e-10) / (2 * n)).sqrt()

    def far(transition: torch.Tensor) -> bool:
        return bool(((seen / n - transition).abs() > bar).any())

    assert not far(function.transition)
    assert far(function.transition.roll(1, 0))


def test_the_seed_says_all() -> None:
    one, two = Ehrlich(EhrlichSettings()), Ehrlich(EhrlichSettings())
    assert one.optimum() == two.optimum()
    assert torch.equal(one.transition, two.transition)
    assert one.optimum() != Ehrlich(EhrlichSettings(seed=1)).optimum()


@pytest.mark.parametrize(
    ("name", "value"), [("letters", 33), ("length", 15), ("quantisation", 5), ("quantisation", 0), ("banned", 1.5)]
)
def test_what_cannot_be_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"got {name} {value}"):
        EhrlichSettings(**{name: value})
