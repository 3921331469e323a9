"""Laws 1 to 4 of fine-tuning for every algorithm of ``build.ALGORITHMS`` on tokens and on vectors.

A new algorithm fails here until :data:`LAWS` says which laws are its own. Gradients are those that the update itself
would descend: its ``descend`` is replaced by one that writes them down. Means over 24 batches are judged by their own
standard errors, 9 of them: a t with 23 degrees of freedom is beyond once in 2e8; over at most 96 numbers here that is a
false alarm below 1e-6 for each test. Every test has twins that it must tell apart.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from difftilt import build
from difftilt.core.algorithm import Anchor, State
from difftilt.core.noise import Cosine
from difftilt.core.policy import Policy
from difftilt.core.schedule import uniform_grid
from difftilt.errors import UnsupportedError
from difftilt.problems.affine import AffineProblem
from difftilt.problems.landscapes import random_pairwise
from difftilt.problems.linear_gaussian import Chain, LinearGaussian, Quadratic
from difftilt.problems.tilted import TiltedProblem
from difftilt.processes.gaussian import Gaussian
from difftilt.verification.claims import trained_claim
from difftilt.verification.exact import CLASS, FIXED, NONE

ALPHA, BATCH, BATCHES, BAR = 0.5, 96, 24, 9.0
KINDS = {"masked": "chain", "gaussian": "affine"}
"""Process, and the kind of problem by which claims name it."""
Problem = TiltedProblem | AffineProblem


@dataclass(frozen=True)
class Laws:
    """What holds for an algorithm besides what it claims to sample (:func:`trained_claim`) and laws 3."""

    settings: dict[str, Any]
    """One optimiser step an update, so that its gradient is one of the start."""
    unbiased: str | None = None
    """The exact function whose gradient it has in the mean: a key of :data:`OBJECTIVES`; None where none is claimed."""
    ranks: bool = False
    """Whether it sees the order of rewards alone, so that alpha and the scale of rewards have no effect."""


ONE = {"minibatches": 1, "epochs": 1}
LAWS = {
    "ppo": Laws(ONE, "objective"),
    "reinforce": Laws({}, "objective"),
    "trajectory_balance": Laws({**ONE, "log_z": "learned"}, "balance"),
    "vargrad": Laws(ONE, "variance"),
    "path_consistency": Laws(ONE),
    "detailed_balance": Laws(ONE),
    "subtrajectory_balance": Laws({**ONE, "span": 2}),
    "reward_backprop": Laws({"tau": 2.0}, "objective"),
    "adjoint_matching": Laws(ONE),
    "reward_weighted_mle": Laws({"running": 1 - 1e-12}, "forward"),
    "renoised_mle": Laws({"running": 1 - 1e-12, "steps_per_path": 6}),
    "value_weighted_mle": Laws({}),
    "raft": Laws({}, ranks=True),
    "distill": Laws({**ONE, "effort": BATCH}),
}
PAIRS = [(name, kind) for name in build.ALGORITHMS for kind in KINDS]
UNDEFINED = {("adjoint_matching", "masked")}
OFF_GRID = {("renoised_mle", "gaussian")}
"""Draws times that the affine network of these chains does not know, and claims no law on Gaussian steps."""
every = pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if pair not in UNDEFINED | OFF_GRID])


class Scaled:
    """``scale * reward + shift``."""

    def __init__(self, reward: Any, scale: float, shift: float) -> None:
        self.reward, self.scale, self.shift = reward, scale, shift

    def __call__(self, designs: Any) -> torch.Tensor:
        return self.scale * torch.as_tensor(self.reward(designs)).double() + self.shift

    def on_probabilities(self, p: torch.Tensor) -> torch.Tensor:
        return self.scale * self.reward.on_probabilities(p).double() + self.shift


def problem(kind: str, *, alpha: float = ALPHA, scale: float = 1.0, shift: float = 0.0) -> Problem:
    """Two steps: of two tokens over three letters, or of a number; the reward is ``scale`` and ``shift`` away."""
    if kind == "masked":
        drawn = random_pairwise(2, 3, alpha=ALPHA, target_kl=0.5, seed=0)
        return TiltedProblem(drawn.pretrained, Scaled(drawn.reward, scale, shift), alpha=alpha)
    one = torch.ones(1, dtype=torch.float64)
    process = Gaussian(Cosine(1e-3), prediction="x_0", sigma_min=0.3)
    data = LinearGaussian(0.7 * one, 0.8 * one[:, None], process, uniform_grid(2))
    plain = Quadratic.reward(0.3 * one[:, None], 1.5 * one, 0.2 * one)
    moved = Quadratic(scale * plain.curvature, scale * plain.slope, scale * plain.height + shift)
    return AffineProblem(data, moved, alpha=alpha)


def optimum(exact: Problem) -> Policy:
    """The policy that every claim here is about."""
    if isinstance(exact, AffineProblem):
        return exact.model.policy(exact.class_optimum)
    policy = exact.tunable()
    policy.denoiser = type(policy.denoiser).from_joint(exact.tilted.view(3, 3))
    return policy.requires_grad_(True)


def somewhere(exact: Problem) -> Policy:
    """Away from both ends."""
    policy, noise = exact.tunable(), torch.Generator().manual_seed(0)
    size = 0.5 if isinstance(exact, TiltedProblem) else 0.1
    for parameter in policy.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)
    return policy


def start(name: str, exact: Problem, policy: Policy, *, alpha: float, **more: Any) -> tuple[Any, State]:
    """An algorithm and its state, with exact values and an exact log Z where it has such."""
    algorithm = build.algorithm(name)(**{"batch": BATCH, **LAWS[name].settings, **more})
    state = algorithm.init(policy, [Anchor(exact.pretrained, alpha)])
    value = exact.value()
    if name in ("path_consistency", "detailed_balance", "subtrajectory_balance"):
        state.updates, state.value = 1, lambda x, t: value(x, t) / exact.alpha
    elif name in ("value_weighted_mle", "distill"):
        state.value = value
    elif name in ("reward_weighted_mle", "renoised_mle"):
        state.log_z[:], state.seen[:] = exact.log_z, 1e15
    elif name == "trajectory_balance":
        state.updates, state.log_z.data[:] = 1, exact.log_z
    return algorithm, state


def gradients(
    name: str, exact: Problem, policy: Policy, *, alpha: float = ALPHA, batches: int = BATCHES
) -> torch.Tensor:
    """What ``batches`` updates would descend, without moving: ``[batches, parameters]``."""
    algorithm, state = start(name, exact, policy, alpha=alpha)
    rows: list[torch.Tensor] = []

    def note(loss: torch.Tensor, most: float) -> torch.Tensor:
        parts = torch.autograd.grad(loss, state.parameters)
        rows.append(torch.cat([part.flatten() for part in parts]))
        return rows[-1].norm()

    state.descend = note
    rng = torch.Generator().manual_seed(0)
    for _ in range(batches):
        algorithm.step(state, exact.reward, rng)
    return torch.stack(rows)


def off(rows: torch.Tensor, mean: torch.Tensor | float = 0.0) -> float:
    """Largest distance of the mean gradient from ``mean``, in standard errors, of 1e-8 at least: some have no noise."""
    error = (rows.std(0) / len(rows) ** 0.5).clamp(min=1e-8)
    return ((rows.mean(0) - mean).abs() / error).max().item()


def flat(scalar: torch.Tensor, policy: Policy) -> torch.Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(scalar, list(policy.parameters()))])


def objective(exact: Problem, policy: Policy) -> torch.Tensor:
    """Minus J, in nats."""
    if isinstance(exact, AffineProblem):
        return -Chain.read(policy).objective(exact.reward, exact.alpha, exact.chain) / exact.alpha
    return -exact.objective(policy, grad=True) / exact.alpha


def forward(exact: Problem, policy: Policy) -> torch.Tensor:
    """KL of the soft-optimal paths to those of the policy, but for a constant, nats."""
    if isinstance(exact, AffineProblem):
        return exact.chain.optimum(exact.reward, exact.alpha).kl(Chain.read(policy))
    paths, total = exact.chain.trajectories(optimum(exact)), 0.0
    share = paths.log_prob.sum(0).exp()
    for k in range(paths.steps):
        law = policy.step(paths.states[k], paths.times[k], paths.times[k + 1])
        total = total - (share * law.log_prob(paths.states[k + 1])).sum()
    return total


OBJECTIVES: dict[str, tuple[Callable[[Problem, Policy], torch.Tensor], float]] = {
    "objective": (objective, 1.0),
    "balance": (objective, 2.0),
    "variance": (objective, 2.0 * (1 - 1 / BATCH)),
    "forward": (forward, 1.0),
}
"""What gradients are of, and how many times."""


def test_every_algorithm_has_its_laws_here() -> None:
    assert set(LAWS) == set(build.ALGORITHMS), "say in LAWS what the new algorithm claims"


@pytest.mark.parametrize(("name", "kind"), sorted(UNDEFINED))
def test_what_is_not_defined_says_why(name: str, kind: str) -> None:
    exact = problem(kind)
    with pytest.raises(UnsupportedError, match=r"expected .*; got .*; use "):
        start(name, exact, exact.tunable(), alpha=ALPHA)


@every
def test_law_1_no_gradient_at_the_claimed_optimum(name: str, kind: str) -> None:
    """Nor with alpha doubled or the reward's sign flipped (twins); what claims no law says why, and has one there."""
    exact, claim = problem(kind), trained_claim(name, KINDS[kind])
    assert claim.target in {"masked": (FIXED, NONE), "gaussian": (CLASS, NONE)}[kind]
    if claim.target == NONE:
        assert claim.why
        if name in ("raft", "reward_backprop"):
            assert off(gradients(name, exact, optimum(exact))) > BAR
        return
    assert off(gradients(name, exact, optimum(exact))) < BAR
    assert off(gradients(name, exact, optimum(exact), alpha=2 * ALPHA)) > BAR
    assert off(gradients(name, problem(kind, scale=-1.0), optimum(exact))) > BAR


@every
def test_law_2_the_mean_gradient_is_that_of_the_exact_function(name: str, kind: str) -> None:
    """Where it is claimed to be; with alpha doubled (twin) it is not. A step down it lowers the gap, for all."""
    exact = problem(kind)
    policy, claim = somewhere(exact), LAWS[name].unbiased
    rows = gradients(name, exact, policy)
    if claim is not None and (name, kind) != ("reward_backprop", "masked"):
        function, times = OBJECTIVES[claim]
        right = times * flat(function(exact, policy), policy)
        assert off(rows, right) < BAR
        assert off(gradients(name, exact, policy, alpha=2 * ALPHA), right) > BAR
    if trained_claim(name, KINDS[kind]).target == NONE:
        return
    before, step = objective(exact, policy).item(), rows.mean(0) / rows.mean(0).norm()
    torch.nn.utils.vector_to_parameters(
        torch.nn.utils.parameters_to_vector(policy.parameters()) - 0.02 * step, policy.parameters()
    )
    assert objective(exact, policy).item() < before


@every
def test_law_3_a_constant_or_a_change_of_unit_moves_no_gradient(name: str, kind: str) -> None:
    """Reward r + c, or (c r, c alpha): the same random numbers, the same gradients. c r alone (twin): others."""
    policy = somewhere(problem(kind))

    def drawn(alpha: float = ALPHA, **changed: float) -> torch.Tensor:
        return gradients(name, problem(kind, alpha=alpha, **changed), policy, alpha=alpha, batches=2)

    plain = drawn()
    near = {"rtol": 1e-6, "atol": 1e-8 * plain.abs().max().item()}
    torch.testing.assert_close(drawn(shift=5.0), plain, **near)
    torch.testing.assert_close(drawn(alpha=3 * ALPHA, scale=3.0), plain, **near)
    if LAWS[name].ranks:
        torch.testing.assert_close(drawn(scale=3.0), plain, **near)
    else:
        assert (drawn(scale=3.0) - plain).norm() > 0.05 * plain.norm()


@every
def test_law_4_alpha_to_infinity_is_the_pretrained_law(name: str, kind: str) -> None:
    """No gradient there at alpha 1e12, and one elsewhere (twin); ranks know no alpha and have one there too."""
    huge = 1e12
    stiff = problem(kind, alpha=huge)
    if LAWS[name].ranks:
        assert off(gradients(name, stiff, stiff.tunable(), alpha=huge)) > BAR
        return
    assert off(gradients(name, stiff, stiff.tunable(), alpha=huge)) < BAR
    assert off(gradients(name, stiff, somewhere(stiff), alpha=huge)) > BAR


@every
def test_law_4_alpha_to_zero_is_the_best_design(name: str, kind: str) -> None:
    """Tuned at a small alpha: nine tenths of the tokens' law on the best one; the mean at the reward's summit."""
    small = 0.02
    exact = problem(kind, alpha=small)
    policy = exact.tunable()
    algorithm, state = start(name, exact, policy, alpha=small, learning_rate=0.1)
    rng = torch.Generator().manual_seed(0)
    for _ in range(60):
        algorithm.step(state, exact.reward, rng)
    if isinstance(exact, TiltedProblem):
        assert exact.chain.marginal(exact.pretrained)[exact.table.argmax()] < 0.5
        assert exact.chain.marginal(policy)[exact.table.argmax()] > 0.9
    else:
        summit = torch.linalg.solve(exact.reward.curvature, exact.reward.slope)
        before, after = (abs(exact.law(copy.deepcopy(p))[0] - summit).item() for p in (exact.pretrained, policy))
        assert after < 0.3 * before
