"""Campaigns: the budget is exact, nothing is proposed twice, nothing is forgotten, whatever the order of events."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable
from pathlib import Path

import hypothesis
import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from campaign_parts import FINISHED, begin, check_laws, fork, letters, results, rows, timeless, wait
from difftilt.campaigns import history as histories
from difftilt.campaigns.campaign import Campaign
from difftilt.campaigns.history import CampaignSettings, Design, History
from difftilt.campaigns.keeping import keep
from difftilt.campaigns.plate import check_plate, plate_again, plate_text, wells, write_plate
from difftilt.campaigns.proposer import Candidate, Proposal, Proposer
from difftilt.campaigns.random_picks import RandomPicks
from difftilt.campaigns.results import ResultsError
from difftilt.campaigns.strategies import STRATEGIES, strategy
from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy
from difftilt.errors import ConfigError, DataError, StateError
from difftilt.processes.masked import Masked


def walk(campaign: Campaign, folder: Path, *, steps: int, seed: int) -> None:
    """A random campaign beside a plain model of it; they agree after every step, and no row is ever lost."""
    rng, states, kept = random.Random(seed), {}, rows(campaign)
    budget = campaign.settings.budget
    for step in range(steps):
        action = rng.choice(["propose", "record", "record", "correct", "withdraw", "revive", "again"])
        spent = sum(state != "withdrawn" for state in states.values())
        pending = [name for name, state in states.items() if state == "pending"]
        withdrawn = [name for name, state in states.items() if state == "withdrawn"]
        done = [name for name, state in states.items() if state in ("measured", "failed")]
        if action == "propose":
            wanted = rng.randint(1, 6)
            if wanted > budget - spent:
                with pytest.raises((ConfigError, StateError), match="budget"):
                    campaign.propose(wanted, proposer=letters)
            else:
                states |= {design.id: "pending" for design in campaign.propose(wanted, proposer=letters)}
        elif action == "record" and pending:
            some = rng.sample(pending, rng.randint(1, len(pending)))
            told = {name: "failed: no growth" if rng.random() < 0.3 else rng.random() for name in some}
            campaign.record(results(folder / f"{step}.csv", told))
            states |= {name: "failed" if isinstance(result, str) else "measured" for name, result in told.items()}
        elif action == "correct" and done:
            name = rng.choice(done)
            failed = rng.random() < 0.5
            told = results(folder / f"{step}.csv", {name: "failed: mixed up" if failed else 0.25})
            campaign.record(told, correct=True)
            states[name] = "failed" if failed else "measured"
        elif action == "withdraw" and pending:
            campaign.withdraw([rng.choice(pending)], f"lost {step}")
            states[next(name for name in pending if campaign_state(campaign, name) == "withdrawn")] = "withdrawn"
        elif action == "revive" and withdrawn:
            told = results(folder / f"{step}.csv", {withdrawn[0]: 0.75})
            if spent == budget:
                with pytest.raises(ResultsError, match="no room"):
                    campaign.record(told)
            else:
                campaign.record(told)
                states[withdrawn[0]] = "measured"
        elif action == "again" and campaign.history().imports:
            before = rows(campaign)
            campaign.record(folder / rng.choice(campaign.history().imports).name)
            assert rows(campaign) == before, "a file was recorded twice"
        history = campaign.history()
        assert {design.id: design.state for design in history.designs} == states
        assert history.spent == sum(state != "withdrawn" for state in states.values()) <= budget
        check_laws(campaign)
        now = rows(campaign)
        assert all(kept[table] <= now[table] for table in kept), "a row was lost or changed"
        kept = now


def campaign_state(campaign: Campaign, name: str) -> str:
    return next(design.state for design in campaign.history().designs if design.id == name)


@pytest.mark.parametrize("seed", range(4))
def test_a_random_campaign_keeps_every_law(place: str, tmp_path: Path, seed: int) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    walk(begin(place, budget=12), folder, steps=40, seed=seed)


@pytest.mark.parametrize("broken", ["failed wells are free", "withdrawn designs cost", "corrections are replicates"])
def test_a_broken_law_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Twin: three wrong readings of the facts, each of which the random campaign must reject."""
    if broken == "failed wells are free":
        monkeypatch.setattr(History, "spent", property(lambda self: len(self.designs) - self.counts["failed"]))
    elif broken == "withdrawn designs cost":
        monkeypatch.setattr(History, "spent", property(lambda self: len(self.designs)))
    else:
        monkeypatch.setattr(Design, "measurements", property(lambda self: self.every))
    folder = tmp_path / "files"
    folder.mkdir()
    campaign = begin(str(tmp_path / "lab"), budget=12)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        walk(campaign, folder, steps=40, seed=0)


def test_the_whole_budget_is_proposed_and_no_more(place: str) -> None:
    campaign = begin(place, budget=10, batch=4)
    assert [len(campaign.propose(proposer=letters)) for _ in range(3)] == [4, 4, 2]
    for wanted in (None, 1):
        with pytest.raises(StateError, match=r"all 10 spent \(10 pending"):
            campaign.propose(wanted, proposer=letters)
    campaign.withdraw(["d00001", "d00010"], "no oligo")
    with pytest.raises(ConfigError, match="1 to 2 designs"):
        campaign.propose(3, proposer=letters)
    assert [design.id for design in campaign.propose(proposer=letters)] == ["d00011", "d00012"]


def test_a_withdrawn_design_that_is_measured_after_all_is_paid_for_again(place: str) -> None:
    campaign = begin(place, budget=5)
    campaign.propose(4, proposer=letters)
    campaign.withdraw(["d00001", "d00002", "d00003"], "lost")
    campaign.propose(2, proposer=letters)
    told = [{"id": f"d0000{i}", "value": 1.0} for i in (1, 2, 3)]
    with pytest.raises(ResultsError, match="no room left") as caught:
        campaign.record(told)
    assert [fault.line for fault in caught.value.faults] == [3], "two places are left"
    campaign.record(told[:2])
    assert (campaign.status().remaining, campaign.status().measured) == (0, 2)
    with pytest.raises(ResultsError, match="no room left"):
        campaign.record(told[2:])


def test_a_failed_well_is_spent_and_never_a_number(place: str, tmp_path: Path) -> None:
    campaign = begin(place, budget=4)
    campaign.propose(proposer=letters)
    told = {"d00001": 0.5, "d00002": "failed: no expression", "d00003": "failed"}
    assert campaign.record(results(tmp_path / "r.csv", told)).failed == 2
    history = campaign.history()
    designs, values = history.data()
    assert (designs, values.tolist(), history.remaining) == ([history.designs[0].design], [0.5], 0)
    assert [design.failure for design in history.in_state("failed")] == ["no expression", "no reason given"]
    assert history.designs[1].value is None
    assert values.dtype == torch.float64


def test_every_replicate_and_every_corrected_row_is_kept(place: str) -> None:
    campaign = begin(place)
    campaign.propose(proposer=letters)
    campaign.record([{"id": "d00001", "replicate": i, "value": float(i)} for i in (1, 2, 3)])
    with pytest.raises(ResultsError, match=r"has '2' \(rows, line 2\)"):
        campaign.record([{"id": "d00001", "replicate": 2, "value": 8.0}])
    campaign.record([{"id": "d00001", "replicate": 2, "value": 8.0}], correct=True)
    campaign.record([{"id": "d00001", "replicate": 2, "status": "failed: bubble"}], correct=True)
    campaign.record([{"id": "d00001", "replicate": 2, "value": 5.0}], correct=True)
    design = campaign.history().designs[0]
    assert [row.value for row in design.every] == [1.0, 2.0, 3.0, 8.0, None, 5.0]
    assert [row.corrects for row in design.every] == [None, None, None, 2, 4, 5]
    assert sorted(design.values) == [1.0, 3.0, 5.0]
    assert design.value == 3.0
    assert campaign.history().spent == 4, "replicates cost nothing"


def test_a_design_is_measured_if_one_replicate_is(place: str) -> None:
    campaign = begin(place)
    campaign.propose(proposer=letters)
    campaign.record([{"id": "d00001", "status": "failed: drop", "replicate": "a"}])
    assert campaign.history().designs[0].state == "failed"
    campaign.record([{"id": "d00001", "value": 0.5, "replicate": "b"}])
    assert (campaign.history().designs[0].state, campaign.history().designs[0].failure) == ("measured", None)


def test_the_same_file_twice_changes_nothing(place: str, tmp_path: Path) -> None:
    campaign = begin(place)
    campaign.propose(proposer=letters)
    file = results(tmp_path / "r.csv", {"d00001": 0.5, "d00002": "failed: no expression"})
    assert campaign.record(file).measured == 1
    before = rows(campaign)
    again = campaign.record(file.rename(tmp_path / "other name.csv"))
    assert (again.measured, again.failed, again.known) == (0, 0, 2)
    assert rows(campaign) == before
    campaign.record(results(tmp_path / "c.csv", {"d00001": 0.9}), correct=True)
    before = rows(campaign)
    campaign.record(tmp_path / "other name.csv")
    assert rows(campaign) == before, "the old file does not undo a correction"


def test_a_sheet_that_grows_adds_only_what_is_new(place: str, tmp_path: Path) -> None:
    campaign = begin(place)
    campaign.propose(proposer=letters)
    campaign.record(results(tmp_path / "r.csv", {"d00001": 0.5, "d00002": "pending"}))
    added = campaign.record(results(tmp_path / "r.csv", {"d00001": 0.5, "d00002": 0.25, "d00003": "pending"}))
    assert (added.measured, added.known, added.pending) == (1, 1, 1)
    assert [row.file for design in campaign.history().designs for row in design.every] == ["r.csv", "r.csv"]


def test_a_plate_comes_back_as_results(place: str, tmp_path: Path) -> None:
    """Round trip, with the plate's own columns kept: its reasons are not reasons of failure."""
    campaign = begin(place, budget=200)
    designs = campaign.propose(100, proposer=letters)
    write_plate(tmp_path / "plate.csv", designs)
    header, *lines = (tmp_path / "plate.csv").read_text().splitlines()
    assert header == "id,sequence,round,well,mean,std,reason"
    told = [f"{line},{',failed' if i == 7 else i / 7}" for i, line in enumerate(lines)]
    (tmp_path / "back.csv").write_text("\n".join([f"{header},value,status", *told]))
    assert campaign.record(tmp_path / "back.csv").measured == 99
    history = campaign.history()
    assert [design.values for design in history.designs] == [() if i == 7 else (i / 7,) for i in range(100)]
    assert history.designs[7].failure == "no reason given"
    assert [(d.design, d.mean, d.std, d.reason, d.well) for d in history.designs] == [
        (d.design, d.mean, d.std, d.reason, d.well) for d in designs
    ]


def test_wells_go_row_by_row_to_further_plates() -> None:
    assert wells(96)[:2] + wells(96)[11:13] + wells(96)[-1:] == ["A1", "A2", "A12", "B1", "H12"]
    assert wells(97)[-2:] == ["P1-H12", "P2-A1"]
    assert len(set(wells(500))) == 500


def test_a_plate_is_never_written_over_a_file(tmp_path: Path) -> None:
    campaign = begin(str(tmp_path / "lab"))
    path = tmp_path / "plate.csv"
    check_plate(path)
    assert not path.exists()
    write_plate(path, campaign.propose(proposer=letters))
    before = path.read_text()
    with pytest.raises(ConfigError, match="may hold results"):
        write_plate(path, campaign.propose(proposer=letters))
    assert path.read_text() == before
    with pytest.raises(ConfigError, match=r"\.csv"):
        check_plate(tmp_path / "plate.xlsx")


def test_the_same_seed_gives_the_same_campaign_and_each_round_its_own_draws(tmp_path: Path) -> None:
    draws: list[tuple[int, ...]] = []

    def noting(history: History, n: int, rng: torch.Generator) -> Proposal:
        draws.append(tuple(torch.randint(10**9, (3,), generator=rng).tolist()))
        return letters(history, n, rng)

    told = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        campaign = begin(str(tmp_path / name), seed=seed)
        for _ in range(2):
            campaign.propose(proposer=noting)
        told.append(timeless(campaign.history()))
    assert told[0] == told[1]
    assert draws[:2] == draws[2:4]
    assert len(set(draws)) == 4, "two rounds, or two seeds, share their draws"


def test_a_proposal_that_failed_repeats_itself(tmp_path: Path) -> None:
    campaign, plain = begin(str(tmp_path / "a")), begin(str(tmp_path / "b"))

    def dies(history: History, n: int, rng: torch.Generator) -> Proposal:
        letters(history, n, rng)
        raise MemoryError

    with pytest.raises(MemoryError):
        campaign.propose(proposer=dies)
    assert campaign.history().rounds == ()
    assert [d.design for d in campaign.propose(proposer=letters)] == [d.design for d in plain.propose(proposer=letters)]


def fixed(*candidates: Candidate) -> Proposer:
    return lambda history, n, rng: Proposal(list(candidates), "fixed")


@pytest.mark.parametrize(
    ("candidates", "said"),
    [
        ([], "0 designs"),
        ([Candidate(f"A{i}") for i in range(5)], "5 designs"),
        ([Candidate("A"), Candidate("A")], "twice"),
        ([Candidate("KNOWN")], "'KNOWN', which was proposed before"),
        ([Candidate("")], "empty"),
        ([Candidate("A\nB")], "several lines"),
        ([Candidate(" A")], "spaces"),
        ([Candidate("A", mean=float("nan"))], "no number"),
        ([Candidate("A", mean=0.0, std=-1.0)], "no number"),
    ],
)
def test_a_strategy_that_breaks_its_contract_writes_nothing(tmp_path: Path, candidates: list, said: str) -> None:
    campaign = begin(str(tmp_path))
    campaign.propose(1, proposer=fixed(Candidate("KNOWN")))
    before = rows(campaign)
    with pytest.raises(StateError, match=said):
        campaign.propose(4, proposer=fixed(*candidates))
    assert rows(campaign) == before
    assert len(campaign.propose(4, proposer=fixed(Candidate("A", 0.0, 0.0)))) == 1, "fewer than asked for are fine"


def test_of_two_that_propose_at_once_one_is_refused_and_pays_nothing(place: str) -> None:
    campaign = begin(place, budget=8)

    def overtaken(history: History, n: int, rng: torch.Generator) -> Proposal:
        Campaign.open(place).propose(proposer=letters)
        return letters(history, n, rng)

    with pytest.raises(StateError, match="another process"):
        campaign.propose(proposer=overtaken)
    assert campaign.status().spent == 4
    check_laws(campaign)


def test_results_can_be_recorded_while_a_proposal_is_computed(place: str) -> None:
    campaign = begin(place)
    campaign.propose(proposer=letters)

    def busy(history: History, n: int, rng: torch.Generator) -> Proposal:
        Campaign.open(place).record([{"id": "d00001", "value": 1.0}])
        return letters(history, n, rng)

    campaign.propose(proposer=busy)
    assert (campaign.status().measured, campaign.status().pending) == (1, 7)


def test_the_budget_holds_when_it_shrinks_while_a_proposal_is_computed(place: str) -> None:
    """A withdrawn design is measured after all, and takes the room that the proposal counted on."""
    campaign = begin(place, budget=8)
    campaign.propose(4, proposer=letters)
    campaign.withdraw(["d00001"], "lost")

    def slow(history: History, n: int, rng: torch.Generator) -> Proposal:
        Campaign.open(place).record([{"id": "d00001", "value": 1.0}])
        return letters(history, n, rng)

    with pytest.raises(ConfigError, match="1 to 4 designs"):
        campaign.propose(5, proposer=slow)
    assert campaign.status().spent == 4


def test_many_processes_share_one_campaign(place: str) -> None:
    begin(place, budget=30, batch=3)

    def work(seed: int) -> Callable[[], None]:
        def go() -> None:
            campaign, rng = Campaign.open(place), random.Random(seed)
            while campaign.status().remaining:
                try:
                    for design in campaign.propose(
                        min(rng.randint(1, 3), campaign.status().remaining), proposer=letters
                    ):
                        campaign.record([{"id": design.id, "value": rng.random()}])
                except (StateError, ConfigError):
                    continue

        return go

    children = [fork(work(seed)) for seed in range(3)]
    assert [wait(child) for child in children] == [FINISHED] * 3
    campaign = Campaign.open(place)
    check_laws(campaign)
    assert (campaign.status().measured, campaign.status().remaining) == (30, 0)


def test_withdrawals_are_of_pending_designs_all_or_none(place: str) -> None:
    campaign = begin(place)
    campaign.propose(proposer=letters)
    campaign.record([{"id": "d00001", "value": 1.0}])
    campaign.withdraw(["d00002"], "lost")
    before = rows(campaign)
    with pytest.raises(DataError, match=r"d00001 \(measured\), d00002 \(withdrawn\), d77 \(unknown\)"):
        campaign.withdraw(["d00003", "d00001", "d00002", "d77"], "why not")
    for ids, reason in (([], "none"), (["d00003"], " ")):
        with pytest.raises(DataError):
            campaign.withdraw(ids, reason)
    assert rows(campaign) == before
    assert [design.id for design in campaign.withdraw([" D00003 "], "lost")] == ["d00003"]


def test_one_design_is_withdrawn_by_its_id_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = begin(str(tmp_path / "lab"))
    campaign.propose(proposer=letters)
    assert [design.id for design in campaign.withdraw("d00002", "lost")] == ["d00002"]
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # what people without these checks are told
    for ids, named in ((3, "3"), ([3], "3"), (None, "none"), ("d00009", "d00009")):
        with pytest.raises(DataError, match=rf"expected ids of pending designs; got {named} \(unknown\)"):
            campaign.withdraw(ids, "lost")  # ty: ignore[invalid-argument-type]
    with pytest.raises(DataError, match="expected a reason for the withdrawal; got None; say why"):
        campaign.withdraw("d00003", None)  # ty: ignore[invalid-argument-type]
    assert campaign.status().withdrawn == 1


def test_a_plate_is_of_a_whole_number_of_designs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = begin(str(tmp_path / "lab"))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for none in ("3", True, 1.0, 2.5, [3], 0, -1, 25):
        with pytest.raises(
            ConfigError, match=re.escape(f"expected 1 to 24 designs, what is left of the budget; got {none!r}")
        ):
            campaign.propose(none, proposer=letters)  # ty: ignore[invalid-argument-type]
    assert len(campaign.propose(np.int64(3), proposer=letters)) == 3  # ty: ignore[invalid-argument-type]


def test_an_export_has_every_measurement_and_every_design(tmp_path: Path) -> None:
    campaign = begin(str(tmp_path / "lab"))
    campaign.propose(proposer=letters)
    campaign.record([{"id": "d00001", "replicate": i, "value": 0.1 * i, "unit": "nM"} for i in (1, 2)])
    campaign.record([{"id": "d00001", "value": 0.3}, {"id": "d00002", "status": "failed: no growth"}], correct=True)
    campaign.withdraw(["d00003"], "lost")
    assert campaign.export(tmp_path / "all.csv") == 6
    import csv

    with (tmp_path / "all.csv").open() as file:
        told = [(row["id"], row["state"], row["value"], row["failure"], row["current"]) for row in csv.DictReader(file)]
    assert told == [
        ("d00001", "measured", "0.1", "", "0"),
        ("d00001", "measured", "0.2", "", "1"),
        ("d00001", "measured", "0.3", "", "1"),
        ("d00002", "failed", "", "no growth", "1"),
        ("d00003", "withdrawn", "", "lost", ""),
        ("d00004", "pending", "", "", ""),
    ]


@pytest.mark.parametrize("wrong", [{"name": "a/b"}, {"name": ".."}, {"name": ""}, {"batch": 0}, {"budget": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        CampaignSettings(**{"name": "a", "task": "t", **wrong})


def test_ids_are_texts_to_every_spreadsheet() -> None:
    assert [histories.design_id(number) for number in (1, 12345, 123456)] == ["d00001", "d12345", "d123456"]


class Uniform(torch.nn.Module):
    def forward(self, x_t: torch.Tensor, t: torch.Tensor, cond: object = None) -> torch.Tensor:
        return torch.zeros(*x_t.shape, 4)


def test_random_draws_what_p_pre_has_left_and_stays_short_when_there_is_no_more(tmp_path: Path) -> None:
    policy = Policy(Uniform(), Masked(4), TokenCodec("ACGT", 2), (2,), steps=2)
    proposer = strategy("random")(policy, tmp_path)
    assert isinstance(proposer, RandomPicks)
    assert isinstance(proposer, Proposer)
    campaign = begin(str(tmp_path), budget=40, batch=10)
    assert [len(campaign.propose(proposer=proposer)) for _ in range(2)] == [10, 6]
    assert len(campaign.history().known) == 16
    with pytest.raises(StateError, match="expected new designs"):
        campaign.propose(proposer=proposer)


def test_unknown_strategies_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'random'"):
        strategy("randon")
    assert "random" in STRATEGIES


def test_a_campaign_without_models_asks_for_a_proposer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a proposer"):
        begin(str(tmp_path)).propose()


def test_kept_folders_are_named_by_their_content_and_never_change(tmp_path: Path) -> None:
    def save(text: str) -> Callable[[Path], None]:
        return lambda folder: [(folder / "a").write_text(text), (folder / "b").write_text("b")][0] and None

    names = [keep(tmp_path / "models", "round-1", save(text)) for text in ("one", "one", "two")]
    assert names[0] == names[1] != names[2]
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == sorted(set(names))
    assert (tmp_path / "models" / names[0] / "a").read_text() == "one"

    def fails(folder: Path) -> None:
        (folder / "a").write_text("part")
        raise OSError(28, "No space left on device")

    with pytest.raises(StateError, match="No space left"):
        keep(tmp_path / "models", "round-2", fails)
    assert len(list((tmp_path / "models").iterdir())) == 2


@given(st.floats(-1e300, 1e300))
@hypothesis.settings(max_examples=200)
def test_a_plate_has_four_digits_of_a_prediction(number: float) -> None:
    design = Design(1, "ACGT", 1, "m", "A1", number, abs(number), "drawn")
    mean, std = plate_text([design]).splitlines()[1].split(",")[4:6]
    assert float(mean) == pytest.approx(number, rel=5.01e-4, abs=1e-320)
    assert float(std) == abs(float(mean))
    digits = mean.lower().partition("e")[0].replace(".", "").lstrip("-0").rstrip("0")
    assert len(digits) <= 4


def test_a_plate_that_is_written_again_leaves_withdrawn_designs_out(tmp_path: Path) -> None:
    """Not those that were measured after all, nor any of another round; wells stay."""
    campaign = begin(str(tmp_path / "lab"))
    first = campaign.propose(proposer=letters)
    campaign.propose(proposer=letters)
    assert plate_again(campaign.history(), 1) == (first, 0)
    campaign.withdraw(["d00002", "d00003", "d00006"], "lost")
    campaign.record([{"id": "d00003", "value": 0.5}, {"id": "d00004", "status": "failed: dry"}])
    designs, withdrawn = plate_again(campaign.history(), 1)
    assert ([(design.id, design.well) for design in designs], withdrawn) == (
        [("d00001", "A1"), ("d00003", "A3"), ("d00004", "A4")], 1,
    )  # fmt: skip
    campaign.withdraw(["d00005", "d00007", "d00008"], "lost")
    with pytest.raises(ConfigError, match="got 2, whose 4 were all withdrawn"):
        plate_again(campaign.history(), 2)
    for none in (0, 3):
        with pytest.raises(ConfigError, match=f"from 1 to 2; got {none}"):
            plate_again(campaign.history(), none)


def test_the_text_of_a_plate_leaves_out_what_is_not_predicted() -> None:
    design = Design(1, "ACGT", 1, "m", "A1", None, None, "drawn")
    assert plate_text([design]).splitlines()[1] == "d00001,ACGT,1,A1,,,drawn"
    assert plate_text([dataclasses.replace(design, mean=0.1, std=1 / 3)]).splitlines()[1].split(",")[4:6] == [
        "0.1", "0.3333",
    ]  # fmt: skip
