r"""Value-weighted sampling (SVDD): M candidates a step, one kept in proportion to its soft value.

.. math::
    x_s^1, \dots, x_s^M &\sim q(\cdot \mid x_t), \qquad
    w_i = e^{v_s(x_s^i)/\alpha} \, \frac{p_{pre}(x_s^i \mid x_t)}{q(x_s^i \mid x_t)}                   \qquad (1) \\
    P(x_s = x_s^i) &= w_i / \textstyle\sum_j w_j                                                       \qquad (2)

At :math:`t = 0` the value is the reward, and an infeasible candidate is kept only if all are. ``M = 1`` samples ``q``
exactly. With exact values (1) is self-normalised importance sampling of the soft-optimal kernel (theory 5): errors of
total variation and of :math:`E[r]` fall as 1/M, KL as 1/M^2, and ``M = inf`` reaches (2)*, the tilted law with the
prior fixed. ``choice="argmax"`` keeps the candidate with the largest weight, the limit of :math:`\alpha \to 0`: it
aims at no tilted law, and spends more KL as M grows. Steps without noise are not steered: their candidates are all
alike, and a chain of nothing else is refused.

Differs from the paper's public code, which takes the argmax whatever alpha is. References:
    Li et al. 2024 (SVDD, algorithm 1), https://arxiv.org/abs/2408.08252.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from difftilt.core.algorithm import Weighted
from difftilt.core.conditions import rows_of
from difftilt.core.policy import Policy
from difftilt.core.reward import Reward, under
from difftilt.core.value import Value
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.samplers.steering import (
    ROWS,
    Move,
    check_alpha,
    check_designs,
    draw,
    log_design_weight,
    unweighted,
)
from difftilt.types import Condition, Float, Tensor
from difftilt.values.plug_in import default_value

CHOICES = ("multinomial", "argmax")


@dataclass(frozen=True, kw_only=True)
class ValueWeighted:
    """Settings of value-weighted sampling; see the module for the method."""

    alpha: float = 0.1
    """KL temperature, reward units per nat; positive."""
    candidates: int = 16
    """M: states tried at each step, of which one is kept; also reward calls per design, at the last step."""
    choice: str = "multinomial"
    """``"multinomial"``, equation (2), or ``"argmax"``."""
    proposal: Policy | None = None
    """``q``; the pretrained policy when not given."""

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if self.candidates < 1:
            raise ConfigError(f"expected at least 1 candidate; got {self.candidates}; raise it")
        if self.choice not in CHOICES:
            raise ConfigError(f"expected choice to be one of {', '.join(CHOICES)}; got '{self.choice}'; correct it")

    @torch.no_grad()
    def __call__(
        self,
        policy: Policy,
        reward: Reward,
        n: int,
        rng: torch.Generator,
        *,
        cond: Condition | None = None,
        value: Value | None = None,
        paths: bool = False,
    ) -> Weighted:
        """``n`` unweighted designs (``-inf`` where infeasible), no estimate of log Z."""
        check_designs(n)
        if policy.silent.all():
            raise UnsupportedError(
                "expected noise in some step, so that candidates differ; got a deterministic chain (eta = 0); "
                "use eta > 0, or classifier_guidance"
            )
        if value is None:
            value = default_value(policy, reward, rng, alpha=self.alpha, cond=cond)
        group = max(1, ROWS // self.candidates)
        parts = []
        for start in range(0, n, group):
            rows = slice(start, min(start + group, n))
            part = self._run(policy, reward, rows.stop - start, rng, rows_of(cond, rows), value)
            parts.append((part[0] if paths else part[0][-1:], part[1]))
        states, log_weight = zip(*parts, strict=True)
        states = torch.cat(states, dim=1)
        return Weighted(states[-1], torch.cat(log_weight), None, states if paths else None)

    def _run(
        self, policy: Policy, reward: Reward, n: int, rng: torch.Generator, cond: Condition | None, value: Value
    ) -> tuple[Tensor, Float[Tensor, " n"]]:
        """States ``[K + 1, n, *event]`` and log weights."""
        x_t, every = policy.prior(n, rng), torch.arange(n, device=policy.device)
        repeated = rows_of(cond, slice(None), self.candidates)
        states = [x_t]
        for t, s in zip(policy.grid[:-1], policy.grid[1:], strict=True):
            move = Move.propose(policy, self.proposal, x_t, t, s, cond)
            tries = [move.law.sample(rng) for _ in range(self.candidates)]
            correction = torch.stack([move.log_correction(x_s) for x_s in tries], dim=1)
            candidates = torch.stack(tries, dim=1)  # [n, M, *event]
            flat = candidates.flatten(0, 1)
            if s > 0:
                tilt = value(flat, s, repeated) / self.alpha
            else:
                tilt = log_design_weight(policy, under(reward, repeated), flat, alpha=self.alpha)
            log_weight = tilt.view(n, self.candidates) + correction
            kept = log_weight.argmax(1) if self.choice == "argmax" else draw(log_weight, rng)
            x_t = candidates[every, kept]
            states.append(x_t)
        return torch.stack(states), unweighted(tilt.view(n, -1)[every, kept] > -torch.inf)
