"""``difftilt campaign``: lab in the loop, from the first plate to the last result."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from difftilt.campaigns.campaign import Campaign
from difftilt.campaigns.history import PENDING, CampaignSettings
from difftilt.campaigns.plate import check_plate, plate_again, plate_text, write_plate
from difftilt.campaigns.results import ResultsError
from difftilt.campaigns.settings import Constraints, Picking, Tuning
from difftilt.cli import flags
from difftilt.cli.campaign_place import ROOT, Name, check_url, find
from difftilt.cli.campaign_report import SUMMARY as REPORT
from difftilt.cli.campaign_report import report
from difftilt.cli.campaign_simulate import SUMMARY, simulate
from difftilt.cli.campaign_told import event_lines, propose_aloud, short_plate, status_lines
from difftilt.cli.progress import say
from difftilt.errors import ConfigError, DataError, StateError, nearest


def command(argv: Sequence[str]) -> None:
    """Run ``difftilt campaign``."""
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("-h", "--help", "help"):
        lines = [f"  {action:<10} {summary}" for action, (_, summary) in ACTIONS.items()]
        print("\n".join(["usage: difftilt campaign ACTION NAME ...", "", "Lab in the loop.", "", *lines]))
        return
    if name not in ACTIONS:
        raise nearest(name, [*ACTIONS, "--help"], what="action of `difftilt campaign`")
    ACTIONS[name][0](rest)


@dataclass(frozen=True, kw_only=True)
class NewFlags:
    """Flags of `difftilt campaign new`."""

    name: Name
    """How it is called from now on; its folder is campaigns/NAME."""
    task: str = ""
    """Required. What designs are: a task of `difftilt list`, a model folder or a Hub repository."""
    strategy: str = "random"
    """Who proposes, a strategy of `difftilt list`; docs/strategies.md compares them."""
    batch: int = 96
    """Designs of a plate."""
    budget: int = 480
    """Designs that can be paid for."""
    unit: str | None = None
    """Unit of the values; that of the first results when not set."""
    seed: int = 0
    """Of every proposal, with the number of its round."""
    tuning: tyro.conf.UseAppendAction[Tuning] = field(default_factory=Tuning)
    picking: tyro.conf.UseAppendAction[Picking] = field(default_factory=Picking)
    constraints: tyro.conf.UseAppendAction[Constraints] = field(default_factory=Constraints)
    url: str | None = None
    """Data base of one's own in place of a file in the folder, e.g. postgresql://HOST/NAME."""


def new(argv: Sequence[str]) -> None:
    """Run ``difftilt campaign new``."""
    asked = _parse(NewFlags, argv, "new")
    if asked.url is not None:
        check_url(asked.url)
    if not asked.task:
        raise ConfigError("expected --task; got none; for example `--task utr-mrl`, see `difftilt list`")
    wanted = {field.name: getattr(asked, field.name) for field in dataclasses.fields(CampaignSettings)}
    settings = CampaignSettings(**wanted)
    place = ROOT / asked.name if asked.url is None else asked.url

    from difftilt import lab

    lab.Campaign.create(place, settings)
    say(f"{asked.name}: {asked.budget} designs of {asked.task} by {asked.strategy}, {asked.batch} a plate")


@dataclass(frozen=True, kw_only=True)
class ProposeFlags:
    """Flags of `difftilt campaign propose`."""

    name: Name
    """The campaign: its name, folder or URL."""
    number: Annotated[int | None, flags.short("-n")] = None
    """How many designs; a batch, or what the budget has left, when not set."""
    output: Annotated[Path | None, flags.short("-o")] = None
    """Plate to write, a new file ending in .csv; on standard output when not set."""
    more: bool = False
    """Another plate, although nothing of the last one was measured yet."""
    round: int | None = None
    """Propose nothing: write the plate of this round again."""


def propose(argv: Sequence[str]) -> None:
    """Run ``difftilt campaign propose``."""
    asked = _parse(ProposeFlags, argv, "propose")
    if asked.round is not None and (asked.number is not None or asked.more):
        raise ConfigError("expected --round alone; got -n or --more too; it writes a plate again and proposes nothing")
    if asked.output is not None:
        check_plate(asked.output)
    place = find(asked.name)
    history = Campaign.open(place).history()
    wanted = min(history.settings.batch, history.remaining) if asked.number is None else asked.number
    if asked.round is not None:
        designs, withdrawn = plate_again(history, asked.round)
        if withdrawn:
            print(f"difftilt: round {asked.round}: {withdrawn} withdrawn left out", file=sys.stderr)
    else:
        last = [design.state for design in history.designs if design.round == len(history.rounds)]
        if PENDING in last and not {"measured", "failed"} & set(last) and not asked.more:
            raise StateError(
                f"expected results of round {len(history.rounds)}; got none of its {last.count(PENDING)} pending "
                f"designs; record them, write its plate again with --round {len(history.rounds)}, or add --more for "
                "another plate"
            )
        designs = propose_aloud(place, asked.number, aloud=asked.output is not None)
        if len(designs) < wanted:
            print(short_plate(len(designs), wanted, history.settings.strategy), file=sys.stderr)
    if asked.output is None:
        print(plate_text(designs), end="")
        return
    write_plate(asked.output, designs)
    left = Campaign.open(place).status()
    say(
        f"round {designs[0].round}: {len(designs)} designs in {asked.output}; "
        f"{left.remaining} of {left.settings.budget} left"
    )


@dataclass(frozen=True, kw_only=True)
class RecordFlags:
    """Flags of `difftilt campaign record`."""

    name: Name
    """The campaign: its name, folder or URL."""
    file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE")]]
    """Results: CSV or .xlsx with id or sequence, value, and if need be status, reason, replicate, unit."""
    correct: bool = False
    """Let the file correct results that are on record; both are kept."""


def record(argv: Sequence[str]) -> None:
    """Run ``difftilt campaign record``."""
    asked = _parse(RecordFlags, argv, "record")
    try:
        added = Campaign.open(find(asked.name)).record(asked.file, correct=asked.correct)
    except ResultsError as error:
        print("\n".join(f"difftilt: {line}" for line in error.lines), file=sys.stderr)
        raise DataError(error.summary) from None
    say(
        f"{added.name}: {added.measured} measured, {added.failed} failed, {added.corrected} corrected; "
        f"{added.known} on record already, {added.pending} pending"
    )


@dataclass(frozen=True, kw_only=True)
class NameFlags:
    """Flags of `difftilt campaign status` and `history`."""

    name: Name
    """The campaign: its name, folder or URL."""


def status(argv: Sequence[str]) -> None:
    """Run ``difftilt campaign status``."""
    print("\n".join(status_lines(Campaign.open(find(_parse(NameFlags, argv, "status").name)).status())))


def history(argv: Sequence[str]) -> None:
    """Run ``difftilt campaign history``."""
    print("\n".join(event_lines(Campaign.open(find(_parse(NameFlags, argv, "history").name)).history())))


@dataclass(frozen=True, kw_only=True)
class ExportFlags:
    """Flags of `difftilt campaign export`."""

    name: Name
    """The campaign: its name, folder or URL."""
    output: Annotated[Path, flags.short("-o")] = Path("all.csv")
    """File ending in .csv or .parquet; replaced when there."""


def export(argv: Sequence[str]) -> None:
    """Run ``difftilt campaign export``."""
    asked = _parse(ExportFlags, argv, "export")
    say(f"{Campaign.open(find(asked.name)).export(asked.output)} rows in {asked.output}")


@dataclass(frozen=True, kw_only=True)
class WithdrawFlags:
    """Flags of `difftilt campaign withdraw`."""

    name: Name
    """The campaign: its name, folder or URL."""
    ids: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="ID")]]
    """Pending designs, as on the plate."""
    reason: str = ""
    """Required. Why they will not be measured."""


def withdraw(argv: Sequence[str]) -> None:
    """Run ``difftilt campaign withdraw``."""
    asked = _parse(WithdrawFlags, argv, "withdraw")
    if not asked.reason.strip():
        raise ConfigError('expected --reason; got none; for example `--reason "no oligo"`')
    campaign = Campaign.open(find(asked.name))
    number, left = len(campaign.withdraw(asked.ids, asked.reason)), campaign.status()
    say(f"{number} withdrawn; {left.remaining} of {left.settings.budget} left")


ACTIONS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "new": (new, "begin a campaign"),
    "propose": (propose, "propose the next plate"),
    "record": (record, "record results: all of a file, or nothing and every faulty line"),
    "status": (status, "show what is spent, pending and best"),
    "history": (history, "show what happened, in order"),
    "export": (export, "write everything known as one table"),
    "report": (report, REPORT),
    "withdraw": (withdraw, "take pending designs back into the budget"),
    "simulate": (simulate, SUMMARY),
}


def _parse(kind: type[flags.T], argv: Sequence[str], action: str) -> flags.T:
    command, summary = f"difftilt campaign {action}", ACTIONS[action][1]
    return flags.parse(kind, argv, command=command, summary=summary[0].upper() + summary[1:] + ".")
