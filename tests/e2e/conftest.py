"""A tiny task, and commands run in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from difftilt.cli import main
from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy
from difftilt.networks.conv import ConvDenoiser
from difftilt.networks.regressor import ConvRegressor, RecurrentRegressor
from difftilt.processes.masked import Masked
from difftilt.rewards.ensemble import EnsembleReward
from difftilt.rng import seeded_initialisation

LENGTH = 8
TINY = ["--steps", "4", "--batch", "16", "--designs", "32", "--log-z-samples", "16", "--checkpoint-every", "2"]

SCORER = '''
import time
from pathlib import Path

LOG = Path(__file__).with_name("calls.log")


def content(designs):
    """Number of G and C; every call is logged."""
    time.sleep(0.03)
    with LOG.open("a") as log:
        log.writelines(design + "\\n" for design in designs)
    return [float(design.count("G") + design.count("C")) for design in designs]


def picky(designs):
    """Raises on some designs, and says None of others."""
    for design in designs:
        if design.startswith("A"):
            raise ValueError("starts with A\\nand more")
    return [None if design.startswith("C") else float(design.count("G")) for design in designs]


def stop_at_third_batch(designs, calls=[]):
    """Ctrl-C arrives once, during the third call."""
    calls.append(len(designs))
    if len(calls) == 3 and not LOG.with_name("stopped").exists():
        LOG.with_name("stopped").touch()
        raise KeyboardInterrupt
    return content(designs)


def raises(designs):
    raise RuntimeError("the scorer is broken")


def too_few(designs):
    return [1.0]


def texts(designs):
    return ["high" for _ in designs]


def nothing(designs):
    return [float("nan")] * len(designs)


def no_list(designs):
    return 3.0


def rows(designs):
    import numpy

    return numpy.zeros((len(designs), 2))
'''


class Outcome(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained denoiser, reward and judge for designs of 8 letters."""
    folder = tmp_path_factory.mktemp("models")
    codec = TokenCodec("ACGT", LENGTH, {"U": "T"})
    with seeded_initialisation(0):
        denoiser = ConvDenoiser(4, LENGTH, width=8, kernel=3, dilations=(1, 2))
        Policy(denoiser, Masked(4), codec, (LENGTH,), steps=4).save_pretrained(folder / "denoiser")
        reward = ConvRegressor(4, LENGTH, width=8, kernel=3, dilations=(1,), hidden=8)
        EnsembleReward([reward], codec, mean=5.0, scale=20.0).save_pretrained(folder / "reward")
        judge = RecurrentRegressor(4, LENGTH, width=8, kernel=3)
        EnsembleReward([judge], codec, mean=5.0, scale=20.0).save_pretrained(folder / "judge")
    return folder


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a file of scorers."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scorer.py").write_text(SCORER)
    return tmp_path


@pytest.fixture
def difftilt(work: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command line in this process, in an empty working directory."""

    def run(*words: object) -> Outcome:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def tiny(models: Path) -> list[str]:
    """A fine-tuning job of about a second."""
    return ["finetune", "utr-mrl", "--models", str(models), *TINY]


def spawn(*words: object, new_session: bool = False) -> subprocess.Popen[str]:
    """The same in a process of its own, which can be killed; with ``new_session``, all that it starts with it.

    It hears ctrl-C even where these tests do not, as in what a shell starts in the background.
    """
    hear = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{hear}; import sys; from difftilt.cli import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=new_session,
    )


def records(file: Path, *, without: tuple[str, ...] = ("seconds",)) -> list[dict[str, object]]:
    """Lines of a JSON lines file, the last one only if it is whole."""
    try:
        lines = file.read_text().splitlines(keepends=True)
    except FileNotFoundError:  # not there yet, or about to be written anew
        lines = []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{key: value for key, value in record.items() if key not in without} for record in whole]


def facts(run: Path) -> dict[str, object]:
    """``evaluation.json`` without times."""
    record = json.loads((run / "evaluation.json").read_text())
    record["cost"] = {key: value for key, value in record["cost"].items() if "seconds" not in key}
    return record
