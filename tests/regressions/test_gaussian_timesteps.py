"""Pitfalls 2 and 3: which timestep a step goes to."""

import pytest
import torch

from difftilt.networks.diffusers_scheduler import from_diffusers


def tables(**config):
    betas = torch.linspace(0.0001, 0.02, 1000)
    process, grid = from_diffusers(config, 30)
    return torch.cumprod(1 - betas, 0).double(), process, grid


@pytest.mark.parametrize("offset", [0, 1])
def test_the_last_step_uses_the_final_alpha(offset):
    """ddpo-pytorch and TRL clamp the previous timestep to 0 first, so that their final alpha is never used."""
    prediction, x_t = torch.full((1, 2), 0.3).double(), torch.full((1, 2), 0.9).double()
    means = []
    for to_one in (True, False):
        own = {"set_alpha_to_one": to_one, "steps_offset": offset}
        table, process, grid = tables(prediction_type="sample", **own)
        final = 1.0 if to_one else table[0].item()
        assert process.schedule.scales(grid[-1])[0].item() == pytest.approx(final**0.5, abs=1e-15)
        means.append(process.transition(prediction, x_t, grid[-2], grid[-1]).mean)
    assert torch.allclose(means[0], prediction, atol=1e-15)  # alpha = 1: the x_0 estimate itself
    assert (means[0] - means[1]).abs().max() > 1e-4  # and the two endings are not the same step


def test_a_step_goes_to_the_next_timestep_visited():
    """``prev = t - T // n`` assumes a stride of 33 where linspace with n = 30 has strides of 34 and 35."""
    table, process, grid = tables(timestep_spacing="linspace")
    visited = process.schedule.timestep(grid[:-1])
    assert set((-visited.diff()).tolist()) == {34, 35}
    x = torch.ones(1, 1).double()
    for k in range(29):
        a_t, a_s = table[visited[k]], table[visited[k + 1]]
        law = process.transition(x, x, grid[k], grid[k + 1])
        assert law.std.item() ** 2 == pytest.approx(((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)).item(), rel=1e-9)
        assumed = table[visited[k] - 33]
        wrong = (1 - assumed) / (1 - a_t) * (1 - a_t / assumed)
        assert abs(law.std.item() ** 2 / wrong.item() - 1) > 1e-3  # twin: the assumed stride is another step
