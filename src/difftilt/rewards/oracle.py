"""A paid reward: counted, cached, recorded, and never asked twice for the same design.

The history of answers is the run's ``oracle.jsonl``. After a crash it may hold answers that the restored checkpoint
does not know of yet: those are *prepaid*. They cost nothing when asked for again, and are counted when they are, so
that a resumed run repeats the numbers of an uninterrupted one.

Evaluation asks the same oracle, so that what training paid for is not bought again; what evaluation buys is recorded as
such and counted apart.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from difftilt.core.ranks import of_first
from difftilt.core.reward import ConditionalReward, DifferentiableReward, Reward, score_relaxed, under
from difftilt.errors import OracleError, StateError
from difftilt.rewards.function import FunctionReward, as_reward
from difftilt.types import Condition, Float, Tensor

TRAINING, EVALUATION = "training", "evaluation"


class Answer(NamedTuple):
    """One paid call."""

    design: Any
    """The design; of an array (a vector, an image) a digest."""
    value: float
    reason: str | None
    purpose: str = TRAINING
    """What it was bought for."""


class Oracle:
    """Wraps a reward whose calls count.

    Args:
        reward: the function that is paid for; deterministic.
        history: answers already paid for, in order.
        record: called with the new answers of a batch before they are used, to make them durable.
    """

    def __init__(
        self,
        reward: Reward,
        *,
        history: Sequence[Answer] = (),
        record: Callable[[list[Answer]], None] | None = None,
    ) -> None:
        self.reward, self._record = reward, record
        self._answers = {answer.design: answer for answer in history}
        if isinstance(reward, FunctionReward) and any(math.isfinite(answer.value) for answer in history):
            reward.proven = True
        self._counted: set[Any] = set()
        self._purpose = TRAINING
        self.calls = 0
        """Training's calls in this run's timeline: distinct designs, and relaxed designs each time they are scored."""
        self.evaluation_calls = sum(answer.purpose == EVALUATION for answer in history)
        """Designs that were bought for evaluation only."""

    @contextmanager
    def evaluating(self) -> Generator[None]:
        """What is bought inside the block is recorded and counted as evaluation."""
        self._purpose = EVALUATION
        try:
            yield
        finally:
            self._purpose = TRAINING

    def __call__(self, designs: Sequence[Any]) -> Float[Tensor, " B"]:
        """Values of designs, NaN where infeasible, float64.

        Raises:
            OracleError: the whole first batch is infeasible, or the reward broke its contract.
        """
        return self._answered([name_of(design) for design in designs], designs, self.reward)

    def _answered(self, names: list[Any], designs: Sequence[Any], reward: Reward) -> Float[Tensor, " B"]:
        """Answers by name. Of several processes together the first one asks, and tells the others."""
        values, self.calls, self.evaluation_calls = of_first(lambda: self._bought(names, designs, reward))
        return torch.tensor(values, dtype=torch.float64)

    def _bought(self, names: list[Any], designs: Sequence[Any], reward: Reward) -> tuple[list[float], int, int]:
        """Values by name, those not known yet from ``reward``; and both counts."""
        new = {name: design for name, design in zip(names, designs, strict=True) if name not in self._answers}
        if new:
            answers = self._ask(new, reward)
            if not self._answers and all(math.isnan(answer.value) for answer in answers):
                raise OracleError(
                    f"expected a number for at least one of the first {len(new)} designs; got NaN for all "
                    f"({answers[0].reason or 'no reason given'}); check the reward on '{answers[0].design}'"
                )
            if self._record is not None:
                self._record(answers)
            self._answers.update((answer.design, answer) for answer in answers)
            if self._purpose == EVALUATION:
                self.evaluation_calls += len(new)
        if self._purpose == TRAINING:
            fresh = set(names) - self._counted
            self._counted |= fresh
            self.calls += len(fresh)
        return [self._answers[name].value for name in names], self.calls, self.evaluation_calls

    def _ask(self, new: dict[Any, Any], reward: Reward) -> list[Answer]:
        """Pay for designs, by name; what is not finite becomes NaN."""
        values = torch.as_tensor(reward(list(new.values())), dtype=torch.float64).tolist()
        reasons = getattr(reward, "reasons", None) or [None] * len(new)
        if len(values) != len(new) or len(reasons) != len(new):
            raise OracleError(f"expected {len(new)} numbers, one per design; got {len(values)}; correct the reward")
        answers = []
        for name, value, reason in zip(new, values, reasons, strict=True):
            if not math.isfinite(value):
                value, reason = math.nan, reason or f"returned {value}"
            answers.append(Answer(name, value, reason, self._purpose))
        return answers

    def state_dict(self) -> dict[str, Any]:
        """The count, and which answers it covers, by their place in the run's ``oracle.jsonl``."""
        places = [place for place, design in enumerate(self._answers) if design in self._counted]
        return {"calls": self.calls, "counted": torch.tensor(places, dtype=torch.int64)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the count; later answers of the history become prepaid.

        Raises:
            StateError: the history lacks answers that were counted.
        """
        self.calls = state["calls"]
        designs = list(self._answers)
        places = state["counted"].tolist()
        if places and places[-1] >= len(designs):
            raise StateError(
                f"expected {places[-1] + 1} answers or more in oracle.jsonl; got {len(designs)}; put the file back"
            )
        self._counted = {designs[place] for place in places}


class DifferentiableOracle(Oracle):
    """An :class:`Oracle` over a reward that also scores relaxed designs; those are counted, not recorded."""

    reward: DifferentiableReward

    def on_probabilities(self, p: Float[Tensor, "B *event"]) -> Float[Tensor, " B"]:
        """Reward of relaxed designs. Gradient flows to ``p``."""
        self.calls += p.shape[0]
        return score_relaxed(self.reward, p)


class ConditionalOracle(Oracle):
    """An :class:`Oracle` over a reward that depends on conditions: one answer per design *and* condition."""

    reward: ConditionalReward

    def under(self, cond: Condition) -> Reward:
        """The oracle for designs made for these conditions, one row each."""
        labels = [
            hashlib.sha256(b"".join(value[row].numpy(force=True).tobytes() for value in cond.values())).hexdigest()[:12]
            for row in range(len(next(iter(cond.values()))))
        ]

        def answered(designs: Sequence[Any]) -> Float[Tensor, " B"]:
            names = [f"{name_of(design)} for {label}" for design, label in zip(designs, labels, strict=True)]
            first = {name: row for row, name in reversed(list(enumerate(names)))}
            rows = torch.tensor([first[name] for name in dict.fromkeys(names) if name not in self._answers]).long()
            bought = under(self.reward, {key: value[rows.to(value.device)] for key, value in cond.items()})
            return self._answered(names, designs, bought)

        return answered


def as_oracle(reward: Reward, **options: Any) -> Oracle:
    """The right kind of oracle for a reward or a plain function; an oracle as it is."""
    if isinstance(reward, Oracle):
        return reward
    if isinstance(reward, ConditionalReward):
        return ConditionalOracle(reward, **options)
    kind = DifferentiableOracle if isinstance(reward, DifferentiableReward) else Oracle
    return kind(as_reward(reward), **options)


def name_of(design: Any) -> Any:
    """What tells a design from others and can be written down: the design itself, of an array a digest."""
    if not isinstance(design, Tensor | np.ndarray):
        return design
    array = design.numpy(force=True) if isinstance(design, Tensor) else design
    return "sha256:" + hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()
