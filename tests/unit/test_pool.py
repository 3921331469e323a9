"""A scorer over worker processes: what goes wrong on one design costs that design only."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from difftilt import build
from difftilt.errors import ConfigError, OracleError
from difftilt.rewards.function import FunctionReward
from difftilt.rewards.pool import Pool

HOSTILE = '''
import ctypes, os, time

def length(designs):
    return [float(len(design)) for design in designs]

def hostile(designs):
    """Raises, hangs, leaves, or takes a segmentation fault where the design says so."""
    for design in designs:
        if design == "raise":
            raise ValueError("no such molecule")
        if design == "hang":
            time.sleep(600)
        if design == "leave":
            os._exit(7)
        if design == "crash":
            ctypes.string_at(0)
        if design == "exit":
            raise SystemExit(1)
    return [None if design == "nothing" else float(len(design)) for design in designs]

def deadly(designs):
    os._exit(3)

def short(designs):
    return [1.0] * (len(designs) + 1)
'''
MEAN = ["raise", "hang", "leave", "crash", "exit", "nothing"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "scorer.py"
    path.write_text(HOSTILE)
    return path


def _values(pool: Pool, designs: list[str]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in pool(designs).tolist()]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4])
def test_a_scorer_that_raises_hangs_or_crashes_costs_that_design_only(file, batch):
    designs = ["a" * (1 + i % 9) for i in range(30)]
    for place, design in enumerate(MEAN):
        designs.insert(5 * place + 2, design)
    with Pool(f"{file}:hostile", workers=2, timeout=1.0, batch=batch) as pool:
        values = _values(pool, designs)
        reasons = dict(zip(designs, pool.reasons, strict=True))
        again = _values(pool, designs[:4])  # the crew is whole again
    expected = [None if design in MEAN else float(len(design)) for design in designs]
    assert values == expected
    assert again == expected[:4]
    assert reasons["raise"] == "ValueError: no such molecule"
    assert reasons["hang"] == "took longer than 1 s"
    assert reasons["leave"] == "took its process down (exit code 7)"
    assert reasons["crash"] == "took its process down (SIGSEGV)"
    assert reasons["exit"].startswith("SystemExit")
    assert reasons["nothing"] == "returned None"
    assert {reason for design, reason in reasons.items() if design not in MEAN} == {None}


def test_programs_that_a_lost_worker_has_started_end_with_it(tmp_path):
    scorer = tmp_path / "waits.py"
    scorer.write_text(
        "import pathlib, subprocess\n"
        "def f(designs):\n"
        "    if designs == ['hang']:\n"
        "        program = subprocess.Popen(['sleep', '600'])\n"
        f"        pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(program.pid))\n"
        "        program.wait()\n"
        "    return [1.0] * len(designs)\n"
    )
    with Pool(f"{scorer}:f", workers=1, timeout=3) as pool:
        values = pool(["a", "hang", "b"])
    assert values.isnan().tolist() == [False, True, False]
    program = int((tmp_path / "pid").read_text())
    ended = time.monotonic() + 5
    while alive(program) and time.monotonic() < ended:
        time.sleep(0.05)
    assert not alive(program)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be collected does not."""
    status = Path(f"/proc/{pid}/status")
    if status.is_file():
        return "\nState:\tZ" not in status.read_text()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_order_is_that_of_the_designs_whichever_worker_had_which(file):
    designs = ["a" * (1 + i % 40) for i in range(300)]
    with Pool(f"{file}:length", workers=2) as pool:
        first = pool(designs)
        crew = [worker.process.pid for worker in pool._crew]
        assert torch.equal(first, torch.tensor([float(len(design)) for design in designs], dtype=torch.float64))
        assert torch.equal(pool(designs[::-1]), first.flip(0))
        assert [worker.process.pid for worker in pool._crew] == crew  # started once
    assert pool._crew == []
    for pid in crew:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_one_worker_without_a_limit_is_this_process(file):
    pool = Pool(f"{file}:hostile")
    assert _values(pool, ["aa", "nothing", "raise", "aa"]) == [2.0, None, None, 2.0]
    assert pool.reasons[2] == "ValueError: no such molecule"
    assert pool._crew == []


def test_a_reward_of_ours_keeps_its_reasons_in_a_worker():
    chemistry = pytest.importorskip("difftilt.rewards.chemistry")
    pytest.importorskip("rdkit")
    reward = chemistry.PropertyReward("qed")
    designs = ["CCO", "c1cccc1", "C.C", "OCC"]
    with Pool(reward, workers=1, timeout=60) as pool:
        assert torch.equal(pool(designs).nan_to_num(-1), reward(designs).nan_to_num(-1))
        assert pool.reasons == reward.reasons
        assert pool.reasons[1].startswith("kekulisation")


@pytest.mark.slow
def test_a_scorer_that_takes_every_process_down_stops(file, monkeypatch):
    monkeypatch.setattr("difftilt.rewards.pool.FEW", 3)
    with Pool(f"{file}:deadly", workers=1, timeout=60) as pool, pytest.raises(OracleError, match="3 in a row"):
        pool([f"design{i}" for i in range(40)])


def test_a_scorer_that_breaks_its_contract_is_named(file):
    with Pool(f"{file}:short", workers=1, timeout=30) as pool, pytest.raises(OracleError, match="expected"):
        pool(["a", "b"])


def test_what_workers_cannot_find_is_refused_at_once(file):
    for scorer in (lambda designs: [0.0] * len(designs), FunctionReward(lambda designs: [0.0] * len(designs))):
        with pytest.raises(ConfigError, match="can find"):
            Pool(scorer, workers=2)
    with pytest.raises(ConfigError, match="did you mean 'hostile'"):
        Pool(f"{file}:hostil", workers=2)
    with pytest.raises(ConfigError, match="from 1 on"):
        Pool(f"{file}:length", workers=0)
    with pytest.raises(ConfigError, match="positive timeout"):
        Pool(f"{file}:length", timeout=0.0)


SCRIPT = """
from difftilt.rewards.pool import Pool

def length(designs):
    return [float(len(design)) for design in designs]

{guard}
with Pool(length, workers=2) as pool:
    print(pool(["a", "bb", "ccc"]).tolist())
"""


@pytest.mark.parametrize("guarded", [True, False])
def test_a_script_needs_its_guard_only_for_functions_of_its_own(tmp_path, guarded):
    script = tmp_path / "script.py"
    text = SCRIPT.format(guard='if __name__ == "__main__":' if guarded else "if True:")
    script.write_text(text.replace("\nwith", "\n    with").replace("    print", "        print"))
    ended = _run(script)
    if guarded:
        assert ended.stdout.strip() == "[1.0, 2.0, 3.0]"
    else:
        assert ended.returncode != 0
        assert 'if __name__ == "__main__"' in ended.stderr


def test_a_script_without_a_guard_can_name_a_file(tmp_path, file):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        from difftilt.rewards.pool import Pool
        pool = Pool({f"{file}:length"!r}, workers=2)
        print(pool(["a", "bb", "ccc"]).tolist())
        """)
    )
    started = time.monotonic()
    ended = _run(script)  # and the workers end with the program, closed or not
    assert ended.stdout.strip() == "[1.0, 2.0, 3.0]", ended.stderr
    assert time.monotonic() - started < 60


def _run(script: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)


def test_a_commands_workers_are_for_functions_and_computed_rewards(tmp_path):
    task = build.task("utr-mrl")
    scorer = tmp_path / "scorer.py"
    scorer.write_text(
        "import os\ndef f(them):\n    return [os._exit(3) if d == 'T' else float(len(d)) for d in them]\n"
    )
    reward = build.load_reward(task, f"2*{scorer}:f", workers=2, timeout=30)
    values = reward(["A", "T", "AAA"])
    assert values.tolist()[::2] == [2, 6]
    assert values[1].isnan()
    with pytest.raises(ConfigError, match=r"expected a function or a computed reward for --workers .*; got model"):
        build.load_reward(task, "model", workers=2)
    pytest.importorskip("rdkit")
    zinc = build.task("zinc-qed")
    here, there = build.load_reward(zinc, "qed,-0.1*sa_score"), build.load_reward(zinc, "qed,-0.1*sa_score", workers=2)
    designs = ["CCO", "c1ccccc1C(=O)N", "xx"]
    assert torch.equal(here(designs).isnan(), there(designs).isnan())
    assert torch.equal(here(designs)[:2], there(designs)[:2])
