"""Molecules as people look at them: grids of structures, and histograms of properties."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from difftilt.core.molecules import chemistry, read_molecule, read_molecules
from difftilt.domains.molecule.quality import Known, properties
from difftilt.domains.task import Histogram, Picture, Scene
from difftilt.rewards.chemistry import PROPERTIES
from difftilt.rng import Streams
from difftilt.training.designs import DesignSet

SHOWN, ACROSS = 12, 4
"""Molecules of a grid, and in a row of it."""
WIDTH, HEIGHT = 200, 160
"""Of one molecule, pixels."""
BINS = 24
DARK = "<style>@media (prefers-color-scheme: dark) { svg { filter: invert(1) hue-rotate(180deg); } }</style>"
"""Black bonds on nothing are white ones in the dark; elements keep their hue."""
PALETTE = {
    7: (0.1, 0.2, 0.9), 8: (0.85, 0.05, 0.05), 9: (0.0, 0.5, 0.5), 15: (0.75, 0.4, 0.0), 16: (0.6, 0.45, 0.0),
    17: (0.0, 0.5, 0.0), 35: (0.55, 0.25, 0.05), 53: (0.4, 0.1, 0.5),
}  # fmt: skip
"""Colours of elements, by atomic number: neither so light nor so dark that they vanish on one of the two grounds."""


def grid(designs: Sequence[str], captions: Sequence[str], *, across: int = ACROSS) -> str:
    """Structures in rows, as SVG with no background, legible in light and dark.

    Args:
        designs: valid SMILES.
        captions: what stands below each.
        across: molecules of a row.
    """
    draw = chemistry("rdkit.Chem.Draw.rdMolDraw2D")
    rows = max(1, -(-len(designs) // across))
    canvas = draw.MolDraw2DSVG(across * WIDTH, rows * HEIGHT, WIDTH, HEIGHT)
    options = canvas.drawOptions()
    options.updateAtomPalette(PALETTE)
    options.clearBackground, options.legendFontSize, options.padding = False, 14, 0.08
    canvas.DrawMolecules([read_molecule(design)[0] for design in designs], legends=list(captions))
    canvas.FinishDrawing()
    text = canvas.GetDrawingText()
    text = text[text.index("<svg") :]  # no XML declaration inside a page
    opened = text.index(">") + 1
    return text[:opened] + DARK + text[opened:]


def before_and_after(scene: Scene, unit: str) -> list[Picture]:
    """Molecules of the pretrained model as they come, and the best of the others, each once."""
    pictures = []
    for name, designs in (("before", scene.before), ("after", scene.after)):
        best = name == "after"
        rows = _best(designs) if best else _some(designs, scene.seed)
        if rows:
            which = "the best, each once" if best else "drawn at random"
            drawn = grid([designs.designs[row] for row in rows], [_caption(designs, row) for row in rows])
            caption = f"{len(rows)} molecules {which}; below each its reward, {unit}."
            pictures.append(Picture(f"molecules-{name}", f"Molecules {name}", caption, drawn))
    return pictures


def histograms(scene: Scene) -> list[Histogram]:
    """Shares of molecules by property: the data, before and after, each as its law has it (by weight)."""
    sets = {"before": _weighed(scene.before), "after": _weighed(scene.after)}
    values = {name: properties(molecules) for name, (molecules, _) in sets.items()}
    weights = {name: weight for name, (_, weight) in sets.items()}
    if isinstance(scene.known, Known):
        values["data"], weights["data"] = scene.known.properties, np.ones(len(scene.known.molecules))
    drawn = []
    for prop in next(iter(values.values())):
        own = {name: table[prop] for name, table in values.items() if len(table[prop])}
        if own:
            edges = bin_edges(np.concatenate(list(own.values())), whole=prop == "rings")
            shares = {
                name: (np.histogram(value, edges, weights=weights[name])[0] / weights[name].sum()).tolist()
                for name, value in own.items()
            }
            title = PROPERTIES[prop].unit.partition(" (")[0]
            drawn.append(Histogram(f"histogram-{prop}", title, PROPERTIES[prop].unit, edges.tolist(), shares))
    return drawn


def bin_edges(values: np.ndarray, *, whole: bool = False) -> np.ndarray:
    """Edges of bins that hold every value; around whole numbers where the property is one."""
    low, high = float(values.min()), float(values.max())
    if whole:
        return np.arange(np.floor(low) - 0.5, np.ceil(high) + 1.0)
    return np.linspace(low, high, BINS + 1) if high > low else np.array([low - 0.5, high + 0.5])


def _weighed(designs: DesignSet) -> tuple[list[object], np.ndarray]:
    """Valid molecules of a set, and the weight of each."""
    weight = designs.log_weight.double().cpu()
    weight = (weight - weight.max()).exp() if torch.isfinite(weight.max()) else torch.ones_like(weight)
    molecules = read_molecules(designs.designs)[0]
    kept = [row for row, molecule in enumerate(molecules) if molecule is not None and weight[row] > 0]
    return [molecules[row] for row in kept], weight[kept].numpy()


def _some(designs: DesignSet, seed: int) -> list[int]:
    order = torch.randperm(len(designs.designs), generator=Streams(seed)("pictures")).tolist()
    return [row for row in order if read_molecule(designs.designs[row])[0] is not None][:SHOWN]


def _best(designs: DesignSet) -> list[int]:
    first: dict[str, int] = {}
    for row, design in enumerate(designs.designs):
        if not designs.reward[row].isnan() and read_molecule(design)[0] is not None:
            first.setdefault(design, row)
    return sorted(first.values(), key=lambda row: -designs.reward[row].item())[:SHOWN]


def _caption(designs: DesignSet, row: int) -> str:
    value = designs.reward[row].item()
    return "infeasible" if value != value else f"{value:.3g}"
