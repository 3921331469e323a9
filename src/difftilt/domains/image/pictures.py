"""Pictures of image runs: grids as PNG, in crisp pixels, that sit on a white page and on a dark one."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from difftilt.core.policy import Policy
from difftilt.core.trajectory import sample_states
from difftilt.data.images import pillow
from difftilt.errors import ConfigError
from difftilt.rng import Streams
from difftilt.training.designs import DesignSet

SIDE = 96
"""Least side of an image in a grid, pixels: small ones are enlarged by a whole factor."""
GAP = 6
"""Between images, pixels; transparent, so that the page shows through."""


def grid(designs: Sequence[np.ndarray], columns: int, *, breaks: Sequence[int] = ()) -> bytes:
    """Images in rows, as a PNG; each pixel is enlarged to a square of whole pixels, and the gaps are transparent.

    Args:
        designs: images of one size, 8 bits.
        columns: images in a row.
        breaks: rows before which a wider gap is left.

    Raises:
        ConfigError: no images, no columns, or Pillow is not installed.
    """
    if not len(designs) or columns < 1:
        raise ConfigError(f"expected images and columns; got {len(designs)} and {columns}; pass one of each at least")
    image = pillow()
    height, width = designs[0].shape[:2]
    scale = max(1, SIDE // max(height, width))
    high, wide = height * scale, width * scale
    columns = min(columns, len(designs))
    rows = -(-len(designs) // columns)
    tops = [row * (high + GAP) + 3 * GAP * sum(at <= row for at in breaks) for row in range(rows)]
    sheet = image.new("RGBA", (columns * (wide + GAP) - GAP, tops[-1] + high), (0, 0, 0, 0))
    for number, design in enumerate(designs):
        tile = image.fromarray(np.ascontiguousarray(design)).convert("RGB")
        tile = tile.resize((wide, high), image.Resampling.NEAREST)
        sheet.paste(tile, (number % columns * (wide + GAP), tops[number // columns]))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def same_noise(policies: Sequence[Policy], n: int, seed: int) -> list[list[np.ndarray]]:
    """``n`` designs of each policy, drawn with the same noise: the same start, and the same noise at every step.

    Args:
        policies: chains of one process and grid.
        n: designs of each.
        seed: of the noise.
    """
    return [
        policy.codec.decode(sample_states(policy, n, Streams(seed, policy.device)("pictures"))) for policy in policies
    ]


def before_and_after(pretrained: Policy, tuned: Policy, seed: int, *, n: int = 24, columns: int = 12) -> bytes:
    """Designs of both policies with the same noise: each row of the pretrained one above the same of the tuned one."""
    before, after = same_noise([pretrained, tuned], n, seed)
    rows = []
    for start in range(0, n, columns):
        rows += [*before[start : start + columns], *after[start : start + columns]]
    return grid(rows, columns, breaks=range(2, 2 * -(-n // columns), 2))


def best(designs: DesignSet, n: int) -> list[int]:
    """Numbers of the ``n`` different designs with the largest reward, the largest first."""
    order = torch.argsort(designs.reward.nan_to_num(nan=-torch.inf), descending=True).tolist()
    chosen, seen = [], set()
    for number in order:
        key = np.asarray(designs.designs[number]).tobytes()
        if key not in seen and not bool(designs.reward[number].isnan()):
            seen.add(key)
            chosen.append(number)
        if len(chosen) == n:
            break
    return chosen


def write_images(folder: Path, designs: Sequence[np.ndarray]) -> list[str]:
    """Write each design as a PNG below ``folder / "images"``; returns their names relative to ``folder``.

    Raises:
        ConfigError: the place cannot be written, or Pillow is not installed.
    """
    image = pillow()
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        names = [f"images/{number:05d}.png" for number in range(1, len(designs) + 1)]
        for name, design in zip(names, designs, strict=True):
            image.fromarray(np.ascontiguousarray(design)).save(folder / name, format="PNG")
    except OSError as error:
        raise ConfigError(
            f"expected to write images below '{folder}'; got {error.strerror or error}; choose another place"
        ) from error
    return names
