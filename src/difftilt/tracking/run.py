"""A run is a folder of plain files; whatever is reported can be read from it.

``config.toml`` (resolved settings and provenance), ``metrics.jsonl`` (one object per step), ``oracle.jsonl`` (every
paid call), ``checkpoints/<step>/``, ``samples.csv``, ``evaluation.json``, ``report.html``.
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
            probe.unlink(missing_ok=True)  # another process may have been here
        except OSError as error:
            raise StateError(
                f"expected a run folder that can be written at '{path}'; got '{error.strerror}'; "
                "choose another with --run"
            ) from error

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """The folder of a run that was started before; it is only read here.

        Raises:
            StateError: there is no run.
        """
        run = cls.__new__(cls)
        run.path = Path(path)
        if not run.config.is_file():
            came = "no config.toml in it" if run.path.is_dir() else "no such folder"
            raise StateError(
                f"expected a run folder at '{path}'; got {came}; give what `difftilt finetune` or `steer` wrote"
            )
        return run

    @property
    def started(self) -> bool:
        """Whether the folder holds a run."""
        return self.config.is_file() or self.metrics.is_file() or self.checkpoints.is_dir()

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
    def objectives(self) -> Path:
        """One JSON object per number that a combined reward was made of."""
        return self.path / "objectives.jsonl"

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

    @property
    def pictures(self) -> Path:
        """Drawings of the domain, and ``index.json`` with their titles and captions."""
        return self.path / "pictures"

    @property
    def log_z(self) -> Path:
        """The independent estimate of log Z."""
        return self.path / "log_z.json"

    @property
    def model(self) -> Path:
        """The tuned policy, a model folder."""
        return self.path / "model"

    def write_pictures(self, drawings: Iterable[Mapping[str, Any]]) -> None:
        """Write the drawings of a domain: files, and what a page says of each in ``pictures/index.json``.

        Args:
            drawings: plain fields; those with ``data`` (SVG text or PNG bytes) are put into a file called ``name``.
        """
        index = []
        for drawing in drawings:
            record = dict(drawing)
            data = record.pop("data", None)
            if data is not None:
                record["file"] = f"{record['name']}.{'svg' if isinstance(data, str) else 'png'}"
                self.pictures.mkdir(exist_ok=True)
                (self.pictures / record["file"]).write_bytes(data.encode() if isinstance(data, str) else data)
            index.append(record)
        if index:
            self.pictures.mkdir(exist_ok=True)
            self.write_json(self.pictures / "index.json", {"drawings": index})

    def append(self, file: Path, records: Iterable[Mapping[str, Any]]) -> None:
        """Append JSON lines durably: they are on disk when this returns. NaN is written as null.

        Raises:
            StateError: the disk is full, or the folder is gone.
        """
        try:
            with file.open("ab") as handle:
                handle.write(_lines(records).encode())
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise _unwritable(file, error) from error

    def read(self, file: Path) -> list[dict[str, Any]]:
        """JSON lines of a file; a last line cut short by a crash is dropped, also from the file.

        Raises:
            StateError: another line is damaged.
        """
        if not file.is_file():
            return []
        lines = file.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            with file.open("r+b") as handle:
                handle.truncate(sum(map(len, lines[:-1])))
            lines.pop()
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                records.append(json.loads(line))
            except ValueError as error:
                raise StateError(
                    f"expected a JSON object in '{file}', line {number}; got a damaged line; put the whole file back"
                ) from error
        return records

    def rewind_metrics(self, step: int) -> None:
        """Drop the records of steps after ``step``: they will be made again."""
        kept = [record for record in self.read(self.metrics) if record["step"] <= step]
        if kept:
            self._replace(self.metrics, _lines(kept))
        else:
            self.metrics.unlink(missing_ok=True)

    def write_json(self, file: Path, record: Mapping[str, Any]) -> None:
        """Write one JSON object, whole or not at all.

        Raises:
            StateError: the disk is full, or the folder is gone.
        """
        self._replace(file, json.dumps(plain(record), indent=2) + "\n")

    def read_json(self, file: Path) -> dict[str, Any]:
        """What :meth:`write_json` wrote.

        Raises:
            StateError: the file is damaged.
        """
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(record, dict):
                raise ValueError
        except ValueError:
            raise StateError(
                f"expected a JSON object in '{file}'; got a damaged file; delete it, then go on with --resume"
            ) from None
        return record

    def _replace(self, file: Path, text: str) -> None:
        partial = file.with_name(f".{file.name}.partial")
        try:
            with partial.open("w", encoding="utf-8") as handle:
                handle.write(text)
                handle.flush()
                os.fsync(handle.fileno())
            partial.replace(file)
        except OSError as error:
            raise _unwritable(file, error) from error


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(plain(record)) + "\n" for record in records)


def _unwritable(file: Path, error: OSError) -> StateError:
    return StateError(f"expected to write '{file}'; got '{error.strerror}'; free space, then go on with --resume")


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
