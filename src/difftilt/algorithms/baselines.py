r"""Baselines and scales of score-function methods, by name.

With the return ``R`` of a path (:mod:`difftilt.algorithms.paths`), its return to go from step ``k`` on
:math:`R_k = R + \sum_a w_a \sum_{j<k} l_{a,j}`, and ``c`` its condition, the advantage of step ``k`` is

==========  ===================================================================================================
``batch``   ``R`` minus the mean of the batch's other paths of its condition
``group``   the same (GRPO without its scale); a path alone in its condition teaches nothing
``running`` ``R`` minus a running mean over earlier updates of its condition (DDPO's tracker); at first ``batch``
``value``   :math:`R_k - V_\phi(x_t)`, a network fitted to returns to go by squared error
==========  ===================================================================================================

Each is independent of the step's own draw, so the gradient stays unbiased. Conditions are never compared where a design
may be infeasible (:mod:`difftilt.algorithms.advantages`). So a path that is alone in its condition is compared with the
whole batch, or the running mean, only while no other design of the batch is infeasible; else it teaches nothing: raise
``group`` of the conditions. ``scale`` divides by a standard deviation:
of the batch, of the group, or a running one of the condition (DDPO's tracker has mean and spread running). That makes
alpha a multiple of it: the law tuned toward changes from update to update, and near the optimum, where returns are
constant, noise is amplified. It is there for rewards without a unit; on exact problems it is off. Groups whose returns
are all alike (a spread below 1e-8), or that have fewer than two, are left the push toward feasibility alone, unscaled.

So ``baseline`` names the scope of the mean and ``scale`` that of the standard deviation: GRPO is ``group`` and
``group``, its variant with one standard deviation for all groups ``group`` and ``batch``. Groups whose returns are
alike to their rounding have advantages of exactly 0, and are counted; they stay in the denominator, the number of
paths.

References:
    Black et al. 2023 (per-prompt tracker), https://arxiv.org/abs/2305.13301; Shao et al. 2024 (GRPO),
    https://arxiv.org/abs/2402.03300.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from difftilt.algorithms.advantages import FeasibilitySettings, grouped_advantage, mean_of_others
from difftilt.algorithms.paths import PathInfo, ScoredPaths, Steps, path_return, split_steps
from difftilt.algorithms.state import GreedyState, check_settings, refuse_conditions, refuse_lone_paths
from difftilt.core.algorithm import Anchor
from difftilt.core.conditions import Conditions
from difftilt.core.policy import Policy
from difftilt.errors import nearest
from difftilt.rng import seeded_initialisation
from difftilt.types import Float, Tensor
from difftilt.values.network import ValueNetwork

BASELINES = ("batch", "group", "running", "value")
SCALES = ("none", "batch", "group", "running")
MEMORY = 0.9
"""Of running means and spreads, per update that saw the condition."""


class BaselineState(GreedyState):
    """A tuned state with the running means and, for ``value``, the network (nats)."""

    def __init__(
        self, policy: Policy, anchors: list[Anchor], conditions: Conditions | None, *, learning_rate: float, value: bool
    ) -> None:
        super().__init__(policy, anchors, conditions, learning_rate=learning_rate)
        self.value = None
        if value:
            with seeded_initialisation(0):
                self.value = ValueNetwork(policy).to(policy.device)
            self.value_optimiser = torch.optim.Adam(self.value.parameters(), lr=1e-2)
        count = 1 if conditions is None else len(conditions)
        self.mean = torch.full((count,), torch.nan, dtype=torch.float64, device=policy.device)
        self.variance = self.mean.clone()
        self.flat_groups = 0

    def state_dict(self) -> dict[str, Any]:
        """As the base, and the baselines."""
        own: dict[str, Any] = {"mean": self.mean, "variance": self.variance}
        if self.value is not None:
            own |= {"value": self.value.state_dict(), "value_optimiser": self.value_optimiser.state_dict()}
        return {**super().state_dict(), "baseline": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`.

        Raises:
            ValueError: it is of other conditions, or another baseline.
        """
        own = state["baseline"]
        if own["mean"].shape != self.mean.shape:
            raise ValueError(f"means of {len(own['mean'])} conditions, not {len(self.mean)}")
        if ("value" in own) != (self.value is not None):
            raise ValueError(f"{'a' if 'value' in own else 'no'} value network")
        super().load_state_dict(state)
        self.mean.copy_(own["mean"])
        self.variance.copy_(own["variance"])
        if self.value is not None:
            self.value.load_state_dict(own["value"])
            self.value_optimiser.load_state_dict(own["value_optimiser"])


@dataclass(frozen=True, kw_only=True)
class BaselineInfo(PathInfo):
    """What one update logs."""

    flat_groups: int = 0
    """Groups (conditions of the batch; one where there are none) whose advantages are all exactly 0, so that they
    taught nothing: returns all alike, no design feasible, or a path alone; healthy: few."""


@dataclass(frozen=True, kw_only=True)
class BaselineSettings(FeasibilitySettings):
    """Settings of score-function methods."""

    baseline: str = "batch"
    """``"batch"``, ``"group"``, ``"running"`` or ``"value"``; see :mod:`difftilt.algorithms.baselines`."""
    scale: str = "none"
    """``"none"``, ``"batch"``, ``"group"`` or ``"running"``: whose standard deviation divides the advantages."""

    rows_per_pass: int | None = None
    """Steps that the network reads at once in an update; a minibatch's others follow, and gradients are summed, so that
    memory is that of these. All of the minibatch when not set."""

    info = BaselineInfo

    def __post_init__(self) -> None:
        if self.baseline not in BASELINES:
            raise nearest(self.baseline, BASELINES, what="baseline")
        if self.scale not in SCALES:
            raise nearest(self.scale, SCALES, what="scale")

    def init(self, policy: Policy, anchors: list[Anchor], conditions: Conditions | None = None) -> BaselineState:
        """Start tuning ``policy`` in place."""
        check_settings(self)
        refuse_lone_paths(self.batch, 2, "compared with the others' mean")
        value = self.baseline == "value"
        if value:
            refuse_conditions(conditions, "the value baseline")
        return BaselineState(policy, anchors, conditions, learning_rate=self.learning_rate, value=value)

    def parts(self, steps: Steps) -> list[Steps]:
        """At most ``rows_per_pass`` at a time: the loss is a sum over steps."""
        return [steps] if self.rows_per_pass is None else split_steps(steps, self.rows_per_pass)

    def learn(self, state: BaselineState, data: ScoredPaths, rng: torch.Generator) -> Any:
        """The passes over ``data``, and the count of groups that had nothing to teach."""
        return replace(super().learn(state, data, rng), flat_groups=state.flat_groups)

    def targets(self, state: BaselineState, data: ScoredPaths) -> Float[Tensor, "K B"]:
        """Advantages of every step, nats. No gradient flows."""
        advantage = self._advantage(state, data)
        count = len(data.condition.unique())
        state.flat_groups = count - len(data.condition[(advantage != 0).any(0)].unique())
        return advantage

    def _advantage(self, state: BaselineState, data: ScoredPaths) -> Float[Tensor, "K B"]:
        """Advantages of every step, nats."""
        path, feasible = data.path, data.scores.feasible
        spent = path.log_ratio if path.kl is None else path.kl
        returns = path_return(data.scores.value, spent, state.weights)
        weight = self.weigh_feasibility(state.alpha)
        others = mean_of_others(returns, feasible, data.condition)
        baseline = others
        if self.baseline == "running":
            before = self._running(state, data, returns)
            baseline = before.where(~before.isnan(), others)
        elif self.baseline == "value":
            paid = (state.weights[:, None, None] * spent).sum(0)
            paid = paid.cumsum(0) - paid  # before each step
            baseline = state.alpha * self._fit(state, data, (returns + paid) / state.alpha) - paid
        advantage = grouped_advantage(returns, feasible, data.condition, feasibility_weight=weight)
        # The move is added to all paths alike, infeasible ones too: E[grad log p] = 0 over all, not over feasible ones.
        # It depends on the others only, whether it is made (not NaN) included.
        advantage = (advantage + (others - baseline).nan_to_num(nan=0.0)).expand(path.steps, -1)
        if self.baseline != "group":
            advantage = self._alone(advantage, baseline, returns, data)
        return self._scaled(state, advantage, weight, data) / state.alpha

    def _alone(
        self, advantage: Float[Tensor, "K B"], baseline: Tensor, returns: Float[Tensor, " B"], data: ScoredPaths
    ) -> Float[Tensor, "K B"]:
        """Paths alone in their condition: against the baseline, or the batch, while all others are feasible."""
        feasible, everyone = data.scores.feasible, torch.zeros_like(data.condition)
        alone = data.condition.bincount()[data.condition] == 1
        lost = (~feasible).sum() - (~feasible).long()  # among the others
        compared = returns - baseline.where(~baseline.isnan(), mean_of_others(returns, feasible, everyone))
        return compared.where(alone & (lost == 0) & ~compared.isnan(), advantage)

    def _running(self, state: BaselineState, data: ScoredPaths, returns: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The mean of earlier updates, by condition; NaN where there was none; then it moves on."""
        before = state.mean[data.condition]
        for label in data.condition[data.scores.feasible].unique():
            now = returns[(data.condition == label) & data.scores.feasible].mean()
            state.mean[label] = self._remembered(state.mean[label], now)
        return before

    def _fit(self, state: BaselineState, data: ScoredPaths, to_go: Float[Tensor, "K B"]) -> Float[Tensor, "K B"]:
        """Predictions made before the network has seen this batch, nats; then it is fitted to it."""
        assert state.value is not None
        path, feasible = data.path, data.scores.feasible.repeat(data.path.steps)
        x_t, t = path.states[:-1].flatten(0, 1), path.times[:-1].repeat_interleave(path.batch)
        with torch.no_grad():
            before = state.value(x_t, t).double()
        if feasible.any():
            for _ in range(4):
                loss = F.mse_loss(state.value(x_t, t)[feasible].double(), to_go.flatten()[feasible])
                state.value_optimiser.zero_grad(set_to_none=True)
                loss.backward()
                state.value_optimiser.step()
        return before.view(path.steps, path.batch)

    def _scaled(
        self, state: BaselineState, advantage: Float[Tensor, "K B"], weight: float, data: ScoredPaths
    ) -> Float[Tensor, "K B"]:
        if self.scale == "none":
            return advantage
        group = torch.zeros_like(data.condition) if self.scale == "batch" else data.condition
        alike = torch.zeros_like(data.scores.value)
        push = grouped_advantage(alike, data.scores.feasible, data.condition, feasibility_weight=weight)
        scaled = push.repeat(len(advantage), 1)
        for label in group.unique():
            rows = group == label
            known = rows & data.scores.feasible
            variance = advantage[:, known].var() if known.sum() > 1 else advantage.new_tensor(torch.nan)
            if self.scale == "running":
                if variance.isfinite():
                    state.variance[label] = self._remembered(state.variance[label], variance)
                variance = state.variance[label]
            if variance > 1e-16:
                scaled[:, rows] = advantage[:, rows] / variance.sqrt()
        return scaled

    def _remembered(self, before: Float[Tensor, ""], now: Float[Tensor, ""]) -> Float[Tensor, ""]:
        return now if before.isnan() else MEMORY * before + (1 - MEMORY) * now
