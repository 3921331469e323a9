"""A run is a folder of plain files; whatever is reported can be read from it.

``config.toml`` (resolved settings and provenance), ``metrics.jsonl`` (one object per step), ``oracle.jsonl`` (every paid
call), ``checkpoints/<step>/``, ``samples.csv``, ``evaluation.json``, ``report.html``.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from difftilt.errors import StateError


class RunFolder:
    """Reads and appends the files of one run.

    Args:
        path: the folder; created when missing.

    Raises:
        StateError: it cannot be created or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise StateError(
                f"expected a run folder that can be written at '{path}'; got '{error.strerror}'; choose another with --run"
            ) from error

    @property
    def config(self) -> Path:
        """Resolved settings."""
        return self.path / "config.toml"

    @property
    def metrics(self) -> Path:
        """One JSON object per step."""
        return self.path / "metrics.jsonl"

    @property
    def oracle(self) -> Path:
        """One JSON object per paid call."""
        return self.path / "oracle.jsonl"

    @property
    def checkpoints(self) -> Path:
        """One folder per kept step."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """Designs of the tuned policy with their scores."""
        return self.path / "samples.csv"

    @property
    def evaluation(self) -> Path:
        """Numbers of the final evaluation."""
        return self.path / "evaluation.json"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    def append(self, file: Path, records: Iterable[Mapping[str, Any]]) -> None:
        """Append JSON lines durably: they are on disk when this returns. NaN is written as null."""
        lines = "".join(json.dumps({k: plain(v) for k, v in record.items()}) + "\n" for record in records)
        with file.open("a", encoding="utf-8") as handle:
            handle.write(lines)
            handle.flush()
            os.fsync(handle.fileno())

    def read(self, file: Path) -> list[dict[str, Any]]:
        """JSON lines of a file; a last line cut short by a crash is dropped, also from the file."""
        if not file.is_file():
            return []
        whole, good = file.read_bytes(), 0
        records = []
        for line in whole.splitlines(keepends=True):
            try:
                if not line.endswith(b"\n"):
                    break
                records.append(json.loads(line))
            except ValueError:
                break
            good += len(line)
        if good < len(whole):
            with file.open("r+b") as handle:
                handle.truncate(good)
        return records

    def rewind_metrics(self, step: int) -> None:
        """Drop the records of steps after ``step``: they will be made again."""
        kept = [record for record in self.read(self.metrics) if record["step"] <= step]
        self.metrics.unlink(missing_ok=True)
        if kept:
            self.append(self.metrics, kept)

    def write_json(self, file: Path, record: Mapping[str, Any]) -> None:
        """Write one JSON object, whole or not at all."""
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(plain(record), indent=2) + "\n", encoding="utf-8")
        partial.replace(file)


def plain(value: Any) -> Any:
    """``value`` with mappings and sequences made plain and non-finite numbers made ``None``."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def provenance() -> dict[str, str]:
    """Versions and commit that produced a run; never a host or path."""
    commit = "unknown"
    try:
        here = Path(__file__).resolve().parent
        answer = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
        commit = answer.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return {
        "difftilt": version("difftilt"),
        "commit": commit,
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
    }
