"""Rewards of molecules that RDKit computes: properties, similarity, substructures, and several at once.

Every reward here takes SMILES and gives one number a molecule, higher is better. A molecule that is invalid is NaN, and
``reasons`` says why: ``unparsable``, ``valence``, ``kekulisation``, ``fragments`` or ``empty``
(:mod:`difftilt.core.molecules`), or that a constraint is not met, or that RDKit failed on it. The number is that of the
molecule, not of how its SMILES is written.

- :class:`PropertyReward`: one of :data:`PROPERTIES` as it is, or what it is worth on a desirability curve.
  *Synthetic accessibility is lower for easier molecules*, and is therefore called ``ease_of_synthesis`` with its sign
  changed, -10 (hard) to -1 (easy).
- :class:`SimilarityReward`: Tanimoto similarity to one molecule.
- :class:`SubstructureReward`: does a SMARTS pattern match?
- :class:`Objectives`: the weighted geometric mean of several desirabilities (sums: :mod:`~.combined`).

All of them are plain values (names and numbers), so that worker processes can make their own (:mod:`~.pool`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from difftilt.core.molecules import chemistry, contributed, read_molecule
from difftilt.errors import ConfigError, nearest
from difftilt.rewards.desirability import Desirability, geometric_mean
from difftilt.types import Float, Tensor


class Property(NamedTuple):
    """A number of a molecule."""

    of: Callable[[Any], float]
    """The number, of an RDKit molecule."""
    unit: str
    """Its axis label."""


def _descriptor(module: str, name: str) -> Callable[[Any], float]:
    return lambda molecule: float(getattr(chemistry(f"rdkit.Chem.{module}"), name)(molecule))


PROPERTIES: dict[str, Property] = {
    "qed": Property(_descriptor("QED", "qed"), "QED (0 to 1)"),
    "sa_score": Property(
        lambda molecule: float(contributed("SA_Score/sascorer.py").calculateScore(molecule)),
        "synthetic accessibility score (1 easy to 10 hard)",
    ),
    "ease_of_synthesis": Property(
        lambda molecule: -PROPERTIES["sa_score"].of(molecule),
        "negative synthetic accessibility score (-10 hard to -1 easy)",
    ),
    "logp": Property(_descriptor("Crippen", "MolLogP"), "logP (Crippen)"),
    "mol_weight": Property(_descriptor("Descriptors", "MolWt"), "molecular mass (g/mol)"),
    "polar_surface": Property(_descriptor("rdMolDescriptors", "CalcTPSA"), "topological polar surface (Å²)"),
    "h_donors": Property(_descriptor("rdMolDescriptors", "CalcNumHBD"), "hydrogen-bond donors"),
    "h_acceptors": Property(_descriptor("rdMolDescriptors", "CalcNumHBA"), "hydrogen-bond acceptors"),
    "rotatable_bonds": Property(_descriptor("rdMolDescriptors", "CalcNumRotatableBonds"), "rotatable bonds"),
    "rings": Property(_descriptor("rdMolDescriptors", "CalcNumRings"), "rings"),
    "heavy_atoms": Property(lambda molecule: float(molecule.GetNumHeavyAtoms()), "heavy atoms"),
}
"""What RDKit computes, by name. QED: Bickerton et al. 2012; synthetic accessibility: Ertl and Schuffenhauer 2009; logP:
Wildman and Crippen 1999."""


@runtime_checkable
class Term(Protocol):
    """What a reward says of one molecule."""

    def of(self, molecule: Any) -> float:
        """The number; NaN where the molecule is infeasible."""
        ...


class _MoleculeReward:
    """SMILES in, the numbers of :meth:`of` out."""

    reasons: Sequence[str | None] = ()

    def of(self, molecule: Any) -> float:
        """The number of one molecule."""
        raise NotImplementedError

    def unmet(self, molecule: Any) -> str:
        """Why a valid molecule is infeasible."""
        return f"{type(self).__name__}: not a number"

    def __call__(self, designs: Sequence[str]) -> Float[Tensor, " B"]:
        """Numbers, NaN where infeasible, float64; :attr:`reasons` says why."""
        values, reasons = [], []
        for design in designs:
            value, reason = self.judged(design)
            values.append(value)
            reasons.append(reason)
        self.__dict__["reasons"] = reasons  # the settings are frozen, what was last said is not
        return torch.tensor(values, dtype=torch.float64)

    def judged(self, design: str) -> tuple[float, str | None]:
        """The number of one SMILES, and why it has none."""
        molecule, reason = read_molecule(design)
        if molecule is None:
            return math.nan, reason
        try:
            value = self.of(molecule)
        except (RuntimeError, ValueError, ArithmeticError) as error:  # RDKit's own, on a molecule that it did accept
            return math.nan, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return (value, None) if math.isfinite(value) else (math.nan, self.unmet(molecule))


@dataclass(frozen=True)
class PropertyReward(_MoleculeReward):
    """A property, or what it is worth.

    Args:
        name: one of :data:`PROPERTIES`.
        curve: its desirability; the property itself where not given.

    Raises:
        ConfigError: an unknown name.
    """

    name: str
    curve: Desirability | None = None

    def __post_init__(self) -> None:
        if self.name not in PROPERTIES:
            raise nearest(self.name, PROPERTIES, what="property")

    def of(self, molecule: Any) -> float:
        """The property, or its desirability."""
        value = PROPERTIES[self.name].of(molecule)
        return value if self.curve is None else self.curve(value)


@dataclass(frozen=True)
class SimilarityReward(_MoleculeReward):
    """Tanimoto similarity of Morgan fingerprints to one molecule, 0 to 1, or what it is worth.

    Args:
        smiles: that molecule.
        curve: desirability of the similarity.
        radius: of the fingerprint.
        bits: of the fingerprint.

    Raises:
        ConfigError: ``smiles`` is no molecule.
    """

    smiles: str
    curve: Desirability | None = None
    radius: int = 2
    bits: int = 2048

    def __post_init__(self) -> None:
        molecule, reason = read_molecule(self.smiles)
        if molecule is None:
            raise ConfigError(f"expected a molecule to be similar to; got '{self.smiles}' ({reason}); correct it")

    def of(self, molecule: Any) -> float:
        """The similarity, or its desirability."""
        wanted = _fingerprint_of(self.smiles, self.radius, self.bits)
        own = _generator(self.radius, self.bits).GetFingerprint(molecule)
        value = float(chemistry("rdkit.DataStructs").TanimotoSimilarity(wanted, own))
        return value if self.curve is None else self.curve(value)


@dataclass(frozen=True)
class SubstructureReward(_MoleculeReward):
    """1 where a SMARTS pattern matches as wanted; else infeasible, or 0.

    Args:
        smarts: the pattern.
        wanted: whether it must match, or must not.
        otherwise: ``"infeasible"`` (NaN with the reason: a constraint), or ``"zero"`` (one term of several).

    Raises:
        ConfigError: the pattern is no SMARTS, or ``otherwise`` is neither.
    """

    smarts: str
    wanted: bool = True
    otherwise: str = "infeasible"

    def __post_init__(self) -> None:
        if _pattern(self.smarts) is None:
            raise ConfigError(f"expected a SMARTS pattern such as c1ccccc1; got '{self.smarts}'; correct it")
        if self.otherwise not in ("infeasible", "zero"):
            raise nearest(self.otherwise, ("infeasible", "zero"), what="answer for molecules that do not comply")

    def of(self, molecule: Any) -> float:
        """1, or 0 or NaN where the molecule does not comply."""
        complies = molecule.HasSubstructMatch(_pattern(self.smarts)) == self.wanted
        return 1.0 if complies else math.nan if self.otherwise == "infeasible" else 0.0

    def unmet(self, molecule: Any) -> str:
        """Names the pattern."""
        return f"substructure {self.smarts} is {'missing' if self.wanted else 'there'}"


@dataclass(frozen=True)
class Objectives(_MoleculeReward):
    """The weighted geometric mean of several desirabilities; infeasible as soon as one of them is.

    Args:
        terms: the rewards; their numbers must not be negative.
        weights: of the terms, positive; alike where not given.

    Raises:
        ConfigError: no terms, or weights that do not fit.
    """

    terms: tuple[Term, ...]
    weights: tuple[float, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.terms or len(self.weights) not in (0, len(self.terms)):
            raise ConfigError(
                f"expected a weight for each of the terms, or none; got {len(self.weights)} for {len(self.terms)}; "
                "name as many"
            )
        if not all(0 < weight < math.inf for weight in self.weights):
            raise ConfigError(f"expected positive weights; got {self.weights}; leave out what should not count")

    def of(self, molecule: Any) -> float:
        """The mean of the terms.

        Raises:
            ValueError: a negative term.
        """
        values = [term.of(molecule) for term in self.terms]
        if any(value < 0 for value in values):
            raise ValueError(f"expected desirabilities from 0 on; got {min(values)}; give that term a curve")
        return geometric_mean(values, self.weights or (1.0,) * len(values))

    def unmet(self, molecule: Any) -> str:
        """What the first term that is not met says."""
        first = next(term for term in self.terms if not math.isfinite(term.of(molecule)))
        return first.unmet(molecule) if isinstance(first, _MoleculeReward) else "a term is not a number"


@functools.lru_cache(maxsize=64)
def _pattern(smarts: str) -> Any:
    return chemistry("rdkit.Chem").MolFromSmarts(smarts) if smarts.strip() else None


@functools.cache
def _generator(radius: int, bits: int) -> Any:
    return chemistry("rdkit.Chem.rdFingerprintGenerator").GetMorganGenerator(radius=radius, fpSize=bits)


@functools.lru_cache(maxsize=64)
def _fingerprint_of(smiles: str, radius: int, bits: int) -> Any:
    return _generator(radius, bits).GetFingerprint(read_molecule(smiles)[0])
