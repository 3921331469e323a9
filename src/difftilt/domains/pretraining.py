"""A task's models made from its data: every part trained, measured on held-out rows, and saved with its card."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from difftilt.core.gaussian_step import GaussianSteps
from difftilt.core.policy import Policy
from difftilt.data import find, image_names, load, names
from difftilt.domains.task import DENOISER, FEWEST, Designs, Task, TaskData
from difftilt.errors import DataError
from difftilt.tracking.run import provenance
from difftilt.training.pretrain import pretrain


@dataclass(frozen=True)
class Pretraining:
    """What to train for a task, and where to put it."""

    entry: Task
    data: Designs
    output: Path
    command: str
    process: str
    seed: int = 0
    resume: bool = False
    on_event: Callable[[str], None] = lambda message: None

    def run(self, parts: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        """Train the named parts; returns each one's metrics."""
        data = self.entry.split(self.data, seed=self.seed)
        own = {part: self.entry.rows_of(part, self.data, data, seed=self.seed) for part in parts}
        for part in parts:
            rows = len(data.prior_train) if part == DENOISER else len(getattr(own[part], part, own[part].reward))
            if rows < FEWEST:
                what = "designs" if part == DENOISER else "scored designs"
                raise DataError(f"expected at least {FEWEST} {what} for the {part}; got {rows}; add more")
        done = {}
        for part in parts:
            started = time.monotonic()
            if part == DENOISER:
                model, metrics = self._denoiser(data)
            else:
                model, metrics = self.entry.fit(part, own[part], seed=self.seed, told=self.on_event)
            metrics["seconds"] = round(time.monotonic() - started, 1)
            model.card = self._card(part, metrics) | model.card
            model.save_pretrained(self.folder(part))
            done[part] = metrics
            self.on_event(f"{part}: {metrics}")
        return done

    def folder(self, part: str) -> Path:
        """Where a part is saved."""
        return self.output / (self.entry.folder(self.process) if part == DENOISER else part)

    @property
    def checkpoints(self) -> Path:
        """Where an interrupted training of the denoiser is."""
        return self.output / "checkpoints" / self.process

    def _card(self, part: str, metrics: dict[str, Any]) -> dict[str, Any]:
        entry = self.entry
        own = {"process": self.process, "note": entry.prior(self.process).note} if part == DENOISER else {}
        return {
            "name": f"{entry.name} {self.folder(part).name}",
            "summary": entry.summary,
            "task": entry.name,
            "part": part,
            **{name: fact for name, fact in own.items() if fact is not None},
            "score": entry.score_of(part),
            "naturalness": entry.naturalness,
            "data": self._source(part),
            "training": {"command": self.command, "seed": self.seed, **provenance()},
            "metrics": metrics,
        }

    def _source(self, part: str) -> dict[str, Any]:
        """Which rows a part was trained and tested on."""
        data, judge_set = self.data, getattr(self.entry, "judge_set", None)
        if part == "judge" and judge_set is not None:
            data = load(judge_set)
        known = {path.resolve(): name for name in (*names(), *image_names()) if (path := find(name)) is not None}
        return {
            "set": known.get(data.path.resolve(), data.path.name),
            "file": data.path.name,
            "rows": len(data),
            "split": self.entry.split_note,
        }

    def _denoiser(self, data: TaskData) -> tuple[Policy, dict[str, Any]]:
        policy = self.entry.untrained(self.process, data, seed=self.seed)
        train, validation = data.states[data.prior_train], data.states[data.prior_validation]
        averaged = isinstance(policy.process, GaussianSteps)  # their loss is a mean over the event, others' a sum
        size = 1 if averaged else train[0].numel()
        unit = "nats per token" if policy.process.discrete else "per component"
        result = pretrain(
            policy.denoiser,
            policy.process,
            train,
            validation,
            replace(self.entry.prior(self.process).training, seed=self.seed),
            folder=self.checkpoints,
            resume=self.resume,
            on_update=lambda r: self.on_event(
                f"denoiser: update {r['update']}, validation {r['validation'] / size:.4f} {unit}"
            ),
        )
        metrics = {
            "parameters": sum(p.numel() for p in policy.denoiser.parameters()),
            "training_designs": len(train),
            "test_designs": len(data.prior_test),
            **self.entry.measure(policy, data, seed=self.seed),
        }
        return policy, metrics | {"updates": result.history[-1]["update"]}
