"""The truth table as a whole: rows kept in a file as they finish, run side by side, and rendered as Markdown."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from difftilt.errors import StateError
from difftilt.tracking.run import provenance
from difftilt.verification.claims import Pair
from difftilt.verification.rows import verify

Record = dict[str, Any]


class RowFile:
    """``{"seed": ..., "commit": ..., "rows": [...]}``; each finished row is on disk before the next is waited for.

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
        if path.is_file():
            self.rows = read(path, self.head)
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
    except OSError as error:
        raise StateError(f"expected rows in '{path}'; got '{error.strerror}'; make them with --json") from error
    except (ValueError, TypeError, KeyError, AttributeError):
        raise StateError(f"expected \"rows\" in '{path}'; got a damaged file; delete it, or choose another") from None
    for name, value in ({} if head is None else head).items():
        if found.get(name) != value:
            raise StateError(
                f"expected rows of {name} {value} in '{path}', as those to come; got {found.get(name)}; choose another "
                "--json, or delete it"
            )
    return rows


def run(pairs: Sequence[Pair], seed: int, *, jobs: int) -> Iterator[Record]:
    """Rows of ``pairs`` as they finish, ``jobs`` processes of one thread each (none of their own where one will do)."""
    if jobs == 1 or len(pairs) < 2:
        for pair in pairs:
            yield verify(pair, seed).record()
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for done in as_completed([pool.submit(verify, pair, seed) for pair in pairs]):
            yield done.result().record()
    finally:
        pool.shutdown(cancel_futures=True)


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


def markdown(rows: Sequence[Record]) -> str:
    """One table for each problem, in the order of the rows, with the reasons below."""
    parts = []
    for problem in dict.fromkeys(row["problem"] for row in rows):
        mine = [row for row in rows if row["problem"] == problem]
        shown = [0, *range(2, len(COLUMNS))]
        run_here = [row for row in mine if not row["reason"].startswith("not defined")]
        lines = [f"## `{problem}` ({mine[0]['process']})", "", _line([COLUMNS[i] for i in shown] + ["judged by"])]
        lines.append("|---" * (len(shown) + 1) + "|")
        lines += [_line([cells(row)[i] for i in shown] + [row["reason"]]) for row in run_here]
        undefined = [row for row in mine if row not in run_here]
        if undefined:
            lines += ["", "Not defined here:", ""]
            lines += [f"- `{row['algorithm']}`: {row['reason'].removeprefix('not defined: ')}" for row in undefined]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"
