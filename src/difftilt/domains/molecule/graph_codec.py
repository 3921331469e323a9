r"""Molecules as graphs: one token for how many atoms there are, one for each atom, one for the bond of each pair.

A molecule of up to ``n`` heavy atoms is the row of tokens :math:`[s, a_1 \dots a_n, e_{12}, e_{13} \dots e_{n-1,n}]`:

- :math:`s` says how many atoms there are, less one;
- :math:`a_i` is an element with its formal charge, or 0 where there is no atom (:math:`i > s + 1`);
- :math:`e_{ij}` is the order of the bond, 0 where there is none. Rings are kekulised: single and double bonds
  alternate, since whether a ring is aromatic follows from the graph, and a model that says it can contradict itself.

Hydrogens are not written: RDKit adds as many as each atom's valence leaves room for. There is no stereochemistry, and
no isotopes or radicals. Atoms may be in any order: a molecule of ``m`` atoms is :math:`m! / |\mathrm{Aut}|` different
states, all of which an equivariant model (:mod:`~difftilt.networks.graph_transformer`) finds equally likely.

**Invalid graphs** are designs too: they decode to the SMILES of what they are, which does not parse, for the reason
that RDKit then gives (an atom with too many bonds, say), or which has a dot between its fragments.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from difftilt.core.molecules import chemistry, quiet, read_molecule
from difftilt.core.registry import register
from difftilt.errors import DataError, ShapeError
from difftilt.types import Float, Int, Tensor

ATOM = re.compile(r"([A-Z][a-z]?)([+-]\d*)?")
BONDS = 4
"""Letters of a pair: no bond, single, double, triple."""
ORDERS = {1.0: 1, 2.0: 2, 3.0: 3}
"""Letters of bonds by their order."""


@register("codec", "molecule_graph")
class GraphCodec:
    """SMILES of graphs and back.

    Args:
        atoms: kinds of atoms, an element with its charge if any: ``["C", "N", "N+", "O-"]``; letter 1 is the first.
        nodes: most atoms ``n``, hydrogens not counted.
    """

    def __init__(self, atoms: Sequence[str], nodes: int) -> None:
        self.atoms, self.nodes = list(atoms), nodes
        self.bonds = BONDS
        self.vocabulary = max(nodes, len(self.atoms) + 1, BONDS)
        self.pairs = np.stack(np.triu_indices(nodes, 1), axis=1)
        self._letters = {_parts(atom): letter for letter, atom in enumerate(self.atoms, start=1)}

    @property
    def length(self) -> int:
        """Tokens of a state."""
        return 1 + self.nodes + len(self.pairs)

    def encode(self, designs: Sequence[str]) -> Int[Tensor, "B L"]:
        """States of SMILES, atoms in the order in which they are written; stereochemistry is dropped.

        Raises:
            DataError: a design that does not parse or has no graph of this kind, with its number.
        """
        states = np.zeros((len(designs), self.length), dtype=np.int64)
        for number, design in enumerate(designs):
            molecule, fault = self._molecule(design)
            fault = fault or self._write(molecule, states[number])
            if fault is not None:
                raise DataError(f"{fault} in design {number + 1}, '{design}'; correct or drop it")
        return torch.from_numpy(states)

    def states(self, designs: Sequence[str]) -> tuple[Int[Tensor, "B L"], int]:
        """States, in bytes, of those designs that have one, each molecule once.

        Returns:
            The states, and how many designs were left out because another is the same but for its stereochemistry.
        """
        chem, kept, found = chemistry("rdkit.Chem"), {}, 0
        for design in designs:
            molecule, fault = self._molecule(design)
            state = np.zeros(self.length, dtype=np.int8)
            if fault is None and self._write(molecule, state) is None:
                kept.setdefault(chem.MolToSmiles(molecule, isomericSmiles=False), state)
                found += 1
        stacked = np.stack(list(kept.values())) if kept else np.zeros((0, self.length), dtype=np.int8)
        return torch.from_numpy(stacked), found - len(kept)

    def fault(self, design: str) -> str | None:
        """Why a SMILES has no graph of this kind; ``None`` if it has."""
        molecule, fault = self._molecule(design)
        return fault or self._write(molecule, np.zeros(self.length, dtype=np.int64))

    @staticmethod
    def _molecule(design: str) -> tuple[Any, str | None]:
        """The molecule of a SMILES, or why there is none."""
        molecule, reason = read_molecule(design)
        return molecule, reason and f"expected a molecule; got {reason}"

    def _write(self, molecule: Any, state: np.ndarray) -> str | None:
        """Writes a molecule's graph into a row of zeros, or says why it has none of this kind."""
        n = molecule.GetNumAtoms()
        if n > self.nodes:
            return f"expected at most {self.nodes} heavy atoms; got {n}"
        whole = chemistry("rdkit.Chem").Mol(molecule)
        chemistry("rdkit.Chem").Kekulize(whole, clearAromaticFlags=True)
        state[0] = n - 1
        for place, atom in enumerate(whole.GetAtoms(), start=1):
            letter = self._letters.get((atom.GetSymbol(), atom.GetFormalCharge()), 0)
            if not letter:
                return (
                    f"expected atoms {' '.join(self.atoms)}; got {atom.GetSymbol()} of charge {atom.GetFormalCharge()}"
                )
            if atom.GetNumRadicalElectrons() or atom.GetIsotope():
                return f"expected no radicals or isotopes; got one at atom {place}"
            state[place] = letter
        for bond in whole.GetBonds():
            i, j = sorted((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()))
            order = ORDERS.get(bond.GetBondTypeAsDouble())
            if order is None:
                return "expected bonds of order 1 to 3; got another"
            state[1 + self.nodes + i * (2 * self.nodes - i - 1) // 2 + j - i - 1] = order
        return None

    def decode(self, x_0: Int[Tensor, "B L"]) -> list[str]:
        """SMILES of graphs, canonical where the graph is a molecule; see the module for those that are not.

        Raises:
            ShapeError: a position still holds the mask token.
        """
        rows = x_0.detach().cpu().numpy()
        if rows.size and rows.max() >= self.vocabulary:
            raise ShapeError(
                f"expected finished designs with tokens 0..{self.vocabulary - 1}; got token {rows.max()} (a mask); "
                "decode only states at t = 0"
            )
        quiet()
        return [self._smiles(row) for row in rows]

    def _smiles(self, row: np.ndarray) -> str:
        chem = chemistry("rdkit.Chem")
        graph = chem.RWMol()
        n = int(row[0]) + 1
        for letter in row[1 : 1 + n]:
            element, charge = _parts(self.atoms[letter - 1])
            atom = chem.Atom(element)
            atom.SetFormalCharge(charge)
            graph.AddAtom(atom)
        orders = {1: chem.BondType.SINGLE, 2: chem.BondType.DOUBLE, 3: chem.BondType.TRIPLE}
        edges = row[1 + self.nodes :]
        for number in edges.nonzero()[0]:
            i, j = map(int, self.pairs[number])
            graph.AddBond(i, j, orders[int(edges[number])])
        molecule = graph.GetMol()
        try:
            chem.SanitizeMol(molecule)
        except chem.MolSanitizeException:
            return chem.MolToSmiles(graph.GetMol(), canonical=False)
        return chem.MolToSmiles(molecule)

    def readable(self, x_0: Float[Tensor, "B L V1"]) -> Float[Tensor, "B L V"]:
        """Relaxed tokens without the mask."""
        return x_0[..., :-1]

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"atoms": self.atoms, "nodes": self.nodes}


def _parts(atom: str) -> tuple[str, int]:
    """Element and charge of a kind of atom such as ``N+`` or ``O-``."""
    found = ATOM.fullmatch(atom)
    assert found is not None
    element, charge = found.groups()
    if charge is None:
        return element, 0
    return element, int(charge if len(charge) > 1 else charge + "1")
