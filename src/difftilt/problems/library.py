r"""The named problems of the truth table: exact answers for each, one protocol for all.

===================== ======== ======================================================================================
name                  process  what it shows
===================== ======== ======================================================================================
pairwise              masked   one token per step: the trained class contains the target, every bar is exact
pairwise-independent  masked   several tokens a step: a class optimum above 0
infeasible            masked   a third of all designs have no reward (NaN)
tfbind8               masked   65,536 measured designs; needs their scores
linear-gaussian       gaussian closed forms; ``linear-gaussian-8`` to ``-64`` for the class optimum's approach as 1/K
initial-law           gaussian not memoryless: a fixed prior cannot reach the tilted law
mixture               gaussian two modes, by quadrature on the line
uniform               uniform  3 letters on 3 positions in 32 steps: a class optimum within 0.0003 nats
simplex               simplex  3 letters on 3 positions in 96 steps: the law of decoded designs, by quadrature on sticks
linear-gaussian-flow  flow     the data of linear-gaussian on the straight path, 16 memoryless steps
===================== ======== ======================================================================================

References:
    Theory of the targets: Uehara et al. 2024, https://arxiv.org/abs/2407.13734.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from difftilt.core.codec import Codec, SimplexCodec, TokenCodec
from difftilt.core.gaussian_step import GaussianSteps
from difftilt.core.noise import VP, Cosine
from difftilt.core.policy import Policy
from difftilt.core.reward import Reward
from difftilt.core.schedule import uniform_grid
from difftilt.errors import ConfigError, nearest
from difftilt.problems.affine import AffineProblem
from difftilt.problems.dense import DenseProblem, uniform_problem
from difftilt.problems.joint import JointDenoiser
from difftilt.problems.landscapes import corrected, random_pairwise
from difftilt.problems.line import LineProblem
from difftilt.problems.linear_gaussian import LinearGaussian, Quadratic
from difftilt.problems.mixture import mixture_policy
from difftilt.problems.problem import Problem
from difftilt.problems.simplex import SimplexProblem
from difftilt.problems.stick_posterior import StickPosterior
from difftilt.problems.tfbind import tfbind
from difftilt.problems.tilted import TiltedProblem
from difftilt.processes.flow import Flow
from difftilt.processes.gaussian import Gaussian
from difftilt.processes.simplex import Simplex
from difftilt.types import Float, Tensor

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Entry:
    """A named problem, not yet built."""

    name: str
    process: str
    """Registered name of the process."""
    summary: str
    """One line."""
    alpha: float
    """KL temperature, reward units per nat."""
    build: Callable[..., Problem]
    """``build(alpha)``, or ``build(alpha, scores)`` where :attr:`needs_scores`."""
    needs_scores: bool = False
    """Whether a measured table is an argument; nothing here reads a file."""

    def make(self, scores: Scores | None = None) -> Problem:
        """The problem; ``scores`` of every design where they are needed.

        Raises:
            ConfigError: scores are missing, or given where none are needed.
        """
        if (scores is None) == self.needs_scores:
            came = "none" if scores is None else f"{len(scores):,}"
            raise ConfigError(
                f"expected {'a score for each design' if self.needs_scores else 'no scores'} for '{self.name}'; "
                f"got {came}; {'pass the table' if self.needs_scores else 'leave them out'}"
            )
        return self.build(self.alpha) if scores is None else self.build(self.alpha, scores)


class Censored:
    """A reward that leaves out the designs whose letters, counted from 0, sum to a multiple of three.

    A third of all designs, spread evenly: which one it is shows only with the last letter.

    Args:
        reward: of the others.
        codec: reads designs.
    """

    def __init__(self, reward: Reward, codec: Codec) -> None:
        self.reward, self.codec = reward, codec

    def __call__(self, designs: Sequence[str]) -> Float[Tensor, " B"]:
        """Reward, NaN where left out."""
        total = self.codec.encode(designs).sum(1)
        return torch.as_tensor(self.reward(designs)).where(total % 3 != 0, math.nan)


def _pairwise(alpha: float, *, reveal: str = "count") -> TiltedProblem:
    drawn = random_pairwise(alpha=alpha, reveal=reveal)
    return TiltedProblem(drawn.pretrained, drawn.reward, alpha=alpha, start=corrected(drawn.pretrained))


def _infeasible(alpha: float) -> TiltedProblem:
    """Tables over windows are tuned: a small network is slow to learn which design is left out, by any method."""
    drawn = random_pairwise(alpha=alpha)
    reward = Censored(drawn.reward, drawn.pretrained.codec)
    start = drawn.pretrained.frozen_copy()
    start.denoiser = JointDenoiser.of(drawn.pretrained_law.view([4] * 6))
    return TiltedProblem(drawn.pretrained, reward, alpha=alpha, start=start.requires_grad_(True))


def _tfbind8(alpha: float, scores: Scores) -> TiltedProblem:
    return tfbind(scores, alpha=alpha)


def _float64(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def linear_gaussian(process: GaussianSteps, steps: int, *, alpha: float) -> AffineProblem:
    """Correlated Gaussian data in the plane, a reward with a centre and a slope, the tilt about one nat."""
    data = LinearGaussian(_float64(1.0, -0.5), _float64([1.0, 0.4], [0.4, 0.7]), process, uniform_grid(steps))
    reward = Quadratic.reward(_float64([0.5, 0.1], [0.1, 0.3]), _float64(2.0, 1.0), _float64(0.3, -0.2))
    return AffineProblem(data, reward, alpha=alpha)


def _memoryless(steps: int) -> Callable[[float], AffineProblem]:
    return lambda alpha: linear_gaussian(Gaussian(Cosine(), sigma_min=0.05), steps, alpha=alpha)


def _initial_law(alpha: float) -> AffineProblem:
    process = Gaussian(VP(), kernel="ddim", eta=0.3, sigma_min=0.05)
    return linear_gaussian(process, 16, alpha=alpha)


def _mixture(alpha: float) -> LineProblem:
    process = Gaussian(Cosine(), prediction="v", sigma_min=0.1)
    data = ([0.7, 0.3], [[-1.2], [1.0]], [0.4, 0.5])
    grid = uniform_grid(16)
    reward = Quadratic.reward(_float64([0.3]), _float64(0.5), _float64(0.5))
    start = mixture_policy(*data, process, grid=grid, hidden=64)
    return LineProblem(mixture_policy(*data, process, grid=grid).frozen_copy(), reward, alpha=alpha, start=start)


def _uniform(alpha: float) -> DenseProblem:
    base = random_pairwise(3, 3, alpha=alpha, target_kl=1.0)
    joint = base.pretrained_law.view([3] * 3)
    codec = base.pretrained.codec
    assert isinstance(codec, TokenCodec)
    return uniform_problem(joint, base.reward, codec, steps=32, alpha=alpha)


@functools.cache
def _simplex(alpha: float) -> SimplexProblem:
    """The letters of ``uniform`` without their correlations; most steps are where letters are decided.

    Cached: its quadrature takes seconds.
    """
    base = random_pairwise(3, 3, alpha=alpha, target_kl=0.1)
    joint, process = base.pretrained_law.view([3] * 3), Simplex(3)
    first, second, third = (joint.sum([axis for axis in range(3) if axis != i]) for i in range(3))
    parts = ((1.0, 0.6, 8), (0.6, 0.1, 80), (0.1, 0.0, 8))
    times = [torch.linspace(high, low, n + 1, dtype=torch.float64)[:-1] for high, low, n in parts]
    grid = torch.cat([*times, torch.zeros(1, dtype=torch.float64)])
    denoiser = StickPosterior.of(first[:, None, None] * second[:, None] * third, grid, process)
    policy = Policy(denoiser, process, SimplexCodec("ACG", 3), (3, 2), grid=grid)
    return SimplexProblem(policy.frozen_copy(), base.reward, alpha=alpha)


LIBRARY: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("pairwise", "masked", "6 tokens of 4 letters, one token per step, 2 nats", 0.5, _pairwise),
        Entry(
            "pairwise-independent",
            "masked",
            "the same letters in 6 steps of independent reveals",
            0.5,
            lambda alpha: _pairwise(alpha, reveal="independent"),
        ),
        Entry("infeasible", "masked", "pairwise with a third of all designs infeasible", 0.5, _infeasible),
        Entry("tfbind8", "masked", "65,536 measured 8-mers, one token per step", 0.1, _tfbind8, needs_scores=True),
        Entry("linear-gaussian", "gaussian", "Gaussian data in the plane, 16 DDPM steps", 0.5, _memoryless(16)),
        *(
            Entry(f"linear-gaussian-{k}", "gaussian", f"the same in {k} steps", 0.5, _memoryless(k))
            for k in (8, 32, 64)
        ),
        Entry("initial-law", "gaussian", "16 DDIM steps, eta 0.3: the prior keeps part of the tilt", 0.5, _initial_law),
        Entry("mixture", "gaussian", "two modes on the line, 16 DDPM steps", 0.5, _mixture),
        Entry("uniform", "uniform", "3 letters on 3 positions in 32 steps, 1 nat", 0.5, _uniform),
        Entry("simplex", "simplex", "3 letters on 3 positions, decoded after 96 steps, 0.1 nats", 0.5, _simplex),
        Entry(
            "linear-gaussian-flow",
            "flow",
            "Gaussian data in the plane, 16 memoryless steps",
            0.5,
            lambda alpha: linear_gaussian(Flow(sigma_min=0.05), 16, alpha=alpha),
        ),
    )
}


def entry(name: str) -> Entry:
    """The entry called ``name``.

    Raises:
        ConfigError: unknown; the nearest name is proposed.
    """
    if name not in LIBRARY:
        raise nearest(name, LIBRARY, what="problem")
    return LIBRARY[name]
