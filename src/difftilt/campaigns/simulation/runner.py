"""One simulated campaign: plates from a strategy, values from a landscape, noise from a stream of its own.

The campaign is a real one, in a folder of its own. Whatever step it was killed at, it goes on from there to the same
designs and values: round i proposes from the campaign's own stream, and its noise is drawn from a stream of the seed
and i alone. After the last round one design more is proposed and never measured, so that what was learned from all
results is judged too.

The policy of a round, whose law is judged, is found by the name that the strategy gave its model: ``p_pre``, or a
folder in ``models`` of the campaign. A strategy without either (``guidance``, ``genetic``, ``batch-bo``) is judged by
its designs alone.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from difftilt.campaigns.campaign import Campaign
from difftilt.campaigns.history import PENDING, CampaignSettings, Design, Round
from difftilt.campaigns.keeping import MODELS, PRETRAINED
from difftilt.campaigns.proposer import Proposer
from difftilt.campaigns.settings import Tuning
from difftilt.campaigns.simulation.landscape import Landscape
from difftilt.campaigns.simulation.measures import Row, rows_of
from difftilt.core.policy import CONFIG, Policy
from difftilt.data.files import replacing
from difftilt.errors import ConfigError, StateError
from difftilt.rng import Streams
from difftilt.tracking.run import plain

SECONDS, RESULT = "seconds.jsonl", "result.json"


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What every campaign of a study shares."""

    rounds: int = 8
    """Plates that are measured, 1 or more."""
    batch: int = 64
    """Designs of a plate, 1 or more."""
    noise: float = 0.02
    """Standard deviation of a measurement about the oracle's value, reward units, 0 or more."""

    def __post_init__(self) -> None:
        if min(self.rounds, self.batch) < 1 or not 0 <= self.noise < math.inf:
            raise ConfigError(
                f"expected rounds and batch 1 or more, noise 0 or more; got {self.rounds}, {self.batch}, {self.noise}; "
                "correct them"
            )


def run(
    landscape: Landscape,
    name: str,
    make: Callable[[Policy, Path], Proposer],
    folder: Path,
    settings: Simulated,
    seed: int,
    told: Callable[[str], None] = lambda message: None,
) -> list[Row]:
    """One campaign to its end, or what is left of it; its rows are kept, so that a finished one costs nothing.

    Args:
        landscape: what is searched.
        name: of the strategy.
        make: the strategy, from p_pre and the campaign's folder.
        folder: of the campaign.
        settings: rounds, designs of each, noise.
        seed: of the campaign and of its noise.
        told: is called with a line after each round.
    """
    result = folder / RESULT
    if result.is_file():
        return [Row(**row) for row in json.loads(result.read_text())]
    campaign = _opened(landscape, name, folder, settings, seed)
    proposer = make(landscape.prior, folder)
    while True:
        history, began = campaign.history(), time.monotonic()
        if len(history.rounds) > settings.rounds:
            break
        pending = history.in_state(PENDING)
        if pending:
            campaign.record(_measured(landscape, pending, settings.noise, seed))
            continue
        last = len(history.rounds) == settings.rounds
        designs = campaign.propose(1 if last else settings.batch, proposer=proposer)
        with (folder / SECONDS).open("a") as file:
            file.write(json.dumps({"round": designs[0].round, "seconds": time.monotonic() - began}) + "\n")
        told(f"{landscape.name} {name} seed {seed}: round {designs[0].round} of {settings.rounds}")
    seconds = [json.loads(line) for line in (folder / SECONDS).read_text().splitlines() if line.endswith("}")]
    spent = {entry["round"]: entry["seconds"] for entry in seconds}
    rows = rows_of(landscape, name, seed, history, lambda entry: policy_of(landscape, folder, entry), spent)
    with replacing(result) as temporary:
        temporary.write_text(json.dumps([plain(vars(row)) for row in rows], indent=1) + "\n")
    return rows


def policy_of(landscape: Landscape, folder: Path, entry: Round) -> Policy | None:
    """The policy that proposed a round, ``None`` where the strategy has none."""
    if entry.model == PRETRAINED:
        return landscape.prior
    kept = folder / MODELS / entry.model
    return Policy.from_pretrained(str(kept)).eval() if (kept / CONFIG).is_file() else None


def _opened(landscape: Landscape, name: str, folder: Path, settings: Simulated, seed: int) -> Campaign:
    """The campaign, begun if need be, also where it was killed while it began; one design more than is measured."""
    wanted = CampaignSettings(
        name=f"seed-{seed}",
        task=landscape.name,
        strategy=name,
        batch=settings.batch,
        budget=settings.rounds * settings.batch + 1,
        seed=seed,
        tuning=Tuning(alpha=landscape.alpha, beta=landscape.alpha, learning_rate=landscape.learning_rate),
    )
    try:
        return Campaign.create(folder, wanted)
    except StateError:  # it is there
        return Campaign.open(folder)


def _measured(
    landscape: Landscape, pending: tuple[Design, ...], noise: float, seed: int
) -> list[dict[str, str | float]]:
    """Rows of results: the oracle's values with noise, and failures with their reasons."""
    rng = Streams(seed)(f"noise-{pending[0].round}")
    value = torch.as_tensor(landscape.oracle([design.design for design in pending])).double()
    value = value + noise * torch.randn(len(pending), generator=rng, dtype=torch.float64)
    reasons = getattr(landscape.oracle, "reasons", [None] * len(pending))
    return [
        {"id": design.id, "value": number}
        if number == number
        else {"id": design.id, "status": f"failed: {reason or 'infeasible'}"}
        for design, number, reason in zip(pending, value.tolist(), reasons, strict=True)
    ]
