"""Any Python function from a list of designs to numbers, as a reward.

``None``, NaN and infinities mean infeasible. If the function raises on a batch it is retried one design at a time, and
a design that raises is infeasible with that reason. It is an error if every design fails, unless these are a few
designs of a function that has scored others: a service that is down should stop a run, an odd design should not.
"""

from __future__ import annotations

import importlib.util
import math
import numbers
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from difftilt.core.reward import DifferentiableReward, Reward
from difftilt.errors import ConfigError, OracleError, nearest
from difftilt.types import Float, Tensor

FEW = 16
"""A function that has scored designs before may fail on all of fewer than this many."""


class _Failure(NamedTuple):
    """The answer for a design on which the function raised."""

    value: float
    reason: str


class FunctionReward:
    """Wraps ``function(designs) -> numbers``; keeps the reason of each infeasible design of the last call.

    Args:
        function: takes a list of designs and returns one number (or ``None``) per design.
        name: for messages and provenance.
    """

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        if not callable(function):
            raise ConfigError(f"expected a function; got {type(function).__name__}; pass something callable")
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__)
        self.reasons: list[str | None] = []
        self.proven = False
        """Whether it has scored a design before, also in an earlier session of the run."""

    def __call__(self, designs: Sequence[Any]) -> Float[Tensor, " B"]:
        """Numbers with NaN where infeasible, float64.

        Raises:
            OracleError: every design failed, or the function broke its contract.
        """
        designs = list(designs)
        try:
            answers = self._checked(self.function(designs), len(designs))
        except OracleError:
            raise
        except (Exception, SystemExit):  # a user's function may raise anything; find out which designs are to blame
            answers = self._one_by_one(designs)
        values, self.reasons = [], []
        said = list(getattr(self.function, "reasons", None) or [])  # a reward of ours, named in a file
        said = said if len(said) == len(answers) else [None] * len(answers)
        for answer, own in zip(answers, said, strict=True):
            value, reason = answer if isinstance(answer, _Failure) else _number(answer, self.name)
            reason = own if own and reason else reason
            values.append(value)
            self.reasons.append(reason)
        self.proven = self.proven or not all(map(math.isnan, values))
        return torch.tensor(values, dtype=torch.float64)

    def _one_by_one(self, designs: list[Any]) -> list[Any]:
        answers: list[Any] = []
        failures = 0
        for design in designs:
            try:
                answers.append(self._checked(self.function([design]), 1)[0])
            except OracleError:
                raise
            except (Exception, SystemExit) as error:
                failures += 1
                answers.append(_Failure(math.nan, f"{type(error).__name__}: {first_line(error)}"))
        if failures == len(designs) and (failures >= FEW or not self.proven):
            raise OracleError(
                f"expected '{self.name}' to score at least one of {failures} designs; got {answers[-1].reason} for "
                f"every one; try it on '{designs[0]}'"
            )
        return answers

    def _checked(self, answers: Any, expected: int) -> list[Any]:
        try:
            if isinstance(answers, str | bytes | dict | set | frozenset) or len(answers) is None:
                raise TypeError
        except TypeError:  # no length: a number, a generator, an array without axes
            raise OracleError(
                f"expected '{self.name}' to return {_numbers(expected)}; got {type(answers).__name__}; return a list"
            ) from None
        answers = list(answers)  # of a data frame these are its columns
        if len(answers) != expected:
            raise OracleError(
                f"expected '{self.name}' to return {_numbers(expected)}, one per design; got {len(answers)}; "
                "return one for each, None where infeasible"
            )
        return answers


def _numbers(count: int) -> str:
    return "1 number" if count == 1 else f"{count} numbers"


def _number(answer: Any, name: str) -> tuple[float, str | None]:
    if answer is None:
        return math.nan, "returned None"
    try:
        if isinstance(answer, str | bytes) or not (isinstance(answer, numbers.Real) or hasattr(answer, "__float__")):
            raise TypeError
        value = float(answer.detach() if isinstance(answer, Tensor) else answer)
    except OverflowError:  # an integer beyond floats
        value = math.inf
    except (TypeError, ValueError):
        raise OracleError(
            f"expected '{name}' to return numbers; got {type(answer).__name__} {answer!r:.40}; convert it with float()"
        ) from None
    return (value, None) if math.isfinite(value) else (math.nan, f"returned {value}")


def as_reward(reward: Reward) -> Reward:
    """A plain function as a :class:`FunctionReward`; other rewards as they are."""
    known = isinstance(reward, DifferentiableReward) or hasattr(reward, "reasons")
    return reward if known else FunctionReward(reward)


def first_line(error: BaseException) -> str:
    """What an exception says, in a line; a user's may not even be able to say it."""
    try:
        return (str(error).splitlines() or [""])[0]
    except Exception:
        return "an error that cannot say what it is"


def load_function(reference: str) -> FunctionReward:
    """The reward named ``scorer.py:my_function``.

    Raises:
        ConfigError: no such file or function, or the file does not run.
    """
    path, _, name = reference.rpartition(":")
    file = Path(path)
    if not path or not name.isidentifier():
        raise ConfigError(f"expected --reward FILE.py:FUNCTION; got '{reference}'; for example scorer.py:my_function")
    if not file.is_file():
        raise ConfigError(f"expected a Python file '{path}'; got no such file; check the path after --reward")
    spec = importlib.util.spec_from_file_location(f"difftilt_reward_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"expected a Python file ending in .py; got '{path}'; rename it")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look a function's module up there
    if str(file.resolve().parent) not in sys.path:
        sys.path.insert(0, str(file.resolve().parent))  # it may import its neighbours, as when run as a script
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"expected '{path}' to run; got {type(error).__name__}: {first_line(error)}; correct it"
        ) from error
    functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    if name not in functions:
        raise nearest(name, functions, what=f"function in '{path}'")
    return FunctionReward(getattr(module, name), reference)
