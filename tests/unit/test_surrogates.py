"""Posteriors of learned rewards against closed forms, and what every surrogate promises whoever uses it."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from difftilt.core.codec import ImageCodec, TokenCodec, VectorCodec
from difftilt.core.registry import construct
from difftilt.core.reward import DifferentiableReward
from difftilt.errors import ConfigError, ShapeError
from difftilt.surrogates import training
from difftilt.surrogates.calibration import calibration, temper
from difftilt.surrogates.ensemble import Ensemble
from difftilt.surrogates.feasibility import Logistic
from difftilt.surrogates.gaussian_process import GaussianProcess
from difftilt.surrogates.linear import Linear, log_evidence, one_more, weights
from difftilt.surrogates.measurements import Measurements, readable
from difftilt.surrogates.rewards import Bound, Feasible, Largest
from difftilt.surrogates.surrogate import Learner, Surrogate
from difftilt.surrogates.training import Training, forward, last_layer_features, train

CODEC = TokenCodec("ACGT", 4)
EVERY = CODEC.decode(torch.cartesian_prod(*[torch.arange(4)] * 4))
FEW = Training(updates=60)
LEARNERS: dict[str, Any] = {
    "linear": Linear(),
    "learned features": Linear(features=(), training=FEW),
    "ensemble": Ensemble(features=(), training=FEW),
    "ensemble of features": Ensemble(training=FEW),
    "gaussian process": GaussianProcess(),
}


def measured(n: int = 60, noise: float = 0.05, slope: float = 1.0, shift: float = 0.0) -> Measurements:
    """Letters add up, an AC anywhere counts more; with noise."""
    rng = torch.Generator().manual_seed(7)
    which = torch.randperm(len(EVERY), generator=rng)[:n]
    designs = [EVERY[i] for i in which.tolist()]
    letters = torch.randn(4, 4, generator=rng, dtype=torch.float64)
    clean = (readable(CODEC, designs) * letters).sum((1, 2)) + torch.tensor([2.0 * ("AC" in d) for d in designs])
    value = clean + noise * torch.randn(n, generator=rng, dtype=torch.float64)
    return Measurements(designs, slope * value + shift)


@pytest.fixture(scope="module")
def fitted() -> dict[str, Surrogate]:
    return {
        name: learner.fit(CODEC, measured(), torch.Generator().manual_seed(0)) for name, learner in LEARNERS.items()
    }


@pytest.fixture(params=list(LEARNERS))
def surrogate(request: pytest.FixtureRequest, fitted: dict[str, Surrogate]) -> Surrogate:
    return fitted[request.param]


def relaxed(n: int, seed: int = 0) -> torch.Tensor:
    p = torch.rand(n, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return p / p.sum(-1, keepdim=True)


# --- what every surrogate promises -----------------------------------------------------------------------------------


def test_settings_learn_and_predictions_are_float64_in_reward_units(surrogate: Surrogate) -> None:
    assert all(isinstance(learner, Learner) for learner in LEARNERS.values())
    data = measured(250, noise=0.0)
    mean, std = surrogate.predict(data.designs)
    assert mean.dtype == std.dtype == torch.float64
    assert (std > 0).all()
    assert torch.corrcoef(torch.stack([mean, data.value]))[0, 1] > 0.8


def test_relaxed_designs_at_the_corners_are_the_designs(surrogate: Surrogate) -> None:
    designs = EVERY[::37]
    mean, std = surrogate.at(readable(CODEC, designs).float())
    torch.testing.assert_close((mean, std), tuple(surrogate.predict(designs)), rtol=1e-5, atol=1e-6)


def test_joint_and_single_predictions_agree_and_the_covariance_is_one(surrogate: Surrogate) -> None:
    p = relaxed(6)
    mean, covariance = surrogate.joint(p)
    torch.testing.assert_close(mean, surrogate.at(p).mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(covariance.diagonal().sqrt(), surrogate.at(p).std, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(covariance, covariance.T)
    assert torch.linalg.eigvalsh(covariance).min() > -1e-9
    first, second = surrogate.joint(p[:2])[1], surrogate.joint(p[:2].flip(0))[1]
    torch.testing.assert_close(first, second.flip(0, 1), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("c", [1.5, 0.0, -1.0])
def test_the_gradient_of_a_bound_is_its_finite_difference(request: Any, surrogate: Surrogate, c: float) -> None:
    reward, p = Bound(surrogate, c), relaxed(2).requires_grad_()
    assert isinstance(reward, DifferentiableReward)
    (slope,) = torch.autograd.grad(reward.on_probabilities(p).sum(), p)
    towards = torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = request.node.callspec.params["surrogate"] in ("linear", "gaussian process")
    h, tolerance = (1e-5, 1e-4) if exact else (1e-3, 0.05)  # networks run in float32
    with torch.no_grad():
        ahead, behind = (reward.on_probabilities(p + sign * h * towards).sum() for sign in (1, -1))
    assert ((ahead - behind) / (2 * h)).item() == pytest.approx((slope * towards).sum().item(), rel=tolerance)


def test_a_bound_is_the_mean_with_c_stds(surrogate: Surrogate) -> None:
    mean, std = surrogate.predict(EVERY[:9])
    for c in (0.0, 2.0, -1.0):
        torch.testing.assert_close(Bound(surrogate, c)(EVERY[:9]), mean + c * std)
        torch.testing.assert_close(
            Bound(surrogate, c).on_probabilities(readable(CODEC, EVERY[:9])), mean + c * std, rtol=1e-5, atol=1e-6
        )


def test_tempering_scales_the_spread_alone_and_not_twice(surrogate: Surrogate) -> None:
    mean, std = surrogate.predict(EVERY[:9])
    wider = surrogate.tempered(2.0)
    torch.testing.assert_close(wider.predict(EVERY[:9]).mean, mean)
    torch.testing.assert_close(wider.predict(EVERY[:9]).std, 2 * std)
    torch.testing.assert_close(wider.joint(relaxed(3))[1], 4 * surrogate.joint(relaxed(3))[1])
    assert wider.misfit == pytest.approx(2 * surrogate.misfit)
    assert wider.noise == surrogate.noise
    again = wider.tempered(3.0)
    assert (again.factor, again.misfit) == (3.0, pytest.approx(3 * surrogate.misfit))
    seen = wider.forecast(*wider.predict(EVERY[:9]), measured=mean)
    torch.testing.assert_close(seen.model, (std.square() + surrogate.misfit**2).sqrt())
    draws = [one.draw(torch.Generator().manual_seed(3))(EVERY[:9]) - mean for one in (surrogate, wider)]
    torch.testing.assert_close(draws[1], 2 * draws[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="above 0"):
        surrogate.tempered(0.0)


def test_predictive_variance_is_epistemic_and_misfit_and_noise(surrogate: Surrogate) -> None:
    std = surrogate.predict(EVERY[:5]).std
    noisy = replace(surrogate, misfit=0.3, noise=0.4)
    torch.testing.assert_close(noisy.predictive_std(std).square(), std.square() + 0.25)


def test_a_draw_is_one_function(surrogate: Surrogate) -> None:
    """Whatever it is asked beside, relaxed or not; another draw is another."""
    drawn = surrogate.draw(torch.Generator().manual_seed(1))
    assert isinstance(drawn, DifferentiableReward)
    together = drawn(EVERY[:6])
    torch.testing.assert_close(together[2:4], drawn(EVERY[2:4]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together, drawn.on_probabilities(readable(CODEC, EVERY[:6])), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together, surrogate.draw(torch.Generator().manual_seed(1))(EVERY[:6]))
    assert (together - surrogate.draw(torch.Generator().manual_seed(2))(EVERY[:6])).abs().min() > 1e-6


def test_held_out_rows_are_forecast_worse_than_fitted_ones(surrogate: Surrogate) -> None:
    data, seen = measured(), surrogate.held_out
    inside = (surrogate.predict(data.designs).mean - data.value).square().mean()
    assert (seen.mean - seen.measured).square().mean() > 1.02 * inside


@pytest.mark.parametrize("name", list(LEARNERS))
def test_an_infeasible_design_changes_nothing_in_the_value(name: str, fitted: dict[str, Surrogate]) -> None:
    data = measured()
    more = Measurements([*data.designs, "TTTT"], torch.cat([data.value, data.value.new_tensor([math.nan])]))
    with_it = LEARNERS[name].fit(CODEC, more, torch.Generator().manual_seed(0))
    assert torch.equal(with_it.predict(EVERY).mean, fitted[name].predict(EVERY).mean)


@pytest.mark.parametrize("name", list(LEARNERS))
def test_an_affine_change_of_the_values_is_one_of_the_predictions(name: str, fitted: dict[str, Surrogate]) -> None:
    """Networks start at one sign, so theirs only with a positive slope; they run in float32."""
    exact = name in ("linear", "gaussian process")
    slope = -30.0 if exact else 30.0
    changed = LEARNERS[name].fit(CODEC, measured(slope=slope, shift=7.0), torch.Generator().manual_seed(0))
    before, after = fitted[name].predict(EVERY), changed.predict(EVERY)
    tolerance = {"rtol": 1e-3, "atol": 1e-2} if exact else {"rtol": 2e-2, "atol": 0.3}
    torch.testing.assert_close(after.mean, slope * before.mean + 7, **tolerance)
    torch.testing.assert_close(after.std, abs(slope) * before.std, **tolerance)
    assert changed.misfit == pytest.approx(abs(slope) * fitted[name].misfit, rel=1e-2)


def test_botorch_reads_a_surrogate(surrogate: Surrogate) -> None:
    """Joint posterior, batched, with and without noise, differentiable; and two of its acquisition functions."""
    acquisition = pytest.importorskip("botorch.acquisition")
    from botorch.sampling import SobolQMCNormalSampler

    surrogate, p = surrogate.tempered(1.3), relaxed(6)
    x = p.flatten(1).view(2, 3, 16).requires_grad_()
    posterior = surrogate.posterior(x)
    assert posterior.mean.shape == posterior.variance.shape == (2, 3, 1)
    mean, covariance = surrogate.joint(p[3:])
    law = posterior.distribution
    torch.testing.assert_close(law.mean[1], mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(law.covariance_matrix[1], covariance, rtol=1e-4, atol=1e-6)
    noisy = replace(surrogate, misfit=0.3, noise=0.4).posterior(x, observation_noise=True).distribution
    torch.testing.assert_close(
        noisy.covariance_matrix - law.covariance_matrix, 0.25 * torch.eye(3, dtype=torch.float64).expand(2, 3, 3),
        rtol=1e-4, atol=1e-6,
    )  # fmt: skip
    assert posterior.rsample(torch.Size([5])).shape == (5, 2, 3, 1)
    bound = acquisition.UpperConfidenceBound(surrogate, beta=4.0)(x[:, :1])
    torch.testing.assert_close(bound, Bound(surrogate, 2.0).on_probabilities(p[::3]), rtol=1e-4, atol=1e-5)
    (slope,) = torch.autograd.grad(bound.sum(), x)
    assert slope.abs().sum() > 0
    batch = acquisition.qLogExpectedImprovement(
        surrogate, best_f=surrogate.center, sampler=SobolQMCNormalSampler(torch.Size([16]), seed=0)
    )
    assert batch(x).shape == (2,)
    with pytest.raises(ShapeError, match="expected designs of 16 numbers"):
        surrogate.posterior(x[..., :5])


def test_the_example_of_the_page() -> None:
    codec, rng, designs, values = CODEC, torch.Generator().manual_seed(0), measured().designs, measured().value
    learner = GaussianProcess()
    surrogate = learner.fit(codec, Measurements(designs, values), rng)
    surrogate = surrogate.tempered(temper(surrogate.held_out))
    optimistic = Bound(surrogate, c=1.0)
    mean, std = surrogate.predict(EVERY)
    torch.testing.assert_close(optimistic(EVERY), mean + std)
    inside = calibration(surrogate.held_out, factor=surrogate.factor).coverage_90
    assert inside == pytest.approx(0.9, abs=0.03)


# --- Bayesian linear regression --------------------------------------------------------------------------------------


def problem(n: int = 20, d: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(3)
    phi = torch.randn(n, d, generator=rng, dtype=torch.float64)
    return (
        phi,
        torch.randn(n, generator=rng, dtype=torch.float64),
        0.1 + torch.rand(n, generator=rng, dtype=torch.float64),
    )


def test_weights_are_those_of_the_joint_normal_law() -> None:
    """Conditioning (w, y), by the n x n formulas, which share nothing with the d x d ones."""
    phi, y, d = problem()
    tau = 0.7
    k = tau**2 * phi @ phi.T + d.diag()
    mean = tau**2 * phi.T @ torch.linalg.solve(k, y)
    covariance = tau**2 * torch.eye(4, dtype=torch.float64) - tau**4 * phi.T @ torch.linalg.solve(k, phi)
    got = weights(phi, y, d, prior_std=tau)
    torch.testing.assert_close(got.mean, mean)
    torch.testing.assert_close(torch.cholesky_inverse(got.cholesky), covariance)
    law = torch.distributions.MultivariateNormal(torch.zeros(20, dtype=torch.float64), k)
    torch.testing.assert_close(log_evidence(phi, y, d, prior_std=tau), law.log_prob(y))


def test_one_measurement_more_is_a_refit() -> None:
    phi, y, d = problem()
    step = weights(phi[:5], y[:5], d[:5], prior_std=0.7)
    for i in range(5, 20):
        step = one_more(step, phi[i], y[i], d[i])
    refit = weights(phi, y, d, prior_std=0.7)
    torch.testing.assert_close(step.cholesky, refit.cholesky, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(step.mean, refit.mean, rtol=1e-11, atol=1e-12)


def test_a_surrogate_with_one_measurement_more_is_a_refit_in_its_units() -> None:
    """Reward units throughout; every measurement's own noise counts."""
    data = measured(30)
    learner = Linear(prior_std=0.5, misfit=0.2)
    before = learner.fit(CODEC, data, torch.Generator())
    after = before.with_measurement("GATT", 4.0, noise_std=0.3)
    phi = before.phi(readable(CODEC, [*data.designs, "GATT"]))
    y = torch.cat([data.value, data.value.new_tensor([4.0])]) - before.center
    d = torch.cat([torch.full((30,), 0.04), torch.tensor([0.04 + 0.09])]).double()
    exact = weights(phi, y, d, prior_std=0.5)
    at = before.phi(readable(CODEC, EVERY))
    mean, std = after.predict(EVERY)
    torch.testing.assert_close(mean - before.center, at @ exact.mean)
    torch.testing.assert_close(std.square(), (at @ torch.cholesky_inverse(exact.cholesky) * at).sum(1))
    wider = before.tempered(2.0).with_measurement("GATT", 4.0, noise_std=0.3).predict(EVERY)
    torch.testing.assert_close(wider.mean, mean)
    torch.testing.assert_close(wider.std, 2 * std)


def test_the_bonus_is_that_of_linear_ucb() -> None:
    r""":math:`\sqrt{\phi' (\lambda I + \sum \phi \phi')^{-1} \phi}` in units of the noise, lambda = d / tau^2."""
    data, noise, tau = measured(), 0.6, 1.1
    known = Measurements(data.designs, data.value, torch.full_like(data.value, noise))
    fitted = Linear(prior_std=tau, misfit=0.0).fit(CODEC, known, torch.Generator())
    phi, at = fitted.phi(readable(CODEC, data.designs)), fitted.phi(readable(CODEC, EVERY[:9]))
    gram = noise**2 / tau**2 * torch.eye(phi.shape[1], dtype=torch.float64) + phi.T @ phi
    expected = (at @ torch.linalg.inv(gram) * at).sum(1).sqrt()
    torch.testing.assert_close(fitted.predict(EVERY[:9]).std / noise, expected)


def test_the_evidence_is_largest_where_the_fit_stops() -> None:
    data = measured()
    fitted = Linear().fit(CODEC, data, torch.Generator())
    y, variance = data.rows(CODEC).standardised()
    phi = fitted.phi(data.rows(CODEC).x)
    chosen = fitted.misfit / fitted.scale
    tau = (
        fitted.weights.cholesky @ fitted.weights.cholesky.T - phi.T @ phi / chosen**2
    ).diagonal().mean().item() ** -0.5

    def evidence(misfit: float, prior_std: float) -> float:
        return log_evidence(phi, y, variance + misfit**2, prior_std=prior_std).item()

    best = evidence(chosen, tau)
    for factor in (0.8, 1.25):
        assert evidence(factor * chosen, tau) < best - 1e-3
        assert evidence(chosen, factor * tau) < best - 1e-3


def test_the_prior_std_maximises_the_evidence_with_half_a_nat_for_a_squared_e_fold() -> None:
    """A standard normal law of its log, about the value with which features explain a variance of 1."""
    data = measured()
    fitted = Linear(misfit=1.0).fit(CODEC, data, torch.Generator())
    y, variance = data.rows(CODEC).standardised()
    phi, d = fitted.phi(data.rows(CODEC).x), variance + (1.0 / fitted.scale) ** 2
    log_tau = -0.5 * (fitted.weights.cholesky.square().sum(1) - (phi.T @ (phi / d[:, None])).diagonal()).mean().log()
    usual = -0.5 * phi.square().sum(1).mean().log()

    def objective(at: torch.Tensor) -> float:
        return (log_evidence(phi, y, d, prior_std=at.exp().item()) - 0.5 * (at - usual).square()).item()

    assert (log_tau - usual).abs() > 0.1
    assert objective(log_tau) > max(objective(log_tau - 0.02), objective(log_tau + 0.02))


@pytest.mark.parametrize("name", ["linear", "gaussian process"])
def test_a_held_out_forecast_is_that_of_a_fit_without_the_row(name: str) -> None:
    """Same units and hyperparameters, by brute force over the posterior of the other rows; noise is kept apart."""
    given = Measurements(measured().designs, measured().value, torch.full((60,), 0.2).double())
    fitted: Any = LEARNERS[name].fit(CODEC, given, torch.Generator())
    x, y = given.rows(CODEC).x, (given.rows(CODEC).y - fitted.center) / fitted.scale
    misfit = (fitted.misfit / fitted.scale) ** 2
    d = misfit + (0.2 / fitted.scale) ** 2
    if name == "linear":
        phi = fitted.phi(x)
        full = fitted.weights.cholesky @ fitted.weights.cholesky.T
        k = phi @ torch.linalg.inv(full - phi.T @ phi / d) @ phi.T
    else:
        k = fitted.kernel(x.flatten(1)).to_dense()
    noisy = k + d * torch.eye(60, dtype=torch.float64)
    seen = fitted.held_out
    for i in (0, 7, 59):
        rest = [j for j in range(60) if j != i]
        gain = torch.linalg.solve(noisy[rest][:, rest], k[rest, i])
        expected = fitted.center + fitted.scale * gain @ y[rest]
        torch.testing.assert_close(seen.mean[i], expected, rtol=1e-6, atol=1e-7)
        model = k[i, i] - gain @ k[rest, i] + misfit
        torch.testing.assert_close(seen.model[i], fitted.scale * model.sqrt(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(seen.measured, given.rows(CODEC).y)
    torch.testing.assert_close(seen.noise, torch.full((60,), 0.2).double())


def test_learned_features_are_what_the_last_layer_reads() -> None:
    x = readable(CODEC, measured().designs)
    y = torch.linspace(-1, 1, 60, dtype=torch.float64)
    members = train(
        x, y, torch.zeros(60).double(), torch.Generator().manual_seed(0), members=1, network=None, config=FEW
    )
    phi = last_layer_features(members)(x)
    head = torch.cat([members.state["head.bias"][0], members.state["head.weight"][0, 0]]).double()
    assert phi.shape == (60, 33)
    torch.testing.assert_close(phi @ head, members(x)[0], rtol=1e-4, atol=1e-5)


# --- Gaussian process ------------------------------------------------------------------------------------------------


def test_the_process_is_the_closed_form_on_tiny_data() -> None:
    """Three designs, the kernel written out by hand."""
    given = Measurements(
        ["AAAA", "ACGT", "ACGG"], torch.tensor([0.0, 1.0, 3.0]).double(), torch.full((3,), 0.5).double()
    )
    fitted: Any = GaussianProcess(iterations=3).fit(CODEC, given, torch.Generator())
    kernel = fitted.kernel
    heights, places, c = kernel.log_height.exp(), kernel.log_place.exp(), kernel.log_feature.exp()

    def k(a: str, b: str) -> torch.Tensor:
        mine, other = (Counter(s[i : i + 3] for i in range(2)) for s in (a, b))
        apart = sum((mine[word] - other[word]) ** 2 for word in mine | other)
        differ = sum(places[i] for i in range(4) if a[i] != b[i])
        return heights[0] * torch.exp(torch.as_tensor(-differ)) + heights[1] * torch.exp(-c[0] * apart / 2)

    seen = ["AAAA", "ACGT", "ACGG"]
    scale = given.value.std()
    d = ((0.25 + fitted.misfit**2) / scale**2).item()
    matrix = torch.stack([torch.stack([k(a, b) for b in seen]) for a in seen]) + d * torch.eye(3)
    for design in ("ACGT", "TCGA"):
        towards = torch.stack([k(design, b) for b in seen])
        solved = torch.linalg.solve(matrix, towards)
        mean, std = fitted.predict([design])
        y = (given.value - given.value.mean()) / scale
        torch.testing.assert_close(mean[0], given.value.mean() + scale * solved @ y)
        torch.testing.assert_close(std[0], scale * (k(design, design) - solved @ towards).sqrt())


def test_the_process_is_botorchs() -> None:
    """SingleTaskGP with the same kernel and noise, its own posterior."""
    models = pytest.importorskip("botorch.models")
    import gpytorch

    fitted: Any = GaussianProcess(iterations=5).fit(CODEC, measured(), torch.Generator())
    with gpytorch.settings.fast_computations(False, False, False):
        model = models.SingleTaskGP(
            fitted.x, fitted.y[:, None], train_Yvar=fitted.variance[:, None], covar_module=fitted.kernel,
            mean_module=gpytorch.means.ZeroMean(), outcome_transform=None,
        ).eval()  # fmt: skip
        theirs = model.posterior(readable(CODEC, EVERY[:20]).flatten(1))
    ours = fitted.predict(EVERY[:20])
    torch.testing.assert_close(ours.mean, fitted.center + fitted.scale * theirs.mean[:, 0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.std, fitted.scale * theirs.variance[:, 0].sqrt(), rtol=1e-4, atol=1e-6)


def test_vectors_have_a_process_too() -> None:
    x = torch.linspace(-2, 2, 30, dtype=torch.float64)
    designs = list(torch.stack([x, x.flip(0)], 1).numpy())
    fitted = GaussianProcess().fit(VectorCodec(), Measurements(designs, x.sin()), torch.Generator())
    mean, _ = fitted.predict(designs)
    assert (mean - x.sin()).abs().max() < 0.1
    ensemble = Ensemble(training=FEW).fit(
        VectorCodec(), Measurements(designs, x.sin()), torch.Generator().manual_seed(0)
    )
    assert torch.corrcoef(torch.stack([ensemble.predict(designs).mean, x.sin()]))[0, 1] > 0.9


@pytest.mark.parametrize("learner", [Linear(), Ensemble(training=FEW), GaussianProcess()])
def test_images_have_surrogates_too(learner: Any) -> None:
    """Brightness of random pictures, learned from 60 of them; the slope of the mean is upward."""
    pictures = torch.randint(0, 256, (80, 3, 3, 2), generator=torch.Generator().manual_seed(0)).to(torch.uint8).numpy()
    bright = torch.tensor([picture.mean() for picture in pictures], dtype=torch.float64)
    fitted = learner.fit(ImageCodec(), Measurements(list(pictures[:60]), bright[:60]), torch.Generator().manual_seed(0))
    seen = torch.stack([fitted.predict(list(pictures[60:])).mean, bright[60:]])
    assert torch.corrcoef(seen)[0, 1] > 0.7
    p = readable(ImageCodec(), list(pictures[60:])).requires_grad_()
    (slope,) = torch.autograd.grad(fitted.at(p).mean.sum(), p)
    assert slope.shape == (20, 2, 3, 3)
    assert slope.mean((1, 2, 3)).min() > 0


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    modules = "difftilt, difftilt.surrogates.rewards, difftilt.surrogates.gaussian_process, difftilt.surrogates.linear"
    code = f"import sys, {modules}; sys.exit('gpytorch' in sys.modules or 'botorch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- bootstrap ensemble ----------------------------------------------------------------------------------------------


def test_members_differ_by_resample_and_by_start(fitted: dict[str, Surrogate]) -> None:
    networks = fitted["ensemble"].networks
    out = networks.held_out
    assert all(not torch.equal(out[0], other) for other in out[1:])
    assert out.double().mean().item() == pytest.approx(math.exp(-1), abs=5.5 * math.sqrt(0.1 / 480))
    assert fitted["ensemble"].members(relaxed(3)).std(0).min() > 1e-3


def test_batched_members_are_the_single_ones(fitted: dict[str, Surrogate]) -> None:
    networks, p = fitted["ensemble"].networks, relaxed(5).float()
    together = forward(networks.network, networks.state, p)
    for e in range(len(together)):
        torch.testing.assert_close(
            together[e],
            torch.func.functional_call(networks.network, {k: v[e] for k, v in networks.state.items()}, (p,)),
            rtol=1e-5, atol=1e-6,
        )  # fmt: skip


def test_mean_and_covariance_are_the_members(fitted: dict[str, Surrogate]) -> None:
    ensemble, p = fitted["ensemble"], relaxed(4)
    value = ensemble.members(p)
    torch.testing.assert_close(ensemble.joint(p)[0], value.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ensemble.joint(p)[1], torch.cov(value.T), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(Largest(ensemble).on_probabilities(p), value.max(0).values, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        Largest(ensemble)(EVERY[:5]), ensemble.members(readable(CODEC, EVERY[:5])).max(0).values, rtol=1e-5, atol=1e-6
    )
    wider = ensemble.tempered(3.0).members(p)
    torch.testing.assert_close(wider - value.mean(0), 3 * (value - value.mean(0)), rtol=1e-4, atol=1e-5)


def test_priors_sum_to_0_and_have_their_spread_over_the_rows() -> None:
    """Each is one network's start, shifted and stretched: its mean over the rows is 0, its std beta_E."""
    rows = measured(80)
    fitted = Ensemble(members=5, prior_std=0.7, training=FEW).fit(CODEC, rows, torch.Generator().manual_seed(0))
    priors, x = fitted.networks.priors, fitted.phi(readable(CODEC, rows.designs))
    raw = forward(priors.network, priors.state, x.float()).double()
    own = 0.7 * math.sqrt(5 / 4) * (raw - raw.mean(1, keepdim=True)) / raw.std(1, keepdim=True)
    torch.testing.assert_close(priors(x), own - own.mean(0), rtol=1e-4, atol=1e-5)
    everywhere = fitted.phi(readable(CODEC, EVERY))
    torch.testing.assert_close(priors(everywhere).sum(0), torch.zeros(len(EVERY)).double(), rtol=0, atol=1e-6)
    own = forward(fitted.networks.network, fitted.networks.state, everywhere.float()).double()
    torch.testing.assert_close(fitted.networks(everywhere), own + priors(everywhere))
    assert Ensemble(members=5, prior_std=0.0, training=FEW).fit(CODEC, rows, torch.Generator()).networks.priors is None


def test_members_disagree_far_from_the_rows_and_not_near_them() -> None:
    """Rows are 60 designs without one letter; far are those that hold it twice or more. Twin: resamples alone.

    The values are a sum over letters, of which the rows tell nothing about the missing one: the posterior std of a
    linear function with the spread of the values is about theirs. Members of resamples alone say a seventh.
    """
    near = [design for design in EVERY if "T" not in design][:60]
    far = [design for design in EVERY if design.count("T") >= 2]
    value = torch.tensor([float(design.count("A") - design.count("C")) for design in near]).double()
    claimed = {}
    for prior_std in (1.0, 0.0):
        learner = Ensemble(prior_std=prior_std, training=Training(updates=200))
        fitted = learner.fit(CODEC, Measurements(near, value), torch.Generator().manual_seed(0))
        claimed[prior_std] = [(fitted.predict(designs).std.mean() / value.std()).item() for designs in (near, far)]
    assert claimed[1.0][0] < 0.4
    assert claimed[1.0][1] > 0.8
    assert claimed[0.0][1] < 0.4, "the twin does not see what it cannot know"


def test_two_rows_make_an_ensemble_that_knows_nothing() -> None:
    """Whatever the resamples hold: finite, and its misfit is a number."""
    for seed in range(6):
        two = Measurements(["AAAA", "CCCC"], torch.tensor([0.0, 1.0]).double())
        fitted = Ensemble(members=2, training=FEW).fit(CODEC, two, torch.Generator().manual_seed(seed))
        mean, std = fitted.predict(EVERY[:5])
        assert torch.cat([mean, std]).isfinite().all()
        assert fitted.misfit >= 0
        assert temper(fitted.held_out) == 1.0


@pytest.mark.parametrize("name", ["linear", "ensemble of features", "gaussian process"])
def test_noisy_rows_pull_less(name: str) -> None:
    """Half the rows are noisy and too high: designs not measured follow the others. Twin: all rows alike."""
    data = measured(120)
    noisy = torch.arange(120) % 2 == 0
    shift = 2 * data.value.std()
    rest = [design for design in EVERY if design not in data.designs]
    clean = LEARNERS[name].fit(CODEC, data, torch.Generator().manual_seed(0)).predict(rest).mean
    stds = torch.where(noisy, 3 * shift, 0.01 * shift)
    pull = {}
    for noise in (stds, torch.full_like(stds, 0.5)):
        given = Measurements(data.designs, data.value + shift * noisy, noise)
        fitted = LEARNERS[name].fit(CODEC, given, torch.Generator().manual_seed(0))
        pull[noise is stds] = ((fitted.predict(rest).mean - clean).mean() / shift).item()
    assert abs(pull[True]) < 0.25 < pull[False]


def test_misfit_is_what_held_out_errors_hold_beyond_disagreement_and_noise() -> None:
    given = Measurements(measured().designs, measured().value, torch.full((60,), 0.1).double())
    fitted = Ensemble(prior_std=0.0, training=FEW).fit(CODEC, given, torch.Generator().manual_seed(0))
    seen = fitted.held_out
    assert fitted.misfit > 0.1
    expected = (seen.model.square() + seen.noise.square()).mean()
    torch.testing.assert_close((seen.measured - seen.mean).square().mean(), expected)
    assert (seen.model > fitted.misfit).all()


def test_training_keeps_each_members_best_held_out_parameters_and_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that are pure noise, so that training on goes wrong."""
    x = readable(CODEC, EVERY[:60])
    y = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network, looks, look = {"type": "perceptron", "size": 16, "hidden": 64}, [], training._held_out_error

    def watched(*given: Any) -> torch.Tensor:
        looks.append(look(*given))
        return looks[-1]

    monkeypatch.setattr(training, "_held_out_error", watched)
    for patience in (3, 10**6):
        looks.clear()
        members = train(
            x, y, torch.zeros(60).double(), torch.Generator().manual_seed(0), members=4, network=network,
            config=Training(updates=600, patience=patience),
        )  # fmt: skip
        seen = torch.stack(looks)
        torch.testing.assert_close(
            look(members.network, members.state, x.float(), y.float().expand(4, -1), members.held_out), seen.amin(0)
        )
        assert (seen[-1] > 1.2 * seen.amin(0)).all()
        assert len(seen) < 30 if patience == 3 else len(seen) == 30


# --- feasibility and settings ----------------------------------------------------------------------------------------


def test_a_feasible_reward_adds_the_log_chance(fitted: dict[str, Surrogate]) -> None:
    value = torch.tensor([1.0, math.nan, 2.0]).double()
    feasibility = Logistic().fit(CODEC, Measurements(["AAAA", "CCCC", "ACGT"], value))
    reward = Feasible(Bound(fitted["linear"]), feasibility, 0.3)
    p = relaxed(3)
    expected = Bound(fitted["linear"]).on_probabilities(p) + 0.3 * feasibility.log_probability(p)
    torch.testing.assert_close(reward.on_probabilities(p), expected)
    torch.testing.assert_close(reward(EVERY[:3]), reward.on_probabilities(readable(CODEC, EVERY[:3])))
    assert feasibility.log_probability(readable(CODEC, ["CCCC"])) < feasibility.log_probability(
        readable(CODEC, ["AAAA"])
    )


@pytest.mark.parametrize(
    "settings",
    [
        lambda: Ensemble(members=1),
        lambda: Ensemble(prior_std=-1.0),
        lambda: Linear(prior_std=0.0),
        lambda: Linear(misfit=-1.0),
        lambda: GaussianProcess(iterations=0),
        lambda: Training(updates=0),
        lambda: Logistic(prior_std=0.0),
    ],
)
def test_settings_out_of_range_are_refused(settings: Any) -> None:
    with pytest.raises(ConfigError, match=r"expected .*; got .*; "):
        settings()


def test_the_perceptron_is_a_registered_regressor() -> None:
    network = construct("regressor", {"type": "perceptron", "size": 6})
    assert network(torch.zeros(2, 3, 2)).shape == (2,)
    assert network.config() == {"size": 6, "hidden": 64}
