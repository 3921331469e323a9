"""Several processes are one: split networks, whole runs, what is done once, and errors that end all of them.

H0 of every comparison: two processes compute what one does, up to the order of sums. No test is statistical.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ranks_worker
from difftilt.core import ranks
from difftilt.tracking.run import RunFolder
from ranks_worker import CASES, SPLITS, UPDATES

TESTS = Path(__file__).parents[1]
SOURCE = Path(ranks.__file__).parents[2]
PATIENCE = 280
"""Seconds: a process that waits for one that has gone gives up after 120."""


def in_processes(
    name: str, folder: Path, *, count: int = 2, checked: bool = True
) -> list[subprocess.CompletedProcess[str]]:
    """Runs a function of the worker in each of ``count`` processes, which meet in a file; nobody is left behind.

    With ``checked``, shapes and types are checked there as they are here.
    """
    base = {
        **os.environ,
        "PYTHONPATH": f"{SOURCE}{os.pathsep}{TESTS}",
        "WORLD_SIZE": str(count),
        "DIFFTILT_TYPECHECK": os.environ.get("DIFFTILT_TYPECHECK", "1") if checked else "0",
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
    }
    command = [sys.executable, str(TESTS / "ranks_worker.py"), name, str(folder)]
    running = [
        subprocess.Popen(
            command, env={**base, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(count)
    ]
    try:
        spoken = [process.communicate(timeout=PATIENCE) for process in running]
    finally:
        for process in running:
            process.kill()
    return [
        subprocess.CompletedProcess(command, process.returncode, *text)
        for process, text in zip(running, spoken, strict=True)
    ]


def found(name: str, folder: Path, **how: Any) -> list[dict[str, Any]]:
    """What the processes wrote."""
    spoken = in_processes(name, folder, **how)
    for process in spoken:
        assert process.returncode == 0, process.stderr[-3000:]
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(len(spoken))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(place: Path) -> list[dict[str, Any]]:
    return found("everything", place)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return json.loads(json.dumps(ranks_worker.everything(tmp_path_factory.mktemp("one"))))


def apart(first: Any, second: Any) -> float:
    """Largest difference of two nested lists of numbers of the same form."""
    if isinstance(first, list):
        assert len(first) == len(second)
        return max((apart(a, b) for a, b in zip(first, second, strict=True)), default=0.0)
    return abs(first - second)


def numbers(history: list[dict[str, Any]]) -> list[list[float]]:
    return [[value for value in record.values() if value is not None] for record in history]


# --- the network ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPLITS)
def test_a_split_network_is_the_network_with_all_its_gradients(
    name: str, one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    """Called twice, with its rows reversed in between: gradients flow through rows of the other process."""
    rows = SPLITS[name][0]
    assert one[name]["rows"] == [rows, rows]
    for each in two:
        assert each[name]["rows"] == 2 * [-(-rows // 2)], "a process runs half of the rows"
        assert apart(each[name]["numbers"], one[name]["numbers"]) < 1e-12
    assert two[0][name]["numbers"] == two[1][name]["numbers"], "to the last bit"


def test_half_precision_goes_around(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    assert two[0]["halves"] == two[1]["halves"] == one["halves"]


# --- whole runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_with_the_whole_batch(
    case: str, one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    """The same parameters, records and calls; and the two agree to the last bit."""
    assert apart(two[0][case]["parameters"], one[case]["parameters"]) < 1e-6
    assert apart(numbers(two[0][case]["history"]), numbers(one[case]["history"])) < 1e-5
    for field in ("parameters", "history", "calls"):
        assert two[0][case][field] == two[1][case][field]
    assert two[0][case]["calls"] == one[case]["calls"]


@pytest.mark.parametrize("case", CASES)
def test_one_process_with_two_shares_is_two_to_the_last_bit(
    case: str, one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    for field in ("parameters", "history", "calls"):
        assert one["shared"][case][field] == two[0][case][field]


def test_one_process_with_one_share_is_two_but_for_last_bits(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    """Twin: float sums of other rows."""
    assert any(one[case]["parameters"] != two[0][case]["parameters"] for case in CASES)


def test_sums_are_made_by_halves(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    """Eight shares of one process and of two; twin: eight are not two."""
    assert one["eight"] == two[0]["eight"] == two[1]["eight"]
    assert one["eight"]["parameters"] != two[0]["tokens-reward_backprop"]["parameters"]


@pytest.mark.parametrize("case", CASES)
def test_only_the_first_process_asks_the_oracle_and_the_judge(
    case: str, one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    for field in ("asked", "judged"):
        assert two[0][case][field] == one[case][field]
        assert two[1][case][field] == 0
    assert one[case]["judged"] == 2


def test_there_is_one_set_of_files_and_one_listener(two: list[dict[str, Any]], place: Path) -> None:
    folder = RunFolder(place / "run")
    assert [record["step"] for record in folder.read(folder.metrics)] == list(range(1, UPDATES + 1))
    bought = [row["design"] for row in folder.read(folder.oracle)]
    assert len(bought) == len(set(bought)) == two[0]["resumed"]["calls"]
    assert (two[0]["told"], two[1]["told"]) == ([1, 2, 3], [])


def test_two_processes_resume_to_the_last_bit(two: list[dict[str, Any]]) -> None:
    """Stopped after update 3, whose records were ahead of the checkpoint."""
    for each in two:
        assert each["resumed"]["parameters"] == each["tokens-ppo"]["parameters"] != each["stopped"]["parameters"]
        assert each["resumed"]["history"] == each["tokens-ppo"]["history"]
        assert each["stopped"]["history"] == each["tokens-ppo"]["history"][:3]


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return found("wrong", tmp_path_factory.mktemp("wrong"), checked=False)[0]


def test_without_the_sum_of_gradients_the_laws_fail(one: dict[str, Any], wrong: dict[str, Any]) -> None:
    """Twin: each process follows its own rows, as in trainers whose network was never wrapped."""
    assert apart(wrong["no sum"]["uneven"]["numbers"], one["uneven"]["numbers"]) > 1e-3
    for case in ("tokens-ppo", "vectors-reward_backprop"):
        assert apart(wrong["no sum"][case]["parameters"], one[case]["parameters"]) > 1e-3


def test_without_the_state_gradients_of_others_the_laws_fail(one: dict[str, Any], wrong: dict[str, Any]) -> None:
    """Twin: an adjoint needs the gradient of every state, also where another process has run the network."""
    found, case = wrong["no state gradient"], "vectors-adjoint_matching"
    assert apart(found["uneven"]["numbers"], one["uneven"]["numbers"]) > 1e-3
    assert apart(found[case]["parameters"], one[case]["parameters"]) > 1e-4


@pytest.mark.slow
def test_more_processes_than_rows_need_do_as_well(one: dict[str, Any], tmp_path: Path) -> None:
    """Four processes and 5 rows: shares of 2, 2, 1 and none."""
    four = found("everything", tmp_path, count=4, checked=False)
    assert apart(four[3]["uneven"]["numbers"], one["uneven"]["numbers"]) < 1e-12
    for case in CASES:
        assert apart(four[3][case]["parameters"], one[case]["parameters"]) < 1e-6


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "reasons"),
    [
        ("another model", 2 * ["StateError: expected the same networks in all 2 processes; got others in process 1"]),
        ("a reward of its own", 2 * ["StateError: expected the same reward and KL in all 2 processes; got others"]),
        ("a callback", ["KeyError: 'no such gauge'", "StateError: expected the first process to go on; got KeyError"]),
        ("a full disk", 2 * ["StateError: expected to write; got a full disk"]),
        ("uneven shares", 2 * ["ConfigError: expected shares that 2 processes can run evenly; got 3"]),
        ("a used folder", 2 * ["StateError: expected an empty run folder; got one that holds a run"]),
    ],
)
def test_what_fails_in_one_process_fails_in_all(what: str, reasons: list[str], two: list[dict[str, Any]]) -> None:
    for each, reason in zip(two, reasons, strict=True):
        assert each["refused"][what].startswith(reason)


def test_a_failing_oracle_ends_both_processes_with_its_reason(tmp_path: Path) -> None:
    for process in in_processes("a_failing_oracle", tmp_path, checked=False):
        assert process.returncode == 1
        assert "OracleError: expected 'broken' to score at least one of 15" in process.stderr
        assert "ZeroDivisionError: the scorer is broken for every one" in process.stderr
    assert not list(tmp_path.glob("run/*"))


# --- alone ---------------------------------------------------------------------------------------------------------


def test_alone_nothing_is_wrapped_and_nothing_goes_through_json() -> None:
    network = torch.nn.Linear(2, 2)
    with ranks.together(network):
        assert not network._forward_hooks
        assert not network._forward_pre_hooks
        answer = object()
        assert ranks.of_first(lambda: answer) is answer
        ranks.refuse_unlike("numbers", torch.tensor([float("nan")]))
    assert ranks.is_first()
    assert ranks.count() == 1
