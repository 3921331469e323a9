"""Drawing for the tutorial: one look for all figures, in light and in dark, and sentences with computed numbers.

Figures are SVG without a background, whose text and axes take the colour of the page around them.
"""

from __future__ import annotations

import html
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch

torch.set_num_threads(1)

REDUCED = bool(os.environ.get("DIFFTILT_REDUCED"))
"""Whether everything runs at a few steps only, to see that it runs."""

INK = "#0a0b0c"
"""Replaced by the text colour of the page."""
BLUE, ORANGE, GREEN, RED, VIOLET, GREY = (
    "#3f87c9",
    "#dd8026",
    "#3a9d6e",
    "#d2504c",
    "#9270c8",
    "#8b8f94",
)
CYCLE = (BLUE, ORANGE, GREEN, RED, VIOLET, GREY)

mpl.rcParams.update(
    {
        "svg.fonttype": "path",
        "svg.hashsalt": "difftilt",
        "figure.dpi": 96,
        "figure.constrained_layout.use": True,
        "savefig.transparent": True,
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.labelsize": 10,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "axes.grid": True,
        "grid.color": INK,
        "grid.alpha": 0.12,
        "grid.linewidth": 0.6,
        "axes.prop_cycle": mpl.cycler(color=CYCLE),
        "lines.linewidth": 1.8,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "image.cmap": "viridis",
    }
)


def size(full: int, reduced: int) -> int:
    """How many of something: ``full``, or ``reduced`` where ``DIFFTILT_REDUCED`` is set."""
    return reduced if REDUCED else full


def axes(
    columns: int = 1,
    rows: int = 1,
    *,
    width: float = 5.4,
    height: float = 3.0,
    **options: Any,
) -> Any:
    """A figure of panels, and its axes."""
    return plt.subplots(rows, columns, figsize=(width, height), **options)


def pictures(
    rows: dict[str, Sequence[Any]], told: str, *, scale: int = 3, gap: int = 2
) -> None:
    """Show rows of equally large pictures, 8-bit arrays, each row with its name; the page shows through the gaps."""
    high, wide = next(iter(rows.values()))[0].shape[:2]
    columns = max(map(len, rows.values()))
    sheet = np.zeros(
        (len(rows) * (high + gap) - gap, columns * (wide + gap) - gap, 4), np.uint8
    )
    for i, row in enumerate(rows.values()):
        for j, picture in enumerate(row):
            colour = (
                picture if picture.ndim == 3 else picture[..., None].repeat(3, -1)
            )
            place = sheet[
                i * (high + gap) : i * (high + gap) + high,
                j * (wide + gap) : j * (wide + gap) + wide,
            ]
            place[..., :3], place[..., 3] = colour[..., :3], 255
    width = 7.4
    figure, panel = axes(
        width=width, height=0.1 + 0.86 * width * sheet.shape[0] / sheet.shape[1]
    )
    panel.imshow(sheet.repeat(scale, 0).repeat(scale, 1), interpolation="none")
    panel.set_yticks(
        [scale * (i * (high + gap) + high / 2) for i in range(len(rows))],
        list(rows),
        fontsize=8,
    )
    panel.tick_params(length=0)
    panel.set_xticks([])
    panel.grid(False)
    for side in panel.spines.values():
        side.set_visible(False)
    show(figure, told)


def show(figure: Any, told: str) -> None:
    """Show a figure; ``told`` says in a sentence what is to be seen, for those who cannot."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    plt.close(figure)
    show_svg(buffer.getvalue(), told, wide=figure.get_size_inches()[0] > 6)


def show_svg(svg: str, told: str, *, wide: bool = True) -> None:
    """Show a drawing whose lines are black or :data:`INK`: both take the colour of the page."""
    svg = re.sub(r"^.*?(?=<svg)", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style>@media.*?</style>",
        "",
        svg,
        flags=re.DOTALL,
    )
    svg = svg.replace(INK, "currentColor").replace("#000000", "currentColor")
    svg = svg.replace(
        "<svg ", f'<svg role="img" aria-label="{html.escape(told, quote=True)}" ', 1
    )
    caption = f"<figcaption>{html.escape(told)}</figcaption>"
    _display(
        {
            "text/html": f'<figure class="{"wide" if wide else "plain"}"><div>{svg}</div>{caption}</figure>'
        },
        told,
    )


def say(text: str) -> None:
    """Show Markdown, with numbers that were computed."""
    _display({"text/markdown": text}, text)


def table(rows: list[dict[str, Any]]) -> None:
    """Show rows as a table; floats to three digits."""
    heads = list(rows[0])
    lines = [
        "| " + " | ".join(heads) + " |",
        "|"
        + "|".join(" :-- " if _words(rows, h) else " --: " for h in heads)
        + "|",
    ]
    lines += [
        "| " + " | ".join(_cell(row[head]) for head in heads) + " |" for row in rows
    ]
    say("\n".join(lines))


def _words(rows: list[dict[str, Any]], head: str) -> bool:
    return any(isinstance(row[head], str) and row[head] for row in rows)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return (
        f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")
    )


def _display(data: dict[str, str], plain: str) -> None:
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython():
        from IPython.display import display

        display({**data, "text/plain": plain}, raw=True)
    else:
        print(plain)
