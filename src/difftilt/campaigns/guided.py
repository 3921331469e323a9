r"""Guidance: p_pre steered by the surrogate, without tuning.

.. math:: x \sim p_{pre}(x)\, e^{\hat r(x) / \alpha} / Z                                              \qquad (1)

by sequential Monte Carlo (:mod:`difftilt.samplers.smc`, twisted by the surrogate of the predicted design). Each plate
starts from p_pre anew: nothing is kept between rounds but the measurements, and there is no policy of the round before
to stay close to.

References:
    Wu et al. 2023 (TDS), https://arxiv.org/abs/2306.17775.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from difftilt.campaigns.acquisition import acquisition
from difftilt.campaigns.adaptive import picked
from difftilt.campaigns.constraints import Kept, Rules
from difftilt.campaigns.history import History
from difftilt.campaigns.learning import learn
from difftilt.campaigns.proposer import Proposal
from difftilt.campaigns.random_picks import plate_of
from difftilt.core.policy import Policy
from difftilt.metrics.log_z import systematic
from difftilt.rewards.oracle import as_oracle
from difftilt.samplers.smc import SMC


class Guided:
    """Proposes by (1).

    Args:
        policy: p_pre.
        folder: of the campaign; nothing is kept there.
    """

    def __init__(self, policy: Policy, folder: Path) -> None:
        self.policy = policy.frozen_copy()

    def __call__(self, history: History, n: int, rng: torch.Generator) -> Proposal:
        """Propose designs; fewer than ``n`` only where there are no others."""
        settings, began = history.settings, time.monotonic()
        rules = Rules(settings.constraints, self.policy)
        pretrained = rules.on(self.policy)
        learned = learn(history, self.policy.codec, settings.picking, rng)
        if learned is None:
            return plate_of(pretrained, rules, history, n, rng)
        alpha = settings.tuning.alpha
        reward = as_oracle(Kept(acquisition("mean", learned, rng, c=0.0, temperature=alpha), rules))
        fitted = time.monotonic()
        steered = SMC(alpha=alpha)(pretrained, reward, settings.picking.pool * n, rng)
        designs = self.policy.codec.decode(steered.x_0[systematic(steered.log_weight, rng)])
        facts = {
            "oracle_calls": history.spent, "surrogate_calls": reward.calls, "seconds_fit": fitted - began,
            "seconds_steer": time.monotonic() - fitted,
        }  # fmt: skip
        plate = picked(
            pretrained, "guidance", learned, "mean", rules, history, n, rng, temperature=alpha, designs=designs
        )
        return replace(plate, facts={**learned.facts, **facts, **plate.facts})
