r"""Exact numbers for each law that a method may claim, on every kind of problem.

=================== ==================================================================================================
claimed law         what it is (theory 1)
=================== ==================================================================================================
p* (fixed prior)    the soft-optimal kernels run from the fixed prior
p* (tilted)         :math:`p_{pre} e^{r/\alpha} / Z`; the same law where :math:`x_1` tells nothing of :math:`x_0`
class optimum       of the best J among policies with independent tokens a step, or Gaussian steps of fixed variance
none                no law: numbers are then told against p* (fixed prior)
=================== ==================================================================================================
"""

from __future__ import annotations

import torch

from difftilt.core.policy import Policy
from difftilt.problems.affine import AffineProblem
from difftilt.problems.dense import DenseProblem
from difftilt.problems.library import LIBRARY, entry
from difftilt.problems.line import LineProblem
from difftilt.problems.problem import Histogram, Problem
from difftilt.problems.simplex import SimplexProblem
from difftilt.problems.tilted import TiltedProblem, kl_divergence
from difftilt.types import Float, Tensor

SAME = (TiltedProblem, DenseProblem, SimplexProblem)
"""Problems whose first state tells nothing of the design: the first two laws are one."""
FIXED, TILTED, CLASS, NONE = "p* (fixed prior)", "p* (tilted)", "class optimum", "none"
TARGETS = (FIXED, TILTED, CLASS, NONE)


def kl_to(target: str, problem: Problem, policy: Policy) -> float:
    """KL of the law of :math:`x_0` under ``policy`` to the claimed law, nats, exact."""
    if target in (FIXED, NONE) or (target == TILTED and isinstance(problem, SAME)):
        return problem.kl(policy)
    if isinstance(problem, AffineProblem):
        with torch.no_grad():
            return problem.chain.read(policy).law_kl(*_gaussian(target, problem)).item()
    if isinstance(problem, LineProblem):
        law = problem.law(problem.kernels(policy))
        return kl_divergence(law, problem.tilted if target == TILTED else problem.optimum[1])
    assert isinstance(problem, TiltedProblem)
    return kl_divergence(problem.chain.marginal(policy), problem.optimum().law)


def mean_reward_of(target: str, problem: Problem) -> float:
    """Mean reward under the claimed law, exact."""
    if target in (FIXED, NONE) or (target == TILTED and isinstance(problem, SAME)):
        return problem.target_mean_reward
    if isinstance(problem, AffineProblem):
        return problem.reward.expectation(*_gaussian(target, problem)).item()
    if isinstance(problem, LineProblem):
        return ((problem.tilted if target == TILTED else problem.optimum[1]) @ problem.table).item()
    assert isinstance(problem, TiltedProblem)
    return (problem.optimum().law @ problem.table).item()


def moment_errors(problem: AffineProblem, policy: Policy) -> tuple[float, float]:
    """Relative errors of mean and covariance (Frobenius) against the class optimum, 0 where they are the same."""
    pairs = zip(problem.law(policy), _gaussian(CLASS, problem), strict=True)
    mean, covariance = (_relative(mine, best) for mine, best in pairs)
    return mean, covariance


def approach() -> list[tuple[int, float, float, float]]:
    r"""How far the class optimum of ``linear-gaussian`` is from the tilted law, by the number of steps ``K``.

    Returns:
        ``K``; :math:`\log Z - J^\circ / \alpha`, nats, and the relative error of the covariance, both of order 1 / K;
        KL of the law of :math:`x_0`, nats, of order 1 / K^2.
    """
    found = []
    for name in LIBRARY:
        problem = (
            entry(name).make() if name.startswith("linear-gaussian") and LIBRARY[name].process == "gaussian" else None
        )
        if isinstance(problem, AffineProblem):
            best = problem.chain.expected_value(problem.reward, problem.alpha, soft=False).item()
            error = _relative(_gaussian(CLASS, problem)[1], problem.tilted[1])
            kl = problem.class_optimum.law_kl(*problem.tilted).item()
            found.append((problem.pretrained.steps, problem.log_z - best / problem.alpha, error, kl))
    return sorted(found)


def histogram(target: str, problem: Problem, x_0: Tensor, log_weight: Float[Tensor, " N"]) -> Histogram:
    """Weighted draws beside the claimed law, one of the first two or none."""
    return problem.law_of(x_0, log_weight, fixed_prior=target != TILTED)


def _gaussian(target: str, problem: AffineProblem) -> tuple[Tensor, Tensor]:
    if target == TILTED:
        return problem.tilted
    means, covariances = problem.class_optimum.marginals()
    return means[-1], covariances[-1]


def _relative(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()
