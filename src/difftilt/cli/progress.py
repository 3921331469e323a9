"""How far a run is: a bar on a terminal, a few lines elsewhere. Standard error is left to errors."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import Any

LINES = 10
WIDE = 110
"""Columns of a terminal that has room for a bar beside the numbers."""


def say(text: str) -> None:
    """A line for the person who waits."""
    print(text, flush=True)


def number(value: float | None, digits: int = 3) -> str:
    """A number for people; a dash where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    """``1:05:09`` or ``2:07``."""
    whole = round(max(0.0, seconds))
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


class Progress:
    """Called with each record of a run; a context manager.

    Args:
        steps: updates in all.
        show_alpha: whether alpha moves, in a run with a KL budget.
    """

    def __init__(self, steps: int, *, show_alpha: bool = False) -> None:
        self.steps, self.show_alpha = steps, show_alpha
        self._judge: float | None = None
        self._first: tuple[int, float] | None = None
        self._bar: Any = None
        self._task: Any = None
        self.done = 0
        """The latest step."""

    def __enter__(self) -> Progress:
        if sys.stdout.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            console = Console()
            bar = [BarColumn(bar_width=20)] if console.width >= WIDE else []
            self._bar = Bar(MofNCompleteColumn(), *bar, TextColumn("{task.description}"), console=console)
            self._bar.start()
            self._task = self._bar.add_task("starting", total=self.steps)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, record: dict[str, Any]) -> None:
        """Show one record of ``metrics.jsonl``."""
        self.done = record["step"]
        if self._first is None:
            self._first = (self.done - 1, time.monotonic() - record["seconds"] / self.done)
        self._judge = record["judge"] if record["judge"] is not None else self._judge
        text = self._text(record)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, description=text)
        elif (
            self.done == 1
            or self.done == self.steps
            or self.done * LINES // self.steps > (self.done - 1) * LINES // self.steps
        ):
            say(f"update {self.done}/{self.steps}  {text}")

    def _text(self, record: dict[str, Any]) -> str:
        assert self._first is not None
        start, clock = self._first
        left = (time.monotonic() - clock) / (self.done - start) * (self.steps - self.done)
        parts = [f"reward {number(record['reward'])}"]
        parts += [] if self._judge is None else [f"judge {number(self._judge)}"]
        parts += [f"KL {number(record['kl_nats'], 2)} nats"]
        parts += [f"alpha {number(record['alpha'])}"] if self.show_alpha else []
        parts += [] if record["gap_nats"] is None else [f"gap {number(record['gap_nats'], 2)} nats"]
        parts += [f"{record['oracle_calls']:,} calls", f"{duration(left)} left"]
        return "  ".join(parts)
