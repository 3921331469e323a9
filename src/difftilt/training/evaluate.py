r"""What a tuned policy or a steering sampler is worth: reward and judge before and after, KL, yardsticks, naturalness.

Both numbers are always shown side by side: the *reward* that was raised and the *judge* that was never seen. Best-of-N
is given at equal oracle calls and at equal KL. A tuned policy has its optimality gap. A sampler has weights, and no
path under a policy: its KL to the pretrained law is known only

- for best of N, from its bound;
- where it returns log Z, whose law is the tilted one: :math:`E_{p^*}[r]/\alpha - \log Z`;
- else, for any law ``p`` and a trusted independent log Z, from below:

.. math:: KL(p \| p_{pre}) = E_p[r] / \alpha - \log Z + KL(p \| p^*) \ge E_p[r] / \alpha - \log Z      \qquad (1)
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from difftilt.core.algorithm import Weighted
from difftilt.core.policy import Policy
from difftilt.core.reward import Reward
from difftilt.core.stats import effective_sample_size, mean_and_error
from difftilt.metrics.gap import INDEPENDENT_ESS, Gap, optimality_gap
from difftilt.metrics.log_z import LogZ, from_samples, log_path_weight
from difftilt.metrics.weighted import log_z_error, tilted_kl, weighted_mean
from difftilt.rewards.function import as_reward
from difftilt.rewards.oracle import as_oracle
from difftilt.rng import Streams
from difftilt.training.designs import Describe, DesignSet, best_of, best_of_at_kl, draw, scored, summary
from difftilt.types import Bool, Float, Tensor

ESTIMATE, AT_MOST, AT_LEAST, UNKNOWN = "estimate", "at most", "at least", "unknown"
"""How the KL of a steered law is meant."""


@dataclass(frozen=True)
class Evaluation:
    """Numbers for the command line and the report, and the designs behind them."""

    before: DesignSet
    after: DesignSet
    facts: dict[str, Any]
    """Plain numbers, as in ``evaluation.json``."""


@dataclass(frozen=True)
class TunedEvaluation(Evaluation):
    """The same of a tuned policy."""

    gap: Gap


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
) -> TunedEvaluation:
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
    chosen = _log_z(before, independent, alpha)
    gap = optimality_gap(log_path_weight(after.reward, after.path_log_ratio, alpha=alpha), chosen)
    kl, kl_error = _conditional_kl(after.path_log_ratio, ~after.reward.isnan())
    facts = {
        "alpha": alpha,
        "designs": designs,
        "before": summary(before, describe, rng),
        "after": summary(after, describe, rng),
        "kl_nats": {"mean": kl, "error": kl_error},
        "gap": {**dataclasses.asdict(gap), "verdict": gap.verdict},
        "best_of_n": {
            "pool": pool,
            "equal_calls": best_of(max(1, (training_calls + designs) // designs), before),
            "equal_kl": best_of_at_kl(kl, before),
        },
        "evaluation_calls": pool + designs + (0 if independent is None else independent.oracle_calls),
    }
    return TunedEvaluation(before, after, facts, gap)


def evaluate_steered(
    steered: Weighted,
    pretrained: Policy,
    reward: Reward,
    *,
    alpha: float | None,
    judge: Reward | None = None,
    independent: LogZ | None = None,
    pool: int = 1000,
    steering_calls: int = 0,
    kl_bound: float | None = None,
    population: int = 1,
    describe: Describe | None = None,
    seed: int = 0,
) -> Evaluation:
    """Compare what a sampler returned with ``pretrained`` and with best-of-N.

    Args:
        steered: designs with weights; the law judged is that of the weighted designs.
        pretrained: the policy that was steered.
        reward: what was raised.
        alpha: the temperature of the target, reward units per nat; ``None`` for a sampler that has none.
        judge: the held-out reward.
        independent: an estimate of log Z that does not look at ``steered``.
        pool: designs of the pretrained policy: the "before" set, and the pool of best-of-N.
        steering_calls: reward calls that steering paid for.
        kl_bound: nats that the sampler spends at most, where known beforehand.
        population: designs in each population of the sampler, in order.
        describe: domain metrics.
        seed: of the designs drawn here.
    """
    reward, judge = as_oracle(reward), None if judge is None else as_reward(judge)
    rng = Streams(seed, pretrained.device)("evaluate")
    before = draw(pretrained, pretrained, reward, judge, pool, rng)
    after = scored(
        steered.x_0, pretrained, reward, judge, rng, log_weight=steered.log_weight, population=population
    )  # fmt: skip
    designs = len(after.designs)
    chosen = None if alpha is None else _log_z(before, independent, alpha)
    kl = _steered_kl(after, steered.log_z, alpha, chosen, kl_bound)
    facts = {
        "alpha": alpha,
        "designs": designs,
        "before": summary(before, describe, rng),
        "after": summary(after, describe, rng),
        "kl_nats": kl,
        "effective_designs": effective_sample_size(after.log_weight).item(),
        "log_z": _two_log_z(after, steered.log_z, chosen),
        "best_of_n": {
            "pool": pool,
            "equal_calls": best_of(max(1, steering_calls // designs), before),
            "equal_kl": None if kl["sense"] == AT_LEAST else best_of_at_kl(kl["mean"], before),
        },
    }
    return Evaluation(before, after, facts)


def _log_z(before: DesignSet, independent: LogZ | None, alpha: float) -> LogZ:
    """The better of the independent estimate and that of the pretrained pool."""
    plain = log_path_weight(before.reward, torch.zeros_like(before.reward), alpha=alpha)
    own = from_samples(plain, oracle_calls=len(plain))
    return own if independent is None or own.ess > independent.ess else independent


def _steered_kl(
    after: DesignSet, log_z: float | None, alpha: float | None, independent: LogZ | None, bound: float | None
) -> dict[str, Any]:
    """KL to the pretrained law, nats, and how it is meant; see the module."""
    if bound is not None and not after.reward.isnan().any():
        return {"mean": bound, "error": 0.0, "sense": AT_MOST}
    if alpha is not None and log_z is not None and math.isfinite(log_z):
        kl, error = tilted_kl(after.reward, after.log_weight, log_z, alpha=alpha, population=after.population)
        return {"mean": kl, "error": error, "sense": ESTIMATE}
    if alpha is not None and independent is not None and independent.ess >= INDEPENDENT_ESS:
        mean, error = weighted_mean(after.reward / alpha, after.log_weight, population=after.population)
        return {
            "mean": max(0.0, mean - independent.value),
            "error": math.hypot(error, independent.error),
            "sense": AT_LEAST,
        }
    return {"mean": math.nan, "error": math.nan, "sense": UNKNOWN}


def _two_log_z(after: DesignSet, log_z: float | None, independent: LogZ | None) -> dict[str, float] | None:
    """Log Z as the sampler has it beside the independent one; ``None`` where it gives none."""
    if log_z is None or independent is None:
        return None
    return {
        "sampler": log_z,
        "sampler_error": log_z_error(after.log_weight, population=after.population),
        "independent": independent.value,
        "independent_error": independent.error,
        "independent_ess": independent.ess,
    }


def _conditional_kl(path_log_ratio: Float[Tensor, " N"], feasible: Bool[Tensor, " N"]) -> tuple[float, float]:
    r""":math:`KL( p_\theta(\text{path} | F) \| p_{pre} ) = E_F[\sum_k l_k] - \log P_\theta(F)` and its error, nats."""
    mean, error = mean_and_error(path_log_ratio[feasible])
    p = feasible.double().mean().item()
    if p == 0:
        return math.nan, math.nan
    return mean - math.log(p), math.hypot(error, math.sqrt((1 - p) / (p * len(feasible))))
