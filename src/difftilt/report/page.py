"""The page of one run: facts to a single HTML file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from difftilt.data.files import replacing
from difftilt.tracking.run import RunFolder

from . import citations, figures, objectives, rounding, sentences, tables
from .facts import RunFacts, read_run
from .rounding import Estimate, duration, fixed, given, share, significant

EMBED = 8_000_000
"""Bytes of ``samples.csv`` up to which the page carries it; some browsers refuse longer links."""


def write_report(run: RunFolder) -> Path:
    """Write ``report.html`` of a run from the files in its folder, finished or not.

    Raises:
        StateError: the folder holds no run.
        ConfigError: the page cannot be written.
    """
    text = render("run.html.j2", **context(read_run(run)))
    with replacing(run.report) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return run.report


def render(template: str, **values: Any) -> str:
    """A page of the package from its template; every value is escaped."""
    return environment().get_template(template).render(**values)


@cache
def environment() -> Environment:
    """Jinja with autoescape, and the filters that round."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "exact": exact,
        "interval": interval,
        "share": share,
        "significant": significant,
        "fixed": fixed,
        "given": given,
        "duration": duration,
    }
    return environment


def exact(text: str, value: float | None) -> Markup:
    """Rounded text that carries the unrounded number for machines and for who looks closer."""
    return Markup(text) if value is None else Markup('<data value="{}">{}</data>').format(repr(value), text)


def interval(value: Estimate | None, places: int, signed: bool = False) -> Markup:
    """A mean with its 95 % interval."""
    if value is None:
        return Markup(rounding.MISSING)
    sign = "+" if signed and value.mean > 0 else ""
    mean = exact(sign + fixed(value.mean, places), value.mean)
    if value.low is None or value.high is None:
        return mean
    ends = f"{fixed(value.low, places)} to {fixed(value.high, places)}"
    return mean + Markup(' <span class="interval">{}</span>').format(ends)


def context(facts: RunFacts) -> dict[str, Any]:
    """Everything the template shows."""
    rows = tables.outcomes(facts)
    best, distinct = tables.top_designs(facts)
    moving, constant = figures.health(facts)
    return {
        "facts": facts,
        "task": dict.fromkeys(("summary", "reward_name", "judge_name", "citation", "naturalness"))
        | facts.table("task"),
        "date": facts.table("provenance").get("date"),
        "title": sentences.title(facts),
        "headline": sentences.headline(facts),
        "notices": sentences.notices(facts),
        "places": sentences.score_places(facts),
        "plus_minus": sentences.plus_minus,
        "spent": sentences.spent,
        "kl_note": sentences.kl_note(facts),
        "weights_note": sentences.weights_note(facts),
        "outcomes": rows,
        "dots": figures.outcome_dots(facts, rows),
        "learning": figures.learning(facts),
        "health": moving,
        "constant": constant,
        "checks": tables.gap_checks(facts),
        "log_z": tables.log_z_rows(facts),
        "naturalness": tables.naturalness(facts),
        "logos": figures.logos(facts),
        "drawings": facts.drawings,
        "objectives": objectives.objective_rows(facts),
        "pareto": objectives.pareto(facts),
        "best": best,
        "distinct": distinct,
        "download": _download(facts),
        "settings": tables.settings(facts),
        "provenance": tables.provenance(facts),
        "papers": citations.papers(facts.sampler),
        "bibtex": citations.bibtex(str(facts.table("provenance").get("difftilt") or ""), facts.sampler),
    }


def _download(facts: RunFacts) -> str | None:
    """``samples.csv`` as a link that holds the file itself."""
    text = facts.samples.text
    if not facts.samples.rows or len(text) > EMBED:
        return None
    return "data:text/csv;charset=utf-8," + quote(text, safe=",;:()[]=@+*!-_.")
