"""Constraints: the sampler never breaks one, leaves out no design that keeps them, and is p_pre without any."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from difftilt.campaigns.automaton import Automaton
from difftilt.campaigns.constraints import SITES, ConstrainedDenoiser, Kept, Rules
from difftilt.campaigns.settings import Constraints
from difftilt.core.policy import Policy
from difftilt.core.trajectory import sample_states
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.problems.landscapes import random_pairwise
from difftilt.problems.tilted import TiltedProblem

LENGTH = 5


@pytest.fixture(scope="module")
def problem() -> TiltedProblem:
    """5 letters of ACGT, one shown per step: 1,024 designs, every one possible."""
    return random_pairwise(LENGTH, 4, alpha=0.5, seed=2)


def designs() -> list[str]:
    return ["".join(letters) for letters in itertools.product("ACGT", repeat=LENGTH)]


def complement(word: str) -> str:
    return word.translate(str.maketrans("ACGT", "TGCA"))[::-1]


def breaks(design: str, c: Constraints) -> bool:
    """What the settings mean, written a second time."""
    words = list(c.forbid) + ([complement(word) for word in c.forbid] if c.both_strands else [])
    run = max(len(list(group)) for _, group in itertools.groupby(design))
    gc = sum(letter in "GC" for letter in design)
    return (
        any(word in design for word in words)
        or (c.longest_run is not None and run > c.longest_run)
        or gc < (c.gc_min or 0) * LENGTH - 1e-6
        or gc > (1 if c.gc_max is None else c.gc_max) * LENGTH + 1e-6
        or (c.parent is not None and sum(a != b for a, b in zip(design, c.parent, strict=True)) > (c.mutations or 0))
    )


def drawn(rng: random.Random) -> Constraints:
    """Some constraints."""
    word = lambda n: "".join(rng.choice("ACGT") for _ in range(n))  # noqa: E731
    near = rng.random() < 0.4
    return Constraints(
        forbid=tuple(word(rng.randint(1, 3)) for _ in range(rng.randint(0, 3))),
        both_strands=rng.random() < 0.3,
        longest_run=rng.choice([None, None, 1, 2]),
        gc_min=rng.choice([None, 0.2, 0.4]),
        gc_max=rng.choice([None, 0.6, 0.8]),
        parent=word(LENGTH) if near else None,
        mutations=rng.randint(0, 4) if near else None,
    )


@pytest.mark.parametrize("seed", range(25))
def test_the_chain_never_breaks_constraints_and_reaches_every_design_that_keeps_them(
    problem: TiltedProblem, seed: int
) -> None:
    """The whole law, by enumeration: its support is exactly the designs that keep random constraints."""
    settings = drawn(random.Random(seed))
    keeping = torch.tensor([not breaks(design, settings) for design in designs()])
    if not keeping.any():
        with pytest.raises(ConfigError, match="some design keeps"):
            Rules(settings, problem.pretrained)
        return
    rules = Rules(settings, problem.pretrained)
    law = problem.chain.marginal(rules.on(problem.pretrained))
    assert law.sum().item() == pytest.approx(1, abs=1e-9)
    assert torch.equal(law > 0, keeping)
    assert torch.equal(rules.keeps(designs()), keeping)


def test_the_chain_is_p_pre_where_nothing_is_excluded(problem: TiltedProblem) -> None:
    nothing = Constraints(forbid=("ACGTAC",), longest_run=LENGTH, parent="ACGTA", mutations=LENGTH, gc_min=0.0)
    policy = Rules(nothing, problem.pretrained).on(problem.pretrained)
    assert isinstance(policy.denoiser, ConstrainedDenoiser)
    assert torch.allclose(problem.chain.marginal(policy), problem.pretrained_law, atol=1e-12)
    assert Rules(Constraints(), problem.pretrained).on(problem.pretrained).denoiser is problem.pretrained.denoiser


def test_each_step_is_p_pre_renormalised_over_the_letters_that_can_be_completed(problem: TiltedProblem) -> None:
    """Equation (1) at one state, by hand: _ A A _ _ with AAA forbidden has no A beside the two."""
    policy = Rules(Constraints(forbid=("AAA",)), problem.pretrained).on(problem.pretrained)
    x_t, t = torch.tensor([[4, 0, 0, 4, 4]]), torch.tensor([0.6], dtype=torch.float64)
    mine, theirs = policy.denoiser(x_t, t).softmax(-1)[0], problem.pretrained.denoiser(x_t, t).softmax(-1)[0]
    for place in (0, 3):
        assert mine[place, 0] == 0
        assert torch.allclose(mine[place, 1:], theirs[place, 1:] / theirs[place, 1:].sum())
    assert torch.allclose(mine[4], theirs[4])


def test_a_chain_without_look_ahead_breaks_constraints(problem: TiltedProblem) -> None:
    """Twin: letters are refused only once they complete a word, and then it may be too late for the count."""
    settings = Constraints(gc_min=0.8)
    policy = Rules(settings, problem.pretrained).on(problem.pretrained)

    class Late(torch.nn.Module):
        time_free = False

        def forward(self, x_t, t, cond=None):
            logits = policy.denoiser.base(x_t, t, cond)
            last = (x_t == 4).sum(-1) == 1
            return policy.denoiser(x_t, t, cond).where(last[:, None, None], logits)

    law = problem.chain.marginal(problem.pretrained.with_denoiser(Late()))
    broken = torch.tensor([breaks(design, settings) for design in designs()])
    assert law[broken].sum() > 0.1


def test_fixed_letters_are_held_and_counted_against_the_others(problem: TiltedProblem) -> None:
    rules = Rules(Constraints(fix=("2:GG",), gc_max=0.4), problem.pretrained)
    states = sample_states(rules.on(problem.pretrained), 200, torch.Generator().manual_seed(0))
    made = problem.pretrained.codec.decode(states)
    assert {design[1:3] for design in made} == {"GG"}
    assert all(sum(letter in "GC" for letter in design) == 2 for design in made)
    assert rules.keeps(["AGGAA", "AGAAA", "AAGAA", "GAAAG"]).tolist() == [True, False, False, False]
    assert rules.off(rules.on(problem.pretrained)).fixed is None
    with pytest.raises(ConfigError, match="some design keeps"):
        Rules(Constraints(fix=("2:GG",), forbid=("GG",)), problem.pretrained)


def test_several_letters_a_step_can_break_a_constraint_and_then_have_no_reward() -> None:
    """5 letters in 2 steps: what is broken is counted, and NaN to the tuning."""
    problem = random_pairwise(LENGTH, 4, alpha=0.5, seed=2, steps=2)
    rules = Rules(Constraints(forbid=("AC", "CG", "GT", "TA", "AA")), problem.pretrained)
    made = problem.pretrained.codec.decode(sample_states(rules.on(problem.pretrained), 300, torch.Generator()))
    keeps = rules.keeps(made)
    assert 0 < (~keeps).sum() < 300
    assert torch.equal(Kept(problem.reward, rules)(made).isnan(), ~keeps)


def test_a_count_beyond_half_of_a_long_design_is_kept_by_the_letters_that_are_not_counted() -> None:
    long = Automaton([], 100, 4, counted=(1, 2), least=90)
    x_t = torch.full((1, 100), 4)
    x_t[0, :10] = 0
    assert long.allowed(x_t)[0, 10:].tolist() == [[False, True, True, False]] * 90
    x_t[0, 10] = 3
    assert not long.allowed(x_t).any()
    few = Automaton([], 100, 4, counted=(1, 2), least=40, most=90)
    x_t[0, :90] = 1
    x_t[0, 90:] = 4
    assert few.allowed(x_t)[0, 90:].tolist() == [[True, False, False, True]] * 10
    x_t[0, 90] = 2
    assert not few.allowed(x_t).any()
    with pytest.raises(ConfigError, match="at most 61"):
        Automaton([], 200, 4, counted=(1, 2), least=70, most=130)


def test_names_codes_and_strands_are_read(problem: TiltedProblem) -> None:
    def words(*forbid: str, both: bool = False) -> set[str]:
        rules = Rules(Constraints(forbid=forbid, both_strands=both), policy_of(problem, 8))
        every = ["".join(p) for p in itertools.product("ACGT", repeat=4)]
        padded = [f"{word}CCCC" for word in every]
        return {word for word, keeps in zip(every, rules.keeps(padded).tolist(), strict=True) if not keeps}

    assert words("RWGG") == {"AAGG", "ATGG", "GAGG", "GTGG"}
    assert words("uugg") == words("TTGG") == {"TTGG"}
    assert words("AAGT", both=True) == {"AAGT", "ACTT"}
    rules = Rules(Constraints(forbid=("ecori",)), policy_of(problem, 8))
    assert rules.keeps([f"A{SITES['EcoRI']}A", "AGAATTTA"]).tolist() == [False, True]
    for wrong, match in (("EcoRX", "restriction site"), ("NNNNNNNN", "at most 4096")):
        with pytest.raises(ConfigError, match=match):
            Rules(Constraints(forbid=(wrong,)), problem.pretrained)


def policy_of(problem: TiltedProblem, length: int) -> Policy:
    """A chain of longer designs that is never run."""
    from difftilt.core.codec import TokenCodec
    from difftilt.networks.conv import ConvDenoiser
    from difftilt.processes.masked import Masked

    denoiser = ConvDenoiser(vocabulary=4, length=length, width=4)
    return Policy(denoiser, Masked(4), TokenCodec("ACGT", length, {"U": "T"}), (length,), steps=length)


@pytest.mark.parametrize(
    "wrong",
    [{"parent": "ACGTA"}, {"mutations": 1}, {"gc_min": 0.7, "gc_max": 0.3}, {"longest_run": 0}, {"gc_max": 1.2}],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Constraints(**wrong)


def test_constraints_on_letters_are_refused_where_there_are_none() -> None:
    from difftilt.problems.library import entry
    from difftilt.problems.linear_gaussian import LinearGaussian  # noqa: F401

    gaussian = entry("linear-gaussian").make().pretrained
    with pytest.raises(UnsupportedError, match="designs of letters"):
        Rules(Constraints(forbid=("A",)), gaussian)
