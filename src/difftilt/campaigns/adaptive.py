r"""Strategies that learn a surrogate and tune for it: SEIKO's three, greedy, non-adaptive and conservative.

.. code-block:: text

    seiko-ucb        mean + C std     KL to p_pre (alpha) and to the round before (beta)     every round
    seiko-bootstrap  largest member   the same                                               every round
    seiko-thompson   one draw         the same                                               every round
    greedy           mean             the same                                               every round
    conservative     mean - C std     KL to p_pre (alpha)                                    every round, from p_pre
    non-adaptive     mean             KL to p_pre (alpha)                                    once, after the first plate

Without two different values to learn from a plate is drawn from p_pre. ``conservative`` is BRAID: tune once on the data
at hand and propose; it looks at no policy before. ``non-adaptive`` learns from the plate of p_pre alone; its later
plates are drawn from that one tuned policy.

A round's policy is kept in the campaign's folder, and the next round starts from it. A round that was killed repeats
itself to the same numbers, so that its model has the same name.

References:
    Uehara, Zhao et al. 2024 (SEIKO, algorithm 1), https://arxiv.org/abs/2402.16359.
    Uehara et al. 2024 (BRAID), https://arxiv.org/abs/2405.19673.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from difftilt.campaigns.acquisition import acquisition, pick
from difftilt.campaigns.candidates import draw_new
from difftilt.campaigns.constraints import Kept, Rules
from difftilt.campaigns.earlier import known
from difftilt.campaigns.history import History
from difftilt.campaigns.keeping import MODELS, PRETRAINED, keep
from difftilt.campaigns.learning import Learned, learn
from difftilt.campaigns.proposer import Candidate, Proposal
from difftilt.campaigns.random_picks import plate_of
from difftilt.campaigns.reasons import reasons
from difftilt.campaigns.settings import Tuning
from difftilt.campaigns.update import Told, tune
from difftilt.core.policy import CONFIG, Policy
from difftilt.errors import StateError


@dataclass(frozen=True)
class Plan:
    """What makes one of these strategies."""

    acquisition: str
    """Of :data:`~difftilt.campaigns.acquisition.ACQUISITIONS`."""
    from_last: bool = True
    """Whether the round before is an anchor and the start; else p_pre alone."""
    once: bool = False
    """Whether it tunes once."""


class Adaptive:
    """Proposes by a :class:`Plan`.

    Args:
        policy: p_pre.
        folder: of the campaign.
        plan: which strategy.

    Attributes:
        told: is called with the records of the tuning; nobody is when ``None``.
    """

    def __init__(self, policy: Policy, folder: Path, plan: Plan) -> None:
        self.policy, self.folder, self.plan = policy.frozen_copy(), folder, plan
        self.told: Told | None = None

    def __call__(self, history: History, n: int, rng: torch.Generator) -> Proposal:
        """Propose designs; fewer than ``n`` only where the tuned policy makes no others."""
        settings, began = history.settings, time.monotonic()
        rules = Rules(settings.constraints, self.policy)
        tuned_before = last_model(history)
        data = first_plate(history) if self.plan.once else history
        learned = learn(data, self.policy.codec, settings.picking, rng, how=self.plan.acquisition)
        if learned is None:
            return plate_of(rules.on(self.policy), rules, history, n, rng)
        fitted = time.monotonic()
        tuning = settings.tuning if self.plan.from_last else replace(settings.tuning, beta=0.0, kl_budget=None)
        facts: dict[str, Any] = {"oracle_calls": history.spent, "seconds_fit": fitted - began}
        if self.plan.once and tuned_before is not None:
            name, tuned = tuned_before, self._load(tuned_before, rules)
        else:
            name, tuned, more = self._tune(history, learned, tuning, rules, tuned_before, rng)
            facts |= more
        proposal = picked(
            tuned, name, learned, self.plan.acquisition, rules, history, n, rng, temperature=tuning.alpha + tuning.beta
        )
        return replace(proposal, facts={**learned.facts, **facts, **proposal.facts})

    def _tune(
        self, history: History, learned: Learned, tuning: Tuning, rules: Rules, before: str | None, rng: torch.Generator
    ) -> tuple[str, Policy, dict[str, Any]]:
        """The policy of this round, kept."""
        began, pretrained = time.monotonic(), rules.on(self.policy)
        current = pretrained if before is None or not self.plan.from_last else self._load(before, rules)
        reward = acquisition(
            self.plan.acquisition, learned, rng, c=history.settings.picking.c, temperature=tuning.alpha + tuning.beta
        )
        found = tune(current, pretrained, Kept(reward, rules), tuning, rng, told=self.told)
        plain = rules.off(found.policy)
        name = keep(self.folder / MODELS, f"round-{history.next_round}", lambda path: _save(plain, path))
        return name, found.policy, {**found.facts, "seconds_tune": time.monotonic() - began}

    def _load(self, name: str, rules: Rules) -> Policy:
        return rules.on(load_model(self.folder, name))


def picked(
    policy: Policy, model: str, learned: Learned, how: str, rules: Rules, history: History, n: int,
    rng: torch.Generator, *, temperature: float, designs: Sequence[str] = (),
) -> Proposal:  # fmt: skip
    """A plate from a pool of the policy's designs (``designs`` before them), with predictions and reasons.

    Raises:
        StateError: there is no new design that may be proposed.
    """
    began, settings = time.monotonic(), history.settings.picking
    sieve = draw_new(policy, n, rules, known(history, policy.codec), rng, pool=settings.pool, designs=designs)
    pool = sieve.some()
    picks = pick(how, pool, learned, n, settings, rng, temperature=temperature)
    chosen = [pool[i] for i in picks.index.tolist()]
    texts = reasons(chosen, picks, how, settings, history, learned.surrogate.codec)
    columns = zip(chosen, picks.mean.tolist(), picks.std.tolist(), texts, strict=True)
    candidates = [Candidate(design, mean, std, text) for design, mean, std, text in columns]
    facts = {**sieve.facts, "pool": len(pool), "seconds_pick": time.monotonic() - began}
    return Proposal(candidates, model, facts)


def last_model(history: History) -> str | None:
    """The newest tuned policy's name, if any."""
    return next((entry.model for entry in reversed(history.rounds) if entry.model != PRETRAINED), None)


def load_model(folder: Path, name: str) -> Policy:
    """A policy that an earlier round kept.

    Raises:
        StateError: it is not there.
    """
    kept = folder / MODELS / name
    if not (kept / CONFIG).is_file():
        raise StateError(
            f"expected the policy of an earlier round in '{kept}'; got no model there; bring the folder '{MODELS}' of "
            "the campaign back, or run in the directory in which it was begun"
        )
    return Policy.from_pretrained(str(kept))


def first_plate(history: History) -> History:
    """What was learned from designs of p_pre alone."""
    own = tuple(design for design in history.designs if design.model == PRETRAINED)
    return replace(history, designs=own, rounds=tuple(e for e in history.rounds if e.model == PRETRAINED))


def _save(policy: Policy, path: Path) -> None:
    policy.save_pretrained(path)
