"""What a review of loading found: incomplete checkpoints, settings that do nothing, trace-backs in place of errors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import difftilt as dt
from difftilt.core.codec import VectorCodec
from difftilt.errors import ConfigError, OracleError, ShapeError, StateError, UnsupportedError
from difftilt.networks.lora import Adapted
from difftilt.networks.stored import read_model
from difftilt.problems.landscapes import random_pairwise
from difftilt.processes import Flow
from difftilt.tracking.run import RunFolder

for library in ("diffusers", "transformers", "peft"):
    pytest.importorskip(library)

import diffusers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import tiny  # noqa: E402


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny.stable_diffusion(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def flow_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny.stable_diffusion_3(tmp_path_factory.mktemp("words"))


# --- checkpoints -------------------------------------------------------------------------------------------------


def lost(weights: dict[str, torch.Tensor], name: str) -> None:
    del weights[name]


def reshaped(weights: dict[str, torch.Tensor], name: str) -> None:
    weights[name] = torch.zeros(7, 7)


def broken(weights: dict[str, torch.Tensor], name: str) -> None:
    weights[name].view(-1)[0] = torch.nan


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor], str], None], name: str) -> str:
    """Change the tensor that ends in ``name``; its whole name."""
    weights = load_file(file)
    (whole,) = (found for found in weights if found.endswith(name))
    change(weights, whole)
    save_file(weights, file, metadata={"format": "pt"})
    return whole


@pytest.mark.parametrize("change", [lost, reshaped, broken])
def test_a_language_model_s_first_wrong_tensor_is_named(tmp_path: Path, change: Any) -> None:
    model, tokenizer = tiny.protein_model(tmp_path)
    model.save_pretrained(tmp_path / "protein")
    tokenizer.save_pretrained(tmp_path / "protein")
    whole = rewrite(tmp_path / "protein" / "model.safetensors", change, "attention.self.query.weight")
    expected = rf"expected \[16, 16\] for '{whole}' .*got \[7, 7\]" if change is reshaped else whole
    with pytest.raises(StateError, match=expected):
        dt.load(str(tmp_path / "protein"), length=6)


@pytest.mark.parametrize("change", [lost, reshaped, broken])
def test_a_model_s_first_wrong_tensor_is_named(tmp_path: Path, change: Any) -> None:
    tiny.unet().save_pretrained(tmp_path)
    whole = rewrite(tmp_path / "diffusion_pytorch_model.safetensors", change, "conv_norm_out.weight")
    with pytest.raises(StateError, match=whole):
        dt.load(str(tmp_path), scheduler=diffusers.DDPMScheduler())


@pytest.mark.parametrize("change", [lost, reshaped, broken])
@pytest.mark.parametrize(
    ("part", "file", "name"),
    [
        ("vae", "diffusion_pytorch_model.safetensors", "decoder.conv_out.weight"),
        ("unet", "diffusion_pytorch_model.safetensors", "conv_norm_out.weight"),
        ("text_encoder", "model.safetensors", "layers.0.mlp.fc1.weight"),
    ],
)
def test_a_pipeline_s_first_wrong_tensor_is_named(
    pipeline: Any, tmp_path: Path, part: str, file: str, name: str, change: Any
) -> None:
    pipeline.save_pretrained(tmp_path)
    whole = rewrite(tmp_path / part / file, change, name)
    with pytest.raises(StateError, match=whole):
        dt.load(str(tmp_path), prompt="red")


def test_weights_that_are_tied_are_not_missing(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *tiny.RESIDUES]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    model = tiny.seeded(BertForMaskedLM, config=BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    ))  # fmt: skip
    model.save_pretrained(tmp_path / "bert")
    BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=False).save_pretrained(tmp_path / "bert")
    assert "cls.predictions.decoder.weight" not in load_file(tmp_path / "bert" / "model.safetensors")
    again, _ = read_model(str(tmp_path / "bert"), "language")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_pipeline_saved_without_one_of_its_parts_loads(flow_pipeline: Any, tmp_path: Path) -> None:
    flow_pipeline.save_pretrained(tmp_path)
    again = dt.load(str(tmp_path), prompt="red", steps=2)
    ours = dt.load(flow_pipeline, prompt="red", steps=2)
    assert all((a == b).all() for a, b in zip(again.sample(2), ours.sample(2), strict=True))


@pytest.mark.parametrize("kind", ["FooPipeline", "FluxPipeline", "StableDiffusionXLPipeline"])
def test_other_pipelines_are_refused_by_name_before_anything_is_loaded(tmp_path: Path, kind: str) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    with pytest.raises(UnsupportedError, match=rf"DDPMPipeline, .*StableDiffusion3Pipeline; got {kind};"):
        dt.load(str(tmp_path))
    scheduler = ["diffusers", "PNDMScheduler"]
    index = {"_class_name": "StableDiffusionPipeline", "scheduler": scheduler}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedError, match=r"DDIMScheduler, .*; got PNDMScheduler;"):
        dt.load(str(tmp_path))


@pytest.mark.parametrize("kind", ["AutoencoderKL", "PixArtTransformer2DModel", "Nothing"])
def test_other_models_are_refused_by_name_before_anything_is_loaded(tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": kind}))
    with pytest.raises(UnsupportedError, match=rf"UNet2DModel, .*SD3Transformer2DModel; got {kind};"):
        dt.load(str(tmp_path), scheduler=diffusers.DDPMScheduler())


# --- settings of load --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": 0.5}, r"no level with a DDIMScheduler; got level=0\.5"),
        ({"label": 2}, "no label with a StableDiffusionPipeline; got label=2"),
        ({"guidance_scale": -1}, "guidance_scale of 0 or more; got -1"),
        ({"guidance_scale": math.nan}, "guidance_scale of 0 or more; got nan"),
        ({"prompt": ["a", "b"]}, r"str or None for prompt; got \['a', 'b'\]"),
        ({"steps": 10.5}, r"int for steps; got 10\.5"),
        ({"steps": "10"}, "int for steps; got '10'"),
        ({"steps": None}, "int for steps; got None"),
        ({"height": 0}, "multiple of 2 pixels; got 0 by 16"),
    ],
)
def test_settings_that_do_nothing_to_stable_diffusion_are_refused(pipeline: Any, settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dt.load(pipeline, **settings)


def test_no_prompt_is_the_empty_prompt(pipeline: Any) -> None:
    one, other = (dt.load(pipeline, prompt=prompt, steps=2).denoiser.default_prompt for prompt in (None, ""))  # ty: ignore[unresolved-attribute]
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"eta": 0.5}, "no eta with a FlowMatch"), ({"height": 2000}, "multiple of 2 pixels up to 192; got 2000 by 16")],
)
def test_settings_that_do_nothing_to_stable_diffusion_3_are_refused(
    flow_pipeline: Any, settings: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        dt.load(flow_pipeline, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "x", "label": 1}, "no prompt with a DiTPipeline"),
        ({"label": 99999}, "label of 0 to 999 .* got label=99999"),
        ({"label": -1}, "label of 0 to 999 .* got label=-1"),
        ({"height": 18}, "multiple of 8 pixels, the same in height and width; got 18 by 16"),
        ({"height": 24}, "got 24 by 16"),
    ],
)
def test_settings_that_do_nothing_to_dit_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dt.load(tiny.dit(), **settings)


def test_a_dit_makes_other_square_sizes() -> None:
    assert dt.load(tiny.dit(), label=1, height=24, width=24, steps=2).sample(1)[0].shape == (24, 24, 3)


def test_settings_that_do_nothing_to_pipelines_without_prompts_are_refused() -> None:
    plain = diffusers.DDPMPipeline(tiny.unet(), diffusers.DDPMScheduler())
    for setting in ({"prompt": "x"}, {"guidance_scale": 2.0}, {"label": 1}, {"width": 8}, {"eta": 0.5}):
        with pytest.raises(ConfigError, match=rf"expected no {next(iter(setting))} with a DDPM"):
            dt.load(plain, **setting)


@pytest.mark.parametrize("scheduler", ["ddim", {}, None])
def test_what_is_not_a_scheduler_is_refused(scheduler: Any) -> None:
    with pytest.raises(UnsupportedError, match=f"expected a scheduler DDPM.*got {type(scheduler).__name__}"):
        dt.load(tiny.unet(), scheduler=scheduler)


def test_a_model_without_classes_takes_no_label() -> None:
    with pytest.raises(ConfigError, match=r"expected no label with this UNet2DModel.*got label=3; leave it out"):
        dt.load(tiny.unet(), scheduler=diffusers.DDPMScheduler(), label=3)
    with pytest.raises(ConfigError, match="label of 0 to 2"):
        dt.load(tiny.unet(num_class_embeds=3), scheduler=diffusers.DDPMScheduler(), label=3)


def test_a_language_model_with_positions_takes_no_longer_designs(tmp_path: Path) -> None:
    relative, tokenizer = tiny.protein_model(tmp_path)
    dt.load(relative, tokenizer=tokenizer, length=100)
    from transformers import EsmConfig, EsmForMaskedLM

    absolute = EsmForMaskedLM(EsmConfig.from_dict({**relative.config.to_dict(), "position_embedding_type": "absolute"}))
    longest = 32 - 2 - 2  # positions follow the padding's; two ends
    assert len(dt.load(absolute.eval(), tokenizer=tokenizer, length=longest, steps=1).sample(1)[0]) == longest
    for length in (longest + 1, 0):
        with pytest.raises(ConfigError, match=f"length of 1 to {longest}, .*got {length}"):
            dt.load(absolute, tokenizer=tokenizer, length=length)


# --- other calls -------------------------------------------------------------------------------------------------


def flow() -> Any:
    return dt.load(tiny.Velocity(), process=Flow(sigma_min=0.1), codec=VectorCodec(), event_shape=(2,), steps=4)


def total(designs: Any) -> list[float]:
    return [float(design.sum()) for design in designs]


@pytest.mark.parametrize("texts", ["ab", [], [1]])
def test_prompts_are_a_list_of_texts(pipeline: Any, texts: Any) -> None:
    with pytest.raises(ConfigError, match="expected a list of one prompt or more"):
        getattr(dt.prompts, "__wrapped__", dt.prompts)(pipeline, texts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rank": 2.5}, r"whole rank .*got 2\.5"), ({"dropout": 2}, "dropout of 0 to less than 1; got 2"),
     ({"targets": "to_q"}, r"got 'to_q'; pass targets=\['to_q'\]")],
)  # fmt: skip
def test_settings_of_adapters_are_checked(settings: Any, message: str) -> None:
    make = Adapted.__init__
    make = getattr(make, "__wrapped__", make)
    with pytest.raises(ConfigError, match=message):
        make(Adapted.__new__(Adapted), tiny.Velocity(), **settings)


def test_conditions_have_a_row_for_each_design() -> None:
    with pytest.raises(ShapeError, match="expected 4 rows of the condition 'y', one per design; got 2"):
        flow().sample(4, cond={"y": torch.zeros(2)})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"policy": torch.nn.Linear(2, 2)}, r"expected a policy; got Linear; .*difftilt\.load"),
        ({"algorithm": dt.PPO}, r"got the class PPO; pass PPO\(alpha=\.\.\.\)"),
        ({"algorithm": "ppo"}, "got str"),
        ({"conditions": ["a", "b"]}, r"got list; make them with difftilt\.prompts"),
    ],
)
def test_finetune_refuses_arguments_of_another_kind(changed: Any, message: str) -> None:
    from difftilt.training.asked import check_call

    call = {"policy": flow(), "algorithm": dt.PPO(alpha=1.0, batch=8), "conditions": None, "loop": dt.LoopConfig()}
    check_call(**call)
    with pytest.raises(ConfigError, match=message):
        check_call(**{**call, **changed})


def test_a_reward_with_gradients_gives_a_number_for_each_design() -> None:
    class Lump:
        def __call__(self, designs: Any) -> list[float]:
            return total(designs)

        def on_probabilities(self, p: Any) -> Any:
            return p.mean()

    loop = dt.LoopConfig(steps=1)
    for algorithm in (dt.RewardBackprop(alpha=1.0, batch=4), dt.AdjointMatching(alpha=1.0, batch=4)):
        with pytest.raises(OracleError, match=r"tensor of 4 numbers, one per design; got shape \[\]"):
            dt.finetune(flow(), Lump(), algorithm, loop=loop)
    with pytest.raises(OracleError, match=r"one per design; got shape \[\]"):
        dt.MCMC(alpha=1.0, moves=1)(flow(), Lump(), 2, torch.Generator().manual_seed(0))


def test_a_run_is_resumed_with_its_conditions_and_its_baseline(tmp_path: Path) -> None:
    problem = random_pairwise(3, 3, alpha=0.5, target_kl=1.0, seed=0)
    several = {"conditions": dt.Conditions({"y": torch.arange(3)}, group=2)}
    value = {"baseline": "value"}
    changes = (({}, several, {}, {}), ({}, {}, {}, several), (value, {}, {}, {}), ({}, {}, value, {}))
    for number, (first, its_call, second, call) in enumerate(changes):
        run, loop = RunFolder(tmp_path / str(number)), dt.LoopConfig(steps=1)
        algorithm, other = (dt.PPO(alpha=0.5, batch=8, **settings) for settings in (first, second))
        dt.finetune(problem.pretrained, problem.reward, algorithm, loop=loop, folder=run, **its_call)
        with pytest.raises(StateError, match="resume with the settings"):
            dt.finetune(problem.pretrained, problem.reward, other, loop=loop, folder=run, resume=True, **call)
