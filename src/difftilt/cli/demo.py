"""``difftilt demo``: the main job on the shipped 5'UTR model, from files in the package alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difftilt.cli import flags
from difftilt.cli.finetune import start
from difftilt.cli.folders import new_folder
from difftilt.cli.kinds import plan_from
from difftilt.cli.settings import Place

DEMO: dict[str, Any] = {
    "task": "utr-mrl",
    "algorithm": "ppo",
    "alpha": 0.1,
    "steps": 36,
    "log_z_samples": 2048,
    "learning_rate": 2e-3,
    "steps_per_path": 8,
}
"""Settings of the demo, by the names of `difftilt finetune`'s flags."""


@dataclass(frozen=True, kw_only=True)
class DemoFlags:
    """Flags of `difftilt demo`."""

    run: Path | None = None
    """Folder of the run; runs/demo-1, -2, ... when not set."""
    seed: int = 0
    """Seed of every random stream."""
    threads: int = 1
    """Threads of torch."""
    models: Path | None = None
    """Own denoiser, reward and judge in place of the shipped ones."""


def command(argv: Sequence[str]) -> None:
    """Run ``difftilt demo``."""
    asked = flags.parse(
        DemoFlags, argv, command="difftilt demo", summary="Tilt a shipped model of 5'UTRs toward higher ribosome load."
    )
    words = finetune_words(asked)
    plan = plan_from(words)
    run = asked.run if asked.run is not None else new_folder("demo").path
    plan = dataclasses.replace(plan, place=Place(run=run))
    start(plan, ["difftilt", "finetune", *words])


def finetune_words(asked: DemoFlags) -> list[str]:
    """The same job as arguments of `difftilt finetune`."""
    settings = {**DEMO, "seed": asked.seed, "threads": asked.threads, "models": asked.models}
    words = [str(settings.pop("task"))]
    for name, value in settings.items():
        words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    return words
