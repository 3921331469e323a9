"""Speed as ratios within one process: run by ``make test-slow`` on an otherwise idle machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str) -> str:
    """Standard output of a Python process with one thread and without shape checks."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DIFFTILT_TYPECHECK": "0"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.slow
def test_sampling_and_updates_cost_little_more_than_the_bare_network() -> None:
    result = json.loads(run("benchmarks/overhead.py", "--runs", "7", "--simplex-batch", "8"))
    assert result["sampling"]["ratio"] <= 1.05
    assert result["ppo_update"]["ratio"] <= 1.15
    assert result["simplex_sampling"]["ratio"] <= 1.1


@pytest.mark.slow
def test_importing_takes_less_than_two_seconds() -> None:
    code = "import time; s = time.process_time(); import difftilt; print(time.process_time() - s)"
    assert min(float(run("-c", code)) for _ in range(3)) < 2.0


def test_importing_loads_nothing_heavy() -> None:
    """The twin that needs no clock: none of the packages that cost seconds is imported."""
    code = "import sys, difftilt; print(' '.join(sys.modules))"
    loaded = {name.partition(".")[0] for name in run("-c", code).split()}
    assert not loaded & {"matplotlib", "pandas", "pyarrow", "diffusers", "transformers", "rich", "tyro", "jinja2"}
