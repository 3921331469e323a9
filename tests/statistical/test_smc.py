"""Sequential Monte Carlo and refinement: unbiased Z, equal weights, carried weights, and exact invariance.

Bars: 5 standard errors (two-sided false alarm 5.7e-7 each) unless a test says otherwise; each has a known-bad twin.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import scipy.stats
import torch

from difftilt.core.codec import TokenCodec
from difftilt.core.noise import Cosine
from difftilt.core.policy import Policy
from difftilt.core.reward import score
from difftilt.core.schedule import uniform_grid
from difftilt.core.stats import effective_sample_size, log_mean_exp
from difftilt.core.trajectory import rollout
from difftilt.metrics.log_z import restart, restart_point, systematic
from difftilt.networks.conditioned import conditioned
from difftilt.problems.landscapes import TableReward, TabularDenoiser, random_pairwise
from difftilt.problems.linear_gaussian import Chain, LinearGaussian, Quadratic
from difftilt.problems.tilted import TiltedProblem
from difftilt.processes.gaussian import Gaussian
from difftilt.processes.masked import Masked
from difftilt.rewards.likelihood import LabelLikelihood
from difftilt.samplers.classifier_guidance import GuidedPolicy
from difftilt.samplers.refine import Refine
from difftilt.samplers.smc import SMC, resample

ALPHA = 0.5
PLACES = 3 ** torch.arange(3, -1, -1)


@pytest.fixture(scope="module")
def problem() -> TiltedProblem:
    """4 tokens, 3 letters, one token per step."""
    return random_pairwise(4, 3, alpha=ALPHA, target_kl=1.0, seed=1)


@pytest.fixture(scope="module")
def mild() -> TiltedProblem:
    """The same with a smaller tilt, where the bar on the standard error is met by 100,000 particles."""
    return random_pairwise(4, 3, alpha=ALPHA, target_kl=0.4, seed=1)


def arbitrary(x_t: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
    """A twist that knows nothing: some function of the state, far from the value."""
    return 0.5 * torch.sin(5.0 * (x_t.double() * torch.arange(1, x_t.shape[1] + 1)).sum(1) + 3 * t)


def optimal_policy(problem: TiltedProblem) -> Policy:
    policy = problem.tunable().requires_grad_(False)
    policy.denoiser = type(problem.pretrained.denoiser).from_joint(problem.tilted.view([3] * 4))
    return policy


def z_hats(log_weight: torch.Tensor, particles: int) -> torch.Tensor:
    """Z-hat of every population."""
    return torch.stack([log_mean_exp(row).exp() for row in log_weight.view(-1, particles)])


CASES = {
    "an arbitrary twist": ({}, arbitrary),
    "an arbitrary twist, resampled at every step": ({"ess_fraction": 1.0}, arbitrary),
    "an arbitrary twist, never resampled": ({"ess_fraction": 0.0}, arbitrary),
    "an arbitrary twist, tempered": ({"tempering": 2.0}, arbitrary),
    "the plug-in twist": ({}, None),
    "bootstrap": ({"kind": "bootstrap"}, arbitrary),
}


@pytest.mark.parametrize("case", CASES)
def test_z_hat_is_unbiased_for_any_twist(mild: TiltedProblem, case: str) -> None:
    """H0: E[Z-hat] = Z and E[mean w f] = Z E*[f], over 2,048 populations of 64; relative standard error <= 0.5 %.

    Twins: the log is biased (Z-hat of 8 particles, bootstrap); the next test drops the proposal's correction.
    """
    problem = mild
    settings, value = CASES[case]
    sampler = SMC(alpha=ALPHA, particles=64, **settings)
    rng = torch.Generator().manual_seed(0)
    kept = sampler(problem.pretrained, problem.reward, 64 * 2048, rng, value=value)
    z = math.exp(problem.log_z)
    found = z_hats(kept.log_weight, 64)
    error = (found.std() / len(found) ** 0.5).item()
    assert error / z <= 0.005
    assert abs(found.mean().item() - z) < 5 * error
    assert kept.log_z == pytest.approx(math.log(found.mean().item()))
    marked = (kept.x_0[:, 0] == 0).double()
    share = (kept.log_weight.exp() * marked).view(-1, 64).mean(1)
    exact = z * problem.tilted @ (problem.chain.designs[:, 0] == 0).double()
    assert abs(share.mean() - exact) < 5 * share.std() / len(share) ** 0.5
    if case == "bootstrap":
        logs = z_hats(kept.log_weight, 8).log()
        assert abs(logs.mean() - problem.log_z) > 5 * logs.std() / len(logs) ** 0.5


def test_a_weight_without_its_correction_is_seen_by_the_same_bar(problem: TiltedProblem) -> None:
    """Twin of the test above: a guided proposal without p_pre / q (pitfall 45) biases Z-hat, with it there is none."""
    guided = GuidedPolicy(problem.pretrained, problem.value(), alpha=2 * ALPHA, tokens="exact")
    z = math.exp(problem.log_z)

    def deviation(policy: Policy, **settings: Any) -> float:
        rng = torch.Generator().manual_seed(0)
        kept = SMC(alpha=ALPHA, particles=64, **settings)(policy, problem.reward, 64 * 256, rng, value=arbitrary)
        found = z_hats(kept.log_weight, 64)
        return abs(found.mean().item() - z) / (found.std() / len(found) ** 0.5).item()

    assert deviation(problem.pretrained, proposal=guided) < 5
    assert deviation(guided) > 10


@pytest.mark.parametrize("ess_fraction", [0.0, 0.5, 1.0])
def test_the_exact_twist_with_its_own_proposal_gives_equal_weights(problem: TiltedProblem, ess_fraction: float) -> None:
    """To 1e-6 nats, and equal to log Z. Twins: the pretrained proposal, the value at another temperature, tempered."""
    rng = torch.Generator().manual_seed(0)
    own = {"alpha": ALPHA, "ess_fraction": ess_fraction, "proposal": optimal_policy(problem), "tempering": 0.0}

    def weights(**settings: Any) -> torch.Tensor:
        sampler = SMC(**{**own, **settings})
        return sampler(problem.pretrained, problem.reward, 200, rng, value=problem.value()).log_weight

    assert (weights() - problem.log_z).abs().max() < 1e-6
    if ess_fraction == 0:
        assert weights(proposal=None).std() > 0.5
        assert weights(alpha=2 * ALPHA).std() > 0.05
    if ess_fraction == 1:
        assert weights(tempering=2.0).std() > 0.01


def test_the_exact_twist_alone_gives_equal_weights_at_the_end_of_each_path(problem: TiltedProblem) -> None:
    """Telescoping: with p_pre as proposal and never resampling the weight is e^{r/alpha}, whatever the twist."""
    rng = torch.Generator().manual_seed(0)
    for value in (problem.value(), arbitrary):
        kept = SMC(alpha=ALPHA, ess_fraction=0.0)(problem.pretrained, problem.reward, 50, rng, value=value)
        reward = score(problem.reward, problem.pretrained.codec, kept.x_0).value
        torch.testing.assert_close(kept.log_weight, reward / ALPHA, rtol=0, atol=1e-9)


def test_one_particle_is_the_proposal(problem: TiltedProblem) -> None:
    """H0: 4,000 populations of one follow the proposal; false alarm 1e-7. Twin: populations of four do not."""
    proposal = GuidedPolicy(problem.pretrained, problem.value(), alpha=2 * ALPHA, tokens="exact")
    expected = 4000 * problem.chain.marginal(proposal)
    cells = expected >= 10

    def tail(particles: int) -> float:
        rng = torch.Generator().manual_seed(0)
        sampler = SMC(alpha=ALPHA, particles=particles, proposal=proposal, ess_fraction=1.0)
        x_0 = sampler(problem.pretrained, problem.reward, 4000, rng, value=arbitrary).x_0
        counts = torch.bincount(x_0 @ PLACES, minlength=81).double()
        observed = torch.cat([counts[cells], counts[~cells].sum()[None]])
        wanted = torch.cat([expected[cells], expected[~cells].sum()[None]])
        return scipy.stats.chi2.sf(((observed - wanted) ** 2 / wanted).sum().item(), len(wanted) - 1)

    assert tail(1) > 1e-7
    assert tail(4) < 1e-7


@pytest.mark.parametrize("ess_fraction", [0.0, 0.5])
def test_particles_that_can_become_nothing_feasible_die_and_stay_dead(
    problem: TiltedProblem, ess_fraction: float
) -> None:
    """Exact values are -inf there. H0: E[Z-hat] = Z over 400 populations of 64. Twin: Z of all designs."""
    designs = problem.pretrained.codec.decode(problem.chain.designs)
    table = {d: v for d, v in zip(designs, problem.table.tolist(), strict=True) if not d.startswith(designs[0][0])}
    hard = TiltedProblem(problem.pretrained, TableReward(table), alpha=ALPHA)
    rng = torch.Generator().manual_seed(0)
    sampler = SMC(alpha=ALPHA, ess_fraction=ess_fraction)
    kept = sampler(hard.pretrained, hard.reward, 64 * 400, rng, value=hard.value())
    dead = kept.x_0[:, 0] == problem.chain.designs[0, 0]
    assert not kept.log_weight.isnan().any()
    assert torch.equal(torch.isneginf(kept.log_weight), dead)
    found = z_hats(kept.log_weight, 64)
    error = (found.std() / 400**0.5).item()
    assert abs(found.mean().item() - math.exp(hard.log_z)) < 5 * error
    assert abs(found.mean().item() - math.exp(problem.log_z)) > 5 * error


# --- resampling -------------------------------------------------------------------------------------------------------


def test_weights_are_carried_until_a_population_needs_resampling() -> None:
    """Even populations keep rows and weights; uneven ones go on with their mean weight; sums never change."""
    rng = torch.Generator().manual_seed(0)
    even, uneven, dead = torch.zeros(8), torch.randn(8, generator=rng) * 3, torch.full((8,), -torch.inf)
    log_weight = torch.cat([even + 0.1 * torch.randn(8, generator=rng), uneven, dead, even[:1]]).double()
    sizes = [8, 8, 8, 1]
    parents, after = resample(log_weight, sizes, 0.5, rng)
    assert effective_sample_size(log_weight[8:16]) < 4
    keep = torch.cat([torch.arange(8), torch.arange(16, 25)])
    assert torch.equal(parents[keep], keep)
    assert torch.equal(after[keep], log_weight[keep])
    assert parents[8:16].min() >= 8
    assert parents[8:16].max() < 16
    assert parents[8:16].unique().numel() < 8
    torch.testing.assert_close(after[8:16], log_mean_exp(log_weight[8:16]).expand(8))


def test_steering_is_not_lost_between_resamplings() -> None:
    """Pitfall 41: one uneven step that needs no resampling, Bernoulli reward; the weighted share is 0.731.

    H0: 400 populations of 64, weighted share e / (1 + e). Twin: the unweighted share of the same designs is 0.5.
    """
    policy = Policy(TabularDenoiser(2, 1), Masked(2), TokenCodec("AC", 1), (1,), steps=1).eval()
    reward = TableReward({"A": 0.0, "C": 1.0})
    kept = SMC(alpha=1.0, kind="bootstrap")(policy, reward, 64 * 400, torch.Generator().manual_seed(0))
    shares = kept.x_0[:, 0].double().view(-1, 64)
    weight = kept.log_weight.exp().view(-1, 64)
    target, z = math.e / (1 + math.e), (1 + math.e) / 2
    moment = (weight * (shares - target)).mean(1) / z
    assert abs(moment.mean()) < 5 * moment.std() / 400**0.5
    assert abs(shares.mean() - 0.5) < 5 * 0.5 / (64 * 400) ** 0.5


def test_rewards_of_any_sign_and_size_steer() -> None:
    """Pitfalls 38 to 40: thousands of nats below or above zero give the same designs and weights, shifted."""
    policy = Policy(TabularDenoiser(2, 3), Masked(2), TokenCodec("AC", 3), (3,), steps=3).eval()
    letters = ["".join(word) for word in itertools.product("AC", repeat=3)]
    kept = {}
    for level in (-3000.0, 0.0, 3000.0):
        reward = TableReward({word: level + word.count("C") for word in letters})

        def value(x_t: torch.Tensor, t: torch.Tensor, cond: Any = None, level: float = level) -> torch.Tensor:
            return level + (x_t == 1).sum(-1).double()

        kept[level] = SMC(alpha=0.5, particles=50)(policy, reward, 100, torch.Generator().manual_seed(0), value=value)
    for level in (-3000.0, 3000.0):
        assert torch.equal(kept[level].x_0, kept[0.0].x_0)
        torch.testing.assert_close(kept[level].log_weight - 2 * level, kept[0.0].log_weight, rtol=0, atol=1e-8)
        assert kept[level].log_z == pytest.approx(kept[0.0].log_z + 2 * level)


def test_systematic_resampling_spreads_offspring_less_than_multinomial() -> None:
    """Pitfall 42: the variance of an offspring count, averaged over particles: 0.97 when multinomial."""
    rng = torch.Generator().manual_seed(0)
    log_weight = 0.2 * torch.randn(64, generator=rng, dtype=torch.float64)

    def spread(parents: Any) -> float:
        counts = torch.stack([torch.bincount(parents(), minlength=64) for _ in range(500)]).double()
        return counts.var(0).mean().item()

    assert spread(lambda: systematic(log_weight, rng)) < 0.3
    weight = log_weight.softmax(0)
    assert spread(lambda: torch.multinomial(weight, 64, replacement=True, generator=rng)) > 0.8


def test_populations_of_different_conditions_never_compete() -> None:
    """Pitfall 43: two conditions whose values differ by 40 nats; each keeps all of its rows, in order.

    Twin: the same rows as one population end with the better condition's designs alone.
    """

    class Told(TabularDenoiser):
        def forward(self, x_t: Any, t: Any, cond: Any = None) -> torch.Tensor:
            logits = super().forward(x_t, t, None)
            if cond is None:
                return logits
            sign = cond["which"][:, None] * 2.0 - 1
            return logits + 50 * sign[..., None] * torch.tensor([-1.0, 1.0])

    policy = Policy(Told(2, 3), Masked(2), TokenCodec("AC", 3), (3,), steps=3).eval()
    reward = TableReward({"".join(w): 20.0 * "".join(w).count("C") for w in itertools.product("AC", repeat=3)})
    which = torch.tensor([0, 1] * 20)

    def value(x_t: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        return 20.0 * (x_t == 1).sum(-1).double()

    rng = torch.Generator().manual_seed(0)
    kept = SMC(alpha=1.0, particles=8)(policy, reward, 40, rng, cond={"which": which}, value=value)
    assert torch.equal(kept.x_0, which[:, None].expand(-1, 3))
    assert kept.log_z is None
    same = SMC(alpha=1.0, particles=8)(policy, reward, 16, rng, cond={"which": which[1::2][:16]}, value=value)
    assert same.log_z == pytest.approx(60.0)
    parents, _ = resample(torch.tensor([0.0, 40.0] * 20, dtype=torch.float64), [40], 0.5, rng)
    assert which[parents].all()


def test_each_label_reaches_its_bayes_posterior_without_training() -> None:
    """H0, of r = log p(y | x): E[Z-hat] = p(y), weighted designs follow p(x | y), over 80 populations of 64.

    Shares of first letters within 5 s.e. Twin: p(y) and posterior of the other label.
    """
    policy = conditioned(random_pairwise(4, 3, alpha=1.0, target_kl=1.0, seed=0).pretrained, 2).frozen_copy()
    weight = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def log_likelihood(designs: list[str]) -> torch.Tensor:
        return weight[torch.arange(4), policy.codec.encode(designs)].sum(1).log_softmax(-1)

    reward = LabelLikelihood(log_likelihood)
    exact = {
        y: TiltedProblem(policy, reward.under({"y": torch.full((81,), y)}), alpha=1.0, cond={"y": torch.tensor([y])})
        for y in (0, 1)
    }
    assert math.exp(exact[0].log_z) + math.exp(exact[1].log_z) == pytest.approx(1)
    for y in (0, 1):
        rng = torch.Generator().manual_seed(y)
        kept = SMC(alpha=1.0)(policy, reward, 64 * 80, rng, cond={"y": torch.full((64 * 80,), y)})
        found = z_hats(kept.log_weight, 64)
        first = (kept.x_0[:, 0] == 0).double()

        def deviation(label: int, found: Any = found, first: Any = first, kept: Any = kept) -> float:
            share = exact[label].tilted[exact[label].chain.designs[:, 0] == 0].sum()
            moment = (kept.log_weight.exp() * (first - share)).view(-1, 64).mean(1)
            errors = found - math.exp(exact[label].log_z), moment
            return max((e.mean().abs() / (e.std() / 80**0.5)).item() for e in errors)

        assert deviation(y) < 5
        assert deviation(1 - y) > 5


# --- Gaussian chains --------------------------------------------------------------------------------------------------


def line(steps: int = 5, **settings: Any) -> LinearGaussian:
    one = torch.ones(1, dtype=torch.float64)
    process = Gaussian(Cosine(0.7), sigma_min=0.1, prediction="x_0", **settings)  # x_1 tells much about x_0
    return LinearGaussian(0.8 * one, 0.6 * one[:, None], process, uniform_grid(steps))


GAUSSIAN_REWARD = Quadratic.reward(*(torch.tensor(x, dtype=torch.float64) for x in ([[0.4]], [2.0], [0.1])))


@pytest.mark.parametrize("guided", [False, True])
def test_the_tilted_law_of_a_chain_with_memory_is_reached_prior_included(guided: bool) -> None:
    """H0: Z-hat and the weighted mean of 300 populations of 64 are those of (2), not of (2)*.

    Twin: the mean of (2)* is rejected.
    """
    problem = line()
    policy, value = problem.pretrained(), problem.value(GAUSSIAN_REWARD, 0.5)
    proposal = GuidedPolicy(policy, value, alpha=0.5) if guided else None
    rng = torch.Generator().manual_seed(0)
    kept = SMC(alpha=0.5, particles=64, proposal=proposal)(policy, GAUSSIAN_REWARD, 64 * 300, rng, value=value)
    chain = Chain.read(policy)
    z = chain.log_z(GAUSSIAN_REWARD, 0.5).exp().item()
    found = z_hats(kept.log_weight, 64)
    assert abs(found.mean().item() - z) < 5 * (found.std() / 300**0.5).item()
    assert found.std() / 300**0.5 < 0.005 * z

    def deviation(mean: float) -> float:
        moment = (kept.log_weight.exp() * (kept.x_0[:, 0] - mean)).view(-1, 64).mean(1)
        return (moment.mean().abs() / (moment.std() / 300**0.5)).item()

    assert deviation(chain.tilted(GAUSSIAN_REWARD, 0.5)[0].item()) < 5
    assert deviation(chain.optimum(GAUSSIAN_REWARD, 0.5).marginals()[0][-1].item()) > 5


# --- refinement -------------------------------------------------------------------------------------------------------


def moved_law(problem: TiltedProblem, *, tilt: float, moves: int, count: int = 6000) -> torch.Tensor:
    """Counts of designs after moves from paths of exactly the tilted law."""
    rng = torch.Generator().manual_seed(0)
    policy = problem.pretrained
    states = rollout(optimal_policy(problem), count, rng).states  # one token per step: the tilted path law
    value = score(problem.reward, policy.codec, states[-1]).value
    for _ in range(moves):
        value = restart(policy, problem.reward, states, value, restart_point(policy.steps, rng), tilt, rng)
    assert torch.equal(value, score(problem.reward, policy.codec, states[-1]).value)
    return torch.bincount(states[-1] @ PLACES, minlength=81).double()


def test_a_restart_leaves_the_tilted_law_as_it_is(problem: TiltedProblem) -> None:
    """H0: after 12 moves from p* 6,000 designs still follow p*; false alarm 1e-7. Twin: accepted at another tilt."""

    def tail(tilt: float) -> float:
        counts = moved_law(problem, tilt=tilt, moves=12)
        expected = 6000 * problem.tilted
        cells = expected >= 10
        observed = torch.cat([counts[cells], counts[~cells].sum()[None]])
        wanted = torch.cat([expected[cells], expected[~cells].sum()[None]])
        return scipy.stats.chi2.sf(((observed - wanted) ** 2 / wanted).sum().item(), len(wanted) - 1)

    assert tail(1 / ALPHA) > 1e-7
    assert tail(0.7 / ALPHA) < 1e-7
    assert tail(1.4 / ALPHA) < 1e-7


def test_refinement_forgets_where_it_started(problem: TiltedProblem) -> None:
    """After 150 moves 4,000 designs follow p* (false alarm 1e-7); after 2 they do not (twin)."""

    def tail(moves: int) -> float:
        rng = torch.Generator().manual_seed(0)
        x_0 = Refine(alpha=ALPHA, moves=moves)(problem.pretrained, problem.reward, 4000, rng).x_0
        counts = torch.bincount(x_0 @ PLACES, minlength=81).double()
        expected = 4000 * problem.tilted
        cells = expected >= 10
        observed = torch.cat([counts[cells], counts[~cells].sum()[None]])
        wanted = torch.cat([expected[cells], expected[~cells].sum()[None]])
        return scipy.stats.chi2.sf(((observed - wanted) ** 2 / wanted).sum().item(), len(wanted) - 1)

    assert tail(150) > 1e-7
    assert tail(2) < 1e-7


def test_refinement_tilts_the_prior_of_a_chain_with_memory_too() -> None:
    """H0: after 100 moves the mean of 4,000 designs is that of (2) within 5.5 s.e. Twin: the mean of (2)*."""
    problem = line()
    chain = Chain.read(problem.pretrained())
    rng = torch.Generator().manual_seed(0)
    x_0 = Refine(alpha=0.5, moves=100)(problem.pretrained(), GAUSSIAN_REWARD, 4000, rng).x_0[:, 0]
    error = (x_0.std() / 4000**0.5).item()
    assert abs(x_0.mean().item() - chain.tilted(GAUSSIAN_REWARD, 0.5)[0].item()) < 5.5 * error
    assert abs(x_0.mean().item() - chain.optimum(GAUSSIAN_REWARD, 0.5).marginals()[0][-1].item()) > 5.5 * error


def test_infeasible_paths_move_to_feasible_ones_and_never_back() -> None:
    policy = Policy(TabularDenoiser(2, 3), Masked(2), TokenCodec("AC", 3), (3,), steps=3).eval()
    reward = TableReward({"CCC": -5.0, "CCA": -5.0})
    rng = torch.Generator().manual_seed(0)
    kept = Refine(alpha=0.1, moves=200)(policy, reward, 300, rng)
    assert (kept.x_0[:, :2] == 1).all()
    assert (kept.log_weight == 0).all()
    nothing = Refine(alpha=0.1, moves=3)(policy, TableReward({}), 10, rng)
    assert torch.isneginf(nothing.log_weight).all()
