"""Pitfalls 1 and 4: log-probabilities of steps without noise, and of states that were rounded after scoring."""

import pytest
import torch
from torch import nn

from difftilt.algorithms.paths import choose_steps
from difftilt.algorithms.ppo import PPO
from difftilt.core.algorithm import Anchor
from difftilt.core.codec import VectorCodec
from difftilt.core.gaussian_step import GaussianStep
from difftilt.core.policy import Policy
from difftilt.core.trajectory import rollout, step_log_prob
from difftilt.errors import NoDensityError, UnsupportedError
from difftilt.networks.diffusers_scheduler import from_diffusers
from difftilt.networks.windowed import windowed
from difftilt.processes.flow import Flow


class Half(nn.Module):
    """A network that answers in bfloat16, as large pretrained ones do."""

    def forward(self, x_t, t, cond=None):
        return (0.5 * x_t).bfloat16()


def policy_of(config, **own) -> Policy:
    process, grid = from_diffusers(config, 20, **own)
    return Policy(Half(), process, VectorCodec(), (64,), grid=grid)


@pytest.mark.parametrize(
    ("config", "eta", "noiseless"),
    [
        ({}, 0.0, 20),  # DDIM proper: NaN everywhere in ddpo-pytorch
        ({}, 1.0, 1),  # diffusers' defaults, steps_offset = 0: NaN at the last step
        ({"set_alpha_to_one": False}, 1.0, 1),
        ({"set_alpha_to_one": False, "steps_offset": 1}, 1.0, 0),  # Stable Diffusion's: the last step has noise
        ({"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, 1.0, 1),
    ],
)
def test_zero_variance_is_marked_and_never_nan(config, eta, noiseless, rng):
    policy = policy_of(config, kernel="ddim", eta=eta)
    other = policy.frozen_copy()
    trajectory = rollout(policy, 4, rng, references=[other])
    assert trajectory.log_prob.isfinite().all()
    assert (trajectory.log_ratio == 0).all()
    silent = 0
    for x_t, x_s, t, s in zip(
        trajectory.states[:-1], trajectory.states[1:], policy.grid[:-1], policy.grid[1:], strict=True
    ):
        law = policy.step(x_t, t, s)
        assert (law.kl(other.step(x_t, t, s)) == 0).all()
        if not law.has_density:
            silent += 1
            with pytest.raises(NoDensityError):
                law.log_prob(x_s)
    assert silent == noiseless


def test_zero_terminal_snr_with_epsilon_prediction_is_refused():
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "epsilon"}
    with pytest.raises(UnsupportedError, match=r"zero terminal SNR.*predicts v or x_0"):
        policy_of(config)


def test_log_prob_is_of_the_stored_state(rng):
    """States stay float32 under a bfloat16 network, and scoring them again gives the stored number."""
    policy = policy_of({})
    trajectory = rollout(policy, 8, rng)
    assert trajectory.states.dtype == torch.float32
    for k in range(policy.steps):
        again = step_log_prob(policy, *trajectory.states[k : k + 2], *policy.grid[k : k + 2])
        assert torch.equal(again.double(), trajectory.log_prob[k])


class Bfloat16(nn.Module):
    """A network whose weights are bfloat16; it reads a cast of the state, and answers in its own type."""

    def __init__(self):
        super().__init__()
        torch.nn.init.orthogonal_((layer := nn.Linear(64, 64)).weight)
        self.layer = layer.bfloat16()

    def forward(self, x_t, t, cond=None):
        return self.layer(x_t.to(self.layer.weight.dtype))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("settings", [{}, {"ratio": "per_dimension"}, {"ratio": "gaussian_kl"}])
@pytest.mark.parametrize("process", [Flow(0.7, sigma_min=0.05), Flow(0.7, sigma_min=0.05, window=(0.8, 0.2))])
def test_the_first_ratio_is_one_under_a_bfloat16_network(process, settings, autocast, rng):
    """Of the stored float32 state, on the same slices; with the state rounded as the network's (twin) it is not."""
    network = Bfloat16().float() if autocast else Bfloat16()
    policy = Policy(network, process, VectorCodec(), (64,), steps=5)
    if process.window != (1, 0):
        policy = windowed(policy, *process.window)
    algorithm = PPO(batch=8, epochs=1, minibatches=1, **settings)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert policy.denoiser(policy.prior(1, rng), torch.ones(1)).dtype == torch.bfloat16
        state = algorithm.init(policy, [Anchor(policy.frozen_copy(), 0.1)])
        data = algorithm.collect(state, lambda designs: [float(x.sum()) for x in designs], rng)
        path, rows, steps = data.path, torch.arange(8), data.path.noisy
        assert path.states.dtype == torch.float32
        for k in steps.tolist():
            again = step_log_prob(policy, *path.states[k : k + 2], *path.times[k : k + 2])
            assert torch.equal(again.double(), path.log_prob[k])
            rounded = step_log_prob(
                policy, path.states[k], path.states[k + 1].bfloat16().float(), *path.times[k : k + 2]
            )
            assert not torch.equal(rounded.double(), path.log_prob[k])
        chosen = choose_steps(path, rows, None, rng)
        loss, seen = algorithm.loss(state, data, algorithm.targets(state, data), chosen, rows, rng)
        assert seen["log_ratio"].abs().max() < 1e-3
        assert loss.isfinite()


def test_rounding_a_state_after_scoring_it_moves_its_log_prob_down(rng):
    """The twin: what `prev_sample.type(sample.dtype), log_prob` does, measured as always negative."""
    law = GaussianStep(torch.randn(64, 4096, generator=rng), torch.tensor(0.01))
    x_s = law.sample(rng)
    shift = law.log_prob(x_s.bfloat16()) - law.log_prob(x_s)
    assert (shift < 0).all()
    stored = x_s.bfloat16().double()
    exact = GaussianStep(law.mean.double(), law.std).log_prob(stored)
    assert torch.allclose(law.log_prob(x_s.bfloat16()), exact, rtol=1e-6)
