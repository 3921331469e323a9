"""Weighted likelihood by other routes, on enumerable chains: best share, fresh noise, a steering teacher."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from difftilt.algorithms.distill import TEACHERS, Distill, log_shares
from difftilt.algorithms.paths import ScoredPaths
from difftilt.algorithms.raft import RAFT
from difftilt.algorithms.renoised_mle import RenoisedMLE
from difftilt.algorithms.value_weighted_mle import ValueWeightedMLE, value_weight
from difftilt.core.algorithm import Anchor
from difftilt.core.policy import Policy
from difftilt.core.reward import Scores
from difftilt.core.trajectory import rollout
from difftilt.problems.landscapes import random_pairwise
from difftilt.problems.tilted import TiltedProblem
from difftilt.samplers.mcmc import MCMC
from difftilt.samplers.smc import SMC

ALPHA = 0.5


@pytest.fixture(scope="module")
def problem() -> TiltedProblem:
    """3 tokens, 3 letters, one token per step."""
    return random_pairwise(3, 3, alpha=ALPHA, target_kl=1.0, seed=0)


def tuned(problem: TiltedProblem, algorithm: object, updates: int, **state: object) -> Policy:
    begun = algorithm.init(problem.tunable(), [Anchor(problem.pretrained, ALPHA)])
    for name, value in state.items():
        setattr(begun, name, value)
    rng = torch.Generator().manual_seed(0)
    for update in range(updates):
        begun.scale_learning_rate(1 - update / (updates + 1))
        algorithm.step(begun, problem.reward, rng)
    return begun.policy


def test_raft_learns_from_the_best_share_of_the_feasible_paths(problem: TiltedProblem) -> None:
    value = torch.tensor([3.0, 1.0, math.nan, 2.0, 5.0, math.nan, 4.0, 0.0]).double()
    path = rollout(problem.pretrained, 8, torch.Generator(), references=[problem.pretrained])
    data = ScoredPaths(
        path, Scores(value), path.log_prob.sum(0), torch.ones(8, dtype=torch.bool), torch.zeros(8).long()
    )
    state = RAFT().init(problem.tunable(), [Anchor(problem.pretrained, ALPHA)])
    assert RAFT(keep=0.25).targets(state, data).tolist() == [0, 0, 0, 0, 4, 0, 4, 0]
    everyone = [8 / 6, 8 / 6, 0, 8 / 6, 8 / 6, 0, 8 / 6, 8 / 6]
    assert RAFT(keep=1.0).targets(state, data).tolist() == pytest.approx(everyone)


def test_raft_raises_the_reward_and_aims_at_no_tilted_law(problem: TiltedProblem) -> None:
    policy = tuned(problem, RAFT(batch=128, learning_rate=0.3), 150)
    assert problem.chain.marginal(policy) @ problem.table > 0.99 * problem.table.max()
    assert problem.kl(policy) > 0.5


def test_fresh_noise_reaches_the_tilted_law_where_the_bridge_is_the_noising_law(problem: TiltedProblem) -> None:
    """One token per step, consistent in every order; dropping the weights (twin) stays at p_pre."""
    assert problem.kl(tuned(problem, RenoisedMLE(batch=512, learning_rate=0.05, steps_per_path=3), 200)) < 0.01
    still = tuned(TiltedProblem(problem.pretrained, problem.reward, alpha=1e6), RenoisedMLE(batch=128), 10)
    assert problem.kl(still) > 0.5


@pytest.mark.parametrize("broken", [None, "alpha doubled", "sign flipped", "candidates of the tuned policy"])
def test_the_expected_gradient_of_value_weighting_is_that_of_the_stepwise_forward_kl(
    problem: TiltedProblem, broken: str | None
) -> None:
    """Over every successor of every state: law 2, with the control variate on; and zero at the optimum."""
    policy, chain = problem.tunable(), problem.chain
    for parameter in policy.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double()
    soft, got, exact = problem.soft_values(), 0.0, 0.0
    laws, reference = chain.laws(policy, grad=True), problem.reference
    for k in range(chain.steps):
        for block in chain.blocks(k):
            mine, theirs = block.log_prob(laws[k]), block.log_prob(reference[k])
            keep = theirs > -math.inf
            before = soft[k][block.index]
            alpha = 2 * ALPHA if broken == "alpha doubled" else ALPHA
            after = soft[k + 1][block.successors].nan_to_num(nan=0.0)
            weight = value_weight(after.T, before, alpha=alpha).T * (-1 if broken == "sign flipped" else 1)
            drawn = mine if broken == "candidates of the tuned policy" else theirs
            coefficient = (weight - (mine - theirs).detach().exp()).where(keep, 0)
            got = got - (drawn.detach().exp() * coefficient * mine.where(keep, 0)).sum()
            optimal = (theirs + (after - before[:, None]) / ALPHA).exp()
            exact = exact - (optimal * mine.where(keep, 0)).sum()
    parameters = list(policy.parameters())
    got, exact = (
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])
        for loss in (got, exact)
    )
    if broken is None:
        torch.testing.assert_close(got, exact, rtol=1e-8, atol=1e-9)
    else:
        assert (got - exact).norm() > 0.05 * exact.norm()


def test_states_without_a_feasible_future_have_no_weight() -> None:
    after, before = torch.tensor([[1.0, -math.inf, -math.inf]]), torch.tensor([1.0, 2.0, -math.inf])
    assert value_weight(after, before, alpha=1.0).tolist() == [[1.0, 0.0, 0.0]]


def test_value_weighting_reaches_the_law_of_its_value(problem: TiltedProblem) -> None:
    """With the exact value p*; with another alpha's value, that alpha's law (twin)."""
    algorithm = ValueWeightedMLE(batch=128, learning_rate=0.05)
    assert problem.kl(tuned(problem, algorithm, 100, value=problem.value())) < 0.005
    other = TiltedProblem(problem.pretrained, problem.reward, alpha=5 * ALPHA)
    assert problem.kl(tuned(problem, algorithm, 100, value=other.value())) > 0.01


def test_value_weighting_takes_states_of_any_path(problem: TiltedProblem) -> None:
    """Old paths and paths of p_pre to roll in with, the same law; a resumed buffer is tested with the others."""
    algorithm = ValueWeightedMLE(batch=128, learning_rate=0.05, replay=0.5, exploration=1.0)
    assert problem.kl(tuned(problem, algorithm, 100, value=problem.value())) < 0.005


def test_a_fitted_value_is_resumed_and_not_bought_again(problem: TiltedProblem) -> None:
    algorithm, anchors = (
        ValueWeightedMLE(batch=16, value_paths=64, value_updates=50),
        [Anchor(problem.pretrained, ALPHA)],
    )
    state = algorithm.init(problem.tunable(), anchors)
    algorithm.step(state, problem.reward, torch.Generator().manual_seed(0))
    again = algorithm.init(problem.tunable(), anchors)
    again.load_state_dict(copy.deepcopy(state.state_dict()))
    infos = [algorithm.step(s, problem.reward, torch.Generator().manual_seed(1)) for s in (state, again)]
    assert infos[0] == infos[1]
    assert infos[1].oracle_calls == 16 + 4 * 16
    for a, b in zip(state.policy.parameters(), again.policy.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("teacher", ["smc", "refine"])
def test_a_student_has_the_law_of_its_teacher(problem: TiltedProblem, teacher: str) -> None:
    """Both teachers sample the tilted law; the student's cross-entropy has no other minimum."""
    algorithm = Distill(
        batch=512, learning_rate=0.05, teacher=teacher, effort=48 if teacher == "refine" else None, epochs=1
    )
    policy = tuned(problem, algorithm, 60, value=problem.value())
    assert problem.kl(policy) < 0.01


def test_the_teachers_weights_count(problem: TiltedProblem) -> None:
    """Never resampled, a bootstrap filter has the tilt in its weights alone; dropping them (twin) leaves p_pre."""
    plain = {"kind": "bootstrap", "ess_fraction": 0.0, "alpha": ALPHA, "particles": 512}
    algorithm = Distill(batch=512, learning_rate=0.05, epochs=1)
    assert problem.kl(tuned(problem, algorithm, 60, teacher=SMC(**plain))) < 0.02

    class Blind(SMC):
        def __call__(self, *arguments: object, **named: object) -> object:
            drawn = super().__call__(*arguments, **named)
            drawn.log_weight.zero_()
            return drawn

    assert problem.kl(tuned(problem, algorithm, 60, teacher=Blind(**plain))) > 0.5


def test_coefficients_are_the_teachers_weights_with_mean_one(problem: TiltedProblem) -> None:
    """Under each condition, so that (1) is a cross-entropy in nats, whatever the batch; 0 where no design is feasible.

    A constant added to one condition's log weights changes nothing; shares of the whole batch (twin) follow it.
    """
    algorithm = Distill(batch=64)
    state = algorithm.init(problem.tunable(), [Anchor(problem.pretrained, ALPHA)])
    data = algorithm.collect(state, problem.reward, torch.Generator().manual_seed(0))
    weight = torch.arange(1, 65).double()
    condition = torch.arange(64) % 3
    expected = torch.zeros(64).double()
    for label in range(3):
        rows = condition == label
        expected[rows] = weight[rows] / weight[rows].mean()
    moved = weight.log() + 7.0 * condition
    state.log_share = log_shares(moved, condition)
    assert algorithm.targets(state, data).tolist() == pytest.approx(expected.tolist())
    state.log_share = log_shares(moved, torch.zeros_like(condition))
    assert (algorithm.targets(state, data) - expected).abs().max() > 1
    without = moved.where(condition != 1, -math.inf)
    state.log_share = log_shares(without, condition)
    assert algorithm.targets(state, data).tolist() == pytest.approx(expected.where(condition != 1, 0.0).tolist())


@pytest.mark.parametrize("teacher", TEACHERS)
def test_paths_of_samplers_are_paths_of_the_chain(problem: TiltedProblem, teacher: str) -> None:
    """They end in the designs, start masked, and every step has positive probability."""
    rng = torch.Generator().manual_seed(0)
    drawn = TEACHERS[teacher]()(problem.pretrained, problem.reward, 40, rng, value=problem.value(), paths=True)
    assert torch.equal(drawn.states[-1], drawn.x_0)
    assert (drawn.states[0] == problem.chain.letters).all()
    grid = problem.pretrained.grid
    for k in range(problem.pretrained.steps):
        law = problem.pretrained.step(drawn.states[k], grid[k], grid[k + 1])
        assert law.log_prob(drawn.states[k + 1]).isfinite().all()
    assert TEACHERS[teacher]()(problem.pretrained, problem.reward, 4, rng, value=problem.value()).states is None


def test_a_sampler_without_paths_says_so() -> None:
    from difftilt.core.noise import Cosine
    from difftilt.core.schedule import uniform_grid
    from difftilt.errors import UnsupportedError
    from difftilt.problems.linear_gaussian import LinearGaussian, Quadratic
    from difftilt.processes.gaussian import Gaussian

    one = torch.ones(1, dtype=torch.float64)
    chain = LinearGaussian(one, one[:, None], Gaussian(Cosine(0.05), sigma_min=0.1), uniform_grid(4)).pretrained()
    with pytest.raises(UnsupportedError, match="which moves designs and has no paths"):
        MCMC()(chain, Quadratic.reward(one[:, None], one, one), 4, torch.Generator(), paths=True)
