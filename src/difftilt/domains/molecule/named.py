"""Rewards of molecules by name, all computed by RDKit."""

from __future__ import annotations

from difftilt.domains.task import NamedReward
from difftilt.rewards.chemistry import PROPERTIES, Objectives, PropertyReward
from difftilt.rewards.desirability import smaller, window


def _property(name: str, summary: str) -> NamedReward:
    return NamedReward(make=lambda: PropertyReward(name), summary=summary, score_name=PROPERTIES[name].unit)


REWARDS = {
    "qed": _property("qed", "drug-likeness, 0 to 1 (Bickerton et al. 2012)"),
    "ease_of_synthesis": _property("ease_of_synthesis", "negative synthetic accessibility score: -10 hard to -1 easy"),
    "sa_score": _property(
        "sa_score", "synthetic accessibility score, 1 easy to 10 hard: for -1*sa_score and sa_score<=3, less is better"
    ),
    "logp": _property("logp", "Crippen's logP"),
    "logp_window": NamedReward(
        make=lambda: PropertyReward("logp", window(1.0, 3.0, 1.0)),
        summary="desirability of logP: 1 from 1 to 3, 0 beyond 0 and 4",
        score_name="desirability of logP (0 to 1)",
    ),
    "mol_weight": _property("mol_weight", "molecular mass, g/mol: for bounds"),
    "qed_and_ease": NamedReward(
        make=lambda: Objectives((PropertyReward("qed"), PropertyReward("sa_score", smaller(2.0, 5.0)))),
        summary="geometric mean of QED and a desirability of synthesis, 1 at a score of 2 and 0 at 5",
        score_name="drug-like and easy to make (0 to 1)",
    ),
}
"""Rewards by the names that ``--reward`` takes."""
