"""Which figures a run's page shows, made from its facts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from . import charts
from .charts import Series
from .facts import RunFacts
from .logo import Frequencies, axis_top, chance_bits, definitions, logo
from .rounding import finite, given, significant
from .tables import Outcome

COMMON = {
    "step", "reward", "judge", "kl_nats", "gap_nats", "oracle_calls", "network_evaluations", "seconds", "alpha",
}  # fmt: skip
HEALTH = {
    "clip_fraction": ("share of ratios clipped", "healthy: 0.02 to 0.3; exactly 0 means that clipping never acts"),
    "ratio_first_pass": ("largest |log ratio| at the first pass, nats", "healthy: below 0.0001"),
    "return_std": ("spread of path returns, nats", "falls toward 0 as the optimum is approached"),
    "log_z": ("log Z in use, nats", "rises toward the true one"),
    "tau": ("Gumbel temperature tau, no unit", "the gradient's bias falls with it"),
    "gradient_norm": ("gradient norm before clipping", ""),
    "feasible_fraction": ("share of the batch that has a reward", "healthy: near 1"),
}


class Figure(NamedTuple):
    """A drawing with its caption and the series its key names: label and class."""

    svg: Markup
    caption: str = ""
    key: Sequence[tuple[str, str]] = ()


class Logos(NamedTuple):
    """Sequence logos on one axis: name and pieces of each, and the letters' outlines."""

    outlines: Markup
    named: list[tuple[str, list[Markup]]]
    top_bits: float
    letters: int
    chance: float | None

    @property
    def cut(self) -> bool:
        """Whether some letter is the same in every design and taller than the axis."""
        return any(" cut" in piece for _, pieces in self.named for piece in pieces)

    @property
    def max_bits(self) -> float:
        """Information content of a position that is always one letter."""
        return math.log2(self.letters)


def outcome_dots(facts: RunFacts, rows: Sequence[Outcome]) -> list[Figure]:
    """Reward and judge of each policy: in one drawing where they share a scale, else in two."""
    rows = [row for row in rows if row.label != "Gain"]
    judged = any(row.judge is not None for row in rows)
    labels = [f"{row.label}, {row.note.split(';')[0]}" if row.label.startswith("Best") else row.label for row in rows]
    key = [(f"reward, which {facts.doing} saw", "reward"), ("judge, which it never saw", "judge")]
    whole = [charts.Row(label, (row.reward, row.judge), row.emphasis) for label, row in zip(labels, rows, strict=True)]
    if judged and facts.same_scale:
        drawing = charts.dots(whole, ("reward", "judge"), label=facts.score_name, names=("reward", "judge"))
        return [Figure(drawing, key=key)] if drawing else []
    found = []
    for i, (name, axis) in enumerate((("reward", facts.reward_axis), ("judge", facts.score_name))):
        part = [charts.Row(row.label, (row.values[i],), row.emphasis) for row in whole]
        drawing = charts.dots(part, (name,), label=axis, names=(name,))
        if drawing:
            found.append(Figure(drawing, key=[key[i]]))
    return found


def learning(facts: RunFacts) -> list[Figure]:
    """Reward and judge, KL, gap, and alpha where it moved, over steps."""
    records = facts.metrics
    budget = finite(facts.table("settings").get("kl_budget"))
    reward, judge = Series("reward", "reward"), Series("judge", "judge")
    reward_key, judge_key = ("reward of the training batch", "reward"), ("judge of the same batch", "judge")
    if facts.same_scale:
        judged = any(finite(record.get("judge")) is not None for record in records)
        drawing = charts.curve(records, [reward, judge], label=facts.score_name)
        drawings = [(drawing, "", [reward_key, judge_key] if judged else [reward_key])]
    else:
        drawings = [
            (charts.curve(records, [reward], label=f"Reward, {facts.reward_axis}"), "", [reward_key]),
            (charts.curve(records, [judge], label=f"Judge, {facts.score_name}"), "", [judge_key]),
        ]
    spent = charts.curve(
        records,
        [Series("kl_nats", "plain")],
        label="KL to pretrained, nats",
        include=[0.0],
        targets=[] if budget is None else [budget],
    )
    note = "path KL of the batch" + ("" if budget is None else f"; dashed: the budget of {given(budget)} nats")
    drawings.append((spent, note, []))
    distance = charts.curve(records, [Series("gap_nats", "plain")], label="Gap to the optimum, nats", include=[0.0])
    drawings.append((distance, "estimate from the batch with log Z fixed beforehand; noisy, so it may dip below 0", []))
    if len({finite(r.get("alpha")) for r in records}) > 1:
        alpha = charts.curve(records, [Series("alpha", "plain")], label="alpha, reward units per nat")
        drawings.append((alpha, "adapted until the KL meets its budget", []))
    return [Figure(drawing, note, key) for drawing, note, key in drawings if drawing is not None]


def health(facts: RunFacts) -> tuple[list[Figure], list[str]]:
    """The method's own numbers: a small drawing of each that moved, a sentence for each that did not."""
    figures, constant = [], []
    names = dict.fromkeys(key for record in facts.metrics for key in record if key not in COMMON)
    for name in names:
        values = [v for record in facts.metrics if (v := finite(record.get(name))) is not None]
        label, note = HEALTH.get(name, (name.replace("_", " "), ""))
        if len(set(values)) > 1:
            drawing = charts.curve(facts.metrics, [Series(name, "plain")], label=label, height=160, calls=False)
            figures.append(Figure(drawing or Markup(""), note))
        elif values:
            constant.append(f"{label}: {significant(values[0])} at every step" + (f" ({note})" if note else ""))
    return figures, constant


def logos(facts: RunFacts) -> Logos | None:
    """Logos before and after; ``None`` where the letters' shares are not stored."""
    shares: dict[str, Frequencies] = {}
    for when, name in (("before", "Pretrained"), ("after", facts.done.capitalize())):
        for stored in (facts.get("position_frequencies", when), facts.get(when, "position_frequencies")):
            if _is_table(stored):
                shares[name] = stored
                break
    alphabet = _alphabet(facts)
    if not shares or any(len(row) != len(alphabet) for table in shares.values() for row in table):
        return None
    top = axis_top(*shares.values())
    named = [(name, logo(table, alphabet, top_bits=top, label=f"{name} logo")) for name, table in shares.items()]
    designs = facts.number("designs")
    chance = None if not designs else chance_bits(len(alphabet), designs)
    return Logos(definitions(alphabet), named, top, len(alphabet), chance)


def _alphabet(facts: RunFacts) -> str:
    for stored in (facts.get("position_frequencies", "alphabet"), facts.table("task").get("alphabet")):
        if isinstance(stored, str) and stored:
            return stored
    return "ACGT"


def _is_table(stored: Any) -> bool:
    """Whether this is ``[L][V]`` shares."""
    if not isinstance(stored, list) or not stored:
        return False
    return all(isinstance(row, list) and row and all(finite(v) is not None for v in row) for row in stored)
