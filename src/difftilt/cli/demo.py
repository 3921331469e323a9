"""``difftilt demo``: the main job on a shipped model of each domain, from files in the package alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from difftilt.cli import flags
from difftilt.cli.finetune import start
from difftilt.cli.folders import new_folder
from difftilt.cli.kinds import plan_from
from difftilt.cli.settings import Place
from difftilt.errors import nearest

RNA = "rna"
DEMOS: dict[str, dict[str, Any]] = {
    RNA: {
        "task": "utr-mrl",
        "algorithm": "ppo",
        "alpha": 0.1,
        "steps": 36,
        "log_z_samples": 2048,
        "learning_rate": 2e-3,
        "steps_per_path": 8,
    },
    "dna": {
        "task": "yeast-promoter",
        "algorithm": "ppo",
        "alpha": 0.5,
        "steps": 32,
        "batch": 128,
        "log_z_samples": 2048,
        "learning_rate": 2e-3,
        "steps_per_path": 8,
        "designs": 500,
    },
    "protein": {
        "task": "gfp",
        "algorithm": "ppo",
        "alpha": 0.03,
        "steps": 40,
        "batch": 128,
        "log_z_samples": 1024,
        "learning_rate": 3e-3,
        "steps_per_path": 4,
        "designs": 500,
    },
    "molecule": {
        "task": "qm9-graph",
        "algorithm": "ppo",
        "alpha": 0.02,
        "steps": 20,
        "batch": 64,
        "log_z_samples": 0,
        "learning_rate": 1e-3,
        "steps_per_path": 6,
        "designs": 200,
    },
    "image": {
        "task": "emoji",
        "reward": "blueness",
        "algorithm": "reward_backprop",
        "alpha": 1.5e-3,
        "steps": 8,
        "batch": 16,
        "log_z_samples": 0,
        "learning_rate": 2e-4,
        "designs": 64,
    },
}
"""Settings of the demo of each domain, by the names of `difftilt finetune`'s flags."""


@dataclass(frozen=True, kw_only=True)
class DemoFlags:
    """Flags of `difftilt demo`."""

    domain: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="|".join(DEMOS))]] = RNA
    """Which domain."""
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
        DemoFlags, argv, command="difftilt demo", summary="Tilt a shipped model of a domain: minutes on two cores."
    )
    if asked.domain not in DEMOS:
        raise nearest(asked.domain, DEMOS, what="domain of `difftilt demo`")
    words = finetune_words(asked)
    plan = plan_from(words)
    run = (
        asked.run
        if asked.run is not None
        else new_folder("demo" if asked.domain == RNA else f"demo-{asked.domain}").path
    )
    plan = dataclasses.replace(plan, place=Place(run=run))
    start(plan, ["difftilt", "finetune", *words])


def finetune_words(asked: DemoFlags) -> list[str]:
    """The same job as arguments of `difftilt finetune`."""
    settings = {**DEMOS[asked.domain], "seed": asked.seed, "threads": asked.threads, "models": asked.models}
    words = [str(settings.pop("task"))]
    for name, value in settings.items():
        words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    return words
