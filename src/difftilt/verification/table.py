"""The truth table as a whole: rows kept in a file as they finish, run side by side, and rendered as Markdown."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from difftilt.errors import StateError
from difftilt.problems.library import entry
from difftilt.tracking.run import provenance
from difftilt.verification.claims import LABELS, PROBLEMS, Pair
from difftilt.verification.exact import approach
from difftilt.verification.rows import NO_DATA, Row, verify

Record = dict[str, Any]
FIELDS = [field.name for field in fields(Row)]


class RowFile:
    """``{"seed": ..., "commit": ..., "rows": [...]}``; each finished row is on disk before the next is waited for.

    Rows that lacked their data are forgotten: these may be there by now.

    Args:
        path: the file; ``None`` keeps rows in memory only.
        seed: of all rows.

    Raises:
        StateError: the file is damaged, or its rows were made with another seed or by another version.
    """

    def __init__(self, path: Path | None, seed: int) -> None:
        self.path, self.head, self.rows = path, {"seed": seed, **provenance()}, []
        if path is None:
            return
        if path.exists():
            self.rows = [row for row in read(path, self.head) if not row["reason"].startswith(NO_DATA)]
        self._write()

    def missing(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Pairs without a row."""
        known = {(row["algorithm"], row["problem"]) for row in self.rows}
        return [pair for pair in pairs if (pair.label, pair.problem) not in known]

    def add(self, row: Record) -> None:
        """One more row."""
        self.rows.append(row)
        self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        try:
            partial = self.path.with_name(f".{self.path.name}.partial")
            partial.write_text(json.dumps({**self.head, "rows": self.rows}, indent=1) + "\n", encoding="utf-8")
            partial.replace(self.path)
        except OSError as error:
            raise StateError(
                f"expected to write '{self.path}'; got '{error.strerror}'; choose another --json"
            ) from error


def read(path: Path, head: Record | None = None) -> list[Record]:
    """Rows of a file.

    Args:
        path: the file.
        head: what stands before the rows, if they are to be added to.

    Raises:
        StateError: missing, damaged, or made otherwise than ``head`` says.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        rows, found = table["rows"], {name: value for name, value in table.items() if name != "rows"}
        if not all(list(row) == FIELDS for row in rows):
            raise ValueError
    except OSError as error:
        raise StateError(f"expected rows in '{path}'; got '{error.strerror}'; name a file that --json made") from error
    except (ValueError, TypeError, KeyError, AttributeError):
        raise StateError(
            f"expected \"rows\" in '{path}'; got a damaged or foreign file; delete it, or choose another"
        ) from None
    for name, value in ({} if head is None else head).items():
        if found.get(name) != value:
            raise StateError(
                f"expected rows of {name} {value} in '{path}', as those to come; got {found.get(name)}; choose another "
                "--json, or delete it"
            )
    return rows


def run(pairs: Sequence[Pair], seed: int, *, jobs: int) -> Iterator[Record]:
    """Rows of ``pairs`` as they finish, ``jobs`` processes of one thread each (none of their own where one will do).

    Stopped early, by Ctrl-C say, it ends those processes at once: rows that they were at are lost.

    Raises:
        StateError: a process was killed.
    """
    if jobs == 1 or len(pairs) < 2:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for pair in pairs:
                yield verify(pair, seed).record()
        finally:
            torch.set_num_threads(threads)
        return
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_settle)
    first = sorted(pairs, key=lambda pair: pair.kind != "factor")  # the longest, so that none is alone at the end
    try:
        for done in as_completed([pool.submit(verify, pair, seed) for pair in first]):
            yield done.result().record()
    except BaseException as stop:
        for child in set(multiprocessing.active_children()) - set(others):
            child.terminate()
        if isinstance(stop, BrokenProcessPool):
            raise StateError(
                "expected every process to end by itself; got one that was killed (memory short?); the same command "
                "goes on from the rows in --json: give it --jobs 1"
            ) from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _settle() -> None:
    """One thread; Ctrl-C is the parent's to answer, and a process without a parent ends."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


COLUMNS = ("algorithm", "problem", "target", "KL, nats", "KL removed", "reward (exact)", "s", "reward calls", "passed")


def cells(row: Record) -> list[str]:
    """A row as text, in the order of :data:`COLUMNS`."""
    kl, removed, reward, exact = (row[name] for name in ("kl_nats", "kl_removed", "mean_reward", "mean_reward_exact"))
    seconds, calls = row["seconds"], row["reward_calls"]
    return [
        row["algorithm"],
        row["problem"],
        row["target"],
        "-" if kl is None else f"{kl:.2g}",
        "-" if removed is None else f"{removed:.1%}",
        "-" if reward is None else f"{reward:.3f} ({exact:.3f})",
        "-" if seconds is None else f"{seconds:.0f}",
        "-" if calls is None else f"{calls:,}",
        {True: "yes", False: "NO", None: "-"}[row["passed"]],
    ]


INTRODUCTION = """# The truth table

Each method is run on problems whose answers are exact, and judged against the law that it claims:

- **p\\* (tilted)**: `p_pre exp(r / alpha) / Z`.
- **p\\* (fixed prior)**: the soft-optimal kernels run from the fixed prior; the same law wherever the initial state
  tells nothing of the design.
- **class optimum**: the best objective among policies with Gaussian steps of fixed variance, or tokens that are
  independent within a step.
- **none**: no law is claimed, and so there is no verdict (`-`; `null` in the file): KL is then told against p\\* (fixed
  prior), and the last column says why nothing is claimed.

A method that is not defined for a problem has no numbers and no verdict either; it is named, with its own words, below
the problem's table.

`KL removed` is the share of the pretrained model's KL to that law that is gone; `reward (exact)` the mean reward
reached, and that of the law; `s` CPU seconds of training or drawing on one core (process time: waiting for a busy
machine is not counted, nor is finding the exact answers). KL of trained methods is exact, but on `simplex`: there it is
told from draws, less the bias of a histogram, and judged by total variation. That of samplers is exact
where their law is known, else estimated without bias from the stated number of draws, with its standard error: it may
then be just below 0. A name with `:variant` is the same method run in another way: `:default` makes its own estimate of
the soft value, where the bare name is given the exact one; `reward_backprop:tau-T` keeps one temperature throughout:
its KL is the bias of the straight-through gradient at that temperature, and its noise, which grows as T falls.
"""
APPROACH = """## From the class optimum to the tilted law

Tuning moves the means of Gaussian steps, and leaves their variances: the best that any method can reach on
`linear-gaussian` is the class optimum (by Riccati recursion), which approaches the tilted law as 1/K. Nothing is
trained or drawn here.
"""


def page(path: Path) -> str:
    """A file as a page of Markdown: one table for each problem, what is not defined there below it.

    Raises:
        StateError: as :func:`read`.
    """
    rows, head = read(path), json.loads(path.read_text(encoding="utf-8"))
    made = ", ".join(f"{name} {head[name]}" for name in ("seed", "commit", "torch") if name in head)
    places = {label: place for place, label in enumerate(LABELS)}
    parts = [INTRODUCTION, f"Made by `difftilt verify` ({made}).\n"]
    for problem in PROBLEMS:
        mine = [row for row in rows if row["problem"] == problem]
        mine.sort(key=lambda row: places.get(row["algorithm"], len(places)))
        if mine:
            parts.append(_section(problem, mine))
    parts.append(APPROACH)
    names = ("K", "log Z - J / alpha, nats", "times K", "error of the covariance", "times K", "KL, nats", "times K^2")
    parts += [_line(names), "|---" * len(names) + "|"]
    for steps, gap, error, kl in approach():
        parts.append(
            f"| {steps} | {gap:.4f} | {steps * gap:.3f} | {error:.2%} | {steps * error:.3f} | {kl:.2g} "
            f"| {steps**2 * kl:.3f} |"
        )
    return "\n".join(parts) + "\n"


def _section(problem: str, rows: Sequence[Record]) -> str:
    shown = [0, *range(2, len(COLUMNS))]
    undefined = [row for row in rows if row["reason"].startswith("not defined")]
    known = entry(problem.partition("/")[0])
    told = f"{known.summary[0].upper()}{known.summary[1:]}; alpha {known.alpha:g}."
    lines = [f"## `{problem}` ({known.process})", "", told, "", _line([*(COLUMNS[i] for i in shown), "judged by"])]
    lines.append("|---" * (len(shown) + 1) + "|")
    for row in rows:
        if row not in undefined:
            texts = cells(row)
            lines.append(_line([*(texts[i] for i in shown), row["reason"]]))
    if undefined:
        lines += ["", "Not defined here:", ""]
        lines += [f"- `{row['algorithm']}`: {row['reason'].removeprefix('not defined: ')}" for row in undefined]
    return "\n".join(lines) + "\n"


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|").replace("*", "\\*") for text in texts) + " |"
