"""Refinement by stored and by renoised restarts: the law that each leaves invariant, computed without sampling.

One move on designs is a Metropolis matrix: noise back to a step (by the chain's own bridge, or by the noising law), run
the rest, accept. Its stationary law is what endless refinement samples.
"""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch

from difftilt.core.noise import Cosine
from difftilt.core.policy import Policy
from difftilt.core.schedule import uniform_grid
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.problems.landscapes import TabularDenoiser, random_pairwise
from difftilt.problems.linear_gaussian import Chain, LinearGaussian, Quadratic
from difftilt.problems.tilted import TiltedProblem
from difftilt.processes.gaussian import Gaussian
from difftilt.samplers.refine import Refine

ALPHA = 0.5
TOKENS, LETTERS = 3, 2
PLACES = LETTERS ** torch.arange(TOKENS - 1, -1, -1)


def make(steps: int, *, exact: bool, tilted: bool = True) -> TiltedProblem:
    """Independent reveals in ``steps`` steps; the exact denoiser of a joint law, or one of no joint law."""
    drawn = random_pairwise(TOKENS, LETTERS, alpha=ALPHA, target_kl=0.5, seed=3, reveal="independent", steps=steps)
    policy = drawn.pretrained
    if not exact:
        table = TabularDenoiser(LETTERS, TOKENS)
        table.logits.data.normal_(generator=torch.Generator().manual_seed(0)).mul_(1.5)
        policy = Policy(table, policy.process, policy.codec, policy.event_shape, grid=policy.grid).eval()
        policy.requires_grad_(False)
    return TiltedProblem(policy, drawn.reward if tilted else Zero(), alpha=ALPHA)


class Zero:
    def __call__(self, designs: list[str]) -> list[float]:
        return [0.0] * len(designs)


def moves(problem: TiltedProblem, restart: str) -> torch.Tensor:
    """Metropolis matrices ``[K, N, N]`` of restarts from each step, by enumeration."""
    chain, law = problem.chain, problem.pretrained_law
    finished = torch.eye(len(law), dtype=torch.float64).log()
    ahead = torch.stack([chain.soft_values(problem.reference, row, alpha=1.0).exp() for row in finished], -1)
    ahead, occupancy = ahead.nan_to_num(nan=0.0), chain.occupancy(problem.reference)
    accept = ((problem.table[None] - problem.table[:, None]) / ALPHA).exp().clamp(max=1)
    matrices = []
    for k in range(chain.steps):
        back = (occupancy[k][:, None] * ahead[k] / law).T  # [N, S], the chain's own bridge
        if restart == "renoised" and k:
            t = problem.pretrained.grid[k]
            hidden = (chain.states == LETTERS)[None]
            same = (chain.states[None] == chain.designs[:, None]).double()
            back = torch.where(hidden, t, (1 - t) * same).prod(-1)
        torch.testing.assert_close(back.sum(1), torch.ones_like(law))
        move = (back @ ahead[k]) * accept
        matrices.append(move + torch.diag(1 - move.sum(1)))
    return torch.stack(matrices)


def chances(steps: int) -> torch.Tensor:
    """How often a move restarts from each step: what is left is log-uniform, rounded."""
    left = torch.arange(steps, 0, -1).double()
    return ((left + 0.5).log() - (left - 0.5).clamp(min=1).log()) / math.log(steps + 0.5)


def stationary(problem: TiltedProblem, restart: str) -> torch.Tensor:
    """The law that moves from all steps together leave invariant."""
    matrix = (chances(problem.chain.steps)[:, None, None] * moves(problem, restart)).sum(0)
    return torch.linalg.matrix_power(matrix, 2**20)[0]


def distance(p: torch.Tensor, q: torch.Tensor) -> float:
    return 0.5 * (p - q).abs().sum().item()


@pytest.mark.parametrize("exact", [True, False], ids=["exact denoiser", "no joint law"])
def test_every_stored_restart_leaves_the_tilted_law_invariant_and_no_renoised_one_does(exact: bool) -> None:
    problem = make(4, exact=exact)
    for k, move in enumerate(moves(problem, "stored")):
        assert distance(problem.tilted @ move, problem.tilted) < 1e-12, k
    for k, move in enumerate(moves(problem, "renoised")):
        assert (distance(problem.tilted @ move, problem.tilted) > 1e-3) == (k > 0), k


def test_renoised_restarts_change_the_pretrained_law_itself() -> None:
    """No reward: every move is accepted. Twin: stored restarts leave it."""
    problem = make(4, exact=False, tilted=False)
    assert distance(stationary(problem, "stored"), problem.pretrained_law) < 1e-9
    assert distance(stationary(problem, "renoised"), problem.pretrained_law) > 0.02


def test_the_bias_of_renoising_falls_as_one_over_k_for_an_exact_denoiser_only() -> None:
    """Total variation to the tilted law at K = 8, 16, 32. Twin: token laws that belong to no joint law."""
    errors = {
        exact: [distance(stationary(p, "renoised"), p.tilted) for p in (make(k, exact=exact) for k in (8, 16, 32))]
        for exact in (True, False)
    }
    for before, after in zip(errors[True], errors[True][1:], strict=False):
        assert before / after == pytest.approx(2, abs=0.3)
    assert errors[False][2] > 0.7 * errors[False][0] > 0.005


@pytest.mark.parametrize("restart", ["stored", "renoised"])
def test_the_sampler_ends_in_the_law_computed_for_its_restarts(restart: str) -> None:
    """H0: 8,000 designs after 100 moves follow it; Pearson statistic, false alarm 1e-7. Twin: the law of the other."""
    problem = make(3, exact=False)
    rng = torch.Generator().manual_seed(0)
    x_0 = Refine(alpha=ALPHA, moves=100, restart=restart)(problem.pretrained, problem.reward, 8000, rng).x_0
    counts = torch.bincount(x_0 @ PLACES, minlength=LETTERS**TOKENS).double()
    for law in ("stored", "renoised"):
        expected = 8000 * stationary(problem, law)
        tail = scipy.stats.chi2.sf(((counts - expected) ** 2 / expected).sum().item(), len(expected) - 1)
        assert (tail > 1e-7) == (law == restart), (law, tail)


def test_renoised_vectors_end_in_the_law_of_the_affine_recursion() -> None:
    """A constant reward: mean and second moment of 4,000 designs within 5.5 s.e. Twin: those of the pretrained law."""
    one, steps = torch.ones(1, dtype=torch.float64), 4
    process = Gaussian(Cosine(0.3), sigma_min=0.1, prediction="x_0")
    policy = LinearGaussian(0.8 * one, 0.6 * one[:, None], process, uniform_grid(steps)).pretrained()
    chain, weight = Chain.read(policy), chances(steps)
    slope, shift, spread = [], [], []
    for k in range(steps):
        a, s = process.schedule.scales(policy.grid[k])
        a, mean, variance = (a.item(), 0.0, s.item() ** 2) if k else (0.0, 0.0, chain.prior.item())
        for gain, move, noise in zip(chain.gain[k:], chain.shift[k:], chain.noise[k:], strict=True):
            g = gain.item()
            a, mean, variance = g * a, g * mean + move.item(), g**2 * variance + noise.item()
        slope.append(a)
        shift.append(mean)
        spread.append(variance)
    a, b, c = (torch.tensor(v, dtype=torch.float64) for v in (slope, shift, spread))
    first = (weight @ b / (1 - weight @ a)).item()
    second = (weight @ (2 * a * b * first + b**2 + c) / (1 - weight @ a**2)).item()
    means, covariances = chain.marginals()
    plain = means[-1].item(), (covariances[-1] + means[-1] ** 2).item()
    flat = Quadratic.reward(0 * one[:, None], 0 * one, 0 * one)
    sampler = Refine(alpha=ALPHA, moves=40, restart="renoised")
    x_0 = sampler(policy, flat, 4000, torch.Generator().manual_seed(0)).x_0[:, 0]

    def deviations(moments: tuple[float, float]) -> list[float]:
        pairs = zip((x_0, x_0.square()), moments, strict=True)
        return [((x.mean() - m).abs() / (x.std() / 4000**0.5)).item() for x, m in pairs]

    assert max(deviations((first, second))) < 5.5
    assert max(deviations(plain)) > 5.5


def test_renoising_keeps_what_is_held_fixed() -> None:
    policy = make(4, exact=True).pretrained.holding(torch.tensor([-1, 1, -1]))
    rng = torch.Generator().manual_seed(0)
    x_0 = Refine(alpha=ALPHA, moves=20, restart="renoised")(policy, Zero(), 200, rng).x_0
    assert (x_0[:, 1] == 1).all()
    assert x_0.unique(dim=0).shape[0] == 4


def test_renoising_has_no_paths_and_other_names_are_refused() -> None:
    problem = make(2, exact=True)
    with pytest.raises(UnsupportedError, match="whole paths; got refine with restarts renoised"):
        Refine(restart="renoised")(problem.pretrained, problem.reward, 2, torch.Generator(), paths=True)
    with pytest.raises(ConfigError, match="stored, renoised; got 'q'"):
        Refine(restart="q")
