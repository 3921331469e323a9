"""Which law each method says it samples on each problem, how near is near enough, and with which settings it is run.

A *label* is the name of an algorithm or sampler, with ``:variant`` behind it where one is run in several ways. Bars of
KL are 0.003 nats for score-function and balance methods, 0.01 for the others; on `simplex`, where a tuned law is
known by its draws alone, 0.02 of total variation, sampling error included. Where the trained class lacks the target,
methods whose fixed point is the maximum of the objective claim the class optimum; the others claim nothing there. What
a method is not defined for raises :class:`~difftilt.errors.UnsupportedError` when it is run: no list of it is kept.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from difftilt import build
from difftilt.core.algorithm import Algorithm
from difftilt.errors import ConfigError, nearest
from difftilt.problems.library import LIBRARY
from difftilt.verification.exact import CLASS, FIXED, NONE, TILTED

FACTORS = ("SIX6_REF_R1", "CRX_REF_R1", "GFI1_REF_R1")
PROBLEMS = (
    *(name for name in LIBRARY if name != "tfbind8"),
    *(f"tfbind8/{factor}" for factor in FACTORS),
)


def kind_of(problem: str) -> str:
    """The kind of a named problem: what its settings and claims depend on."""
    if problem.startswith("tfbind8/"):
        return "factor"
    if problem == "mixture":
        return "line"
    by_process = {"gaussian": "affine", "flow": "flow", "uniform": "dense", "simplex": "sticks"}
    if LIBRARY[problem].process in by_process:
        return by_process[LIBRARY[problem].process]
    return {"pairwise-independent": "parallel", "infeasible": "infeasible"}.get(problem, "chain")


@dataclass(frozen=True)
class Claim:
    """A law, and how near to it a method must come."""

    target: str
    """One of :data:`~difftilt.verification.exact.TARGETS`."""
    nats: float | None = None
    """Most KL to it, nats."""
    removed: float | None = None
    """Least share of the pretrained policy's KL to it that is gone, in place of :attr:`nats`."""
    variation: float | None = None
    """Largest total variation that draws may show, sampling error included, in place of :attr:`nats`."""
    moments: float | None = None
    """Largest relative error of mean and covariance, besides."""
    why: str = ""
    """Why no law is claimed."""


LINEAR = ("affine", "flow")
"""Kinds whose laws are Gaussian."""
SQUARES = ("path_consistency", "detailed_balance", "subtrajectory_balance")
"""Methods whose loss is 0 only at the target itself."""
EXACT = ("value_weighted_mle", "distill")
"""Methods that are given the exact value, and without one (``:default``) make their own."""
SCORE = ("ppo", "reinforce", "trajectory_balance", "vargrad", *SQUARES)
"""Score-function and balance methods."""
FORWARD = ("reward_weighted_mle", "value_weighted_mle", "renoised_mle", "distill")
"""Methods of weighted likelihood: forward KL."""


def trained_claim(label: str, kind: str) -> Claim:
    """What fine-tuning by ``label`` claims on a kind of problem."""
    name = label.partition(":")[0]
    if name == "raft":
        return Claim(NONE, why="alpha does not enter: the reward grows until the policy repeats itself")
    if kind in ("factor", "sticks") and label in (f"{name}:default" for name in EXACT):
        return Claim(NONE, why="its values are regressed or jumped to, not exact: it is as near as they are")
    if kind == "sticks" and name == "reward_backprop":
        return Claim(NONE, why="rewards are read early, off mean letters, and that of a mean is not the mean reward")
    if kind == "sticks" and name not in (*SQUARES, "renoised_mle"):
        return Claim(TILTED, variation=0.02)
    if name == "reward_backprop" and kind not in (*LINEAR, "line"):
        return Claim(NONE, why="straight-through tokens: the gradient is biased, less so as tau falls")
    if kind == "factor":
        return Claim(FIXED, removed=0.99)
    bar = 0.003 if name in SCORE else 0.01
    if kind in ("chain", "infeasible") or (kind == "dense" and name not in (*SQUARES, "renoised_mle")):
        return Claim(FIXED, nats=bar)
    if name in SQUARES:
        return Claim(NONE, why="its residual cannot vanish in a class that lacks the target")
    if name == "renoised_mle":
        return Claim(NONE, why="it learns the reversal of the noising law, not of the chain's own bridge")
    if kind in LINEAR:
        return Claim(CLASS, nats=bar, moments=0.01)
    if name in FORWARD:
        return Claim(NONE, why="its fixed point is the class's forward-KL optimum, another law than that of best J")
    return Claim(CLASS, nats=bar)


CANDIDATES = 64
STEERED: dict[str, dict[str, Any]] = {
    "best_of_n": {"candidates": 16},
    "value_weighted": {"candidates": CANDIDATES},
    "value_weighted:argmax": {"candidates": CANDIDATES, "choice": "argmax"},
    "value_weighted:default": {"candidates": 16},
    "smc": {"particles": 500, "tempering": 0.0},
    "smc:default": {"particles": 500},
    "smc:bootstrap": {"particles": 500, "kind": "bootstrap"},
    "refine": {"moves": 400},
    "refine:renoised": {"moves": 400, "restart": "renoised"},
    "classifier_guidance": {"tokens": "exact"},
    "classifier_guidance:default": {},
    "mcmc": {"step_size": 2e-3, "moves": 400},
    "mcmc:mala": {"step_size": 0.1, "moves": 200, "kernel": "mala"},
}
"""Ways to steer. Those that take a value are given the exact one, or make their own plug-in or one-jump estimate
(``:default``); ``:mala`` is given the pretrained law's own density."""
DRAWS = {"masked": 20_000, "gaussian": 5_000}
"""Designs to draw, by process: cells of tokens are many."""
ON_STICKS: dict[str, dict[str, Any]] = {
    "value_weighted": {"candidates": 32},
    "value_weighted:argmax": {"candidates": 32, "choice": "argmax"},
    "refine": {"moves": 100},
    "refine:renoised": {"moves": 100, "restart": "renoised"},
}
"""Settings that differ on the long chain of `simplex`; a small tilt needs no more."""
MANY_DRAWS = {"smc": 40_000, "smc:default": 40_000, "smc:bootstrap": 100_000, "classifier_guidance:default": 2_000}
"""Where weights are uneven and draws cheap, or draws dear."""
STICK_DRAWS = 200_000
"""Designs to draw on `simplex` where total variation is judged: of exact draws it is 0.004."""


def steered_claim(label: str, kind: str) -> Claim:
    """What steering by ``label`` claims on a kind of problem."""
    if label in NO_LAW:
        return Claim(NONE, why=NO_LAW[label])
    if label == "classifier_guidance" and kind in ("parallel", "line", "sticks", *LINEAR):
        return Claim(NONE, why="each step leans on a tangent of the value: off by O(1/K)")
    if kind == "sticks" and label.partition(":")[0] == "smc":
        return Claim(TILTED, variation=0.02)
    if label in ("value_weighted", "classifier_guidance"):
        return Claim(FIXED, nats=0.01)
    return Claim(TILTED, nats=0.01)


NO_LAW = {
    "best_of_n": "it takes the best whatever alpha is: a yardstick",
    "value_weighted:argmax": "the limit of small alpha: it spends more KL as candidates are added",
    "value_weighted:default": "plug-in values are no soft values",
    "classifier_guidance:default": "plug-in values are no soft values",
    "refine:renoised": "noising a design afresh is not the chain's own bridge, so another law is left invariant",
    "mcmc": "ULA aims at the law of slightly noisy data, and misses that by its step size",
}

RECIPES: dict[str, tuple[int, dict[str, Any]]] = {
    "chain": (400, {"batch": 1024, "learning_rate": 3e-3}),
    "parallel": (400, {"batch": 1024, "learning_rate": 3e-3}),
    "infeasible": (250, {"batch": 8192, "learning_rate": 0.02}),
    "factor": (120, {"batch": 16_384, "learning_rate": 0.02}),
    "affine": (400, {"batch": 1024, "learning_rate": 0.01}),
    "flow": (200, {"batch": 1024, "learning_rate": 0.05}),
    "line": (600, {"batch": 512, "learning_rate": 5e-3}),
    "dense": (300, {"batch": 1024, "learning_rate": 0.05}),
    "sticks": (50, {"batch": 256, "learning_rate": 0.1}),
}
"""Updates and settings for each kind of problem; the learning rate falls linearly to 0."""
CHANGES: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {
    ("ppo", "chain"): (250, {}),
    ("renoised_mle", "chain"): (1200, {}),
    ("distill", "chain"): (200, {"learning_rate": 2e-3}),
    ("raft", "chain"): (100, {}),
    **{("reward_backprop", kind): (300, {"batch": 64}) for kind in ("chain", "parallel")},
    ("path_consistency", "chain"): (500, {}),
    ("detailed_balance", "chain"): (500, {}),
    ("subtrajectory_balance", "chain"): (500, {}),
    **{(name, "factor"): (100, {"minibatches": 4}) for name in ("trajectory_balance", "vargrad")},
    **{(name, "factor"): (100, {"minibatches": 4, "value_learning_rate": 0.02}) for name in SQUARES},
    **{(name, "factor"): (300, {"batch": 8192}) for name in ("reinforce", "reward_weighted_mle")},
    ("value_weighted_mle", "factor"): (160, {"batch": 8192}),
    ("renoised_mle", "factor"): (400, {"steps_per_path": 16}),
    ("distill", "factor"): (70, {"batch": 65_536, "epochs": 1, "minibatches": 8}),
    **{(name, "infeasible"): (250, {"minibatches": 4}) for name in ("trajectory_balance", "vargrad")},
    ("reward_weighted_mle", "affine"): (400, {"batch": 2048}),
    ("value_weighted_mle", "affine"): (300, {"batch": 512, "learning_rate": 0.02}),
    ("distill", "affine"): (200, {"batch": 2048}),
    ("distill", "sticks"): (150, {"batch": 2048, "epochs": 1, "minibatches": 8, "learning_rate": 0.02}),
    ("value_weighted_mle", "sticks"): (80, {}),
    ("distill", "flow"): (200, {"batch": 4096, "learning_rate": 0.03}),
}
"""Updates and settings that differ, by algorithm and kind of problem."""
VARIANTS: dict[str, dict[str, Any]] = {
    **{f"{name}:default": {} for name in EXACT},
    **{f"reward_backprop:tau-{tau}": {"tau": tau, "tau_end": tau} for tau in (1.0, 0.5, 0.3, 0.1)},
}
"""Algorithms run in further ways: with values of their own making, or at one tau, on tokens."""
LABELS = (*build.ALGORITHMS, *VARIANTS, *STEERED)
SLOW = (
    "reward_backprop",
    "reward_backprop:tau-0.5",
    "reward_backprop:tau-0.1",
    "value_weighted_mle:default",
    "distill:default",
)
DEFAULT = {
    *((label, "pairwise") for label in LABELS if label not in SLOW),
    *((label, "linear-gaussian") for label in LABELS if not label.startswith(("distill", "value_weighted_mle:"))),
    *((label, "initial-law") for label in ("reinforce", "adjoint_matching", "value_weighted", "smc", "refine")),
    *((label, "infeasible") for label in ("trajectory_balance", "reward_backprop", "smc")),
    *((label, "uniform") for label in ("trajectory_balance", "smc")),
    *((label, "linear-gaussian-flow") for label in ("trajectory_balance", "adjoint_matching", "smc")),
    ("trajectory_balance", "simplex"),
    ("trajectory_balance", "tfbind8/SIX6_REF_R1"),
}
"""Pairs that are run by default."""


@dataclass(frozen=True)
class Pair:
    """A method on a problem."""

    label: str
    problem: str

    @property
    def kind(self) -> str:
        """Kind of the problem."""
        return kind_of(self.problem)

    @property
    def process(self) -> str:
        """Registered name of the problem's process."""
        return LIBRARY[self.problem.partition("/")[0]].process

    @property
    def steered(self) -> bool:
        """Whether nothing is trained."""
        return self.label in STEERED

    @property
    def claim(self) -> Claim:
        """What the method says."""
        return (steered_claim if self.steered else trained_claim)(self.label, self.kind)

    def recipe(self) -> tuple[Algorithm, int]:
        """The algorithm with its settings, and the number of updates."""
        name = self.label.partition(":")[0]
        updates, settings = RECIPES[self.kind]
        updates, changes = CHANGES.get((name, self.kind), (updates, {}))
        return build.algorithm(name)(**settings | changes | VARIANTS.get(self.label, {})), updates


def pairs(
    algorithm: str | None = None, process: str | None = None, problem: str | None = None, *, full: bool = False
) -> list[Pair]:
    """The pairs to run: of the default set, or all with ``full`` or where the default set has none of those asked for.

    Args:
        algorithm: a label, or a name for all its variants.
        process: registered name.
        problem: a name; ``tfbind8`` for all its factors.
        full: all pairs.

    Raises:
        ConfigError: a name that is not known, or no pair left.
    """
    _known(algorithm, {*LABELS, *(label.partition(":")[0] for label in LABELS)}, "algorithm or sampler")
    _known(process, {entry.process for entry in LIBRARY.values()}, "process")
    _known(problem, {*LIBRARY, *PROBLEMS}, "problem")
    every = [Pair(label, name) for name in PROBLEMS for label in LABELS]
    chosen = [
        pair
        for pair in every
        if algorithm in (None, pair.label, pair.label.partition(":")[0])
        and process in (None, pair.process)
        and problem in (None, pair.problem, pair.problem.partition("/")[0])
        and (":tau" not in pair.label or pair.process == "masked")
    ]
    if not chosen:
        asked = " and ".join(f"'{name}'" for name in (algorithm, process, problem) if name is not None)
        raise ConfigError(f"expected names that go together; got {asked}; leave out one of them")
    usual = [pair for pair in chosen if (pair.label, pair.problem) in DEFAULT]
    return usual if usual and not full else chosen


def _known(name: str | None, names: Collection[str], what: str) -> None:
    if name is not None and name not in names:
        raise nearest(name, names, what=what)
