"""The molecule task: data, splits, a small model through every part, and what people look at."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("rdkit")
pytest.importorskip("selfies")
from difftilt.core.molecules import canonical, chemistry
from difftilt.core.policy import Policy
from difftilt.domains.molecule import TASKS
from difftilt.domains.molecule.drawing import bin_edges, grid
from difftilt.domains.molecule.quality import Known
from difftilt.domains.task import MASKED, Prior, Scene
from difftilt.errors import ConfigError, DataError
from difftilt.training.designs import draw, summary
from difftilt.training.pretrain import PretrainConfig, pretrain

ZINC = TASKS[0]
RINGS = ["c1ccccc1", "C1CCNCC1", "c1ccncc1", "C1CCOC1", "c1ccsc1", "C1CCCC1"]
TAILS = ["", "C", "CC", "CCO", "C(=O)O", "CN", "CCN(C)C", "N#C", "OC", "Cl"]
SMILES = [f"{tail}{ring}" if tail != "Cl" else f"Cl{ring}" for ring in RINGS for tail in TAILS if tail != "C(=O)O"]
SMILES += [f"OC(=O){ring}" for ring in RINGS]


def _file(folder: Path, rows: list[str], header: str = "smiles") -> Path:
    path = folder / "own.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def small():
    """The task with a network for tests, and its data."""
    prior = Prior(
        denoiser={"type": "causal_transformer", "width": 16, "depth": 1, "heads": 2},
        training=PretrainConfig(updates=80, batch=16, learning_rate=1e-2, validate_every=40, ema=0.9),
    )
    task = dataclasses.replace(ZINC, priors={MASKED: prior}, sampled=100)
    return task


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    path = _file(tmp_path_factory.mktemp("data"), SMILES)
    data = small.split(small.read(path))
    policy = small.untrained(MASKED, data, seed=0)
    states = data.states
    pretrain(
        policy.denoiser, policy.process, states[data.prior_train], states[data.prior_validation],
        small.prior(MASKED).training,
    )  # fmt: skip
    return small, data, policy, path


def test_ones_own_file_is_read_as_molecules_each_once(tmp_path):
    table = ZINC.read(_file(tmp_path, [*SMILES, "c1(OCC)ccccc1", "C1=CC=CC=C1"]))
    assert len(table) == len(set(map(canonical, SMILES)))
    assert table.sequences == [canonical(smiles) for smiles in table.sequences]
    assert table.skipped == 0


def test_what_is_no_molecule_is_named_by_line_and_can_be_skipped(tmp_path):
    path = _file(tmp_path, [*SMILES[:3], "c1cccc1", *SMILES[3:], "CC.O", "hello"])
    lines = f"lines 5, {len(SMILES) + 3}, {len(SMILES) + 4}"
    with pytest.raises(DataError, match=re.escape(f"{path}, {lines}: expected molecules")) as caught:
        ZINC.read(path)
    assert all(word in str(caught.value) for word in ("kekulisation", "fragments", "unparsable", "--skip-invalid"))
    assert "\n" not in str(caught.value)
    table = ZINC.read(path, skip_invalid=True)
    assert table.skipped == 3
    assert len(table) == len(set(map(canonical, SMILES)))


@pytest.mark.parametrize(
    ("rows", "message"),
    [([], "header only"), (["CCO"], "at least 20 molecules; got 1"), (["xx"] * 3, "got 0 and 3 that are none")],
)
def test_too_few_molecules_are_a_clear_error(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        ZINC.read(_file(tmp_path, rows), skip_invalid=True)


def test_a_row_without_a_molecule_is_named_or_left_out(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("smiles,note\n" + "".join(f"{smiles},x\n" for smiles in [*SMILES, "", " "]))
    with pytest.raises(DataError, match=f"lines {len(SMILES) + 2}, {len(SMILES) + 3}: expected a design; got an empty"):
        ZINC.read(path)
    assert ZINC.read(path, skip_invalid=True).skipped == 2


def test_many_bad_lines_are_counted_and_some_named(tmp_path):
    with pytest.raises(DataError, match="and 7 more"):
        ZINC.read(_file(tmp_path, [*SMILES, *["xx"] * 12]))


def test_parts_do_not_share_a_molecule_and_words_do_not_depend_on_the_seed(trained):
    task, data, _, path = trained
    parts = (data.prior_train, data.prior_validation, data.prior_test)
    rows = torch.cat(parts)
    assert sorted(rows.tolist()) == list(range(len(data.states)))
    assert len(data.states.unique(dim=0)) == len(data.states)
    assert data.scores.isnan().all()
    again = task.split(task.read(path), seed=1)
    assert again.codec.config() == data.codec.config()
    assert again.prior_test.tolist() != data.prior_test.tolist()
    assert data.outside == {"not_written": 0, "rare_symbols": 0, "too_long": 0, "repeated": 0}


def test_long_and_rare_molecules_are_left_out_and_counted(tmp_path):
    task = dataclasses.replace(ZINC, rarest=0.05, room=0.9)
    data = task.split(task.read(_file(tmp_path, [*SMILES, "C" * 60, "CP"])))
    assert data.outside["too_long"] >= 1
    assert data.outside["rare_symbols"] >= 1
    assert len(data.states) + sum(data.outside.values()) == len(set(map(canonical, SMILES))) + 2


def test_a_small_model_goes_through_saving_measuring_and_describing(trained, tmp_path):
    task, data, policy, path = trained
    policy.save_pretrained(tmp_path / "model")
    again = Policy.from_pretrained(str(tmp_path / "model"))
    assert again.sample(20, seed=3) == policy.sample(20, seed=3)
    card = task.measure(policy, data, seed=0)
    assert card["valid_fraction"] > 0.9
    assert card["test_bound_nats"] < 60  # 36 words of 20 are 150
    assert 0 < card["novel_fraction"] <= 1
    assert task.facts(policy)["representation"] == "SELFIES"
    known = task.known(path)
    assert isinstance(known, Known)
    facts = task.describe(policy, known)(data.states)
    assert facts["novel_fraction"] == 0.0
    assert facts["valid_fraction"] == 1.0


def test_pictures_show_structures_and_properties_before_and_after(trained):
    task, _, policy, path = trained
    rng = torch.Generator().manual_seed(0)
    reward = task.rewards["qed"].make()
    sets = [draw(policy, policy, reward, None, 40, rng) for _ in range(2)]
    scene = Scene(policy, policy, sets[0], sets[1], task.known(path), 0)
    drawn = {picture.name: picture for picture in task.pictures(scene)}
    for name in ("molecules-before", "molecules-after"):
        assert drawn[name].data.startswith("<svg")
        assert "prefers-color-scheme: dark" in drawn[name].data
    histogram = drawn["histogram-qed"]
    assert set(histogram.shares) == {"data", "before", "after"}
    for shares in histogram.shares.values():
        assert len(shares) == len(histogram.edges) - 1
        assert sum(shares) == pytest.approx(1.0)
    assert drawn["histogram-rings"].edges[0] % 1 == 0.5
    numbers = summary(sets[1], task.describe(policy, None), rng)
    assert numbers["feasible_fraction"] == numbers["valid_fraction"]


def test_a_grid_is_drawn_without_a_background_and_edges_hold_every_value():
    text = grid(["CCO", "c1ccccc1"], ["0.4", "0.5"])
    assert text.count("<svg") == 1
    assert "<?xml" not in text
    assert "opacity:1.0;fill:#FFFFFF" not in text
    values = torch.tensor([0.2, 0.9, 0.4]).numpy()
    edges = bin_edges(values)
    assert edges[0] <= values.min()
    assert edges[-1] >= values.max()
    assert len(bin_edges(values[:1])) == 2


@pytest.mark.parametrize("name", ZINC.rewards)
def test_every_reward_of_the_task_scores_molecules(name):
    reward = ZINC.rewards[name].make()
    values = reward(["CC(=O)Oc1ccccc1C(=O)O", "c1cccc1"])
    assert values.isfinite().tolist() == [True, False]
    assert ZINC.rewards[name].score_name
    assert ZINC.rewards[name].summary


def test_a_missing_extra_is_named_with_the_command_that_adds_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "selfies", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'difftilt[chem]'")):
        chemistry("selfies")
    with pytest.raises(ConfigError, match=re.escape("pip install 'difftilt[dock]'")):
        chemistry("no_such_module", "dock")
