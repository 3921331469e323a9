"""Mixture denoisers against integrals, and the line's quadrature against the closed forms of one Gaussian."""

from __future__ import annotations

import math

import pytest
import torch

from difftilt.core.noise import VE, VP, Cosine
from difftilt.core.policy import Policy
from difftilt.core.schedule import uniform_grid
from difftilt.core.trajectory import sample_states
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.problems.line import LineProblem
from difftilt.problems.linear_gaussian import Chain, LinearGaussian, Quadratic
from difftilt.problems.mixture import MixtureDenoiser, mixture_policy
from difftilt.problems.problem import Histogram
from difftilt.processes.gaussian import Gaussian
from difftilt.processes.masked import Masked

ALPHA = 0.5
TWO = ([0.7, 0.3], [[-1.2], [1.0]], [0.4, 0.5])
CHAINS = {
    "ddpm": {},
    "ddim": {"kernel": "ddim", "eta": 0.3},
    "fixed large": {"variance": "fixed_large"},
}


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


REWARD = Quadratic.reward(vector(0.9)[:, None], vector(2.0), vector(0.4))


def close(actual, expected, atol: float = 1e-10) -> None:
    as_tensor = [torch.as_tensor(x, dtype=torch.float64).detach() for x in (actual, expected)]
    torch.testing.assert_close(*as_tensor, rtol=0, atol=atol)


def two_modes(steps: int = 8, alpha: float = ALPHA, **own) -> LineProblem:
    process = Gaussian(Cosine(), prediction="v", sigma_min=0.1, **own)
    policy = mixture_policy(*TWO, process, grid=uniform_grid(steps)).frozen_copy()
    return LineProblem(policy, Quadratic.reward(vector(0.3)[:, None], vector(0.5), vector(0.5)), alpha=alpha)


# --- the denoiser ---------------------------------------------------------------------------------------------------


def told(prediction: str, x_t: torch.Tensor, x_0: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    noise = (x_t - alpha * x_0) / sigma
    return {"x_0": x_0, "epsilon": noise, "v": alpha * noise - sigma * x_0}[prediction]


@pytest.mark.parametrize("schedule", [VP(), VE(0.1, 10.0), Cosine()], ids=["vp", "ve", "cosine"])
@pytest.mark.parametrize("prediction", ["epsilon", "x_0", "v"])
def test_the_denoiser_is_the_mean_of_the_data_given_the_noisy_state(schedule, prediction):
    """By a Riemann sum over x_0 in the plane, for components of unequal weight and width."""
    weights, means, stds = [1.0, 3.0], [[-1.0, 0.5], [1.0, 0.0]], [0.3, 0.6]  # weights need not sum to 1
    denoiser = MixtureDenoiser(weights, means, stds, schedule, prediction)
    axis = torch.linspace(-5, 5, 401, dtype=torch.float64)
    x_0 = torch.cartesian_prod(axis, axis)
    log_data = torch.stack(
        [math.log(w) - 2 * math.log(s) - ((x_0 - vector(*m)) ** 2).sum(1) / (2 * s**2)
         for w, m, s in zip(weights, means, stds, strict=True)]
    ).logsumexp(0)  # fmt: skip
    x_t = vector(0.2, 0.4)[None]
    for t in (0.9, 0.4, 0.2):
        alpha, sigma = (scale.item() for scale in schedule.scales(vector(t)[0]))
        p = (log_data - ((x_t - alpha * x_0) ** 2).sum(1) / (2 * sigma**2)).softmax(0)
        expected = told(prediction, x_t[0], p @ x_0, alpha, sigma)
        close(denoiser(x_t, vector(t))[0], expected, atol=1e-8)
    blind = log_data.softmax(0) @ x_0  # twin: the state is not looked at
    assert (told(prediction, x_t[0], blind, alpha, sigma) - expected).abs().max() > 1e-2


def test_the_correcting_network_starts_at_zero_and_gets_the_first_gradient():
    process = Gaussian(Cosine(), prediction="v", sigma_min=0.1)
    exact, start = (mixture_policy(*TWO, process, grid=uniform_grid(4), hidden=h) for h in (0, 16))
    x_t, t = torch.randn(50, 1, generator=torch.Generator().manual_seed(0)), torch.full((50,), 0.3, dtype=torch.float64)
    assert torch.equal(exact.denoiser(x_t, t), start.denoiser(x_t, t))
    assert not list(exact.parameters())
    start.denoiser(x_t, t).sum().backward()
    last = start.denoiser.network[-1]
    assert last.weight.grad.abs().max() > 1e-3
    assert last.bias.grad.item() == pytest.approx(50)
    with torch.no_grad():
        last.bias += 0.5  # the network adds to what is told
    close(start.denoiser(x_t, t), exact.denoiser(x_t, t) + 0.5, atol=1e-6)


def test_a_mixture_policy_survives_a_model_folder(tmp_path):
    policy = mixture_policy(*TWO, Gaussian(VP(), prediction="epsilon"), grid=uniform_grid(3), hidden=8, seed=1)
    torch.nn.init.normal_(policy.denoiser.network[-1].weight, generator=torch.Generator().manual_seed(0))
    policy.save_pretrained(tmp_path)
    again = Policy.from_pretrained(tmp_path)
    x_t, t = torch.linspace(-1, 1, 5)[:, None], torch.full((5,), 0.5, dtype=torch.float64)
    assert torch.equal(again.denoiser(x_t, t), policy.denoiser(x_t, t))


# --- one component is a linear-Gaussian problem ---------------------------------------------------------------------


@pytest.fixture(scope="module", params=CHAINS)
def one(request) -> tuple[LineProblem, LinearGaussian, Chain]:
    process = Gaussian(Cosine(0.05), sigma_min=0.08, prediction="v", **CHAINS[request.param])
    closed = LinearGaussian(vector(0.8), vector(0.6)[:, None], process, uniform_grid(6))
    policy = mixture_policy([1.0], [[0.8]], [math.sqrt(0.6)], process, grid=closed.grid).frozen_copy()
    return LineProblem(policy, REWARD, alpha=ALPHA), closed, Chain.read(closed.pretrained())


def moments(problem: LineProblem, law: torch.Tensor) -> list[float]:
    mean = law @ problem.x
    return [mean.item(), (law @ (problem.x - mean) ** 2).item(), law.sum().item()]


def last(chain: Chain) -> list[float]:
    means, covariances = chain.marginals()
    return [means[-1].item(), covariances[-1].item(), 1.0]


def test_laws_and_values_of_one_component_are_the_closed_forms(one):
    problem, _, chain = one
    close(moments(problem, problem.pretrained_law), last(chain))
    close(problem.log_z, chain.log_z(REWARD, ALPHA))
    close(moments(problem, problem.tilted), [*(part.item() for part in chain.tilted(REWARD, ALPHA)), 1.0])
    close(moments(problem, problem.target), last(chain.optimum(REWARD, ALPHA)))
    inside = problem.x.abs() < 3
    for value, exact in zip(problem.soft_values, chain.values(REWARD, ALPHA), strict=True):
        close(value[inside], exact(problem.x[:, None])[inside])
    close(
        problem.target_mean_reward, REWARD.expectation(*(part[-1] for part in chain.optimum(REWARD, ALPHA).marginals()))
    )


def test_values_to_steer_by_are_the_closed_forms_between_grid_points_too(one):
    problem, closed, _ = one
    x = vector(-1.234, 0.1, 2.5)[:, None].requires_grad_()
    values, exact = problem.value(), closed.value(REWARD, ALPHA)
    for t in (1.0, 0.5, 0.0):
        close(values(x, vector(t)[0]), exact(x, vector(t)[0]))
        slopes = [torch.autograd.grad(value(x, vector(t)[0]).sum(), x)[0] for value in (values, exact)]
        close(slopes[0], slopes[1], atol=1e-8)
    black_box = LineProblem(problem.pretrained, REWARD.__call__, alpha=ALPHA)
    close(black_box.value()(x, vector(0.0)[0]), REWARD(x))


def test_the_class_optimum_of_one_component_is_the_riccati_recursion(one):
    problem, _, chain = one
    value, law = problem.optimum
    riccati = chain.optimum(REWARD, ALPHA, soft=False)
    close(value, chain.expected_value(REWARD, ALPHA, soft=False))
    close(moments(problem, law), last(riccati))
    mean, covariance = (part[-1] for part in chain.optimum(REWARD, ALPHA).marginals())
    close(problem.class_kl, riccati.law_kl(mean, covariance))
    assert abs(chain.expected_value(REWARD, ALPHA) - value) > 1e-4  # twin: the soft value is not it


def test_kl_and_mean_reward_of_any_affine_policy_are_the_closed_forms(one):
    problem, closed, chain = one
    policy = closed.pretrained()
    with torch.no_grad():
        for value in policy.parameters():
            value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    mean, covariance = (part[-1] for part in chain.optimum(REWARD, ALPHA).marginals())
    exact = Chain.read(policy).law_kl(mean, covariance).item()
    close(problem.kl(policy), exact)
    means, covariances = Chain.read(policy).marginals()
    close(problem.mean_reward(policy), REWARD.expectation(means[-1], covariances[-1]))
    assert abs(Chain.read(policy).law_kl(*chain.tilted(REWARD, 2 * ALPHA)) - exact) > 1e-2  # twin: alpha doubled


def test_a_fixed_prior_keeps_the_soft_optimal_law_from_the_tilted_one_unless_memoryless():
    full, part = two_modes(), two_modes(kernel="ddim", eta=0.3)
    assert (full.target - full.tilted).abs().sum() < 1e-2
    assert (part.target - part.tilted).abs().sum() > 0.2
    for problem in (full, part):
        close(problem.target.sum(), 1.0)


# --- two components -------------------------------------------------------------------------------------------------


def density(x: torch.Tensor, weights, means, variances) -> torch.Tensor:
    x, weights, means, variances = x[:, None], vector(*weights), vector(*means), vector(*variances)
    return (weights / weights.sum() * torch.exp(-((x - means) ** 2) / (2 * variances)) / variances.sqrt()).sum(1) / (
        math.sqrt(2 * math.pi)
    )


def test_the_chain_samples_the_mixture_and_its_tilt_the_tilted_mixture_as_steps_grow():
    """Exp of a quadratic makes a mixture of a mixture: weights, means, variances by completing squares."""
    curvature, slope = 0.3, 0.3 * 0.5 + 0.5
    variances = [1 / (1 / s**2 + curvature / ALPHA) for s in TWO[2]]
    means = [v * (m / s**2 + slope / ALPHA) for v, (m,), s in zip(variances, TWO[1], TWO[2], strict=True)]
    weights = [
        w * math.sqrt(v) / s * math.exp(0.5 * a**2 / v - 0.5 * m**2 / s**2)
        for w, (m,), s, v, a in zip(*TWO, variances, means, strict=True)
    ]
    errors = []
    reward = Quadratic.reward(vector(0.3)[:, None], vector(0.5), vector(0.5))
    for steps in (20, 40, 80):
        process = Gaussian(Cosine(), prediction="v", sigma_min=2 / steps)
        policy = mixture_policy(*TWO, process, grid=uniform_grid(steps)).frozen_copy()
        problem = LineProblem(policy, reward, alpha=ALPHA, reach=6)
        data = density(problem.x, TWO[0], [m for (m,) in TWO[1]], [s**2 for s in TWO[2]])
        tilt = density(problem.x, weights, means, variances)
        errors.append([(law / problem.width - exact).abs().max().item()
                       for law, exact in ((problem.pretrained_law, data), (problem.tilted, tilt))])  # fmt: skip
        wrong = (problem.tilted / problem.width - data).abs().max().item()  # twin: not tilted
        assert wrong > 0.3
    for of_one in zip(*errors, strict=True):
        assert of_one[0] > 1.2 * of_one[1] > 1.2 * 1.6 * of_one[2]
    assert max(errors[-1]) < 0.035


class Wavy:
    """A reward with many maxima."""

    def __call__(self, designs):
        return [math.sin(3 * x[0]) - 0.1 * x[0] ** 2 for x in designs]


@pytest.mark.parametrize("alpha", [0.02, 0.5])
def test_the_class_optimum_of_one_step_beats_a_fine_scan_of_means(alpha):
    process = Gaussian(Cosine(0.05), prediction="x_0", sigma_min=0.4)
    policy = mixture_policy(*TWO, process, grid=uniform_grid(1)).frozen_copy()
    problem = LineProblem(policy, Wavy(), alpha=alpha)
    m = torch.linspace(-7, 7, 14001, dtype=torch.float64)  # E sin(3y) = sin(3m) exp(-9 var / 2), E y^2 = m^2 + var
    variance = problem.reference.std[0].item() ** 2
    payoff = torch.sin(3 * m) * math.exp(-4.5 * variance) - 0.1 * (m**2 + variance)
    cost = alpha * (m - problem.reference.mean[0][:, None]) ** 2 / (2 * variance)
    scan = (payoff - cost).amax(1) @ problem.prior
    assert scan <= problem.optimum[0] <= scan + 1e-5
    assert problem.optimum[0] <= problem.alpha * problem.log_z


def test_the_class_optimum_loses_less_with_more_steps():
    coarse, fine = two_modes(8), two_modes(16)
    assert 2.5 < coarse.class_kl / fine.class_kl < 6
    assert coarse.optimum[0] < coarse.soft_values[0] @ coarse.prior <= coarse.alpha * coarse.log_z


def test_shift_scale_and_limits_of_the_tilt():
    problem, curve = two_modes(), Quadratic.reward(vector(0.3)[:, None], vector(0.5), vector(0.5))
    raised = LineProblem(problem.pretrained, Quadratic(curve.curvature, curve.slope, curve.height + 3), alpha=ALPHA)
    close(raised.target, problem.target)
    close(raised.log_z, problem.log_z + 3 / ALPHA)
    close(raised.soft_values[0], problem.soft_values[0] + 3)
    scaled = Quadratic(5 * curve.curvature, 5 * curve.slope, 5 * curve.height)
    close(LineProblem(problem.pretrained, scaled, alpha=5 * ALPHA).target, problem.target)
    hot = two_modes(alpha=1e6)
    close(hot.target, hot.pretrained_law, atol=1e-5)
    assert (two_modes(alpha=0.25).target - problem.target).abs().sum() > 0.1


# --- samples --------------------------------------------------------------------------------------------------------


def chi_square_z(histogram: Histogram, n: int) -> float:
    """Pearson's statistic of ``n`` samples, as a z (its law is near normal for 20 cells and more)."""
    cells = len(histogram.expected)
    statistic = n * ((histogram.observed - histogram.expected) ** 2 / histogram.expected).sum().item()
    return (statistic - (cells - 1)) / math.sqrt(2 * (cells - 1))


def test_histograms_of_samples_agree_with_the_law_they_come_from(rng):
    """H0: x_0 follows the pretrained law, tilted by a flat reward; n = 50,000, z bar 7: false alarms below 1e-6."""
    policy, n = two_modes().pretrained, 50_000
    flat = LineProblem(policy, Quadratic.reward(vector(0.0)[:, None], vector(0.0), vector(0.0)), alpha=ALPHA)
    x_0 = sample_states(policy, n, rng, batch=n)
    even = torch.zeros(n, dtype=torch.float64)
    for fixed_prior in (False, True):
        histogram = flat.law_of(x_0, even, fixed_prior=fixed_prior)
        close(histogram.expected.sum(), 1.0)
        assert len(histogram.expected) > 20
        assert abs(chi_square_z(histogram, n)) < 7
        assert chi_square_z(flat.law_of(1.03 * x_0, even), n) > 7  # twin: 3 % too wide
        assert chi_square_z(flat.law_of(x_0 + flat.width / 2, even), n) > 7  # twin: half a grid cell off


@pytest.mark.parametrize("fixed_prior", [False, True])
def test_cells_hold_the_mass_of_the_density(fixed_prior):
    """Against a sum over a grid 65 times finer, of the same density, where the two targets differ."""
    problem = two_modes(kernel="ddim", eta=0.3)
    before = problem.prior * torch.exp(-problem.soft_values[0] / ALPHA) if fixed_prior else problem.prior
    for matrix in problem.reference.matrix[:-1]:
        before = before @ matrix
    fine = (problem.x[:, None] + problem.width * torch.arange(-32, 33) / 65).flatten()
    z = (fine[:, None] - problem.reference.mean[-1]) / problem.reference.std[-1]
    law = (torch.exp(-0.5 * z**2) @ before) * torch.exp(problem.reward(fine[:, None]) / ALPHA)
    histogram = problem.law_of(fine[:, None], law.log(), fixed_prior=fixed_prior)
    close(histogram.observed, histogram.expected, atol=1e-4)
    assert problem.law_of(fine[:, None], law.log(), fixed_prior=not fixed_prior).total_variation > 0.1


# --- edges ----------------------------------------------------------------------------------------------------------


def test_a_policy_that_leaves_the_grid_is_infinitely_far():
    problem = two_modes()
    process = cast_process(problem.pretrained)
    far = mixture_policy([1.0], [[30.0]], [0.4], process, grid=problem.pretrained.grid)
    assert problem.kl(far) == math.inf
    diverged = mixture_policy([1.0], [[math.nan]], [0.4], process, grid=problem.pretrained.grid)
    assert problem.kl(diverged) == math.inf


def cast_process(policy: Policy) -> Gaussian:
    assert isinstance(policy.process, Gaussian)
    return policy.process


def test_where_fine_tuning_starts():
    problem = two_modes()
    process = cast_process(problem.pretrained)
    start = mixture_policy(*TWO, process, grid=problem.pretrained.grid, hidden=8)
    tuned = LineProblem(problem.pretrained, problem.reward, alpha=ALPHA, start=start)
    first, second = tuned.tunable(), tuned.tunable()
    with torch.no_grad():
        first.denoiser.network[-1].bias += 0.1
    close(tuned.kl(second), tuned.kl(tuned.pretrained), atol=1e-6)
    assert abs(tuned.kl(first) - tuned.kl(second)) > 1e-3
    assert all(parameter.requires_grad for parameter in first.parameters())


def test_what_the_line_cannot_hold_says_so():
    problem = two_modes()
    process = cast_process(problem.pretrained)
    grid = uniform_grid(4)
    with pytest.raises(ConfigError, match="alpha > 0"):
        LineProblem(problem.pretrained, problem.reward, alpha=0.0)
    with pytest.raises(UnsupportedError, match="over one number; got Gaussian over"):
        LineProblem(mixture_policy([1.0], [[0.0, 0.0]], [1.0], process, grid=grid), problem.reward, alpha=1.0)
    tokens = Policy(problem.pretrained.denoiser, Masked(4), problem.pretrained.codec, (1,), steps=1)
    with pytest.raises(UnsupportedError, match="got Masked"):
        LineProblem(tokens, problem.reward, alpha=1.0)
    silent = mixture_policy(*TWO, Gaussian(Cosine(), prediction="v"), grid=grid)
    with pytest.raises(UnsupportedError, match="got none at step 3"):
        LineProblem(silent, problem.reward, alpha=1.0)
    with pytest.raises(UnsupportedError, match="raise reach"):
        LineProblem(problem.pretrained, problem.reward, alpha=1.0, reach=1.5)
    with pytest.raises(UnsupportedError, match="got NaN"):
        LineProblem(problem.pretrained, lambda designs: [math.nan] * len(designs), alpha=1.0)
