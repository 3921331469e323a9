"""Which figures a campaign's page shows, made from its rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from difftilt.campaigns.history import FAILED, MEASURED, PENDING, Design, History

from . import campaign_charts as drawings
from . import charts
from .campaign_rounds import RoundView, alphabet_of
from .campaign_words import Words, counted
from .charts import Series
from .figures import Figure, Logos
from .logo import axis_top, chance_bits, definitions, logo

LOGO = 5
"""Designs from which a round has a logo: fewer show chance."""


class Curve(NamedTuple):
    """What is drawn over rounds: label, name in the key of each record, and where the axis must reach."""

    label: str
    names: dict[str, str]
    note: str = ""
    include: tuple[float, ...] = (0.0,)
    targets: tuple[float, ...] = ()


CURVES = (
    Curve(
        "KL of the round's policy, nats",
        {"kl_to_pretrained": "to the pretrained policy", "kl_to_last": "to the round before"},
        "How far the policy moved: 0 is not at all.",
    ),
    Curve("Diversity, share of positions", {"diversity": ""}, "In which two designs of a plate differ, on average."),
    Curve(
        "Rank correlation of predictions",
        {"spearman": "of the plate", "held_out": "of rows held out of the fit"},
        "1 is perfect, 0 is chance.",
        (0.0, 1.0),
    ),
    Curve(
        "Share of values within intervals",
        {"within_90": "90 % intervals", "within_50": "50 % intervals"},
        "Dashed: what it should be.",
        (0.0, 1.0),
        (0.5, 0.9),
    ),
    Curve("Failed, share of results", {"failed": ""}),
)


def values(rounds: Sequence[RoundView], words: Words, unit: str) -> Figure | None:
    """Measurements over rounds; ``None`` before the first."""
    drawing = drawings.over_rounds(rounds, label=f"measured value{unit}", text=words.plain)
    if drawing is None:
        return None
    designs = [design for view in rounds for design in view.designs]
    key = []
    if any(design.values for design in designs):
        key += [("a measurement", "reward"), ("best design so far", "line")]
    key += [("failed", "failed")] * any(design.state == FAILED for design in designs)
    key += [("pending", "yardstick")] * any(design.state == PENDING for design in designs)
    note = "Replicates of a design are joined; it counts as their mean." if _replicated(designs) else ""
    return Figure(drawing, note, key)


def _replicated(designs: Sequence[Design]) -> bool:
    return any(len(design.values) > 1 for design in designs)


def scatter(rounds: Sequence[RoundView], view: RoundView, words: Words, unit: str) -> Figure | None:
    """A round's predictions against its measurements; ``None`` without a pair."""
    drawing = drawings.predicted_measured(view, scale=drawings.span_of(rounds), unit=unit, text=words.plain)
    if drawing is None:
        return None
    note = f"{counted(view.agreement.pairs, 'design')}; dashed: as predicted. Across: one std of the prediction"
    return Figure(drawing, note + ("; upwards: replicates." if _replicated(view.measured) else "."))


def logos(rounds: Sequence[RoundView]) -> Logos | None:
    """A logo of each round of enough designs; ``None`` unless designs are letters."""
    designs = [design for view in rounds for design in view.designs]
    letters = alphabet_of(designs)
    known = {view.number: view.designs for view in rounds if len(view.designs) >= LOGO}
    if letters is None or not known:
        return None
    columns = {number: list(zip(*[design.design for design in own], strict=True)) for number, own in known.items()}
    shares = {
        number: [[column.count(letter) / len(column) for letter in letters] for column in positions]
        for number, positions in columns.items()
    }
    top, fewest = axis_top(*shares.values()), min(map(len, known.values()))
    named = [(str(n), logo(table, letters, top_bits=top, label=f"Logo of round {n}")) for n, table in shares.items()]
    return Logos(definitions(letters), named, top, len(letters), chance_bits(len(letters), fewest))


def curves(rounds: Sequence[RoundView]) -> list[Figure]:
    """KL, diversity and the quality of predictions over rounds, each where it is known of two rounds."""
    records: list[dict[str, Any]] = []
    failed = any(view.failures for view in rounds)
    for view in rounds:
        found = view.agreement
        records.append({
            "step": view.number,
            "kl_to_pretrained": view.fact("kl_to_pretrained"),
            "kl_to_last": view.fact("kl_to_last"),
            "diversity": view.diversity,
            "spearman": found.spearman,
            "held_out": view.fact("held_out", "spearman"),
            "within_90": None if found.within_90 is None else found.within_90 / found.pairs,
            "within_50": None if found.within_50 is None else found.within_50 / found.pairs,
            "failed": _failed_share(view) if failed else None,
        })  # fmt: skip
    found = []
    for wanted in CURVES:
        known = [name for name in wanted.names if any(record[name] is not None for record in records)]
        if all(sum(record[name] is not None for record in records) < 2 for name in known):
            continue
        kinds = dict(zip(wanted.names, ("reward", "judge") if len(wanted.names) > 1 else ("plain",), strict=True))
        drawing = charts.curve(
            records,
            [Series(name, kinds[name]) for name in known],
            label=wanted.label,
            include=wanted.include,
            targets=wanted.targets,
            calls=False,
            over="round",
            first=1,
        )
        if drawing is not None:
            key = [(wanted.names[name], kinds[name]) for name in known if wanted.names[name]]
            found.append(Figure(drawing, wanted.note, key))
    return found


def _failed_share(view: RoundView) -> float | None:
    failed, measured = len(view.in_state(FAILED)), len(view.measured)
    return failed / (failed + measured) if failed + measured else None


def plate(pending: Sequence[Design], best: float | None, words: Words, unit: str) -> list[Figure]:
    """The pending designs: predictions, and wells where all are of one plate."""
    found = []
    drawing = drawings.predictions(pending, best, label=f"predicted value{unit}", text=words.plain)
    if drawing is not None:
        dashed = "" if best is None else " Dashed: the best value so far."
        found.append(Figure(drawing, f"Bars: one std of the prediction.{dashed}"))
    wells = drawings.plate_map(pending) if len({design.round for design in pending}) == 1 else None
    if wells is not None:
        higher = "; the fuller, the higher the prediction" if drawing is not None else ""
        found.append(Figure(wells, f"Filled: wells of pending designs{higher}."))
    return found


def budget(history: History) -> Figure:
    """What the budget went to."""
    counts = history.counts
    parts = [
        ("measured", counts[MEASURED], "reward"),
        ("failed", counts[FAILED], "failed"),
        ("pending", counts[PENDING], "pending"),
        ("left", max(0, history.remaining), "left"),
    ]
    key = [(f"{number:,} {name}", f"part {kind}") for name, number, kind in parts if number]
    return Figure(drawings.budget_bar(parts, budget=history.settings.budget), "", key)
