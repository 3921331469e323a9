r"""AdaLead: a genetic algorithm on a surrogate, the yardstick that protein engineers know.

A round's parents are the measured designs near the best, by value :math:`y`:

.. math:: P = \{ x : y(x) \ge y_{\max} - \kappa\, |y_{\max}| \}                                              \qquad (1)

Until the surrogate was asked ``v n`` times: parents are recombined in random pairs (after each letter the strands cross
with probability ``r``), and from each child a *rollout* mutates its letters, each with probability :math:`\mu / L`,
again and again while the surrogate's mean does not fall below the child's. Whatever was visited is a candidate; the
``n`` with the highest mean are proposed. Before there are two different values, and where
mutation finds too few new designs, p_pre draws them. Designs measured before the campaign count as measured.

Differs from the paper in: the surrogate (that of the campaign; any learner can be given), and (1) for a negative
:math:`y_{\max}`, which the paper's :math:`(1 - \kappa) y_{\max}` would leave without parents. Failed designs are no
parents and nothing is learned from them.

References:
    Sinai et al. 2020 (AdaLead, algorithm 1), https://arxiv.org/abs/2010.02141.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from difftilt.campaigns.candidates import Sieve
from difftilt.campaigns.constraints import Rules
from difftilt.campaigns.earlier import known
from difftilt.campaigns.history import History
from difftilt.campaigns.learning import fit, learner, measurements
from difftilt.campaigns.proposer import Candidate, Proposal, Proposer
from difftilt.campaigns.random_picks import RandomPicks
from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.surrogates.measurements import Measurements
from difftilt.surrogates.surrogate import Learner, Prediction, Surrogate
from difftilt.types import Float, Int, Tensor

MODEL = "genetic"
"""What its rounds name as their model: there is no policy."""


@dataclass(frozen=True, kw_only=True)
class AdaLead:
    """Settings."""

    threshold: float = 0.05
    r""":math:`\kappa`, 0 or more; the paper's 0.05."""
    recombination: float = 0.2
    """``r``, 0 to 1; the paper's 0.2."""
    mutations: float = 1.0
    r""":math:`\mu`, letters expected to mutate, above 0; the paper's 1."""
    queries: int = 20
    """``v``, surrogate queries for each design proposed; the paper's 20."""
    learner: Learner | None = None
    """Fits the surrogate; that of the campaign's settings when not set."""

    def __post_init__(self) -> None:
        if self.threshold < 0 or not 0 <= self.recombination <= 1 or not self.mutations > 0 or self.queries < 1:
            raise ConfigError(
                "expected threshold 0 or more, recombination 0 to 1, mutations above 0, queries 1 or more; got others; "
                "correct them"
            )


class Genetic:
    """Proposes by AdaLead.

    Args:
        policy: p_pre: its codec, and the designs of the first rounds.
        folder: of the campaign; nothing is kept there.
        settings: of the search.
    """

    def __init__(self, policy: Policy, folder: Path, settings: AdaLead | None = None) -> None:
        self.policy, self.codec = policy, letters_of(policy)
        self.settings = AdaLead() if settings is None else settings
        self.first = RandomPicks(policy, folder)

    @torch.no_grad()
    def __call__(self, history: History, n: int, rng: torch.Generator) -> Proposal:
        """Propose designs; fewer than ``n`` only where p_pre makes no others."""
        data = measurements(history, self.codec, history.settings.picking)
        if data is None:
            return plate([], self.first, history, n, rng, MODEL)
        with torch.enable_grad():
            surrogate = fit_by(self.settings.learner, history, self.codec, data, rng)
        tokens, value = self.codec.encode(data.designs)[data.feasible], data.value[data.feasible]
        tokens = tokens[value >= value.max() - self.settings.threshold * value.max().abs()]
        rules = Rules(history.settings.constraints, self.policy)
        sieve = Sieve(rules, known(history, self.codec))
        found = search(tokens, surrogate.predict, self.codec, n, self.settings, rng, sieve)
        picks = sorted(found.items(), key=lambda item: -item[1][0])[:n]
        candidates = [Candidate(design, mean, std, "bred from the best") for design, (mean, std) in picks]
        facts = {"parents": len(tokens), "candidates": len(found), **sieve.facts}
        return plate(candidates, self.first, history, n, rng, MODEL, facts)


def plate(
    candidates: list[Candidate],
    first: Proposer,
    history: History,
    n: int,
    rng: torch.Generator,
    model: str,
    facts: Mapping[str, Any] | None = None,
) -> Proposal:
    """A whole plate: what was found, and for the places that are left designs of p_pre, drawn and counted too."""
    told = dict(facts or {})
    if len(candidates) < n:
        there, more = {pick.design for pick in candidates}, first(history, n, rng)
        others = [pick for pick in more.candidates if pick.design not in there]
        candidates = [*candidates, *others[: n - len(candidates)]]
        told |= {name: told.get(name, 0) + count for name, count in more.facts.items()}
    return Proposal(candidates, model, told)


def fit_by(
    given: Learner | None, history: History, codec: TokenCodec, data: Measurements, rng: torch.Generator
) -> Surrogate:
    """A surrogate by the learner that is given, or by that of the campaign."""
    own = learner(history.settings.picking, len(set(data.designs))) if given is None else given
    return fit(own, codec, data, rng)


def search(
    parents: Int[Tensor, "P L"],
    predict: Callable[[list[str]], Prediction],
    codec: TokenCodec,
    n: int,
    settings: AdaLead,
    rng: torch.Generator,
    sieve: Sieve,
) -> dict[str, tuple[float, float]]:
    """Candidates, with mean and std, from rollouts of all children at a time, until the queries are spent."""
    found: dict[str, tuple[float, float]] = {}
    asked = 0

    def ask(tokens: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
        designs = codec.decode(tokens)
        mean, std = predict(designs)
        sieve.take(designs, len(sieve.designs) + len(designs))
        for design, *row in zip(designs, mean.tolist(), std.tolist(), strict=True):
            if design in sieve.designs:
                found[design] = row[0], row[1]
        return mean

    while asked < settings.queries * n or (len(found) < n and asked < 10 * settings.queries * n):
        first, second = (parents[torch.randint(len(parents), (n,), generator=rng)] for _ in range(2))
        children = recombine(first, second, settings.recombination, rng)
        floor, here = ask(children), children
        asked += len(children)
        while len(here) and asked < settings.queries * n:
            here = mutate(here, codec.vocabulary, settings.mutations, rng)
            mean = ask(here)
            asked += len(here)
            here, floor = here[mean >= floor], floor[mean >= floor]
    return found


def recombine(
    first: Int[Tensor, "B L"], second: Int[Tensor, "B L"], rate: float, rng: torch.Generator
) -> Int[Tensor, "B L"]:
    """One child of each pair: letters of the first, and after each crossing those of the other parent."""
    cross = torch.rand(first.shape, generator=rng) < rate
    cross[:, 0] = False
    return first.where(cross.cumsum(1) % 2 == 0, second)


def mutate(tokens: Int[Tensor, "B L"], letters: int, expected: float, rng: torch.Generator) -> Int[Tensor, "B L"]:
    """Each letter another one, drawn uniformly, with probability ``expected / L``; at least one in each design."""
    n, length = tokens.shape
    change = torch.rand(n, length, generator=rng) < expected / length
    change[torch.arange(n), torch.randint(length, (n,), generator=rng)] |= ~change.any(1)
    shift = torch.randint(1, letters, tokens.shape, generator=rng)
    return ((tokens + shift) % letters).where(change, tokens)


def letters_of(policy: Policy) -> TokenCodec:
    """The codec of a policy over letters.

    Raises:
        UnsupportedError: its designs are no letters.
    """
    if type(policy.codec) is not TokenCodec:
        raise UnsupportedError(
            f"expected a model of letters; got one of {type(policy.codec).__name__}; use a strategy that tunes it"
        )
    return policy.codec
