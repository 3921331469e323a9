r"""Scored paths: what every method that learns from finished paths collects, keeps and draws its steps from.

With anchors :math:`(p_a, w_a)`, :math:`\alpha = \sum_a w_a` and :math:`L_a = \sum_k l_{a,k}` the return of a path is

.. math:: R = r(x_0) - \sum_a w_a L_a                                                                  \qquad (1)

and its log-weight towards the tilted law, for a path that a *behaviour* policy ``b`` generated, is

.. math:: \log w = r(x_0) / \alpha - \sum_a \frac{w_a}{\alpha} \big( \log b(\text{path}) - \log p_a(\text{path}) \big)
    \qquad (2)

so that :math:`E_b[w f] / E_b[w] = E_{p^*}[f]`; for ``b`` the tuned policy, (2) is :math:`R / \alpha`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch

from difftilt.algorithms.state import TunedState, check_settings
from difftilt.core.algorithm import Anchor
from difftilt.core.conditions import Conditions, rows_of
from difftilt.core.policy import Policy, counting_passes
from difftilt.core.reward import Reward, Scores, score, under
from difftilt.core.trajectory import Trajectory, log_prob_of, rollout
from difftilt.core.transition import Transition
from difftilt.types import Bool, Condition, Float, Int, Tensor


@dataclass(frozen=True)
class ScoredPaths:
    """Finished paths with rewards, whoever generated them."""

    path: Trajectory
    """``log_prob`` is that of the tuned policy as it was when the batch was put together."""
    scores: Scores
    """Rewards, reward units; NaN where infeasible."""
    behaviour_log_prob: Float[Tensor, " B"]
    """Of the whole path, under whoever generated it, nats."""
    own: Bool[Tensor, " B"]
    """Whether that was the tuned policy as it is."""
    condition: Int[Tensor, " B"]
    """Number of the condition that each was made for; 0 where there are none."""
    network_evaluations: int = 0
    """Denoiser passes that putting the batch together took."""
    oracle_calls: int = 0
    """Designs scored for it."""
    slope: Float[Tensor, "B *event"] | None = None
    """Gradient of the reward at the finished states, reward units per unit of the state, where asked for."""

    def returns(self, weights: Float[Tensor, " A"]) -> Float[Tensor, " B"]:
        """Equation (1), reward units; NaN where the reward is."""
        return path_return(self.scores.value, self.path.log_ratio, weights)

    def log_weight(self, weights: Float[Tensor, " A"]) -> Float[Tensor, " B"]:
        """Equation (2), nats; ``-inf`` where infeasible."""
        away = self.behaviour_log_prob - self.path.log_prob.sum(0)
        log_weight = self.returns(weights) / weights.sum() - away
        return log_weight.where(self.scores.feasible, -math.inf)


def path_return(
    reward: Float[Tensor, " B"], log_ratio: Float[Tensor, "A K B"], weights: Float[Tensor, " A"]
) -> Float[Tensor, " B"]:
    """Equation (1), reward units; NaN where the reward is."""
    return reward - (weights[:, None] * log_ratio.sum(1)).sum(0)


def collect(
    state: TunedState,
    reward: Reward,
    n: int,
    rng: torch.Generator,
    *,
    with_kl: bool = False,
    with_means: bool = False,
) -> ScoredPaths:
    """``n`` paths of the tuned policy, scored once; their designs stay in ``state.x_0``."""
    condition, cond = state.draw_conditions(n, rng)
    with counting_passes(state.policy, *state.references) as passes:
        path = rollout(
            state.policy, n, rng, references=state.references, cond=cond, with_kl=with_kl, with_means=with_means
        )
    state.x_0 = path.x_0
    everyone = torch.ones(n, dtype=torch.bool, device=path.x_0.device)
    scores = score(under(reward, cond), state.policy.codec, path.x_0)
    return ScoredPaths(path, scores, path.log_prob.sum(0), everyone, condition, passes.rows, n)


@dataclass(frozen=True)
class Steps:
    """Some steps of some paths, flattened to one batch of ``R`` rows."""

    x_t: Tensor
    x_s: Tensor
    t: Float[Tensor, " R"]
    s: Float[Tensor, " R"]
    log_prob: Float[Tensor, " R"]
    """As stored at rollout, nats."""
    path: Int[Tensor, " R"]
    """Index of the path in the batch."""
    k: Int[Tensor, " R"]
    """Index of the step, 0 the noisiest."""
    scale: float
    """Steps with a density over the ``n`` chosen: makes sums over these unbiased for sums over all of them."""
    cond: Condition | None
    mean: Tensor | None = None
    """Of the Gaussian step as stored at rollout, where it was."""

    def law(self, policy: Policy) -> Transition:
        """The law of each step under a policy. Gradient flows to its denoiser.

        One that is :attr:`~difftilt.core.policy.Policy.at_once` reads the last state of each path, not every state.
        """
        if not policy.at_once:
            return policy.step(self.x_t, self.t, self.s, self.cond)
        paths, place = self.path.unique(return_inverse=True)
        last = self.k.new_zeros(len(paths)).scatter_reduce(0, place, self.k, "amax")
        furthest = (self.k == last[place]).nonzero()[:, 0]
        row = self.k.new_zeros(len(paths)).scatter(0, place[furthest], furthest)
        logits = policy.denoiser(self.x_t[row], self.t[row], rows_of(self.cond, row))
        return policy.process.transition(logits[place], self.x_t, self.t, self.s)

    def log_prob_under(self, policy: Policy) -> Float[Tensor, " R"]:
        """Log-probability of each step under a policy, nats, float64. Gradient flows to its denoiser."""
        return log_prob_of(self.law(policy), self.x_s).double()


def choose_steps(trajectory: Trajectory, paths: Int[Tensor, " P"], count: int | None, rng: torch.Generator) -> Steps:
    """A uniformly random subset of ``count`` steps of each path in ``paths`` (all of them, in order, for ``None``).

    Steps without density carry no ratio, and are never chosen.
    """
    noisy = trajectory.noisy
    steps = len(noisy)
    count = steps if count is None else min(count, steps)
    if count == steps:
        k = noisy.expand(len(paths), -1)
    else:
        k = noisy[torch.rand((len(paths), steps), generator=rng, device=paths.device).topk(count, dim=1).indices]
    k, path = k.T.flatten(), paths.repeat(count)
    return Steps(
        x_t=trajectory.states[k, path],
        x_s=trajectory.states[k + 1, path],
        t=trajectory.times[k],
        s=trajectory.times[k + 1],
        log_prob=trajectory.log_prob[k, path],
        path=path,
        k=k,
        scale=steps / count,
        cond=rows_of(trajectory.cond, path),
        mean=None if trajectory.means is None else trajectory.means[k, path],
    )


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What was watched of a whole minibatch: its only part, or vectors over the steps of all."""
    return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def split_steps(steps: Steps, rows: int) -> list[Steps]:
    """The same steps, at most ``rows`` to a part, in order."""

    def part(value: Any, stretch: slice) -> Any:
        if isinstance(value, Mapping):
            return rows_of(value, stretch)
        return value[stretch] if isinstance(value, Tensor) else value

    stretches = [slice(start, start + rows) for start in range(0, len(steps.path), rows)]
    return [Steps(**{f.name: part(getattr(steps, f.name), s) for f in fields(steps)}) for s in stretches]


@dataclass(frozen=True, kw_only=True)
class PathInfo:
    r"""What one update of any of these methods logs.

    Reward, KL and feasibility are means over the policy's own paths. A batch without any is weighted by
    :math:`p_\theta / b` in their place, which says less the further the policy has moved from the behaviour ``b``.
    """

    reward: float
    """Mean reward of the feasible designs of the rollout, reward units."""
    kl_nats: float
    """Path KL of the rollout to the first anchor (k1: sampled log-ratios), nats; NaN without anchors."""
    feasible_fraction: float
    """Share of designs with a reward; healthy: rising to 1."""
    return_std: float
    """Spread of the path returns in nats; falls towards 0 as the optimum is approached."""
    gradient_norm: float
    """Before clipping, mean over minibatches."""
    network_evaluations: int
    """Denoiser passes, counted per design and step (rollout, reference and update; a backward is not counted)."""
    oracle_calls: int
    """Designs scored."""


@dataclass(frozen=True, kw_only=True)
class PathSettings(ABC):
    """Settings of methods that learn from scored paths."""

    alpha: float = 0.1
    """KL temperature, reward units per nat; used where no anchors are given."""
    batch: int = 256
    """Paths per update, B: also reward calls per update."""
    learning_rate: float = 1e-3
    """Of Adam; the commands take that of the task's model where it has its own."""
    steps_per_path: int | None = None
    """Random steps of each path in each pass, n; all when not set. Steps without density are never among them."""
    max_gradient_norm: float = 10.0
    """Gradients are scaled down to this norm."""

    info: ClassVar[type[PathInfo]] = PathInfo
    """What :meth:`step` returns."""

    def init(self, policy: Policy, anchors: list[Anchor], conditions: Conditions | None = None) -> TunedState:
        """Start tuning ``policy`` in place."""
        check_settings(self)
        return TunedState(policy, anchors, conditions, learning_rate=self.learning_rate)

    def step(self, state: Any, reward: Reward, rng: torch.Generator) -> Any:
        """One batch of paths, scored once, and what is learned from it."""
        return self.learn(state, self.collect(state, reward, rng), rng)

    def collect(self, state: Any, reward: Reward, rng: torch.Generator) -> ScoredPaths:
        """The paths of one update."""
        return collect(state, reward, self.batch, rng)

    def learn(self, state: Any, data: ScoredPaths, rng: torch.Generator) -> Any:
        """The passes over ``data``."""
        path, returns = data.path, data.returns(state.weights)
        targets = self.targets(state, data)
        norms, calls = [], data.oracle_calls
        watched: list[dict[str, Tensor]] = []
        epochs, minibatches = self.passes()
        with counting_passes(state.policy, *state.references) as read:
            for _ in range(epochs):
                order = torch.randperm(path.batch, generator=rng, device=state.policy.device)
                for rows in order.tensor_split(min(minibatches, path.batch)):
                    steps = choose_steps(path, rows, self.steps_per_path, rng)
                    seen: list[dict[str, Tensor]] = []
                    losses = self._losses(state, data, targets, steps, rows, rng, seen)
                    norms.append(state.descend(losses, self.max_gradient_norm))
                    watched.append(_joined(seen))
                    calls += self.scored(steps)
        state.updates += 1
        counted = data.own if data.own.any() else torch.ones_like(data.own)
        away = (path.log_prob.sum(0) - data.behaviour_log_prob).where(~data.own, 0.0)[counted]
        away_from = path.log_ratio[0].sum(0)[counted] if state.anchors else torch.full_like(away, math.nan)
        weight, value, feasible = (away - away.max()).exp(), data.scores.value[counted], data.scores.feasible[counted]
        return self.info(
            reward=((weight * value)[feasible].sum() / weight[feasible].sum()).item(),
            kl_nats=((weight * away_from).sum() / weight.sum()).item(),
            feasible_fraction=(weight[feasible].sum() / weight.sum()).item(),
            return_std=Scores(returns[counted]).std / state.alpha,
            gradient_norm=torch.stack(norms).mean().item(),
            network_evaluations=data.network_evaluations + read.rows,
            oracle_calls=calls,
            **self.watch(watched),
        )

    def _losses(
        self, state: Any, data: ScoredPaths, targets: Any, steps: Steps, rows: Tensor, rng: torch.Generator,
        seen: list[dict[str, Tensor]],
    ) -> Iterator[Float[Tensor, ""]]:  # fmt: skip
        """Of one minibatch, part by part; what is watched is added to ``seen``."""
        for part in self.parts(steps):
            loss, numbers = self.loss(state, data, targets, part, rows, rng)
            seen.append(numbers)
            yield loss

    def passes(self) -> tuple[int, int]:
        """Passes over the paths of an update, and optimiser steps per pass: one, where the loss is on-policy."""
        return 1, 1

    @abstractmethod
    def targets(self, state: Any, data: ScoredPaths) -> Any:
        """What the loss needs of the whole batch, computed once before the passes. No gradient flows."""

    @abstractmethod
    def loss(
        self,
        state: Any,
        data: ScoredPaths,
        targets: Any,
        steps: Steps,
        rows: Int[Tensor, " P"],
        rng: torch.Generator,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss of one minibatch (``steps`` of the paths ``rows``), and numbers to watch."""

    def parts(self, steps: Steps) -> list[Steps]:
        """The steps of a minibatch, as :meth:`loss` is to read them one after the other; its values are then summed."""
        return [steps]

    def scored(self, steps: Steps) -> int:
        """Designs that one :meth:`loss` has scored."""
        return 0

    def watch(self, watched: list[dict[str, Tensor]]) -> dict[str, float]:
        """Fields of the record made of what :meth:`loss` watched: means over minibatches."""
        return {name: torch.stack([seen[name] for seen in watched]).double().mean().item() for name in watched[0]}


def select(data: ScoredPaths, rows: Tensor) -> ScoredPaths:
    """Some of the paths, by index or mask."""
    path = data.path
    part = replace(
        path,
        states=path.states[:, rows],
        log_prob=path.log_prob[:, rows],
        reference_log_prob=path.reference_log_prob[:, :, rows],
        cond=rows_of(path.cond, rows),
    )
    return replace(
        data,
        path=part,
        scores=Scores(data.scores.value[rows]),
        behaviour_log_prob=data.behaviour_log_prob[rows],
        own=data.own[rows],
        condition=data.condition[rows],
    )


def merge(parts: list[ScoredPaths]) -> ScoredPaths:
    """Paths of one chain, one after the other; their costs add up."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0].path
    cond = None
    if first.cond is not None:
        cond = {name: torch.cat([(part.path.cond or {})[name] for part in parts]) for name in first.cond}
    path = replace(
        first,
        states=torch.cat([part.path.states for part in parts], dim=1),
        log_prob=torch.cat([part.path.log_prob for part in parts], dim=1),
        reference_log_prob=torch.cat([part.path.reference_log_prob for part in parts], dim=2),
        cond=cond,
    )
    scores = Scores(torch.cat([part.scores.value for part in parts]))
    return ScoredPaths(
        path,
        scores,
        torch.cat([part.behaviour_log_prob for part in parts]),
        torch.cat([part.own for part in parts]),
        torch.cat([part.condition for part in parts]),
        sum(part.network_evaluations for part in parts),
        sum(part.oracle_calls for part in parts),
    )
