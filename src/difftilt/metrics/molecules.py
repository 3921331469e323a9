r"""How good a set of molecules is: valid, distinct, new, diverse, and like the data.

With the Tanimoto similarity :math:`s` of Morgan fingerprints (radius 2, 2,048 bits):

- *internal diversity* :math:`1 - \frac{2}{n (n - 1)} \sum_{i < j} s(x_i, x_j)`: 0 where all are the same;
- *scaffold diversity*: distinct Murcko scaffolds (rings, and what links them) over molecules; molecules without a ring
  share one, the empty scaffold;
- *nearest similarity*: the mean over designs of :math:`\max_j s(x_i, y_j)` to reference molecules ``y``;
- *Wasserstein-1 distance* of a property's two laws, :math:`\int |F - G|`, in the property's unit.

Molecules are told apart by RDKit's canonical SMILES, stereochemistry included. Fingerprints know no stereochemistry,
and invalid designs have none: they count in :func:`valid_fraction` and nowhere else.

References:
    Polykovskiy et al. 2020 (MOSES), https://arxiv.org/abs/1811.12823; Bemis and Murcko 1996, J. Med. Chem. 39, 2887.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch

from difftilt.core.molecules import chemistry, radicals
from difftilt.types import Float, Tensor

RADIUS, BITS = 2, 2048


def valid_fraction(molecules: Sequence[Any]) -> float:
    """Share of designs that are molecules (are not ``None``); NaN of none."""
    return _share(sum(molecule is not None for molecule in molecules), len(molecules))


def invalid_fractions(reasons: Sequence[str | None]) -> dict[str, float]:
    """Share of designs that are invalid, by the first word of the reason, the most common first."""
    why = Counter(reason.partition(":")[0] for reason in reasons if reason is not None)
    return {reason: count / len(reasons) for reason, count in why.most_common()}


def unique_fraction(smiles: Sequence[str]) -> float:
    """Distinct molecules over molecules, of canonical SMILES; NaN of none."""
    return _share(len(set(smiles)), len(smiles))


def novel_fraction(smiles: Sequence[str], known: Collection[str]) -> float:
    """Share of the distinct molecules that are not in ``known`` (a set of canonical SMILES); NaN of none."""
    distinct = set(smiles)
    return _share(sum(molecule not in known for molecule in distinct), len(distinct))


def fingerprints(molecules: Sequence[Any]) -> Float[Tensor, "N D"]:
    """Morgan fingerprints as rows of 0 and 1."""
    made = [_generator().GetFingerprintAsNumPy(molecule) for molecule in molecules]
    return torch.from_numpy(np.stack(made)).float() if made else torch.zeros(0, BITS)


def tanimoto(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"]) -> Float[Tensor, "N M"]:
    """Similarity of each pair, 0 to 1; 1 for two that have no bit at all."""
    both = a @ b.T
    either = a.sum(1)[:, None] + b.sum(1)[None] - both
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both))


def internal_diversity(prints: Float[Tensor, "N D"]) -> float:
    """One less the mean similarity of two different rows; NaN of fewer than two."""
    n = len(prints)
    if n < 2:
        return float("nan")
    total = sum(tanimoto(part, prints).double().sum().item() for part in prints.split(1024))
    own = n  # each is 1
    return 1 - (total - own) / (n * (n - 1))


def nearest_similarity(prints: Float[Tensor, "N D"], reference: Float[Tensor, "M D"]) -> Float[Tensor, " N"]:
    """Similarity of each row to the reference row that is most like it; NaN where there is no reference."""
    if not len(reference):
        return torch.full((len(prints),), torch.nan)
    parts = [tanimoto(part, reference).amax(1) for part in prints.split(1024)]
    return torch.cat(parts) if parts else torch.zeros(0)


def radical_fraction(molecules: Sequence[Any]) -> float:
    """Share with an unpaired electron, which RDKit accepts and few substances have."""
    return _share(sum(bool(radicals(molecule)) for molecule in molecules), len(molecules))


def large_ring_fraction(molecules: Sequence[Any]) -> float:
    """Share with a ring of more than seven atoms, which few drug-like molecules have."""
    large = [m for m in molecules if any(len(ring) > 7 for ring in m.GetRingInfo().AtomRings())]
    return _share(len(large), len(molecules))


def scaffold_diversity(molecules: Sequence[Any]) -> float:
    """Distinct Murcko scaffolds over molecules; NaN of none."""
    scaffold = chemistry("rdkit.Chem.Scaffolds.MurckoScaffold").MurckoScaffoldSmiles
    return _share(len({scaffold(mol=molecule) for molecule in molecules}), len(molecules))


def wasserstein(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    r""":math:`\int |F - G|` of two samples, in their unit; NaN where one is empty."""
    first, second = np.sort(np.asarray(a, dtype=np.float64)), np.sort(np.asarray(b, dtype=np.float64))
    if not len(first) or not len(second):
        return float("nan")
    every = np.sort(np.concatenate([first, second]))
    below = [np.searchsorted(part, every[:-1], side="right") / len(part) for part in (first, second)]
    return float(np.sum(np.abs(below[0] - below[1]) * np.diff(every)))


@functools.cache
def _generator() -> Any:
    return chemistry("rdkit.Chem.rdFingerprintGenerator").GetMorganGenerator(radius=RADIUS, fpSize=BITS)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
