"""Tasks over molecular graphs: reading, splitting, a model made and measured, and what is said of designs."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from difftilt.core.policy import Policy
from difftilt.errors import ConfigError, DataError

pytest.importorskip("rdkit")

from difftilt.domains.molecule.graphs import GRAPH_TASKS, QM9, GraphTask, staged
from difftilt.domains.pretraining import Pretraining
from difftilt.domains.task import DENOISER, MASKED, Prior
from difftilt.training.pretrain import PretrainConfig

DESIGNS = [
    "CCO", "CCN", "CC(C)=O", "C1CC1", "CC#N", "OCC", "c1ccoc1", "CNC=O", "CC(N)=O", "FCCF", "OC1CC1", "C1CNC1", "CCCC",
    "C#CCO", "COC=O", "N#CC#N", "CC=O", "OCCO", "CN(C)C", "CCCCCCCCC", "C1=CC=CN1", "CC(C)O", "NCCO", "CCOC", "O=CC=O",
]  # fmt: skip


def file_of(designs: list[str], folder: Path) -> Path:
    path = folder / "own.csv"
    path.write_text("smiles,note\n" + "".join(f"{design},x\n" for design in designs))
    return path


def tiny() -> GraphTask:
    prior = Prior(
        denoiser={"type": "graph_transformer", "width": 16, "edge_width": 8, "depth": 1, "heads": 2},
        training=PretrainConfig(updates=4, batch=8, validate_every=2),
        steps=5,
    )
    return replace(QM9, priors={MASKED: prior}, sampled=100)


def test_ones_own_file_is_read_and_stereoisomers_are_one_molecule(tmp_path):
    table = QM9.read(file_of([*DESIGNS, "CC(N)O", "C[C@H](N)O", "C[C@@H](N)O", "CS"], tmp_path))
    assert len(table) == len(DESIGNS) + 3  # CCO is OCC
    data = QM9.split(table)
    assert data.outside == {"no_graph": 1, "repeated": 2}
    parts = [data.prior_train, data.prior_validation, data.prior_test]
    assert sorted(torch.cat(parts).tolist()) == list(range(len(DESIGNS)))
    assert [len(part) for part in parts] == [21, 2, 2]
    assert set(QM9.known(table.path).smiles) >= {"CC(N)O", "CCO"}


def test_a_file_without_a_graph_of_this_kind_is_refused(tmp_path):
    table = QM9.read(file_of([f"{'C' * n}S" for n in range(1, 25)], tmp_path))
    with pytest.raises(DataError, match="got S of charge 0 in 'CS', and no graph in the file"):
        QM9.split(table)


def test_splits_are_at_random_whatever_the_order_of_the_file(tmp_path):
    """Sorted by size, as QM9's file is: tests are not the largest ones, nor the smallest."""
    chains = ["C" * n for n in range(1, 10)] * 30
    designs = sorted({f"{a}{b}" for a in chains for b in ("O", "N", "F", "C=O", "C#N") if len(a) < 7}, key=len)
    table = QM9.read(file_of(designs, tmp_path))
    first, second = QM9.split(table, seed=0), QM9.split(table, seed=1)
    assert sorted(first.prior_test.tolist()) != list(range(len(first.prior_test)))
    assert first.prior_test.tolist() != second.prior_test.tolist()


@pytest.mark.parametrize("task", GRAPH_TASKS, ids=lambda task: task.name)
def test_a_task_has_three_stages_a_reward_and_a_small_network(task):
    policy = task.fresh(seed=0)
    assert isinstance(policy, Policy)
    n = task.nodes
    assert policy.event_shape == (1 + n + n * (n - 1) // 2,)
    assert [count for count, _, _ in policy.process.stages] == [1, n, n * (n - 1) // 2]
    assert {high for _, high, _ in policy.process.stages} <= set(policy.grid.tolist())
    assert sum(p.numel() for p in policy.parameters()) * 4 < 6 * 2**20
    assert task.default_reward in task.rewards
    values = task.rewards["qed"].make()(["CCO", "C.C"])
    assert values[0] > 0.3
    assert values[1].isnan()
    assert task.facts(policy)["nodes"] == n
    with pytest.raises(ConfigError, match="masked"):
        task.prior("flow")


def test_a_model_is_trained_measured_and_saved(tmp_path):
    task = tiny()
    path = file_of(DESIGNS, tmp_path)
    metrics = Pretraining(task, task.read(path), tmp_path / "models", "a test", MASKED).run((DENOISER,))[DENOISER]
    assert metrics["sampled_designs"] == 100
    shares = [value for name, value in metrics.items() if name.startswith(("invalid_", "valid_"))]
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    assert 0 <= metrics["heavy_atoms_total_variation"] <= 1
    assert metrics["test_bound_nats"] > 0
    policy = Policy.from_pretrained(str(tmp_path / "models" / DENOISER))
    assert policy.process.config() == staged(task.codec).config()
    assert policy.steps == 5
    said = task.describe(policy, task.known(path))(task.codec.encode(["CCO", "CCO", "CCCO", "CC"]))
    assert said["valid_fraction"] == 1
    assert said["unique_fraction"] == pytest.approx(3 / 4)
    assert said["novel_fraction"] == pytest.approx(2 / 3)
    task.check(task.read(path), policy)
    large = file_of([*("C" * n for n in range(1, 11)), *DESIGNS, "CCBr", ""], tmp_path)
    with pytest.raises(DataError, match=f"line {len(DESIGNS) + 13}: expected a design"):
        task.read(large)
    large.write_text(large.read_text().replace("\n,x", ""))
    with pytest.raises(DataError, match=r"lines \d+, \d+: .* at most 9 heavy atoms; got 10; .*got Br"):
        task.check(task.read(large), policy)
    table = task.read(large, skip_invalid=True)
    assert table.skipped == 2
    task.check(table, policy)


@pytest.mark.slow
def test_every_molecule_of_qm9_has_a_graph():
    from difftilt.data import find

    if find("qm9") is None:
        pytest.skip("needs the data set qm9")
    with gzip.open(find("qm9"), "rt") as file:
        designs = [line.split(",")[0] for line in file][1:]
    assert len(QM9.codec.states(designs)[0]) == 131_954
