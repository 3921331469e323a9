"""Every named problem keeps the protocol, and its numbers are those of second routes."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch

from difftilt.algorithms.path_consistency import PathConsistency, path_consistency_loss
from difftilt.core.algorithm import Anchor
from difftilt.core.trajectory import rollout
from difftilt.data import load
from difftilt.errors import ConfigError, DataError, UnsupportedError
from difftilt.problems.affine import AffineProblem
from difftilt.problems.dense import DenseProblem
from difftilt.problems.joint import JointDenoiser
from difftilt.problems.landscapes import TabularDenoiser, random_pairwise
from difftilt.problems.library import LIBRARY, entry
from difftilt.problems.line import LineProblem
from difftilt.problems.linear_gaussian import Chain
from difftilt.problems.problem import Problem
from difftilt.problems.simplex import SimplexProblem
from difftilt.problems.tfbind import LETTERS, tfbind
from difftilt.problems.tilted import TiltedProblem, kl_divergence

LONG = [name for name in LIBRARY if name != "tfbind8"]
COMPLEMENT = str.maketrans("ACGT", "TGCA")


def close(actual, expected, atol: float = 1e-10) -> None:
    as_tensor = [torch.as_tensor(x, dtype=torch.float64).detach() for x in (actual, expected)]
    torch.testing.assert_close(*as_tensor, rtol=0, atol=atol)


def some_scores(length: int = 3, *, strands: bool = True) -> dict[str, float]:
    """A rough score in [0, 1] of every sequence, alike for both strands if so wanted."""
    rng = torch.Generator().manual_seed(11)
    every = ["".join(letters) for letters in itertools.product(LETTERS, repeat=length)]
    drawn = dict(zip(every, torch.rand(len(every), generator=rng, dtype=torch.float64).tolist(), strict=True))
    return {d: drawn[min(d, d[::-1].translate(COMPLEMENT))] if strands else drawn[d] for d in every}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name == "simplex")) for name in LIBRARY]
)
def problem(request) -> Problem:
    chosen = entry(request.param)
    return chosen.make(some_scores() if chosen.needs_scores else None)


# --- the protocol ---------------------------------------------------------------------------------------------------


def test_every_problem_keeps_the_protocol(problem):
    assert isinstance(problem, Problem)
    assert not any(parameter.requires_grad for parameter in problem.pretrained.parameters())
    first, second = problem.tunable(), problem.tunable()
    trained = [parameter for parameter in first.parameters() if parameter.requires_grad]
    assert trained
    before = problem.kl(second)
    close(before, problem.kl(problem.pretrained), atol=1e-6)  # the networks' float32
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trained:
            parameter += 0.02 * torch.randn(parameter.shape, generator=rng, dtype=parameter.dtype)
    assert abs(problem.kl(first) - before) > 1e-4  # its parameters are what is judged
    assert problem.kl(second) == before
    assert before > (0.08 if isinstance(problem, SimplexProblem) else 0.2) > 10 * problem.class_kl >= 0
    assert problem.mean_reward(second) < problem.target_mean_reward
    x_1 = problem.pretrained.prior(20_000, rng)
    first_value = problem.value()(x_1, problem.pretrained.grid[0]).mean().item()
    error = 3e-4 if isinstance(problem, SimplexProblem) else 1e-6  # quadrature: O(h^2), 6e-4 on every other node
    bound = problem.alpha * problem.log_z  # J <= E[v_1] <= alpha log Z, with equality where x_1 tells nothing
    assert first_value < bound + error
    assert (bound - first_value < 1e-3) is problem.pretrained.process.memoryless


def test_entries_say_what_they_build():
    for name, chosen in LIBRARY.items():
        built = chosen.make(some_scores() if chosen.needs_scores else None)
        assert (name, chosen.process) == (chosen.name, built.pretrained.process.registered_name)
        assert chosen.alpha == built.alpha


def test_log_z_and_target_obey_the_gibbs_identity(problem):
    r"""KL(p_pre || p*) = log Z - E_pre[r] / alpha where the tilt is over x_0 and nothing is infeasible."""
    if isinstance(problem, TiltedProblem) and not problem.feasible.all():
        mass = problem.feasibility(problem.pretrained)
        expected = problem.log_z - math.log(mass) - problem.mean_reward(problem.pretrained) / problem.alpha
        close(problem.kl(problem.pretrained), expected)
    elif problem.pretrained.process.memoryless:
        expected = problem.log_z - problem.mean_reward(problem.pretrained) / problem.alpha
        close(problem.kl(problem.pretrained), expected, atol=1e-3 if isinstance(problem, SimplexProblem) else 1e-4)
        wrong = problem.log_z - problem.target_mean_reward / problem.alpha  # twin: the wrong law's mean
        assert abs(wrong - problem.kl(problem.pretrained)) > (0.1 if isinstance(problem, SimplexProblem) else 0.5)
    else:
        expected = problem.log_z - problem.mean_reward(problem.pretrained) / problem.alpha
        assert expected > problem.kl(problem.pretrained) + 0.1  # part of the tilt is in x_1


def test_a_wrong_target_shows_in_kl(problem):
    """Twin of every bar: the class optimum of twice the temperature is far from the target, that of alpha is not."""
    if isinstance(problem, AffineProblem):
        right, wrong = (
            problem.model.policy(problem.chain.optimum(problem.reward, alpha, soft=False))
            for alpha in (problem.alpha, 2 * problem.alpha)
        )
        close(problem.kl(right), problem.class_kl)
        assert problem.kl(wrong) > problem.class_kl + 0.02
    elif isinstance(problem, TiltedProblem):
        other = TiltedProblem(problem.pretrained, problem.reward, alpha=2 * problem.alpha)
        shape = [problem.chain.letters] * problem.chain.states.shape[1]
        policies = problem.pretrained.frozen_copy(), problem.pretrained.frozen_copy()
        for policy, law in zip(policies, (problem.tilted, other.tilted), strict=True):
            policy.denoiser = JointDenoiser.of(law.view(shape))
        assert problem.kl(policies[0]) < 0.03  # 0 with one token per step
        assert problem.kl(policies[1]) > 0.1
    elif isinstance(problem, SimplexProblem):
        other = SimplexProblem(problem.pretrained, problem.reward, alpha=2 * problem.alpha)
        assert problem.kl(problem.reached) < 2e-3
        assert problem.kl(other.reached) > 0.01
    elif isinstance(problem, DenseProblem):
        other = DenseProblem(problem.pretrained, problem.reward, alpha=2 * problem.alpha)
        close(problem.kl(problem.optimum), problem.class_kl)
        assert problem.kl(other.optimum) > problem.class_kl + 0.05
    else:
        assert isinstance(problem, LineProblem)
        other = LineProblem(problem.pretrained, problem.reward, alpha=2 * problem.alpha)
        assert problem._kl(other.optimum[1]) > problem.class_kl + 0.05


# --- weighted samples -----------------------------------------------------------------------------------------------


def test_exact_weights_give_the_exact_histogram():
    """No sampling: all designs once, weighted by log p_pre + r / alpha."""
    for problem in (entry("infeasible").make(), tfbind(some_scores()), held()):
        weight = problem.pretrained_law.log() + (problem.table / problem.alpha).nan_to_num(nan=-math.inf)
        order = torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))
        histogram = problem.law_of(problem.chain.designs[order], weight[order] + 3)
        close(histogram.observed, histogram.expected)
        assert histogram.total_variation < 1e-10
        plain = problem.law_of(problem.chain.designs, problem.pretrained_law.log())  # twin: no weights
        assert plain.total_variation > 0.1


def held() -> TiltedProblem:
    """With a position held fixed, the designs are those of the free ones."""
    drawn = random_pairwise(4, 3)
    return TiltedProblem(drawn.pretrained.holding(torch.tensor([-1, 2, -1, -1])), drawn.reward, alpha=0.5)


@pytest.mark.parametrize("name", ["linear-gaussian", "initial-law"])
def test_cells_of_gaussian_problems_are_equally_likely(name, rng):
    """H0: n = 36,000 exact draws of each target; chi-square of 35 degrees, as a z with bar 8: false alarms < 1e-6."""
    problem, n = entry(name).make(), 36_000
    for fixed_prior, (mean, covariance) in ((False, problem.tilted), (True, problem.target)):
        noise = torch.randn(n, 2, generator=rng, dtype=torch.float64)
        x_0 = mean + noise @ torch.linalg.cholesky(covariance).T
        even = torch.zeros(n, dtype=torch.float64)

        def z(states: torch.Tensor, weight: torch.Tensor, fixed_prior: bool = fixed_prior) -> float:
            histogram = problem.law_of(states, weight, fixed_prior=fixed_prior)
            statistic = n * ((histogram.observed - histogram.expected) ** 2 / histogram.expected).sum().item()
            return (statistic - 35) / math.sqrt(70)

        assert abs(z(x_0, even)) < 8
        assert z(mean + (x_0 - mean) @ torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64), even) > 8
        assert z(x_0, problem.reward(x_0) / problem.alpha) > 8  # twin: tilted twice
    if name == "initial-law":
        assert z(x_0, even, fixed_prior=False) > 8  # twin: one target taken for the other


# --- the single problems --------------------------------------------------------------------------------------------


def test_pairwise_is_the_problem_of_the_issue():
    problem = entry("pairwise").make()
    assert (len(problem.chain.designs), problem.chain.steps, problem.alpha) == (4**6, 6, 0.5)
    close(kl_divergence(problem.tilted, problem.pretrained_law), 2.0, atol=1e-9)
    assert problem.class_kl == 0.0
    assert 0.005 < entry("pairwise-independent").make().class_kl < 0.05
    several = random_pairwise(4, 3, reveal="independent")
    assert several.class_kl == several.optimum().kl


def test_a_third_of_the_designs_is_infeasible_and_has_no_weight():
    problem = entry("infeasible").make()
    share = 1 - problem.feasible.double().mean().item()
    assert share == pytest.approx(1 / 3, abs=0.01)
    assert (problem.tilted[~problem.feasible] == 0).all()
    close(problem.tilted.sum(), 1.0)
    law = problem.chain.marginal(problem.pretrained)[problem.feasible]
    close(problem.kl(problem.pretrained), kl_divergence(law / law.sum(), problem.tilted[problem.feasible]))
    close(problem.mean_reward(problem.pretrained), law @ problem.table[problem.feasible] / law.sum())
    close(problem.target_mean_reward, problem.tilted[problem.feasible] @ problem.table[problem.feasible])
    assert problem.class_kl == 0.0


def test_the_class_optimum_approaches_the_tilted_law_as_one_over_steps():
    """Its KL falls as 1/K^2, its covariance's error as 1/K; not so where the process is not memoryless (twin)."""
    errors, kls = [], []
    for name in ("linear-gaussian-8", "linear-gaussian", "linear-gaussian-32", "linear-gaussian-64"):
        problem = entry(name).make()
        assert problem.pretrained.process.memoryless
        _, covariances = problem.class_optimum.marginals()
        wanted = problem.tilted[1]
        errors.append(((covariances[-1] - wanted).norm() / wanted.norm()).item())
        kls.append(problem.class_optimum.law_kl(*problem.tilted).item())
        close(kls[-1], problem.class_kl, atol=1e-8)
    slopes = [math.log2(before / after) for before, after in itertools.pairwise(errors)]
    assert all(0.85 < slope < 1.15 for slope in slopes)
    assert all(1.6 < math.log2(before / after) < 2.1 for before, after in itertools.pairwise(kls))
    missed = entry("initial-law").make()
    assert not missed.pretrained.process.memoryless
    away = missed.class_optimum.law_kl(*missed.tilted).item()
    assert away > 0.1 > 1000 * missed.class_kl


def test_the_two_targets_of_the_initial_law_problem_by_a_second_route():
    """(2)* as a mixture over x_1: the soft-optimal law given x_1 averaged over the fixed prior, by quadrature."""
    problem = entry("initial-law").make()
    chain, alpha, reward = problem.chain, problem.alpha, problem.reward
    gain, shift, noise = (
        torch.eye(2, dtype=torch.float64),
        torch.zeros(2, dtype=torch.float64),
        torch.zeros(2, 2).double(),
    )
    for m, u, p in zip(
        chain.gain, chain.shift, chain.noise, strict=True
    ):  # p_pre(x_0 | x_1) = N(gain x_1 + shift, noise)
        gain, shift, noise = m @ gain, m @ shift + u, m @ noise @ m.T + p
    precision = torch.linalg.inv(noise) + reward.curvature / alpha
    covariance = torch.linalg.inv(precision)
    on_x_1 = covariance @ torch.linalg.solve(noise, gain)
    centre = covariance @ (torch.linalg.solve(noise, shift) + reward.slope / alpha)
    mean, spread = problem.target
    close(mean, centre)  # x_1 is centred
    close(spread, covariance + on_x_1 @ chain.prior @ on_x_1.T)
    assert (problem.tilted[0] - mean).norm() > 0.2
    assert chain.prior.equal(torch.eye(2, dtype=torch.float64) * problem.pretrained.process.prior_std**2)


def test_affine_mean_reward_is_that_of_the_law():
    problem = entry("linear-gaussian").make()
    mean, covariance = problem.law(problem.pretrained)
    rows = torch.linalg.cholesky(covariance).T * math.sqrt(2)
    points = torch.cat([mean + rows, mean - rows])  # four points with these moments: exact for a quadratic
    close(problem.mean_reward(problem.pretrained), problem.reward(points).mean())
    close(problem.log_z, Chain.read(problem.pretrained).log_z(problem.reward, problem.alpha))


# --- the joint denoiser ---------------------------------------------------------------------------------------------


def every_state(letters: int, length: int) -> torch.Tensor:
    return torch.cartesian_prod(*[torch.arange(letters + 1)] * length).view(-1, length)


def window_tilt(denoiser: JointDenoiser, design: list[int]) -> float:
    """Equation (1) of the joint denoiser, one table after another."""
    spans = [(i, j) for i in range(denoiser.length) for j in range(i, denoiser.length)]
    return sum(
        table.squeeze()[tuple(design[i : j + 1])].item() for (i, j), table in zip(spans, denoiser.windows, strict=True)
    )


@pytest.mark.parametrize("both", [False, True])
def test_the_joint_denoiser_holds_the_conditionals_of_its_law(both):
    rng = torch.Generator().manual_seed(2)
    base = torch.rand(4, 4, 4, generator=rng, dtype=torch.float64)
    denoiser = JointDenoiser.of(base, both_strands=both)
    with torch.no_grad():
        for table in denoiser.windows:
            table += torch.randn(table.shape, generator=rng, dtype=torch.float64)
    law = base.clone()
    for design in itertools.product(range(4), repeat=3):
        f = window_tilt(denoiser, list(design))
        if both:
            f += window_tilt(denoiser, [3 - letter for letter in reversed(design)])
        law[design] *= math.exp(f)
    states, t = every_state(4, 3), torch.ones((), dtype=torch.float64)
    expected = TabularDenoiser.from_joint(law)(states, t).log_softmax(-1)
    masked = states == 4
    close(denoiser(states, t).log_softmax(-1)[masked], expected[masked])
    untilted = TabularDenoiser.from_joint(base)(states, t).log_softmax(-1)  # twin: without the tables
    assert (untilted - expected)[masked].abs().max() > 0.5


def test_values_over_windows_hold_every_soft_value_of_the_law_and_are_learned_beside_its_policy():
    """Rough rewards, as many numbers as designs. Twins: another alpha; the law's own tables taken for the value's."""
    scores = some_scores(3, strands=False)
    problem = tfbind(scores, alpha=0.2)
    policy = problem.tunable()
    with torch.no_grad():
        for table in policy.denoiser.windows:
            table += 1.0  # the policy's, not the value's
    state = PathConsistency().init(policy, [Anchor(problem.pretrained, problem.alpha)])
    network, exact, t = state.value, problem.soft_values(), torch.ones(())
    known = ~exact.isnan().all(0)
    states, value = problem.chain.states, exact.nan_to_num(nan=-math.inf).amax(0)  # alike at all times
    close(network(states, t), torch.zeros(len(states)))
    (whole,) = (table for table in network.law.windows if table.numel() == 64)
    with torch.no_grad():
        whole += problem.table.view(4, 4, 4) / problem.alpha
    close(problem.alpha * network(states, t)[known], value[known])
    assert (network(states, t)[known] - value[known] / (2 * problem.alpha)).abs().max() > 0.5
    optimum = problem.pretrained.frozen_copy()
    optimum.denoiser = JointDenoiser.of(problem.tilted.view(4, 4, 4))
    path = rollout(optimum, 64, torch.Generator().manual_seed(0), references=[problem.pretrained])
    along = torch.stack([problem.alpha * network(x_t, t).double() for x_t in path.states[:-1]])
    reward = torch.tensor(problem.reward(problem.pretrained.codec.decode(path.x_0)), dtype=torch.float64)
    for span in (None, 1):
        close(path_consistency_loss(path.log_ratio[0], along, reward, alpha=problem.alpha, span=span), 0.0, atol=1e-12)
        assert path_consistency_loss(path.log_ratio[0], 0.5 * along, reward, alpha=problem.alpha, span=span) > 1e-3
    assert any(parameter is whole for parameter in state.optimiser.param_groups[1]["params"])


def test_the_joint_denoiser_gives_gradients_to_its_tables():
    denoiser = JointDenoiser.of(torch.rand(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    states, t = every_state(3, 2), torch.ones((), dtype=torch.float64)
    direction = [
        torch.randn(w.shape, generator=torch.Generator().manual_seed(1), dtype=w.dtype) for w in denoiser.windows
    ]

    def number() -> torch.Tensor:
        logits = denoiser(states, t).log_softmax(-1)
        return (logits * torch.arange(3.0)).where((states == 3)[..., None], 0).sum()

    gradient = torch.autograd.grad(number(), list(denoiser.windows))
    along = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            for table, d in zip(denoiser.windows, direction, strict=True):
                table += step * d
            values.append(number())
            for table, d in zip(denoiser.windows, direction, strict=True):
                table -= step * d
    close(along, (values[0] - values[1]) / 2e-5, atol=1e-6)
    assert abs(along) > 0.1


def test_sums_that_are_kept_follow_the_tables_however_they_change():
    """Kept while nothing changed (twin: another run of the sums is another tensor), in copies and in what is loaded."""
    denoiser, other = (JointDenoiser.of(torch.rand(3, 3, dtype=torch.float64)) for _ in range(2))
    denoiser.requires_grad_(False)
    first = denoiser.log_mass()
    assert denoiser.log_mass() is first
    assert denoiser._sums() is not first
    clone = copy.deepcopy(denoiser)
    denoiser.windows[0].data += 1
    for changed, kept in ((denoiser, clone), (clone, denoiser)):
        close(changed.log_mass(), changed._sums(), atol=0)
        assert (changed.log_mass() - kept.log_mass()).abs().max() > 0.1
    denoiser.log_law[0, 0] += 1
    close(denoiser.log_mass(), denoiser._sums(), atol=0)
    denoiser.load_state_dict(other.state_dict())
    close(denoiser.log_mass(), other.log_mass().detach(), atol=0)
    denoiser.requires_grad_(True)
    assert denoiser.log_mass().requires_grad
    assert denoiser.to("meta").log_mass().is_meta


def test_the_joint_denoiser_knows_no_relaxed_tokens_and_survives_zeros():
    denoiser = JointDenoiser.of(torch.tensor([[0.5, 0.0], [0.0, 0.0]], dtype=torch.float64))
    t = torch.ones((), dtype=torch.float64)
    close(denoiser(torch.tensor([[2, 2]]), t).softmax(-1)[0], [[1.0, 0.0], [1.0, 0.0]])
    close(denoiser(torch.tensor([[1, 2]]), t).softmax(-1)[0, 1], [0.5, 0.5])  # no design starts with this letter
    with pytest.raises(UnsupportedError, match="got relaxed ones"):
        denoiser(torch.zeros(1, 2, 3), t)


# --- TFBind8 --------------------------------------------------------------------------------------------------------


def test_the_pretrained_law_is_a_markov_chain_of_the_lower_half():
    scores = some_scores(3)
    problem = tfbind(scores)
    half = sorted(scores.values())[(len(scores) - 1) // 2]
    seen = [d for d in scores if scores[d] <= half]
    first = {a: sum(d[0] == a for d in seen) + 0.5 for a in LETTERS}
    law = []
    for design in problem.pretrained.codec.decode(problem.chain.designs):
        p = first[design[0]] / sum(first.values())
        for i in range(2):
            row = {b: sum(d[i : i + 2] == design[i] + b for d in seen) + 0.5 for b in LETTERS}
            p *= row[design[i + 1]] / sum(row.values())
        law.append(p)
    close(problem.pretrained_law, law)
    upper = [scores[d] > half for d in problem.pretrained.codec.decode(problem.chain.designs)]
    assert problem.pretrained_law[torch.tensor(upper)].sum() < 0.5  # it prefers what it has seen
    close(problem.table, [scores[d] for d in problem.pretrained.codec.decode(problem.chain.designs)])


@pytest.mark.parametrize("strands", [True, False])
def test_what_is_tuned_for_tfbind_contains_the_tilted_law(strands):
    problem = tfbind(some_scores(3, strands=strands))
    policy = problem.tunable()
    assert policy.denoiser.both_strands is strands
    with torch.no_grad():  # the widest table alone can hold r / alpha; half of it, where both strands are summed
        policy.denoiser.windows[2] += (problem.table / problem.alpha).view(4, 4, 4) / (2 if strands else 1)
    close(problem.kl(policy), 0.0)
    assert problem.class_kl == 0.0
    with torch.no_grad():
        policy.denoiser.windows[2] += (problem.table / problem.alpha).view(4, 4, 4) / 4
    assert problem.kl(policy) > 0.02  # twin: tilted too much


def test_tfbind8_of_six6_has_one_and_a_half_nats_to_remove():
    try:
        table = load("tfbind8/SIX6_REF_R1")
    except DataError as error:
        pytest.skip(f"tfbind8 data: {error}")
    problem = entry("tfbind8").make(dict(zip(table.sequences, table.scores.tolist(), strict=True)))
    start = problem.kl(problem.tunable())
    assert start == pytest.approx(1.55, abs=0.01)
    assert problem.class_kl == 0.0
    assert problem.pretrained_law @ problem.table < 0.41 < 0.73 < problem.target_mean_reward
    policy, target = problem.tunable(), problem.tilted.log().view([4] * 8)
    optimiser = torch.optim.Adam(policy.parameters(), lr=0.03)
    for _ in range(100):  # the exact gradient of the joint law's KL: nothing is sampled
        log_law = (policy.denoiser.log_law + policy.denoiser.tilt()).flatten().log_softmax(0).view_as(target)
        loss = (log_law.exp() * (log_law - target)).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    log_law = (policy.denoiser.log_law + policy.denoiser.tilt()).flatten().softmax(0)
    close(problem.kl(policy), kl_divergence(log_law.detach(), problem.tilted))
    assert problem.kl(policy) < 0.01 * start


# --- errors ---------------------------------------------------------------------------------------------------------


def test_unknown_names_and_missing_scores_say_so():
    with pytest.raises(ConfigError, match="did you mean 'pairwise'"):
        entry("pairwse")
    with pytest.raises(ConfigError, match="a score for each design for 'tfbind8'; got none"):
        entry("tfbind8").make()
    with pytest.raises(ConfigError, match="no scores for 'pairwise'"):
        entry("pairwise").make({"AAAAAA": 1.0})
    scores = some_scores(3)
    del scores["ACG"]
    with pytest.raises(DataError, match="all 64 sequences of length 3; got 63"):
        tfbind(scores)
