"""Euler steps on the flow equal diffusers', first and last included."""

from __future__ import annotations

import pytest
import torch

from difftilt.errors import ConfigError, UnsupportedError
from difftilt.networks.diffusers_scheduler import UNSUPPORTED_FLOW, flow_from_diffusers

diffusers = pytest.importorskip("diffusers")


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 28])
def test_steps_equal_the_flow_matching_euler_scheduler(shift, steps):
    """To 1e-6: the scheduler computes in float32. Sigmas and timesteps too."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    process, grid = flow_from_diffusers(scheduler.config, steps)
    torch.testing.assert_close(grid.float(), scheduler.sigmas, rtol=0, atol=1e-6)
    torch.testing.assert_close((1000 * grid[:-1]).float(), scheduler.timesteps, rtol=0, atol=1e-3)
    rng = torch.Generator().manual_seed(0)
    for t, s, timestep in zip(grid[:-1], grid[1:], scheduler.timesteps, strict=True):
        x_t, velocity = torch.randn(2, 3, 4, generator=rng), torch.randn(2, 3, 4, generator=rng)
        wanted = scheduler.step(velocity, timestep, x_t).prev_sample
        torch.testing.assert_close(process.transition(velocity, x_t, t, s).mean, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", UNSUPPORTED_FLOW)
def test_options_that_make_another_chain_are_refused_by_name(name):
    with pytest.raises(UnsupportedError, match=name):
        flow_from_diffusers({name: 0.1}, 4)


def test_more_steps_than_timesteps_are_refused():
    with pytest.raises(ConfigError, match="1 to 1000"):
        flow_from_diffusers({}, 1001)
