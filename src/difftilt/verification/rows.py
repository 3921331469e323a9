"""One row of the truth table: run one method on one problem, and judge the law that it reached."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from difftilt.core.algorithm import Anchor
from difftilt.core.policy import Policy
from difftilt.core.value import Value
from difftilt.data import find, load
from difftilt.errors import DiffTiltError, UnsupportedError
from difftilt.problems.affine import AffineProblem
from difftilt.problems.library import entry
from difftilt.problems.problem import Problem
from difftilt.problems.simplex import SimplexProblem
from difftilt.problems.tilted import kl_divergence
from difftilt.rng import Streams
from difftilt.samplers.smc import SMC
from difftilt.tracking.run import plain
from difftilt.verification.claims import STICK_DRAWS, Claim, Pair
from difftilt.verification.exact import NONE, kl_to, mean_reward_of, moment_errors
from difftilt.verification.steering import steer
from difftilt.verification.variation import GROUPS, variation

NO_DATA = "no data"
"""How the reason of a row without them begins."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was found; ``None`` where there is no such number."""

    algorithm: str
    """Name of the method, with ``:variant`` where it is run in several ways."""
    process: str
    """Registered name."""
    problem: str
    target: str
    """The law that the method claims (:mod:`difftilt.verification.exact`)."""
    kl_nats: float | None = None
    """KL of the law of x_0 to the target, nats; to p* (fixed prior) where none is claimed. Exact, or as told."""
    kl_removed: float | None = None
    """Share of the pretrained policy's KL to the target that is gone, at most 1."""
    mean_reward: float | None = None
    """Under the law reached, reward units."""
    mean_reward_exact: float | None = None
    """Under the target."""
    seconds: float | None = None
    """CPU time of training or drawing; exact answers not counted."""
    network_evaluations: int | None = None
    """Denoiser passes, counted per design and step."""
    reward_calls: int | None = None
    """Designs scored."""
    passed: bool | None = None
    """Whether the claim holds; ``None`` where there is none, or where the pair is not defined."""
    reason: str = ""
    """How that was judged, or why not."""

    def record(self) -> dict[str, Any]:
        """Plain values; numbers that are not finite become ``None``."""
        return plain(asdict(self))


def verify(pair: Pair, seed: int) -> Row:
    """The row of a pair. Errors of ours end in it: an undefined pair, a method that diverges."""
    names = {"algorithm": pair.label, "process": pair.process, "problem": pair.problem}
    known: dict[str, Any] = {**names, "target": pair.claim.target}
    try:
        problem = load_problem(pair.problem)
        if problem is None:
            return Row(**known, reason=f"{NO_DATA}: `difftilt data prepare {pair.problem}` fetches them")
        rng = Streams(seed)(f"verify/{pair.label}/{pair.problem}")
        if pair.steered:
            found = steer(pair.label, problem, pair.claim, rng)
        else:
            algorithm, updates = pair.recipe()
            value = None if pair.label.endswith(":default") else problem.value()
            found = train(algorithm, problem, pair.claim, updates, rng, value=value)
    except UnsupportedError as error:
        return Row(**known, reason=f"not defined: {error}")
    except DiffTiltError as error:
        return Row(**known, passed=None if pair.claim.target == NONE else False, reason=str(error))
    return Row(**known, **found)


def load_problem(name: str) -> Problem | None:
    """The problem called ``name``, ``None`` where its data are not at hand."""
    base = name.partition("/")[0]
    if not entry(base).needs_scores:
        return entry(base).make()
    if find(name) is None:
        return None
    table = load(name)
    return entry(base).make(dict(zip(table.sequences, table.scores.tolist(), strict=True)))


def train(
    algorithm: Any,
    problem: Problem,
    claim: Claim,
    updates: int,
    rng: torch.Generator,
    *,
    value: Value | None = None,
) -> Mapping[str, Any]:
    """Tune for ``updates``, the learning rate falling linearly to 0, and judge the policy exactly.

    ``algorithm`` is an :class:`~difftilt.core.algorithm.Algorithm` with a batch. One that takes a soft value is given
    ``value``, or makes its own.
    """
    started, evaluations, calls = time.process_time(), 0, 0
    state: Any = algorithm.init(problem.tunable(), [Anchor(problem.pretrained, problem.alpha)])
    if hasattr(state, "value") and state.value is None:
        state.value = value
        if value is not None and isinstance(getattr(state, "teacher", None), SMC):
            state.teacher = replace(state.teacher, tempering=0.0)  # an exact twist needs none
    for update in range(updates):
        state.scale_learning_rate(1 - update / (updates + 1))
        info = algorithm.step(state, problem.reward, rng)
        evaluations, calls = evaluations + info.network_evaluations, calls + info.oracle_calls
    seconds = time.process_time() - started
    passed, reason, numbers = judge(problem, claim, state.policy)
    spent = {"seconds": seconds, "network_evaluations": evaluations, "reward_calls": calls}
    return {**numbers, **spent, "passed": passed, "reason": f"{reason}; {updates} updates of {algorithm.batch} paths"}


def judge(problem: Problem, claim: Claim, policy: Policy) -> tuple[bool | None, str, Mapping[str, Any]]:
    """Whether the law of ``policy`` is the one claimed, why, and the numbers: exact but where told from draws."""
    if isinstance(problem, SimplexProblem):
        return judge_drawn(problem, claim, policy)
    kl, before = (kl_to(claim.target, problem, chain) for chain in (policy, problem.pretrained))
    removed = 1 - kl / before
    numbers = {
        "kl_nats": kl,
        "kl_removed": removed,
        "mean_reward": problem.mean_reward(policy),
        "mean_reward_exact": mean_reward_of(claim.target, problem),
    }
    if claim.target == NONE:
        return None, f"claims no law: {claim.why}; KL is to p* (fixed prior)", numbers
    passed, said = True, []
    if claim.nats is not None:
        passed, said = kl <= claim.nats, [f"KL {kl:.2g} of at most {claim.nats:g} nats"]
    if claim.removed is not None:
        passed, said = removed >= claim.removed, [f"{removed:.2%} of at least {claim.removed:.0%} of KL removed"]
    if claim.moments is not None and isinstance(problem, AffineProblem):
        mean, covariance = moment_errors(problem, policy)
        passed = passed and max(mean, covariance) <= claim.moments
        said += [f"mean off by {mean:.2%} and covariance by {covariance:.2%} of at most {claim.moments:.0%}"]
    return passed and math.isfinite(kl), ", ".join(said), numbers


def judge_drawn(
    problem: SimplexProblem, claim: Claim, policy: Policy, draws: int = STICK_DRAWS
) -> tuple[bool | None, str, Mapping[str, Any]]:
    """As :func:`judge`, from designs drawn by ``policy``, against the exact law."""
    observed = problem.drawn(policy, draws, GROUPS)
    law, found = observed.mean(0), variation(observed, problem.tilted)
    kl = problem.nats(law, draws)
    numbers = {
        "kl_nats": kl,
        "kl_removed": 1 - max(kl, 0.0) / kl_divergence(problem.pretrained_law, problem.tilted),
        "mean_reward": (law @ problem.table).item(),
        "mean_reward_exact": problem.target_mean_reward,
    }
    if claim.variation is None:
        said = f"TV {found.found:.4f} +- {found.error:.1g} from {draws:,} draws"
        return None, f"claims no law: {claim.why}; {said}, to p* (tilted)", numbers
    return found.below(claim.variation), found.told(draws, claim.variation), numbers
