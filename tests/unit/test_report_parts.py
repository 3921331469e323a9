"""Rounding says what is known, axes hold their data, and a logo is as tall as the information it shows."""

from __future__ import annotations

import itertools
import math
import re

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from difftilt.report import rounding
from difftilt.report.charts import POINTS, RIGHT, Row, Series, Spot, curve, dots, scatter
from difftilt.report.facts import Bought, RunFacts, Samples
from difftilt.report.logo import LEFT, PITCH, PLOT, axis_top, chance_bits, letter_heights, logo, outline
from difftilt.report.rounding import Estimate
from difftilt.report.sentences import gain, notices
from difftilt.report.svg import Canvas, Scale, spanning

shares = st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(any).map(lambda n: [k / sum(n) for k in n])
GLYPH = re.compile(
    r'<use class="([^"]+)" href="#glyph-(\d+)" transform="translate\(([\d.]+) ([\d.]+)\) scale\([\d.]+ -([\d.]+)\)'
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (rounding.fixed(-68.857, 2), "−68.86"),
        (rounding.fixed(-0.0004, 2), "0.00"),
        (rounding.fixed(1843200.0, 0), "1,843,200"),
        (rounding.significant(0.30912), "0.309"),
        (rounding.significant(23.41), "23.4"),
        (rounding.significant(64000.0), "64,000"),
        (rounding.significant(2.4e-7), "2.40e−07"),
        (rounding.significant(None), "–"),
        (rounding.given(0.1), "0.1"),
        (rounding.share(0.9731), "97.3 %"),
        (rounding.share(0.9999), ">99.9 %"),
        (rounding.share(0.0001), "<0.1 %"),
        (rounding.share(1.0), "100 %"),
        (rounding.compact(25572.0), "25.6k"),
        (rounding.compact(950.0), "950"),
        (rounding.duration(2.44), "2.4 s"),
        (rounding.duration(59.7), "1 min 0 s"),
        (rounding.duration(151.3), "2 min 31 s"),
        (rounding.duration(4330.0), "1 h 12 min"),
    ],
)
def test_numbers_read_well(text, expected):
    assert text == expected


@given(st.floats(1e-3, 1e3))
def test_decimals_show_the_error_in_one_or_two_digits(error):
    places = rounding.decimals([error, None, 0.0, 2 * error])
    shown = round(error, places)
    assert shown > 0
    assert abs(shown - error) <= 0.27 * error
    assert places == 0 or len(str(round(error * 10**places))) <= 2


@pytest.mark.parametrize("value", [math.nan, math.inf, None, True, "3", [1]])
def test_what_is_no_finite_number_is_missing(value):
    assert rounding.finite(value) is None


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_even_round_and_inside_the_axis(low, width):
    scale = Scale(low, low + width, 0.0, 100.0)
    if not scale.low < scale.high or width < 1e-9 * abs(low):
        return
    ticks, _ = scale.ticks()
    assert 2 <= len(ticks) <= 11
    slack = 1e-6 * width
    assert all(scale.low - slack <= tick <= scale.high + slack for tick in ticks)


@given(st.lists(st.floats(-1e5, 1e5), min_size=1, max_size=20))
def test_every_value_has_its_place_on_a_spanning_axis(values):
    scale = spanning(values, 10.0, 90.0)
    assert all(10.0 - 1e-6 <= scale(value) <= 90.0 + 1e-6 for value in values)


@given(st.lists(shares, min_size=1, max_size=60))
def test_letter_heights_sum_to_the_information_content(table):
    for row, heights in zip(table, letter_heights(table), strict=True):
        entropy = -sum(f * math.log2(f) for f in row if f)
        assert sum(heights) == pytest.approx(2 - entropy, abs=1e-12)
        assert all(h == pytest.approx(f * sum(heights)) for f, h in zip(row, heights, strict=True))


def test_uniform_letters_carry_nothing_and_a_single_letter_carries_log2_v():
    assert letter_heights([[0.25] * 4, [1.0, 0.0, 0.0, 0.0]]) == [[0.0] * 4, [2.0, 0.0, 0.0, 0.0]]
    assert sum(letter_heights([[0.0] * 19 + [1.0]])[0]) == pytest.approx(math.log2(20))


@given(st.lists(shares, min_size=1, max_size=60))
def test_drawn_letters_are_as_tall_as_their_information(table):
    top = 2.0
    pieces = logo(table, "ACGT", top_bits=top, label="x")
    assert len(pieces) == -(-len(table) // 25)
    drawn = []
    for piece in pieces:
        stacks: dict[float, list[tuple[float, float]]] = {}
        for _, _, x, base, height in GLYPH.findall(piece):
            stacks.setdefault(float(x), []).append((float(base), float(height)))
        size = round((float(re.search(r'class="axis" x1="[\d.]+" y1="[\d.]+" x2="([\d.]+)', piece)[1]) - LEFT) / PITCH)
        drawn += [stacks.get(LEFT + PITCH * i + 0.5, []) for i in range(size)]
    assert len(drawn) == len(table)
    for stack, heights in zip(drawn, letter_heights(table), strict=True):
        assert sum(height for _, height in stack) / PLOT * top == pytest.approx(sum(heights), abs=0.003)
        assert [height for _, height in stack] == sorted(height for _, height in stack)  # the commonest on top
        for (base, height), (above, _) in itertools.pairwise(stack):
            assert base - height == pytest.approx(above, abs=0.02)


def test_chance_explains_the_bits_of_random_letters(rng):
    n = 400
    letters = torch.randint(4, (n, 500), generator=rng)
    table = torch.nn.functional.one_hot(letters, 4).double().mean(0).tolist()
    bits = sum(map(sum, letter_heights(table))) / len(table)
    assert bits == pytest.approx(chance_bits(4, n), rel=0.2)  # s.e. of the mean of 500 is 3.7 %


def test_each_letter_is_drawn_in_the_colour_of_its_base():
    (piece,) = logo([[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]], "ACGU", top_bits=1.0, label="x")
    tallest = max(GLYPH.findall(piece), key=lambda glyph: float(glyph[4]))
    assert {(kind, chr(int(code))) for kind, code, *_ in GLYPH.findall(piece)} == {
        ("base-a", "A"), ("base-c", "C"), ("base-g", "G"), ("base-t", "U"),
    }  # fmt: skip
    assert chr(int(tallest[1])) in "AU"


def test_fixed_positions_do_not_dwarf_the_others():
    table = [[0.4, 0.2, 0.2, 0.2], [1.0, 0.0, 0.0, 0.0]]
    assert axis_top(table) == 0.1
    (piece,) = logo(table, "ACGT", top_bits=0.1, label="x")
    kinds = [kind for kind, *_ in GLYPH.findall(piece)]
    assert kinds.count("base-a cut") == 1
    assert axis_top([[1.0, 0.0, 0.0, 0.0]]) == 0.02
    assert axis_top([[0.9, 0.1, 0.0, 0.0]]) == 2.0


@pytest.mark.parametrize("letter", "ACGTUNWK-*")
def test_outlines_fill_the_unit_square(letter):
    path = outline(letter)
    numbers = [float(n) for n in re.findall(r"-?\d*\.?\d+", path)]
    assert path.startswith("M")
    assert path.endswith("Z")
    assert (min(numbers), max(numbers)) == (0.0, 1.0)
    assert min(numbers[1::2]) == 0.0  # y: the letter stands on its base line
    assert max(numbers[1::2]) == 1.0


def test_curves_keep_their_last_point_when_thinned():
    records = [{"step": step, "reward": step / 7} for step in range(1, 10 * POINTS + 4)]
    drawing = curve(records, [Series("reward", "reward")], label="reward")
    path = re.search(r'<path class="curve reward" d="M([^"]+)"', drawing)[1].split("L")
    assert len(path) <= POINTS
    step_px, value_px = map(float, path[-1].split())
    assert step_px == RIGHT  # the axis ends at the last step
    assert value_px == pytest.approx(min(float(p.split()[1]) for p in path))


def test_curves_place_points_where_the_ticks_say():
    records = [{"step": step, "reward": 5.0 + step / 100, "oracle_calls": 64 * step} for step in range(1, 101)]
    drawing = curve(records, [Series("reward", "reward")], label="reward")
    path = re.search(r'<path class="curve reward" d="M([^"]+)"', drawing)[1].split("L")
    labels = re.findall(r'<text class="tick" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]+)</text>', drawing)
    at = {text: float(x) for x, y, anchor, text in labels if anchor == "middle"}
    assert float(path[39].split()[0]) == pytest.approx(at["40"], abs=0.02)
    assert at["40"] == at["2.56k"]
    level = {text: float(y) - 3.5 for x, y, anchor, text in labels if anchor == "end"}
    assert float(path[39].split()[1]) == pytest.approx(level["5.4"], abs=0.02)


def test_nothing_to_draw_is_no_figure():
    assert curve([{"step": 1, "judge": None}], [Series("judge", "judge")], label="x") is None
    assert dots([Row("a", (None,))], ("reward",), label="x", names=("reward",)) is None
    assert scatter([], x_label="x", y_label="y") is None


def test_dots_show_both_series_and_their_intervals():
    rows = [Row("before", (Estimate(5.58, 5.53, 5.63), Estimate(5.7, 5.66, 5.74))), Row("best", (Estimate(6.6), None))]
    drawing = dots(rows, ("reward", "judge"), label="load", names=("reward", "judge"))
    assert drawing.count('class="bar reward"') == 1
    assert drawing.count('class="mark reward"') == 2
    assert drawing.count('class="mark judge"') == 1
    x = [float(v) for v in re.findall(r'class="mark reward" cx="([\d.]+)"', drawing)]
    low, high = map(float, re.search(r'class="bar reward" x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)"', drawing).groups())
    assert low < x[0] < high < x[1]
    assert (high - low) / (x[1] - x[0]) == pytest.approx(0.10 / 1.02, abs=0.002)


def test_the_interval_of_a_gain_adds_variances():
    change = gain(Estimate(5.0, 4.7, 5.3), Estimate(6.5, 6.1, 6.9))
    assert change == pytest.approx((1.5, 1.0, 2.0))  # 0.3 and 0.4 make 0.5
    assert gain(Estimate(5.0), Estimate(6.5, 6.1, 6.9)) == (1.5, None, None)
    assert gain(None, Estimate(6.5)) is None


def test_every_label_of_a_drawing_is_escaped():
    attack = '"><script>'
    canvas = Canvas(10, 10, attack)
    canvas.text(0, 0, attack, attack)
    canvas.mark(1, 1, "plain", title=attack)
    spot = Spot(attack, Estimate(1.0, 0.9, 1.1), Estimate(2.0), "judge")
    assert "<script" not in canvas.markup()
    assert "<script" not in scatter([spot], x_label=attack, y_label=attack)


@pytest.mark.parametrize(("drawn", "warned"), [(None, True), (0.6, True), (0.98, False)])
def test_repeats_made_by_weights_are_no_collapse(drawn: float | None, warned: bool) -> None:
    after = {"unique_fraction": 0.6} | ({} if drawn is None else {"distinct_drawn": drawn})
    facts = RunFacts("run", {}, [], Bought(), Samples(), {"sampler": "smc", "after": after}, [])
    assert any("repeats itself" in notice.title for notice in notices(facts)) == warned


@pytest.mark.parametrize(
    ("unique", "left", "sampler", "warned"),
    [(1.0, 0.67, None, True), (1.0, 0.97, None, False), (0.6, 0.59, "smc", False), (0.6, 0.3, "smc", True)],
)
def test_near_duplicates_are_warned_of_though_no_two_designs_are_equal(
    unique: float, left: float, sampler: str | None, warned: bool
) -> None:
    after = {"unique_fraction": unique, "without_near_duplicates": left, "distinct_drawn": 1.0}
    own = {"after": after, "before": {"unique_fraction": 1.0, "without_near_duplicates": 0.99}}
    evaluation = own if sampler is None else own | {"sampler": sampler}
    said = notices(RunFacts("run", {}, [], Bought(), Samples(), evaluation, []))
    found = [notice for notice in said if "nearly repeats itself" in notice.title]
    assert bool(found) == warned
    assert all("99.0 % of the pretrained" in notice.text for notice in found)
