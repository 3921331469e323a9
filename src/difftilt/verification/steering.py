r"""Steering without training: draw designs, and estimate how far their law is from an exact one.

Draws come from ``G`` independent runs. With :math:`o_g` the weighted histogram of run ``g`` and :math:`e` the exact
probabilities of the cells,

.. math::
    \hat K = \frac{1}{2 G (G - 1)} \sum_{g \ne h} \sum_c \frac{(o_{gc} - e_c)(o_{hc} - e_c)}{e_c},
    \qquad E[\hat K] = \frac12 \sum_c \frac{(E o_c - e_c)^2}{e_c}                                       \qquad (1)

which is the KL, near 0, whatever the noise: sparse cells, copies and uneven weights make it no larger on average (the
KL of a histogram of exact draws, for comparison, is above 0). Its standard error is that of random signs of
:math:`o_g - e`, run by run. A method without a claim may be far from :math:`e`: then the KL of all its draws is told,
less what as many independent exact draws show.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.distributions import MultivariateNormal, Normal

from difftilt import build
from difftilt.core.algorithm import Sampler, Weighted
from difftilt.core.policy import counting_passes
from difftilt.core.reward import DifferentiableReward, Reward, score
from difftilt.core.value import Value
from difftilt.errors import UnsupportedError
from difftilt.problems.affine import AffineProblem
from difftilt.problems.dense import DenseProblem
from difftilt.problems.line import LineProblem
from difftilt.problems.problem import Problem
from difftilt.problems.selection import value_weighted_law
from difftilt.problems.simplex import SimplexProblem
from difftilt.problems.tilted import TiltedProblem, kl_divergence
from difftilt.samplers.classifier_guidance import GuidedPolicy
from difftilt.types import Float, Tensor
from difftilt.verification.claims import CANDIDATES, DRAWS, MANY_DRAWS, ON_STICKS, STEERED, STICK_DRAWS, Claim
from difftilt.verification.exact import NONE, histogram, kl_to, mean_reward_of
from difftilt.verification.variation import GROUPS, SURE, variation

SIMULATED = 20
"""Histograms of the exact law, for methods without a claim."""


class Counted:
    """A reward whose designs are counted, relaxed ones too."""

    def __init__(self, reward: Reward) -> None:
        self.reward, self.calls = reward, 0
        if isinstance(reward, DifferentiableReward):
            self.on_probabilities = self._relaxed

    def __call__(self, designs: Sequence[Any]) -> Sequence[float] | Tensor:
        """As the reward."""
        self.calls += len(designs)
        return self.reward(designs)

    def _relaxed(self, p: Tensor) -> Tensor:
        assert isinstance(self.reward, DifferentiableReward)
        self.calls += len(p)
        return self.reward.on_probabilities(p)


def steer(label: str, problem: Problem, claim: Claim, rng: torch.Generator) -> Mapping[str, Any]:
    """Draw designs by the sampler ``label``, and judge them."""
    pretrained, reward = problem.pretrained, Counted(problem.reward)
    sampler, value, draws = prepare(label, problem)
    started = time.process_time()
    with counting_passes(pretrained) as passes:
        runs = [sampler(pretrained, reward, draws // GROUPS, rng, value=value) for _ in range(GROUPS)]
    spent = {
        "seconds": time.process_time() - started,
        "network_evaluations": passes.rows,
        "reward_calls": reward.calls,
    }
    passed, reason, numbers = judge_draws(problem, claim, runs, rng, exact=exact_law(label, problem, claim, value))
    return {**numbers, **spent, "passed": passed, "reason": reason}


def judge_draws(
    problem: Problem,
    claim: Claim,
    runs: Sequence[Weighted],
    rng: torch.Generator,
    *,
    exact: tuple[float, Float[Tensor, " C"] | None] | None = None,
) -> tuple[bool | None, str, Mapping[str, Any]]:
    """Whether the draws of independent runs follow the claimed law, why, and the numbers.

    Args:
        problem: knows the law.
        claim: which one.
        runs: as many draws in each.
        rng: for histograms of the exact law.
        exact: the sampler's own KL to the claimed law, nats, where it is known, and its law over the cells, which the
            draws are then judged against.
    """
    histograms = [histogram(claim.target, problem, run.x_0, run.log_weight) for run in runs]
    observed, expected = torch.stack([one.observed for one in histograms]), histograms[0].expected
    own = expected if exact is None or exact[1] is None else exact[1]
    x_0, log_weight = torch.cat([run.x_0 for run in runs]), torch.cat([run.log_weight for run in runs])
    drawn, error = divergence(observed, own) if claim.target != NONE else excess(observed.mean(0), own, len(x_0), rng)
    nats, told = drawn, f"KL {drawn:.2g} +- {error:.1g} nats from {len(x_0):,} draws"
    if exact is not None:
        nats = exact[0]
        told = f"KL {nats:.2g} nats by its exact law" + (
            f", its draws {told} from that" if exact[1] is not None else ""
        )
    numbers = {
        "kl_nats": nats,
        "kl_removed": 1 - max(nats, 0.0) / kl_to(claim.target, problem, problem.pretrained),
        "mean_reward": mean_reward(problem, x_0, log_weight),
        "mean_reward_exact": mean_reward_of(claim.target, problem),
    }
    if claim.target == NONE:
        return None, f"claims no law: {claim.why}; {told}, to p* (fixed prior)", numbers
    if claim.variation is not None:
        found = variation(observed, expected)
        return found.below(claim.variation), f"{found.told(len(x_0), claim.variation)}; {told}", numbers
    assert claim.nats is not None
    said = f"{told}; with {SURE:g} standard errors at most {claim.nats:g}"
    return max(nats, drawn + SURE * error) <= claim.nats, said, numbers


def divergence(observed: Float[Tensor, "G C"], exact: Float[Tensor, " C"]) -> tuple[float, float]:
    """Equation (1) and its standard error, nats; infinite where weight lies outside the exact law's support."""
    away, possible = observed - exact, exact > 0
    if away[:, ~possible].any():
        return math.inf, math.inf
    product = (away[:, possible] / exact[possible]) @ away[:, possible].T
    product.fill_diagonal_(0.0)
    pairs = len(observed) * (len(observed) - 1)
    return product.sum().item() / (2 * pairs), product.square().sum().mul(2).sqrt().item() / (2 * pairs)


def excess(
    observed: Float[Tensor, " C"], exact: Float[Tensor, " C"], draws: int, rng: torch.Generator
) -> tuple[float, float]:
    """KL of a histogram of independent, even draws, less that of exact ones, and the spread of those, nats."""
    noise = []
    for _ in range(SIMULATED):
        cell = torch.multinomial(exact, draws, replacement=True, generator=rng)
        noise.append(kl_divergence(torch.bincount(cell, minlength=len(exact)) / draws, exact))
    kl = torch.tensor(noise, dtype=torch.float64)
    return kl_divergence(observed, exact) - kl.mean().item(), kl.std().item()


def mean_reward(problem: Problem, x_0: Tensor, log_weight: Float[Tensor, " N"]) -> float:
    """Weighted mean reward of draws, reward units; infeasible ones weigh nothing."""
    value = score(problem.reward, problem.pretrained.codec, x_0).value
    return (log_weight.softmax(0) * value.nan_to_num(nan=0.0)).sum().item()


def prepare(label: str, problem: Problem) -> tuple[Sampler, Value | None, int]:
    """The sampler, the value that it is given (``None``: it makes its own), and how many designs to draw."""
    name, _, variant = label.partition(":")
    settings: dict[str, Any] = {} if name == "best_of_n" else {"alpha": problem.alpha}
    settings |= ON_STICKS.get(label, STEERED[label]) if isinstance(problem, SimplexProblem) else STEERED[label]
    draws = MANY_DRAWS.get(label, DRAWS["masked" if isinstance(problem, TiltedProblem | DenseProblem) else "gaussian"])
    if name == "smc" and isinstance(problem, SimplexProblem):
        draws = STICK_DRAWS
    if variant == "mala":
        settings["log_density"] = log_density(problem)
    takes = name in ("value_weighted", "smc", "classifier_guidance") and variant not in ("default", "bootstrap")
    return build.sampler(name)(**settings), problem.value() if takes else None, draws


def exact_law(
    label: str, problem: Problem, claim: Claim, value: Value | None
) -> tuple[float, Float[Tensor, " C"] | None] | None:
    """KL of a sampler's law to the claimed one, nats, and its law over the cells; ``None`` where not known."""
    if label == "value_weighted" and isinstance(problem, TiltedProblem):
        law = value_weighted_law(problem, problem.soft_values(), CANDIDATES)
        return kl_divergence(law, problem.tilted), law
    if label == "classifier_guidance" and value is not None:
        guided = GuidedPolicy(problem.pretrained, value, alpha=problem.alpha, tokens="exact")
        kl = kl_to(claim.target, problem, guided)
        if not isinstance(problem, TiltedProblem):
            return kl, None
        law = problem.chain.marginal(guided).where(problem.feasible, 0)
        return kl, law / law.sum()
    return None


def log_density(problem: Problem) -> Callable[[Tensor], Tensor]:
    """Log density of the pretrained law of x_0, nats.

    Raises:
        UnsupportedError: designs are discrete.
    """
    if isinstance(problem, AffineProblem):
        return MultivariateNormal(*problem.law(problem.pretrained)).log_prob
    if isinstance(problem, LineProblem):
        *earlier, _ = problem.reference.matrix
        weight = problem.prior
        for matrix in earlier:
            weight = weight @ matrix
        last = Normal(problem.reference.mean[-1], problem.reference.std[-1])
        return lambda x: (weight.log() + last.log_prob(x)).logsumexp(1)
    raise UnsupportedError("expected designs with a density; got discrete ones; use refine")
