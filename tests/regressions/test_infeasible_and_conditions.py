"""Infeasible designs and conditions: what is compared, pushed and refused, by enumeration."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math

import pytest
import torch

from difftilt.algorithms.adjoint_matching import AdjointMatching
from difftilt.algorithms.advantages import feasibility_push
from difftilt.algorithms.distill import Distill
from difftilt.algorithms.path_consistency import PathConsistency
from difftilt.algorithms.paths import ScoredPaths, choose_steps, merge, select
from difftilt.algorithms.ppo import PPO
from difftilt.algorithms.reinforce import Reinforce
from difftilt.algorithms.trajectory_balance import TrajectoryBalance, VarGrad
from difftilt.core.algorithm import Anchor
from difftilt.core.conditions import Conditions
from difftilt.core.noise import Cosine
from difftilt.core.policy import Policy
from difftilt.core.reward import Scores
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.problems.landscapes import random_pairwise
from difftilt.problems.library import Censored, linear_gaussian
from difftilt.problems.tilted import TiltedProblem
from difftilt.processes.gaussian import Gaussian
from difftilt.samplers.smc import SMC

ALPHA = 0.5


@pytest.fixture(scope="module")
def plain() -> TiltedProblem:
    """2 tokens, 3 letters, one token per step: 18 paths."""
    return random_pairwise(2, 3, alpha=ALPHA, target_kl=1.0, seed=0)


@pytest.fixture(scope="module")
def hard(plain: TiltedProblem) -> TiltedProblem:
    """The same with a third of the designs infeasible."""
    return TiltedProblem(plain.pretrained, Censored(plain.reward, plain.pretrained.codec), alpha=ALPHA)


@pytest.fixture
def policy(plain: TiltedProblem) -> Policy:
    tuned, noise = plain.tunable(), torch.Generator().manual_seed(0)
    for parameter in tuned.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)
    return tuned


def gradient(total: torch.Tensor, policy: Policy) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(policy.parameters()))])


def drawn(problem: TiltedProblem, policy: Policy, behaviour: Policy, n: int | None = None) -> ScoredPaths:
    """Every path of ``behaviour`` as often as its probability says; once each for ``None``."""
    chain, codec = problem.chain, policy.codec
    path = chain.trajectories(policy, [problem.pretrained])
    theirs = chain.trajectories(behaviour, [problem.pretrained]).log_prob.sum(0)
    value = torch.as_tensor(problem.reward(codec.decode(path.x_0)), dtype=torch.float64)
    own = torch.full((path.batch,), behaviour is policy)
    data = ScoredPaths(path, Scores(value), theirs, own, torch.zeros(path.batch, dtype=torch.long))
    if n is None:
        return data
    return select(data, torch.arange(path.batch).repeat_interleave((theirs.exp() * n).round().long()))


def directed(policy: Policy, data: ScoredPaths, coefficient: torch.Tensor) -> torch.Tensor:
    """Sum of coefficients times the gradient of each step's log-probability."""
    total, path = 0.0, data.path
    for k in range(path.steps):
        law = policy.step(path.states[k], path.times[k], path.times[k + 1])
        total = total + (coefficient.expand(path.steps, -1)[k] * law.log_prob(path.states[k + 1])).sum()
    return gradient(total, policy)


def far(got: torch.Tensor, exact: torch.Tensor) -> float:
    return ((got - exact).norm() / exact.norm()).item()


# --- toward feasible designs, from anybody's paths ----------------------------------------------------------------


@pytest.mark.parametrize("whose", ["own", "own and explored", "explored"])
@pytest.mark.parametrize("algorithm", [TrajectoryBalance(), PathConsistency()], ids=["balance", "consistency"])
def test_the_push_is_the_gradient_of_log_feasibility_whoever_drew_the_paths(
    hard: TiltedProblem, policy: Policy, algorithm: TrajectoryBalance | PathConsistency, whose: str
) -> None:
    """What ``feasibility_weight`` adds to the loss, exactly; counting all paths alike (twin) is another gradient."""
    parts = {"own": [policy], "own and explored": [policy, hard.pretrained], "explored": [hard.pretrained]}[whose]
    data = merge([drawn(hard, policy, behaviour, 20_000) for behaviour in parts])
    state = algorithm.init(policy, [Anchor(hard.pretrained, ALPHA)])
    rows, rng = torch.arange(data.path.batch), torch.Generator()
    steps = choose_steps(data.path, rows, None, rng)
    targets = algorithm.targets(state, data)

    def loss(weight: float) -> torch.Tensor:
        weighed = dataclasses.replace(algorithm, feasibility_weight=weight)
        return weighed.loss(state, data, targets, steps, rows, rng)[0]

    got = gradient(loss(0.3) - loss(0.0), policy)
    exact = gradient(-2 * 0.3 / ALPHA * hard.chain.marginal(policy, grad=True)[hard.feasible].sum().log(), policy)
    assert far(got, exact) < 2e-3
    alike = feasibility_push(
        torch.zeros_like(data.behaviour_log_prob), data.scores.feasible, data.condition, feasibility_weight=0.3
    )
    assert (far(directed(policy, data, -2 / ALPHA * alike), exact) > 0.05) == (whose != "own")


def test_the_push_of_a_condition_has_its_share_of_the_batch() -> None:
    """By hand: conditions of 4 and 2 paths, one without an infeasible path."""
    feasible = torch.tensor([True, False, True, False, True, True])
    group = torch.tensor([0, 0, 0, 0, 1, 1])
    push = feasibility_push(torch.zeros(6).double(), feasible, group, feasibility_weight=3.0)
    share = 3.0 * 4 / 6
    assert push.tolist() == pytest.approx([share / 4, -share / 4, share / 4, -share / 4, 0, 0])


# --- baselines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [None, "moved only where two are feasible"])
@pytest.mark.parametrize(("baseline", "mean"), [("batch", None), ("running", 3.0), ("value", None)])
def test_no_baseline_moves_the_gradient_of_small_batches(baseline: str, mean: float | None, broken: str | None) -> None:
    """Over all batches of three paths of one token; a move that depends on the path's own feasibility (twin) shows."""
    start = random_pairwise(1, 3, alpha=ALPHA, target_kl=0.2, seed=0)
    rewards = {"A": math.nan, "C": 1.0, "G": -0.5}
    problem = TiltedProblem(start.pretrained, lambda designs: [rewards[d] for d in designs], alpha=ALPHA)
    policy = problem.tunable()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)).double()
    data = drawn(problem, policy, policy)
    p, share = data.path.log_prob.sum(0).exp(), problem.feasibility(policy)
    several, any_other = 1 - (1 - share) ** 3 - 3 * share * (1 - share) ** 2, 1 - (1 - share) ** 2
    log_feasible = problem.chain.marginal(policy, grad=True)[problem.feasible].sum().log()
    exact = gradient(several * problem.objective(policy, grad=True) / ALPHA + any_other * log_feasible, policy)
    algorithm, total = Reinforce(batch=3, baseline=baseline), torch.zeros_like(p)
    for batch in itertools.product(range(len(p)), repeat=3):
        rows = torch.tensor(batch)
        part, state = select(data, rows), algorithm.init(policy, [Anchor(problem.pretrained, ALPHA)])
        if mean is not None:
            state.mean.fill_(mean)
        advantage = algorithm.targets(state, part)[0]
        if broken and part.scores.feasible.sum() < 2:
            advantage = Reinforce(batch=3).targets(state, part)[0]
        total.index_add_(0, rows, p[rows].prod() * advantage / 3)
    off = far(directed(policy, data, total), exact)
    assert off < 1e-8 if broken is None or baseline == "batch" else off > 0.05


@pytest.mark.parametrize("baseline", ["batch", "group", "running"])
def test_a_condition_with_low_returns_is_not_pushed_out_of_what_is_feasible(
    plain: TiltedProblem, hard: TiltedProblem, policy: Policy, baseline: str
) -> None:
    """Half the batch for a condition with infeasible designs, and lower rewards; compared with all (twin) it is."""
    easy, low = drawn(plain, policy, policy, 10_000), drawn(hard, policy, policy, 10_000)
    low = dataclasses.replace(low, scores=Scores(low.scores.value - 5.0), condition=torch.ones_like(low.condition))
    reach = hard.chain.marginal(policy, grad=True)[hard.feasible].sum()
    ours = plain.objective(policy, grad=True) + hard.objective(policy, grad=True) + ALPHA * reach.log()
    exact = gradient(ours / (2 * ALPHA), policy)
    data, algorithm = merge([easy, low]), Reinforce(baseline=baseline)
    conditions = Conditions({"y": torch.arange(2)})
    for mixed in (False, True):
        state = algorithm.init(policy, [Anchor(plain.pretrained, ALPHA)], conditions)
        if baseline == "running":
            state.mean[:] = torch.tensor([1.0, -4.0])
        seen = dataclasses.replace(data, condition=torch.zeros_like(data.condition)) if mixed else data
        off = far(directed(policy, data, algorithm.targets(state, seen) / data.path.batch), exact)
        assert off > 0.1 if mixed else off < 3e-3


def test_a_path_alone_in_its_condition_is_compared_with_the_batch_only_while_that_is_feasible(
    plain: TiltedProblem, policy: Policy
) -> None:
    """Whether it is compared depends on the others alone; a running mean is taken where there is one."""
    some = select(drawn(plain, policy, policy), torch.arange(0, 18, 5))
    data = dataclasses.replace(some, condition=torch.arange(4))
    conditions, weights = Conditions({"y": torch.arange(4)}), torch.tensor([ALPHA]).double()
    returns = data.returns(weights)

    def targets(baseline: str, value: torch.Tensor, mean: float = math.nan) -> list[float]:
        algorithm = Reinforce(baseline=baseline)
        state = algorithm.init(policy, [Anchor(plain.pretrained, ALPHA)], conditions)
        state.mean.fill_(mean)
        return algorithm.targets(state, dataclasses.replace(data, scores=Scores(value)))[0].tolist()

    value = data.scores.value
    others = (returns.sum() - returns) / 3
    assert targets("batch", value) == pytest.approx(((returns - others) / ALPHA).tolist())
    assert targets("running", value) == targets("batch", value)
    assert targets("running", value, 0.7) == pytest.approx(((returns - 0.7) / ALPHA).tolist())
    assert targets("group", value) == [0.0] * 4
    lost = value.clone()
    lost[2] = math.nan
    assert targets("batch", lost) == [0.0] * 4


@pytest.mark.parametrize("scale", ["batch", "group", "running"])
def test_a_scale_leaves_the_push_where_rewards_are_feasible_or_not(plain: TiltedProblem, scale: str) -> None:
    """One reward for all feasible designs: nothing to divide by, and as much to learn as without a scale."""
    policy = plain.tunable()
    data = drawn(plain, policy, policy)
    value = torch.ones(18).double()
    value[::3] = math.nan
    anchors = [Anchor(plain.pretrained, ALPHA)]
    for rows in (torch.arange(18), torch.tensor([0, 1, 3])):  # twelve feasible designs, and one
        some = dataclasses.replace(select(data, rows), scores=Scores(value[rows]))
        plainly = Reinforce().targets(Reinforce().init(policy, anchors), some)
        state = Reinforce(scale=scale).init(policy, anchors)
        scaled = Reinforce(scale=scale).targets(state, some)
        assert state.variance.isnan().all() or len(rows) == 18  # one path has no spread to remember
        assert plainly.abs().max() > 0.4
        torch.testing.assert_close(scaled, plainly, rtol=1e-9, atol=1e-9)


# --- refused, and taken -------------------------------------------------------------------------------------------


def test_a_closed_form_kl_is_refused_where_designs_are_infeasible(hard: TiltedProblem) -> None:
    """Before anything is learned; with the sampled KL the same batch is learned from (twin)."""
    for kl in ("closed_form", "sampled"):
        algorithm = PPO(batch=32, kl=kl)
        state = algorithm.init(hard.tunable(), [Anchor(hard.pretrained, ALPHA)])
        before = copy.deepcopy(list(state.policy.parameters()))
        if kl == "closed_form":
            with pytest.raises(UnsupportedError, match="of 32 infeasible; use kl 'sampled'"):
                algorithm.step(state, hard.reward, torch.Generator().manual_seed(0))
        else:
            algorithm.step(state, hard.reward, torch.Generator().manual_seed(0))
        same = all(torch.equal(a, b) for a, b in zip(before, state.policy.parameters(), strict=True))
        assert same == (kl == "closed_form")


@pytest.mark.parametrize(
    ("refused", "taken"),
    [
        (PPO(batch=1, minibatches=1), PPO(batch=2, minibatches=2)),
        (Reinforce(batch=1), Reinforce(batch=2)),
        (VarGrad(batch=3), VarGrad(batch=4)),
        (TrajectoryBalance(batch=2), TrajectoryBalance(batch=1, minibatches=1, log_z="learned")),
    ],
    ids=["ppo", "reinforce", "vargrad", "trajectory_balance"],
)
def test_a_path_by_itself_is_refused_where_it_teaches_nothing(
    plain: TiltedProblem, refused: object, taken: object
) -> None:
    """The smallest batch that is taken does learn (twin): some path gives a gradient."""
    anchors = [Anchor(plain.pretrained, ALPHA)]
    with pytest.raises(ConfigError, match=r"expected a batch of at least \d, .*; raise batch"):
        refused.init(plain.tunable(), anchors)
    state, rng = taken.init(plain.tunable(), anchors), torch.Generator().manual_seed(0)
    assert max(taken.step(state, plain.reward, rng).gradient_norm for _ in range(5)) > 1e-3


def test_a_constant_for_one_label_teaches_a_student_nothing(plain: TiltedProblem) -> None:
    """Law 3 for each condition, through collecting and learning; a reward that differs (twin) does."""

    class Shifted:
        def __init__(self, constant: float, slope: float = 1.0) -> None:
            self.constant, self.slope = constant, slope

        def __call__(self, designs: list[str]) -> torch.Tensor:
            return torch.as_tensor(plain.reward(designs))

        def under(self, cond: dict[str, torch.Tensor]) -> object:
            return lambda designs: (1 + (self.slope - 1) * cond["y"]) * self(designs) + self.constant * cond["y"]

    def student(reward: Shifted) -> torch.Tensor:
        algorithm = Distill(batch=32, learning_rate=0.02, epochs=1)
        conditions = Conditions({"y": torch.arange(2.0).double()})
        state = algorithm.init(plain.tunable(), [Anchor(plain.pretrained, ALPHA)], conditions)
        state.teacher = SMC(alpha=ALPHA, kind="bootstrap", particles=32, ess_fraction=0.0)
        rng = torch.Generator().manual_seed(0)
        for _ in range(5):
            algorithm.step(state, reward, rng)
        return torch.cat([p.detach().flatten() for p in state.policy.parameters()])

    same = student(Shifted(0.0))
    torch.testing.assert_close(student(Shifted(-10.0)), same)
    assert (student(Shifted(0.0, slope=2.0)) - same).abs().max() > 1e-3


def test_adjoint_matching_starts_with_conditions() -> None:
    """The first step is tried with a condition; a network that reads one cannot be asked without."""

    class Told(torch.nn.Module):
        def __init__(self, base: torch.nn.Module) -> None:
            super().__init__()
            self.base, self.shift = base, torch.nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))

        def forward(self, x_t: torch.Tensor, t: torch.Tensor, cond: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.base(x_t, t, None) + self.shift[cond["y"]]

    problem = linear_gaussian(Gaussian(Cosine(), sigma_min=0.05), 4, alpha=ALPHA)
    policy = problem.tunable()
    policy.denoiser = Told(policy.denoiser)
    algorithm = AdjointMatching(batch=16)
    anchors = [Anchor(policy.frozen_copy(), ALPHA)]
    state = algorithm.init(policy, anchors, Conditions({"y": torch.arange(3)}))
    algorithm.step(state, problem.reward, torch.Generator().manual_seed(0))
    assert (policy.denoiser.shift.abs() > 1e-4).all()
