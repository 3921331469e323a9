"""The page of one campaign: its history to a single HTML file, which changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from difftilt.campaigns.history import MEASURED, PENDING, Design, History, Measurement
from difftilt.data.files import replacing

from . import campaign_figures as figures
from .campaign_lessons import learned, pair
from .campaign_rounds import RoundView, digits, failures, views
from .campaign_words import Words, counted
from .page import render
from .tables import flat

TOP = 25
"""Designs in the table of the best."""
DROPPED = {"constraints": "broke a constraint", "avoided": "to be avoided", "known": "proposed before"}
"""Reasons for which a strategy's draws were not proposed."""


class Correction(NamedTuple):
    """A result that took another's place."""

    design: Design
    old: Measurement
    new: Measurement


def write_campaign_report(history: History, path: Path) -> Path:
    """Write the page of a campaign.

    Args:
        history: of the campaign, at any moment of it.
        path: replaced once the new one is whole.

    Raises:
        ConfigError: it cannot be written.
    """
    text = campaign_page(history)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def campaign_page(history: History) -> str:
    """The page as HTML; the same history gives the same text."""
    rounds = views(history)
    words = Words(history, rounds, digits(history))
    pending = history.in_state(PENDING)
    best = None if history.best is None else history.best.value
    unit = f", {history.unit}" if history.unit else ""
    return render(
        "campaign.html.j2",
        title=words.title(),
        history=history,
        settings=history.settings,
        words=words,
        rounds=rounds,
        changed=_changed(history),
        values=figures.values(rounds, words, unit),
        panels=[(view, learned(view, rounds, words), figures.scatter(rounds, view, words, unit)) for view in rounds],
        logos=figures.logos(rounds),
        curves=figures.curves(rounds),
        predicted=any(view.agreement.pairs for view in rounds),
        pending=pending,
        plate=figures.plate(pending, best, words, unit),
        top=sorted(history.in_state(MEASURED), key=lambda design: -(design.value or 0.0))[:TOP],
        failures=failures(history.designs).most_common(),
        withdrawn=[design for design in history.designs if design.withdrawn is not None],
        corrections=corrections(history),
        spent=_spent(history, rounds),
        budget=figures.budget(history),
        tables=_settings(history),
        counted=counted,
        pair=pair,
    )


def corrections(history: History) -> list[Correction]:
    """Every correction, in the order of recording."""
    found = []
    for design in history.designs:
        rows = {row.id: row for row in design.every}
        found += [Correction(design, rows[row.corrects], row) for row in design.every if row.corrects is not None]
    return sorted(found, key=lambda correction: correction.new.id)


def _changed(history: History) -> str | None:
    """When something was last added."""
    times = [entry.created for entry in (*history.rounds, *history.imports)]
    times += [row.created for design in history.designs for row in design.every]
    times += [design.withdrawn[1] for design in history.designs if design.withdrawn is not None]
    return max(times).replace("T", " ")[:16] if times else None


def _spent(history: History, rounds: Sequence[RoundView]) -> dict[str, Any]:
    """What was paid, and what was free."""

    def total(name: str) -> float | None:
        known = [value for view in rounds if (value := view.fact(name)) is not None]
        return sum(known) if known else None

    seconds = [view.seconds for view in rounds if view.seconds is not None]
    return {
        "measurements": sum(len(design.every) for design in history.designs),
        "files": len(history.imports),
        "surrogate_calls": total("surrogate_calls"),
        "drawn": total("drawn"),
        "dropped": [(text, total(f"dropped_{reason}")) for reason, text in DROPPED.items()],
        "seconds": sum(seconds) if seconds else None,
    }


def _settings(history: History) -> list[tuple[str, list[tuple[str, str]]]]:
    """The settings, in tables."""
    kept = {
        name: value for name, value in dataclasses.asdict(history.settings).items() if value not in (None, (), [], "")
    }
    nested = {name: value for name, value in kept.items() if isinstance(value, dict)}
    loose = {name: value for name, value in kept.items() if name not in nested}
    tables = [("campaign", flat(loose))]
    for name, value in nested.items():
        rows = flat({key: entry for key, entry in value.items() if entry not in (None, (), [])})
        tables += [(name, rows)] if rows else []
    return tables
