"""Designs against their wild type, drawn for a phone: only the columns in which some design differs.

Columns bear the protein's usual residue numbers and wrap into blocks; a mutation is a filled cell, stronger where the
new residue is of another chemical group; sites of note, such as a chromophore, are always shown and marked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 360
"""Units of the drawing's width: pixels of a phone held upright."""
LEFT, CELL, ROW, TOP = 62, 15, 17, 46
GROUPS = ("AVLIMC", "FWY", "STNQ", "KRH", "DE", "G", "P")
"""Residues that are alike: aliphatic, aromatic, polar, positive, negative, and two of their own kind."""
STYLE = """
.paper{fill:#fff}.ink{fill:#1a1f26}.soft{fill:#5a6470}.near{fill:#cfe3f5}.far{fill:#f6b26b}.site{fill:#e3f2e1}
.rule{stroke:#9aa4b0;stroke-width:1}text{font:12px ui-monospace,Menlo,Consolas,monospace}
.small{font:11px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}.bold{font-weight:700}
@media (prefers-color-scheme:dark){.paper{fill:#13161b}.ink{fill:#e5e9ee}.soft{fill:#9da7b3}.near{fill:#28486a}
.far{fill:#8a4f10}.site{fill:#22402a}.rule{stroke:#5b6673}}
"""


@dataclass(frozen=True)
class Line:
    """One design of the drawing."""

    design: str
    label: str
    """Beside it, e.g. its reward; a few characters."""


def alignment(
    lines: Sequence[Line],
    wild_type: str,
    numbers: Sequence[int],
    *,
    marked: Mapping[str, Sequence[int]] | None = None,
    heading: str = "",
) -> str:
    """The drawing, SVG text.

    Args:
        lines: designs as long as the wild type, the best first.
        wild_type: what they are compared with.
        numbers: usual number of each residue.
        marked: sites of note by name, as usual numbers.
        heading: above the labels of the designs, e.g. the reward's name.
    """
    places = _columns(lines, wild_type, numbers, marked or {})
    across = (WIDTH - LEFT - 6) // CELL
    blocks = [places[i : i + across] for i in range(0, len(places), across)] or [[]]
    tall = TOP + ROW * (len(lines) + 1) + 12
    parts: list[str] = []
    for k, block in enumerate(blocks):
        parts += _block(block, 4 + k * tall, lines, wild_type, numbers, marked or {}, heading)
    height = 4 + len(blocks) * tall
    parts += _key(height, len(marked or {}) > 0)
    height += 40
    changed = sum(any(line.design[p] != wild_type[p] for line in lines) for p in range(len(wild_type)))
    label = f"{len(lines)} designs against the wild type, {changed} columns with mutations"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(label)}"><style>{STYLE}</style>'
        f'<rect class="paper" width="{WIDTH}" height="{height}"/>{"".join(parts)}</svg>\n'
    )


def same_group(a: str, b: str) -> bool:
    """Whether two residues are of one chemical group."""
    return any(a in group and b in group for group in GROUPS)


def _columns(
    lines: Sequence[Line], wild_type: str, numbers: Sequence[int], marked: Mapping[str, Sequence[int]]
) -> list[int]:
    """Places shown: where a design differs, and sites of note."""
    noted = {number for site in marked.values() for number in site}
    return [
        place
        for place, (letter, number) in enumerate(zip(wild_type, numbers, strict=True))
        if number in noted or any(line.design[place] != letter for line in lines)
    ]


def _block(
    places: Sequence[int],
    top: int,
    lines: Sequence[Line],
    wild_type: str,
    numbers: Sequence[int],
    marked: Mapping[str, Sequence[int]],
    heading: str,
) -> list[str]:
    parts: list[str] = []
    first = top + TOP
    noted = {number: name for name, site in marked.items() for number in site}
    bottom = first + ROW * len(lines) + 4
    spans: dict[str, list[int]] = {}
    for column, place in enumerate(places):
        x = LEFT + CELL * column
        middle = x + CELL / 2
        number, letter = numbers[place], wild_type[place]
        if number in noted:
            spans.setdefault(noted[number], []).append(x)
            parts.append(f'<rect class="site" x="{x}" y="{top + 12}" width="{CELL}" height="{bottom - top - 12}"/>')
        parts.append(
            f'<text class="small soft" transform="translate({middle + 4} {first - 17}) rotate(-90)">{number}</text>'
        )
        parts.append(_letter(middle, first - 2, letter, "ink bold"))
        for row, line in enumerate(lines):
            y = first + ROW * row
            new = line.design[place]
            if new == letter:
                parts.append(_letter(middle, y + 14, "\u00b7", "soft"))
                continue
            kind = "near" if same_group(letter, new) else "far"
            parts.append(f'<rect class="{kind}" x="{x + 1}" y="{y + 2}" width="{CELL - 2}" height="{ROW - 2}" rx="2"/>')
            parts.append(_letter(middle, y + 14, new, "ink bold"))
    for name, xs in spans.items():
        near_edge = xs[0] > WIDTH - 90
        x, anchor = (xs[-1] + CELL, "end") if near_edge else (xs[0], "start")
        parts.append(f'<text class="small soft" x="{x}" y="{top + 9}" text-anchor="{anchor}">{escape(name)}</text>')
    parts.append(f'<line class="rule" x1="4" x2="{LEFT + CELL * len(places)}" y1="{first + 1}" y2="{first + 1}"/>')
    parts.append(f'<text class="small soft" x="4" y="{first - 18}">{escape(heading)}</text>')
    parts.append(f'<text class="small ink" x="4" y="{first - 3}">wild type</text>')
    for row, line in enumerate(lines):
        parts.append(f'<text class="small ink" x="4" y="{first + ROW * row + 14}">{escape(line.label)}</text>')
    return parts


def _letter(x: float, y: float, letter: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="middle">{escape(letter)}</text>'


def _key(top: int, sites: bool) -> list[str]:
    entries = [("near", "mutation, same chemical group"), ("far", "another group")]
    entries += [("site", "site of note")] if sites else []
    parts, x, y = [], 4, top
    for kind, text in entries:
        if x + 22 + 6.2 * len(text) > WIDTH:
            x, y = 4, y + 18
        parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="13" height="13" rx="2"/>')
        parts.append(f'<text class="small soft" x="{x + 17}" y="{y + 11}">{text}</text>')
        x += 26 + int(6.2 * len(text))
    return parts
