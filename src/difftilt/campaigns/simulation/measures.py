r"""How a simulated campaign went, round by round; all values without noise.

Of round ``i``: its designs, and the best of all so far. After round ``i``: the law of the policy that was tuned on its
results, which is the one that proposed round ``i + 1`` (round ``n + 1`` proposes one design that nobody measures).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from difftilt.campaigns.history import MEASURED, Design, History, Round
from difftilt.campaigns.learning import forecast_of, numbers
from difftilt.campaigns.simulation.landscape import Judged, Landscape
from difftilt.core.policy import Policy
from difftilt.core.stats import spearman
from difftilt.metrics.sequences import diversity
from difftilt.rng import Streams
from difftilt.types import Float, Tensor


@dataclass(frozen=True, kw_only=True)
class Row:
    """One round of one campaign; ``None`` is what the strategy, the landscape or a crash does not tell."""

    task: str
    strategy: str
    seed: int
    round: int
    best: float | None
    """Largest value among the feasible designs so far, reward units."""
    top_share: float | None
    """Share of all feasible designs whose value is larger than that; where designs can be listed."""
    batch_mean: float | None
    """Mean value of the round's feasible designs, reward units."""
    infeasible: float
    """Share of the round's designs that failed."""
    diversity: float
    """Mean Hamming distance between two of its designs, per position."""
    seconds: float | None
    """Wall-clock to propose it."""
    reward: float | None
    """:math:`E_p[r | F]` after the round, reward units."""
    feasible: float | None
    """:math:`P_p(F)` after the round."""
    kl: float | None
    """KL to p_pre after the round, nats."""
    objective: float | None
    r""":math:`J_\alpha` after the round, reward units."""
    regret: float | None
    """Of :math:`J_\\alpha`: 1 is p_pre, 0 the tilted law; where designs can be listed."""
    spearman: float | None
    """Rank correlation of what was predicted of the round's designs and measured."""
    coverage_50: float | None
    """Share of the round's measurements within the 50 % intervals forecast of them."""
    coverage_90: float | None
    """The same of the 90 % intervals."""


def rows_of(
    landscape: Landscape,
    strategy: str,
    seed: int,
    history: History,
    policy_of: Callable[[Round], Policy | None],
    seconds: Mapping[int, float],
) -> list[Row]:
    """A row for each round but the last, which is only there to be judged."""
    known: dict[str, Judged | None] = {}
    best, rows = -math.inf, []
    rng = Streams(seed)("judge")
    for entry, following in zip(history.rounds[:-1], history.rounds[1:], strict=True):
        own = [design for design in history.designs if design.round == entry.number]
        value = torch.as_tensor(landscape.oracle([design.design for design in own])).double()
        there = value[~value.isnan()]
        best = max([best, *there.tolist()])
        if following.model not in known:
            policy = policy_of(following)
            known[following.model] = None if policy is None else landscape.judge(policy, rng)
        law = known[following.model]
        rows.append(
            Row(
                task=landscape.name,
                strategy=strategy,
                seed=seed,
                round=entry.number,
                best=_finite(best),
                top_share=_top_share(landscape.table, best),
                batch_mean=_finite(there.mean().item()),
                infeasible=1 - len(there) / len(own),
                diversity=_diversity(landscape.prior, own),
                seconds=seconds.get(entry.number),
                **{
                    name: None if law is None else getattr(law, name)
                    for name in ("reward", "feasible", "kl", "objective", "regret")
                },
                spearman=_ranks(own),
                **_coverage(history, entry),
            )
        )
    return rows


def _top_share(table: Float[Tensor, " N"] | None, best: float) -> float | None:
    if table is None or not math.isfinite(best):
        return None
    return (table > best).sum().item() / (~table.isnan()).sum().item()


def _diversity(prior: Policy, own: Sequence[Design]) -> float:
    tokens = prior.codec.encode([design.design for design in own])
    return diversity(tokens, prior.codec.vocabulary) if len(own) > 1 else 0.0  # ty: ignore[missing-attribute]


def _ranks(own: Sequence[Design]) -> float | None:
    pairs = [(design.mean, design.value) for design in own if design.state == MEASURED and design.mean is not None]
    if len(pairs) < 3:
        return None
    mean, value = torch.tensor(pairs, dtype=torch.float64).T
    return _finite(spearman(mean, value))


def _coverage(history: History, entry: Round) -> dict[str, float | None]:
    forecast = forecast_of(history, entry.number)
    found = {} if forecast is None else numbers(forecast, entry.facts["factor"])
    return {name: found.get(name) for name in ("coverage_50", "coverage_90")}


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
