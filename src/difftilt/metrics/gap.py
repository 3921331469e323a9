r"""The optimality gap: how far, in nats, a policy is from the law it should sample.

With path weights :math:`w = 1_F \exp(r/\alpha - \sum_k l_k)` on rollouts of :math:`p_\theta`,

.. math::

    \text{gap} = \log \hat Z - E_F[\log w] - \log P_\theta(F)
        \;\approx\; KL\big( p_\theta(\text{path} | F) \,\|\, p^*(\text{path}) \big)                      \qquad (1)

an upper bound on :math:`KL(p_\theta(x_0|F) \| p^*(x_0))`. With log Z estimated from the same rollouts, (1) is never
negative (Jensen) and is 0 for a policy that has collapsed to one design, so :math:`\hat Z` is the larger of that
estimate and an independent one that does not look at :math:`p_\theta`. The gap is *certified* only if both can be
trusted and agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from difftilt.core.stats import effective_sample_size
from difftilt.metrics.log_z import LogZ, from_samples
from difftilt.types import Float, Tensor

ESS_FRACTION, INDEPENDENT_ESS, AGREEMENT = 0.1, 100.0, 3.0


@dataclass(frozen=True)
class Gap:
    """Equation (1) with what is needed to judge it."""

    gap_nats: float
    """Estimate of the path KL to the optimum, nats."""
    error: float
    """Its standard error, nats."""
    log_z: float
    """The log Z used, nats."""
    log_z_policy: float
    """log Z from the policy's own rollouts, nats."""
    log_z_policy_error: float
    """Its standard error, nats."""
    log_z_independent: float
    """log Z from the independent estimate, nats."""
    log_z_independent_error: float
    """Its standard error, nats."""
    ess_fraction: float
    """Effective sample size of the policy's weights, as a share of the rollouts."""
    independent_ess: float
    """Effective sample size of the independent estimate."""
    feasible_fraction: float
    r""":math:`P_\theta(F)`."""
    certified: bool
    """Whether the number can be trusted."""
    reason: str
    """Why not, empty if certified."""

    @property
    def verdict(self) -> str:
        """``"certified"`` or ``"not certified: reason"``."""
        return "certified" if self.certified else f"not certified: {self.reason}"


def optimality_gap(log_weight: Float[Tensor, " N"], independent: LogZ) -> Gap:
    """Equation (1) from the log path weights of ``N`` rollouts and an independent estimate of log Z."""
    feasible = log_weight[~torch.isneginf(log_weight)].double()
    n, fraction = log_weight.shape[0], feasible.shape[0] / log_weight.shape[0]
    own = from_samples(log_weight.double())
    if feasible.shape[0] < 2:
        reason = "fewer than two feasible designs"
        return Gap(
            math.inf, math.inf, independent.value, own.value, own.error, independent.value, independent.error,
            0.0, independent.ess, fraction, False, reason,
        )  # fmt: skip
    mean, spread = feasible.mean().item(), feasible.std().item() / math.sqrt(feasible.shape[0])
    ess = effective_sample_size(log_weight).item() / n
    if own.value >= independent.value:
        log_z = own.value
        influence = (feasible - own.value).exp() * fraction - feasible
        error = influence.std().item() / math.sqrt(feasible.shape[0])
    else:
        log_z, error = independent.value, math.hypot(independent.error, spread)
    disagreement = abs(own.value - independent.value)
    allowed = AGREEMENT * math.hypot(own.error, independent.error)
    reasons = []
    if ess < ESS_FRACTION:
        reasons.append(f"ESS is {ess:.1%} of the rollouts, below {ESS_FRACTION:.0%}")
    if independent.ess < INDEPENDENT_ESS:
        reasons.append(f"the independent estimate has ESS {independent.ess:.0f}, below {INDEPENDENT_ESS:.0f}")
    if math.isinf(allowed):
        reasons.append("the error of log Z is not known")
    elif not disagreement <= allowed:
        reasons.append(f"the two log Z estimates differ by {disagreement:.2f} nats, more than 3 s.e. ({allowed:.2f})")
    return Gap(
        gap_nats=log_z - mean - math.log(fraction),
        error=error,
        log_z=log_z,
        log_z_policy=own.value,
        log_z_policy_error=own.error,
        log_z_independent=independent.value,
        log_z_independent_error=independent.error,
        ess_fraction=ess,
        independent_ess=independent.ess,
        feasible_fraction=fraction,
        certified=not reasons,
        reason="; ".join(reasons),
    )
