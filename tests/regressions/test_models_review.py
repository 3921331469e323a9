"""What a review of external models, adapters and alpha = 0 found."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import difftilt as dt
from difftilt.core.codec import TokenCodec, VectorCodec
from difftilt.core.policy import Policy
from difftilt.core.registry import register
from difftilt.core.trajectory import sample_states
from difftilt.errors import ConfigError, StateError, UnsupportedError
from difftilt.networks import ConvDenoiser
from difftilt.problems.landscapes import random_pairwise
from difftilt.processes import Flow, Masked
from difftilt.rng import seeded_initialisation
from difftilt.tracking.run import RunFolder

for library in ("diffusers", "transformers", "peft"):
    pytest.importorskip(library)

import tiny  # noqa: E402


@register("denoiser", "reviewed")
class Velocity(tiny.Velocity):
    def config(self) -> dict[str, Any]:
        return {}


def flow() -> Policy:
    with seeded_initialisation(0):
        return Policy(Velocity(), Flow(sigma_min=0.1), VectorCodec(), (2,), steps=4).eval()


def total(designs: list[Any]) -> list[float]:
    return [float(design.sum()) for design in designs]


class Pixels:
    """Refuses what is not pixels in [0, 1]."""

    def __call__(self, designs: list[Any]) -> torch.Tensor:
        return torch.stack([torch.from_numpy(image).float().mean() / 255 for image in designs])

    def on_probabilities(self, p: torch.Tensor) -> torch.Tensor:
        assert p.shape[1] == 3
        assert p.min() >= 0
        assert p.max() <= 1
        return p.mean((1, 2, 3))


def test_every_method_with_gradients_gives_the_reward_pixels_and_not_states(tmp_path: Path) -> None:
    import diffusers

    pixels = dt.load(tiny.unet(), scheduler=diffusers.DDPMScheduler(), steps=2, sigma_min=0.05)
    latents = dt.load(tiny.stable_diffusion(tmp_path), prompt="red", steps=2, guidance_scale=1.0)
    rng = torch.Generator().manual_seed(0)
    for policy in (pixels, latents):
        for algorithm in (dt.RewardBackprop(alpha=1.0, batch=2), dt.AdjointMatching(alpha=1.0, batch=2)):
            dt.finetune(policy, Pixels(), algorithm, loop=dt.LoopConfig(steps=1))
        dt.SMC(alpha=1.0, particles=2)(policy, Pixels(), 2, rng)
        dt.ClassifierGuidance(alpha=1.0)(policy, Pixels(), 2, rng)
        dt.ValueWeighted(alpha=1.0, candidates=2)(policy, Pixels(), 2, rng)
        dt.MCMC(alpha=1.0, moves=1)(policy, Pixels(), 2, rng)
    assert all(parameter.grad is None for parameter in latents.codec.vae.parameters())  # ty: ignore[unresolved-attribute]


def test_a_reference_with_adapters_can_be_tuned_again() -> None:
    adapted = dt.lora(flow(), rank=2, targets=["first", "last"])
    result = dt.finetune(adapted, total, dt.PPO(alpha=1.0, batch=8), loop=dt.LoopConfig(steps=1))
    for policy in (
        result.pretrained,
        result.policy,
        adapted.frozen_copy(),
        dt.windowed(adapted.frozen_copy(), 1.0, 0.4),
    ):
        again = dt.finetune(policy, total, dt.PPO(alpha=1.0, batch=8, minibatches=1), loop=dt.LoopConfig(steps=1))
        assert again.history[0]["gradient_norm"] > 0


def test_tied_and_shared_weights_are_saved(tmp_path: Path) -> None:
    model, tokenizer = tiny.protein_model(tmp_path)
    language = dt.load(model, tokenizer=tokenizer, length=4)
    for number, policy in enumerate(
        (language, dt.lora(language, rank=2), dt.windowed(dt.lora(flow(), targets=["first"]), 1.0, 0.4, level=0.7))
    ):
        policy.save_pretrained(tmp_path / str(number))
        again = dt.load(str(tmp_path / str(number)))
        assert all(torch.equal(a, b) for a, b in zip(states(again), states(policy), strict=True))


def states(policy: Policy) -> torch.Tensor:
    return sample_states(policy, 2, torch.Generator().manual_seed(0))


def test_adapters_below_a_window_are_saved(tmp_path: Path) -> None:
    policy = dt.windowed(dt.lora(flow(), targets=["first"]), 1.0, 0.4)
    dt.save_adapters(policy, tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()


def test_adapters_are_added_once_and_below_a_window() -> None:
    with pytest.raises(ConfigError, match="got one with adapters"):
        dt.lora(dt.lora(flow(), targets=["first"]), targets=["last"])
    with pytest.raises(ConfigError, match=r"windowed\(lora\(policy\)\)"):
        dt.lora(dt.windowed(flow(), 1.0, 0.4), targets=["first"])


def test_a_budget_needs_a_temperature() -> None:
    with pytest.raises(ConfigError, match="alpha > 0 with a KL budget"):
        dt.finetune(flow(), total, dt.PPO(alpha=0, batch=8), loop=dt.LoopConfig(steps=2, kl_budget=1.0))


def test_a_window_without_a_step_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="expected a step with noise"):
        dt.finetune(dt.windowed(flow(), 0.8, 0.3).with_steps(1), total, dt.PPO(alpha=1.0, batch=8))


@pytest.mark.parametrize("algorithm", [dt.TrajectoryBalance, dt.PathConsistency])
def test_fewer_remembered_paths_than_minibatches_are_learned_from(algorithm: Any) -> None:
    problem = random_pairwise(3, 3, alpha=0.5, target_kl=1.0, seed=0)
    settings = algorithm(alpha=0.5, batch=8, replay=1.0)
    state = settings.init(problem.tunable(), [dt.Anchor(problem.pretrained, 0.5)])
    rng = torch.Generator().manual_seed(0)
    from difftilt.algorithms.paths import collect, select

    state.remember(select(collect(state, problem.reward, 4, rng), torch.tensor([0])))
    assert math.isfinite(settings.step(state, problem.reward, rng).gradient_norm)


def test_a_resumed_run_of_another_method_is_refused(tmp_path: Path) -> None:
    problem = random_pairwise(3, 3, alpha=0.5, target_kl=1.0, seed=0)
    run = RunFolder(tmp_path / "run")
    loop = dt.LoopConfig(steps=1)
    dt.finetune(problem.pretrained, problem.reward, dt.PPO(alpha=0.5, batch=8), loop=loop, folder=run)
    for other in (dt.PathConsistency(alpha=0.5, batch=8), dt.PPO(alpha=0.5, batch=8, baseline="value")):
        with pytest.raises(StateError, match="resume with the settings"):
            dt.finetune(problem.pretrained, problem.reward, other, loop=loop, folder=run, resume=True)


def test_the_best_of_nothing_feasible_has_no_weight() -> None:
    with seeded_initialisation(0):
        policy = Policy(ConvDenoiser(3, 2, width=8), Masked(3), TokenCodec("ABC", 2), (2,), steps=2)
    rng = torch.Generator().manual_seed(0)
    none = dt.BestOfN(candidates=3)(policy, lambda designs: [math.nan] * len(designs), 4, rng)
    assert none.log_weight.isneginf().all()
    some = dt.BestOfN(candidates=64)(policy, lambda designs: [0.0 if d == "AA" else math.nan for d in designs], 8, rng)
    assert (some.log_weight == 0).all()


def test_rows_at_a_time_change_no_logged_number() -> None:
    problem = random_pairwise(3, 3, alpha=0.5, target_kl=1.0, seed=0)
    records = []
    for rows in (None, 1, 3):
        algorithm = dt.PPO(alpha=0.5, batch=8, minibatches=2, rows_per_pass=rows, learning_rate=0.05)
        records.append(
            dt.finetune(problem.pretrained, problem.reward, algorithm, loop=dt.LoopConfig(steps=2)).history[-1]
        )
    for name in ("log_ratio_rms", "clip_fraction", "ratio_first_pass", "gradient_norm"):
        for record in records[1:]:
            assert record[name] == pytest.approx(records[0][name], rel=1e-3, abs=1e-6), name


def test_sizes_labels_and_rates_that_cannot_be_are_named(tmp_path: Path) -> None:
    pipeline = tiny.stable_diffusion(tmp_path)
    for height in (9, 1):
        with pytest.raises(ConfigError, match="expected a multiple of 2 pixels"):
            dt.load(pipeline, height=height)
    with pytest.raises(ConfigError, match="final learning rate of 0 to 1"):
        dt.LoopConfig(final_learning_rate=-1.0)
    problem = random_pairwise(3, 3, alpha=0.5, target_kl=1.0, seed=0)
    labelled = dt.conditioned(problem.pretrained, labels=2)
    with pytest.raises(ConfigError, match="expected labels 0 to 1; got 0 to 2"):
        sample_states(labelled, 3, torch.Generator(), cond={"y": torch.arange(3)})
    with pytest.raises(ConfigError, match=r"got 0; .* take 0"):
        dt.finetune(problem.pretrained, problem.reward, dt.TrajectoryBalance(alpha=0.0))
