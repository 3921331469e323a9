"""``difftilt campaign report``: a campaign as one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from difftilt.campaigns.campaign import Campaign
from difftilt.cli import flags
from difftilt.cli.campaign_place import Name, find
from difftilt.cli.progress import say
from difftilt.errors import ConfigError

SUMMARY = "write a page: what was learned round by round, and the next plate"


@dataclass(frozen=True, kw_only=True)
class ReportFlags:
    """Flags of `difftilt campaign report`."""

    name: Name
    """The campaign: its name, folder or URL."""
    output: Annotated[Path | None, flags.short("-o")] = None
    """File ending in .html, replaced when there; report.html in the campaign's folder when not set."""


def report(argv: Sequence[str]) -> None:
    """Run ``difftilt campaign report``."""
    asked = flags.parse(
        ReportFlags, argv, command="difftilt campaign report", summary=SUMMARY[0].upper() + SUMMARY[1:] + "."
    )
    place, output = find(asked.name), asked.output
    if output is None:
        if isinstance(place, str):
            raise ConfigError(
                "expected -o FILE with the URL of a data base, which has no folder; got none; for example "
                "`-o report.html`"
            )
        output = place / "report.html"
    if output.suffix.lower() != ".html":
        raise ConfigError(f"expected a file ending in .html for a report; got '{output.name}'; rename it")
    history = Campaign.open(place).history()

    from difftilt.report.campaign import write_campaign_report
    from difftilt.report.campaign_words import counted

    say(f"{counted(len(history.rounds), 'round')} in {write_campaign_report(history, output)}")
