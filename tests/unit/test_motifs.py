"""Motifs and word spectra against brute force, and what cards and reports say of them."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from difftilt import build
from difftilt.data import find
from difftilt.domains.references import Lookout, SecondReference, packed, unpacked
from difftilt.errors import ConfigError
from difftilt.metrics.motifs import (
    IUPAC,
    checked_motif,
    complements,
    reverse_complement,
    shorter_words,
    sites,
    spectrum_distance,
    word_counts,
)

OTHER = str.maketrans("ACGT", "TGCA")


def encode(designs: list[str], alphabet: str = "ACGT") -> torch.Tensor:
    return torch.tensor([[alphabet.index(letter) for letter in design] for design in designs])


def random_designs(n: int, length: int, seed: int = 0, weights: tuple[float, ...] = (1, 1, 1, 1)) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.multinomial(
        torch.tensor(weights, dtype=torch.float64), n * length, replacement=True, generator=rng
    ).view(n, length)


def text(tokens: torch.Tensor) -> list[str]:
    return ["".join("ACGT"[i] for i in row) for row in tokens.tolist()]


# --- sites ---------------------------------------------------------------------------------------------------------


@given(st.text(alphabet="".join(IUPAC), min_size=1, max_size=5), st.integers(0, 3))
def test_sites_are_the_windows_that_a_regular_expression_finds_on_either_strand(motif: str, seed: int) -> None:
    """Twin: sites of one strand differ for most motifs that are not palindromes."""
    designs = text(random_designs(12, 17, seed))
    pattern = re.compile("".join(f"[{IUPAC[code]}]" for code in motif))

    def expected(design: str, *, both: bool) -> int:
        windows = [design[i : i + len(motif)] for i in range(17 - len(motif) + 1)]
        other = [window.translate(OTHER)[::-1] for window in windows]
        return sum(
            bool(pattern.fullmatch(w) or (both and pattern.fullmatch(o))) for w, o in zip(windows, other, strict=True)
        )

    for both in (True, False):
        found = sites(encode(designs), motif, "ACGT", both_strands=both)
        assert found.tolist() == [expected(design, both=both) for design in designs]


def test_the_site_of_crx_is_found_on_both_strands_and_only_there() -> None:
    designs = ["GGTAATCCGG", "CCGGATTACC", "GGTAATGCGG", "TAATCCGGATTA"]
    assert sites(encode([d.ljust(12, "G") for d in designs]), "TAATCC", "ACGT").tolist() == [1, 1, 0, 2]
    one = sites(encode([d.ljust(12, "G") for d in designs]), "TAATCC", "ACGT", both_strands=False)
    assert one.tolist() == [1, 0, 0, 1]


def test_codes_are_those_of_sequence_files() -> None:
    """A, C, G, T are bits 1, 2, 4, 8 of the sixteen codes of the BAM format (SAM specification, section 4.2.3)."""
    for mask, code in enumerate("=ACMGRSVTWYHKDBN"):
        if mask:
            assert set(IUPAC[code]) == {letter for bit, letter in enumerate("ACGT") if mask >> bit & 1}, code
    assert set(IUPAC) == set("ACMGRSVTWYHKDBN") | {"U"}


def test_a_palindrome_counts_once_and_overlaps_count_each() -> None:
    assert sites(encode(["GGTGACGTCAGG"]), "TGACGTCA", "ACGT").tolist() == [1]
    assert sites(encode(["AAAAAAAA"]), "AAAAAAA", "ACGT").tolist() == [2]


def test_a_motif_longer_than_the_design_has_no_site_and_one_as_long_may() -> None:
    assert sites(encode(["ACGT", "TTTT"]), "ACGTA", "ACGT").tolist() == [0, 0]
    assert sites(encode(["ACGT", "TTTT"]), "ACGT", "ACGT").tolist() == [1, 0]


def test_other_orders_of_letters_and_u_for_t_count_the_same() -> None:
    designs = text(random_designs(20, 30))
    reference = sites(encode(designs), "TAAYC", "ACGT").tolist()
    assert sum(reference) > 0
    assert sites(encode(designs, "TGCA"), "TAAYC", "TGCA").tolist() == reference
    assert sites(encode(designs), "UAAYC", "ACGU").tolist() == reference
    assert complements("ACGU").tolist() == [3, 2, 1, 0]
    assert complements("AGCT").tolist() == [3, 2, 1, 0]
    assert complements("ATCG").tolist() == [1, 0, 3, 2]


@pytest.mark.parametrize(("motif", "message"), [("", "an empty one"), ("TAAT-C", "'-' in 'TAAT-C'"), ("TAXT", "'X'")])
def test_what_is_no_motif_is_refused(motif: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sites(encode(["ACGT"]), motif, "ACGT")
    assert checked_motif("taaty") == "TAATY"


# --- words ---------------------------------------------------------------------------------------------------------


def test_words_of_both_strands_are_those_of_the_designs_and_of_their_other_strands() -> None:
    designs = random_designs(9, 20)
    other = encode([design.translate(OTHER)[::-1] for design in text(designs)])
    assert torch.equal(reverse_complement(designs, "ACGT"), other)
    both = word_counts(designs, 3, "ACGT", both_strands=True)
    assert torch.equal(both, word_counts(torch.cat([designs, other]), 3, "ACGT"))
    assert torch.equal(both, word_counts(other, 3, "ACGT", both_strands=True)), "a strand has no name"
    assert not torch.equal(word_counts(designs, 3, "ACGT"), word_counts(other, 3, "ACGT"))


def test_shorter_words_are_the_beginnings_of_longer_ones() -> None:
    designs = random_designs(5, 12)
    counts = shorter_words(word_counts(designs, 6, "ACGT"), 2, 4)
    assert torch.equal(counts, word_counts(designs[:, :10], 4, "ACGT"))
    assert torch.equal(shorter_words(counts, 0, 4), counts)


def test_distance_of_spectra_is_a_metric_between_0_and_1() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b, c = torch.rand(3, 64, generator=rng, dtype=torch.float64).log().neg()
    assert spectrum_distance(a, 7 * a) == pytest.approx(0, abs=1e-7)
    assert spectrum_distance(a, b) == pytest.approx(spectrum_distance(b, a))
    for one, two, three in itertools.permutations((a, b, c)):
        assert spectrum_distance(one, two) <= spectrum_distance(one, three) + spectrum_distance(three, two)
    apart = torch.eye(2, dtype=torch.float64)
    assert spectrum_distance(apart[0], apart[1]) == pytest.approx(1.0)
    assert math.isnan(spectrum_distance(torch.zeros(4), torch.ones(4)))


def test_distance_of_two_letters_is_the_one_worked_out_by_hand() -> None:
    """(1, 0) and (1/2, 1/2): the middle is (3/4, 1/4), D(p|m) = log2(4/3), D(q|m) = log2(2/3)/2 + log2(2)/2."""
    p, q = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 2.0])
    expected = math.sqrt(0.5 * math.log2(4 / 3) + 0.5 * (0.5 * math.log2(2 / 3) + 0.5 * math.log2(2)))
    assert spectrum_distance(p, q) == pytest.approx(expected)


def test_two_samples_of_one_law_are_as_far_apart_as_said_and_of_two_laws_farther() -> None:
    """Equation of the module's docstring.

    H0: 16 two-letter words at random, N = M = 4000 independent words. The mean square of 40 distances is within 5
    standard errors of (V^k - 1)(1/N + 1/M) / (8 ln 2); a chi-square with 15 degrees deviates by sqrt(2/15). False
    alarms about 1e-6. Twin: the other sample has 10 % more of one letter.
    """

    def mean_square(weights: tuple[float, ...]) -> float:
        total = 0.0
        for seed in range(40):
            one, two = random_designs(4000, 2, seed), random_designs(4000, 2, 1000 + seed, weights)
            total += spectrum_distance(word_counts(one, 2, "ACGT"), word_counts(two, 2, "ACGT")) ** 2
        return total / 40

    expected = 15 * (2 / 4000) / (8 * math.log(2))
    error = expected * math.sqrt(2 / 15 / 40)
    assert abs(mean_square((1, 1, 1, 1)) - expected) < 5 * error
    assert mean_square((1.1, 1, 1, 1)) > expected + 5 * error


# --- cards ---------------------------------------------------------------------------------------------------------

LOOKOUT = Lookout(alphabet="ACGT", motifs={"TAATCC": "CRX", "GGCC": ""}, words=(4, 6), both_strands=True)


def test_counts_survive_the_card() -> None:
    counts = word_counts(random_designs(50, 40), 6, "ACGT")
    assert torch.equal(unpacked(packed(counts)), counts)
    assert len(packed(counts)) == 64


def test_what_a_card_keeps_says_of_held_out_designs_what_a_run_says_of_designs() -> None:
    train, test = random_designs(300, 40), random_designs(80, 40, 1, (1, 2, 2, 1))
    card = LOOKOUT.card(train, test, None, encode)
    assert set(card) == {"word_counts", "held_out"}
    for name, value in LOOKOUT.describe(card, test).items():
        assert card["held_out"][name] == pytest.approx(value, abs=1e-5)
    assert card["held_out"]["sites_GGCC"] == pytest.approx(sites(test, "GGCC", "ACGT").double().mean().item(), abs=1e-5)
    same = LOOKOUT.describe(card, train)
    assert same["kmer6_distance"] == pytest.approx(0, abs=1e-6)
    assert same["kmer4_distance"] == pytest.approx(0, abs=1e-6)
    assert 0.05 < card["held_out"]["kmer4_distance"] < card["held_out"]["kmer6_distance"]
    assert LOOKOUT.card(train, test[:0], None, encode).keys() == {"word_counts"}


def test_a_card_without_counts_and_a_task_without_words_keep_to_motifs() -> None:
    test = random_designs(80, 40)
    assert set(LOOKOUT.describe({}, test)) == {"sites_TAATCC", "sites_GGCC"}
    bare = replace(LOOKOUT, words=())
    assert set(bare.card(test, test, None, encode)) == {"held_out"}
    assert set(replace(bare, motifs={}).describe({}, test)) == set()


def test_designs_of_the_second_reference_are_near_it_and_far_from_the_first() -> None:
    if find("k562-enhancer") is None:
        pytest.skip("data set k562-enhancer is not here")
    second = SecondReference(data_set="k562-enhancer", rows=lambda t: t.column("group") == "native", title="elements")
    train = random_designs(300, 40)
    card = LOOKOUT.card(train, train, second, encode)
    assert card["second_reference"] == "elements"
    assert unpacked(card["second_word_counts"]).sum() == 2 * 2000 * (200 - 5)
    from difftilt.data import load

    table = load("k562-enhancer")
    native = encode(table.take(table.column("group") == "native").sequences[:500])
    random = encode(table.take(table.column("group") == "random").sequences[:500])
    near, far = LOOKOUT.describe(card, native), LOOKOUT.describe(card, random)
    for k in (4, 6):
        assert near[f"kmer{k}_distance_second"] < 0.6 * far[f"kmer{k}_distance_second"]
        assert near[f"kmer{k}_distance_second"] < near[f"kmer{k}_distance"]


@pytest.mark.parametrize("name", ["crx-enhancer", "yeast-promoter"])
def test_shipped_cards_say_what_held_out_designs_have(name: str) -> None:
    task = build.task(name)
    policy = build.load_task_policy(task)
    held_out = policy.card["held_out"]
    assert {f"sites_{motif}" for motif in task.motifs} <= set(held_out)
    assert {f"kmer{k}_distance" for k in task.words} <= set(held_out)
    assert task.facts(policy)["held_out"] == held_out
    if find(task.data_set) is None:
        pytest.skip(f"data set {task.data_set} is not here")
    data = task.split(task.read())
    facts = task.describe(policy, None)(data.states[data.prior_test])
    for key, value in held_out.items():
        assert facts[key] == pytest.approx(value, abs=1e-5), key
    noise = random_designs(len(data.prior_test), policy.event_shape[0])
    assert task.describe(policy, None)(noise)["kmer4_distance"] > 1.4 * held_out["kmer4_distance"]
