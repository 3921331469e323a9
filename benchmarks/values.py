"""Soft values against exact ones: every estimate on an enumerated chain and on a linear-Gaussian one.

Run: ``python benchmarks/values.py [--states 500]``. Writes ``values/results.json`` and a drawing of each problem,
``values/PROBLEM.svg``: estimated against exact values at the states that rollouts of the pretrained policy visit.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from difftilt.core.reward import Reward
from difftilt.core.trajectory import rollout
from difftilt.core.value import Value
from difftilt.problems.library import entry
from difftilt.problems.problem import Problem
from difftilt.report.calibration import calibration_chart, standalone
from difftilt.rng import Streams
from difftilt.tracking.run import provenance
from difftilt.values.calibration import calibration
from difftilt.values.monte_carlo import MonteCarlo
from difftilt.values.plug_in import OneJump, PlugIn
from difftilt.values.regression import Regression, fit_value
from difftilt.verification.steering import Counted

PROBLEMS = ("pairwise", "linear-gaussian")
FOLDER = Path(__file__).with_suffix("")


def estimate(name: str, problem: Problem, reward: Reward, rng: torch.Generator) -> Value:
    """The estimate called ``name``, with the settings it has by default."""
    policy, alpha = problem.pretrained, problem.alpha
    if name == "plug_in":
        return PlugIn(policy, reward)
    if name == "one_jump, 4 designs":
        return OneJump(policy, reward, rng, alpha)
    if name == "monte_carlo, 16 rollouts":
        return MonteCarlo(policy, reward, rng, alpha)
    return fit_value(policy, reward, rng, Regression(alpha=alpha, target=name.removeprefix("regression on ")))


NAMES = (
    "plug_in", "one_jump, 4 designs", "monte_carlo, 16 rollouts", "regression on reward", "regression on bellman",
)  # fmt: skip


def measure(name: str, states: int) -> dict[str, Any]:
    """All estimates on one problem; writes its drawing."""
    problem = entry(name).make()
    path, exact = rollout(problem.pretrained, states, Streams(0)("states")), problem.value()
    found, facts = {}, {}
    for which in NAMES:
        reward, started = Counted(problem.reward), time.process_time()
        value = estimate(which, problem, reward, Streams(0)(which))
        once = reward.calls
        found[which] = calibration(value, exact, path)
        facts[which] = {
            "reward_calls_once": once,
            "reward_calls_per_state": (reward.calls - once) / (states * len(found[which])),
            "seconds": round(time.process_time() - started, 1),
            "times": [
                {key: getattr(row, key) for key in ("t", "bias", "rmse", "correlation", "excluded")}
                for row in found[which]
            ],
        }
    drawing = calibration_chart(found)
    assert drawing is not None
    (FOLDER / f"{name}.svg").write_text(standalone(drawing), encoding="utf-8")
    return {"alpha": problem.alpha, "states": states, "estimates": facts}


def main() -> None:
    """Measure, draw and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    results = {**provenance(), "problems": {name: measure(name, options.states) for name in PROBLEMS}}
    (FOLDER / "results.json").write_text(json.dumps(results, indent=1).replace("NaN", "null") + "\n")
    for name, facts in results["problems"].items():
        print(f"\n{name}, alpha {facts['alpha']:g}: rmse (bias) at t, reward units")
        for which, row in facts["estimates"].items():
            told = "  ".join(f"{at['t']:.2f}: {at['rmse']:.3f} ({at['bias']:+.3f})" for at in row["times"])
            print(f"{which:25s} {told}")


if __name__ == "__main__":
    main()
