"""A set of designs with everything known about each, and the numbers that sum it up.

The law of a set is that of its *feasible* designs, by their weights: reward, judge and likelihood are means over the
same designs. What has no weights (uniqueness, logo, k-mers) is taken of designs drawn again by weight where weights
differ, and else of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from difftilt.core.policy import Policy
from difftilt.core.reward import Reward, score
from difftilt.core.trajectory import Trajectory, rollout
from difftilt.errors import StateError
from difftilt.metrics.best_of_n import best_of_n_weights
from difftilt.metrics.chain_bound import DRAWS, chain_bounds, has_bound, likelihood_chain
from difftilt.metrics.log_z import systematic
from difftilt.metrics.weighted import weighted_mean
from difftilt.samplers.best_of_n import BestOfN
from difftilt.samplers.steering import unweighted
from difftilt.training.pretrain import denoising_bounds
from difftilt.types import Float, Tensor

Describe = Callable[[Tensor], dict[str, float]]
"""Domain metrics of finished states: name to number."""


@dataclass(frozen=True)
class DesignSet:
    """Finished states with everything known about each."""

    x_0: Tensor
    designs: list[Any]
    reward: Float[Tensor, " N"]
    judge: Float[Tensor, " N"]
    pretrained_log_likelihood: Float[Tensor, " N"]
    """Lower bound on the log-likelihood of the design under the pretrained model run one token a step, or in many steps
    where they are Gaussian (:mod:`~difftilt.metrics.chain_bound`), nats; NaN where its process has no bound."""
    log_weight: Float[Tensor, " N"]
    """How much each counts in the means, nats: equal but for infeasible ones (``-inf``), or a sampler's weights."""
    path_log_ratio: Float[Tensor, " N"]
    """Log-ratio of the path to the pretrained policy, nats; NaN where no policy was run."""
    population: int = 1
    """Designs in each population, in order; populations are independent of each other."""


def draw(
    policy: Policy, pretrained: Policy, reward: Reward, judge: Reward | None, n: int, rng: torch.Generator
) -> DesignSet:
    """``n`` designs of ``policy``, scored by reward and judge, with log-ratios against ``pretrained``.

    Raises:
        StateError: a policy has diverged to NaN.
    """
    paths: list[Trajectory] = []
    for start in range(0, n, 256):
        paths.append(rollout(policy, min(256, n - start), rng, references=[pretrained]))
    path_log_ratio = torch.cat([path.log_ratio[0].sum(0) for path in paths])
    if path_log_ratio.isnan().any():
        raise StateError(
            f"expected log-probabilities of {n} paths; got NaN for {int(path_log_ratio.isnan().sum())}; the policy has "
            "diverged: train it again with a lower learning rate"
        )
    x_0 = torch.cat([path.x_0 for path in paths])
    return scored(x_0, pretrained, reward, judge, rng, path_log_ratio=path_log_ratio)


def scored(
    x_0: Tensor,
    pretrained: Policy,
    reward: Reward,
    judge: Reward | None,
    rng: torch.Generator,
    *,
    log_weight: Float[Tensor, " N"] | None = None,
    path_log_ratio: Float[Tensor, " N"] | None = None,
    population: int = 1,
) -> DesignSet:
    """Finished states with their scores; feasible ones count alike where no weights are given."""
    codec = pretrained.codec
    value = score(reward, codec, x_0).value
    unknown = torch.full_like(value, torch.nan)
    bounds = unknown
    if pretrained.process.bounds_likelihood:
        bounds = denoising_bounds(pretrained.denoiser, pretrained.process, x_0, rng)
    elif has_bound(pretrained):
        bounds = chain_bounds(likelihood_chain(pretrained), x_0, rng, levels=True, draws=DRAWS)
    return DesignSet(
        x_0=x_0,
        designs=codec.decode(x_0),
        reward=value,
        judge=unknown if judge is None else score(judge, codec, x_0).value,
        pretrained_log_likelihood=-bounds,
        log_weight=(unweighted(~value.isnan()) if log_weight is None else log_weight).where(~value.isnan(), -torch.inf),
        path_log_ratio=unknown if path_log_ratio is None else path_log_ratio,
        population=population,
    )


def interval(
    values: Float[Tensor, " N"], log_weight: Float[Tensor, " N"] | None = None, *, population: int = 1
) -> dict[str, float]:
    """Weighted mean of the finite values with a 95 % normal interval."""
    equal = torch.zeros_like(values)
    mean, error = weighted_mean(values, equal if log_weight is None else log_weight, population=population)
    return {"mean": mean, "low": mean - 1.96 * error, "high": mean + 1.96 * error}


def summary(designs: DesignSet, describe: Describe | None, rng: torch.Generator) -> dict[str, Any]:
    """Means with their intervals, the share of feasible designs, and domain metrics."""

    def mean(values: Tensor) -> dict[str, float]:
        return interval(values, designs.log_weight, population=designs.population)

    return {
        "reward": mean(designs.reward),
        "judge": mean(designs.judge),
        "feasible_fraction": (~designs.reward.isnan()).double().mean().item(),
        "pretrained_log_likelihood": mean(designs.pretrained_log_likelihood),
        **({} if describe is None else _described(designs, describe, rng)),
    }


def _described(designs: DesignSet, describe: Describe, rng: torch.Generator) -> dict[str, float]:
    """Domain metrics of what stands for the law; beside them, the share of different designs before weights repeat."""
    standing = representative(designs, rng)
    drawn = {} if standing is designs.x_0 else {"distinct_drawn": _distinct(designs.designs) / len(designs.x_0)}
    return {**describe(standing), **drawn}


def _distinct(designs: list[Any]) -> int:
    """How many strings or arrays differ: states may, where designs do not."""
    return len({design if isinstance(design, str) else np.asarray(design).tobytes() for design in designs})


def representative(designs: DesignSet, rng: torch.Generator) -> Tensor:
    """States that stand for the law without weights: all of them, or drawn again (systematically) by weights."""
    known = designs.log_weight[designs.log_weight > -torch.inf]
    if not len(known) or bool((known == known[0]).all()):
        return designs.x_0
    return designs.x_0[systematic(designs.log_weight, rng)]


def best_of(n: int, pool: DesignSet) -> dict[str, Any]:
    """Expected reward and judge of the feasible best-of-N from the pool; N is cut where the pool cannot tell."""
    most = max(1, pool.reward.shape[0] // 4)
    used = min(n, most)
    log_weight = best_of_n_weights(pool.reward, used).log().where(~pool.reward.isnan(), -torch.inf)
    return {
        "n": used,
        "wanted": n,
        "kl_bound_nats": BestOfN(candidates=used).kl_bound,
        "reward": weighted_mean(pool.reward, log_weight)[0],
        "judge": weighted_mean(pool.judge, log_weight)[0],
    }


def best_of_at_kl(kl: float, pool: DesignSet) -> dict[str, Any] | None:
    """The same at the largest N whose bound does not exceed ``kl`` nats; ``None`` for an unknown KL."""
    return None if math.isnan(kl) else best_of(BestOfN.candidates_for(max(kl, 0.0)), pool)
