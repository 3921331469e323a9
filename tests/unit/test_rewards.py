"""Rewards from functions, tables and ensembles: what counts as a number, as infeasible, and as a broken contract."""

from __future__ import annotations

import fractions
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from difftilt.core.codec import TokenCodec
from difftilt.core.reward import DifferentiableReward, Reward
from difftilt.errors import ConfigError, OracleError, StateError
from difftilt.networks import ConvRegressor, RecurrentRegressor
from difftilt.rewards.ensemble import EnsembleReward
from difftilt.rewards.function import FunctionReward, as_reward, load_function
from difftilt.rewards.table import TableReward
from difftilt.rng import seeded_initialisation

DESIGNS = ["A", "CC", "GGG"]


def answering(answers: Any) -> FunctionReward:
    return FunctionReward(lambda designs: answers, "f")


# --- functions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answers",
    [
        [1, 2, 3],
        (1.0, 2.0, 3.0),
        np.array([1, 2, 3]),
        np.array([1, 2, 3], dtype=np.float32),
        torch.tensor([1.0, 2.0, 3.0]),
        torch.tensor([1.0, 2.0, 3.0], requires_grad=True),
        torch.tensor([1, 2, 3], dtype=torch.bfloat16),
        pd.Series([1.0, 2.0, 3.0], index=[7, 8, 9]),
        [np.float32(1), np.int64(2), torch.tensor(3)],
        [fractions.Fraction(1), 2, 3.0],
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_sequence_of_numbers_will_do(answers: Any) -> None:
    reward = answering(answers)
    values = reward(DESIGNS)
    assert values.dtype == torch.float64
    assert values.tolist() == [1.0, 2.0, 3.0]
    assert reward.reasons == [None] * 3


def test_truth_values_are_zero_and_one() -> None:
    assert answering([True, False, np.bool_(True)])(DESIGNS).tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "returned None"),
        (math.nan, "returned nan"),
        (np.float32("nan"), "returned nan"),
        (math.inf, "returned inf"),
        (-math.inf, "returned -inf"),
        (10**400, "returned inf"),
    ],
)
def test_what_is_no_finite_number_is_infeasible_with_its_reason(answer: Any, reason: str) -> None:
    reward = answering([1.0, answer, 3.0])
    values = reward(DESIGNS)
    assert values.isnan().tolist() == [False, True, False]
    assert reward.reasons == [None, reason, None]


def test_a_raising_function_is_asked_again_one_by_one() -> None:
    asked: list[list[str]] = []

    def picky(designs: list[str]) -> list[float]:
        asked.append(designs)
        if "CC" in designs:
            raise KeyError("no CC\nplease")
        return [float(len(design)) for design in designs]

    reward = FunctionReward(picky)
    values = reward(DESIGNS)
    assert values[[0, 2]].tolist() == [1.0, 3.0]
    assert math.isnan(values[1])
    assert reward.reasons[0] is reward.reasons[2] is None
    assert reward.reasons[1].startswith("KeyError: 'no CC")
    assert "\n" not in reward.reasons[1]
    assert asked == [DESIGNS, ["A"], ["CC"], ["GGG"]]
    assert not reward(["A"]).isnan().any()
    assert reward.reasons == [None], "reasons are those of the last call"


def test_a_function_that_fails_on_every_design_is_an_error_that_shows_one() -> None:
    def broken(designs: list[str]) -> list[float]:
        raise RuntimeError("no licence")

    with pytest.raises(
        OracleError, match="one of 3 designs; got RuntimeError: no licence for every one; try it on 'A'"
    ):
        FunctionReward(broken)(DESIGNS)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([1.0], "3 numbers, one per design; got 1"),
        ([1.0] * 4, "one per design; got 4"),
        (["high", "low", "low"], "to return numbers; got str 'high'"),
        ([1.0, b"1", 2.0], "got bytes"),
        ([1.0, 1j, 2.0], "got complex"),
        ([1.0, [2.0, 3.0], 2.0], "got list"),
        (np.ones((3, 2)), "to return numbers; got ndarray"),
        (1.0, "got float; return a list"),
        (np.array(1.0), "got ndarray; return a list"),
        (torch.tensor(1.0), "got Tensor; return a list"),
        ((value for value in [1, 2, 3]), "got generator; return a list"),
        ({"A": 1, "CC": 2, "GGG": 3}, "got dict; return a list"),
        ("123", "got str; return a list"),
        (None, "got NoneType; return a list"),
        (pd.DataFrame({0: [1.0, 2.0, 3.0]}), "one per design; got 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_broken_contract_is_an_error_and_not_an_infeasible_design(answers: Any, message: str) -> None:
    with pytest.raises(OracleError) as caught:
        answering(answers)(DESIGNS)
    assert message in str(caught.value)
    assert "'f'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_contract_broken_in_the_retry_is_seen_too() -> None:
    def odd(designs: list[str]) -> list[float]:
        if len(designs) > 1:
            raise ValueError
        return [1.0, 2.0]

    with pytest.raises(OracleError, match="to return 1 number, one per design; got 2"):
        FunctionReward(odd)(DESIGNS)


def test_only_a_plain_function_is_wrapped() -> None:
    table = TableReward({"A": 1.0}, "t")
    assert as_reward(table) is table
    wrapped = as_reward(lambda designs: [None] * len(designs))
    assert isinstance(wrapped, FunctionReward)
    assert as_reward(wrapped) is wrapped


def test_a_table_knows_what_was_measured() -> None:
    reward = TableReward({"A": 1.5}, "t")
    values = reward(["A", "CC"])
    assert values[0] == 1.5
    assert values.isnan().tolist() == [False, True]
    assert reward.reasons == [None, "not measured"]
    assert not isinstance(reward, DifferentiableReward)


# --- functions from files ------------------------------------------------------------------------------------------


def test_a_function_is_loaded_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "scorer.py"
    file.write_text("def gc(designs):\n    return [d.count('G') for d in designs]\n")
    reward = load_function(f"{file}:gc")
    assert reward(DESIGNS).tolist() == [0, 0, 3]
    assert reward.name == f"{file}:gc"


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("def my_score(d): ...", "my_scores", "did you mean 'my_score'?"),
        ("x = 1", "f", "expected a known function in"),
        ("_f = print", "_f", "expected a known function in"),
        ("def f(:", "f", "to run; got SyntaxError"),
        ("import does_not_exist_anywhere", "f", "got ModuleNotFoundError"),
        ("raise ValueError('two\\nlines')", "f", "got ValueError: two; correct it"),
        ("import sys; sys.exit('bye')", "f", "got SystemExit: bye"),
        ("f = 3", "f", "expected a known function in"),
        ("def f(d): ...", "f(d)", "expected --reward FILE.py:FUNCTION"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_one_line(tmp_path: Path, text: str, name: str, message: str) -> None:
    file = tmp_path / "scorer.py"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_function(f"{file}:{name}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("scorer.py", "expected --reward FILE.py:FUNCTION; got 'scorer.py'"),
        ("nowhere.py:f", "got no such file"),
        (":f", "expected --reward FILE.py:FUNCTION"),
    ],
)
def test_a_reference_without_a_file_is_explained(reference: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_function(reference)


def test_a_file_that_is_no_python_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scorer.txt").write_text("def f(d): ...")
    with pytest.raises(ConfigError, match=r"expected a Python file ending in \.py"):
        load_function(f"{tmp_path / 'scorer.txt'}:f")


# --- ensembles -----------------------------------------------------------------------------------------------------

CODEC = TokenCodec("ACGT", 8)


def ensemble(kind: str = "conv", *, dropout: float = 0.3) -> EnsembleReward:
    make = {
        "conv": lambda: ConvRegressor(4, 8, width=8, kernel=3, dilations=(1, 2), hidden=8, dropout=dropout),
        "recurrent": lambda: RecurrentRegressor(4, 8, width=8, kernel=3, dropout=dropout),
    }[kind]
    with seeded_initialisation(0):
        members = [make() for _ in range(3)]
    return EnsembleReward(members, CODEC, mean=2.0, scale=3.0, card={"name": "tiny", "metrics": {"rows": 5}})


def some_designs(n: int = 40) -> list[str]:
    return CODEC.decode(torch.randint(4, (n, 8), generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("kind", ["conv", "recurrent"])
def test_on_probabilities_at_one_hot_is_the_call(kind: str) -> None:
    """Defect 6: guidance fed log-probabilities to a reward that expects probabilities; that must not agree (twin)."""
    reward, designs = ensemble(kind), some_designs()
    one_hot = torch.nn.functional.one_hot(CODEC.encode(designs), 4).float()
    torch.testing.assert_close(reward.on_probabilities(one_hot), reward(designs), rtol=0, atol=1e-5)
    logs = (0.97 * one_hot + 0.01).log()
    assert (reward.on_probabilities(logs) - reward(designs)).abs().max() > 0.1
    assert isinstance(reward, DifferentiableReward)
    assert isinstance(reward, Reward)


@pytest.mark.parametrize("kind", ["conv", "recurrent"])
def test_gradient_flows_to_the_input_and_not_to_the_parameters(kind: str) -> None:
    """Pitfall 26: frozen and in eval mode, but not under no_grad. The gradient is that of a finite difference."""
    reward = ensemble(kind).double()
    noise = torch.Generator().manual_seed(1)
    p = torch.softmax(torch.randn(2, 8, 4, generator=noise, dtype=torch.float64), -1).requires_grad_()
    reward.on_probabilities(p).sum().backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in reward.parameters())
    assert not reward.training
    direction = torch.randn(2, 8, 4, generator=noise, dtype=torch.float64)
    with torch.no_grad():
        ahead, behind = (reward.on_probabilities(p + sign * 1e-6 * direction).sum() for sign in (1, -1))
    assert (p.grad * direction).sum().item() == pytest.approx((ahead - behind).item() / 2e-6, rel=1e-4)


def test_relaxed_tokens_of_another_precision_are_read() -> None:
    """A float64 policy tuned on a float32 reward: the gradient comes back in float64."""
    p = torch.full((2, 8, 4), 0.25, dtype=torch.float64, requires_grad=True)
    ensemble().on_probabilities(p).sum().backward()
    assert p.grad.dtype == torch.float64
    assert p.grad.abs().sum() > 0


def test_the_reward_is_the_mean_in_reward_units_and_repeats_itself() -> None:
    reward, designs = ensemble(), some_designs()
    x = CODEC.encode(designs)
    with torch.no_grad():
        expected = 2.0 + 3.0 * torch.stack([member(x) for member in reward.members]).mean(0)
    torch.testing.assert_close(reward(designs), expected)
    assert torch.equal(reward(designs), reward(designs)), "dropout is on"
    torch.testing.assert_close(reward(x), expected)
    torch.testing.assert_close(reward(some_designs(3000))[-1:], reward(some_designs(3000)[-1:]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["conv", "recurrent"])
def test_an_ensemble_comes_back_from_its_folder(kind: str, tmp_path: Path) -> None:
    reward, designs = ensemble(kind), some_designs()
    reward.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = EnsembleReward.from_pretrained(str(tmp_path))
    assert torch.equal(again(designs), reward(designs))
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert again.card == reward.card
    assert "tiny" in (tmp_path / "README.md").read_text()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["regressor"]["type"] == kind


def test_a_damaged_ensemble_is_refused(tmp_path: Path) -> None:
    ensemble().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(StateError, match="expected a model folder with"):
        EnsembleReward.from_pretrained(str(tmp_path))
    ensemble("recurrent").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["members"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(StateError, match="is it another model's file"):
        EnsembleReward.from_pretrained(str(tmp_path))
    with pytest.raises(StateError, match="expected a model folder"):
        EnsembleReward.from_pretrained(str(tmp_path / "nowhere"))
