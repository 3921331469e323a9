"""The judge is judged: every number of ``problems.enumerated`` and ``problems.tilted`` by a second route.

The second routes are the process's own ``log_prob`` on all pairs of states (a dense matrix) and the enumeration of
all paths; neither uses the recursions under test.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy
from difftilt.core.process import Process
from difftilt.core.stats import kl_k1, kl_k3
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.problems import enumerated
from difftilt.problems.enumerated import EnumeratedChain, expected_fraction, reveal_laws
from difftilt.problems.landscapes import TableReward, TabularDenoiser, corrected, random_pairwise
from difftilt.problems.tilted import TiltedProblem, kl_divergence
from difftilt.processes.masked import Masked

LETTERS, LENGTH = 2, 3
GRIDS = {
    "one token per step": [1.0, 2 / 3, 1 / 3, 0.0],
    "2 steps": [1.0, 0.5, 0.0],
    "more steps than tokens": [1.0, 0.9, 0.7, 0.4, 0.3, 0.0],
}
chains = pytest.mark.parametrize(
    ("reveal", "grid"),
    [(reveal, grid) for reveal in ("count", "independent") for grid in GRIDS.values()],
    ids=[f"{reveal}, {name}" for reveal in ("count", "independent") for name in GRIDS],
)


class Timed(nn.Module):
    """A table of logits that changes with time, and counts how often it is asked."""

    def __init__(self, table: TabularDenoiser) -> None:
        super().__init__()
        self.table, self.rows = table, 0

    def forward(self, x_t, t, cond=None):
        self.rows += len(x_t)
        return self.table(x_t, t) * (0.5 + t[:, None, None])


def make_policy(reveal: str, grid: list[float], *, seed: int = 0, fixed: list[int] | None = None) -> Policy:
    """Random token laws that agree in no order and depend on time."""
    table = TabularDenoiser(LETTERS, LENGTH)
    nn.init.normal_(table.logits, generator=torch.Generator().manual_seed(seed))
    return Policy(
        Timed(table),
        Masked(LETTERS, reveal),
        TokenCodec("AC", LENGTH),
        (LENGTH,),
        grid=torch.tensor(grid, dtype=torch.float64),
        fixed=None if fixed is None else torch.tensor(fixed),
    )


def make_reward(*, infeasible: tuple[str, ...] = ()) -> TableReward:
    """A random value for each design of three letters A or C."""
    values = torch.randn(8, generator=torch.Generator().manual_seed(7)).tolist()
    table = {"".join(d): v for d, v in zip(itertools.product("AC", repeat=3), values, strict=True)}
    return TableReward({design: value for design, value in table.items() if design not in infeasible})


@torch.no_grad()
def dense(policy: Policy, states: torch.Tensor) -> list[torch.Tensor]:
    """Log transition matrices ``[S, S]`` of all steps, from the process."""
    size = len(states)
    pairs = states.repeat_interleave(size, 0), states.repeat(size, 1)
    times = itertools.pairwise(policy.grid)
    return [policy.step(pairs[0], t, s).log_prob(pairs[1]).view(size, size) for t, s in times]


def close(actual: torch.Tensor | float, expected: torch.Tensor | float, atol: float = 1e-12) -> None:
    as_tensor = [torch.as_tensor(x, dtype=torch.float64).detach() for x in (actual, expected)]
    torch.testing.assert_close(*as_tensor, rtol=0, atol=atol, equal_nan=True)


# --- the recursions against dense matrices ------------------------------------------------------------------------


@chains
def test_occupancy_is_the_product_of_transition_matrices(reveal, grid):
    policy = make_policy(reveal, grid)
    chain = EnumeratedChain(policy)
    occupancy = chain.occupancy(chain.laws(policy))
    law = torch.zeros(len(chain.states), dtype=torch.float64)
    law[-1] = 1
    for k, matrix in enumerate(dense(policy, chain.states)):
        law = law @ matrix.exp()
        close(occupancy[k + 1], law)
    close(chain.marginal(policy), law[(chain.states != LETTERS).all(-1)])


@chains
def test_path_kl_is_the_expected_sum_of_log_ratios(reveal, grid):
    policy, reference = make_policy(reveal, grid), make_policy(reveal, grid, seed=1)
    chain = EnumeratedChain(policy)
    occupancy = chain.occupancy(chain.laws(policy))
    total = 0.0
    for k, (mine, theirs) in enumerate(zip(dense(policy, chain.states), dense(reference, chain.states), strict=True)):
        total += occupancy[k] @ (mine.exp() * (mine - theirs).where(mine > -math.inf, 0)).sum(-1)
    close(chain.path_kl(policy, reference), total)


@chains
def test_path_kl_k1_and_k3_agree_in_mean_over_all_paths(reveal, grid):
    policy, reference = make_policy(reveal, grid), make_policy(reveal, grid, seed=1)
    chain = EnumeratedChain(policy)
    paths = chain.trajectories(policy, [reference])
    weight = paths.log_prob.sum(0).exp()
    close(weight.sum(), 1.0)
    close((weight * kl_k1(paths.log_ratio[0].sum(0))).sum(), chain.path_kl(policy, reference))
    close((weight * kl_k3(paths.log_ratio[0]).sum(0)).sum(), chain.path_kl(policy, reference))
    designs = torch.zeros(len(chain.designs), dtype=torch.float64)
    designs.index_add_(0, (paths.x_0 @ torch.tensor([4, 2, 1])), weight)
    close(designs, chain.marginal(policy))


@chains
def test_soft_values_obey_the_soft_bellman_equation(reveal, grid):
    problem = TiltedProblem(make_policy(reveal, grid), make_reward(), alpha=0.7)
    chain, values = problem.chain, problem.soft_values()
    visited = chain.occupancy(problem.reference) > 0
    assert torch.equal(~values.isnan(), visited)
    close(values[-1][visited[-1]], problem.table)
    for k, matrix in enumerate(dense(problem.pretrained, chain.states)):
        after = (values[k + 1] / problem.alpha).nan_to_num(nan=0.0)
        close(values[k][visited[k]], 0.7 * (matrix + after).logsumexp(-1)[visited[k]])


@chains
def test_the_soft_optimal_kernel_sums_to_one_and_samples_the_tilted_law(reveal, grid):
    problem = TiltedProblem(make_policy(reveal, grid), make_reward(), alpha=0.7)
    chain, values = problem.chain, problem.soft_values().nan_to_num(nan=0.0)
    law = torch.zeros(len(chain.states), dtype=torch.float64)
    law[-1] = 1
    for k, matrix in enumerate(dense(problem.pretrained, chain.states)):
        kernel = (matrix + (values[k + 1][None] - values[k][:, None]) / problem.alpha).exp()
        close(kernel.sum(-1)[law > 0], torch.ones(int((law > 0).sum())))
        law = law @ kernel
    close(law[chain.levels[0]], problem.tilted)
    close(problem.alpha * problem.log_z, values[0, -1])


@chains
def test_the_tilt_keeps_the_law_of_the_path_given_the_design(reveal, grid):
    """p*(path) / p_pre(path) = e^{r/alpha} / Z on every path, so that p*(x_t | x_0) = p_pre(x_t | x_0)."""
    problem = TiltedProblem(make_policy(reveal, grid), make_reward(), alpha=0.7)
    paths, values = problem.chain.trajectories(problem.pretrained), problem.soft_values()
    index = paths.states @ 3 ** torch.arange(LENGTH - 1, -1, -1)
    along = values.gather(1, index)
    log_weight = (along.diff(dim=0) / problem.alpha).sum(0)
    close(log_weight, problem.table[paths.x_0 @ torch.tensor([4, 2, 1])] / problem.alpha - problem.log_z)


@chains
def test_a_chain_too_large_for_one_block_is_solved_in_parts(reveal, grid, monkeypatch):
    def solve() -> list[torch.Tensor | float]:
        problem = TiltedProblem(make_policy(reveal, grid), make_reward(), alpha=0.7)
        policy = make_policy(reveal, grid, seed=1)
        return [problem.soft_values(), problem.kl(policy), problem.gap(policy), problem.optimum().value]

    whole = solve()
    monkeypatch.setattr(enumerated, "CHUNK", 8)
    monkeypatch.setattr(enumerated, "NETWORK_BATCH", 5)
    for part, expected in zip(solve(), whole, strict=True):
        close(part, expected)


@chains
def test_mean_rewards_are_over_feasible_designs(reveal, grid):
    problem = TiltedProblem(make_policy(reveal, grid), make_reward(infeasible=("ACA", "CCC")), alpha=0.7)
    policy = make_policy(reveal, grid, seed=1)
    paths = problem.chain.trajectories(policy)
    reward = problem.table[paths.x_0 @ torch.tensor([4, 2, 1])]
    mass = paths.log_prob.sum(0).exp().where(~reward.isnan(), 0)
    close(problem.mean_reward(policy), (mass * reward.nan_to_num()).sum() / mass.sum())
    kept = ~problem.table.isnan()
    weight = problem.pretrained_law[kept] * (problem.table[kept] / 0.7).exp()
    close(problem.target_mean_reward, (weight / weight.sum()) @ problem.table[kept])


def test_fine_tuning_starts_where_it_is_told():
    problem = random_pairwise(3, 2)
    told = TiltedProblem(problem.pretrained, problem.reward, alpha=problem.alpha, start=corrected(problem.pretrained))
    first, second = told.tunable(), told.tunable()
    assert type(first.denoiser) is not type(problem.pretrained.denoiser)
    assert not first.denoiser.table.logits.requires_grad
    close(told.kl(first), problem.kl(problem.pretrained))
    with torch.no_grad():
        first.denoiser.network[-1].bias += torch.arange(6.0)
    assert told.kl(first) != told.kl(second)


# --- the objective, its gap and its gradient ----------------------------------------------------------------------


@chains
def test_objective_and_gap_over_all_paths(reveal, grid):
    problem = TiltedProblem(make_policy(reveal, grid), make_reward(), alpha=0.7)
    policy = make_policy(reveal, grid, seed=1)
    paths = problem.chain.trajectories(policy, [problem.pretrained])
    weight, log_ratio = paths.log_prob.sum(0).exp(), paths.log_ratio[0].sum(0)
    reward = problem.table[paths.x_0 @ torch.tensor([4, 2, 1])]
    close(problem.objective(policy), (weight * (reward - 0.7 * log_ratio)).sum())
    log_target = paths.reference_log_prob[0].sum(0) + reward / 0.7 - problem.log_z
    close(problem.gap(policy), (weight * (paths.log_prob.sum(0) - log_target)).sum())
    mean_reward = (problem.chain.marginal(policy) * problem.table).sum()
    close(problem.objective(policy), mean_reward - 0.7 * problem.chain.path_kl(policy, problem.pretrained))
    assert problem.gap(policy) > problem.kl(policy) > 0


@chains
def test_infeasible_designs_are_conditioned_away(reveal, grid):
    problem = TiltedProblem(make_policy(reveal, grid), make_reward(infeasible=("ACA", "CCC")), alpha=0.7)
    policy = make_policy(reveal, grid, seed=1)
    paths = problem.chain.trajectories(policy, [problem.pretrained])
    reward = problem.table[paths.x_0 @ torch.tensor([4, 2, 1])]
    feasible = ~reward.isnan()
    mass = paths.log_prob.sum(0).exp().where(feasible, 0)
    weight = mass / mass.sum()
    close(problem.feasibility(policy), mass.sum())
    log_law = paths.log_prob.sum(0) - mass.sum().log()
    kl = (weight * (log_law - paths.reference_log_prob[0].sum(0))).sum()
    close(problem.objective(policy), (weight * reward.where(feasible, 0)).sum() - 0.7 * kl)
    log_target = paths.reference_log_prob[0].sum(0) + (reward / 0.7).where(feasible, -math.inf) - problem.log_z
    close(problem.gap(policy), (weight * (log_law - log_target).where(feasible, 0)).sum())
    assert problem.tilted[[2, 7]].tolist() == [0.0, 0.0]
    close(problem.tilted.sum(), 1.0)
    close(problem.log_z, problem.soft_values()[0, -1] / 0.7)
    with pytest.raises(UnsupportedError, match="NaN for some"):
        problem.optimum()


@chains
def test_the_gradient_of_the_objective_is_the_score_function_gradient_over_all_paths(reveal, grid):
    problem = TiltedProblem(make_policy(reveal, grid), make_reward(infeasible=("ACA",)), alpha=0.7)
    policy = make_policy(reveal, grid, seed=1)
    logits = policy.denoiser.table.logits
    (exact,) = torch.autograd.grad(problem.objective(policy, grad=True), logits)
    paths = problem.chain.trajectories(policy, [problem.pretrained])
    log_prob = torch.stack(
        [
            policy.step(x_t, t, s).log_prob(x_s)
            for x_t, x_s, (t, s) in zip(
                paths.states[:-1], paths.states[1:], itertools.pairwise(policy.grid), strict=True
            )
        ]
    ).sum(0)
    reward = problem.table[paths.x_0 @ torch.tensor([4, 2, 1])]
    feasible = ~reward.isnan()
    mass = log_prob.exp().where(feasible, 0)
    payoff = (reward - 0.7 * paths.log_ratio[0].sum(0)).where(feasible, 0)
    weight = (mass / mass.sum()).detach()
    surrogate = (weight * (payoff - (weight * payoff).sum()) * log_prob).sum()  # the baseline is over feasible paths
    (expected,) = torch.autograd.grad(surrogate, logits)
    close(exact, expected)
    assert exact.abs().max() > 1e-2


def test_the_gradient_of_the_marginal_and_of_the_path_kl_are_those_of_differences():
    policy, reference = (
        make_policy("independent", GRIDS["2 steps"]),
        make_policy("independent", [1.0, 0.5, 0.0], seed=1),
    )
    chain, logits = EnumeratedChain(policy), policy.denoiser.table.logits
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3), dtype=logits.dtype)
    for function in (
        lambda grad: chain.path_kl(policy, reference, grad=grad),
        lambda grad: (chain.marginal(policy, grad=grad) * torch.arange(8.0)).sum(),
    ):
        (gradient,) = torch.autograd.grad(function(True), logits)
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                logits += step * direction
                values.append(function(False))
                logits -= step * direction
        close((gradient * direction).sum(), (values[0] - values[1]) / 2e-5, atol=1e-8)


def test_without_grad_no_graph_is_kept():
    problem = random_pairwise(3, 2)
    assert problem.objective(problem.tunable(), grad=True).requires_grad
    assert not problem.objective(problem.tunable()).requires_grad
    assert not problem.chain.marginal(problem.tunable()).requires_grad


# --- laws of the tilt ---------------------------------------------------------------------------------------------


class Shifted:
    """``scale * reward + shift``."""

    def __init__(self, reward, scale=1.0, shift=0.0):
        self.reward, self.scale, self.shift = reward, scale, shift

    def __call__(self, designs):
        return [self.scale * value + self.shift for value in self.reward(designs)]


@chains
def test_a_constant_in_the_reward_moves_values_and_log_z_only(reveal, grid):
    policy, other = make_policy(reveal, grid), make_policy(reveal, grid, seed=1)
    plain = TiltedProblem(policy, make_reward(), alpha=0.7)
    moved = TiltedProblem(policy, Shifted(make_reward(), shift=3.0), alpha=0.7)
    close(moved.tilted, plain.tilted)
    close(moved.log_z, plain.log_z + 3 / 0.7)
    close(moved.soft_values(), plain.soft_values() + 3)
    close(moved.gap(other), plain.gap(other))


@chains
def test_reward_and_alpha_scaled_together_keep_the_optimum(reveal, grid):
    policy = make_policy(reveal, grid)
    plain = TiltedProblem(policy, make_reward(), alpha=0.7)
    scaled = TiltedProblem(policy, Shifted(make_reward(), scale=5.0), alpha=3.5)
    close(scaled.tilted, plain.tilted)
    close(scaled.log_z, plain.log_z)
    close(scaled.optimum().law, plain.optimum().law, atol=1e-8)
    alone = TiltedProblem(policy, Shifted(make_reward(), scale=5.0), alpha=0.7)
    assert (alone.tilted - plain.tilted).abs().max() > 0.05


@chains
def test_a_hot_tilt_is_the_pretrained_law_and_a_cold_one_the_argmax(reveal, grid):
    policy = make_policy(reveal, grid)
    hot, cold = TiltedProblem(policy, make_reward(), alpha=1e9), TiltedProblem(policy, make_reward(), alpha=1e-4)
    close(hot.tilted, hot.pretrained_law, atol=1e-8)
    close(hot.soft_values()[0, -1], (hot.pretrained_law * hot.table).sum(), atol=1e-6)
    expected = torch.zeros(8, dtype=torch.float64)
    expected[cold.table.argmax()] = 1
    close(cold.tilted, expected)
    close(cold.soft_values()[0, -1], cold.table.max() + 1e-4 * cold.pretrained_law[cold.table.argmax()].log())


# --- the class optimum --------------------------------------------------------------------------------------------


class PerStep(nn.Module):
    """Given token laws on every visited state, a table for each step."""

    def __init__(self, chain: EnumeratedChain, laws) -> None:
        super().__init__()
        self.grid = chain.template.grid
        self.tables = nn.ModuleList()
        for step in laws:
            table = TabularDenoiser(chain.letters, chain.states.shape[1])
            for m, law in step.items():
                table.logits.data[chain.levels[m][:, None], chain.positions[m]] = law
            self.tables.append(table)

    def forward(self, x_t, t, cond=None):
        k = int((self.grid - t[0]).abs().argmin())
        return self.tables[k](x_t, t)


def runs(problem: TiltedProblem, laws) -> Policy:
    template = problem.pretrained
    return Policy(
        PerStep(problem.chain, laws), template.process, template.codec, template.event_shape, grid=template.grid
    )


@chains
def test_the_class_optimum_is_reached_by_its_laws_and_is_stationary(reveal, grid):
    problem = TiltedProblem(make_policy(reveal, grid), make_reward(), alpha=0.3)
    best = problem.optimum()
    policy = runs(problem, best.laws)
    objective = problem.objective(policy, grad=True)
    close(objective, best.value)
    close(problem.kl(policy), best.kl)
    gradient = torch.autograd.grad(objective, list(policy.parameters()), allow_unused=True)
    assert max(g.abs().max() for g in gradient if g is not None) < 1e-6
    assert best.value <= best.bound + 1e-12
    close(best.bound, problem.alpha * problem.log_z)
    for seed in range(5):
        assert problem.objective(make_policy(reveal, grid, seed=seed)) <= best.value


def test_one_step_class_optimum_beats_a_fine_grid_of_all_token_laws():
    """Two tokens of two letters shown at once: two numbers, searched exhaustively, two good corners far apart."""
    table = TabularDenoiser.from_joint(torch.tensor([[0.4, 0.1], [0.2, 0.3]]))
    policy = Policy(table, Masked(2, "independent"), TokenCodec("AC", 2), (2,), steps=1).frozen_copy()
    reward = TableReward({"AA": 1.0, "AC": 0.0, "CA": 0.0, "CC": 1.3})
    for alpha in (0.05, 0.3, 1.0):
        problem = TiltedProblem(policy, reward, alpha=alpha)
        p = torch.linspace(0, 1, 1001, dtype=torch.float64)
        laws = torch.stack([p, 1 - p], -1)
        prior = problem.reference[0][2][0].exp()
        kl = [(torch.xlogy(laws, laws) - laws * prior[i].log()).sum(-1) for i in range(2)]
        mean = laws @ problem.table.view(2, 2) @ laws.T
        grid_best = (mean - alpha * (kl[0][:, None] + kl[1][None])).max().item()
        assert grid_best <= problem.optimum().value <= grid_best + 1e-5


def test_one_token_per_step_with_consistent_laws_loses_nothing():
    problem = random_pairwise(4, 3)
    best = problem.optimum()
    close(best.value, problem.alpha * problem.log_z)
    close(best.kl, 0.0)
    close(best.law, problem.tilted)
    time_free = copy_of(problem, best.laws)
    close(problem.gap(time_free), 0.0)
    assert (
        torch.autograd.grad(problem.objective(time_free, grad=True), time_free.denoiser.logits)[0].abs().max() < 1e-12
    )


def copy_of(problem: TiltedProblem, laws) -> Policy:
    """The time-free tabular policy with these laws (one level per step)."""
    policy = problem.tunable()
    for step in laws:
        for m, law in step.items():
            policy.denoiser.logits.data[problem.chain.levels[m][:, None], problem.chain.positions[m]] = law
    return policy


def test_one_token_per_step_with_inconsistent_laws_loses_something():
    problem = TiltedProblem(make_policy("count", GRIDS["one token per step"]), make_reward(), alpha=0.2)
    best = problem.optimum()
    assert best.value < best.bound - 1e-3
    assert best.kl > 1e-4


def test_the_class_loses_less_with_more_steps_at_the_second_order():
    """theory.md: 0.018 / 0.0047 / 0.0012 nats at K = 6 / 12 / 24 for a chain like this one."""
    kl = [random_pairwise(6, 4, reveal="independent", steps=6).optimum().kl]
    assert 0.005 < kl[0] < 0.05
    small = [random_pairwise(4, 3, reveal="independent", steps=steps).optimum().kl for steps in (6, 12, 24)]
    for coarse, fine in itertools.pairwise(small):
        assert 3.0 < coarse / fine < 5.0


# --- what the chain is --------------------------------------------------------------------------------------------


def test_exact_conditionals_sample_their_joint_law():
    joint = torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    policy = Policy(TabularDenoiser.from_joint(joint), Masked(3), TokenCodec("ACG", 3), (3,), steps=3)
    chain = EnumeratedChain(policy)
    close(chain.marginal(policy), (joint / joint.sum()).flatten())
    held = policy.holding(torch.tensor([-1, 2, -1]))
    chain = EnumeratedChain(held)
    assert chain.designs[:, 1].eq(2).all()
    assert len(chain.states) == 16
    close(chain.marginal(held), (joint[:, 2] / joint[:, 2].sum()).flatten())


def test_a_joint_law_with_zeros_is_sampled_without_nan():
    joint = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
    for reveal, steps in (("count", 2), ("independent", 3)):
        policy = Policy(
            TabularDenoiser.from_joint(joint), Masked(2, reveal), TokenCodec("AC", 2), (2,), steps=steps
        ).frozen_copy()
        problem = TiltedProblem(policy, lambda designs: [float(d == "AA") for d in designs], alpha=0.5)
        assert problem.pretrained_law.isfinite().all()
        if reveal == "count":
            close(problem.pretrained_law, joint.flatten())
            close(problem.tilted[0] / problem.tilted[3], math.exp(2.0))
        close(problem.gap(policy), kl_divergence(problem.pretrained_law, problem.tilted))


def test_a_network_that_looks_at_the_time_is_asked_at_every_step():
    policy = make_policy("independent", GRIDS["2 steps"])
    chain = EnumeratedChain(policy)
    timed = chain.laws(policy)
    assert policy.denoiser.rows == 1 + (27 - 8)
    policy.denoiser.time_free = True
    chain.laws(policy)
    assert policy.denoiser.rows == 1 + (27 - 8) + (27 - 8)
    assert not torch.equal(timed[0][3], timed[1][3])


def test_a_condition_reaches_the_network():
    class Conditional(nn.Module):
        def forward(self, x_t, t, cond=None):
            assert cond["y"].shape == (len(x_t), 1)
            return torch.stack([torch.zeros_like(cond["y"]), cond["y"]], -1).expand(-1, x_t.shape[1], -1)

    policy = Policy(Conditional(), Masked(2), TokenCodec("AC", 2), (2,), steps=2)
    y = 1.3
    problem = TiltedProblem(policy, lambda d: [x.count("C") for x in d], alpha=1.0, cond={"y": torch.tensor([[y]])})
    p = 1 / (1 + math.exp(-y))
    close(problem.pretrained_law, [(1 - p) ** 2, p * (1 - p), p * (1 - p), p**2], atol=1e-7)
    close(problem.log_z, 2 * math.log(1 - p + p * math.e), atol=1e-7)
    paths = problem.chain.trajectories(policy)
    assert paths.cond["y"].shape == (paths.batch, 1)


@pytest.mark.parametrize("by_count", [True, False])
def test_reveal_laws_are_laws(by_count):
    for grid in GRIDS.values():
        for step in reveal_laws(grid, 5, by_count=by_count):
            for m, law in step.items():
                assert math.fsum(math.comb(m, n) * math.exp(v) for n, v in enumerate(law)) == pytest.approx(1)
                assert 0 <= expected_fraction(law) <= 1 + 1e-12
        assert set(reveal_laws(grid, 5, by_count=by_count)[-1]) <= set(range(6))


def test_the_ready_problem_has_the_tilt_it_was_asked_for():
    problem = random_pairwise()
    close(kl_divergence(problem.tilted, problem.pretrained_law), 2.0, atol=1e-9)
    assert problem.alpha == 0.5
    assert len(problem.chain.designs) == 4**6
    close(problem.gap(problem.pretrained), kl_divergence(problem.pretrained_law, problem.tilted))
    close(problem.reward(["ACGTAC"]), problem.table[int("012301", 4)][None])
    again, other = random_pairwise(), random_pairwise(seed=1)
    assert torch.equal(again.table, problem.table)
    assert not torch.equal(other.table, problem.table)
    assert not any(p.requires_grad for p in problem.pretrained.parameters())
    assert all(p.requires_grad for p in problem.tunable().parameters())


def test_the_pairwise_reward_on_probabilities_is_its_mean():
    problem = random_pairwise(3, 2)
    p = torch.rand(1, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(-1)
    law = torch.einsum("a,b,c->abc", *p[0]).flatten()
    close(problem.reward.on_probabilities(p)[0], (law * problem.table).sum())


def test_the_table_read_at_relaxed_tokens_is_linear_in_each():
    table = TabularDenoiser(2, 3)
    nn.init.normal_(table.logits, generator=torch.Generator().manual_seed(0))
    t = torch.ones(1, dtype=torch.float64)
    every = torch.cartesian_prod(*[torch.arange(3)] * 3)
    one_hot = nn.functional.one_hot(every, 3).double()
    close(table(one_hot, t), table(every, t), atol=0)
    mixed = one_hot[5:6].clone()
    mixed[0, 1] = torch.tensor([0.2, 0.5, 0.3])
    neighbours = every[5].repeat(3, 1)
    neighbours[:, 1] = torch.arange(3)
    close(table(mixed, t)[0], torch.einsum("n,nlv->lv", mixed[0, 1], table(neighbours, t)))


# --- errors -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_enumerated_says_so():
    policy = make_policy("count", GRIDS["2 steps"])
    long = Policy(policy.denoiser, Masked(4), TokenCodec("ACGT", 50), (50,), steps=5)
    with pytest.raises(UnsupportedError, match=r"got 5\^50"):
        EnumeratedChain(long)

    class Other(Process):
        prior = corrupt = transition = denoising_loss = None

    with pytest.raises(UnsupportedError, match="got Other"):
        EnumeratedChain(Policy(policy.denoiser, Other(), policy.codec, (LENGTH,), steps=2))
    with pytest.raises(ConfigError, match="make an EnumeratedChain of that policy"):
        EnumeratedChain(policy).marginal(policy.with_steps(3))
    wide = Policy(TabularDenoiser(4, 7), Masked(4, "independent"), TokenCodec("ACGT", 7), (7,), steps=3)
    with pytest.raises(UnsupportedError, match="paths"):
        EnumeratedChain(wide).trajectories(wide)


def test_a_tilt_that_does_not_exist_says_so():
    policy = make_policy("count", GRIDS["2 steps"])
    for alpha in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="alpha > 0"):
            TiltedProblem(policy, make_reward(), alpha=alpha)
    with pytest.raises(ConfigError, match="at least one feasible"):
        TiltedProblem(policy, TableReward({}), alpha=1.0)
