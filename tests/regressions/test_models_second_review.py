"""What a second review of models found: each test is named by what was wrong."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("diffusers")

import torch

import difftilt as dt
import tiny


def test_a_small_network_spent_a_hundredth_of_its_pass_on_the_search_for_its_dtype(monkeypatch):
    from diffusers import DDPMScheduler, UNet2DModel

    policy = dt.load(tiny.unet(), scheduler=DDPMScheduler(), steps=4, sigma_min=0.1)
    asked, found = [], UNet2DModel.dtype.fget

    def search(model):
        asked.append(sys._getframe(1).f_globals["__name__"].partition(".")[0])
        return found(model)

    monkeypatch.setattr(UNet2DModel, "dtype", property(search))
    policy.sample(2)
    assert asked.count("difftilt") == 1
    policy.sample(2)
    assert asked.count("difftilt") == 1

    policy.denoiser.model.to(torch.bfloat16)
    policy.sample(2)
    assert asked.count("difftilt") == 2  # a cast is followed
