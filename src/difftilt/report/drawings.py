"""Drawings of a domain on a run's page: files of the folder ``pictures``, and histograms drawn here.

Files are shown as pictures (``<img>``), so nothing in them runs or sees the page; an SVG of theirs may follow the
reader's colour scheme by a media query of its own.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, NamedTuple

from markupsafe import Markup

from difftilt.tracking.run import RunFolder

from .rounding import finite
from .svg import Canvas, Scale, spanning

LARGEST = 4_000_000
"""Bytes of a file that a page carries."""
TYPES = {".svg": "image/svg+xml", ".png": "image/png"}
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 330, 190, 40, 24, 154
SERIES = (("data", "yardstick", "data"), ("before", "plain", "pretrained"), ("after", "reward", ""))
"""Key, class of the line, and name; the last is what was done to the model."""


class Drawing(NamedTuple):
    """One figure: its content, words, and the key of its lines."""

    title: str
    caption: str
    content: Markup
    wide: bool
    key: tuple[tuple[str, str], ...] = ()


def read_drawings(run: RunFolder, done: str, problems: list[str]) -> list[Drawing]:
    """The drawings of a run; what cannot be shown is named in ``problems``.

    Args:
        run: the folder.
        done: what was done to the model, e.g. ``"tuned"``.
        problems: is added to.
    """
    index = run.pictures / "index.json"
    if not index.is_file():
        return []
    try:
        records = json.loads(index.read_text(encoding="utf-8"))["drawings"]
        records = [record for record in records if isinstance(record, Mapping)]
    except (OSError, ValueError, LookupError, TypeError) as error:
        problems.append(f"pictures/index.json could not be read ({error}); its drawings are left out.")
        return []
    drawings = []
    for record in records:
        title = str(record.get("title") or record.get("name") or "")
        drawing = _file(run, record, title) if "file" in record else _histogram(record, title, done)
        if drawing is None:
            problems.append(f"the drawing '{title}' is missing or damaged, and is left out.")
        else:
            drawings.append(drawing)
    return drawings


def _file(run: RunFolder, record: Mapping[str, Any], title: str) -> Drawing | None:
    path = run.pictures / str(record["file"])
    kind = TYPES.get(path.suffix)
    if kind is None or path.parent != run.pictures or not path.is_file() or path.stat().st_size > LARGEST:
        return None
    caption = str(record.get("caption") or "")
    image = Markup('<img class="drawing" src="data:{};base64,{}" alt="{}">').format(
        kind, b64encode(path.read_bytes()).decode(), f"{title}. {caption}"
    )
    return Drawing(title, caption, image, wide=True)


def _histogram(record: Mapping[str, Any], title: str, done: str) -> Drawing | None:
    """Outlines of shares over bins, all on one axis."""
    edges, shares = record.get("edges"), record.get("shares")
    if not isinstance(edges, list) or not isinstance(shares, Mapping) or len(edges) < 2:
        return None
    lines = {}
    for key, kind, name in SERIES:
        values = shares.get(key)
        if values is not None:
            if len(values) != len(edges) - 1 or any(finite(value) is None for value in (*values, *edges)):
                return None
            lines[name or done, kind] = [float(value) for value in values]
    if not lines:
        return None
    axis = str(record.get("axis") or title)
    canvas = Canvas(WIDTH, HEIGHT, f"shares of designs by {axis}")
    x = Scale(float(edges[0]), float(edges[-1]), LEFT, WIDTH - 14)
    y = spanning([value for values in lines.values() for value in values], BOTTOM, TOP, include=[0.0])
    canvas.text(2, 12, "share of designs", "label")
    canvas.left_axis(y, LEFT, WIDTH - 14)
    canvas.bottom_axis(x, BOTTOM, TOP, label=axis)
    for (_, kind), values in lines.items():
        corners = [(x(edges[0]), y(0.0))]
        for i, value in enumerate(values):
            corners += [(x(edges[i]), y(value)), (x(edges[i + 1]), y(value))]
        canvas.curve([*corners, (x(edges[-1]), y(0.0))], f"curve {kind}")
    return Drawing(title, "", canvas.markup(), wide=False, key=tuple(lines))
