"""How good designs of graphs are: which are molecules, why the others are not, and how far they are from the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from difftilt.core.molecules import read_molecules
from difftilt.rewards.chemistry import PROPERTIES

COMPARED = ("qed", "logp", "sa_score", "rings", "heavy_atoms")
"""Properties that are compared with the data's."""


def validity(designs: Sequence[str], known: Collection[str] | None = None) -> dict[str, Any]:
    """Shares of designs: valid (RDKit accepts it as it is, and it is one molecule), and by reason where not.

    Args:
        designs: canonical SMILES, or what an invalid one decodes to.
        known: canonical SMILES of the molecules that are no news.

    Returns:
        ``valid_fraction``; ``invalid_REASON``; ``accepted_fraction``, which lets pass several fragments; of the valid
        ones ``unique_fraction``, and of those ``novel_fraction``.
    """
    molecules, reasons = read_molecules(designs)
    why = Counter(reason.partition(":")[0] for reason in reasons if reason is not None)
    valid = [design for design, molecule in zip(designs, molecules, strict=True) if molecule is not None]
    distinct = set(valid)
    facts: dict[str, Any] = {
        "sampled_designs": len(designs),
        "valid_fraction": _share(len(valid), len(designs)),
        "accepted_fraction": _share(len(valid) + why["fragments"], len(designs)),
        **{f"invalid_{reason}": _share(count, len(designs)) for reason, count in why.most_common()},
        "unique_fraction": _share(len(distinct), len(valid)),
    }
    if known is not None:
        facts["novel_fraction"] = _share(sum(design not in known for design in distinct), len(distinct))
    return facts


def likeness(designs: Sequence[str], held_out: Sequence[str]) -> dict[str, float]:
    r"""How valid designs differ from held-out molecules.

    Of each property the two means and Wasserstein-1 distance :math:`\int |F - G|`, in its units; of the number of heavy
    atoms also the total variation, 0 to 1.
    """
    tables = []
    for part in (designs, held_out):
        molecules = [molecule for molecule in read_molecules(part)[0] if molecule is not None]
        tables.append({name: np.array([PROPERTIES[name].of(m) for m in molecules]) for name in COMPARED})
    mine, theirs = tables
    facts = {}
    for name in COMPARED:
        facts[f"{name}_mean"] = round(float(mine[name].mean()), 4)
        facts[f"{name}_mean_held_out"] = round(float(theirs[name].mean()), 4)
        facts[f"{name}_distance"] = round(wasserstein(mine[name], theirs[name]), 4)
    sizes = [np.bincount(part["heavy_atoms"].astype(int), minlength=256) / len(part["heavy_atoms"]) for part in tables]
    facts["heavy_atoms_total_variation"] = round(float(np.abs(sizes[0] - sizes[1]).sum() / 2), 4)
    return facts


def wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """Wasserstein-1 distance of two samples, in their units."""
    values = np.sort(np.concatenate([a, b]))
    below = [np.searchsorted(np.sort(part), values[:-1], side="right") / len(part) for part in (a, b)]
    return float((np.abs(below[0] - below[1]) * np.diff(values)).sum())


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0
