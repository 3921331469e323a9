r"""Bayesian optimisation of a whole plate over a sampled pool: the yardstick of BoTorch's users.

The pool holds designs drawn from p_pre and mutants of the best measured ones, all of them new. Of a surrogate's joint
posterior over the pool, ``S`` joint draws :math:`f_s` are made, and the plate ``X`` maximises, greedily one after
another, BoTorch's ``qUpperConfidenceBound``,

.. math::
    qUCB(X) = \frac1S \sum_s \max_{x \in X} \Big( \bar f(x) + \sqrt{\beta \pi / 2}\; |f_s(x) - \bar f(x)| \Big)
    \qquad (1)

with :math:`\bar f` the mean over draws. Greedy choice is within :math:`1 - 1/e` of the best plate, as (1) is submodular
in ``X``. All steps share the draws, so one joint posterior serves the whole plate. Before there are two different
values, and where the pool is too small, p_pre draws designs. Designs measured before the campaign count as measured;
failed designs teach it nothing.

References:
    Wilson et al. 2017 (the reparametrised bound), https://arxiv.org/abs/1712.00424.
    Balandat et al. 2020 (BoTorch), https://arxiv.org/abs/1910.06403.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from difftilt.campaigns.acquisition import draw_root
from difftilt.campaigns.candidates import Sieve
from difftilt.campaigns.constraints import Rules
from difftilt.campaigns.earlier import known
from difftilt.campaigns.genetic import fit_by, letters_of, mutate, plate
from difftilt.campaigns.history import History
from difftilt.campaigns.learning import measurements
from difftilt.campaigns.proposer import Candidate, Proposal
from difftilt.campaigns.random_picks import RandomPicks
from difftilt.core.policy import Policy
from difftilt.core.trajectory import sample_states
from difftilt.errors import ConfigError
from difftilt.surrogates.measurements import readable
from difftilt.surrogates.surrogate import Learner
from difftilt.types import Float, Int, Tensor

MODEL = "batch-bo"
"""What its rounds name as their model: there is no policy."""


@dataclass(frozen=True, kw_only=True)
class BatchBO:
    """Settings."""

    beta: float = 2.0
    r""":math:`\beta` of (1), 0 or more."""
    drawn: int = 512
    """Designs of the pool drawn from p_pre."""
    mutants: int = 512
    """Designs of the pool that are mutants of the best."""
    parents: int = 32
    """Measured designs that are mutated, the best ones."""
    mutations: float = 2.0
    """Letters expected to mutate, above 0."""
    draws: int = 256
    """``S``, 2 or more."""
    learner: Learner | None = None
    """Fits the surrogate; that of the campaign's settings when not set."""

    def __post_init__(self) -> None:
        if self.beta < 0 or min(self.drawn, self.mutants, self.parents) < 1 or self.draws < 2 or self.mutations <= 0:
            raise ConfigError(
                "expected beta 0 or more, drawn, mutants and parents 1 or more, draws 2 or more, mutations above 0; "
                "got others; correct them"
            )


class PooledBO:
    """Proposes by (1).

    Args:
        policy: p_pre.
        folder: of the campaign; nothing is kept there.
        settings: of pool and acquisition.
    """

    def __init__(self, policy: Policy, folder: Path, settings: BatchBO | None = None) -> None:
        self.policy, self.codec = policy, letters_of(policy)
        self.settings = BatchBO() if settings is None else settings
        self.first = RandomPicks(policy, folder)

    def __call__(self, history: History, n: int, rng: torch.Generator) -> Proposal:
        """Propose designs; fewer than ``n`` only where p_pre makes no others."""
        data = measurements(history, self.codec, history.settings.picking)
        if data is None:
            return plate([], self.first, history, n, rng, MODEL)
        surrogate = fit_by(self.settings.learner, history, self.codec, data, rng)
        tokens = self.codec.encode(data.designs)[data.feasible]
        sieve = self._pool(tokens, data.value[data.feasible], history, rng)
        pool = list(sieve.designs)
        if not pool:
            return plate([], self.first, history, n, rng, MODEL, sieve.facts)
        with torch.no_grad():
            mean, covariance = surrogate.joint(readable(self.codec, pool))
        chosen = greedy_ucb(draw_joint(mean, covariance, self.settings.draws, rng), n, beta=self.settings.beta)
        std = covariance.diagonal().clamp(min=0).sqrt()
        candidates = [
            Candidate(pool[i], mean[i].item(), std[i].item(), f"no. {number} of the plate by qUCB")
            for number, i in enumerate(chosen.tolist(), start=1)
        ]
        return plate(candidates, self.first, history, n, rng, MODEL, {**sieve.facts, "pool": len(pool)})

    @torch.no_grad()
    def _pool(
        self, tokens: Int[Tensor, "N L"], value: Float[Tensor, " N"], history: History, rng: torch.Generator
    ) -> Sieve:
        own = self.settings
        best = tokens[value.argsort(descending=True, stable=True)[: own.parents]]
        parents = best[torch.randint(len(best), (own.mutants,), generator=rng)]
        mutants = mutate(parents, self.codec.vocabulary, own.mutations, rng)
        rules = Rules(history.settings.constraints, self.policy)
        drawn = sample_states(rules.on(self.policy), own.drawn, rng)
        sieve, pool = Sieve(rules, known(history, self.codec)), self.codec.decode(torch.cat([drawn, mutants]))
        sieve.take(pool, len(pool))
        return sieve


def draw_joint(
    mean: Float[Tensor, " N"], covariance: Float[Tensor, "N N"], draws: int, rng: torch.Generator
) -> Float[Tensor, "S N"]:
    """Joint normal draws; by eigenvectors, since designs that hardly differ make a singular covariance."""
    noise = torch.randn(draws, len(mean), generator=rng, dtype=mean.dtype)
    return mean + noise @ draw_root(covariance).T


def greedy_ucb(draws: Float[Tensor, "S N"], n: int, *, beta: float) -> Int[Tensor, " n"]:
    """Columns, at most ``n`` and each once, that raise (1) most, one after another."""
    mean = draws.mean(0)
    upper = mean + math.sqrt(beta * math.pi / 2) * (draws - mean).abs()
    so_far = torch.full_like(upper[:, :1], -math.inf)
    free = torch.ones(upper.shape[1], dtype=torch.bool)
    chosen = []
    for _ in range(min(n, upper.shape[1])):
        value = upper.maximum(so_far).mean(0).where(free, -math.inf)
        best = int(value.argmax())
        chosen.append(best)
        free[best] = False
        so_far = so_far.maximum(upper[:, best : best + 1])
    return torch.tensor(chosen)
