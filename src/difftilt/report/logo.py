r"""Sequence logos: letters as tall as the information they carry.

With :math:`f_{ib}` the share of letter ``b`` at position ``i`` of ``V`` letters, the letter's height is

.. math:: h_{ib} = f_{ib} I_i, \qquad I_i = \log_2 V + \sum_b f_{ib} \log_2 f_{ib} \text{ bits}                     (1)

so the heights at a position sum to its information content, between 0 (uniform) and log2 V (one letter). Finite samples
make it too high; the amount is stated beside the logo, not subtracted:

.. math:: e_n = \frac{V - 1}{2 n \ln 2} \text{ bits for } n \text{ sequences.}                                       (2)

References:
    Schneider & Stephens 1990, https://doi.org/10.1093/nar/18.20.6097.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from markupsafe import Markup

from .svg import Canvas, Scale

PER_ROW = 25
PITCH = 14.0
LEFT, TOP, PLOT = 34.0, 10.0, 110.0
NUCLEOTIDES = {"A": "base-a", "C": "base-c", "G": "base-g", "T": "base-t", "U": "base-t"}

Frequencies = Sequence[Sequence[float]]


def letter_heights(frequencies: Frequencies) -> list[list[float]]:
    """Equation (1), bits, for ``[L][V]`` shares."""
    heights = []
    for shares in frequencies:
        information = math.log2(len(shares)) + sum(f * math.log2(f) for f in shares if f > 0)
        heights.append([max(0.0, f * information) for f in shares])
    return heights


def logo(frequencies: Frequencies, alphabet: str, *, top_bits: float, label: str) -> list[Markup]:
    """A logo in pieces of at most ``PER_ROW`` positions, which the page sets side by side or below each other.

    Args:
        frequencies: ``[L][V]`` shares.
        alphabet: the ``V`` letters.
        top_bits: where the vertical axis ends, so that two logos can share one.
        label: what it shows.
    """
    heights = letter_heights(frequencies)
    pieces = -(-len(heights) // PER_ROW)
    size = -(-len(heights) // pieces)
    return [
        _piece(heights[start : start + size], alphabet, start, top_bits, label)
        for start in range(0, len(heights), size)
    ]


def axis_top(*logos: Frequencies) -> float:
    """The smallest round number of bits that holds every stack but those of one letter, which would dwarf the rest."""
    stacks = [stack for frequencies in logos for stack in letter_heights(frequencies)]
    most = max((sum(stack) for stack in stacks if not fixed_letter(stack)), default=0.0)
    return next((top for top in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 4.0) if most <= top + 1e-9), 5.0)


def chance_bits(letters: int, designs: float) -> float:
    """Equation (2): bits that uniform random letters show by chance."""
    return (letters - 1) / (2 * designs * math.log(2))


def fixed_letter(heights: Sequence[float]) -> bool:
    """Whether a position is one letter in every design: only such a letter carries all log2 V bits."""
    return max(heights) >= math.log2(len(heights)) - 1e-12


def _piece(heights: list[list[float]], alphabet: str, start: int, top_bits: float, label: str) -> Markup:
    width, bottom = LEFT + PITCH * PER_ROW + 4, TOP + PLOT
    first, last = start + 1, start + len(heights)
    canvas = Canvas(width, bottom + 32, f"{label}, positions {first} to {last}")
    y = Scale(0.0, top_bits, bottom, TOP)
    canvas.left_axis(y, LEFT, LEFT + PITCH * len(heights), wanted=2)
    canvas.add(
        '<text class="label" transform="translate(9 {}) rotate(-90)" text-anchor="middle">bits</text>', TOP + PLOT / 2
    )
    for i, stack in enumerate(heights):
        level = bottom
        x = LEFT + PITCH * i + 0.5
        cut = fixed_letter(stack) and sum(stack) > top_bits
        for height, letter in sorted(zip(stack, alphabet, strict=True)):
            tall = bottom - y(min(height, top_bits))
            if tall < 0.02:
                continue
            kind = NUCLEOTIDES.get(letter, "base-other") + " cut" * cut
            canvas.add(
                '<use class="{}" href="#{}" transform="translate({} {}) scale({} {})"/>',
                *(kind, _name(letter), x, level, PITCH - 1.0, f"{-tall:.3f}"),
            )
            level -= tall
        position = start + i + 1
        if position == 1 or position % 5 == 0:
            canvas.text(LEFT + PITCH * (i + 0.5), bottom + 14, str(position), "tick", "middle")
    canvas.line(LEFT, bottom, LEFT + PITCH * len(heights), bottom, "axis")
    canvas.text(LEFT + PITCH * len(heights) / 2, bottom + 29, "position (first letter = 1)", "label", "middle")
    return canvas.markup()


def definitions(alphabet: str) -> Markup:
    """The outlines that the logos of a page refer to, each filling the unit square."""
    paths = [
        Markup('<path id="{}" fill-rule="nonzero" d="{}"/>').format(_name(letter), outline(letter))
        for letter in alphabet
    ]
    return Markup('<svg width="0" height="0" class="definitions" aria-hidden="true"><defs>{}</defs></svg>').format(
        Markup("").join(paths)
    )


def _name(letter: str) -> str:
    return f"glyph-{ord(letter)}"


@cache
def outline(letter: str) -> str:
    """SVG path of a letter, stretched to the unit square, y upwards."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    font = FT2Font(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"))
    font.set_size(100, 72)
    font.load_char(ord(letter))
    vertices, codes = font.get_path()
    low, high = vertices[codes != 79].min(0), vertices[codes != 79].max(0)
    unit = (vertices - low) / (high - low)
    commands = {1: "M", 2: "L", 3: "Q", 4: "C"}
    parts, i = [], 0
    while i < len(codes):
        code = int(codes[i])
        count = {3: 2, 4: 3}.get(code, 1)
        points = unit[i : i + count].ravel()
        parts.append(
            "Z" if code == 79 else commands[code] + " ".join(f"{v:.3f}".rstrip("0").rstrip(".") for v in points)
        )
        i += count
    return "".join(parts)
