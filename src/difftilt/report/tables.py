"""The tables of a run's page, as plain records for the template."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from difftilt.metrics.gap import AGREEMENT, ESS_FRACTION, INDEPENDENT_ESS

from .facts import RunFacts
from .rounding import Estimate, decimals, estimate, finite, fixed, share, significant
from .sentences import gain, plus_minus, spent

TOP = 50
METHOD_TABLES = ("settings", "algorithm", "sampler")
WORDS = re.compile(r"kmer(\d+)_distance(_second)?")
"""Keys of distances between word spectra."""
REFERENCES = (("held_out", "held-out designs"), ("in_training", "training designs"))
"""Tables of the task with the same numbers of other designs, and whose they are."""
KNOWN = ("reward", "judge", "position_frequencies")


class Outcome(NamedTuple):
    """A row of the result table."""

    label: str
    note: str
    reward: Estimate | None
    judge: Estimate | None
    kl: str
    emphasis: bool = False


class Check(NamedTuple):
    """One condition of a certified gap."""

    label: str
    value: str
    needed: str
    holds: bool


class Comparison(NamedTuple):
    """A property before and after."""

    label: str
    note: str
    before: Estimate | None
    after: Estimate | None
    shown: tuple[str, str]
    places: int


def outcomes(facts: RunFacts) -> list[Outcome]:
    """Pretrained, tuned or steered, the gain, and best-of-N at equal calls and at equal KL."""
    before = facts.estimate("before", "reward"), facts.estimate("before", "judge")
    after = facts.estimate("after", "reward"), facts.estimate("after", "judge")
    if before[0] is None and after[0] is None:
        return []
    rows = [
        Outcome("Pretrained", "the model as it came", *before, "0"),
        Outcome(f"{facts.done.capitalize()}, {facts.method}", "this run", *after, spent(facts), emphasis=True),
        Outcome("Gain", f"{facts.done} minus pretrained", gain(before[0], after[0]), gain(before[1], after[1]), ""),
    ]
    for key, label in (("equal_calls", "at equal oracle calls"), ("equal_kl", "at equal KL")):
        n, wanted = facts.number("best_of_n", key, "n"), facts.number("best_of_n", key, "wanted")
        if n is None:
            continue
        note = label
        if wanted is not None and n < wanted:
            pool = facts.number("best_of_n", "pool")
            of = "the pool" if pool is None else f"the pool of {pool:,.0f}"
            due = f"{wanted:,.0f}" if wanted < 1e6 else "more than a million"
            note = f"{label}; N = {due} was due, cut by {of}, so the true yardstick is higher"
        rows.append(
            Outcome(
                f"Best of {n:,.0f}",
                note,
                facts.estimate("best_of_n", key, "reward"),
                facts.estimate("best_of_n", key, "judge"),
                f"at most {significant(facts.number('best_of_n', key, 'kl_bound_nats'))}",
            )
        )
    return rows


def gap_checks(facts: RunFacts) -> list[Check]:
    """The conditions under which the gap is certified, each with its number."""
    gap = facts.get("gap")
    if not isinstance(gap, Mapping):
        return []
    own, other = finite(gap.get("log_z_policy")), finite(gap.get("log_z_independent"))
    errors = finite(gap.get("log_z_policy_error")), finite(gap.get("log_z_independent_error"))
    ess, independent = finite(gap.get("ess_fraction")), finite(gap.get("independent_ess"))
    checks = [
        Check(
            "ESS of the policy's path weights",
            share(ess),
            f"at least {share(ESS_FRACTION)}",
            (ess or 0) >= ESS_FRACTION,
        ),
        Check(
            "ESS of the independent estimate",
            significant(independent),
            f"at least {INDEPENDENT_ESS:.0f}",
            (independent or 0) >= INDEPENDENT_ESS,
        ),
    ]
    if own is not None and other is not None:
        known = [error for error in errors if error is not None]
        allowed = AGREEMENT * math.hypot(*known) if len(known) == len(errors) else None
        checks.append(
            Check(
                "difference of the two log Z",
                f"{fixed(abs(own - other))} nats",
                f"at most {AGREEMENT:.0f} s.e. = {'unknown' if allowed is None else fixed(allowed)}",
                allowed is not None and abs(own - other) <= allowed,
            )
        )
    return checks


def log_z_rows(facts: RunFacts) -> list[tuple[str, float | None, str]]:
    """The estimates of log Z that there are, and the one used: label, value and text in nats, with errors if known."""
    rows = [
        ("log Z, the policy's own rollouts", ("gap", "log_z_policy")),
        ("log Z, independent of the policy", ("gap", "log_z_independent")),
        ("log Z used (the larger)", ("gap", "log_z")),
        ("log Z, by the sampler's weights", ("log_z", "sampler")),
        ("log Z, independent of the sampler", ("log_z", "independent")),
    ]
    found = []
    for label, path in rows:
        value, error = facts.number(*path), facts.number(path[0], f"{path[1]}_error")
        text = fixed(value) if error is None else plus_minus(value, error)
        if error is None and f"{path[1]}_error" in (facts.get(path[0]) or {}):
            text += "\u00a0± unknown"
        if facts.sampler is None or value is not None:
            found.append((label, value, text))
    return found


def naturalness(facts: RunFacts) -> list[Comparison]:
    """How the designs look before and after: known properties first, then whatever else the domain stored."""
    three = partial(fixed, places=3)
    named: list[tuple[str, str, str, Callable[[float | None], str]]] = [
        ("unique_fraction", "Distinct designs", "share of all designs", share),
        ("distinct_drawn", "Distinct before weighting", "share of the designs as drawn, each once", share),
        ("diversity", "Diversity", "letters in which two designs differ, share of positions", significant),
        ("novelty", "Novelty", "letters to the nearest training sequence, mean", significant),
        ("pretrained_log_likelihood", "Pretrained log-likelihood", "lower bound, nats per design, mean", significant),
        ("valid_fraction", "Valid", "share that is one sound molecule, without repair", share),
        ("novel_fraction", "New", "share that the training designs do not hold", share),
        ("internal_diversity", "Diversity", "1 minus the mean similarity of two designs", significant),
        ("scaffold_diversity", "Scaffolds", "different ones per design", significant),
        (
            "radical_fraction",
            "Radicals",
            "share of the valid with an unpaired electron",
            share,
        ),
        ("large_ring_fraction", "Large rings", "share of the valid with a ring of more than 7 atoms", share),
        ("nearest_similarity", "Likeness to training designs", "similarity to the nearest, mean", significant),
        ("without_near_duplicates", "Distinct, near copies as one", "share of all designs", share),
        ("pixel_diversity", "Diversity", "distance of two images, of pixels from 0 to 1", significant),
        ("training_distance", "Novelty", "distance to the nearest training image, mean", significant),
        ("near_training_fraction", "Copies", "share that nearly is a training image", share),
        ("kmer_correlation", "k-mer correlation", "with the training data; 1 = words used equally often", three),
        ("feasible_fraction", "Feasible designs", "share that has a reward", share),
    ]
    keys = {key for key, *_ in named} | set(KNOWN)
    stored = [table for when in ("before", "after") if isinstance(table := facts.get(when), Mapping)]
    rest = [key for table in stored for key in table if key not in keys]
    named += [(key, *_named(key, facts), three if WORDS.fullmatch(key) else significant) for key in dict.fromkeys(rest)]
    references = [(facts.table("task").get(name), what) for name, what in REFERENCES]
    rows = []
    for key, label, note, text in named:
        for table, what in references:
            if isinstance(table, Mapping) and (value := finite(table.get(key))) is not None:
                note = "; ".join(filter(None, [note, f"{what} {text(value)}"]))
        before, after = (estimate(facts.get(when, key)) for when in ("before", "after"))
        if before is not None or after is not None:
            halves = [value.half_width for value in (before, after) if value is not None]
            places = decimals(halves)
            if any(halves):
                text = partial(fixed, places=places)
            shown = tuple(text(None if value is None else value.mean) for value in (before, after))
            rows.append(Comparison(label, note, before, after, (shown[0], shown[1]), places))
    return rows


def _named(key: str, facts: RunFacts) -> tuple[str, str]:
    """Label and note of a number that a domain stored."""
    task, words = facts.table("task"), WORDS.fullmatch(key)
    if words is not None:
        of = f"of {task.get('second_reference') or 'a second reference'}" if words[2] else "of the training data"
        return f"{words[1]}-letter words", f"Jensen-Shannon distance to those {of}, 0 to 1"
    if key.startswith("sites_"):
        motif = key.removeprefix("sites_")
        known = task.get("motifs")
        binds = str(known.get(motif) or "") if isinstance(known, Mapping) else ""
        return f"Sites {motif}", "; ".join(filter(None, [binds, "mean number in a design"]))
    return key.replace("_", " "), ""


def top_designs(facts: RunFacts) -> tuple[list[dict[str, Any]], int]:
    """The best distinct feasible designs by reward, with how often each occurs, and the number of distinct ones."""
    distinct: dict[str, dict[str, Any]] = {}
    for row in facts.samples.rows:
        entry = distinct.setdefault(row["design"], {**row, "copies": 0})
        entry["copies"] += 1
    feasible = [row for row in distinct.values() if row.get("reward") is not None]
    return sorted(feasible, key=lambda row: -row["reward"])[:TOP], len(distinct)


def settings(facts: RunFacts) -> list[tuple[str, list[tuple[str, str]]]]:
    """Every table of ``config.toml`` but task and provenance, flattened."""
    tables = {name: flat(value) for name, value in facts.config.items() if isinstance(value, Mapping)}
    loose = [(key, _setting(value)) for key, value in facts.config.items() if not isinstance(value, Mapping)]
    ordered = sorted(
        tables, key=lambda name: METHOD_TABLES.index(name) if name in METHOD_TABLES else len(METHOD_TABLES)
    )
    found = [(name, tables[name]) for name in ordered if name not in ("task", "provenance")]
    return [*found, *([("other", loose)] if loose else [])]


def provenance(facts: RunFacts) -> list[tuple[str, str]]:
    """What made the run."""
    return flat(facts.table("provenance"))


def flat(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A table's names and values; those of tables inside it by dotted names."""
    rows = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append((prefix + str(key), _setting(value)))
    return rows


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_setting(entry) for entry in value)
    return repr(value) if isinstance(value, float) else str(value)
