"""Laws of steering samplers computed without sampling, on enumerated chains and linear-Gaussian ones.

Where a sampler's law is that of a policy (guidance) its kernels are enumerated or read off; where it is a selection
among M draws (value-weighted) the law is an integral, propagated through the chain.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import scipy.stats
import torch

from difftilt.core.noise import Cosine
from difftilt.core.policy import Policy
from difftilt.core.schedule import uniform_grid
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.problems.landscapes import TableReward, random_pairwise
from difftilt.problems.linear_gaussian import Chain, LinearGaussian, Quadratic
from difftilt.problems.selection import selection_law, value_weighted_law
from difftilt.problems.tilted import TiltedProblem, kl_divergence
from difftilt.processes.gaussian import Gaussian
from difftilt.samplers.classifier_guidance import ClassifierGuidance, GuidedPolicy
from difftilt.samplers.steering import draw
from difftilt.samplers.value_weighted import ValueWeighted
from difftilt.values.plug_in import PlugIn
from difftilt.values.regression import Regression, fit_value

ALPHA = 0.5
MANY = (8, 16, 32, 64)


@pytest.fixture(scope="module")
def problem() -> TiltedProblem:
    """4 tokens, 3 letters, one token per step."""
    return random_pairwise(4, 3, alpha=ALPHA, target_kl=1.0, seed=1)


def slope(errors: list[float]) -> float:
    """Of log error against log M, by least squares."""
    x = torch.tensor(MANY, dtype=torch.float64).log()
    y = torch.tensor(errors, dtype=torch.float64).abs().log()
    x, y = x - x.mean(), y - y.mean()
    return ((x @ y) / (x @ x)).item()


# --- value-weighted sampling: law 6 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("candidates", [1, 2, 4])
def test_the_selection_law_is_the_sum_over_all_draws(candidates: int) -> None:
    """Brute force over all ``5^M`` ordered draws."""
    rng = torch.Generator().manual_seed(0)
    p = torch.rand(2, 5, generator=rng, dtype=torch.float64)
    p /= p.sum(1, keepdim=True)
    log_weight = 3 * torch.randn(2, 5, generator=rng, dtype=torch.float64)
    expected = torch.zeros_like(p)
    for drawn in itertools.product(range(5), repeat=candidates):
        chance = p[:, list(drawn)].prod(1)
        share = log_weight[:, list(drawn)].softmax(1)
        for place, outcome in enumerate(drawn):
            expected[:, outcome] += chance * share[:, place]
    torch.testing.assert_close(selection_law(p, log_weight, candidates), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(4, 3, 1.0), (6, 4, 2.0)], ids=str)
def test_errors_of_total_variation_and_reward_fall_as_one_over_m_and_kl_as_its_square(
    size: tuple[int, int, float],
) -> None:
    length, letters, kl = size
    problem = random_pairwise(length, letters, alpha=ALPHA, target_kl=kl, seed=1)
    laws = [value_weighted_law(problem, problem.soft_values(), m) for m in MANY]
    for law in laws:
        assert law.sum().item() == pytest.approx(1.0, abs=1e-10)
    assert slope([(law - problem.tilted).abs().sum().item() for law in laws]) == pytest.approx(-1, abs=0.15)
    assert slope([((law - problem.tilted) @ problem.table).item() for law in laws]) == pytest.approx(-1, abs=0.15)
    assert slope([kl_divergence(law, problem.tilted) for law in laws]) == pytest.approx(-2, abs=0.3)


def test_one_candidate_is_the_pretrained_law(problem: TiltedProblem) -> None:
    law = value_weighted_law(problem, problem.soft_values(), 1)
    torch.testing.assert_close(law, problem.pretrained_law, rtol=0, atol=1e-12)


def test_values_at_another_temperature_do_not_reach_the_tilted_law(problem: TiltedProblem) -> None:
    """Twin: with doubled values the error stops falling."""
    errors = [(value_weighted_law(problem, 2 * problem.soft_values(), m) - problem.tilted).abs().sum() for m in MANY]
    assert slope([error.item() for error in errors]) > -0.3


def test_the_sampler_follows_the_law_computed_for_it(problem: TiltedProblem) -> None:
    """H0: 8,000 designs of M = 4 follow the computed law; Pearson statistic on cells of expectation >= 10.

    False alarm 1e-7, by the tail of the chi-square. Twins: the laws of M = 3 and 5 are rejected.
    """
    rng = torch.Generator().manual_seed(0)
    sampler = ValueWeighted(alpha=ALPHA, candidates=4)
    x_0 = sampler(problem.pretrained, problem.reward, 8000, rng, value=problem.value()).x_0
    counts = torch.bincount(x_0 @ 3 ** torch.arange(3, -1, -1), minlength=81).double()

    def tail(candidates: int) -> float:
        expected = 8000 * value_weighted_law(problem, problem.soft_values(), candidates)
        cells = expected >= 10
        observed = torch.cat([counts[cells], counts[~cells].sum()[None]])
        wanted = torch.cat([expected[cells], expected[~cells].sum()[None]])
        return scipy.stats.chi2.sf(((observed - wanted) ** 2 / wanted).sum().item(), len(wanted) - 1)

    assert tail(4) > 1e-7
    assert tail(3) < 1e-7
    assert tail(5) < 1e-7


def test_another_proposal_is_corrected(problem: TiltedProblem) -> None:
    """With the soft-optimal policy as proposal and exact values all candidates weigh the same: any M samples p*.

    H0: 6,000 designs follow p*; false alarm 1e-7. Twin: from uncorrected weights (the same draws, kept by value alone)
    the law is another.
    """
    optimal = optimal_policy(problem)

    def tail(sampler: ValueWeighted, policy: Policy) -> float:
        rng = torch.Generator().manual_seed(0)
        x_0 = sampler(policy, problem.reward, 6000, rng, value=problem.value()).x_0
        counts = torch.bincount(x_0 @ 3 ** torch.arange(3, -1, -1), minlength=81).double()
        expected = 6000 * problem.tilted
        cells = expected >= 10
        observed = torch.cat([counts[cells], counts[~cells].sum()[None]])
        wanted = torch.cat([expected[cells], expected[~cells].sum()[None]])
        return scipy.stats.chi2.sf(((observed - wanted) ** 2 / wanted).sum().item(), len(wanted) - 1)

    assert tail(ValueWeighted(alpha=ALPHA, candidates=3, proposal=optimal), problem.pretrained) > 1e-7
    assert tail(ValueWeighted(alpha=ALPHA, candidates=3), optimal) < 1e-7


def test_argmax_keeps_the_candidate_of_largest_weight_and_concentrates(problem: TiltedProblem) -> None:
    """With 128 candidates it comes within a fifth of the way to the best design; a multinomial choice does not."""
    best = problem.table.max()
    mean = {}
    for choice in ("argmax", "multinomial"):
        sampler = ValueWeighted(alpha=ALPHA, candidates=128, choice=choice)
        rng = torch.Generator().manual_seed(0)
        x_0 = sampler(problem.pretrained, problem.reward, 64, rng, value=problem.value()).x_0
        mean[choice] = problem.table[x_0 @ 3 ** torch.arange(3, -1, -1)].mean()
    assert mean["argmax"] > best - 0.2 * (best - problem.tilted @ problem.table)
    assert mean["multinomial"] < best - 0.5 * (best - problem.tilted @ problem.table)


def test_weights_beyond_the_range_of_exponentials_choose_right() -> None:
    """Pitfalls 38 and 39: rewards of thousands of nats, all below or above the range of exp.

    Twin: clamped exponentials tie, or vanish.
    """
    rng = torch.Generator().manual_seed(0)
    for level in (-5000.0, 5000.0):
        log_weight = torch.tensor([[0.0, 3.0]], dtype=torch.float64).repeat(4000, 1) + level
        share = draw(log_weight, rng).double().mean().item()
        assert abs(share - 1 / (1 + math.exp(-3))) < 5.5 * 0.213 / 4000**0.5
        clamped = log_weight.exp().clamp(0, 1e10)
        assert clamped[0, 0] == clamped[0, 1]


# --- guidance --------------------------------------------------------------------------------------------------------


def optimal_policy(problem: TiltedProblem) -> Policy:
    policy = problem.tunable().requires_grad_(False)
    letters, length = problem.chain.letters, problem.pretrained.event_shape[0]
    policy.denoiser = type(problem.pretrained.denoiser).from_joint(problem.tilted.view([letters] * length))
    return policy


@pytest.mark.parametrize("tokens", ["exact", "first_order"])
def test_guidance_by_exact_values_is_the_soft_optimal_policy(problem: TiltedProblem, tokens: str) -> None:
    """One token per step and an order-consistent denoiser: exact KL to p* is 0. Twins: alpha doubled, sign flipped."""

    def kl(value, alpha: float) -> float:
        return problem.kl(GuidedPolicy(problem.pretrained, value, alpha=alpha, tokens=tokens))

    value = problem.value()
    assert abs(kl(value, ALPHA)) < 1e-10
    assert kl(value, 2 * ALPHA) > 0.05
    assert kl(lambda x, t, cond: -value(x, t, cond), ALPHA) > 1
    assert kl(lambda x, t, cond: 0 * value(x, t, cond), ALPHA) == pytest.approx(problem.kl(problem.pretrained))


def test_guidance_by_the_plug_in_value_removes_most_of_the_kl(problem: TiltedProblem) -> None:
    """A pairwise reward: the plug-in value is off by correlations of the token laws only."""
    start = problem.kl(problem.pretrained)
    value = PlugIn(problem.pretrained, problem.reward)
    for tokens in ("exact", "first_order"):
        assert problem.kl(GuidedPolicy(problem.pretrained, value, alpha=ALPHA, tokens=tokens)) < 0.15 * start


def test_guidance_by_a_regressed_value_steers_by_a_black_box(problem: TiltedProblem) -> None:
    """The last step leans on the learnt reward. Twin: on none, the last letters stay those of the pretrained law."""
    designs = problem.pretrained.codec.decode(problem.chain.designs)
    box = TableReward(dict(zip(designs, problem.table.tolist(), strict=True)))
    settings = Regression(alpha=ALPHA, paths=4000, updates=1500, batch=256)
    value = fit_value(problem.pretrained, box, torch.Generator().manual_seed(0), settings)
    start = problem.kl(problem.pretrained)
    reached = problem.kl(GuidedPolicy(problem.pretrained, value, alpha=ALPHA))
    assert reached < 0.1 * start

    def but_the_end(x: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        return value(x, t, cond) if t > 0 else 0.0 * x.sum((1, 2))

    assert problem.kl(GuidedPolicy(problem.pretrained, but_the_end, alpha=ALPHA)) > 2 * reached
    x_0 = ClassifierGuidance(alpha=ALPHA)(problem.pretrained, box, 50, torch.Generator(), value=value).x_0
    assert (x_0 < 3).all()
    with pytest.raises(UnsupportedError, match="got TableReward, a black box"):
        problem.kl(GuidedPolicy(problem.pretrained, PlugIn(problem.pretrained, box), alpha=ALPHA))


def test_guidance_by_single_sites_needs_steps_that_show_one_token() -> None:
    for settings in ({"reveal": "independent"}, {"steps": 2}):
        problem = random_pairwise(4, 3, alpha=ALPHA, target_kl=1.0, seed=1, **settings)
        guided = GuidedPolicy(problem.pretrained, problem.value(), alpha=ALPHA, tokens="exact")
        with pytest.raises(UnsupportedError, match="show one token"):
            problem.kl(guided)
        first = GuidedPolicy(problem.pretrained, PlugIn(problem.pretrained, problem.reward), alpha=ALPHA)
        assert problem.kl(first) < 0.5 * problem.kl(problem.pretrained)


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


REWARD = Quadratic.reward(torch.stack([vector(0.5, 0.1), vector(0.1, 0.3)]), vector(2.0, 1.0), vector(0.3, -0.2))


def plane(process: Gaussian, steps: int) -> LinearGaussian:
    covariance = torch.stack([vector(1.0, 0.4), vector(0.4, 0.7)])
    return LinearGaussian(vector(1.0, -0.5), covariance, process, uniform_grid(steps))


def guided_law(problem: LinearGaussian, value, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of the guided chain: its steps are affine, since the values are quadratic."""
    means, covariances = Chain.read(GuidedPolicy(problem.pretrained(), value, alpha=alpha)).marginals()
    return means[-1].detach(), covariances[-1].detach()


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_guided_mean_of_full_noise_steps_is_right_to_first_order(variance: str) -> None:
    """Distance to the soft-optimal kernels' law falls as 1/K. Twins: alpha doubled; sigma in place of sigma^2."""
    errors, twins = [], []
    for steps in (20, 40, 80):
        problem = plane(Gaussian(Cosine(0.02), sigma_min=0.02, variance=variance), steps)
        chain = Chain.read(problem.pretrained())
        means, covariances = chain.optimum(REWARD, 1.0).marginals()
        value = problem.value(REWARD, 1.0)
        mean, covariance = guided_law(problem, value, 1.0)
        errors.append(max((mean - means[-1]).abs().max().item(), (covariance - covariances[-1]).abs().max().item()))
        twins.append((guided_law(problem, value, 2.0)[0] - means[-1]).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.5)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.5)
    assert errors[2] < 0.05
    assert min(twins) > 0.2


@pytest.mark.parametrize("prediction", ["epsilon", "x_0", "v"])
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_the_tilted_score_steers_steps_with_less_noise(eta: float, prediction: str) -> None:
    """With values given the noising law (those of a full-noise chain of many steps) the law nears the tilted one.

    Twin: a shift of the mean by sigma^2 grad v, which at eta = 0 moves nothing.
    """
    errors = []
    for steps in (40, 160):
        noising = plane(Gaussian(Cosine(0.02), prediction=prediction), steps)
        problem = plane(Gaussian(Cosine(0.02), kernel="ddim", eta=eta, prediction=prediction), steps)
        target, _ = Chain.read(noising.pretrained()).tilted(REWARD, 1.0)
        mean, _ = guided_law(problem, noising.value(REWARD, 1.0), 1.0)
        errors.append((mean - target).abs().max().item())
    start = (problem.mean - target).abs().max().item()
    assert errors[1] < errors[0] < 0.2 * start
    assert errors[1] < 0.04 * start
    shifted = Chain.read(problem.pretrained()).optimum(REWARD, 1.0, soft=False).marginals()[0][-1]
    assert (shifted - target).abs().max() > 2 * errors[1]


def test_settings_out_of_range_are_refused() -> None:
    for settings, message in (
        ({"alpha": 0.0}, "alpha > 0"),
        ({"candidates": 0}, "at least 1 candidate; got 0"),
        ({"choice": "max"}, "multinomial, argmax; got 'max'"),
    ):
        with pytest.raises(ConfigError, match=message):
            ValueWeighted(**settings)
