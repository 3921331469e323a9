"""Adjoint matching on linear-Gaussian chains, where the class optimum is known (Riccati).

For affine means and a quadratic reward the adjoint is affine in the noise, so its mean given x_t is its value on the
noiseless continuation: the laws below need no sampling.
"""

from __future__ import annotations

import pytest
import torch

from difftilt.algorithms.adjoint_matching import AdjointMatching, adjoint_matching_loss, lean_adjoint
from difftilt.core.algorithm import Anchor
from difftilt.core.noise import Cosine
from difftilt.core.policy import Policy
from difftilt.core.schedule import uniform_grid
from difftilt.core.trajectory import Trajectory
from difftilt.errors import UnsupportedError
from difftilt.problems.landscapes import random_pairwise
from difftilt.problems.linear_gaussian import Chain, LinearGaussian, Quadratic
from difftilt.processes.gaussian import Gaussian

ALPHA, STEPS = 0.5, 5


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


PROBLEM = LinearGaussian(
    vector(1.0, -0.5),
    torch.stack([vector(1.0, 0.4), vector(0.4, 0.7)]),
    Gaussian(Cosine(0.05), sigma_min=0.2),
    uniform_grid(STEPS),
)
REWARD = Quadratic.reward(torch.stack([vector(0.5, 0.1), vector(0.1, 0.3)]), vector(2.0, 1.0), vector(0.3, -0.2))


def optimum(alpha: float = ALPHA) -> Policy:
    return PROBLEM.policy(Chain.read(PROBLEM.pretrained()).optimum(REWARD, alpha, soft=False))


def noiseless(policy: Policy, start: int, x: torch.Tensor) -> Trajectory:
    """Paths that stand at ``x`` up to step ``start`` and follow the means from there."""
    states = [x] * (start + 1)
    for k in range(start, STEPS):
        states.append(policy.step(states[-1], policy.grid[k], policy.grid[k + 1]).mean.detach())
    nobody = torch.zeros(STEPS, len(x), dtype=torch.float64)
    return Trajectory(torch.stack(states), nobody, nobody[None], policy.grid)


def slope_at(x_0: torch.Tensor, sign: float = 1.0) -> torch.Tensor:
    x_0 = x_0.detach().requires_grad_(True)
    return sign * torch.autograd.grad(REWARD(x_0).sum(), x_0)[0]


def error(policy: Policy, anchors: list[Anchor], *, sign: float = 1.0) -> float:
    """Largest distance between a step's mean and the mean of its target, over steps and a few states."""
    x, worst = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 0.0
    for k in range(STEPS):
        path = noiseless(policy, k, x)
        target = lean_adjoint(path, anchors, slope_at(path.x_0, sign))[k]
        mean = policy.step(x, policy.grid[k], policy.grid[k + 1]).mean
        worst = max(worst, (mean - target).abs().max().item())
    return worst


def test_the_class_optimum_is_the_fixed_point_at_any_number_of_steps() -> None:
    """Law 1: exact at the optimum; not with alpha doubled nor with the reward's sign flipped."""
    pretrained = PROBLEM.pretrained()
    assert error(optimum(), [Anchor(pretrained, ALPHA)]) < 1e-9
    assert error(optimum(), [Anchor(pretrained, 2 * ALPHA)]) > 1e-2
    assert error(optimum(), [Anchor(pretrained, ALPHA)], sign=-1.0) > 1e-2
    assert error(pretrained, [Anchor(pretrained, ALPHA)]) > 1e-2


def test_the_adjoint_of_one_anchor_is_carried_by_the_jacobians_of_its_means() -> None:
    """Equation (2) against the chain's own matrices; a constant adjoint (twin) is another one."""
    pretrained = PROBLEM.pretrained()
    chain = Chain.read(pretrained)
    path = noiseless(pretrained, 0, torch.ones(3, 2, dtype=torch.float64))
    slope = slope_at(path.x_0)
    adjoint, constant = slope, True
    for k in reversed(range(STEPS)):
        mean = pretrained.step(path.states[k], path.times[k], path.times[k + 1]).mean
        expected = mean + chain.noise[k][0, 0] * adjoint / ALPHA
        torch.testing.assert_close(lean_adjoint(path, [Anchor(pretrained, ALPHA)], slope)[k], expected)
        constant = constant and torch.allclose(adjoint, slope)
        adjoint = adjoint @ chain.gain[k]
    assert not constant


def test_two_equal_anchors_are_one() -> None:
    pretrained = PROBLEM.pretrained()
    path = noiseless(optimum(), 0, torch.ones(3, 2, dtype=torch.float64))
    one = lean_adjoint(path, [Anchor(pretrained, ALPHA)], slope_at(path.x_0))
    two = lean_adjoint(path, [Anchor(pretrained, 0.2), Anchor(pretrained, 0.3)], slope_at(path.x_0))
    torch.testing.assert_close(one, two)


def test_two_different_anchors_have_the_optimum_of_their_joint_objective_as_fixed_point() -> None:
    """The optimum is found by Newton-like ascent of the exact J; leaving out one anchor (twin) misses it."""
    other = optimum(alpha=2.0)
    anchors = [Anchor(PROBLEM.pretrained(), 0.3), Anchor(other, 0.4)]
    policy = PROBLEM.pretrained().requires_grad_(True)
    with torch.no_grad():
        chains = [(Chain.read(anchor.policy), anchor.weight) for anchor in anchors]
    ascent = torch.optim.LBFGS(policy.parameters(), max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-16,
                               line_search_fn="strong_wolfe", history_size=50)  # fmt: skip

    def loss() -> torch.Tensor:
        ascent.zero_grad()
        chain = Chain.read(policy)
        means, covariances = chain.marginals()
        value = -REWARD.expectation(means[-1], covariances[-1])
        value = value + sum(weight * chain.kl(reference) for reference, weight in chains)
        value.backward()
        return value

    ascent.step(loss)
    policy.requires_grad_(False)
    assert error(policy, anchors) < 1e-4
    assert error(policy, anchors[:1]) > 1e-2


def test_the_loss_is_the_path_kl_between_steps_and_targets() -> None:
    mean, target = torch.zeros(4, 2), torch.ones(4, 2)
    loss = adjoint_matching_loss(mean, target, torch.full((4,), 0.5), scale=2.0, paths=2)
    assert loss.item() == pytest.approx(2.0 * 4 * 2 / (2 * 0.25) / 2)


def test_training_reaches_mean_and_covariance_of_the_class_optimum() -> None:
    """Within 1 %, as the bar of the truth table asks."""
    algorithm = AdjointMatching(batch=256, learning_rate=0.02)
    pretrained = PROBLEM.pretrained()
    state = algorithm.init(PROBLEM.pretrained().requires_grad_(True), [Anchor(pretrained.frozen_copy(), ALPHA)])
    rng = torch.Generator().manual_seed(0)
    for update in range(300):
        state.scale_learning_rate(1 - update / 301)
        algorithm.step(state, REWARD, rng)
    for got, best in zip(Chain.read(state.policy).marginals(), Chain.read(optimum()).marginals(), strict=True):
        assert (got[-1] - best[-1]).norm() < 0.01 * best[-1].norm()


def test_what_has_no_gradient_is_refused_with_the_reason() -> None:
    problem = random_pairwise(3, 3, alpha=ALPHA, target_kl=1.0)
    with pytest.raises(UnsupportedError, match=r"expected a chain of Gaussian steps.*got MaskedStep; use --algorithm"):
        AdjointMatching().init(problem.tunable(), [Anchor(problem.pretrained, ALPHA)])
    algorithm = AdjointMatching(batch=8)
    state = algorithm.init(PROBLEM.pretrained().requires_grad_(True), [Anchor(PROBLEM.pretrained(), ALPHA)])
    with pytest.raises(UnsupportedError, match="expected a reward with on_probabilities"):
        algorithm.step(state, lambda designs: [0.0] * len(designs), torch.Generator())
