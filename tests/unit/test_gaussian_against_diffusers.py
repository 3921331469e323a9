"""DDPM and DDIM steps equal diffusers', its tables cast to float64, at every step of the chain."""

import itertools

import pytest
import torch

from difftilt.networks.diffusers_scheduler import from_diffusers
from difftilt.processes.gaussian import Gaussian

diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-10
PREDICTIONS = ("epsilon", "sample", "v_prediction")
# spacing, offset, steps: with and without a last timestep of 0, strides that divide 1000 and that do not.
CHAINS = (
    ("leading", 0, 20),
    ("leading", 1, 20),
    ("leading", 1, 30),
    ("linspace", 0, 30),
    ("trailing", 0, 20),
    ("trailing", 0, 30),
)


class Stride:
    """Stands in for ``num_inference_steps``: diffusers' DDIM computes ``T // n``, and here gets the true stride."""

    def __init__(self, stride: int) -> None:
        self.stride = stride

    def __rfloordiv__(self, total: int) -> int:
        return self.stride


def scheduler_of(kind: str, steps: int, **config):
    scheduler = getattr(diffusers, kind)(**{"clip_sample": False, **config})
    scheduler.set_timesteps(steps)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    if kind == "DDIMScheduler":
        scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    return scheduler


def inputs(rng: torch.Generator) -> list[torch.Tensor]:
    return [torch.randn(2, 3, 4, dtype=torch.float64, generator=rng) for _ in range(3)]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= TOLERANCE)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("spacing", "offset", "steps"), CHAINS)
def test_ddim_steps_equal_diffusers(spacing, offset, steps, prediction, eta, rng):
    for one, betas in itertools.product((True, False), ("linear", "scaled_linear")):
        scheduler = scheduler_of(
            "DDIMScheduler", steps, timestep_spacing=spacing, steps_offset=offset, prediction_type=prediction,
            set_alpha_to_one=one, beta_schedule=betas,
        )  # fmt: skip
        process, grid = from_diffusers(scheduler.config, steps, kernel="ddim", eta=eta)
        visited = [*scheduler.timesteps.tolist(), -1]
        assert process.schedule.timestep(grid).tolist() == visited
        for k in range(steps):
            x, output, noise = inputs(rng)
            scheduler.num_inference_steps = Stride(visited[k] - visited[k + 1])
            theirs = scheduler.step(output, visited[k], x, eta=eta, variance_noise=noise).prev_sample
            law = process.transition(output, x, grid[k], grid[k + 1])
            assert close(law.mean + law.std.reshape(-1, 1, 1) * noise, theirs), (k, one, betas)


@pytest.mark.parametrize(("spacing", "offset", "steps"), [("leading", 1, 30), ("trailing", 0, 20)])
def test_unpatched_ddim_agrees_where_its_own_stride_is_the_true_one(spacing, offset, steps, rng):
    scheduler = scheduler_of("DDIMScheduler", steps, timestep_spacing=spacing, steps_offset=offset)
    process, grid = from_diffusers(scheduler.config, steps, eta=0.5)
    for k, timestep in enumerate(scheduler.timesteps.tolist()):
        x, output, noise = inputs(rng)
        theirs = scheduler.step(output, timestep, x, eta=0.5, variance_noise=noise).prev_sample
        law = process.transition(output, x, grid[k], grid[k + 1])
        assert close(law.mean + law.std.reshape(-1, 1, 1) * noise, theirs), k


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("spacing", "offset", "steps"), CHAINS)
def test_ddpm_steps_equal_diffusers(spacing, offset, steps, prediction, variance, rng, monkeypatch):
    import diffusers.schedulers.scheduling_ddpm as module

    given = {}
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: given["noise"])
    for betas in ("linear", "squaredcos_cap_v2", "sigmoid"):
        scheduler = scheduler_of(
            "DDPMScheduler", steps, timestep_spacing=spacing, steps_offset=offset, prediction_type=prediction,
            variance_type=variance, beta_schedule=betas,
        )  # fmt: skip
        process, grid = from_diffusers(scheduler.config, steps, kernel="ddpm")
        for k, timestep in enumerate(scheduler.timesteps.tolist()):
            x, output, noise = inputs(rng)
            law = process.transition(output, x, grid[k], grid[k + 1])
            given["noise"] = torch.zeros_like(noise)
            assert close(law.mean, scheduler.step(output, timestep, x).prev_sample), (k, betas)
            given["noise"] = noise.clamp(-0.9, 0.9)  # its variance floor gives a noiseless last step a std of 1e-10
            theirs = scheduler.step(output, timestep, x).prev_sample
            assert close(law.mean + law.std.reshape(-1, 1, 1) * given["noise"], theirs), (k, betas)


def test_sampling_draws_the_same_noise_as_diffusers(rng):
    scheduler = scheduler_of("DDPMScheduler", 25)
    process, grid = from_diffusers(scheduler.config, 25, kernel="ddpm")
    for k, timestep in enumerate(scheduler.timesteps.tolist()):
        x, output, _ = inputs(rng)
        mine, theirs = (torch.Generator().manual_seed(k) for _ in range(2))
        sample = process.transition(output, x, grid[k], grid[k + 1]).sample(mine)
        assert close(sample, scheduler.step(output, timestep, x, generator=theirs).prev_sample)


@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler"])
def test_zero_terminal_snr_steps_equal_diffusers(kind, rng):
    # eta = 0.5: at eta = 1 diffusers takes the root of 1 - a - std^2, a cancelled 0 at the first step: 1e-8 off.
    steps, kernel, own = 20, kind[:4].lower(), {"eta": 0.5} if kind == "DDIMScheduler" else {}
    scheduler = scheduler_of(
        kind, steps, timestep_spacing="trailing", prediction_type="v_prediction", rescale_betas_zero_snr=True
    )
    process, grid = from_diffusers(scheduler.config, steps, kernel=kernel, **own)
    assert process.schedule.scales(grid[:1])[0] == 0
    for k, timestep in enumerate(scheduler.timesteps.tolist()[:-1]):
        x, output, _ = inputs(rng)
        mine, theirs = (torch.Generator().manual_seed(k) for _ in range(2))
        sample = process.transition(output, x, grid[k], grid[k + 1]).sample(mine)
        assert close(sample, scheduler.step(output, timestep, x, generator=theirs, **own).prev_sample)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_timesteps_equal_diffusers_for_every_number_of_steps(spacing):
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing, clip_sample=False, num_train_timesteps=200)
    for steps in range(1, 201):
        scheduler.set_timesteps(steps)
        process, grid = from_diffusers(scheduler.config, steps)
        visited = scheduler.timesteps.tolist()[:steps]  # "trailing" may add a -1 by rounding
        assert process.schedule.timestep(grid[:-1]).tolist() == visited


def test_corruption_equals_add_noise(rng):
    scheduler = scheduler_of("DDPMScheduler", 1000, beta_schedule="squaredcos_cap_v2")
    process, grid = from_diffusers(scheduler.config, 1000, kernel="ddpm")
    x_0, noise, _ = inputs(rng)
    for k in (0, 500, 999):
        state = torch.Generator().manual_seed(k)
        noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        theirs = scheduler.add_noise(x_0, noise, torch.tensor([999 - k] * 2))
        assert close(process.corrupt(x_0, grid[k].expand(2), state), theirs)


def test_a_saved_scheduler_process_is_the_same_process():
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False)
    process, grid = from_diffusers(scheduler.config, 50, eta=0.5)
    again = Gaussian(**process.config())
    for before, after in zip(process.schedule.scales(grid), again.schedule.scales(grid), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("bound", [1.0, 0.3])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("kind", "eta"), [("DDPMScheduler", 1.0), ("DDIMScheduler", 0.0), ("DDIMScheduler", 0.5)])
def test_clipped_steps_equal_diffusers(kind, eta, prediction, bound, rng):
    """The cut acts in every one of these steps; DDPM's noise estimate follows it, DDIM's does not."""
    steps, more = 20, {"eta": eta} if kind == "DDIMScheduler" else {}
    scheduler = scheduler_of(kind, steps, clip_sample=True, clip_sample_range=bound, prediction_type=prediction)
    process, grid = from_diffusers(scheduler.config, steps, kernel=kind[:4].lower(), eta=eta)
    plain, _ = from_diffusers({**scheduler.config, "clip_sample": False}, steps, kernel=kind[:4].lower(), eta=eta)
    for k, timestep in enumerate(scheduler.timesteps.tolist()):
        x, output, _ = inputs(rng)
        mine, theirs = (torch.Generator().manual_seed(k) for _ in range(2))
        law = process.transition(output, x, grid[k], grid[k + 1])
        assert close(law.sample(mine), scheduler.step(output, timestep, x, generator=theirs, **more).prev_sample), k
        assert not close(law.mean, plain.transition(output, x, grid[k], grid[k + 1]).mean)
        assert process.denoised(output, x, grid[k]).abs().max() <= bound
