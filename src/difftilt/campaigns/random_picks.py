r"""Designs of p_pre as they come: the yardstick that looks at no result.

.. math:: x \sim p_{pre}(\cdot \mid x \notin \text{history})                                       \qquad (1)

drawn without replacement: p_pre is drawn from, and what is known is passed over.
"""

from __future__ import annotations

from pathlib import Path

import torch

from difftilt.campaigns.history import History
from difftilt.campaigns.proposer import Candidate, Proposal
from difftilt.core.policy import Policy
from difftilt.core.trajectory import sample_states

TRIES = 100
"""Times ``n`` designs are drawn before a plate stays short: p_pre hardly makes others."""


class RandomPicks:
    """Proposes by (1).

    Args:
        policy: p_pre.
        folder: of the campaign; nothing is kept there.
    """

    def __init__(self, policy: Policy, folder: Path) -> None:
        self.policy = policy

    @torch.no_grad()
    def __call__(self, history: History, n: int, rng: torch.Generator) -> Proposal:
        """Propose designs; fewer than ``n`` only where p_pre makes no others."""
        known = history.known
        picks: dict[str, None] = {}
        drawn = 0
        for _ in range(TRIES):
            if len(picks) == n:
                break
            designs = self.policy.codec.decode(sample_states(self.policy, n, rng))
            drawn += n
            for design in designs:
                if design not in known and len(picks) < n:
                    picks[design] = None
        candidates = [Candidate(design, reason="drawn from p_pre") for design in picks]
        return Proposal(candidates, "p_pre", {"drawn": drawn})
