"""A strategy without a model, campaigns to try things on, and processes that die when told."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from sqlalchemy import Engine, event, select
from sqlalchemy.engine.default import DefaultDialect

from difftilt.campaigns.campaign import Campaign
from difftilt.campaigns.history import CampaignSettings, History
from difftilt.campaigns.proposer import Candidate, Proposal
from difftilt.campaigns.schema import METADATA

FINISHED, FAILED = 0, 3


def letters(history: History, n: int, rng: torch.Generator) -> Proposal:
    """Random strings of 12 letters that are new; a prediction and a reason for each."""
    known, picks = set(history.known), []
    while len(picks) < n:
        design = "".join("ACGT"[i] for i in torch.randint(4, (12,), generator=rng).tolist())
        if design not in known:
            known.add(design)
            picks.append(Candidate(design, mean=design.count("G") / 10, std=0.1, reason=f"guess {len(picks) + 1}"))
    return Proposal(picks, f"letters-{history.next_round}", {"drawn": n})


def begin(place: str, *, budget: int = 24, batch: int = 4, **settings: Any) -> Campaign:
    """A new campaign."""
    return Campaign.create(place, CampaignSettings(name="lab", task="none", budget=budget, batch=batch, **settings))


def rows(campaign: Campaign) -> dict[str, set[tuple[Any, ...]]]:
    """Every row of every table."""
    with campaign._store.reading() as connection:
        return {
            name: {tuple(row) for row in connection.execute(select(table))} for name, table in METADATA.tables.items()
        }


def timeless(history: History) -> tuple[Any, ...]:
    """A history without its times: what two runs of the same campaign share."""
    designs = [
        (d.number, d.design, d.round, d.model, d.well, d.mean, d.std, d.reason, d.state, d.withdrawn and d.withdrawn[0])
        for d in history.designs
    ]
    results = [
        (m.id, m.replicate, m.value, m.failure, m.unit, m.file, m.line, m.corrects)
        for d in history.designs
        for m in d.every
    ]
    rounds = [(r.number, r.model, dict(r.facts)) for r in history.rounds]
    return history.settings, designs, results, rounds, [entry.name for entry in history.imports]


def check_laws(campaign: Campaign) -> None:
    """What holds at any moment, whoever was killed."""
    history = campaign.history()
    designs = history.designs
    assert history.spent + history.counts["withdrawn"] == len(designs)
    assert history.spent <= history.settings.budget
    assert len({design.design for design in designs}) == len(designs), "a design was proposed twice"
    assert [design.number for design in designs] == list(range(1, len(designs) + 1))
    assert [entry.number for entry in history.rounds] == list(range(1, len(history.rounds) + 1))
    assert {design.round for design in designs} == {entry.number for entry in history.rounds}, "a round without designs"
    named = {row.file for design in designs for row in design.every}
    assert named == {entry.name for entry in history.imports}, "a file without its rows"


def fork(action: Callable[[], object]) -> int:
    """Start ``action`` in a process of its own; its id."""
    child = os.fork()
    if child == 0:
        code = FAILED
        try:
            action()
            code = FINISHED
        finally:
            os._exit(code)
    return child


def wait(child: int) -> int:
    """The exit status of a process, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at_random(action: Callable[[], object], rng: random.Random, *, within: float) -> int:
    """Kill ``action`` at a random moment of its life; its exit status."""
    child = fork(action)
    time.sleep(rng.uniform(0, within))
    os.kill(child, signal.SIGKILL)
    return wait(child)


def killed_at_write(action: Callable[[], object], number: int) -> int:
    """Kill ``action`` just before its ``number``-th step that could reach the disk; its exit status.

    Steps are: before and after each statement that writes, each commit, and each file or folder that takes its place.
    """
    return wait(fork(lambda: _dying(action, number)))


def _dying(action: Callable[[], object], number: int) -> None:
    left = number

    def step(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def statement(connection: object, cursor: object, text: str, *_: object) -> None:
        if text.lstrip().upper().startswith(("INSERT", "UPDATE", "CREATE")):
            step()

    event.listen(Engine, "before_cursor_execute", statement)
    event.listen(Engine, "after_cursor_execute", statement)
    for owner, name in ((Path, "replace"), (Path, "rename"), (DefaultDialect, "do_commit")):
        _around(owner, name, step)
    action()


def _around(owner: Any, name: str, step: Callable[..., None]) -> None:
    original = getattr(owner, name)

    def stepping(*arguments: Any, **named: Any) -> Any:
        step()
        answer = original(*arguments, **named)
        step()
        return answer

    setattr(owner, name, stepping)


def results(path: Path, lines: Mapping[str, object]) -> Path:
    """A results file: id to value, or to ``failed...``."""
    text = ["id,value,status"]
    for name, result in lines.items():
        text.append(f"{name},,{result}" if isinstance(result, str) else f"{name},{result},")
    path.write_text("\n".join(text) + "\n")
    return path
