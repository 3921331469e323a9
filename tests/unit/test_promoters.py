"""Promoters in two media: who may learn what, and which judge judges which reward."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from difftilt import build
from difftilt.core.codec import TokenCodec
from difftilt.core.registry import construct
from difftilt.data import Table, find, write_designs
from difftilt.domains.dna import YEAST
from difftilt.domains.promoter import SECOND, SECOND_JUDGE, SHARES
from difftilt.domains.task import DENOISER, LearnedReward
from difftilt.errors import ConfigError, DataError
from difftilt.rewards.combined import CombinedReward
from difftilt.rewards.ensemble import EnsembleReward


def letters(n: int, length: int = 40, seed: int = 0) -> list[str]:
    return ["".join("ACGT"[i] for i in row) for row in np.random.default_rng(seed).integers(4, size=(n, length))]


def mutant(design: str, places: tuple[int, ...]) -> str:
    return "".join("ACGT"[("ACGT".index(c) + 1) % 4] if i in places else c for i, c in enumerate(design))


def two_media() -> Table:
    """400 families: a founder in defined medium, and in complex medium it, or a double mutant, or a stranger."""
    founders, strangers = letters(400), letters(400, seed=1)
    second = [(d, mutant(d, (3, 30)), s)[i % 3] for i, (d, s) in enumerate(zip(founders, strangers, strict=True))]
    medium = np.array(["defined"] * 400 + ["complex"] * 400)
    score = np.random.default_rng(2).normal(size=800)
    return Table(Path("t.csv"), [*founders, *second], {"score": score, "medium": medium}, "sequence", "score")


def designs(data: object, part: str) -> set[str]:
    return set(data.codec.decode(data.states[getattr(data, part)]))  # type: ignore[attr-defined]


# --- splits --------------------------------------------------------------------------------------------------------


def test_the_second_medium_follows_the_first_by_clusters() -> None:
    """No design of one part is within 3 mutations of one of another part, whichever the medium.

    Twin: split by itself, the second medium breaks that.
    """
    table = two_media()
    first = YEAST.split(table)
    second = YEAST.rows_of(SECOND, table, first, seed=0)
    alone = replace(YEAST, rows=YEAST.second_rows).split(table)

    def leaks(other: object) -> int:
        return sum(
            sum(a != b for a, b in zip(x, y, strict=True)) <= 3
            for one, two in itertools.permutations(SHARES, 2)
            for x in designs(first, one)
            for y in designs(other, two)
        )

    assert leaks(second) == 0
    assert leaks(alone) > 20
    own = {name: designs(second, name) for name in SHARES}
    assert not any(a & b for a, b in itertools.combinations(own.values(), 2))
    assert sum(map(len, own.values())) == 400, "in a table without bridges every row is used"
    assert len(own["test"]) == pytest.approx(40, abs=12)
    assert YEAST.rows_of("reward", table, first, seed=0) is first
    for part in ("prior_train", "prior_validation", "prior_test"):
        assert not len(getattr(second, part))


def test_a_design_near_two_parts_of_the_first_medium_is_used_by_nobody() -> None:
    one, two = "A" * 40, "A" * 34 + "C" * 6
    bridge = "A" * 37 + "C" * 3
    shares = YEAST.followed([one, two], {"test": [0], "reward": [1], "judge": []}, [bridge, one, *letters(30)], 0)
    assert not any(0 in rows for rows in shares.values())
    assert not any(1 in rows for rows in shares.values()), "it is one cluster with the bridge"
    apart = YEAST.followed([one, two], {"test": [0], "reward": [1], "judge": []}, [one, two, *letters(30)], 0)
    assert 0 in apart["test"]
    assert 1 in apart["reward"]


def test_scores_are_those_of_the_second_medium_and_missing_ones_are_left_out() -> None:
    table = two_media()
    table.scores[400:800:4] = np.nan
    data = YEAST.rows_of(SECOND_JUDGE, table, YEAST.split(table), seed=0)
    torch.testing.assert_close(data.scores, torch.from_numpy(table.scores[400:]).float(), equal_nan=True)
    used = torch.cat([getattr(data, name) for name in SHARES])
    assert not data.scores[used].isnan().any()
    assert len(used) == 300


def test_ones_own_table_keeps_a_design_in_each_medium(tmp_path: Path) -> None:
    """Twin: merging without looking at the medium gives the mean of two different quantities."""
    rows = letters(30)
    path = tmp_path / "own.csv"
    sequences = [rows[0], rows[0], *rows, rows[0]]
    medium = ["defined", "defined", *["complex"] * 30, "defined"]
    write_designs(path, {"sequence": sequences, "score": [1.0, 2.0, *[10.0] * 30, 6.0], "medium": medium})
    table = YEAST.read(path)
    assert len(table) == 31
    there = {
        (s, m): v
        for s, m, v in zip(table.sequences, table.column("medium").tolist(), table.scores.tolist(), strict=True)
    }
    assert there[rows[0], "defined"] == 3.0
    assert there[rows[0], "complex"] == 10.0


def test_a_table_of_one_medium_trains_no_part_of_the_second() -> None:
    table = two_media()
    assert YEAST.trainable(table) == (DENOISER, "reward", "judge", SECOND, SECOND_JUDGE)
    assert YEAST.trainable(table.take(np.arange(400))) == (DENOISER, "reward", "judge")
    bare = Table(Path("t.csv"), table.sequences[:400], {}, "sequence", None)
    assert YEAST.trainable(bare) == (DENOISER,)


def test_a_table_of_the_second_medium_alone_is_refused() -> None:
    with pytest.raises(DataError, match="expected rows that yeast-promoter uses; got none of 400"):
        YEAST.split(two_media().take(np.arange(400, 800)))


def test_the_measured_table_of_the_task_is_that_of_the_first_medium() -> None:
    if find("yeast-promoter") is None:
        pytest.skip("data set yeast-promoter is not here")
    table = YEAST.read()
    defined = table.take(table.column("medium") == "defined")
    both = sorted(set(defined.sequences) & set(table.take(table.column("medium") == "complex").sequences))[:50]
    known = dict(zip(defined.sequences, defined.scores.tolist(), strict=True))
    assert len(both) == 50
    assert build.load_reward(YEAST, "table")(both).tolist() == pytest.approx([known[d] for d in both])


# --- rewards and judges --------------------------------------------------------------------------------------------

CODEC = TokenCodec("ACGT", 8)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained models whose means tell them apart."""
    folder = tmp_path_factory.mktemp("models")
    for i, part in enumerate(("reward", "judge", SECOND, SECOND_JUDGE)):
        member = construct("regressor", {"type": "conv", "vocabulary": 4, "length": 8, "width": 4, "hidden": 4})
        EnsembleReward([member], CODEC, mean=float(10**i), scale=0.0, card={"name": part}).save_pretrained(
            folder / part
        )
    return folder


@pytest.mark.parametrize(
    ("spec", "reward", "judge"),
    [
        (None, 1, 10),
        ("model", 1, 10),
        ("defined", 1, 10),
        ("complex", 100, 1000),
        ("defined,-1*complex", 1 - 100, 10 - 1000),
        ("model,-0.5*complex", 1 - 50, 10 - 500),
        ("2*complex", 200, 2000),
    ],
)
def test_each_reward_has_its_own_judge_and_a_sum_the_same_sum_of_judges(
    models: Path, spec: str | None, reward: float, judge: float
) -> None:
    x = CODEC.encode(["ACGTACGT", "AAAACCCC"])
    chosen, judged = build.load_reward(YEAST, spec, models), build.judge_of(YEAST, spec, models)
    assert judged is not None
    given = ["ACGTACGT", "AAAACCCC"] if isinstance(chosen, CombinedReward) else x
    assert torch.as_tensor(chosen(given)).tolist() == pytest.approx([reward] * 2)
    assert torch.as_tensor(judged(given)).tolist() == pytest.approx([judge] * 2)


def test_a_function_is_judged_by_the_judge_of_the_task(models: Path) -> None:
    assert build.judge_of(YEAST, "scorer.py:f", models).card["name"] == "judge"  # type: ignore[union-attr]
    assert build.judge_of(YEAST, "scorer.py:f,complex", models).card["name"] == "judge"  # type: ignore[union-attr]


def test_a_missing_judge_is_not_replaced_by_that_of_another_medium(models: Path, tmp_path: Path) -> None:
    for part in ("reward", "judge", SECOND):
        (tmp_path / part).symlink_to(models / part)
    assert build.judge_of(YEAST, "complex", tmp_path) is None
    assert build.judge_of(YEAST, "defined,-1*complex", tmp_path) is None
    assert build.judge_of(YEAST, "defined", tmp_path) is not None
    (tmp_path / SECOND).unlink()
    with pytest.raises(ConfigError, match="expected a complex model for 'yeast-promoter'"):
        build.load_reward(YEAST, "defined,-1*complex", tmp_path)


def test_a_bound_on_the_second_medium_makes_the_rest_infeasible(models: Path) -> None:
    bounded = build.load_reward(YEAST, "defined", models, require=["complex<=99"])
    assert torch.as_tensor(bounded(["ACGTACGT"])).isnan().all()
    assert isinstance(bounded, CombinedReward)
    assert bounded.reasons == ["complex 100 is above 99"]
    free = build.load_reward(YEAST, "defined", models, require=["complex<=101"])
    assert torch.as_tensor(free(["ACGTACGT"])).tolist() == [1.0]


def test_reward_and_judge_of_the_second_medium_differ_in_kind_and_seeds() -> None:
    assert YEAST.second_reward["type"] != YEAST.second_judge["type"]
    every = (YEAST.reward_training, YEAST.judge_training, YEAST.second_reward_training, YEAST.second_judge_training)
    seeds = [settings.seed * 1000 + e for settings in every for e in range(settings.members)]
    assert len(set(seeds)) == len(seeds)
    assert "complex" in YEAST.score_of(SECOND_JUDGE)
    assert "defined" in YEAST.score_of("reward")
    assert YEAST.score_of(DENOISER) == YEAST.score_name
    assert {r.part for r in YEAST.rewards.values() if isinstance(r, LearnedReward)} == {"reward", SECOND}


def test_the_shipped_models_of_the_second_medium_are_as_good_as_their_cards_say() -> None:
    """On test rows, which are near no row that any of the four models has learned."""
    for part in (SECOND, SECOND_JUDGE):
        folder = build.model_folder(YEAST, part)
        assert folder is not None
        model = EnsembleReward.from_pretrained(str(folder))
        metrics = model.card["metrics"]
        assert metrics["test_spearman"] > 0.6
        assert model.card["score"] == YEAST.score_of(part)
        if find("yeast-promoter") is None:
            pytest.skip("data set yeast-promoter is not here")
        from difftilt.training.regress import measure_fit

        table = YEAST.read()
        data = YEAST.rows_of(part, table, YEAST.split(table), seed=0)
        fit = measure_fit(model(data.states[data.test]), data.scores[data.test])
        assert fit.spearman == pytest.approx(metrics["test_spearman"], abs=2e-3)
        assert fit.rows == metrics["test_rows"]
