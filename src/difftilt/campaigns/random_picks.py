r"""Designs of p_pre as they come: the yardstick that looks at no result.

.. math:: x \sim p_{pre}(\cdot \mid x \notin \text{history})                                       \qquad (1)

drawn without replacement: p_pre is drawn from, and what is known is passed over.
"""

from __future__ import annotations

from pathlib import Path

import torch

from difftilt.campaigns.candidates import draw_new
from difftilt.campaigns.constraints import Rules
from difftilt.campaigns.earlier import known
from difftilt.campaigns.history import History
from difftilt.campaigns.keeping import PRETRAINED
from difftilt.campaigns.proposer import Candidate, Proposal
from difftilt.core.policy import Policy


class RandomPicks:
    """Proposes by (1), within the campaign's constraints.

    Args:
        policy: p_pre.
        folder: of the campaign; nothing is kept there.
    """

    def __init__(self, policy: Policy, folder: Path) -> None:
        self.policy = policy

    def __call__(self, history: History, n: int, rng: torch.Generator) -> Proposal:
        """Propose designs; fewer than ``n`` only where p_pre makes no others."""
        rules = Rules(history.settings.constraints, self.policy)
        return plate_of(rules.on(self.policy), rules, history, n, rng)


def plate_of(policy: Policy, rules: Rules, history: History, n: int, rng: torch.Generator) -> Proposal:
    """A plate of p_pre, which is ``policy``, by (1).

    Raises:
        StateError: it makes no new design that may be proposed.
    """
    sieve = draw_new(policy, n, rules, known(history, policy.codec), rng)
    designs = sieve.some("draws of p_pre", "relax the constraints")
    candidates = [Candidate(design, reason="drawn from p_pre") for design in designs]
    return Proposal(candidates, PRETRAINED, sieve.facts)
