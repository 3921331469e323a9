r"""Training of learned rewards and judges: ensembles of regressors on measured designs, and classifiers.

Each member minimises its loss, by default squared error on standardised scores, from its own seed, holding out its own
tenth of the rows for early stopping; the ensemble's mean is the reward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from difftilt.core.stats import spearman
from difftilt.errors import DataError
from difftilt.rng import Streams, seeded_initialisation
from difftilt.training.pretrain import learning_rate_factor
from difftilt.types import Float, Int, Tensor

Loss = Callable[[Tensor, Tensor], Float[Tensor, ""]]
"""Of the outputs of some rows and their labels, a mean."""
Seen = Callable[[Tensor, torch.Generator], Tensor]
"""Rows as training sees them: moved, mirrored and the like."""


def as_they_are(x: Tensor, rng: torch.Generator) -> Tensor:
    """Rows unchanged."""
    return x


@dataclass(frozen=True, kw_only=True)
class RegressConfig:
    """Settings of regressor training."""

    epochs: int = 25
    """Passes over the rows of a member."""
    batch: int = 128
    """Rows per step."""
    learning_rate: float = 2e-3
    """Peak; warm-up 2 %, then cosine decay."""
    weight_decay: float = 1e-2
    """Decoupled, AdamW."""
    members: int = 5
    """Ensemble size E."""
    seed: int = 0
    """Seed of the ensemble; member ``e`` uses streams of its own."""


@dataclass(frozen=True)
class Fit:
    """How well predictions match measurements on rows never trained on."""

    spearman: float
    """Rank correlation."""
    r_squared: float
    """1 - residual variance / variance."""
    rows: int
    """Number of held-out rows."""


def measure_fit(prediction: Float[Tensor, " N"], measured: Float[Tensor, " N"]) -> Fit:
    """Spearman and R² of predictions."""
    p, y = prediction.double(), measured.double()
    r_squared = (1 - (p - y).square().mean() / y.var(correction=0)).item()
    return Fit(spearman(p, y), r_squared, len(y))


def train_members(
    make: Callable[[], nn.Module],
    x: Tensor,
    y: Float[Tensor, " N"] | Int[Tensor, " N"],
    config: RegressConfig,
    *,
    loss: Loss = F.mse_loss,
    seen: Seen = as_they_are,
    on_member: Callable[[int, float], None] | None = None,
) -> list[nn.Module]:
    """Train an ensemble on rows ``x`` with labels ``y``.

    Args:
        make: builds an untrained member (its initialisation is seeded here).
        x: tokens ``[N, L]``, or what else the members read.
        y: scores with mean 0 and standard deviation 1, or what else ``loss`` takes.
        config: settings.
        loss: what is minimised, and what held-out rows choose the best epoch by.
        seen: changes the rows that a step trains on; held-out ones stay as they are.
        on_member: called with the member's number and its held-out loss when it is done.

    Raises:
        DataError: the held-out error is no number, e.g. because all scores are alike.
    """
    members = []
    for e in range(config.members):
        streams = Streams(config.seed * 1000 + e)
        with seeded_initialisation(streams.seed):
            member = make()
            order = torch.randperm(len(x), generator=streams("hold out"))
            held_out, rows = order.tensor_split([max(1, len(x) // 10)])
            error = _train_member(member, x, y, rows, held_out, config, streams, loss, seen)
        members.append(member.eval())
        if on_member is not None:
            on_member(e, error)
    return members


def _train_member(
    member: nn.Module,
    x: Tensor,
    y: Tensor,
    rows: Tensor,
    held_out: Tensor,
    config: RegressConfig,
    streams: Streams,
    loss: Loss,
    seen: Seen,
) -> float:
    optimiser = torch.optim.AdamW(member.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    best, kept, update = math.inf, {}, 0
    total = config.epochs * math.ceil(len(rows) / config.batch)
    for _ in range(config.epochs):
        member.train()
        for part in rows[torch.randperm(len(rows), generator=streams("order"))].split(config.batch):
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * learning_rate_factor(update, total)
            own = loss(member(seen(x[part], streams("see"))), y[part])
            optimiser.zero_grad(set_to_none=True)
            own.backward()
            nn.utils.clip_grad_norm_(member.parameters(), 1.0)
            optimiser.step()
            update += 1
        member.eval()
        with torch.no_grad():
            error = loss(torch.cat([member(part) for part in x[held_out].split(1024)]), y[held_out]).item()
        if error < best:
            best, kept = error, {name: value.clone() for name, value in member.state_dict().items()}
    if not kept:
        raise DataError("expected scores that a regressor can fit; got a loss that is no number; check the scores")
    member.load_state_dict(kept)
    return best
