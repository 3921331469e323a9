"""``difftilt list`` and ``difftilt data``: what there is, and where."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from difftilt.cli import flags
from difftilt.errors import ConfigError, nearest


@dataclass(frozen=True, kw_only=True)
class ListFlags:
    """`difftilt list` has no flags."""


def list_command(argv: Sequence[str]) -> None:
    """Run ``difftilt list``."""
    flags.parse(ListFlags, argv, command="difftilt list", summary="Show tasks, models, methods and rewards.")

    from difftilt import build
    from difftilt.campaigns.strategies import STRATEGIES
    from difftilt.data import find

    tasks = []
    for entry in build.TASKS.values():
        there = [process for process in entry.priors if build.model_folder(entry, entry.folder(process))]
        shipped = f"models shipped ({', '.join(there)})" if there else "no models: difftilt pretrain"
        data = "data here" if find(entry.data_set) else "no data"
        tasks.append((entry.name, f"{shipped}, {data}", entry.summary))
    _section("tasks", tasks)
    methods = {"algorithms": build.ALGORITHMS, "samplers": build.SAMPLERS, "strategies of campaigns": STRATEGIES}
    for title, kinds in methods.items():
        _section(title, [(name, _first_line(kind)) for name, kind in kinds.items()])
    _section(
        "rewards",
        [
            ("model", "a task's learned reward; its judge, trained on other designs, only evaluates"),
            ("table", "a task's measurements; what was not measured is infeasible"),
            *((name, f"{named.summary} ({', '.join(own)})") for name, (named, own) in _named().items()),
            ("FILE.py:FUNCTION", "your own: a list of designs to as many numbers, None or NaN where infeasible"),
            ("NAME,-0.1*NAME", 'a weighted sum of any of these; bounds on any by --require "NAME>=NUMBER"'),
        ],
    )


def _named() -> dict[str, tuple[Any, list[str]]]:
    """Rewards of tasks by name, each with the tasks that have it."""
    from difftilt import build

    found: dict[str, tuple[Any, list[str]]] = {}
    for entry in build.TASKS.values():
        for name, named in entry.rewards.items():
            found.setdefault(name, (named, []))[1].append(entry.name)
    return found


def _first_line(kind: Any) -> str:
    """First sentence of the module that describes a method."""
    kind = getattr(kind, "func", kind)  # a strategy may be a class with some of its settings
    text = (sys.modules[kind.__module__].__doc__ or "").strip().split("\n\n")[0]
    return " ".join(text.split()).partition(". ")[0].rstrip(".").replace("`", "")


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """Flags of `difftilt data`."""

    words: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="prepare NAME")]] = ()
    """Nothing: show the sets. prepare NAME: download a set from its public origin, tidy it and check it."""


def data_command(argv: Sequence[str]) -> None:
    """Run ``difftilt data``."""
    words = flags.parse(
        DataFlags, argv, command="difftilt data", summary="Show where data sets are, or prepare one."
    ).words

    from difftilt.data import find, image_names, names, prepare, record_of

    every = (*names(), *image_names())
    if not words:
        rows = [
            (name, record_of(name).title, str(find(name) or f"not here; run: difftilt data prepare {name}"))
            for name in every
        ]
        _section("data sets", rows)
        return
    if words[0] != "prepare":
        raise nearest(words[0], ["prepare"], what="action of `difftilt data`")
    if len(words) == 1:
        raise ConfigError(f"expected `difftilt data prepare NAME`; got no NAME; choose one of: {', '.join(every)}")
    for name in words[1:]:
        record_of(name)
    for name in words[1:]:
        print(f"{name}  {prepare(name)}")


def _section(title: str, rows: Iterable[tuple[str, ...]]) -> None:
    """Aligned columns below a title; the last column is never wrapped or cut."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    print(f"{title}:")
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  " + "  ".join([*cells, row[-1]]))
