"""Laws 1 to 4 of the house style for every fine-tuning algorithm, on chains small enough to enumerate every path."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math

import pytest
import torch

from difftilt.algorithms.advantages import centred_advantage
from difftilt.algorithms.path_consistency import DetailedBalance, PathConsistency
from difftilt.algorithms.paths import ScoredPaths, choose_steps, path_return
from difftilt.algorithms.ppo import PPO, ppo_loss
from difftilt.algorithms.reinforce import Reinforce, reinforce_loss
from difftilt.algorithms.reward_backprop import RewardBackprop
from difftilt.algorithms.reward_weighted_mle import RewardWeightedMLE
from difftilt.algorithms.trajectory_balance import TrajectoryBalance, VarGrad, mean_by, trajectory_balance_loss
from difftilt.core.algorithm import Anchor
from difftilt.core.policy import Policy
from difftilt.core.reward import Scores
from difftilt.core.trajectory import Trajectory, rollout
from difftilt.errors import ConfigError
from difftilt.problems.landscapes import TableReward, corrected, random_pairwise
from difftilt.problems.tilted import TiltedProblem

ALPHA = 0.5
ALGORITHMS = (
    PPO(),
    TrajectoryBalance(),
    TrajectoryBalance(log_z="learned"),
    TrajectoryBalance(replay=0.5, exploration=0.25),
    PPO(kl="closed_form"),
    Reinforce(),
    RewardWeightedMLE(),
    PathConsistency(),
    DetailedBalance(),
    RewardBackprop(),
)
BLACK_BOX = ALGORITHMS[:-1]


def name_of(algorithm: object) -> str:
    """Its class, and the settings that are not the defaults."""
    changed = (f for f in dataclasses.fields(algorithm) if getattr(algorithm, f.name) != f.default)
    return "-".join([type(algorithm).__name__, *(f"{f.name}={getattr(algorithm, f.name)}" for f in changed)])


@pytest.fixture(scope="module")
def problem() -> TiltedProblem:
    """3 tokens, 3 letters, one token per step: 162 paths."""
    return random_pairwise(3, 3, alpha=ALPHA, target_kl=1.0, seed=0)


def perturbed(problem: TiltedProblem, seed: int = 0, size: float = 0.5) -> Policy:
    """A policy somewhere between nothing and the optimum."""
    policy = problem.tunable()
    noise = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)
    return policy


def optimal(problem: TiltedProblem) -> Policy:
    """The soft-optimal policy: the exact conditionals of p*, as a table."""
    joint = problem.tilted.nan_to_num(nan=0.0).view([problem.chain.letters] * 3)
    policy = problem.tunable()
    policy.denoiser = type(policy.denoiser).from_joint(joint)
    return policy


def every_path(problem: TiltedProblem, policy: Policy) -> tuple[Trajectory, torch.Tensor, torch.Tensor]:
    """All paths of ``policy`` with their probabilities and rewards."""
    paths = problem.chain.trajectories(policy, [problem.pretrained])
    reward = torch.as_tensor(problem.reward(policy.codec.decode(paths.x_0)), dtype=torch.float64)
    return paths, paths.log_prob.sum(0).exp(), reward


def gradient(scalar: torch.Tensor, policy: Policy) -> torch.Tensor:
    """Flat gradient with respect to the policy's parameters."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(scalar, list(policy.parameters()))])


def expected_ppo_gradient(problem: TiltedProblem, policy: Policy, returns: torch.Tensor) -> torch.Tensor:
    """Expectation of the gradient of PPO's first pass over all paths, for given returns (reward units)."""
    paths, p, _ = every_path(problem, policy)
    steps = choose_steps(paths, torch.arange(paths.batch), None, torch.Generator())
    log_prob = policy.step(steps.x_t, steps.t, steps.s).log_prob(steps.x_s)
    advantage = (p * (returns - (p * returns).sum()) / ALPHA)[steps.path]
    loss = ppo_loss(log_prob, steps.log_prob, advantage, clip=0.2, scale=steps.scale, paths=1)
    return -ALPHA * gradient(loss, policy)


def test_the_expected_ppo_gradient_is_the_gradient_of_the_exact_objective(problem: TiltedProblem) -> None:
    policy = perturbed(problem)
    exact = gradient(problem.objective(policy, grad=True), policy)
    paths, _, reward = every_path(problem, policy)
    returns = path_return(reward, paths.log_ratio, torch.tensor([ALPHA], dtype=torch.float64))
    torch.testing.assert_close(expected_ppo_gradient(problem, policy, returns), exact, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "broken", ["sign of the KL flipped", "KL dropped", "alpha doubled", "sign of the reward flipped"]
)
def test_a_broken_return_gives_another_gradient(problem: TiltedProblem, broken: str) -> None:
    """The twin of the law above; "sign of the reward flipped" is defect 1 of the reference code (cosine -1)."""
    policy = perturbed(problem)
    exact = gradient(problem.objective(policy, grad=True), policy)
    paths, _, reward = every_path(problem, policy)
    weight = {"sign of the KL flipped": -ALPHA, "KL dropped": 0.0, "alpha doubled": 2 * ALPHA}.get(broken, ALPHA)
    sign = -1.0 if broken.startswith("sign of the reward") else 1.0
    returns = path_return(sign * reward, paths.log_ratio, torch.tensor([weight], dtype=torch.float64))
    got = expected_ppo_gradient(problem, policy, returns)
    assert (got - exact).norm() > 0.05 * exact.norm()


def test_the_loss_of_ppo_has_the_sign_of_ascent(problem: TiltedProblem) -> None:
    """Defect 1: the policy gradient's cosine with the true gradient is +1, and a small step lowers the exact gap."""
    policy = perturbed(problem)
    exact = gradient(problem.objective(policy, grad=True), policy)
    paths, _, reward = every_path(problem, policy)
    returns = path_return(reward, paths.log_ratio, torch.tensor([ALPHA], dtype=torch.float64))
    got = expected_ppo_gradient(problem, policy, returns)
    assert torch.nn.functional.cosine_similarity(got, exact, dim=0) > 0.999
    before = problem.gap(policy)
    for parameter in policy.parameters():
        parameter.data += 0.01 * got.view_as(parameter)
    assert problem.gap(policy) < before


@pytest.mark.parametrize("broken", [None, "direct gradient dropped", "KL of the return dropped", "both, sign flipped"])
def test_the_closed_form_kl_needs_its_return_and_its_direct_gradient(
    problem: TiltedProblem, broken: str | None
) -> None:
    """Exact with both parts; 5 % or more off with either alone."""
    policy = perturbed(problem)
    exact = gradient(problem.objective(policy, grad=True), policy)
    paths, p, reward = every_path(problem, policy)
    steps = choose_steps(paths, torch.arange(paths.batch), None, torch.Generator())
    kl = policy.step(steps.x_t, steps.t, steps.s).kl(problem.pretrained.step(steps.x_t, steps.t, steps.s))
    sign = -1.0 if broken == "both, sign flipped" else 1.0
    direct = -gradient(sign * ALPHA * (p[steps.path] * kl).sum(), policy)
    returns = reward - sign * ALPHA * kl.detach().view(paths.steps, -1).sum(0)
    got = expected_ppo_gradient(problem, policy, reward if broken == "KL of the return dropped" else returns)
    got = got if broken == "direct gradient dropped" else got + direct
    if broken is None:
        torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-10)
    else:
        assert (got - exact).norm() > 0.05 * exact.norm()


@pytest.mark.parametrize("count", [None, 2])
def test_the_closed_form_is_what_the_update_descends(problem: TiltedProblem, count: int | None) -> None:
    """PPO's own loss on many paths, or on two of their three steps scaled up: the gradient of the functions above."""
    policy = perturbed(problem)
    algorithm = PPO(kl="closed_form")
    state = algorithm.init(policy, [Anchor(problem.pretrained, ALPHA)])
    path = rollout(policy, 64, torch.Generator().manual_seed(0), references=[problem.pretrained], with_kl=True)
    data = collected(problem, path)
    steps = choose_steps(path, torch.arange(64), count, torch.Generator().manual_seed(0))
    targets, rng = algorithm.targets(state, data), torch.Generator()
    loss, _ = algorithm.loss(state, data, targets, steps, torch.arange(64), rng)
    law = policy.step(steps.x_t, steps.t, steps.s)
    kl = law.kl(problem.pretrained.step(steps.x_t, steps.t, steps.s))
    returns = data.scores.value - ALPHA * path.kl[0].sum(0)
    advantage = centred_advantage(returns, data.scores.feasible, feasibility_weight=ALPHA) / ALPHA
    expected = (kl - advantage[steps.path] * law.log_prob(steps.x_s)).sum() / 64 * (1 if count is None else 3 / 2)
    torch.testing.assert_close(gradient(loss, policy), gradient(expected, policy), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(path.kl[0][steps.k, steps.path], kl.detach())


def collected(problem: TiltedProblem, path: Trajectory) -> ScoredPaths:
    """Paths of the policy itself, scored."""
    value = torch.as_tensor(problem.reward(problem.pretrained.codec.decode(path.x_0)), dtype=torch.float64)
    own, condition = torch.ones(path.batch, dtype=torch.bool), torch.zeros(path.batch, dtype=torch.long)
    return ScoredPaths(path, Scores(value), path.log_prob.sum(0), own, condition)


@pytest.mark.parametrize("broken", [None, "sign flipped", "KL dropped"])
def test_the_expected_reinforce_gradient_is_that_of_the_exact_objective(
    problem: TiltedProblem, broken: str | None
) -> None:
    policy = perturbed(problem)
    exact = gradient(problem.objective(policy, grad=True), policy) / ALPHA
    paths, p, reward = every_path(problem, policy)
    steps = choose_steps(paths, torch.arange(paths.batch), None, torch.Generator())
    weight = torch.tensor([0.0 if broken == "KL dropped" else ALPHA], dtype=torch.float64)
    returns = path_return(reward, paths.log_ratio, weight)
    advantage = p * (returns - (p * returns).sum()) / ALPHA * (-1 if broken == "sign flipped" else 1)
    log_prob = policy.step(steps.x_t, steps.t, steps.s).log_prob(steps.x_s)
    got = -gradient(reinforce_loss(log_prob, advantage[steps.path], scale=1.0, paths=1), policy)
    if broken is None:
        torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-10)
    else:
        assert (got - exact).norm() > 0.05 * exact.norm()


def tb_residual_loss(
    problem: TiltedProblem, policy: Policy, *, alpha: float = ALPHA, kl_sign: float = 1.0, log_z: float | None = None
) -> torch.Tensor:
    """Expected trajectory-balance loss over all paths of ``policy``, the weights not differentiated."""
    paths, p, reward = every_path(problem, policy)
    steps = choose_steps(paths, torch.arange(paths.batch), None, torch.Generator())
    log_prob = policy.step(steps.x_t, steps.t, steps.s).log_prob(steps.x_s).view(paths.steps, -1)
    ratio = kl_sign * (log_prob - paths.reference_log_prob[0]).sum(0)
    z = torch.tensor(problem.log_z if log_z is None else log_z, dtype=torch.float64)
    rows = [trajectory_balance_loss(ratio[b : b + 1], reward[b : b + 1], z, alpha=alpha) for b in range(len(p))]
    return (p * torch.stack(rows)).sum()


def test_balance_is_zero_with_zero_gradient_at_the_tilted_law_only(problem: TiltedProblem) -> None:
    policy = optimal(problem).requires_grad_(True)
    loss = tb_residual_loss(problem, policy)
    assert loss < 1e-18
    assert gradient(loss, policy).norm() < 1e-8
    assert tb_residual_loss(problem, policy, log_z=problem.log_z + 0.5) > 0.2  # its theta gradient is 0: a baseline
    for broken in ({"alpha": 2 * ALPHA}, {"kl_sign": -1.0}):
        assert gradient(tb_residual_loss(problem, policy, **broken), policy).norm() > 1e-2, broken


def test_the_on_policy_balance_gradient_is_twice_that_of_the_gap(problem: TiltedProblem) -> None:
    policy = perturbed(problem)
    exact = gradient(-2 * problem.objective(policy, grad=True) / ALPHA, policy)
    got = gradient(tb_residual_loss(problem, policy), policy)
    torch.testing.assert_close(got, exact, rtol=1e-8, atol=1e-9)
    assert (gradient(tb_residual_loss(problem, policy, alpha=2 * ALPHA), policy) - exact).norm() > 0.1 * exact.norm()


def vargrad_gradient(problem: TiltedProblem, policy: Policy, *, alpha: float = ALPHA, **settings: str) -> torch.Tensor:
    """Gradient of the algorithm's own loss on 40 fresh paths of ``policy``, tuned toward alpha."""
    algorithm = VarGrad(**settings)
    state = algorithm.init(policy, [Anchor(problem.pretrained, alpha)])
    state.updates = 1  # a learned log Z stays at 0 then
    path = rollout(policy, 40, torch.Generator().manual_seed(0), references=[problem.pretrained])
    data, rows, rng = collected(problem, path), torch.arange(40), torch.Generator()
    targets = algorithm.targets(state, data)
    loss, _ = algorithm.loss(state, data, targets, choose_steps(path, rows, None, rng), rows, rng)
    return gradient(loss, policy)


def test_vargrad_descends_the_variance_of_log_weights(problem: TiltedProblem) -> None:
    """Equation (2) by hand; a mean of squares without log Z, or alpha doubled (twins), is another gradient."""
    policy = perturbed(problem)
    path = rollout(policy, 40, torch.Generator().manual_seed(0), references=[problem.pretrained])
    reward = collected(problem, path).scores.value
    log_prob = [policy.step(path.states[k], path.times[k], path.times[k + 1]).log_prob(path.states[k + 1])
                for k in range(path.steps)]  # fmt: skip
    weight = (torch.stack(log_prob) - path.reference_log_prob[0]).sum(0) - reward / ALPHA
    by_hand = gradient(weight.var(correction=0), policy)
    torch.testing.assert_close(vargrad_gradient(problem, policy), by_hand)
    for broken in ({"log_z": "learned"}, {"alpha": 2 * ALPHA}):
        other = vargrad_gradient(problem, perturbed(problem), **broken)
        assert (other - by_hand).norm() > 0.05 * by_hand.norm(), broken


def test_the_variance_has_no_gradient_at_the_tilted_law_only(problem: TiltedProblem) -> None:
    """On any paths: log-weights are all log Z there. Not with alpha doubled, nor elsewhere."""
    best = optimal(problem).requires_grad_(True)
    assert vargrad_gradient(problem, best).norm() < 1e-8
    assert vargrad_gradient(problem, best, alpha=2 * ALPHA).norm() > 1e-2
    assert vargrad_gradient(problem, perturbed(problem)).norm() > 1e-2


@pytest.mark.parametrize("size", [2, 3])
def test_the_expected_variance_gradient_is_that_of_the_gap_but_for_its_own_mean(size: int) -> None:
    """Over all minibatches of two or three paths, by enumeration: 2 (1 - 1/n) times; 2 times (twin) is not it."""
    problem = random_pairwise(2, 2, alpha=ALPHA, target_kl=0.3, seed=0)
    policy = perturbed(problem)
    exact = gradient(-2 * problem.objective(policy, grad=True) / ALPHA, policy)
    paths, p, reward = every_path(problem, policy)
    steps = choose_steps(paths, torch.arange(paths.batch), None, torch.Generator())
    log_prob = policy.step(steps.x_t, steps.t, steps.s).log_prob(steps.x_s).view(paths.steps, -1).sum(0)
    ratio, total = log_prob - paths.reference_log_prob[0].sum(0), torch.zeros((), dtype=torch.float64)
    for batch in itertools.product(range(len(p)), repeat=size):
        rows = torch.tensor(batch)
        log_z = mean_by(reward[rows] / ALPHA - ratio[rows], torch.zeros(size, dtype=torch.long))
        total = total + p[rows].prod() * trajectory_balance_loss(ratio[rows], reward[rows], log_z, alpha=ALPHA)
    got = gradient(total, policy)
    torch.testing.assert_close(got, (1 - 1 / size) * exact, rtol=1e-8, atol=1e-9)
    assert (got - exact).norm() > 0.1 * exact.norm()


def test_the_ppo_gradient_vanishes_at_the_tilted_law_path_by_path(problem: TiltedProblem) -> None:
    """Every path has the same return there, so not only the mean but each term is zero."""
    policy = optimal(problem)
    paths, _, reward = every_path(problem, policy)
    returns = path_return(reward, paths.log_ratio, torch.tensor([ALPHA], dtype=torch.float64))
    assert returns.std() < 1e-10
    assert abs(returns.mean() / ALPHA - problem.log_z) < 1e-9


def infeasible(problem: TiltedProblem) -> TiltedProblem:
    """The same problem with a third of the designs infeasible."""
    values = {}
    designs = problem.pretrained.codec.decode(problem.chain.designs)
    for number, (design, value) in enumerate(zip(designs, problem.table.tolist(), strict=True)):
        values[design] = math.nan if number % 3 == 0 else value
    return TiltedProblem(problem.pretrained, TableReward(values), alpha=ALPHA)


def test_the_feasible_only_advantage_is_the_gradient_of_the_conditional_objective(problem: TiltedProblem) -> None:
    """J of p_theta(.|F) plus the feasibility weight times log P(F); dropping either part must show."""
    hard, weight = infeasible(problem), 0.3
    policy = perturbed(hard)
    paths, p, reward = every_path(hard, policy)
    feasible = ~reward.isnan()
    exact = gradient(
        hard.objective(policy, grad=True) + weight * hard.chain.marginal(policy, grad=True)[hard.feasible].sum().log(),
        policy,
    )
    returns = path_return(reward, paths.log_ratio, torch.tensor([ALPHA], dtype=torch.float64))
    # a batch in which every path appears in proportion to its probability
    copies = (p * 400_000).round().long()
    many = torch.arange(len(p)).repeat_interleave(copies)
    steps = choose_steps(paths, torch.arange(paths.batch), None, torch.Generator())

    def estimate(**changed: float) -> torch.Tensor:
        score = policy.step(steps.x_t, steps.t, steps.s).log_prob(steps.x_s).view(paths.steps, -1).sum(0)
        advantage = centred_advantage(returns[many], feasible[many], feasibility_weight=changed.get("weight", weight))
        total = torch.zeros(len(p), dtype=torch.float64).index_add_(0, many, advantage)
        return gradient((total * score).sum() / len(many), policy)

    assert (estimate() - exact).norm() < 2e-3 * exact.norm()
    assert (estimate(weight=0.0) - exact).norm() > 0.05 * exact.norm()


@pytest.mark.parametrize("broken", [None, "nothing learned from one", "no feasible design pushed away from"])
def test_rare_feasible_designs_are_learned_from_without_bias(broken: str | None) -> None:
    """Over all batches of three paths, by enumeration: grad J(.|F) P(n >= 2) + w grad log P(F) P(n >= 1 of two).

    Twins: no push from batches with one feasible design, or another from batches without any.
    """
    start = random_pairwise(2, 2, alpha=ALPHA, target_kl=0.3, seed=0)
    designs = start.pretrained.codec.decode(start.chain.designs)
    only = dict(zip(designs, [0.3, math.nan, math.nan, 1.1], strict=True))
    hard, weight = TiltedProblem(start.pretrained, TableReward(only), alpha=ALPHA), 0.3
    policy = perturbed(hard)
    paths, p, reward = every_path(hard, policy)
    feasible, share = ~reward.isnan(), hard.feasibility(policy)
    log_feasible = hard.chain.marginal(policy, grad=True)[hard.feasible].sum().log()
    several, any_other = 1 - (1 - share) ** 3 - 3 * share * (1 - share) ** 2, 1 - (1 - share) ** 2
    exact = gradient(several * hard.objective(policy, grad=True) + any_other * weight * log_feasible, policy)
    returns = path_return(reward, paths.log_ratio, torch.tensor([ALPHA], dtype=torch.float64))
    total = torch.zeros_like(p)
    for batch in itertools.product(range(len(p)), repeat=3):
        rows = torch.tensor(batch)
        advantage = centred_advantage(returns[rows], feasible[rows], feasibility_weight=weight)
        if broken == "nothing learned from one" and feasible[rows].sum() == 1:
            advantage = torch.zeros_like(advantage)
        if broken == "no feasible design pushed away from" and not feasible[rows].any():
            advantage = torch.full_like(advantage, -weight)
        total.index_add_(0, rows, p[rows].prod() * advantage / 3)
    steps = choose_steps(paths, torch.arange(paths.batch), None, torch.Generator())
    log_prob = policy.step(steps.x_t, steps.t, steps.s).log_prob(steps.x_s)
    got = gradient((total[steps.path] * log_prob).sum(), policy)
    if broken is None:
        torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-10)
    else:
        assert (got - exact).norm() > 0.02 * exact.norm()


def test_a_random_subset_of_steps_is_unbiased(problem: TiltedProblem) -> None:
    """Each step is chosen equally often (false-alarm rate below 1e-6 at 5 s.e.), and the scale is K / n."""
    path = rollout(problem.pretrained, 60_000, torch.Generator().manual_seed(0))
    steps = choose_steps(path, torch.arange(60_000), 2, torch.Generator().manual_seed(1))
    assert steps.scale == 1.5
    counts = torch.stack([(steps.t == t).sum() for t in path.times[:-1]]).double()
    assert ((counts / 60_000 - 2 / 3).abs() < 5 * math.sqrt(2 / 9 / 60_000)).all()
    pairs = torch.stack([steps.path, (steps.t * 3).round().long()], 1)
    assert len(torch.unique(pairs, dim=0)) == len(pairs), "a step was chosen twice for one path"
    torch.testing.assert_close(problem.pretrained.step(steps.x_t, steps.t, steps.s).log_prob(steps.x_s), steps.log_prob)


@pytest.mark.parametrize("algorithm", BLACK_BOX, ids=name_of)
def test_the_gradient_of_two_of_three_steps_is_that_of_all_in_the_mean(
    problem: TiltedProblem, algorithm: object
) -> None:
    """Over the three pairs of steps, without sampling; unscaled (twin) it is two thirds of it."""
    policy, rows, rng = perturbed(problem), torch.arange(24), torch.Generator()
    state = algorithm.init(policy, [Anchor(problem.pretrained, ALPHA)])
    closed = getattr(algorithm, "kl", None) == "closed_form"
    path = rollout(policy, 24, rng.manual_seed(0), references=[problem.pretrained], with_kl=closed)
    data = collected(problem, path)
    targets, every = algorithm.targets(state, data), choose_steps(path, rows, None, rng)

    def some(steps: tuple[int, ...], scale: float) -> torch.Tensor:
        chosen = torch.isin(every.k, torch.tensor(steps))
        fields = {name: value[chosen] for name, value in vars(every).items() if isinstance(value, torch.Tensor)}
        part = dataclasses.replace(every, **fields, scale=scale)
        return gradient(algorithm.loss(state, data, targets, part, rows, rng)[0], policy)

    pairs = list(itertools.combinations(range(3), 2))
    whole = some((0, 1, 2), 1.0)
    torch.testing.assert_close(sum(some(pair, 3 / 2) for pair in pairs) / 3, whole, rtol=1e-8, atol=1e-9)
    assert (sum(some(pair, 1 + 1e-9) for pair in pairs) / 3 - whole).norm() > 0.3 * whole.norm()


def test_ratio_is_one_on_the_first_pass(problem: TiltedProblem) -> None:
    """Against the number stored at rollout; a reference that is not the behaviour must not pass for it (twin)."""
    policy = perturbed(problem)
    state = PPO(batch=64).init(policy, [Anchor(problem.pretrained, ALPHA)])
    info = PPO(batch=64).step(state, problem.reward, torch.Generator().manual_seed(0))
    assert info.ratio_first_pass < 1e-12
    path = rollout(policy, 64, torch.Generator().manual_seed(0), references=[problem.pretrained])
    assert path.log_ratio[0].abs().max() > 1e-3


def test_clipping_acts_because_there_are_inner_epochs(problem: TiltedProblem) -> None:
    """Defect 2: with one pass in one minibatch the ratio is identically 1 and clipping never acts."""
    anchors = [Anchor(problem.pretrained, ALPHA)]

    def clip_fraction(**settings: int) -> float:
        algorithm = PPO(batch=256, learning_rate=0.1, **settings)
        state, rng = algorithm.init(problem.tunable(), anchors), torch.Generator().manual_seed(0)
        return max(algorithm.step(state, problem.reward, rng).clip_fraction for _ in range(3))

    assert clip_fraction(epochs=1, minibatches=1) == 0
    assert clip_fraction(epochs=2, minibatches=4) > 0


def test_clipping_stops_what_has_gone_far_enough_and_nothing_else() -> None:
    """By hand, ratios 1/2 and 3/2 at eps = 0.2: no gradient where the ratio moved the way the advantage wants."""
    ratio, advantage = torch.tensor([1.5, 0.5, 1.5, 0.5]).double(), torch.tensor([1.0, 1.0, -1.0, -1.0]).double()
    log_prob = ratio.log().requires_grad_(True)
    loss = ppo_loss(log_prob, torch.zeros(4).double(), advantage, clip=0.2, scale=2.0, paths=4)
    assert loss.item() == pytest.approx(-2 * (1.2 + 0.5 - 1.5 - 0.8) / 4)
    loss.backward()
    assert log_prob.grad.tolist() == pytest.approx([0.0, -2 * 0.5 / 4, 2 * 1.5 / 4, 0.0])


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=name_of)
def test_the_optimiser_is_the_same_one_from_update_to_update(problem: TiltedProblem, algorithm: object) -> None:
    """Defect 4: an optimiser made anew at every update never has moments."""
    algorithm = dataclasses.replace(algorithm, batch=32)
    state = algorithm.init(problem.tunable(), [Anchor(problem.pretrained, ALPHA)])
    rng = torch.Generator().manual_seed(0)
    algorithm.step(state, problem.reward, rng)
    optimiser, first = state.optimiser, copy.deepcopy(state.optimiser.state_dict()["state"][0]["step"])
    algorithm.step(state, problem.reward, rng)
    assert state.optimiser is optimiser
    assert state.optimiser.state_dict()["state"][0]["step"] > first >= 1


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=name_of)
def test_adding_a_constant_to_the_reward_changes_nothing(problem: TiltedProblem, algorithm: object) -> None:
    """Law 3, run by run: the same random numbers give the same parameters (a learned log Z starts at the batch's)."""

    class Shifted:
        def __call__(self, designs: list[str]) -> torch.Tensor:
            return torch.as_tensor(problem.reward(designs), dtype=torch.float64) + 7.0

        def on_probabilities(self, p: torch.Tensor) -> torch.Tensor:
            return problem.reward.on_probabilities(p) + 7.0

    def tuned(reward: object) -> torch.Tensor:
        chosen = dataclasses.replace(algorithm, batch=64, learning_rate=0.02)
        state = chosen.init(problem.tunable(), [Anchor(problem.pretrained, ALPHA)])
        rng = torch.Generator().manual_seed(0)
        for _ in range(3):
            chosen.step(state, reward, rng)
        return torch.cat([p.detach().flatten() for p in state.policy.parameters()])

    plain, start = tuned(problem.reward), torch.cat([p.flatten() for p in problem.tunable().parameters()]).detach()
    torch.testing.assert_close(tuned(Shifted()), plain, rtol=0, atol=1e-6)
    assert (plain - start).abs().max() > 1e-2


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=name_of)
def test_updates_lower_the_exact_gap_and_a_large_alpha_keeps_the_pretrained_law(
    problem: TiltedProblem, algorithm: object
) -> None:
    """Law 2's last clause and law 4: alpha to infinity gives p_pre."""
    chosen = dataclasses.replace(algorithm, batch=256, learning_rate=0.05)
    rng = torch.Generator().manual_seed(0)
    state = chosen.init(problem.tunable(), [Anchor(problem.pretrained, ALPHA)])
    for _ in range(30):
        chosen.step(state, problem.reward, rng)
    assert problem.gap(state.policy) < 0.35 * problem.gap(problem.pretrained)
    stiff = TiltedProblem(problem.pretrained, problem.reward, alpha=1e4)
    state = chosen.init(stiff.tunable(), [Anchor(problem.pretrained, 1e4)])
    state.scale_learning_rate(0.02)
    for _ in range(30):
        chosen.step(state, stiff.reward, rng)
    assert stiff.chain.path_kl(state.policy, problem.pretrained) < 0.01


@pytest.mark.parametrize("algorithm", BLACK_BOX, ids=name_of)
def test_two_anchors_reach_the_law_of_equation_7(problem: TiltedProblem, algorithm: object) -> None:
    """The law ∝ p_pre^{a/(a+b)} q^{b/(a+b)} exp(r/(a+b)); taking one anchor for both misses it (twin)."""
    other = perturbed(problem, seed=1, size=1.0).requires_grad_(False)
    a, b = 0.3, 0.4
    pre, q = problem.pretrained_law, problem.chain.marginal(other)

    def log_target(weights: tuple[float, float]) -> torch.Tensor:
        total = sum(weights)
        return ((weights[0] * pre.log() + weights[1] * q.log() + problem.table) / total).log_softmax(0)

    # q is a perturbed table, not order-consistent, so the anchor is the table of its own law
    other = copy.deepcopy(other)
    other.denoiser = type(other.denoiser).from_joint(q.view(3, 3, 3))
    chosen = dataclasses.replace(algorithm, batch=512, learning_rate=0.05)
    state, rng = chosen.init(problem.tunable(), [Anchor(problem.pretrained, a), Anchor(other, b)]), torch.Generator()
    rng.manual_seed(0)
    for step in range(150):
        state.scale_learning_rate(1 - step / 151)
        chosen.step(state, problem.reward, rng)
    law = problem.chain.marginal(state.policy)
    kl = (law * (law.log() - log_target((a, b)))).sum()
    wrong = (law * (law.log() - log_target((a + b, 0.0)))).sum()
    assert kl < 0.01 < wrong


@pytest.mark.parametrize("alpha", [0.0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(problem: TiltedProblem, alpha: float) -> None:
    with pytest.raises(ConfigError, match="alpha > 0"):
        PPO().init(problem.tunable(), [Anchor(problem.pretrained, alpha)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "bar"),
    [
        (PPO(batch=1024, learning_rate=3e-3), 0.01),
        (TrajectoryBalance(batch=1024, learning_rate=3e-3, minibatches=2), 0.003),
    ],
    ids=["ppo", "trajectory_balance"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_bars_on_the_random_pairwise_chain(algorithm: object, bar: float, seed: int) -> None:
    """6 tokens, 4 letters, alpha 0.5, KL(p* || p_pre) = 2 nats: exact KL(p_theta || p*) within the bar."""
    problem = random_pairwise(seed=seed)
    policy = corrected(problem.pretrained)
    state = algorithm.init(policy, [Anchor(problem.pretrained, problem.alpha)])
    rng = torch.Generator().manual_seed(seed)
    updates = 400
    for update in range(updates):
        state.scale_learning_rate(1 - update / (updates + 1))
        algorithm.step(state, problem.reward, rng)
    assert problem.kl(policy) <= bar
