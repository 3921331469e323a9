"""Protein tasks: the wild type, its limits, what cards and reports say, and bad files."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from difftilt.core.policy import Policy
from difftilt.data import Table, find
from difftilt.domains.pretraining import Pretraining
from difftilt.domains.protein import BRIGHT, GB1, GFP, TASKS, ProteinTask
from difftilt.domains.protein.alignment import Line, alignment, same_group
from difftilt.domains.protein.quality import area_under_curve
from difftilt.domains.protein.task import best_designs, limit_of
from difftilt.domains.task import MASKED, Histogram, Picture, Prior, Scene
from difftilt.errors import ConfigError, DataError
from difftilt.metrics import proteins
from difftilt.networks.near import NearDenoiser, near
from difftilt.training.designs import DesignSet
from difftilt.training.pretrain import PretrainConfig
from difftilt.training.regress import RegressConfig

WILD_TYPE = "MKTAYIAKQRQI"
NUMBERS = range(5, 17)
TINY = dataclasses.replace(
    GFP,
    name="tiny",
    wild_type=WILD_TYPE,
    numbers=NUMBERS,
    noted={"pocket": (8, 9)},
    bright=0.0,
    priors={
        MASKED: Prior(
            denoiser={"type": "variants", "width": 8, "depth": 1},
            training=PretrainConfig(updates=20, batch=64, validate_every=10, ema=0.9),
            steps=len(WILD_TYPE),
        )
    },
    reward={"type": "variants", "width": 8, "depth": 1},
    reward_training=RegressConfig(epochs=4, members=2),
    judge={"type": "stability", "rank": 2},
    judge_training=RegressConfig(epochs=4, members=1, seed=1),
)


def variants(n: int = 400, most: int = 3, seed: int = 0, wild_type: str = WILD_TYPE, path: str = "own.csv") -> Table:
    """Distinct variants that leave residues 8 and 9 alone; each mutation costs 1, the first site gains 2."""
    rng = np.random.default_rng(seed)
    free = [place for place in range(len(wild_type)) if place not in (3, 4)]
    found: dict[str, float] = {}
    while len(found) < n:
        letters = list(wild_type)
        for place in rng.choice(free, rng.integers(1, most + 1), replace=False):
            letters[place] = "ACDEFGHIKLMNPQRSTVWY"[rng.integers(20)]
        changed = [place for place in free if letters[place] != wild_type[place]]
        found["".join(letters)] = 1.5 - len(changed) + 2 * (0 in changed) + 0.1 * rng.normal()
    return Table(Path(path), list(found), {"score": np.array(list(found.values()))}, "sequence", "score")


def untrained(table: Table | None = None, task: ProteinTask = TINY) -> Policy:
    return task.untrained(MASKED, task.split(table or variants()), seed=0)


# --- limits ----------------------------------------------------------------------------------------------------------


def test_p_pre_of_near_copies_holds_the_noted_sites_and_the_number_of_mutations():
    policy = untrained()
    assert isinstance(policy.denoiser, NearDenoiser)
    assert policy.denoiser.most == 3
    assert policy.fixed is not None
    assert (policy.fixed >= 0).nonzero()[:, 0].tolist() == [3, 4]
    tokens = policy.codec.encode([WILD_TYPE])[0]
    drawn = policy.codec.encode(policy.sample(500, seed=1))
    assert proteins.mutations(drawn, tokens).max() == 3
    assert (drawn[:, 3:5] == tokens[3:5]).all()


def test_an_untrained_p_pre_has_the_frequencies_and_the_numbers_of_mutations_of_its_data():
    table = variants(2000)
    policy = untrained(table)
    tokens = policy.codec.encode([WILD_TYPE])[0]
    data, drawn = policy.codec.encode(table.sequences), policy.codec.encode(policy.sample(2000, seed=1))
    shares = [proteins.mutation_shares(x, tokens, 3) for x in (data, drawn)]
    assert proteins.total_variation(*shares) < 0.06  # 0.02 by chance, and a Poisson number of ten sites is not exact
    sites = [proteins.mutated_sites(x, tokens) for x in (data, drawn)]
    assert (sites[0] - sites[1]).abs().max() < 0.06


def test_the_limits_come_back_from_a_folder(tmp_path):
    policy = untrained()
    policy.save_pretrained(tmp_path)
    loaded = Policy.from_pretrained(str(tmp_path))
    assert TINY.facts(loaded) == TINY.facts(policy)
    assert TINY.facts(policy)["held"] == ["A8", "Y9"]
    assert TINY.facts(policy)["most_mutations"] == 3
    assert TINY.facts(policy)["first_residue"] == 5


def test_rewards_of_a_limited_policy_end_at_its_limit():
    policy = untrained()
    reward = TINY.limited(lambda designs: [1.0] * len(designs), policy)
    value = torch.as_tensor(reward([WILD_TYPE, "A" * len(WILD_TYPE)]))
    assert value.isnan().tolist() == [False, True]
    free = near(policy, WILD_TYPE, None)
    assert limit_of(free) is None
    assert not torch.as_tensor(TINY.limited(lambda designs: [1.0] * len(designs), free)(["A" * 12])).isnan().any()


# --- the wild type ---------------------------------------------------------------------------------------------------


def test_own_data_of_another_protein_have_their_consensus_as_wild_type_and_no_noted_sites():
    other = "GGSWEWEPLLTN"
    policy = untrained(variants(wild_type=other))
    assert TINY.wild_type_of(policy) == other
    assert policy.fixed is None
    assert TINY.facts(policy)["first_residue"] == 1
    longer = untrained(variants(wild_type=other + "AA"))
    assert TINY.wild_type_of(longer) == other + "AA"


def test_a_tuned_policy_whose_card_says_nothing_still_knows_its_wild_type():
    policy = untrained(variants(wild_type="GGSWEWEPLLTN"))
    policy.card = {}
    assert TINY.wild_type_of(policy) == "GGSWEWEPLLTN"


def test_mutations_are_spelled_in_usual_numbers_and_read_back():
    text = proteins.spelled(proteins.mutant(GFP.wild_type, "S65T, V163A", GFP.numbers), GFP.wild_type, GFP.numbers)
    assert text == "S65T V163A"
    assert proteins.spelled(GFP.wild_type, GFP.wild_type, GFP.numbers) == "wild type"
    assert proteins.spelled(proteins.mutant("VDGV", "V39F D40W G41A V54A", GB1.numbers), "VDGV", GB1.numbers)
    for wrong, message in (("S64T", "expected L64"), ("S65", "such as S65T"), ("K900R", "from 2 to 238")):
        with pytest.raises(ConfigError, match=message):
            proteins.mutant(GFP.wild_type, wrong, GFP.numbers)


def test_tasks_number_their_residues_as_the_literature_does():
    assert [len(task.wild_type) == len(task.numbers) for task in TASKS] == [True, True]
    place = dict(zip(GFP.numbers, GFP.wild_type, strict=True))
    assert "".join(place[n] for n in GFP.noted["chromophore"]) == "SYG"
    assert (place[2], place[64], place[238]) == ("S", "L", "K")
    assert dict(zip(GB1.numbers, GB1.wild_type, strict=True)) == {39: "V", 40: "D", 41: "G", 54: "V"}


# --- training --------------------------------------------------------------------------------------------------------


def test_every_part_is_trained_and_its_card_has_the_numbers(tmp_path):
    table = variants(600)
    done = Pretraining(TINY, table, tmp_path, "command", MASKED).run(("denoiser", "reward", "judge"))
    denoiser = done["denoiser"]
    assert denoiser["sampled_mutations_most"] <= 3
    assert math.isfinite(denoiser["test_bound_nats_per_design"])
    assert denoiser["mutations_total_variation"] < 0.2
    assert {
        "advantage_over_independent_sites",
        "independent_sites_and_number_nats_per_design",
    } <= set(denoiser)
    assert sum(float(share) for share in denoiser["test_shares_by_mutations"].split()) == pytest.approx(1, abs=0.01)
    assert 0.5 < done["reward"]["test_auc_upper_mode"] <= 1
    assert "test_auc_upper_mode" in done["judge"]
    loaded = Policy.from_pretrained(str(tmp_path / "denoiser"))
    assert loaded.card["wild_type"] == WILD_TYPE


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order():
    score = torch.tensor([3.0, 1.0, 2.0, 2.0, 0.0])
    positive = torch.tensor([True, False, True, False, False])
    pairs = [float(p > q) + 0.5 * float(p == q) for p in score[positive] for q in score[~positive]]
    assert area_under_curve(score, positive) == pytest.approx(sum(pairs) / len(pairs))


# --- what people look at ---------------------------------------------------------------------------------------------


def scene(designs: list[str], reward: list[float], policy: Policy) -> Scene:
    n = len(designs)
    values = torch.tensor(reward, dtype=torch.float64)
    nothing = torch.full((n,), math.nan, dtype=torch.float64)
    made = DesignSet(policy.codec.encode(designs), designs, values, nothing, nothing, torch.zeros(n).double(), nothing)
    return Scene(policy, None, made, made, None, 0)


def test_the_best_designs_are_distinct_have_a_reward_and_come_best_first():
    designs = ["A", "B", "A", "C", "D"]
    reward = torch.tensor([1.0, 3.0, 1.0, math.nan, 2.0], dtype=torch.float64)
    assert best_designs(designs, reward, 2) == [("B", 3.0), ("D", 2.0)]
    assert best_designs(designs, torch.full((5,), math.nan, dtype=torch.float64), 3) == []


def test_a_run_has_an_alignment_and_a_histogram_of_mutations():
    policy = untrained()
    one = WILD_TYPE[:-1] + "V"
    drawings = TINY.pictures(scene([WILD_TYPE, one, one, one], [1.0, 2.0, 2.0, math.nan], policy))
    picture, histogram = drawings
    assert isinstance(picture, Picture)
    assert isinstance(histogram, Histogram)
    assert histogram.shares["after"] == [0.25, 0.75]
    assert histogram.edges == [-0.5, 0.5, 1.5]
    assert "5 to 16" in picture.caption
    assert isinstance(picture.data, str)
    assert ">pocket<" in picture.data
    assert ">16<" in picture.data


def test_where_no_design_has_a_reward_there_is_no_alignment():
    drawings = TINY.pictures(scene([WILD_TYPE], [math.nan], untrained()))
    assert [type(drawing) for drawing in drawings] == [Histogram]


def test_the_drawing_shows_only_columns_that_differ_and_wraps_for_a_phone():
    rng = np.random.default_rng(0)
    lines = []
    for k in range(8):
        letters = list(GFP.wild_type)
        for place in rng.choice(237, 8, replace=False):
            letters[place] = "W"
        lines.append(Line("".join(letters), f"{k}. 4.0"))
    text = alignment(lines, GFP.wild_type, GFP.numbers, marked=GFP.noted)
    numbers = [int(n) for n in re.findall(r"rotate\(-90\)\">(\d+)<", text)]
    changed = {
        number
        for place, number in enumerate(GFP.numbers)
        if any(line.design[place] != GFP.wild_type[place] for line in lines)
    }
    assert numbers == sorted(changed | {65, 66, 67})
    right = [
        float(x) + 15
        for x in re.findall(r'<rect class="(?:near|far|site)" x="([\d.]+)" y="[\d.]+" width="1[35]"', text)
    ]
    assert max(right) <= 360
    assert text.count("<text") < 2000
    assert "prefers-color-scheme:dark" in text


def test_labels_are_escaped_and_groups_are_chemistry():
    text = alignment([Line("AC", "<b>&")], "AA", [1, 2])
    assert "<b>" not in text
    assert "&lt;b&gt;&amp;" in text
    assert same_group("K", "R")
    assert not same_group("K", "E")


def test_designs_are_described_by_mutations_and_blosum_distance():
    pytest.importorskip("Bio")
    policy = untrained()
    known = policy.codec.encode([WILD_TYPE, "V" * len(WILD_TYPE)])
    facts = TINY.describe(policy, known)(policy.codec.encode([WILD_TYPE, WILD_TYPE[:-1] + "V"]))
    assert facts["novelty"] == 0.5
    assert facts["mutations_from_wild_type"] == 0.5
    assert facts["most_mutations"] == 1
    assert facts["blosum62_distance"] == 0.5
    assert "kmer_correlation" not in facts


def test_without_biopython_designs_are_described_without_the_distance(monkeypatch):
    monkeypatch.setattr(proteins, "has_blosum", lambda: False)
    policy = untrained()
    assert "blosum62_distance" not in TINY.describe(policy, None)(policy.codec.encode([WILD_TYPE]))


# --- files -----------------------------------------------------------------------------------------------------------


def written(tmp_path: Path, designs: list[str]) -> Path:
    path = tmp_path / "own.csv"
    path.write_text("sequence,score\n" + "".join(f"{design},{i / 7}\n" for i, design in enumerate(designs)))
    return path


@pytest.mark.parametrize("letter", list("BXZUOJ-*"))
def test_an_unknown_residue_is_named_with_its_line(letter, tmp_path):
    designs = variants(30).sequences
    designs[4] = designs[4][:-1] + letter
    with pytest.raises(
        DataError, match=rf"line 6: expected the letters {GFP.alphabet}; got '{re.escape(letter)}' at position 12"
    ):
        TINY.read(written(tmp_path, designs))


def test_unknown_residues_are_skipped_on_demand_and_counted(tmp_path):
    designs = variants(30).sequences
    designs[4] = designs[4][:-1] + "X"
    table = TINY.read(written(tmp_path, designs), skip_invalid=True)
    assert len(table) == 29
    assert table.skipped == 1
    designs[5], designs[6] = designs[5] + "A", ""
    with pytest.raises(DataError, match="line 8: expected a design"):
        TINY.read(written(tmp_path, designs))
    table = TINY.read(written(tmp_path, designs), skip_invalid=True)  # other lengths and empty ones too
    assert (len(table), table.skipped) == (27, 3)


def test_several_lines_with_unknown_residues_are_named_at_once(tmp_path):
    designs = variants(30).sequences
    for row in (4, 9, 12):
        designs[row] = designs[row][:2] + "B" + designs[row][3:]
    with pytest.raises(DataError, match=r"lines 6, 11, 14: expected the letters .*got 'B' at position 3 of the first"):
        TINY.read(written(tmp_path, designs))


def test_unequal_lengths_are_named_with_the_line(tmp_path):
    designs = variants(30).sequences
    designs[9] = designs[9] + "A"
    with pytest.raises(DataError, match="line 11: expected 12 letters like most of the others; got 13"):
        TINY.read(written(tmp_path, designs))


def test_empty_files_and_single_designs_are_refused(tmp_path):
    with pytest.raises(DataError, match="add designs"):
        TINY.read(written(tmp_path, []))
    with pytest.raises(DataError, match="at least 20 designs; got 1"):
        TINY.read(written(tmp_path, [WILD_TYPE]))
    with pytest.raises(DataError, match="got none, and 30 others that are left out"):
        TINY.read(written(tmp_path, ["XXX"] * 30), skip_invalid=True)


def test_lower_case_letters_are_read(tmp_path):
    table = TINY.read(written(tmp_path, [design.lower() for design in variants(30).sequences]))
    assert table.sequences == variants(30).sequences


# --- the data sets ---------------------------------------------------------------------------------------------------


def test_p_pre_of_gfp_learns_bright_variants_with_an_intact_chromophore_and_few_mutations():
    if find("gfp") is None:
        pytest.skip("gfp is not on this machine")
    table = GFP.read()
    data = GFP.split(table)
    assert len(data.states) == 46_546
    assert "*" not in data.codec.config()["alphabet"]
    rows = torch.cat([data.prior_train, data.prior_validation, data.prior_test])
    tokens = data.codec.encode([GFP.wild_type])[0]
    assert len(rows) == 26_451
    assert (data.scores[rows] > BRIGHT).all()
    assert proteins.mutations(data.states[rows], tokens).max() == 8
    assert (data.states[rows][:, 63:66] == tokens[63:66]).all()
    assert not set(data.reward.tolist()) & set(data.judge.tolist())
    assert not set(data.test.tolist()) & set(torch.cat([data.prior_train, data.reward, data.judge]).tolist())
    assert GFP.reference(data.states[:2000]) == GFP.wild_type


def test_p_pre_of_gb1_never_saw_a_variant_better_than_the_wild_type():
    if find("gb1") is None:
        pytest.skip("gb1 is not on this machine")
    data = GB1.split(GB1.read())
    rows = torch.cat([data.prior_train, data.prior_validation, data.prior_test])
    assert (data.scores[rows] <= 1).all()
    assert (data.scores[rows] > 0.01).all()
    assert GB1.reference(data.states[data.prior_train]) == "VDGV"
