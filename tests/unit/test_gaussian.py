"""The Gaussian process and its step obey their formulas, in float64."""

import itertools
import json
import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from difftilt.core.gaussian_step import GaussianStep
from difftilt.core.noise import VE, VP, Cosine, Schedule, Table
from difftilt.core.registry import construct, describe
from difftilt.core.schedule import uniform_grid
from difftilt.errors import ConfigError, NoDensityError, ShapeError, UnsupportedError
from difftilt.networks.diffusers_scheduler import from_diffusers
from difftilt.processes.gaussian import Gaussian

SCHEDULES = [VP(), Cosine(), VE(0.1, 20.0), Table([0.9, 0.6, 0.3, 0.05], final=0.97)]
KERNELS = [
    {"kernel": "ddpm"},
    {"kernel": "ddpm", "variance": "fixed_large"},
    {"kernel": "ddim", "eta": 0.0},
    {"kernel": "ddim", "eta": 0.3},
    {"kernel": "ddim", "eta": 1.0},
]
T, S = torch.tensor(0.75, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)


def normal(rng: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def step_of(rng: torch.Generator, shape=(4, 2, 3), **arguments) -> GaussianStep:
    return Gaussian(**arguments).transition(normal(rng, *shape), normal(rng, *shape), T, S)


# --- schedules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_signal_falls_from_data_to_noise(schedule: Schedule):
    alpha, sigma = schedule.scales(uniform_grid(64))
    assert ((alpha / sigma).diff() >= 0).all()
    if not isinstance(schedule, VE):
        assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(alpha), atol=1e-14)
    if not isinstance(schedule, Table):
        assert alpha[-1] == 1
        assert sigma[-1] == 0


def test_closed_form_schedules_have_their_textbook_scales():
    one = torch.ones((), dtype=torch.float64)
    assert VP(0.1, 20.0).scales(one)[0].item() == pytest.approx(math.exp(-0.25 * 19.9 - 0.05), rel=1e-12)
    assert VE(0.1, 20.0).scales(one)[1].item() == pytest.approx(math.sqrt(400 - 0.01), rel=1e-12)
    alpha, sigma = Cosine(0.0).scales(one / 3)
    assert alpha.item() == pytest.approx(math.sqrt(3) / 2)
    assert sigma.item() == pytest.approx(0.5)


def test_a_table_is_read_at_its_own_timesteps_and_uniform_times_draw_them_alike():
    table = Table([0.9, 0.6, 0.3, 0.05], final=0.97)
    alpha, sigma = table.scales(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    assert torch.allclose(alpha**2, torch.tensor([0.97, 0.9, 0.6, 0.3, 0.05], dtype=torch.float64))
    assert torch.allclose(sigma**2, 1 - alpha**2)
    long = Table([1 - (i + 1) / 1001 for i in range(1000)])
    exact = torch.arange(1001, dtype=torch.float64) / 1000
    assert long.timestep(exact).tolist() == long.timestep(exact.float()).tolist() == list(range(-1, 1000))
    times = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert torch.bincount(table.timestep(times)).tolist() == [250] * 4


# --- the step -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if "variance" not in kernel])
def test_a_step_with_the_true_x_0_keeps_the_noising_marginal(schedule, kernel):
    """x_t ~ q(x_t|x_0) and a perfect prediction give x_s ~ q(x_s|x_0), for any eta: DDIM's defining property."""
    process = Gaussian(schedule, prediction="x_0", **kernel)
    grid = uniform_grid(4)
    for t, s in itertools.pairwise(grid):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.scales(t), schedule.scales(s)
        x_0 = torch.tensor([[1.3], [1.3]], dtype=torch.float64)
        law = process.transition(x_0, alpha_t * x_0 + sigma_t * torch.tensor([[0.0], [1.0]]).double(), t, s)
        assert law.mean[0].item() == pytest.approx(1.3 * alpha_s.item(), abs=1e-12)
        spread = (law.mean[1] - law.mean[0]).item() ** 2 + law.std[0].item() ** 2
        assert spread == pytest.approx(sigma_s.item() ** 2, abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddpm_is_the_bayes_posterior_given_x_0(schedule):
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.scales(T), schedule.scales(S)
    ratio = alpha_t / alpha_s  # x_t = ratio x_s + noise, so cov(x_s, x_t | x_0) = ratio sigma_s^2
    x_0, x_t = torch.tensor([[0.7]]).double(), torch.tensor([[-0.4]]).double()
    gain = ratio * sigma_s**2 / sigma_t**2
    law = Gaussian(schedule, prediction="x_0").transition(x_0, x_t, T, S)
    assert torch.allclose(law.mean, alpha_s * x_0 + gain * (x_t - alpha_t * x_0))
    assert torch.allclose(law.std**2, sigma_s**2 - gain * ratio * sigma_s**2)
    large = Gaussian(schedule, prediction="x_0", variance="fixed_large").transition(x_0, x_t, T, S)
    assert torch.equal(large.mean, law.mean)
    assert torch.allclose(large.std**2, sigma_t**2 - ratio**2 * sigma_s**2)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_three_predictions_tell_the_same_step(schedule, kernel, rng):
    x_0, noise = normal(rng, 5, 3), normal(rng, 5, 3)
    alpha, sigma = schedule.scales(T)
    x_t = alpha * x_0 + sigma * noise
    told = {"x_0": x_0, "epsilon": noise, "v": alpha * noise - sigma * x_0}
    steps = [Gaussian(schedule, prediction=p, **kernel).transition(value, x_t, T, S) for p, value in told.items()]
    for other in steps[1:]:
        assert torch.allclose(steps[0].mean, other.mean, atol=1e-12)
        assert torch.equal(steps[0].std, other.std)


def test_a_batch_may_mix_times(rng):
    process = Gaussian(Cosine(), kernel="ddim", eta=0.4, prediction="v")
    t, s = torch.tensor([1.0, 0.7, 0.2]).double(), torch.tensor([0.7, 0.2, 0.1]).double()
    x_t, prediction = normal(rng, 3, 2, 2), normal(rng, 3, 2, 2)
    law = process.transition(prediction, x_t, t, s)
    for row in range(3):
        alone = process.transition(prediction[row : row + 1], x_t[row : row + 1], t[row], s[row])
        assert torch.equal(law.mean[row], alone.mean[0])
        assert torch.equal(law.log_prob(x_t)[row], alone.log_prob(x_t[row : row + 1])[0])


# --- density, KL, gradient ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [KERNELS[0], KERNELS[1], KERNELS[3]])
def test_the_density_integrates_to_one(kernel, rng):
    law = step_of(rng, shape=(1, 1), **kernel)
    x = law.mean + law.std * torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    every = GaussianStep(law.mean.expand(4001, 1), law.std.expand(4001))
    assert torch.trapezoid(every.log_prob(x).exp(), x[:, 0]).item() == pytest.approx(1, abs=1e-12)


def test_log_prob_and_kl_equal_torch_distributions(rng):
    mean, other, x = (normal(rng, 4, 2, 3) for _ in range(3))
    std, wider = torch.tensor([0.1, 1.0, 2.0, 1e-3]).double(), torch.tensor([0.1, 1.5, 2.0, 1e-2]).double()
    mine, theirs = GaussianStep(mean, std), GaussianStep(other, wider)
    p = Independent(Normal(mean, std.reshape(-1, 1, 1)), 2)
    q = Independent(Normal(other, wider.reshape(-1, 1, 1)), 2)
    assert torch.allclose(mine.log_prob(x), p.log_prob(x), rtol=1e-12)
    assert torch.allclose(mine.kl(theirs), kl_divergence(p, q), rtol=1e-12)
    same = GaussianStep(other, std)
    assert torch.allclose(mine.kl(same), (mean - other).square().sum((1, 2)) / (2 * std**2), rtol=1e-12)
    assert (mine.kl(mine) == 0).all()


def test_rsample_gradient_equals_finite_differences(rng):
    process = Gaussian(Cosine(), kernel="ddim", eta=0.6, prediction="v")
    x_t, prediction = normal(rng, 2, 3).requires_grad_(), normal(rng, 2, 3).requires_grad_()

    def drawn(prediction: torch.Tensor, x_t: torch.Tensor) -> torch.Tensor:
        return process.transition(prediction, x_t, T, S).rsample(torch.Generator().manual_seed(3)).sin()

    assert torch.autograd.gradcheck(drawn, (prediction, x_t))


def test_sample_is_rsample_outside_the_graph(rng):
    law = GaussianStep(normal(rng, 3, 2).requires_grad_(), torch.tensor(0.3))
    first, second = (draw(torch.Generator().manual_seed(1)) for draw in (law.sample, law.rsample))
    assert torch.equal(first, second)
    assert second.requires_grad
    assert not first.requires_grad


def test_log_prob_and_kl_gradients_are_the_hand_derived_ones(rng):
    mean, other, x = (normal(rng, 3, 4) for _ in range(3))
    mean.requires_grad_()
    law = GaussianStep(mean, torch.tensor([0.5, 1.0, 2.0]).double())
    variance = law.std[:, None] ** 2
    (gradient,) = torch.autograd.grad(law.log_prob(x).sum(), mean)
    assert torch.allclose(gradient, (x - mean.detach()) / variance)
    (gradient,) = torch.autograd.grad(law.kl(GaussianStep(other, law.std)).sum(), mean)
    assert torch.allclose(gradient, (mean.detach() - other) / variance)


def test_half_precision_states_and_networks_give_float32_steps(rng):
    x_t, prediction = normal(rng, 2, 3).bfloat16(), normal(rng, 2, 3).bfloat16()
    law = Gaussian().transition(prediction, x_t, T, S)
    exact = Gaussian().transition(prediction.double(), x_t.double(), T, S)
    assert law.mean.dtype == law.sample(rng).dtype == torch.float32
    x_s = law.sample(rng).bfloat16()  # a caller who stores less gets the density of what was stored
    assert torch.allclose(law.log_prob(x_s), exact.log_prob(x_s.double()), atol=1e-4)


def test_log_prob_refuses_another_shape(rng):
    with pytest.raises(ShapeError, match=r"expected x_s of shape \(4, 2, 3\); got \(4, 1, 3\)"):
        step_of(rng).log_prob(normal(rng, 4, 1, 3))


# --- steps without noise --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("schedule", SCHEDULES[:3])
def test_the_last_step_is_noiseless(kernel, schedule, rng):
    x = normal(rng, 2, 3)
    law = Gaussian(schedule, **kernel).transition(x, x, torch.tensor(0.1), torch.tensor(0.0))
    assert not law.has_density
    assert torch.equal(law.sample(rng), law.mean)
    with pytest.raises(NoDensityError, match=r"got std 0 .* sigma_min > 0"):
        law.log_prob(x)


def test_kl_of_noiseless_rows_is_zero_or_infinite_and_has_no_nan_gradient(rng):
    mean = normal(rng, 4, 2).requires_grad_()
    other = mean.detach().clone()
    other[1, 0] += 1e-12
    std, theirs = torch.tensor([0.0, 0.0, 1.0, 0.0]).double(), torch.tensor([0.0, 0.0, 1.0, 1.0]).double()
    kl = GaussianStep(mean, std).kl(GaussianStep(other, theirs))
    assert kl.tolist() == [0, math.inf, 0, math.inf]
    (gradient,) = torch.autograd.grad(kl.sum(), mean)
    assert torch.equal(gradient, torch.zeros_like(mean))


def test_a_batch_that_mixes_noisy_and_noiseless_rows_explains_itself(rng):
    law = GaussianStep(normal(rng, 3, 2), torch.tensor([0.0, 1.0, 0.0]).double())
    for ask in (lambda: law.has_density, lambda: law.log_prob(law.mean)):
        with pytest.raises(NoDensityError, match="got 2 of 3 rows without; evaluate the rows"):
            ask()


@pytest.mark.parametrize("kernel", KERNELS)
def test_sigma_min_gives_every_step_a_density_and_charges_for_it(kernel, rng):
    x, y, floor = normal(rng, 2, 3), normal(rng, 2, 3), 0.05
    plain, floored = Gaussian(**kernel), Gaussian(sigma_min=floor, **kernel)
    zero = torch.tensor(0.0)
    for s in (S, zero):
        before, after = (process.transition(x, y, T, s) for process in (plain, floored))
        assert torch.equal(before.mean, after.mean)
        assert torch.equal(after.std, before.std.clamp(min=floor))
    mine, theirs = floored.transition(x, y, T, zero), floored.transition(y, y, T, zero)
    assert torch.allclose(mine.kl(theirs), (mine.mean - theirs.mean).square().sum(-1) / (2 * floor**2))


# --- process --------------------------------------------------------------------------------------------------------


def test_prior_and_corruption_have_the_stated_scales(rng):
    process = Gaussian(VE(0.1, 20.0))
    seeded = [torch.Generator().manual_seed(7) for _ in range(4)]
    noise = torch.randn(5, 2, generator=seeded[0])
    assert torch.allclose(process.prior((5, 2), seeded[1]), math.sqrt(400 - 0.01) * noise)
    assert torch.equal(Gaussian(prior_std=1.0).prior((5, 2), seeded[2]), noise)
    x_0, t = torch.arange(10.0).reshape(5, 2), torch.linspace(0, 1, 5, dtype=torch.float64)
    alpha, sigma = (scale.float()[:, None] for scale in process.schedule.scales(t))
    assert torch.allclose(process.corrupt(x_0, t, seeded[3]), alpha * x_0 + sigma * noise)


@pytest.mark.parametrize("prediction", ["epsilon", "x_0", "v"])
def test_denoising_loss_is_the_mean_squared_error_of_the_prediction(prediction, rng):
    process, t = Gaussian(Cosine(), prediction=prediction), torch.tensor([0.3, 0.9]).double()
    x_0, noise, off = (normal(rng, 2, 3) for _ in range(3))
    alpha, sigma = (scale[:, None] for scale in process.schedule.scales(t))
    target = {"epsilon": noise, "x_0": x_0, "v": alpha * noise - sigma * x_0}[prediction]
    x_t = alpha * x_0 + sigma * noise
    assert torch.allclose(process.denoising_loss(target + off, x_0, x_t, t), off.square().mean(-1), rtol=1e-10)
    assert process.denoising_loss(off, x_0, x_0, torch.zeros(2)).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"schedule": VP()}, True),
        ({"schedule": VP(), "variance": "fixed_large"}, True),
        ({"schedule": VP(), "kernel": "ddim", "eta": 1.0}, True),
        ({"schedule": VP(), "kernel": "ddim", "eta": 0.9}, False),
        ({"schedule": VP(0.1, 2.0)}, False),  # alpha_1 = 0.59
        ({"schedule": VE(0.01, 50.0)}, True),
        ({"schedule": VE(0.01, 2.0)}, False),
    ],
)
def test_memoryless_needs_full_noise_and_little_final_signal(arguments, expected):
    assert Gaussian(**arguments).memoryless is expected


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_described_process_is_rebuilt_through_json(schedule, rng):
    process = Gaussian(schedule, kernel="ddim", eta=0.3, prediction="v", sigma_min=0.01, prior_std=1.5)
    again = construct("process", json.loads(json.dumps(describe(process))))
    x, y = normal(rng, 2, 3), normal(rng, 2, 3)
    before, after = (p.transition(x, y, T, S) for p in (process, again))
    assert torch.equal(before.mean, after.mean)
    assert torch.equal(before.std, after.std)
    assert again.prior_std == 1.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel": "dimm"}, "did you mean 'ddim'"),
        ({"prediction": "epsilom"}, "did you mean 'epsilon'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"kernel": "ddim", "eta": 1.5}, r"eta in \[0, 1\]"),
        ({"eta": 0.5}, "use the other kernel"),
        ({"kernel": "ddim", "variance": "fixed_large"}, "use the other kernel"),
        ({"clip": 0.0}, "expected clip above 0"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Gaussian(**arguments)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"thresholding": True}, UnsupportedError, "thresholding"),
        ({"variance_type": "learned_range"}, UnsupportedError, "got 'learned_range'"),
        ({"prediction_type": "v"}, ConfigError, "prediction_type"),
        ({"timestep_spacing": "leeding"}, ConfigError, "did you mean 'leading'"),
        ({"beta_schedule": "linaer"}, ConfigError, "did you mean 'linear'"),
        ({"num_train_timesteps": 10}, ConfigError, "expected 1 to 10 steps; got 20"),
        ({"num_train_timesteps": 20, "steps_offset": 1}, ConfigError, "below 20; got 20"),
    ],
)
def test_a_scheduler_that_cannot_be_run_says_why(config, error, message):
    with pytest.raises(error, match=message):
        from_diffusers(config, 20, kernel="ddpm")
