"""Several objectives, each by itself: means before and after, fronts, dominated volumes."""

from __future__ import annotations

from typing import Any

import torch

from difftilt.metrics.pareto import hypervolume, non_dominated
from difftilt.rewards.combined import CombinedReward
from difftilt.training.designs import DesignSet, interval
from difftilt.training.evaluate import Evaluation
from difftilt.types import Float, Tensor

SHOWN = 400
"""Designs of each side that the page draws."""


def objective_facts(reward: CombinedReward, evaluation: Evaluation) -> dict[str, Any]:
    """What ``evaluation.json`` says of each number that a combined reward is made of.

    Means are over the feasible designs, as the reward's is: the others weigh nothing.
    Volumes are dominated by the feasible designs of a side, above the worst feasible design before in each objective;
    objectives that enter with a negative weight count downwards.
    """
    sides = {"before": evaluation.before, "after": evaluation.after}
    found = {side: reward.each(designs.designs) for side, designs in sides.items()}
    signs = torch.tensor([1.0 if o.weight > 0 else -1.0 for o in reward.objectives], dtype=torch.float64)
    points = {side: _points(reward, sides[side], found[side]) for side in sides}
    facts: dict[str, Any] = {
        "objectives": [{"name": o.name, "weight": o.weight} for o in reward.objectives],
        "requirements": [{"name": r.name, "sense": r.sense, "bound": r.bound} for r in reward.requirements],
    }
    for side, designs in sides.items():
        weights, size = designs.log_weight.cpu(), designs.population
        means = {name: interval(values, weights, population=size) for name, values in found[side].items()}
        facts[side] = {"means": means, "points": points[side][:SHOWN].tolist()}
    if len(reward.objectives) > 1 and len(points["before"]):
        floor = (points["before"] * signs).amin(0)
        facts["reference"] = (floor * signs).tolist()
        for side in sides:
            facts[side]["front"] = points[side][non_dominated(points[side] * signs)].unique(dim=0).tolist()
            facts[side]["hypervolume"] = hypervolume(points[side] * signs, floor)
    return facts


def _points(reward: CombinedReward, designs: DesignSet, found: dict[str, Float[Tensor, " N"]]) -> Float[Tensor, "N M"]:
    """Objectives of the feasible designs."""
    table = torch.stack([found[o.name] for o in reward.objectives], dim=1)
    return table[~designs.reward.isnan().cpu()]
