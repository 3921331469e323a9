r"""Several objectives as one reward: a weighted sum, on designs that meet requirements.

.. math:: r(x) = \sum_i w_i r_i(x) \quad\text{where } r_j(x) \lessgtr b_j \text{ for every requirement } j; \qquad
    \text{infeasible elsewhere}                                                                         \qquad (1)

A design of which an objective or a required number does not exist is infeasible too, with the reason. Every number is
asked for once per design and remembered, so that reports can show each objective by itself at no cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from difftilt.core.reward import DifferentiableReward, Reward, score_relaxed
from difftilt.errors import ConfigError, OracleError
from difftilt.rewards.oracle import name_of
from difftilt.types import Float, Tensor


@dataclass(frozen=True)
class Objective:
    """A term of the sum."""

    name: str
    reward: Reward
    weight: float = 1.0
    """Reward units of the sum per unit of this number; negative where less is better."""


@dataclass(frozen=True)
class Requirement:
    """A bound that designs must meet, itself included."""

    name: str
    reward: Reward
    sense: str
    """``">="`` or ``"<="``."""
    bound: float

    def broken_by(self, value: float) -> bool:
        """Whether a number misses the bound; NaN does."""
        return not (value >= self.bound if self.sense == ">=" else value <= self.bound)


class CombinedReward:
    """Equation (1); keeps the reason of each infeasible design of the last call.

    Args:
        objectives: the terms; their names differ.
        requirements: bounds, of an objective by its name or of something else.

    Raises:
        ConfigError: no objective, a name twice, a weight that is 0 or no number, an unknown sense.
    """

    def __init__(self, objectives: Sequence[Objective], requirements: Sequence[Requirement] = ()) -> None:
        names = [objective.name for objective in objectives]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"expected one or more objectives of different names; got {names}; add their weights up")
        for objective in objectives:
            if not math.isfinite(objective.weight) or objective.weight == 0:
                raise ConfigError(
                    f"expected a weight that is a number, not 0, for '{objective.name}'; got {objective.weight}; "
                    "leave it out, or require a bound of it"
                )
        for requirement in requirements:
            if requirement.sense not in (">=", "<=") or not math.isfinite(requirement.bound):
                raise ConfigError(
                    f"expected a bound such as {requirement.name}>=0.5; got '{requirement.sense}' and "
                    f"{requirement.bound}; use >= or <= and a number"
                )
        self.objectives, self.requirements = tuple(objectives), tuple(requirements)
        self._asked: dict[str, Reward] = {r.name: r.reward for r in (*self.requirements, *self.objectives)}
        self._known: dict[str, dict[Any, tuple[float, str | None]]] = {name: {} for name in self._asked}
        self._record: Callable[[list[dict[str, Any]]], None] | None = None
        self.reasons: list[str | None] = []

    def keep(self, history: Sequence[Mapping[str, Any]], record: Callable[[list[dict[str, Any]]], None]) -> None:
        """Take up numbers known from before, and say new ones to ``record`` before they are used.

        Args:
            history: what ``record`` was given: ``name``, ``design``, ``value``, ``reason``.
            record: makes numbers durable.
        """
        for row in history:
            if row["name"] in self._known:
                value = math.nan if row["value"] is None else row["value"]
                self._known[row["name"]][row["design"]] = (value, row["reason"])
        self._record = record

    @property
    def name(self) -> str:
        """The sum in words."""
        words = []
        for i, objective in enumerate(self.objectives):
            size = abs(objective.weight)
            words += ["−" if objective.weight < 0 else "+" if i else ""]
            words += [objective.name if size == 1 else f"{size:g} × {objective.name}"]
        signs = {">=": "≥", "<=": "≤"}
        bounds = [f"{r.name} {signs[r.sense]} {r.bound:g}" for r in self.requirements]
        return " ".join(filter(None, words)) + (f" where {' and '.join(bounds)}" if bounds else "")

    def each(self, designs: Sequence[Any]) -> dict[str, Float[Tensor, " B"]]:
        """Every number of the designs by itself, float64, NaN where there is none; required ones too."""
        keys = [name_of(design) for design in designs]
        for name, reward in self._asked.items():
            known = self._known[name]
            new = {key: design for key, design in zip(keys, designs, strict=True) if key not in known}
            if new:
                values = torch.as_tensor(reward(list(new.values())), dtype=torch.float64).tolist()
                reasons = getattr(reward, "reasons", None) or [None] * len(new)
                if len(values) != len(new):
                    raise OracleError(
                        f"expected {len(new)} numbers of '{name}', one per design; got {len(values)}; correct it"
                    )
                answers = dict(zip(new, zip(values, reasons, strict=True), strict=True))
                if self._record is not None:
                    self._record(
                        [{"name": name, "design": k, "value": v, "reason": why} for k, (v, why) in answers.items()]
                    )
                known.update(answers)
        return {
            name: torch.tensor([self._known[name][key][0] for key in keys], dtype=torch.float64) for name in self._asked
        }

    def __call__(self, designs: Sequence[Any]) -> Float[Tensor, " B"]:
        """The sum, NaN where infeasible, float64."""
        found = self.each(designs)
        total = torch.stack([objective.weight * found[objective.name] for objective in self.objectives]).sum(0)
        self.reasons = [self._reason(name_of(design)) for design in designs]
        unmet = torch.tensor([reason is not None for reason in self.reasons], dtype=torch.bool)
        return total.masked_fill(unmet, math.nan)

    def _reason(self, key: Any) -> str | None:
        for name in self._asked:
            value, reason = self._known[name][key]
            if not math.isfinite(value):
                return f"{name}: {reason or 'no number'}"
        for requirement in self.requirements:
            value = self._known[requirement.name][key][0]
            if requirement.broken_by(value):
                side = "below" if requirement.sense == ">=" else "above"
                return f"{requirement.name} {value:.4g} is {side} {requirement.bound:g}"
        return None


class DifferentiableCombined(CombinedReward):
    """The same where every objective has a gradient and nothing is required."""

    def on_probabilities(self, p: Float[Tensor, "B *event"]) -> Float[Tensor, " B"]:
        """The sum of relaxed designs. Gradient flows to ``p``."""
        terms = [o.weight * score_relaxed(cast(DifferentiableReward, o.reward), p) for o in self.objectives]
        return torch.stack(terms).sum(0)


def combined(objectives: Sequence[Objective], requirements: Sequence[Requirement] = ()) -> CombinedReward:
    """The reward (1), differentiable where it can be: with a requirement it is not, since a bound has no gradient."""
    smooth = not requirements and all(isinstance(o.reward, DifferentiableReward) for o in objectives)
    return (DifferentiableCombined if smooth else CombinedReward)(objectives, requirements)
