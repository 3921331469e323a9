"""Tasks: what p_pre, reward, judge and test may see, and what each task knows of its data."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from difftilt import build
from difftilt.core.codec import TokenCodec
from difftilt.core.registry import construct
from difftilt.data import Table, find, load
from difftilt.domains import dna, rna
from difftilt.domains.sequence import SequenceTask, every_row, no_family
from difftilt.domains.task import TaskData
from difftilt.errors import DataError
from difftilt.training.regress import RegressConfig

TASKS = [*rna.TASKS, *dna.TASKS]
SHIPPED = [task for task in TASKS if task.shipped]


def name(task: SequenceTask) -> str:
    return task.name


def families(count: int = 120, members: int = 5, length: int = 50, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Families of near copies (at most one mutation from a founder, two from one another), in shuffled order."""
    rng = np.random.default_rng(seed)
    rows, family = [], []
    for f in range(count):
        founder = rng.integers(4, size=length)
        for _ in range(members):
            child = founder.copy()
            child[rng.integers(length)] = rng.integers(4)
            rows.append("".join("ACGT"[i] for i in child))
            family.append(f)
    order = rng.permutation(len(rows))
    return [rows[i] for i in order], np.array(family)[order]


def table(columns: dict[str, np.ndarray] | None = None, *, scored: bool = True, **options: int) -> Table:
    sequences, family = families(**options)
    scores = np.random.default_rng(1).normal(size=len(sequences)) + 0.01 * family
    own = {"score": scores} if scored else {}
    return Table(Path("t.csv"), sequences, {**own, **(columns or {})}, "sequence", "score" if scored else None)


def plain(**settings: object) -> SequenceTask:
    options = {"name": "t", "domain": "dna", "summary": "s", "data_set": "d", "alphabet": "ACGT", "aliases": {}}
    return SequenceTask(**options, score_name="x", naturalness="n", **settings)


def parts(data: TaskData) -> dict[str, set[int]]:
    names = ("test", "reward", "judge", "prior_train", "prior_validation", "prior_test")
    return {part: set(getattr(data, part).tolist()) for part in names}


# --- splits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", [3, None])
def test_test_reward_and_judge_are_disjoint_and_cover_everything(distance: int | None) -> None:
    """Defect 15: one oracle that both optimises and scores."""
    own = parts(plain(cluster_distance=distance).split(table()))
    for one, two in itertools.combinations(("test", "reward", "judge"), 2):
        assert not own[one] & own[two], (one, two)
    assert own["test"] | own["reward"] | own["judge"] == set(range(600))
    assert len(own["test"]) == pytest.approx(60, abs=6)
    assert len(own["reward"]) == pytest.approx(270, abs=6)


def test_near_copies_never_fall_in_different_parts() -> None:
    """Families stay together; with a random split (twin) most are torn apart."""
    sheet, family = table(), families()[1]

    def torn(distance: int | None) -> int:
        own = parts(plain(cluster_distance=distance).split(sheet))
        home = {row: part for part in ("test", "reward", "judge") for row in own[part]}
        return sum(len({home[row] for row in np.flatnonzero(family == f)}) > 1 for f in range(120))

    assert torn(3) == 0
    assert torn(None) > 60
    own = parts(plain().split(sheet))
    trained, validated = ({family[row] for row in own[part]} for part in ("prior_train", "prior_validation"))
    assert not trained & validated, "validation of p_pre would be on near copies of its training designs"


def test_families_stay_together_and_rows_of_p_pre_stay_where_they_were() -> None:
    """Mutants farther from their original than the distance of the split; twin: without names they are torn apart."""
    sheet = table()
    rng = np.random.default_rng(3)
    mutants = []
    for design in sheet.sequences[:300]:
        places = set(rng.choice(50, size=6, replace=False).tolist())
        mutants.append("".join("ACGT"[("ACGT".index(c) + 1) % 4] if i in places else c for i, c in enumerate(design)))
    names = np.array([f"f{i}" for i in range(600)] + [f"f{i}" for i in range(300)])
    original = np.arange(900) < 600
    scores = np.concatenate([sheet.scores, sheet.scores[:300]])
    whole = Table(Path("t.csv"), [*sheet.sequences, *mutants], {"score": scores}, "sequence", "score")
    free = plain(prior_rows=lambda _: original).split(whole)
    kept = plain(prior_rows=lambda _: original, family=lambda _: names.tolist()).split(whole)

    def torn(data: TaskData) -> int:
        own = parts(data)
        home = {row: part for part in ("test", "reward", "judge") for row in own[part]}
        assert len(home) == 900
        return sum(home[row] != home[row + 600] for row in range(300))

    assert torn(kept) == 0
    assert torn(free) > 100
    for part in ("prior_train", "prior_validation", "prior_test"):
        assert torch.equal(getattr(free, part), getattr(kept, part)), part
    for part in ("test", "reward", "judge"):
        originals = [{row for row in parts(data)[part] if row < 600} for data in (free, kept)]
        assert originals[0] == originals[1], part


def test_scores_below_the_limit_of_detection_count_as_the_limit() -> None:
    """The reward's mean is that of the scores it learned; twin: without a limit it is another."""
    settings = {
        "reward": {"type": "scan", "width": 2, "hidden": 2},
        "reward_training": RegressConfig(epochs=1, members=1),
    }

    def mean(floor: float | None) -> float:
        task = plain(**settings, floor=floor)
        data = task.split(table())
        return task.fit("reward", data, seed=0, told=lambda _: None)[0].mean

    scores = plain().split(table())
    rows = scores.scores[scores.reward]
    assert mean(None) == pytest.approx(rows.mean().item(), rel=1e-5)
    assert mean(1.0) == pytest.approx(rows.clamp(min=1.0).mean().item(), rel=1e-5)
    assert abs(mean(1.0) - mean(None)) > 0.1


def test_no_element_of_crx_has_versions_in_two_parts() -> None:
    task = build.task("crx-enhancer")
    if find(task.data_set) is None:
        pytest.skip(f"data set {task.data_set} is not here")
    sheet = load(task.data_set)

    def torn(entry: SequenceTask) -> int:
        homes: dict[str, set[str]] = {}
        for part, rows in parts(entry.split(sheet)).items():
            for row in rows if part in ("test", "reward", "judge") else ():
                homes.setdefault(sheet.column("label")[row].rpartition("_")[0], set()).add(part)
        return sum(len(home) > 1 for home in homes.values())

    assert torn(task) == 0
    assert torn(dataclasses.replace(task, family=no_family)) == 581


def test_p_pre_learns_the_allowed_rows_of_both_halves_and_never_a_test_row() -> None:
    allowed = np.arange(600) % 3 == 0
    own = parts(plain(prior_rows=lambda _: allowed).split(table()))
    prior = own["prior_train"] | own["prior_validation"]
    assert prior == {row for row in own["reward"] | own["judge"] if allowed[row]}
    assert not own["prior_train"] & own["prior_validation"]
    assert own["prior_test"] == {row for row in own["test"] if allowed[row]}
    assert len(own["prior_validation"]) == pytest.approx(0.07 * len(prior), abs=6)


def test_rows_a_task_does_not_use_are_gone_before_anything_else() -> None:
    used = np.arange(600) < 400
    sheet = table()
    data = plain(rows=lambda _: used).split(sheet)
    assert data.codec.decode(data.states) == sheet.sequences[:400]
    torch.testing.assert_close(data.scores, torch.from_numpy(sheet.scores[:400]).float())


def test_designs_without_a_score_serve_the_prior_only() -> None:
    sheet = table()
    sheet.scores[::4] = np.nan
    own = parts(plain().split(sheet))
    missing = set(range(0, 600, 4))
    assert not missing & (own["test"] | own["reward"] | own["judge"])
    assert missing & own["prior_train"]
    nothing = parts(plain().split(table(scored=False)))
    assert not nothing["reward"] | nothing["judge"] | nothing["test"]
    assert nothing["prior_train"]


def test_a_split_depends_on_its_seed_and_not_on_the_order_of_the_rows() -> None:
    sheet = table()

    def designs(data: TaskData) -> set[str]:
        return set(data.codec.decode(data.states[data.reward]))

    one, again, other = (designs(plain().split(sheet, seed=seed)) for seed in (0, 0, 1))
    assert one == again != other
    assert designs(plain().split(sheet.take(np.arange(600)[::-1]))) == one


def test_designs_of_other_letters_or_lengths_are_refused() -> None:
    sheet = table()
    sheet.sequences[7] = "N" * 50
    with pytest.raises(DataError, match="got 'N' in design 8"):
        plain(cluster_distance=None).split(sheet)
    sheet.sequences[7] = "A"
    with pytest.raises(DataError, match="got 1 letters in design 8"):
        plain(cluster_distance=None).split(sheet)


# --- the tasks themselves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", SHIPPED, ids=name)
def test_the_judge_is_of_another_architecture_than_the_reward_and_seeded_apart(task: SequenceTask) -> None:
    assert task.reward["type"] != task.judge["type"]
    reward, judge = (
        construct("regressor", {**dict(spec), "vocabulary": 4, "length": 8}) for spec in (task.reward, task.judge)
    )
    assert type(reward) is not type(judge)
    members = {
        kind: {settings.seed * 1000 + e for e in range(settings.members)}
        for kind, settings in (("reward", task.reward_training), ("judge", task.judge_training))
    }
    assert not members["reward"] & members["judge"]


@pytest.mark.parametrize("task", TASKS, ids=name)
def test_a_task_reads_both_t_and_u_and_prints_its_own_letters(task: SequenceTask) -> None:
    codec = task.codec(4)
    assert isinstance(codec, TokenCodec)
    assert codec.decode(codec.encode(["ACGU", "acgt"])) == ["ACGT", "ACGT"]
    for prior in task.priors.values():
        assert construct("denoiser", {**prior.denoiser, "vocabulary": 4, "length": 8})


def test_names_lead_to_their_tasks() -> None:
    assert {task.name for task in SHIPPED} == {"utr-mrl", "yeast-promoter", "crx-enhancer", "tfbind8"}
    assert build.task("tfbind8/SIX6_REF_R1") is build.task("tfbind8")
    assert build.task("tfbind8/CRX_REF_R1").data_set == "tfbind8/CRX_REF_R1"
    assert len({task.name for task in TASKS}) == len(TASKS)
    assert build.task("tfbind8").judge_set == "tfbind8/SIX6_REF_R2"
    assert build.task("tfbind8").default_reward == "table"


def test_the_utr_prior_is_the_upper_half_and_the_tfbind8_prior_the_lower() -> None:
    sheet = table()
    middle = np.median(sheet.scores)
    assert np.array_equal(build.task("utr-mrl").prior_rows(sheet), sheet.scores >= middle)
    assert np.array_equal(build.task("tfbind8").prior_rows(sheet), sheet.scores < middle)
    bare = table(scored=False)
    for task in ("utr-mrl", "tfbind8", "yeast-promoter"):
        assert build.task(task).prior_rows(bare).all(), "one's own designs without scores are all learned"


def test_the_best_designs_are_never_shown_to_the_tfbind8_prior() -> None:
    sheet = table(length=50)
    data = build.task("tfbind8").split(sheet)
    seen = torch.cat([data.prior_train, data.prior_validation, data.prior_test])
    assert data.scores[seen].max() < np.median(sheet.scores) <= data.scores.max()


def test_model_guided_promoters_are_kept_out_of_the_yeast_prior() -> None:
    kinds = np.array(["native", "sswm", "drift", "random"])[np.arange(600) % 4]
    medium = np.array(["defined", "complex"])[np.arange(600) // 300]
    sheet = table({"category": kinds, "medium": medium})
    task = build.task("yeast-promoter")
    data = task.split(sheet)
    assert len(data.states) == 300, "defined medium only"
    kept = sheet.take(medium == "defined")
    for part in ("prior_train", "prior_validation", "prior_test"):
        assert {kept.column("category")[row] for row in getattr(data, part).tolist()} == {"native"}, part
    assert {kept.column("category")[row] for row in data.reward.tolist()} == {"native", "sswm", "drift", "random"}


def test_tables_of_ones_own_need_no_columns_of_the_original() -> None:
    data = build.task("yeast-promoter").split(table())
    assert len(data.states) == 600
    assert every_row(table()).all()


@pytest.mark.parametrize("task", SHIPPED, ids=name)
def test_the_shipped_tasks_split_their_real_data_without_leaks(task: SequenceTask) -> None:
    if find(task.data_set) is None:
        pytest.skip(f"data set {task.data_set} is not here")
    sheet = load(task.data_set)
    sheet = sheet.take(np.random.default_rng(0).permutation(len(sheet))[:3000])
    data = task.split(sheet)
    own = parts(data)
    assert min(map(len, own.values())) > 10
    for one, two in itertools.combinations(("test", "reward", "judge"), 2):
        assert not own[one] & own[two]
    if task.cluster_distance is None:
        return
    one_hot = torch.nn.functional.one_hot(data.states, 4).flatten(1).float()
    for one, two in itertools.combinations(("test", "reward", "judge"), 2):
        same = one_hot[getattr(data, one)] @ one_hot[getattr(data, two)].T
        assert data.states.shape[1] - same.max() > task.cluster_distance, (one, two)


def test_a_replicate_judges_a_table() -> None:
    """The judge of tfbind8 learns another measurement than the reward, over the same split."""
    task = dataclasses.replace(build.task("tfbind8"))
    if find(task.data_set) is None or find(str(task.judge_set)) is None:
        pytest.skip("the tfbind8 data are not here")
    reward, judge = (task.split(load(str(which))) for which in (task.data_set, task.judge_set))
    assert reward.codec.decode(reward.states[reward.test]) == judge.codec.decode(judge.states[judge.test])
    assert not torch.equal(reward.scores, judge.scores)
    assert torch.corrcoef(torch.stack([reward.scores, judge.scores]))[0, 1] > 0.9
