"""Metrics of sets of molecules, against what can be counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit")
from difftilt.core.molecules import canonical, read_molecules
from difftilt.domains.molecule.quality import Known, quality
from difftilt.metrics import molecules as metrics

SMILES = ["CCO", "Oc1ccccc1", "CC(=O)Oc1ccccc1C(=O)O", "C1CCNCC1", "c1ccc2[nH]ccc2c1"]


def _prints(smiles: list[str]) -> torch.Tensor:
    return metrics.fingerprints(read_molecules(smiles)[0])


def test_similarities_are_those_of_rdkit():
    from rdkit import DataStructs
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    theirs = [generator.GetFingerprint(molecule) for molecule in read_molecules(SMILES)[0]]
    prints = _prints(SMILES)
    expected = torch.tensor([DataStructs.BulkTanimotoSimilarity(one, theirs) for one in theirs])
    assert torch.allclose(metrics.tanimoto(prints, prints), expected, atol=1e-6)


def test_internal_diversity_is_one_less_the_mean_over_pairs():
    prints = _prints(SMILES)
    s = metrics.tanimoto(prints, prints)
    pairs = [s[i, j].item() for i in range(5) for j in range(5) if i < j]
    assert metrics.internal_diversity(prints) == pytest.approx(1 - np.mean(pairs), abs=1e-6)
    assert metrics.internal_diversity(prints.flip(0)) == pytest.approx(metrics.internal_diversity(prints))
    assert metrics.internal_diversity(_prints(["CCO"] * 3)) == pytest.approx(0.0, abs=1e-9)
    assert math.isnan(metrics.internal_diversity(_prints(["CCO"])))


def test_the_nearest_of_the_reference_is_itself_where_it_is_there():
    prints = _prints(SMILES)
    assert torch.equal(metrics.nearest_similarity(prints, prints), torch.ones(5))
    others = metrics.nearest_similarity(prints[:1], prints[1:])
    assert others.item() == pytest.approx(metrics.tanimoto(prints[:1], prints[1:]).max().item())
    assert metrics.nearest_similarity(prints, prints[:0]).isnan().all()


def test_scaffolds_are_rings_and_what_links_them():
    chains, phenyls = ["CCO", "CCCC"], ["c1ccccc1O", "c1ccccc1CC(=O)O"]
    assert metrics.scaffold_diversity(read_molecules(chains)[0]) == 0.5
    assert metrics.scaffold_diversity(read_molecules(chains + phenyls)[0]) == 0.5
    assert metrics.scaffold_diversity(read_molecules(SMILES)[0]) == 0.8  # two share the phenyl


def test_novelty_and_uniqueness_count_molecules_and_not_rows():
    drawn = [canonical(s) for s in ("CCO", "OCC", "CCN", "CCC")]
    assert metrics.unique_fraction(drawn) == 0.75
    assert metrics.novel_fraction(drawn, {"CCO"}) == pytest.approx(2 / 3)
    assert math.isnan(metrics.unique_fraction([]))


def test_wasserstein_is_a_distance_in_the_unit_of_the_property():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=300), rng.normal(size=200)
    assert metrics.wasserstein(a, a + 0.7) == pytest.approx(0.7)
    assert metrics.wasserstein(a, b) == pytest.approx(metrics.wasserstein(b, a))
    assert metrics.wasserstein(3 * a, 3 * b) == pytest.approx(3 * metrics.wasserstein(a, b))
    assert metrics.wasserstein(a, rng.permutation(a)) == pytest.approx(0.0, abs=1e-12)
    grid = np.linspace(-6, 6, 200_001)
    below = [np.searchsorted(np.sort(x), grid, side="right") / len(x) for x in (a, b)]
    by_hand = np.abs(below[0] - below[1]).sum() * (grid[1] - grid[0])  # the definition, on a fine grid
    assert metrics.wasserstein(a, b) == pytest.approx(by_hand, abs=1e-3)
    assert math.isnan(metrics.wasserstein(a, []))


def test_a_report_says_why_designs_are_invalid_and_how_far_the_others_are_from_the_data():
    known = Known.of(SMILES)
    designs = [*SMILES, "CCO", "xx", "c1cccc1", "CC.O"]
    facts = quality(designs, known)
    assert facts["valid_fraction"] == pytest.approx(6 / 9)
    for why in ("unparsable", "kekulisation", "fragments"):
        assert facts[f"invalid_{why}"] == pytest.approx(1 / 9)
    assert facts["unique_fraction"] == pytest.approx(5 / 6)
    assert facts["novel_fraction"] == 0.0
    assert facts["nearest_similarity"] == pytest.approx(1.0)
    assert quality(SMILES, known)["qed_distance"] == pytest.approx(0.0, abs=1e-12)
    assert facts["qed_distance"] > 0
    alone = quality(designs, None)
    assert "novel_fraction" not in alone
    assert quality(designs[::-1], known) == pytest.approx(facts)  # order does not matter
    assert all(isinstance(value, float) for value in facts.values())


def test_nothing_valid_has_no_numbers_and_no_error():
    facts = quality(["xx", "yy"], Known.of(SMILES))
    assert facts["valid_fraction"] == 0.0
    assert math.isnan(facts["qed_mean"])
    assert math.isnan(facts["internal_diversity"])


def test_radicals_and_large_rings_are_told_though_rdkit_accepts_them() -> None:
    molecules = read_molecules(["C[CH]C", "CCC", "C1CCCCCCC1", "c1ccccc1"])[0]
    assert metrics.radical_fraction(molecules) == 0.25
    assert metrics.large_ring_fraction(molecules) == 0.25
    assert math.isnan(metrics.radical_fraction([]))
