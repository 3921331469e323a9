"""The paid reward: distinct designs are counted once, cached, recorded before use, and never bought again."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from difftilt.core.reward import DifferentiableReward
from difftilt.errors import OracleError, StateError
from difftilt.problems.landscapes import random_pairwise
from difftilt.rewards.function import FunctionReward
from difftilt.rewards.oracle import EVALUATION, Answer, DifferentiableOracle, Oracle, as_oracle
from difftilt.rewards.table import TableReward
from difftilt.tracking.run import RunFolder
from difftilt.training.finetune import recorded_oracle


class Counting:
    """A scorer that remembers what it was asked."""

    def __init__(self, infeasible: str = "") -> None:
        self.asked: list[Any] = []
        self.infeasible = infeasible

    def __call__(self, designs: list[str]) -> list[float | None]:
        self.asked += designs
        return [None if design == self.infeasible else float(len(design)) for design in designs]


def test_distinct_designs_are_asked_and_counted_once() -> None:
    scorer = Counting()
    oracle = as_oracle(scorer)
    assert oracle(["A", "CC", "A"]).tolist() == [1, 2, 1]
    assert oracle(["CC", "GGG"]).tolist() == [2, 3]
    assert scorer.asked == ["A", "CC", "GGG"]
    assert oracle.calls == 3
    assert oracle(["A"]).dtype == torch.float64


def test_the_cache_keeps_infeasible_designs_infeasible() -> None:
    scorer = Counting(infeasible="CC")
    oracle = as_oracle(scorer)
    for _ in range(2):
        assert oracle(["A", "CC"]).isnan().tolist() == [False, True]
    assert scorer.asked == ["A", "CC"]
    assert oracle.calls == 2


def test_answers_are_recorded_before_they_are_used() -> None:
    """A crash between the answer and its use must not lose it; a record that fails must not be forgotten."""
    recorded: list[Answer] = []

    def full_disk(answers: list[Answer]) -> None:
        recorded.extend(answers)
        raise OSError("disk full")

    scorer = Counting(infeasible="CC")
    oracle = as_oracle(scorer, record=full_disk)
    with pytest.raises(OSError, match="disk full"):
        oracle(["A", "CC"])
    assert oracle.calls == 0
    assert recorded[0] == Answer("A", 1.0, None)
    assert recorded[1].reason == "returned None"
    assert math.isnan(recorded[1].value)


def test_a_plain_function_follows_the_rules_of_rewards() -> None:
    """``dt.finetune(policy, my_scorer, ...)``: None, infinities and raising designs are infeasible with a reason."""

    def scorer(designs: list[str]) -> list[Any]:
        if "bad" in designs:
            raise ValueError("bad design")
        return [{"none": None, "inf": math.inf}.get(design, 1.0) for design in designs]

    recorded: list[Answer] = []
    oracle = as_oracle(scorer, record=recorded.extend)
    values = oracle(["none", "inf", "bad", "good"])
    assert values.isnan().tolist() == [True, True, True, False]
    assert [answer.reason for answer in recorded] == ["returned None", "returned inf", "ValueError: bad design", None]
    with pytest.raises(OracleError, match="2 numbers, one per design; got 1"):
        as_oracle(lambda designs: [1.0])(["a", "b"])


def test_an_infinite_reward_never_gets_through() -> None:
    """Also from a reward that is no plain function, and so is not wrapped."""

    class Steep:
        reasons = None

        def __call__(self, designs: list[str]) -> list[float]:
            return [math.inf if design == "A" else 1.0 for design in designs]

    recorded: list[Answer] = []
    values = as_oracle(Steep(), record=recorded.extend)(["A", "CC"])
    assert values.isnan().tolist() == [True, False]
    assert recorded[0].reason == "returned inf"


def test_the_wrong_number_of_answers_is_an_error() -> None:
    class Short:
        reasons = None

        def __call__(self, designs: list[str]) -> list[float]:
            return [1.0]

    with pytest.raises(OracleError, match="expected 2 numbers, one per design; got 1"):
        as_oracle(Short())(["A", "CC"])


def test_a_first_batch_without_any_number_is_an_error_with_the_reason_and_is_not_recorded() -> None:
    recorded: list[Answer] = []
    oracle = as_oracle(TableReward({"GGG": 1.0}, "t"), record=recorded.extend)
    with pytest.raises(OracleError, match=r"of the first 2 designs; got NaN for all \(not measured\).*on 'A'"):
        oracle(["A", "CC"])
    assert not recorded
    assert oracle(["A", "GGG"]).isnan().tolist() == [True, False]
    assert oracle(["TT"]).isnan().all(), "later batches may be infeasible as a whole"


def test_what_was_paid_before_a_crash_is_prepaid_and_counted_when_used() -> None:
    """The history holds more than the checkpoint knows of: those cost nothing, and the counts repeat themselves."""
    first: list[Answer] = []
    oracle = as_oracle(Counting(), record=first.extend)
    oracle(["A", "CC"])
    saved = copy.deepcopy(oracle.state_dict())
    oracle(["CC", "GGG", "TTTT"])  # the crash comes after this
    assert oracle.calls == 4

    scorer = Counting()
    again = as_oracle(scorer, history=first)
    again.load_state_dict(saved)
    assert again.calls == 2
    assert again(["CC", "GGG", "TTTT"]).tolist() == [2, 3, 4]
    assert again.calls == 4
    assert scorer.asked == []
    again(["TTTT", "CCCCC"])
    assert scorer.asked == ["CCCCC"]
    assert again.calls == 5


def test_a_resumed_run_that_buys_more_keeps_its_places() -> None:
    """Saved places refer to the whole history, old and new, however often the run is interrupted."""
    history: list[Answer] = []
    for round_number in range(4):
        oracle = as_oracle(Counting(), history=list(history), record=history.extend)
        if round_number:
            oracle.load_state_dict(saved)
            assert oracle.calls == round_number
        oracle(["x" * (round_number + 1)])
        saved = json.loads(json.dumps({"calls": oracle.calls, "counted": oracle.state_dict()["counted"].tolist()}))
        saved["counted"] = torch.tensor(saved["counted"], dtype=torch.int64)
        with oracle.evaluating():
            oracle(["e" * (round_number + 10)])  # not counted, but it takes a place
    assert [answer.design[0] for answer in history] == list("xexexexe")
    assert oracle.evaluation_calls == 4
    again = as_oracle(Counting(), history=history)
    again.load_state_dict(saved)
    again(["x", "e" * 10])  # the second was bought for evaluation: training has not counted it yet
    assert again.calls == 5


def test_a_history_shorter_than_what_was_counted_is_refused() -> None:
    oracle = as_oracle(Counting())
    oracle(["A", "CC"])
    with pytest.raises(StateError, match="expected 2 answers or more"):
        as_oracle(Counting()).load_state_dict(oracle.state_dict())


def test_evaluation_is_counted_apart_even_if_it_raises() -> None:
    oracle = as_oracle(Counting())
    oracle(["A"])

    def interrupted() -> None:
        with oracle.evaluating():
            oracle(["A", "CC"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (oracle.calls, oracle.evaluation_calls) == (1, 1)
    oracle(["GGG"])
    assert (oracle.calls, oracle.evaluation_calls) == (2, 1)
    oracle(["CC"])  # training asks for what evaluation bought: it is training's too, in its own timeline
    assert (oracle.calls, oracle.evaluation_calls) == (3, 1)


def test_the_kind_of_oracle_follows_the_reward() -> None:
    problem = random_pairwise(2, 2)
    oracle = as_oracle(problem.reward)
    assert isinstance(oracle, DifferentiableOracle)
    p = torch.full((3, 2, 2), 0.5, dtype=torch.float64, requires_grad=True)
    oracle.on_probabilities(p).sum().backward()
    assert p.grad.abs().sum() > 0
    assert oracle.calls == 3
    table = as_oracle(TableReward({}, "t"))
    assert type(table) is Oracle
    assert not isinstance(table, DifferentiableReward)
    assert as_oracle(oracle) is oracle


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_designs_that_are_arrays_are_told_apart_by_their_values(kind: Any, tmp_path: Path) -> None:
    """Vectors and images are not hashable, and equal ones may be different objects; on record is a digest."""
    run = RunFolder(tmp_path)
    asked = []

    def total(designs: list[Any]) -> list[float]:
        asked.extend(designs)
        return [float(design.sum()) for design in designs]

    def some() -> list[Any]:
        return [kind(np.array([1.0, 2.0])), kind(np.array([[1.0, 2.0]])), kind(np.array([1.0, 2.0]))]

    oracle = recorded_oracle(total, run)
    assert oracle(some()).tolist() == [3, 3, 3]
    assert len(asked) == oracle.calls == 2
    again = recorded_oracle(total, run)
    again.load_state_dict(oracle.state_dict())
    assert again(some()).tolist() == [3, 3, 3]
    assert len(asked) == again.calls == 2
    assert all(row["design"].startswith("sha256:") for row in run.read(run.oracle))


def test_the_history_survives_on_disk(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    oracle = recorded_oracle(Counting(infeasible="CC"), run)
    oracle(["A", "CC"])
    with oracle.evaluating():
        oracle(["GGG"])
    rows = run.read(run.oracle)
    assert rows == [
        {"design": "A", "value": 1.0, "reason": None, "purpose": "training"},
        {"design": "CC", "value": None, "reason": "returned None", "purpose": "training"},
        {"design": "GGG", "value": 3.0, "reason": None, "purpose": EVALUATION},
    ]
    scorer = Counting()
    again = recorded_oracle(FunctionReward(scorer), run)
    assert again(["A", "CC", "GGG"]).isnan().tolist() == [False, True, False]
    assert scorer.asked == []
    assert again.evaluation_calls == 1
