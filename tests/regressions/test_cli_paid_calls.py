"""What was paid for: counted once, told apart by purpose, never lost.

Found while the command line was written: counting by the length of the history took evaluation's answers for
training's; a damaged line in the middle of ``oracle.jsonl`` cut off everything after it; a scorer that raised on the
one new design of a late batch ended the run.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from difftilt.errors import OracleError, StateError
from difftilt.rewards.function import FunctionReward, load_function
from difftilt.rewards.oracle import EVALUATION, TRAINING, Answer, Oracle
from difftilt.tracking.checkpoint import load_checkpoint, save_checkpoint
from difftilt.tracking.run import RunFolder


def length(designs):
    return [float(len(design)) for design in designs]


def test_evaluation_before_training_does_not_count_as_training(tmp_path):
    bought: list[Answer] = []
    oracle = Oracle(FunctionReward(length), record=bought.extend)
    with oracle.evaluating():
        oracle(["a", "bb", "ccc"])
    oracle(["bb", "dddd"])
    assert (oracle.calls, oracle.evaluation_calls) == (2, 3)
    assert [answer.purpose for answer in bought] == [EVALUATION] * 3 + [TRAINING]
    save_checkpoint(tmp_path, 1, oracle.state_dict())
    oracle(["a", "eeeee"])
    again = Oracle(FunctionReward(length), history=bought)
    again.load_state_dict(load_checkpoint(tmp_path)[1])
    assert (again.calls, again.evaluation_calls) == (2, 3)
    again(["a", "eeeee"])
    assert again.calls == oracle.calls == 4


def test_an_oracle_without_calls_is_restored(tmp_path):
    save_checkpoint(tmp_path, 1, Oracle(FunctionReward(length)).state_dict())
    oracle = Oracle(FunctionReward(length))
    oracle.load_state_dict(load_checkpoint(tmp_path)[1])
    assert oracle.calls == 0


def test_a_history_that_lost_answers_is_refused():
    oracle = Oracle(FunctionReward(length))
    oracle(["a", "bb"])
    with pytest.raises(StateError, match=r"expected 2 answers or more in oracle\.jsonl; got 0; put the file back"):
        Oracle(FunctionReward(length)).load_state_dict(oracle.state_dict())


def test_only_a_last_line_without_its_end_is_dropped(tmp_path):
    run = RunFolder(tmp_path)
    run.append(run.oracle, [{"design": "a"}, {"design": "b"}])
    whole = run.oracle.read_bytes()
    run.oracle.write_bytes(whole + b'{"design": "c')
    assert run.read(run.oracle) == [{"design": "a"}, {"design": "b"}]
    assert run.oracle.read_bytes() == whole
    damaged = b'{"design"\n' + whole
    run.oracle.write_bytes(damaged)
    with pytest.raises(StateError, match=r"oracle\.jsonl', line 1; got a damaged line"):
        run.read(run.oracle)
    assert run.oracle.read_bytes() == damaged


def test_rewinding_keeps_the_records_whole_at_every_moment(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    run.append(run.metrics, [{"step": step} for step in (1, 2, 3)])
    monkeypatch.setattr(
        Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(StateError, match="got 'No space left on device'; free space"):
        run.rewind_metrics(2)
    assert [record["step"] for record in run.read(run.metrics)] == [1, 2, 3]


def test_one_odd_design_does_not_end_a_run_but_a_dead_scorer_does():
    def scorer(designs):
        if any(design.startswith("X") for design in designs):
            raise ValueError("odd")
        return length(designs)

    with pytest.raises(OracleError, match="got ValueError: odd for every one"):
        FunctionReward(scorer)(["X"])
    reward = FunctionReward(scorer)
    assert reward(["a", "X"]).tolist()[0] == 1.0
    assert math.isnan(reward(["X"]).item())
    assert reward.reasons == ["ValueError: odd"]
    with pytest.raises(OracleError, match="score at least one of 16 designs"):
        reward([f"X{i}" for i in range(16)])


@pytest.mark.parametrize("answers", [[(1.0, "fine")], [[1.0]], [object()], ["1.0"], {1.0}])
def test_what_is_no_number_is_refused(answers):
    with pytest.raises(OracleError, match="expected 'lambda' to return"):
        FunctionReward(lambda designs: answers, "lambda")(["a"])


def test_a_scorer_may_import_its_neighbours_and_hold_dataclasses(tmp_path):
    (tmp_path / "neighbour_of_scorer.py").write_text("WEIGHT = 2.0\n")
    (tmp_path / "my_scorer.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nimport neighbour_of_scorer\n"
        "@dataclass\nclass Weight:\n    value: float\n"
        "def f(designs):\n    return [Weight(neighbour_of_scorer.WEIGHT).value for _ in designs]\n"
    )
    assert load_function(f"{tmp_path}/my_scorer.py:f")(["a"]).tolist() == [2.0]
