"""Reward-weighted likelihood and off-policy weights, over every path of small chains."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from difftilt.algorithms.paths import ScoredPaths, choose_steps, merge, select
from difftilt.algorithms.ppo import PPO
from difftilt.algorithms.replay import collect_from, path_log_prob
from difftilt.algorithms.reward_weighted_mle import RewardWeightedMLE, RewardWeightedMLEState, weighted_mle_loss
from difftilt.algorithms.trajectory_balance import TrajectoryBalance
from difftilt.core.algorithm import Anchor
from difftilt.core.policy import Policy
from difftilt.core.reward import Scores
from difftilt.errors import StateError, UnsupportedError
from difftilt.problems.landscapes import TableReward, random_pairwise
from difftilt.problems.tilted import TiltedProblem
from difftilt.tracking.checkpoint import load_checkpoint, save_checkpoint

ALPHA = 0.5
WEIGHTS = torch.tensor([ALPHA], dtype=torch.float64)


@pytest.fixture(scope="module")
def problem() -> TiltedProblem:
    """3 tokens, 3 letters, one token per step: 162 paths."""
    return random_pairwise(3, 3, alpha=ALPHA, target_kl=1.0, seed=0)


def perturbed(problem: TiltedProblem, seed: int = 0, size: float = 0.5) -> Policy:
    policy = problem.tunable()
    noise = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)
    return policy


def optimal(problem: TiltedProblem) -> Policy:
    policy = problem.tunable()
    policy.denoiser = type(policy.denoiser).from_joint(problem.tilted.nan_to_num(nan=0.0).view(3, 3, 3))
    return policy


def everything(problem: TiltedProblem, policy: Policy, behaviour: Policy) -> tuple[ScoredPaths, torch.Tensor]:
    """All paths as seen by ``policy``, and their probabilities under ``behaviour``."""
    drawn = problem.chain.trajectories(behaviour, [policy, problem.pretrained])
    path = replace(drawn, log_prob=drawn.reference_log_prob[0], reference_log_prob=drawn.reference_log_prob[1:])
    value = torch.as_tensor(problem.reward(policy.codec.decode(path.x_0)), dtype=torch.float64)
    own = torch.full((path.batch,), behaviour is policy)
    condition = torch.zeros(path.batch, dtype=torch.long)
    return ScoredPaths(path, Scores(value), drawn.log_prob.sum(0), own, condition), drawn.log_prob.sum(0).exp()


def gradient(scalar: torch.Tensor, policy: Policy) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(scalar, list(policy.parameters()))])


@pytest.mark.parametrize("whose", ["own", "pretrained", "another"])
def test_path_weights_have_the_mean_z_whoever_drew_the_paths(problem: TiltedProblem, whose: str) -> None:
    """Equation (2); taking the tuned policy for the behaviour is another number (twin)."""
    policy = perturbed(problem)
    behaviour = {"own": policy, "pretrained": problem.pretrained, "another": perturbed(problem, seed=5)}[whose]
    data, p = everything(problem, policy, behaviour)
    mean = (p * data.log_weight(WEIGHTS).exp()).sum().log().item()
    assert mean == pytest.approx(problem.log_z, abs=1e-10)
    wrong = replace(data, behaviour_log_prob=data.path.log_prob.sum(0))
    mistaken = (p * wrong.log_weight(WEIGHTS).exp()).sum().log().item()
    assert (abs(mistaken - problem.log_z) < 1e-10) == (whose == "own")


@pytest.mark.parametrize("whose", ["own", "pretrained", "another"])
@pytest.mark.parametrize("broken", [None, "alpha doubled", "sign flipped", "log-ratios dropped"])
def test_the_expected_gradient_is_that_of_the_forward_kl(
    problem: TiltedProblem, whose: str, broken: str | None
) -> None:
    """Law 2: expectation over all paths of the behaviour = autograd of KL(p*(path) || p_theta(path))."""
    policy = perturbed(problem)
    behaviour = {"own": policy, "pretrained": problem.pretrained, "another": perturbed(problem, seed=5)}[whose]
    if whose == "pretrained" and broken == "log-ratios dropped":
        pytest.skip("paths of p_pre have none")
    target, p_star = everything(problem, policy, optimal(problem))
    steps = choose_steps(target.path, torch.arange(target.path.batch), None, torch.Generator())
    log_prob = policy.step(steps.x_t, steps.t, steps.s).log_prob(steps.x_s)
    exact = gradient(-(p_star[steps.path] * log_prob).sum(), policy)
    data, p = everything(problem, policy, behaviour)
    weight = (data.log_weight(WEIGHTS) - problem.log_z).exp()
    if broken == "alpha doubled":
        weight = (data.log_weight(2 * WEIGHTS) - problem.log_z).exp()
    elif broken == "sign flipped":
        weight = -weight
    elif broken == "log-ratios dropped":
        weight = (data.scores.value / ALPHA - problem.log_z).exp()
    steps = choose_steps(data.path, torch.arange(data.path.batch), None, torch.Generator())
    log_prob = policy.step(steps.x_t, steps.t, steps.s).log_prob(steps.x_s)
    coefficient = (p * (weight - data.own.double()))[steps.path]  # c = 1 on own paths: no change in the mean
    got = gradient(weighted_mle_loss(log_prob, coefficient, scale=1.0, paths=1), policy)
    if broken is None:
        torch.testing.assert_close(got, exact, rtol=1e-8, atol=1e-9)
    else:
        assert (got - exact).norm() > 0.05 * exact.norm()


def test_every_coefficient_vanishes_at_the_tilted_law(problem: TiltedProblem) -> None:
    """With c = 1; without it each path still pushes (twin)."""
    policy = optimal(problem).requires_grad_(True)
    data, _ = everything(problem, policy, policy)
    for settings, size in (({}, 0.0), ({"control_variate": False}, 1.0)):
        algorithm = RewardWeightedMLE(running=0.0, **settings)
        state = algorithm.init(policy, [Anchor(problem.pretrained, ALPHA)])
        coefficients = algorithm.targets(state, data)
        assert (coefficients - size).abs().max() < 1e-8
        assert state.log_z.item() == pytest.approx(problem.log_z)


def test_the_normaliser_averages_weights_alike_at_first_and_forgets_later(problem: TiltedProblem) -> None:
    policy = problem.tunable()
    state = RewardWeightedMLEState(policy, [Anchor(problem.pretrained, ALPHA)], learning_rate=0.1, capacity=1)
    weights, one = [1.0, 2.0, 6.0], torch.zeros(4, dtype=torch.long)
    for number, weight in enumerate(weights, start=1):
        log_z = state.normalise(torch.tensor([math.log(weight)] * 4).double(), one, 0.9)
        assert log_z.exp().tolist() == pytest.approx([sum(weights[:number]) / number] * 4)
    state.seen[:] = 1000
    assert state.normalise(torch.zeros(4).double(), one, 0.9).exp()[0].item() == pytest.approx(0.9 * 3 + 0.1)
    nothing = torch.full((4,), -math.inf).double()
    assert state.normalise(nothing, one, 0.9).exp()[0].item() == pytest.approx(0.9 * (0.9 * 3 + 0.1))


def tuned(problem: TiltedProblem, algorithm: RewardWeightedMLE | TrajectoryBalance, updates: int) -> Policy:
    state, rng = algorithm.init(problem.tunable(), [Anchor(problem.pretrained, ALPHA)]), torch.Generator()
    rng.manual_seed(0)
    for update in range(updates):
        state.scale_learning_rate(1 - update / (updates + 1))
        algorithm.step(state, problem.reward, rng)
    return state.policy


def test_without_path_correction_the_tilt_compounds(problem: TiltedProblem) -> None:
    settings = {"batch": 256, "learning_rate": 0.05}
    right = tuned(problem, RewardWeightedMLE(**settings), 150)
    compounded = tuned(problem, RewardWeightedMLE(path_correction=False, **settings), 150)
    assert problem.kl(right) < 0.01
    assert problem.kl(compounded) > 0.2
    assert problem.chain.marginal(compounded) @ problem.table > problem.tilted @ problem.table


@pytest.mark.parametrize(
    "algorithm",
    [
        TrajectoryBalance(replay=0.5, exploration=0.5),
        TrajectoryBalance(replay=0.5, log_z="learned"),
        RewardWeightedMLE(replay=0.5),
        RewardWeightedMLE(exploration=0.5),
    ],
    ids=["balance-both", "balance-learned-replay", "likelihood-replay", "likelihood-exploration"],
)
def test_other_peoples_paths_lead_to_the_same_law(problem: TiltedProblem, algorithm: object) -> None:
    algorithm = replace(algorithm, batch=256, learning_rate=0.05, replay_paths=512)
    assert problem.kl(tuned(problem, algorithm, 150)) < 0.01


def offline(problem: TiltedProblem, algorithm: object, updates: int) -> tuple[Policy, list[object]]:
    """Tuned on 20,000 remembered paths of p_pre, without asking for a reward."""
    begun = algorithm.init(problem.tunable(), [Anchor(problem.pretrained, ALPHA)])
    rng = torch.Generator().manual_seed(0)
    begun.remember(collect_from(problem.pretrained, begun, problem.reward, 20_000, rng))

    def never(designs: list[str]) -> torch.Tensor:
        raise AssertionError("no design is to be scored")

    infos = []
    for update in range(updates):
        begun.scale_learning_rate(1 - update / (updates + 1))
        infos.append(algorithm.step(begun, never, rng))
    return begun.policy, infos


@pytest.mark.parametrize("kind", [RewardWeightedMLE, TrajectoryBalance])
def test_offline_paths_alone_lead_to_the_tilted_law(problem: TiltedProblem, kind: type) -> None:
    """Scored once, before: no reward call. All fresh paths from p_pre lead there too."""
    algorithm = kind(replay=1.0, replay_paths=20_000, batch=512, learning_rate=0.05)
    policy, infos = offline(problem, algorithm, 150)
    assert problem.kl(policy) < 0.01
    assert all(info.oracle_calls == 0 for info in infos)
    drawn = replace(algorithm, replay=0.0, exploration=1.0)
    assert problem.kl(tuned(problem, drawn, 150)) < 0.01


def test_offline_numbers_are_those_of_the_tuned_policy(problem: TiltedProblem) -> None:
    """H0: weighted means over 20,000 paths of p_pre are the policy's own (5 % allowed, 7 or more standard errors).

    Means as drawn (twin) are those of p_pre, and their log-ratio is below 0.
    """
    algorithm = RewardWeightedMLE(replay=1.0, replay_paths=20_000, batch=20_000, learning_rate=0.05)
    policy, _ = offline(problem, algorithm, 16)
    kl, reached = problem.chain.path_kl(policy, problem.pretrained).item(), problem.mean_reward(policy)
    begun = algorithm.init(policy, [Anchor(problem.pretrained, ALPHA)])
    rng = torch.Generator().manual_seed(1)
    begun.remember(collect_from(problem.pretrained, begun, problem.reward, 20_000, rng))
    data = algorithm.collect(begun, problem.reward, rng)
    info = algorithm.learn(begun, data, rng)
    assert info.kl_nats == pytest.approx(kl, rel=0.05)
    assert info.reward == pytest.approx(reached, rel=0.05)
    assert data.path.log_ratio[0].sum(0).mean() < -0.2 * kl
    assert abs(data.scores.mean - reached) > 0.2 * abs(reached)


def test_learning_from_nothing_but_the_past_needs_a_past(problem: TiltedProblem) -> None:
    algorithm = TrajectoryBalance(replay=1.0, batch=8)
    state = algorithm.init(problem.tunable(), [Anchor(problem.pretrained, ALPHA)])
    with pytest.raises(StateError, match=r"with replay 1; got none; call state.remember\(paths\) before"):
        algorithm.step(state, problem.reward, torch.Generator())


def test_a_short_past_is_not_topped_up_with_fresh_paths(problem: TiltedProblem) -> None:
    algorithm = TrajectoryBalance(replay=1.0, batch=8)
    state, rng = algorithm.init(problem.tunable(), [Anchor(problem.pretrained, ALPHA)]), torch.Generator()
    state.remember(collect_from(problem.pretrained, state, problem.reward, 3, rng))
    data = algorithm.collect(state, problem.reward, rng)
    assert data.path.batch == 3
    assert data.oracle_calls == 0


def test_a_buffer_keeps_the_newest_paths_with_their_own_behaviour(problem: TiltedProblem) -> None:
    algorithm = TrajectoryBalance(replay=0.5, replay_paths=40)
    state = algorithm.init(perturbed(problem), [Anchor(problem.pretrained, ALPHA)])
    rng = torch.Generator().manual_seed(0)
    first = collect_from(problem.pretrained, state, problem.reward, 30, rng)
    second = collect_from(perturbed(problem, seed=5), state, problem.reward, 30, rng)
    state.remember(first)
    state.remember(second)
    both = select(merge([first, second]), torch.arange(20, 60))
    assert torch.equal(state.kept.path.states, both.path.states)
    for parameter in state.policy.parameters():  # the policy moves on; behaviour stays, its own number follows
        parameter.data += 0.3
        parameter.data[..., 0] -= 1.0
    recalled = state.recall(40, rng)
    order = [int((both.behaviour_log_prob == value).nonzero()[0, 0]) for value in recalled.behaviour_log_prob]
    assert len(recalled.own) == 40
    assert not recalled.own.any()
    torch.testing.assert_close(recalled.path.log_prob, path_log_prob(state.policy, recalled.path))
    assert (recalled.path.log_prob - both.path.log_prob[:, order]).abs().max() > 0.05
    assert recalled.oracle_calls == 0
    assert recalled.network_evaluations == 40 * 3


def test_replayed_paths_cost_no_reward_calls(problem: TiltedProblem) -> None:
    algorithm = TrajectoryBalance(replay=0.5, exploration=0.25, batch=32)
    state, rng = algorithm.init(problem.tunable(), [Anchor(problem.pretrained, ALPHA)]), torch.Generator()
    asked = []

    def counting(designs: list[str]) -> torch.Tensor:
        asked.append(len(designs))
        return problem.reward(designs)

    infos = [algorithm.step(state, counting, rng) for _ in range(3)]
    assert [info.oracle_calls for info in infos] == [32, 16, 16]
    assert asked == [24, 8, 12, 4, 12, 4]


def test_a_resumed_buffer_goes_on_as_if_nothing_had_happened(problem: TiltedProblem, tmp_path: Path) -> None:
    algorithm = TrajectoryBalance(replay=0.5, batch=32)
    anchors = [Anchor(problem.pretrained, ALPHA)]
    state, rng = algorithm.init(problem.tunable(), anchors), torch.Generator().manual_seed(0)
    for _ in range(3):
        algorithm.step(state, problem.reward, rng)
    save_checkpoint(tmp_path, 3, copy.deepcopy(state.state_dict()))
    again = algorithm.init(problem.tunable(), anchors)
    again.load_state_dict(load_checkpoint(tmp_path)[1])
    for fresh in (state, again):
        algorithm.step(fresh, problem.reward, torch.Generator().manual_seed(1))
    for a, b in zip(state.policy.parameters(), again.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_on_policy_methods_refuse_other_peoples_paths(problem: TiltedProblem) -> None:
    state = PPO().init(problem.tunable(), [Anchor(problem.pretrained, ALPHA)])
    data = collect_from(problem.pretrained, state, problem.reward, 8, torch.Generator())
    with pytest.raises(UnsupportedError, match="got an on-policy one; use trajectory_balance"):
        state.remember(data)


def test_infeasible_paths_have_weight_zero_and_are_pushed_down(problem: TiltedProblem) -> None:
    designs = problem.pretrained.codec.decode(problem.chain.designs)
    values = {
        d: math.nan if n % 3 == 0 else v for n, (d, v) in enumerate(zip(designs, problem.table.tolist(), strict=True))
    }
    hard = TiltedProblem(problem.pretrained, TableReward(values), alpha=ALPHA)
    policy = tuned(hard, RewardWeightedMLE(batch=256, learning_rate=0.05), 150)
    assert hard.kl(policy) < 0.02
    assert hard.feasibility(policy) > 0.97 > hard.feasibility(problem.pretrained) + 0.2
