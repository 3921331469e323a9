"""What a run folder holds, read without touching it.

A run may be in progress, killed or half copied, so every file may be missing or cut short: what can be read is kept,
and what cannot is named in ``problems``.
"""

from __future__ import annotations

import csv
import io
import json
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from difftilt.errors import StateError
from difftilt.tracking.run import RunFolder

from .drawings import Drawing, read_drawings
from .rounding import Estimate, estimate, finite

DESIGN_COLUMNS = ("sequence", "smiles", "file")


@dataclass(frozen=True)
class Bought:
    """Summary of ``oracle.jsonl``."""

    calls: int = 0
    """Answers on record."""
    infeasible: int = 0
    """Answers without a value."""
    reasons: tuple[tuple[str, int], ...] = ()
    """Reasons of these, commonest first."""


@dataclass(frozen=True)
class Samples:
    """``samples.csv``."""

    text: str = ""
    """The file."""
    column: str = "sequence"
    """Name of the design column."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One per design; every column but the design and ``id`` is a number or ``None``."""


@dataclass(frozen=True)
class RunFacts:
    """Everything the pages show of one run."""

    name: str
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    bought: Bought
    samples: Samples
    evaluation: dict[str, Any]
    problems: list[str]
    drawings: list[Drawing] = field(default_factory=list)

    def table(self, name: str) -> dict[str, Any]:
        """A table of ``config.toml``, empty if missing."""
        found = self.config.get(name)
        return found if isinstance(found, dict) else {}

    def get(self, *path: str) -> Any:
        """A value of ``evaluation.json``, ``None`` if missing."""
        value: Any = self.evaluation
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def number(self, *path: str) -> float | None:
        """A finite number of ``evaluation.json``."""
        return finite(self.get(*path))

    def estimate(self, *path: str) -> Estimate | None:
        """A mean of ``evaluation.json`` with its interval."""
        return estimate(self.get(*path))

    @property
    def last(self) -> dict[str, Any]:
        """The latest record of ``metrics.jsonl``."""
        return self.metrics[-1] if self.metrics else {}

    @property
    def task(self) -> str:
        """Name of the task."""
        return str(self.table("task").get("name") or self.table("settings").get("task") or self.name)

    @property
    def sampler(self) -> str | None:
        """Name of the sampler of a run that steered; ``None`` for one that tuned."""
        name = self.table("settings").get("sampler") or self.get("sampler")
        return None if name is None else str(name)

    @property
    def method(self) -> str:
        """Name of the algorithm or sampler, as people write it."""
        name = self.sampler or str(self.table("settings").get("algorithm") or "an unnamed algorithm")
        known = {"ppo": "PPO", "smc": "SMC", "mcmc": "MCMC", "best_of_n": "best of N", "raft": "RAFT"}
        return known.get(name, name.replace("_", " "))

    @property
    def doing(self) -> str:
        """What the run did."""
        return "tuning" if self.sampler is None else "steering"

    @property
    def done(self) -> str:
        """What was done to the model."""
        return "tuned" if self.sampler is None else "steered"

    @property
    def score_name(self) -> str:
        """What the task's score is, with its unit."""
        task = self.table("task")
        name, unit = str(task.get("score_name") or "score"), str(task.get("score_unit") or "")
        return f"{name} ({unit})" if unit and unit not in name else name

    @property
    def same_scale(self) -> bool:
        """Whether reward and judge measure the same quantity: not so where one is the user's own function."""
        return not set(":,*") & set(str(self.table("settings").get("reward", "")))

    @property
    def reward_axis(self) -> str:
        """Label of a reward axis."""
        return self.score_name if self.same_scale else self.reward_name

    @property
    def reward_name(self) -> str:
        """What the run was tilted toward, in a few words."""
        return str(self.table("task").get("reward_name") or "reward")

    @property
    def alpha(self) -> float | None:
        """The temperature of the target, reward units per nat."""
        settings = self.table("settings").get("alpha"), self.table("algorithm").get("alpha")
        for value in (self.get("alpha"), self.last.get("alpha"), *settings):
            if finite(value) is not None:
                return finite(value)
        return None

    def cost(self, name: str) -> float | None:
        """A cost from the evaluation, else from the latest step."""
        for value in (self.get("cost", name), self.get(name), self.last.get(name)):
            if finite(value) is not None:
                return finite(value)
        return None


def read_run(run: RunFolder) -> RunFacts:
    """The facts of a run folder.

    Raises:
        StateError: it holds no run.
    """
    if not any(file.is_file() for file in (run.config, run.metrics, run.evaluation, run.samples)):
        raise StateError(
            f"expected a run folder with config.toml or metrics.jsonl; got '{run.path}', which holds neither; "
            "give the folder that `difftilt finetune` wrote"
        )
    problems: list[str] = []
    config = _parsed(run.config, tomllib.loads, problems)
    evaluation = _parsed(run.evaluation, json.loads, problems)
    metrics = [record for record in _lines(run.metrics, problems) if finite(record.get("step")) is not None]
    facts = RunFacts(
        name=run.path.resolve().name,
        config=config,
        metrics=metrics,
        bought=_bought(_lines(run.oracle, problems)),
        samples=_samples(run.samples, problems),
        evaluation=evaluation,
        problems=problems,
    )
    return replace(facts, drawings=read_drawings(run, facts.done, problems))


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _parsed(file: Path, parse: Any, problems: list[str]) -> dict[str, Any]:
    text = _text(file)
    if not text.strip():
        return {}
    try:
        value = parse(text)
    except ValueError as error:
        problems.append(f"{file.name} could not be read ({error}); what it would say is left out.")
        return {}
    return value if isinstance(value, dict) else {}


def _lines(file: Path, problems: list[str]) -> list[dict[str, Any]]:
    """JSON lines; a last line that is still being written is no problem, any other damaged one is."""
    records, lines = [], _text(file).splitlines(keepends=True)
    for i, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            if i < len(lines) or line.endswith("\n"):
                problems.append(f"{file.name}, line {i} is damaged and was left out.")
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def _bought(answers: list[dict[str, Any]]) -> Bought:
    without = [answer for answer in answers if finite(answer.get("value")) is None]
    reasons = Counter(str(answer.get("reason") or "no reason given") for answer in without)
    return Bought(len(answers), len(without), tuple(reasons.most_common()))


def _samples(file: Path, problems: list[str]) -> Samples:
    text = _text(file)
    reader = csv.DictReader(io.StringIO(text, newline=""))
    header = reader.fieldnames or []
    column = next((name for name in DESIGN_COLUMNS if name in header), None)
    if column is None:
        if text.strip():
            problems.append(f"{file.name} has no column {', '.join(DESIGN_COLUMNS)}; its designs are left out.")
        return Samples()
    rows: list[dict[str, Any]] = []
    for row in reader:
        numbers = {name: _number(row.get(name)) for name in header if name not in (column, "id")}
        rows.append({"id": row.get("id") or "", "design": row.get(column) or "", **numbers})
    return Samples(text, column, rows)


def _number(cell: str | None) -> float | None:
    try:
        return finite(float(cell or ""))
    except ValueError:
        return None
