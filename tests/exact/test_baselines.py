"""Named baselines and conditions: the gradient stays that of the exact objective, whichever is chosen."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from difftilt.algorithms.baselines import BASELINES, BaselineSettings
from difftilt.algorithms.paths import ScoredPaths, select
from difftilt.algorithms.ppo import PPO
from difftilt.algorithms.reinforce import Reinforce
from difftilt.algorithms.trajectory_balance import TrajectoryBalance, mean_by
from difftilt.core.algorithm import Anchor
from difftilt.core.conditions import Conditions
from difftilt.core.policy import Policy
from difftilt.core.reward import Scores, under
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.problems.landscapes import TableReward, random_pairwise
from difftilt.problems.tilted import TiltedProblem

ALPHA = 0.5


@pytest.fixture(scope="module")
def problem() -> TiltedProblem:
    """3 tokens, 3 letters, one token per step: 162 paths."""
    return random_pairwise(3, 3, alpha=ALPHA, target_kl=1.0, seed=0)


def perturbed(problem: TiltedProblem) -> Policy:
    policy, noise = problem.tunable(), torch.Generator().manual_seed(0)
    for parameter in policy.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)
    return policy


def sampled(problem: TiltedProblem, policy: Policy, n: int) -> ScoredPaths:
    """Every path as often as its probability says, in one batch."""
    path = problem.chain.trajectories(policy, [problem.pretrained])
    value = torch.as_tensor(problem.reward(policy.codec.decode(path.x_0)), dtype=torch.float64)
    own, condition = torch.ones(path.batch, dtype=torch.bool), torch.zeros(path.batch, dtype=torch.long)
    data = ScoredPaths(path, Scores(value), path.log_prob.sum(0), own, condition)
    copies = (path.log_prob.sum(0).exp() * n).round().long()
    return select(data, torch.arange(path.batch).repeat_interleave(copies))


def gradient_of(problem: TiltedProblem, policy: Policy, data: ScoredPaths, advantage: torch.Tensor) -> torch.Tensor:
    path = data.path
    total = 0.0
    for k in range(path.steps):
        law = policy.step(path.states[k], path.times[k], path.times[k + 1])
        total = total + (advantage[k] * law.log_prob(path.states[k + 1])).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(policy.parameters()))])


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("kl", ["sampled", "sign flipped"])
def test_any_baseline_leaves_the_gradient_unbiased(problem: TiltedProblem, baseline: str, kl: str) -> None:
    """Over all paths of two updates (a running mean and a fitted value differ from the batch's by then)."""
    policy = perturbed(problem)
    exact = problem.objective(policy, grad=True) / ALPHA
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(exact, list(policy.parameters()))])
    algorithm = Reinforce(baseline=baseline)
    state = algorithm.init(policy, [Anchor(problem.pretrained, ALPHA)])
    data = sampled(problem, policy, 30_000)
    if kl == "sign flipped":
        path = data.path
        data = dataclasses.replace(
            data, path=dataclasses.replace(path, reference_log_prob=2 * path.log_prob - path.reference_log_prob)
        )
    first = algorithm.targets(state, data)
    if baseline == "running":
        state.mean += 0.7  # as if earlier updates had been better
    advantage = algorithm.targets(state, data)
    off = (gradient_of(problem, policy, data, advantage) - exact).norm() / exact.norm()
    assert (off < 3e-3) == (kl == "sampled")
    if baseline in ("running", "value"):
        assert (advantage - first).abs().max() > 1e-3


@pytest.mark.parametrize("baseline", BASELINES)
def test_any_baseline_leaves_the_gradient_unbiased_where_designs_are_infeasible(
    problem: TiltedProblem, baseline: str
) -> None:
    """That of J of the feasible law, and log P(F); moving the feasible paths alone (twin) is another gradient."""
    designs = problem.pretrained.codec.decode(problem.chain.designs)
    values = {
        d: math.nan if n % 3 == 0 else v for n, (d, v) in enumerate(zip(designs, problem.table.tolist(), strict=True))
    }
    hard = TiltedProblem(problem.pretrained, TableReward(values), alpha=ALPHA)
    policy = perturbed(hard)
    reach = hard.chain.marginal(policy, grad=True)[hard.feasible].sum()
    exact = hard.objective(policy, grad=True) / ALPHA + reach.log()
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(exact, list(policy.parameters()))])
    algorithm = Reinforce(baseline=baseline)
    state = algorithm.init(policy, [Anchor(problem.pretrained, ALPHA)])
    data = sampled(hard, policy, 30_000)
    plain = algorithm.targets(state, data)
    state.mean += 0.7
    advantage = algorithm.targets(state, data)
    assert (gradient_of(hard, policy, data, advantage) - exact).norm() < 3e-3 * exact.norm()
    if baseline in ("running", "value"):
        alone = torch.where(data.scores.feasible, advantage, plain)
        assert (gradient_of(hard, policy, data, alone) - exact).norm() > 3e-3 * exact.norm()


def test_a_running_mean_takes_the_place_of_the_others_mean(problem: TiltedProblem) -> None:
    """Exactly, in a batch of a few: returns minus the mean remembered."""
    data = sampled(problem, perturbed(problem), 300)
    data = select(data, torch.arange(0, data.path.batch, 50))
    algorithm = Reinforce(baseline="running")
    state = algorithm.init(perturbed(problem), [Anchor(problem.pretrained, ALPHA)])
    state.mean[:] = 0.7
    returns = data.returns(torch.tensor([ALPHA], dtype=torch.float64))
    expected = ((returns - 0.7) / ALPHA).expand(data.path.steps, -1)
    torch.testing.assert_close(algorithm.targets(state, data), expected)


def test_a_value_learned_from_returns_to_go_lowers_the_variance(problem: TiltedProblem) -> None:
    """Far from the optimum; a network of the wrong targets (twin: returns of shuffled paths) does not."""
    policy = perturbed(problem)
    data = sampled(problem, policy, 2000)
    spread = {}
    for baseline in ("batch", "value"):
        state = Reinforce(baseline=baseline).init(policy, [Anchor(problem.pretrained, ALPHA)])
        for _ in range(60):
            advantage = Reinforce(baseline=baseline).targets(state, data)
        spread[baseline] = advantage[-1].var().item()
    assert spread["value"] < 0.7 * spread["batch"]


def test_the_value_is_learned_from_what_is_still_to_come(problem: TiltedProblem) -> None:
    """At the optimum the return to go of a state is its soft value: nothing is left, where KL paid varies."""
    policy = problem.tunable()
    policy.denoiser = type(policy.denoiser).from_joint(problem.tilted.view(3, 3, 3))
    data = sampled(problem, policy.requires_grad_(True), 400)
    algorithm = Reinforce(baseline="value")
    state = algorithm.init(policy, [Anchor(problem.pretrained, ALPHA)])
    for _ in range(60):
        advantage = algorithm.targets(state, data)
    paid = data.path.log_ratio[0, :-1].sum(0)  # before the last step, nats
    assert advantage[-1].var() < 0.1 * paid.var()


def test_scales_divide_by_the_named_spread_and_alike_returns_get_nothing(problem: TiltedProblem) -> None:
    data = sampled(problem, perturbed(problem), 500)
    data = dataclasses.replace(data, condition=torch.arange(data.path.batch) % 2)
    conditions = Conditions({"y": torch.arange(2)})
    anchors = [Anchor(problem.pretrained, ALPHA)]
    by_batch = PPO(scale="batch").init(perturbed(problem), anchors, conditions)
    advantage = PPO(scale="batch").targets(by_batch, data)
    assert (ALPHA * advantage).std().item() == pytest.approx(1.0, rel=1e-6)
    state = PPO(baseline="group", scale="group").init(perturbed(problem), anchors, conditions)
    advantage = ALPHA * PPO(baseline="group", scale="group").targets(state, data)
    for label in (0, 1):
        rows = data.condition == label
        assert advantage[:, rows].std().item() == pytest.approx(1.0, rel=1e-6)
        assert abs(advantage[0, rows].mean()) < 1e-10
    flat = dataclasses.replace(data, scores=Scores(torch.zeros(data.path.batch).double()))
    path = dataclasses.replace(flat.path, reference_log_prob=flat.path.log_prob[None])
    alike = PPO(scale="batch").targets(by_batch, dataclasses.replace(flat, path=path))
    assert (alike == 0).all()


@pytest.mark.parametrize("scale", ["none", "batch", "group"])
def test_groups_that_are_alike_teach_exactly_nothing_and_are_counted(problem: TiltedProblem, scale: str) -> None:
    """Where the mean of equal returns is another number by rounding, too: 0 to the last bit, and counted."""
    assert torch.full((7,), 0.1, dtype=torch.float64).mean() != 0.1
    data = sampled(problem, perturbed(problem), 300)
    data = select(data, torch.arange(21))
    data = dataclasses.replace(data, condition=torch.arange(21) % 3)
    path = dataclasses.replace(data.path, reference_log_prob=data.path.log_prob[None])
    anchors, conditions = [Anchor(problem.pretrained, ALPHA)], Conditions({"y": torch.arange(3)})
    algorithm = PPO(baseline="group", scale=scale)
    state = algorithm.init(perturbed(problem), anchors, conditions)
    for flat, value in enumerate(
        [
            data.scores.value,
            data.scores.value.where(data.condition != 1, 0.1),
            torch.full((21,), 0.1, dtype=torch.float64).where(data.condition != 2, torch.arange(21).double()),
            torch.full((21,), math.nan, dtype=torch.float64).where(data.condition != 2, 0.1),
        ]
    ):
        targets = algorithm.targets(state, dataclasses.replace(data, path=path, scores=Scores(value)))
        alike = [(targets[:, data.condition == label] == 0).all().item() for label in range(3)]
        assert state.flat_groups == sum(alike) == flat
    record = algorithm.step(state, lambda designs: [0.1] * len(designs), torch.Generator().manual_seed(0))
    assert record.flat_groups == 0  # the KL still differs from path to path
    start = algorithm.init(problem.tunable(), [Anchor(problem.tunable(), ALPHA)], conditions)
    record = algorithm.step(start, lambda designs: [0.1] * len(designs), torch.Generator().manual_seed(0))
    assert record.flat_groups == 3


def test_a_running_scale_remembers_the_spread_of_its_condition(problem: TiltedProblem) -> None:
    """Variances 0.9 : 0.1 from update to update, through a checkpoint; the group's own (twin) is another number."""
    data = sampled(problem, perturbed(problem), 500)
    data = dataclasses.replace(data, condition=torch.arange(data.path.batch) % 2)
    anchors, conditions = [Anchor(problem.pretrained, ALPHA)], Conditions({"y": torch.arange(2)})
    wider = dataclasses.replace(data, scores=Scores(3 * data.scores.value))
    plain, algorithm = PPO(baseline="group"), PPO(baseline="group", scale="running")
    state = algorithm.init(perturbed(problem), anchors, conditions)
    first, second = (plain.targets(state, part) for part in (data, wider))
    torch.testing.assert_close(
        algorithm.targets(state, data), PPO(scale="group", baseline="group").targets(state, data)
    )
    resumed = algorithm.init(perturbed(problem), anchors, conditions)
    resumed.load_state_dict(state.state_dict())
    scaled = algorithm.targets(resumed, wider)
    for label in (0, 1):
        rows = data.condition == label
        variance = 0.9 * first[:, rows].var() + 0.1 * second[:, rows].var()
        torch.testing.assert_close(ALPHA * scaled[:, rows], second[:, rows] / variance.sqrt())
        assert (second[:, rows].var() / variance).sqrt() > 1.5


def test_groups_are_compared_within_themselves() -> None:
    """A condition that is hard by nature is not punished for it; where all count as one (twin) it is."""
    problem = random_pairwise(3, 3, alpha=ALPHA, target_kl=1.0, seed=0)
    data = sampled(problem, perturbed(problem), 400)
    condition = torch.arange(data.path.batch) % 2
    harder = Scores(data.scores.value - 100.0 * condition)
    data = dataclasses.replace(data, condition=condition, scores=harder)
    anchors, conditions = [Anchor(problem.pretrained, ALPHA)], Conditions({"y": torch.arange(2)})
    for baseline in ("batch", "group"):
        algorithm = Reinforce(baseline=baseline)
        state = algorithm.init(perturbed(problem), anchors, conditions)
        assert algorithm.targets(state, data).abs().max() * ALPHA < 10.0
        mixed = dataclasses.replace(data, condition=torch.zeros_like(condition))
        assert algorithm.targets(state, mixed).abs().max() * ALPHA > 40.0


def test_each_condition_has_its_own_log_z(problem: TiltedProblem) -> None:
    """A reward shifted by the condition moves that condition's log Z, and no gradient."""

    class Shifted:
        def __call__(self, designs: list[str]) -> torch.Tensor:
            return torch.as_tensor(problem.reward(designs))

        def under(self, cond: dict[str, torch.Tensor]) -> object:
            return lambda designs: self(designs) + 3.0 * cond["y"]

    def tuned(log_z: str, reward: object) -> tuple[torch.Tensor, float]:
        algorithm = TrajectoryBalance(batch=64, learning_rate=0.02, log_z=log_z)
        anchors = [Anchor(problem.pretrained, ALPHA)]
        state = algorithm.init(problem.tunable(), anchors, Conditions({"y": torch.arange(2.0).double()}))
        rng = torch.Generator().manual_seed(0)
        for _ in range(30):
            algorithm.step(state, reward, rng)
        gap = (state.log_z[1] - state.log_z[0]).item()
        return torch.cat([p.detach().flatten() for p in state.policy.parameters()]), gap

    plain, _ = tuned("batch", problem.reward)
    shifted, _ = tuned("batch", Shifted())
    torch.testing.assert_close(shifted, plain)
    _, gap = tuned("learned", Shifted())
    assert gap == pytest.approx(3.0 / ALPHA, abs=2.5)
    assert under(Shifted(), None) is not None
    assert mean_by(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1, 0, 1])).tolist() == [2.5, 2.0, 2.5]


def test_conditions_are_drawn_in_groups_and_refused_where_a_network_would_not_see_them(problem: TiltedProblem) -> None:
    conditions = Conditions({"y": torch.arange(5), "z": torch.ones(5, 2)}, group=4)
    index = conditions.draw(12, torch.Generator().manual_seed(0))
    assert (index.view(3, 4) == index.view(3, 4)[:, :1]).all()
    assert conditions.rows(index)["z"].shape == (12, 2)
    with pytest.raises(ConfigError, match="multiple of the group 4; got 10"):
        conditions.draw(10, torch.Generator())
    with pytest.raises(ConfigError, match="equally many conditions"):
        Conditions({"y": torch.arange(5), "z": torch.ones(4)})
    with pytest.raises(UnsupportedError, match="expected one condition for the value baseline"):
        PPO(baseline="value").init(problem.tunable(), [Anchor(problem.pretrained, ALPHA)], conditions)


@pytest.mark.parametrize("settings", [{"baseline": "bach"}, {"scale": "grop"}])
def test_an_unknown_name_is_met_with_the_nearest(settings: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"did you mean '(batch|group)'"):
        BaselineSettings.__post_init__(PPO(**settings))
