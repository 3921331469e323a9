"""What a run's ``config.toml`` says."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from difftilt.cli.settings import Plan
from difftilt.config import to_toml
from difftilt.tracking.run import provenance


def config_text(plan: Plan, task: Mapping[str, Any], command: Sequence[str]) -> str:
    """The ``config.toml`` of a run; its settings can be fed back in with ``--config``."""
    origin = {"command": shown(command), "date": datetime.now(UTC).date().isoformat(), "seed": plan.loop.seed}
    facts = {"task": dict(task), "provenance": {**origin, **provenance()}}
    return to_toml({**plan.tables(), **facts})


def shown(command: Sequence[str]) -> str:
    """A command line without the folders of this machine: of an absolute path only the name is kept."""
    words = []
    for word in command:
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        words.append(flag + equals + (Path(value).name if value.startswith(("/", "~")) else value))
    return shlex.join(words)
