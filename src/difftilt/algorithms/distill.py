r"""Distillation: fit the chain to the weighted paths of a steering sampler, so that later designs cost no reward call.

A sampler steers the first anchor's policy and returns paths with weights; with their shares among the :math:`B_c` paths
of their own condition, :math:`\omega_b = \frac{B_c}{B} w_b / \sum_c w` (weights of different conditions have different
normalisers, and do not compare),

.. math:: L(\theta) = - \sum_b \omega_b \sum_k \log p_\theta(x_s^b | x_t^b)                                 \qquad (1)

whose minimiser has the law of the sampler itself, path by path: the tilted one for ``smc`` (each population with its
own bias of order 1 / N from self-normalising) and ``refine``, (2)* in the limit of many candidates for
``value_weighted``, whatever ``best_of_n`` does. Numbers logged are those of the sampler's paths.

References:
    Uehara et al. 2024, https://arxiv.org/abs/2407.13734; Su et al. 2025 (VIDD), https://arxiv.org/abs/2507.00445.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from difftilt.algorithms.paths import PathSettings, ScoredPaths, Steps
from difftilt.algorithms.replay import path_log_prob
from difftilt.algorithms.reward_weighted_mle import weighted_mle_loss
from difftilt.algorithms.state import TunedState, check_settings
from difftilt.core.algorithm import Anchor, Sampler
from difftilt.core.conditions import Conditions
from difftilt.core.policy import Policy, counting_passes
from difftilt.core.reward import Reward, score, under
from difftilt.core.trajectory import Trajectory
from difftilt.core.value import Value
from difftilt.errors import UnsupportedError, nearest
from difftilt.rewards.oracle import as_oracle
from difftilt.samplers.best_of_n import BestOfN
from difftilt.samplers.refine import Refine
from difftilt.samplers.smc import SMC
from difftilt.samplers.value_weighted import ValueWeighted
from difftilt.types import Float, Int, Tensor

TEACHERS: dict[str, type] = {"smc": SMC, "refine": Refine, "value_weighted": ValueWeighted, "best_of_n": BestOfN}


class DistillState(TunedState):
    """:class:`TunedState` with the teacher and the value it steers by, both free to be replaced before an update."""

    teacher: Sampler
    """Draws weighted paths."""
    value: Value | None = None
    """Soft value for the teacher; its own choice where not given."""
    log_share: Float[Tensor, " B"]
    """Log shares of the last batch's weights."""


def log_shares(log_weight: Float[Tensor, " B"], condition: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    r"""Log of :math:`\omega`, nats; ``-inf`` in conditions without any weight."""
    share = torch.full_like(log_weight, -math.inf)
    for label in condition[log_weight > -math.inf].unique():
        rows = condition == label
        share[rows] = log_weight[rows].log_softmax(0) + rows.double().mean().log()
    return share


@dataclass(frozen=True, kw_only=True)
class Distill(PathSettings):
    """Settings of distillation; see the module for the method."""

    teacher: str = "smc"
    """``"smc"``, ``"refine"``, ``"value_weighted"`` or ``"best_of_n"``."""
    effort: int | None = None
    """Particles, moves or candidates of the teacher; its own default when not set."""
    epochs: int = 4
    """Passes over the paths of an update: they stay valid, and scoring them is what costs."""
    minibatches: int = 4
    """Optimiser steps per pass."""

    tempered: ClassVar[bool] = False
    """The teacher and its value keep the first alpha."""

    def __post_init__(self) -> None:
        if self.teacher not in TEACHERS:
            raise nearest(self.teacher, TEACHERS, what="teacher")

    def init(self, policy: Policy, anchors: list[Anchor], conditions: Conditions | None = None) -> DistillState:
        """Start tuning ``policy`` in place.

        Raises:
            UnsupportedError: several anchors: a sampler steers one policy.
        """
        check_settings(self)
        state = DistillState(policy, anchors, conditions, learning_rate=self.learning_rate)
        if len(anchors) > 1:
            raise UnsupportedError(
                f"expected one anchor, the policy that is steered; got {len(anchors)}; use --algorithm ppo or "
                "trajectory_balance"
            )
        effort = {"smc": "particles", "refine": "moves"}.get(self.teacher, "candidates")
        own = {} if self.teacher == "best_of_n" else {"alpha": state.alpha}
        chosen = {} if self.effort is None else {effort: self.effort}
        state.teacher = TEACHERS[self.teacher](**own, **chosen)
        return state

    def collect(self, state: DistillState, reward: Reward, rng: torch.Generator) -> ScoredPaths:
        """Weighted paths of the teacher, as the tuned policy sees them."""
        condition, cond = state.draw_conditions(self.batch, rng)
        reference, oracle = state.references[0], as_oracle(reward)
        bought = oracle.calls
        with counting_passes(reference, state.policy) as passes:
            drawn = state.teacher(reference, oracle, self.batch, rng, cond=cond, value=state.value, paths=True)
            assert drawn.states is not None
            nobody = torch.zeros((1, reference.steps, self.batch), dtype=torch.float64, device=state.policy.device)
            path = Trajectory(drawn.states, nobody[0], nobody, reference.grid, cond, silent=reference.silent)
            own, theirs = path_log_prob(state.policy, path), path_log_prob(reference, path)
        state.x_0 = drawn.x_0
        scores = score(under(oracle, cond), state.policy.codec, drawn.x_0)
        state.log_share = log_shares(drawn.log_weight.where(scores.feasible, -math.inf), condition)
        return ScoredPaths(
            replace(path, log_prob=own, reference_log_prob=theirs[None]),
            scores,
            theirs.sum(0),
            own=torch.ones_like(scores.feasible),
            condition=condition,
            network_evaluations=passes.rows,
            oracle_calls=oracle.calls - bought,
        )

    def passes(self) -> tuple[int, int]:
        """As set."""
        return self.epochs, self.minibatches

    def targets(self, state: DistillState, data: ScoredPaths) -> Float[Tensor, " B"]:
        """Coefficients, ``B`` times the share of each path, no unit; 0 for conditions without a feasible design."""
        return len(state.log_share) * state.log_share.exp()

    def loss(
        self,
        state: DistillState,
        data: ScoredPaths,
        targets: Float[Tensor, " B"],
        steps: Steps,
        rows: Int[Tensor, " P"],
        rng: torch.Generator,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Equation (1)."""
        log_prob = steps.log_prob_under(state.policy)
        return weighted_mle_loss(log_prob, targets[steps.path], scale=steps.scale, paths=len(rows)), {}
