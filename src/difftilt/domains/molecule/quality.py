"""What is said of a set of designs: validity, novelty, diversity, and how far properties are from the data's."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from difftilt.core.molecules import chemistry, read_molecules
from difftilt.metrics import molecules as metrics
from difftilt.rewards.chemistry import PROPERTIES
from difftilt.rng import Streams
from difftilt.types import Float, Tensor

COMPARED = ("qed", "logp", "sa_score", "rings")
"""Properties of which every report says the mean and the distance to the data."""
REFERENCE = 1024
"""Molecules of the data, drawn at random, that stand for all of them where each design is compared with each."""


@dataclass(frozen=True)
class Known:
    """The molecules of a data file, for novelty and likeness.

    Reading all of zinc250k into canonical SMILES would take longer than a short run, so its spellings are taken as they
    are: the 1.8 % of its molecules whose spelling is not RDKit's own are not recognised. One's own files are canonical.

    Attributes:
        smiles: all of them, held-out ones too, as they are in the file.
        reference: some, drawn at random, that stand for all.
    """

    smiles: frozenset[str]
    reference: tuple[str, ...]

    @classmethod
    def of(cls, smiles: Sequence[str]) -> Known:
        """The molecules of a file."""
        order = torch.randperm(len(smiles), generator=Streams(0)("reference"))[:REFERENCE]
        return cls(frozenset(smiles), tuple(smiles[row] for row in order.tolist()))

    @functools.cached_property
    def molecules(self) -> list[Any]:
        """The reference molecules that RDKit reads."""
        return [molecule for molecule in read_molecules(self.reference)[0] if molecule is not None]

    @functools.cached_property
    def prints(self) -> Float[Tensor, "M D"]:
        """Their fingerprints."""
        return metrics.fingerprints(self.molecules)

    @functools.cached_property
    def properties(self) -> dict[str, np.ndarray]:
        """Their properties."""
        return properties(self.molecules)


def properties(molecules: Sequence[Any], names: Sequence[str] = (*COMPARED, "mol_weight")) -> dict[str, np.ndarray]:
    """Properties of molecules by name."""
    return {name: np.array([PROPERTIES[name].of(molecule) for molecule in molecules]) for name in names}


def quality(designs: Sequence[str], known: Known | None) -> dict[str, Any]:
    """Everything :mod:`difftilt.metrics.molecules` has to say of designs.

    Args:
        designs: SMILES, invalid ones among them.
        known: the data; without them there is no novelty and no likeness.
    """
    molecules, reasons = read_molecules(designs)
    valid = [molecule for molecule in molecules if molecule is not None]
    to_smiles = chemistry("rdkit.Chem").MolToSmiles
    smiles, prints, own = [to_smiles(m) for m in valid], metrics.fingerprints(valid), properties(valid)
    facts: dict[str, Any] = {
        "valid_fraction": metrics.valid_fraction(molecules),
        **{f"invalid_{why}": share for why, share in metrics.invalid_fractions(reasons).items()},
        "unique_fraction": metrics.unique_fraction(smiles),
        "internal_diversity": metrics.internal_diversity(prints),
        "scaffold_diversity": metrics.scaffold_diversity(valid),
        "radical_fraction": metrics.radical_fraction(valid),
        "large_ring_fraction": metrics.large_ring_fraction(valid),
        **{f"{name}_mean": float(own[name].mean()) if valid else float("nan") for name in COMPARED},
    }
    if known is not None:
        facts["novel_fraction"] = metrics.novel_fraction(smiles, known.smiles)
        facts["nearest_similarity"] = metrics.nearest_similarity(prints, known.prints).double().mean().item()
        facts |= {f"{name}_distance": metrics.wasserstein(own[name], known.properties[name]) for name in COMPARED}
    return facts
