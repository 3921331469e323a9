"""What `difftilt campaign propose`, `status` and `history` show."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from difftilt.campaigns.adaptive import Adaptive
from difftilt.campaigns.history import STATES, Design, History
from difftilt.campaigns.strategies import READS
from difftilt.campaigns.summary import Status
from difftilt.cli.progress import Progress


def propose_aloud(place: str | Path, number: int | None, *, aloud: bool) -> list[Design]:
    """Propose a plate, and show how far its tuning is.

    Args:
        place: of the campaign.
        number: designs; a batch when ``None``.
        aloud: whether to show anything; not while standard output is the plate.
    """
    from difftilt import lab

    campaign = lab.Campaign.open(place)
    proposer = campaign.proposer()
    if not aloud or not isinstance(proposer, Adaptive):
        return campaign.propose(number, proposer=proposer)
    with Progress(campaign.settings.tuning.updates) as progress:
        proposer.told = progress
        return campaign.propose(number, proposer=proposer)


def short_plate(number: int, wanted: int, strategy: str) -> str:
    """That a plate has fewer designs than were asked for, and what to do."""
    remedy = "a larger alpha or fewer constraints" if "alpha" in READS[strategy] else "fewer constraints"
    return (
        f"difftilt: expected {wanted} new designs from {strategy}; got {number}, as it hardly makes others; another "
        f"campaign with {remedy} makes more"
    )


DROPPED = {"constraints": "that broke a constraint", "avoided": "to be avoided"}
"""Reasons for which the sampler's designs were not proposed."""


def status_lines(status: Status) -> list[str]:
    """Where a campaign stands."""
    settings = status.settings
    rows = [
        ("campaign", f"{settings.name}: {settings.task} by {settings.strategy}"),
        ("budget", f"{status.spent} of {settings.budget} spent, {status.remaining} left"),
        ("rounds", str(status.rounds)),
        ("designs", ", ".join(f"{getattr(status, state)} {state}" for state in STATES)),
    ]
    if status.best is not None:
        best = status.best
        rows.append(("best", f"{best.value:.4g}  {best.id}  {best.design}"))
    lost = {reason: status.facts.get(f"dropped_{reason}", 0) for reason in DROPPED}
    if any(lost.values()):
        told = ", ".join(f"{number} {DROPPED[reason]}" for reason, number in lost.items() if number)
        rows.append(("dropped", f"of {status.facts['drawn']:,} draws in round {status.rounds}: {told}"))
    return [f"{name:<9} {text}" for name, text in rows]


def event_lines(history: History) -> list[str]:
    """What happened, in order: a line for each proposal, each results file and each day's withdrawals by reason."""
    events: list[tuple[str, str]] = []
    for entry in history.rounds:
        own = [design for design in history.designs if design.round == entry.number]
        states = Counter(design.state for design in own)
        now = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
        events.append((entry.created, f"round {entry.number}: {len(own)} designs proposed by {entry.model} ({now})"))
    rows = [row for design in history.designs for row in design.every]
    for (file, when), number in Counter((row.file, row.created) for row in rows).items():
        own = [row for row in rows if (row.file, row.created) == (file, when)]
        failed = sum(row.value is None for row in own)
        corrected = sum(row.corrects is not None for row in own)
        events.append((when, f"{file}: {number} results, {failed} failed, {corrected} corrections"))
    gone = Counter(design.withdrawn for design in history.designs if design.withdrawn is not None)
    events += [(when, f"{number} withdrawn: {reason}") for (reason, when), number in gone.items()]
    told = sorted(events, key=lambda event: event[0])
    return [f"{when.replace('T', ' ')[:16]}  {what}" for when, what in told] or ["no round was proposed yet"]
