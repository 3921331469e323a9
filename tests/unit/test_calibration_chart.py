"""The drawing of estimated against exact soft values: what is where, read back from the SVG."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from difftilt.report.calibration import GAP, POINTS, SIDE, calibration_chart, standalone
from difftilt.values.calibration import Calibration

NAMESPACE = "{http://www.w3.org/2000/svg}"


def row(t: float, pairs: list[tuple[float, float]]) -> Calibration:
    """Of pairs (exact, estimate)."""
    errors = [estimate - exact for exact, estimate in pairs]
    bias = sum(errors) / len(errors) if errors else math.nan
    rmse = math.sqrt(sum(e * e for e in errors) / len(errors)) if errors else math.nan
    return Calibration(t, [e for _, e in pairs], [x for x, _ in pairs], bias, rmse, math.nan, 0)


def drawn(chart: object) -> ET.Element:
    assert chart is not None
    return ET.fromstring(standalone(chart))


def circles(svg: ET.Element) -> list[tuple[float, float]]:
    return [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in svg.iter(NAMESPACE + "circle")]


def test_a_point_is_on_the_diagonal_where_the_estimate_is_right_and_above_it_where_too_high() -> None:
    right = drawn(calibration_chart({"exact": [row(1.0, [(0.0, 0.0), (1.0, 1.0), (3.0, 3.0)])]}))
    diagonal = next(line for line in right.iter(NAMESPACE + "line") if line.get("class") == "target")
    x1, y1, x2, y2 = (float(diagonal.get(name, "")) for name in ("x1", "y1", "x2", "y2"))
    assert x2 - x1 == pytest.approx(SIDE)
    assert y1 - y2 == pytest.approx(SIDE)
    for x, y in circles(right):
        assert x - x1 == pytest.approx(y1 - y, abs=0.02)
    high = circles(drawn(calibration_chart({"high": [row(1.0, [(0.0, 1.0), (1.0, 2.0)])]})))
    assert all(y1 - y > x - x1 + 5 for x, y in high)


def test_each_column_has_its_own_scale_shared_by_all_estimates() -> None:
    """The same exact value lies at the same place across, whatever the estimate."""
    one = [row(1.0, [(0.0, 0.0), (1.0, 1.0)]), row(0.5, [(10.0, 10.0), (30.0, 30.0)])]
    two = [row(1.0, [(0.0, 2.0), (1.0, -2.0)]), row(0.5, [(10.0, 50.0), (30.0, 20.0)])]
    places = circles(drawn(calibration_chart({"one": one, "two": two})))
    across = [x for x, _ in places]
    assert sorted(across[:2]) == sorted(across[2:4])
    assert sorted(across[4:6]) == sorted(across[6:])
    assert max(across[:4]) < SIDE + GAP < min(across[4:])


def test_times_are_spread_and_those_of_which_nothing_is_known_left_out() -> None:
    rows = [row(1 - k / 10, [] if k == 0 else [(0.0, 0.1), (1.0, 1.1)]) for k in range(10)]
    svg = drawn(calibration_chart({"a": rows}, times=3))
    texts = [text.text for text in svg.iter(NAMESPACE + "text")]
    assert [text for text in texts if str(text).startswith("t = ")] == ["t = 0.90", "t = 0.50", "t = 0.10"]
    assert texts.count("bias 0.10, rmse 0.10") == 3
    assert calibration_chart({"a": rows[:1]}) is None
    assert calibration_chart({}) is None
    some = drawn(calibration_chart({"a": rows, "b": [row(r.t, []) for r in rows]}, times=2))
    assert [text.text for text in some.iter(NAMESPACE + "text")].count("no finite pair") == 2


def test_points_are_thinned_and_names_escaped() -> None:
    pairs = [(0.001 * k, math.sin(k)) for k in range(5000)]
    svg = drawn(calibration_chart({"<b>&": [row(1.0, pairs)]}))
    assert POINTS / 2 < len(circles(svg)) <= POINTS
    assert "<b>&" in [text.text for text in svg.iter(NAMESPACE + "text")]


def test_a_file_of_its_own_has_every_colour_that_its_rules_name() -> None:
    text = standalone(calibration_chart({"a": [row(1.0, [(0.0, 0.0), (1.0, 1.0)])]}))
    style = ET.fromstring(text).find(NAMESPACE + "style")
    assert style is not None
    assert style.text is not None
    rules = style.text
    named = {part.split(")")[0] for part in rules.split("var(")[1:]}
    assert {"--paper", "--ink", "--reward"} <= named
    assert all(f"{name}:" in rules for name in named)
    assert "prefers-color-scheme: dark" in rules
