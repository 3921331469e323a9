r"""What a tuned policy is worth: reward and judge before and after, KL, gap, yardsticks, naturalness and cost.

Both numbers are always shown side by side: the *reward* that tuning saw and the *judge* that it never saw. Best-of-N is
given at equal oracle calls, :math:`N = (\text{training calls} + n) / n` for ``n`` designs, and at equal KL.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from difftilt.core.policy import Policy
from difftilt.core.reward import Reward, score
from difftilt.core.stats import mean_and_error
from difftilt.core.trajectory import Trajectory, rollout
from difftilt.errors import StateError
from difftilt.metrics.best_of_n import best_of_n_weights
from difftilt.metrics.gap import Gap, optimality_gap
from difftilt.metrics.log_z import LogZ, from_samples, log_path_weight
from difftilt.rewards.function import as_reward
from difftilt.rewards.oracle import as_oracle
from difftilt.rng import Streams
from difftilt.samplers.best_of_n import BestOfN
from difftilt.training.pretrain import denoising_bounds
from difftilt.types import Bool, Float, Tensor

Describe = Callable[[Tensor], dict[str, float]]
"""Domain metrics of finished states: name to number."""


@dataclass(frozen=True)
class DesignSet:
    """Finished states with everything known about each."""

    x_0: Tensor
    designs: list[Any]
    reward: Float[Tensor, " N"]
    judge: Float[Tensor, " N"]
    path_log_ratio: Float[Tensor, " N"]
    """Log-ratio of the path to the pretrained policy, nats."""
    pretrained_log_likelihood: Float[Tensor, " N"]
    """Lower bound on the log-likelihood of the design under the pretrained model run one token a step, nats; NaN where
    its process has no bound."""


@dataclass(frozen=True)
class Evaluation:
    """Numbers for the command line and the report, and the designs behind them."""

    before: DesignSet
    after: DesignSet
    gap: Gap
    facts: dict[str, Any]
    """Plain numbers, as in ``evaluation.json``."""


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
    x_0 = torch.cat([path.x_0 for path in paths])
    codec = policy.codec
    path_log_ratio = torch.cat([path.log_ratio[0].sum(0) for path in paths])
    if path_log_ratio.isnan().any():
        raise StateError(
            f"expected log-probabilities of {n} paths; got NaN for {int(path_log_ratio.isnan().sum())}; the policy has "
            "diverged: train it again with a lower learning rate"
        )
    value = score(reward, codec, x_0).value
    bounds = torch.full_like(value, torch.nan)
    if pretrained.process.bounds_likelihood:
        bounds = denoising_bounds(pretrained.denoiser, pretrained.process, x_0, rng)
    return DesignSet(
        x_0=x_0,
        designs=codec.decode(x_0),
        reward=value,
        judge=torch.full_like(value, torch.nan) if judge is None else score(judge, codec, x_0).value,
        path_log_ratio=path_log_ratio,
        pretrained_log_likelihood=-bounds,
    )


def evaluate(
    tuned: Policy,
    pretrained: Policy,
    reward: Reward,
    *,
    alpha: float,
    judge: Reward | None = None,
    independent: LogZ | None = None,
    designs: int = 1000,
    pool: int = 1000,
    training_calls: int = 0,
    describe: Describe | None = None,
    seed: int = 0,
) -> Evaluation:
    """Compare ``tuned`` with ``pretrained`` and with best-of-N.

    Args:
        tuned: the tuned policy.
        pretrained: the policy it started from.
        reward: what was raised.
        alpha: the temperature of the target, reward units per nat.
        judge: the held-out reward.
        independent: an estimate of log Z that does not look at ``tuned``; the pretrained pool serves where not given.
        designs: designs of the tuned policy, ``n``.
        pool: designs of the pretrained policy: the "before" set, and the pool of best-of-N.
        training_calls: reward calls that training paid for.
        describe: domain metrics.
        seed: of the designs drawn here.
    """
    reward, judge = as_oracle(reward), None if judge is None else as_reward(judge)
    rng = Streams(seed, tuned.device)("evaluate")
    before = draw(pretrained, pretrained, reward, judge, pool, rng)
    after = draw(tuned, pretrained, reward, judge, designs, rng)
    own = from_samples(log_path_weight(before.reward, torch.zeros_like(before.reward), alpha=alpha), oracle_calls=pool)
    chosen = own if independent is None or own.ess > independent.ess else independent
    gap = optimality_gap(log_path_weight(after.reward, after.path_log_ratio, alpha=alpha), chosen)
    feasible = ~after.reward.isnan()
    kl, kl_error = _conditional_kl(after.path_log_ratio, feasible)
    by_calls = max(1, (training_calls + designs) // designs)
    facts = {
        "alpha": alpha,
        "designs": designs,
        "before": _summary(before, describe),
        "after": _summary(after, describe),
        "kl_nats": {"mean": kl, "error": kl_error},
        "gap": {**dataclasses.asdict(gap), "verdict": gap.verdict},
        "best_of_n": {
            "pool": pool,
            "equal_calls": _best_of(by_calls, before),
            "equal_kl": _best_of(BestOfN.candidates_for(max(kl, 0.0)), before),
        },
        "evaluation_calls": pool + designs + (0 if independent is None else independent.oracle_calls),
    }
    return Evaluation(before, after, gap, facts)


def interval(values: Float[Tensor, " N"]) -> dict[str, float]:
    """Mean of the finite values with a 95 % normal interval."""
    finite = values[~values.isnan()]
    if not len(finite):
        return {"mean": math.nan, "low": math.nan, "high": math.nan}
    mean, error = mean_and_error(finite)
    return {"mean": mean, "low": mean - 1.96 * error, "high": mean + 1.96 * error}


def _conditional_kl(path_log_ratio: Float[Tensor, " N"], feasible: Bool[Tensor, " N"]) -> tuple[float, float]:
    r""":math:`KL( p_\theta(\text{path} | F) \| p_{pre} ) = E_F[\sum_k l_k] - \log P_\theta(F)` and its error, nats."""
    mean, error = mean_and_error(path_log_ratio[feasible])
    p = feasible.double().mean().item()
    if p == 0:
        return math.nan, math.nan
    return mean - math.log(p), math.hypot(error, math.sqrt((1 - p) / (p * len(feasible))))


def _summary(designs: DesignSet, describe: Describe | None) -> dict[str, Any]:
    return {
        "reward": interval(designs.reward),
        "judge": interval(designs.judge),
        "feasible_fraction": (~designs.reward.isnan()).double().mean().item(),
        "pretrained_log_likelihood": interval(designs.pretrained_log_likelihood),
        **({} if describe is None else describe(designs.x_0)),
    }


def _best_of(n: int, pool: DesignSet) -> dict[str, Any]:
    """Expected reward and judge of the feasible best-of-N from the pool; N is cut where the pool cannot tell."""
    most = max(1, pool.reward.shape[0] // 4)
    used = min(n, most)
    weights = best_of_n_weights(pool.reward, used).where(~pool.reward.isnan(), 0)
    return {
        "n": used,
        "wanted": n,
        "kl_bound_nats": BestOfN(candidates=used).kl_bound,
        "reward": _weighted_mean(weights, pool.reward),
        "judge": _weighted_mean(weights, pool.judge),
    }


def _weighted_mean(weights: Float[Tensor, " M"], values: Float[Tensor, " M"]) -> float:
    """Over the values that are there; NaN if none has weight."""
    there = ~values.isnan()
    return (weights[there] @ values[there] / weights[there].sum()).item()
