r"""Off-policy data: a replay buffer and exploration, for methods whose loss is valid on anybody's paths.

Such a loss asks for :math:`\log p_\theta` of a *given* path, whoever drew it. Each batch mixes three kinds: fresh paths
of the tuned policy, fresh paths of the first anchor (exploration: it knows nothing of the reward yet and has full
support), and old paths with the log-probability of the behaviour that drew them, stored at the time. The tuned
policy's own log-probability of old paths is computed anew when they are drawn; exploration never enters it.

*Offline* learning is a share of 1: ``exploration = 1`` draws all fresh paths from the first anchor, and ``replay = 1``
learns from remembered paths alone, without a reward call.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from difftilt.algorithms.paths import PathSettings, ScoredPaths, collect, merge, select
from difftilt.algorithms.state import TunedState, check_settings
from difftilt.core.algorithm import Anchor
from difftilt.core.conditions import Conditions
from difftilt.core.policy import Policy, counting_passes
from difftilt.core.reward import Reward, Scores, score, under
from difftilt.core.trajectory import Trajectory, log_prob_of, rollout
from difftilt.errors import ConfigError, StateError
from difftilt.types import Float, Tensor


class OffPolicyState(TunedState):
    """:class:`TunedState` with the paths kept, the newest last."""

    def __init__(
        self,
        policy: Policy,
        anchors: list[Anchor],
        conditions: Conditions | None = None,
        *,
        learning_rate: float,
        capacity: int,
        extra: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(policy, anchors, conditions, learning_rate=learning_rate, extra=extra)
        self.capacity = capacity
        self.kept: ScoredPaths | None = None

    def remember(self, data: ScoredPaths) -> None:
        """Keep scored paths of any behaviour; the oldest beyond the capacity are forgotten."""
        old = replace(data, own=torch.zeros_like(data.own), network_evaluations=0, oracle_calls=0)
        merged = merge([old] if self.kept is None else [self.kept, old])
        self.kept = select(merged, torch.arange(merged.path.batch, device=self.policy.device)[-self.capacity :])

    def recall(self, n: int, rng: torch.Generator) -> ScoredPaths:
        """``n`` different paths of those kept, as the tuned policy and the anchors see them now."""
        assert self.kept is not None
        chosen = torch.randperm(self.kept.path.batch, generator=rng, device=rng.device)[:n]
        data = select(self.kept, chosen)
        path = replace(data.path, log_prob=path_log_prob(self.policy, data.path))
        return replace(data, path=path, network_evaluations=len(path.noisy) * path.batch)

    def state_dict(self) -> dict[str, Any]:
        """As the base, and the paths kept."""
        if self.kept is None:
            return super().state_dict()
        path = self.kept.path
        kept = {
            "states": path.states,
            "log_prob": path.log_prob,
            "reference_log_prob": path.reference_log_prob,
            "reward": self.kept.scores.value,
            "behaviour_log_prob": self.kept.behaviour_log_prob,
            "condition": self.kept.condition,
        }
        return {**super().state_dict(), "kept": kept | {f"cond.{k}": v for k, v in (path.cond or {}).items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        super().load_state_dict(state)
        if "kept" in state:
            kept = state["kept"]
            cond = {k.removeprefix("cond."): v for k, v in kept.items() if k.startswith("cond.")} or None
            path = Trajectory(
                kept["states"], kept["log_prob"], kept["reference_log_prob"], self.policy.grid, cond=cond,
                silent=self.policy.silent,
            )  # fmt: skip
            own = torch.zeros_like(kept["reward"], dtype=torch.bool)
            scores, behaviour = Scores(kept["reward"]), kept["behaviour_log_prob"]
            self.kept = ScoredPaths(path, scores, behaviour, own, kept["condition"])


@torch.no_grad()
def path_log_prob(policy: Policy, path: Trajectory) -> Float[Tensor, "K B"]:
    """Log-probability of every step of given paths, nats, float64; 0 on steps without density."""
    log_prob = torch.zeros((path.steps, path.batch), dtype=torch.float64, device=path.states.device)
    step = policy.stepping()
    for k in path.noisy.tolist():
        law = step(path.states[k], path.times[k], path.times[k + 1], path.cond)
        log_prob[k] = log_prob_of(law, path.states[k + 1])
    return log_prob


def own_log_weight(data: ScoredPaths) -> Float[Tensor, " B"]:
    r"""Log weights of each path as one of the tuned policy, nats: own ones alone, or :math:`p_\theta / b` without any.

    For equation (2) of :mod:`difftilt.algorithms.advantages`.
    """
    if not data.own.any():
        return data.path.log_prob.sum(0) - data.behaviour_log_prob
    return torch.zeros_like(data.behaviour_log_prob).where(data.own, -torch.inf)


def collect_from(behaviour: Policy, state: TunedState, reward: Reward, n: int, rng: torch.Generator) -> ScoredPaths:
    """``n`` paths of any policy on the same chain, scored once: data for :meth:`OffPolicyState.remember`."""
    condition, cond = state.draw_conditions(n, rng)
    others = [state.policy, *state.references]
    with counting_passes(behaviour, *others) as passes:
        drawn = rollout(behaviour, n, rng, references=others, cond=cond)
    path = replace(drawn, log_prob=drawn.reference_log_prob[0], reference_log_prob=drawn.reference_log_prob[1:])
    nobody = torch.zeros(n, dtype=torch.bool, device=path.x_0.device)
    scores = score(under(reward, cond), state.policy.codec, path.x_0)
    return ScoredPaths(path, scores, drawn.log_prob.sum(0), nobody, condition, passes.rows, n)


@dataclass(frozen=True, kw_only=True)
class OffPolicySettings(PathSettings):
    """Settings of methods that learn from anybody's scored paths."""

    replay: float = 0.0
    """Share of each batch drawn from old paths, 0 to 1: they cost no reward calls. 1 needs paths remembered before."""
    replay_paths: int = 4096
    """Old paths kept."""
    exploration: float = 0.0
    """Share of the fresh paths drawn by the first anchor instead of the tuned policy, 0 to 1."""

    def __post_init__(self) -> None:
        for name in ("replay", "exploration"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise ConfigError(f"expected {name} of 0 to 1; got {share}; correct it")

    def init(self, policy: Policy, anchors: list[Anchor], conditions: Conditions | None = None) -> OffPolicyState:
        """Start tuning ``policy`` in place."""
        check_settings(self)
        return OffPolicyState(policy, anchors, conditions, learning_rate=self.learning_rate, capacity=self.replay_paths)

    def collect(self, state: Any, reward: Reward, rng: torch.Generator) -> ScoredPaths:
        """The paths of one update: own, explored, and old ones; the fresh ones are kept.

        Raises:
            StateError: all paths are to be old ones, and there are none.
        """
        kept = 0 if state.kept is None else state.kept.path.batch
        if self.replay == 1 and kept == 0:
            raise StateError(
                "expected remembered paths to learn from, with replay 1; got none; call state.remember(paths) before "
                "the first update, or lower replay"
            )
        old = min(round(self.replay * self.batch), kept)
        new = 0 if self.replay == 1 else self.batch - old
        explored = round(self.exploration * new)
        fresh = [collect(state, reward, new - explored, rng)] if new > explored else []
        if explored:
            fresh.append(collect_from(state.references[0], state, reward, explored, rng))
        recalled = [state.recall(old, rng)] if old else []
        if self.replay and fresh:
            state.remember(merge(fresh))
        data = merge([*fresh, *recalled])
        if not data.own.any():
            state.x_0 = data.path.x_0
        return data
