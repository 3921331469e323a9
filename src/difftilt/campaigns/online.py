r"""Online PPO: the policy is tuned by the measurements alone, without a surrogate.

The plate of round ``i`` are paths of :math:`p^{(i)}`, kept with it; once measured, they are the one rollout of a PPO
update of :math:`E[r] - \alpha KL(p \| p_{pre})`, with several clipped passes (:mod:`difftilt.algorithms.ppo`, equation
(1)). Each measurement is used once, in the round after its own: on-policy learning has no use for older ones. What is
not measured, withdrawn or drawn twice has no path here; what failed is infeasible.

Differs from usual online fine-tuning in: as many rewards per update as a plate has wells.

References:
    Black et al. 2023 (DDPO), https://arxiv.org/abs/2305.13301.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from difftilt.algorithms.paths import ScoredPaths
from difftilt.algorithms.ppo import PPO
from difftilt.algorithms.replay import path_log_prob
from difftilt.campaigns.adaptive import last_model, load_model
from difftilt.campaigns.candidates import TRIES, Sieve
from difftilt.campaigns.constraints import Rules
from difftilt.campaigns.earlier import known
from difftilt.campaigns.history import FAILED, MEASURED, History
from difftilt.campaigns.keeping import MODELS, keep
from difftilt.campaigns.proposer import Candidate, Proposal
from difftilt.campaigns.settings import Tuning
from difftilt.campaigns.update import distances
from difftilt.core.algorithm import Anchor
from difftilt.core.policy import Policy
from difftilt.core.reward import Scores
from difftilt.core.trajectory import Trajectory, rollout
from difftilt.types import Float, Tensor

PATHS = "paths.safetensors"
"""Of a round's plate, beside its policy."""
FEWEST = 4
"""Measured paths from which there is something to compare."""
EPOCHS = 8
"""Clipped passes over a plate."""


class Online:
    """Proposes designs of a policy that PPO tunes.

    Args:
        policy: p_pre.
        folder: of the campaign.
    """

    def __init__(self, policy: Policy, folder: Path) -> None:
        self.policy, self.folder = policy.frozen_copy(), folder

    def __call__(self, history: History, n: int, rng: torch.Generator) -> Proposal:
        """Propose designs; fewer than ``n`` only where the policy makes no others."""
        began, rules = time.monotonic(), Rules(history.settings.constraints, self.policy)
        pretrained = rules.on(self.policy)
        before = last_model(history)
        current = pretrained if before is None else rules.on(load_model(self.folder, before))
        facts: dict[str, Any] = {"oracle_calls": history.spent, "surrogate_calls": 0, "rows": 0}
        if before is not None:
            states = load_file(self.folder / MODELS / before / PATHS)["states"]
            current, facts["rows"] = learn_from(states, current, pretrained, history, rng)
        policy = current.eval().requires_grad_(False)
        sieve, states = draw_paths(policy, n, rules, known(history, policy.codec), rng)
        designs = sieve.some()

        def write(path: Path) -> None:
            rules.off(policy).save_pretrained(path)
            save_file({"states": states.contiguous()}, path / PATHS)

        name = keep(self.folder / MODELS, f"round-{history.next_round}", write)
        far = distances(policy, {"kl_to_pretrained": pretrained}, rng)
        candidates = [Candidate(design, reason="drawn from the policy tuned by PPO") for design in designs]
        return Proposal(candidates, name, {**sieve.facts, **facts, **far, "seconds": time.monotonic() - began})


def learn_from(
    states: Tensor, current: Policy, pretrained: Policy, history: History, rng: torch.Generator
) -> tuple[Policy, int]:
    """One PPO update from kept paths of ``current``, and how many of them were measured or failed."""
    found = {design.design: design.value for state in (MEASURED, FAILED) for design in history.in_state(state)}
    made = current.codec.decode(states[-1])
    rows = [i for i, design in enumerate(made) if design in found]
    values = [found[made[i]] for i in rows]
    reward = torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)
    if (~reward.isnan()).sum() < FEWEST:
        return current, len(rows)
    tuned, settings = current.copy().requires_grad_(True), history.settings.tuning
    algorithm = ppo(settings, len(rows))
    state = algorithm.init(tuned, [Anchor(pretrained.frozen_copy(), settings.alpha)])
    algorithm.learn(state, scored(states[:, rows], tuned, pretrained, reward), rng)
    return tuned, len(rows)


def ppo(settings: Tuning, paths: int) -> PPO:
    """The method for so many paths."""
    return PPO(
        alpha=settings.alpha, batch=paths, learning_rate=settings.rate, epochs=EPOCHS,
        minibatches=max(1, min(4, paths // FEWEST)),
    )  # fmt: skip


def scored(states: Tensor, policy: Policy, pretrained: Policy, reward: Float[Tensor, " B"]) -> ScoredPaths:
    """Kept paths as a rollout of ``policy``, which made them."""
    nothing = torch.zeros((len(states) - 1, states.shape[1]), dtype=torch.float64)
    path = Trajectory(states, nothing, nothing[None], policy.grid, silent=policy.silent)
    own, reference = path_log_prob(policy, path), path_log_prob(pretrained, path)
    whole = Trajectory(states, own, reference[None], policy.grid, silent=policy.silent)
    everyone = torch.ones(states.shape[1], dtype=torch.bool)
    return ScoredPaths(whole, Scores(reward), own.sum(0), everyone, torch.zeros(states.shape[1], dtype=torch.long))


def draw_paths(
    policy: Policy, n: int, rules: Rules, known: frozenset[str], rng: torch.Generator
) -> tuple[Sieve, Tensor]:
    """A plate as drawn, and the path of each of its designs."""
    sieve, parts, names = Sieve(rules, known), [], []
    for _ in range(TRIES):
        if len(sieve.designs) == n:
            break
        states = rollout(policy, n, rng).states
        parts.append(states)
        names += policy.codec.decode(states[-1])
        sieve.take(names[-n:], n)
    first = {name: i for i, name in reversed(list(enumerate(names)))}
    return sieve, torch.cat(parts, dim=1)[:, [first[design] for design in sieve.designs]]
