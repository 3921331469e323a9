"""``kill -9`` at any write and at any moment: what was not committed never was, and the campaign goes on as if uncut.

The strategy keeps its model in a folder beside the data base, as the real ones do.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from campaign_parts import FINISHED, begin, check_laws, killed_at_random, killed_at_write, letters, results, timeless
from difftilt.campaigns import store as stores
from difftilt.campaigns.campaign import Campaign
from difftilt.campaigns.history import CampaignSettings, History
from difftilt.campaigns.keeping import keep
from difftilt.campaigns.plate import write_plate
from difftilt.campaigns.proposer import Proposal
from difftilt.errors import StateError

KILLED = -signal.SIGKILL
Step = Callable[[str, Path], object]


def keeping(folder: Path) -> Callable[..., Proposal]:
    """The strategy of these tests."""

    def propose(history: History, n: int, rng: torch.Generator) -> Proposal:
        proposal = letters(history, n, rng)
        text = "\n".join(candidate.design for candidate in proposal.candidates)
        name = keep(
            folder / "models", f"round-{history.next_round}", lambda into: (into / "model").write_text(text) and None
        )
        return Proposal(proposal.candidates, name, proposal.facts)

    return propose


def propose_round(number: int) -> Step:
    """What a person does: propose round ``number`` unless it is there, then write its plate unless that is there."""

    def step(place: str, folder: Path) -> None:
        campaign = Campaign.open(place)
        if len(campaign.history().rounds) < number:
            campaign.propose(proposer=keeping(folder))
        if not (folder / f"plate-{number}.csv").exists():
            write_plate(
                folder / f"plate-{number}.csv",
                [design for design in campaign.history().designs if design.round == number],
            )

    return step


def record(name: str, told: dict[str, object], *, correct: bool = False) -> Step:
    return lambda place, folder: Campaign.open(place).record(results(folder / name, told), correct=correct)


def withdraw(name: str) -> Step:
    def step(place: str, folder: Path) -> None:
        campaign = Campaign.open(place)
        if name in [design.id for design in campaign.history().in_state("pending")]:
            campaign.withdraw([name], "no oligo")

    return step


def create(place: str, folder: Path) -> None:
    try:
        begin(place, budget=12)
    except StateError:
        Campaign.open(place)


STEPS: list[Step] = [
    propose_round(1),
    record("r1.csv", {"d00001": 0.5, "d00002": "failed: no expression", "d00003": 0.1}),
    withdraw("d00004"),
    record("c1.csv", {"d00003": 0.2}, correct=True),
    propose_round(2),
    record("r2.csv", {"d00005": 0.7, "d00006": 0.9, "d00007": 0.3, "d00008": "failed"}),
    propose_round(3),
    propose_round(4),
]
"""A campaign that spends its budget: 4 + 4 + 4, one given back and spent again."""


def uncut(place: str, folder: Path, steps: list[Step]) -> list[tuple[object, ...]]:
    """The history before the first step and after each of them, nobody being killed."""
    campaign = begin(place, budget=12)
    told = [timeless(campaign.history())]
    for step in steps:
        step(place, folder)
        told.append(timeless(campaign.history()))
    return told


def check_files(campaign: Campaign, folder: Path) -> None:
    """Every model that a round names is whole, and so is every plate."""
    history = campaign.history()
    for entry in history.rounds:
        designs = [design.design for design in history.designs if design.round == entry.number]
        assert (folder / "models" / entry.model / "model").read_text().split("\n") == designs
    for plate in folder.glob("plate-*.csv"):
        number = int(plate.stem.removeprefix("plate-"))
        _, *lines = plate.read_text().splitlines()
        assert [line.split(",")[1] for line in lines] == [d.design for d in history.designs if d.round == number]


def cut(
    place: str, folder: Path, steps: list[Step], told: list[tuple[object, ...]], kill: Callable[..., int], *, kills: int
) -> int:
    """Kill each step ``kills`` times at most, look at what is left each time, then let it finish; kills that hit."""
    campaign, hits = begin(place, budget=12), 0
    for i, step in enumerate(steps):
        number, code, written = 1, KILLED, False
        while number <= kills and code == KILLED:
            code = kill(lambda step=step: step(place, folder), number)
            assert code in (FINISHED, KILLED)
            hits += code == KILLED
            now = timeless(campaign.history())
            assert now in (told[i], told[i + 1]), "half of a step was written"
            check_laws(campaign)
            check_files(campaign, folder)
            number = 1 if now == told[i + 1] and not written else number + 1  # what is left of the step begins anew
            written = now == told[i + 1]
        step(place, folder)
        assert timeless(campaign.history()) == told[i + 1], "the step does not repeat itself"
    assert len(list(folder.glob("plate-*.csv"))) == len(campaign.history().rounds)
    return hits


def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("uncut", "cut"):
        (tmp_path / name).mkdir()
    return tmp_path / "uncut", tmp_path / "cut"


ALL_STEPS = pytest.param(STEPS, marks=pytest.mark.slow, id="all")
FIRST_STEPS = pytest.param(STEPS[:4], id="first")


@pytest.mark.parametrize("steps", [FIRST_STEPS, ALL_STEPS])
def test_killed_at_every_write_the_campaign_goes_on_as_if_uncut(place: str, tmp_path: Path, steps: list[Step]) -> None:
    whole, broken = folders(tmp_path)
    told = uncut(str(tmp_path / "reference"), whole, steps)
    hits = cut(place, broken, steps, told, killed_at_write, kills=1000)
    assert hits > 7 * len(steps)


def test_a_store_without_transactions_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin: each statement is committed by itself, so a kill between two leaves half of a step."""
    whole, broken = folders(tmp_path)
    told = uncut(str(tmp_path / "reference"), whole, STEPS)
    monkeypatch.setattr(stores, "_begin_sqlite", lambda connection: None)
    with pytest.raises(AssertionError, match="half of a step"):
        cut(str(tmp_path / "lab"), broken, STEPS, told, killed_at_write, kills=1000)


def test_a_plate_that_is_written_in_place_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin: a plate written line by line to its own name."""
    whole, broken = folders(tmp_path)
    told = uncut(str(tmp_path / "reference"), whole, STEPS)

    def in_place(path: Path, designs: list) -> None:
        path.write_text("id,sequence\n")
        path.replace(path)  # a step that reaches the disk
        path.write_text("id,sequence\n" + "".join(f"{design.id},{design.design}\n" for design in designs))

    monkeypatch.setitem(propose_round.__globals__, "write_plate", in_place)
    with pytest.raises(AssertionError):
        cut(str(tmp_path / "lab"), broken, STEPS, told, killed_at_write, kills=1000)


@pytest.mark.parametrize(
    ("steps", "kills"), [(STEPS[:4], 3), pytest.param(STEPS, 13, marks=pytest.mark.slow)], ids=["12", "104"]
)
def test_killed_at_random_moments_the_campaign_goes_on_as_if_uncut(
    place: str, tmp_path: Path, steps: list[Step], kills: int
) -> None:
    rng, within = random.Random(kills), 0.05
    whole, broken = folders(tmp_path)
    told = uncut(str(tmp_path / "reference"), whole, steps)

    def kill(action: Callable[[], object], number: int) -> int:
        nonlocal within  # about as long as a step lasts
        while (code := killed_at_random(action, rng, within=within)) == FINISHED:
            within *= 0.8
        within *= 1.1
        return code

    assert cut(place, broken, steps, told, kill, kills=kills) >= kills * len(steps)


def test_killed_while_it_is_made_a_campaign_can_be_made_again(place: str, tmp_path: Path) -> None:
    settings = CampaignSettings(name="lab", task="none", budget=12, batch=4)
    for number in range(1, 1000):
        code = killed_at_write(lambda: create(place, tmp_path), number)
        assert code in (FINISHED, KILLED)
        create(place, tmp_path)
        assert Campaign.open(place).settings == settings
        if code == FINISHED:
            return
    raise AssertionError("it never finished")
