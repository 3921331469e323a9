"""Side by side with TRL 0.23.0, the last release with diffusion trainers: CPU seconds at equal work, on one tiny model.

Run, in an environment of its own (TRL's last diffusion release beside this project)::

    python -m venv trl-env
    trl-env/bin/pip install -c constraints.txt -e '.[image,lora]' trl==0.23.0
    OMP_NUM_THREADS=1 trl-env/bin/python benchmarks/against_trl.py --out benchmarks/against_trl.json

A Stable Diffusion pipeline with random weights (UNet of 1.4 million parameters, 16 x 16 latents, 32 x 32 images), batch
8, 10 DDIM steps, guidance 5, eta 1, one thread. Work is equal: alpha = 0, so that no reference is run; one optimiser
step for all steps of 8 paths; the same reward of pixels. ``bare`` is the network alone, called as often, with the VAE
where images are made. All three take turns in one process; medians of process seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from parts import take_turns

import difftilt as dt
import tiny
from difftilt.algorithms.paths import collect
from difftilt.core.trajectory import rollout
from difftilt.tracking.run import provenance

BATCH, STEPS, GUIDANCE, RANK, LATENT = 8, 10, 5.0, 4, 16
PARTS = ("backprop", "ppo")


def redness(pixels: torch.Tensor) -> torch.Tensor:
    """Mean red above the other colours of ``[B, 3, H, W]`` in [0, 1]."""
    return pixels[:, 0].mean((1, 2)) - pixels[:, 1:].mean((1, 2, 3))


class Redness:
    """The same of 8-bit images, and of pixels with gradients."""

    def __call__(self, designs: list[Any]) -> torch.Tensor:
        return redness(torch.stack([torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image in designs]))

    def on_probabilities(self, p: torch.Tensor) -> torch.Tensor:
        return redness(p)


def pipeline(folder: Path) -> Any:
    """A fresh pipeline, always with the same weights."""
    made = tiny.stable_diffusion(folder)
    made.unet = tiny.conditional_unet(
        sample_size=LATENT, block_out_channels=(32, 64), layers_per_block=2, norm_num_groups=8, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    made.vae = tiny.vae(block_out_channels=(16, 32), norm_num_groups=8, sample_size=2 * LATENT)
    return made


def trl_pipeline(folder: Path, lora: bool) -> Any:
    """TRL's wrapper, of a pipeline on disk; its adapters have the rank and places of ours."""
    from peft import LoraConfig
    from trl import DefaultDDPOStableDiffusionPipeline

    pipeline(folder).save_pretrained(folder / "pipeline")
    made = DefaultDDPOStableDiffusionPipeline(str(folder / "pipeline"), use_lora=lora)
    if lora:
        made.get_trainable_layers = lambda: _adapted(made.sd_pipeline.unet, LoraConfig)
    return made


def _adapted(unet: Any, config: Any) -> Any:
    unet.add_adapter(config(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian",
                            target_modules=["to_k", "to_q", "to_v", "to_out.0"]))  # fmt: skip
    return unet


def compared(runs: int, works: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median process seconds of each, and ratios to the first."""
    times = take_turns(runs, works)
    found = {name: statistics.median(values) for name, values in times.items()}
    for name in list(works)[1:]:
        pairs = zip(times["difftilt"], times[name], strict=True)
        found[f"against_{name}"] = statistics.median(ours / other for ours, other in pairs)
    return found


class Bare:
    """The network alone, with the VAE, in graphs or without."""

    def __init__(self, folder: Path, lora: bool) -> None:
        self.pipeline = pipeline(folder)
        self.pipeline.vae.requires_grad_(False)
        if lora:
            from peft import LoraConfig

            self.pipeline.unet.requires_grad_(False)
            _adapted(self.pipeline.unet, LoraConfig)
        rng = torch.Generator().manual_seed(0)
        self.x = torch.randn(2 * BATCH, 4, LATENT, LATENT, generator=rng)
        self.words = torch.randn(2 * BATCH, 8, 16, generator=rng)
        self.optimiser = torch.optim.Adam([p for p in self.pipeline.unet.parameters() if p.requires_grad], lr=1e-5)

    def network(self) -> torch.Tensor:
        return self.pipeline.unet(self.x, torch.tensor(500), encoder_hidden_states=self.words).sample

    def images(self, x: torch.Tensor) -> torch.Tensor:
        return self.pipeline.vae.decode(x[:BATCH] / self.pipeline.vae.config.scaling_factor).sample

    @torch.no_grad()
    def sample(self) -> None:
        for _ in range(STEPS):
            self.network()
        self.images(self.x)

    def update(self) -> None:
        self.optimiser.zero_grad()
        for _ in range(STEPS):
            self.network().square().mean().backward()
        self.optimiser.step()

    def backprop(self, live: int) -> None:
        """All steps but the last without a graph, ``live`` ones (again) with one, back to their states; the VAE too."""
        self.optimiser.zero_grad()
        with torch.no_grad():
            for _ in range(STEPS - 1):
                self.network()
        for step in range(live):
            self.x.requires_grad_(step < live - 1)
            prediction = self.network()
            loss = self.images(prediction).mean() if step == 0 else prediction.square().mean()
            loss.backward()
        self.x = self.x.detach()
        self.optimiser.step()


def ppo(runs: int, lora: bool) -> dict[str, dict[str, float]]:
    """Sampling, and an update of its 8 paths."""
    from trl import DDPOConfig, DDPOTrainer

    folder = Path(tempfile.mkdtemp())
    config = DDPOConfig(
        num_epochs=1, sample_num_steps=STEPS, sample_batch_size=BATCH, sample_num_batches_per_epoch=1,
        train_batch_size=BATCH, sample_guidance_scale=GUIDANCE, mixed_precision="no", train_learning_rate=1e-5,
        log_with=None, project_kwargs={"project_dir": str(folder)},
    )  # fmt: skip
    trainer = DDPOTrainer(
        config, lambda images, words, metadata: (redness(images), {}), lambda: ("red", {}), trl_pipeline(folder, lora)
    )
    trainer.sd_pipeline.sd_pipeline.set_progress_bar_config(disable=True)
    samples: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def theirs_sample() -> None:
        found, _ = trainer._generate_samples(iterations=1, batch_size=BATCH)
        samples.update(found[0])

    def theirs_update() -> None:
        trainer.sd_pipeline.unet.train()
        batch = {name: value for name, value in samples.items() if name != "prompt_ids"}
        trainer._train_batched_samples(0, 0, 0, [{**batch, "advantages": torch.linspace(-1, 1, BATCH)}])

    policy = dt.load(pipeline(folder), prompt="red", steps=STEPS, guidance_scale=GUIDANCE)
    policy = (dt.lora(policy, rank=RANK) if lora else policy).requires_grad_(True)
    algorithm = dt.PPO(alpha=0.0, batch=BATCH, epochs=1, minibatches=1, learning_rate=1e-5, rows_per_pass=BATCH)
    state, rng = algorithm.init(policy, []), torch.Generator().manual_seed(0)
    data = collect(state, Redness(), BATCH, rng)
    bare = Bare(folder, lora)
    sample = compared(
        runs,
        {
            "difftilt": lambda: policy.codec.decode(rollout(policy, BATCH, rng).x_0),
            "bare": bare.sample,
            "trl": theirs_sample,
        },
    )
    update = compared(
        runs,
        {"difftilt": lambda: algorithm.learn(state, data, rng), "bare": bare.update, "trl": theirs_update},
    )
    return {"sample": sample, "ppo update": update}


def backprop(runs: int, live: int, lora: bool) -> dict[str, float]:
    """An update by reward backpropagation through the last ``live`` steps."""
    from trl import AlignPropConfig, AlignPropTrainer

    folder = Path(tempfile.mkdtemp())
    config = AlignPropConfig(
        num_epochs=1, sample_num_steps=STEPS, train_batch_size=BATCH, sample_guidance_scale=GUIDANCE,
        mixed_precision="no", truncated_backprop_rand=False, truncated_backprop_timestep=STEPS - live,
        train_learning_rate=1e-5, log_with=None, project_kwargs={"project_dir": str(folder)},
    )  # fmt: skip
    trainer = AlignPropTrainer(
        config, lambda images, words, metadata: (redness(images / 2 + 0.5), {}), lambda: ("red", {}),
        trl_pipeline(folder, lora),
    )  # fmt: skip
    trainer.sd_pipeline.sd_pipeline.set_progress_bar_config(disable=True)
    policy = dt.load(pipeline(folder), prompt="red", steps=STEPS, guidance_scale=GUIDANCE)
    policy = (dt.lora(policy, rank=RANK) if lora else policy).requires_grad_(True)
    algorithm = dt.RewardBackprop(alpha=0.0, batch=BATCH, learning_rate=1e-5, truncation=live)
    state, rng = algorithm.init(policy, []), torch.Generator().manual_seed(0)
    bare = Bare(folder, lora)
    return compared(
        runs,
        {
            "difftilt": lambda: algorithm.step(state, Redness(), rng),
            "bare": lambda: bare.backprop(live),
            "trl": lambda: trainer.step(0, 0),
        },
    )


def main() -> None:
    """Time all, print a table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="rows of other parts are kept")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    from accelerate import PartialState

    PartialState(cpu=True)  # TRL's trainers ask for its logger before they make one
    size = sum(p.numel() for p in pipeline(Path(tempfile.mkdtemp())).unet.parameters())
    facts = {"parameters": size, "batch": BATCH, "steps": STEPS, "guidance": GUIDANCE, **provenance()}
    kept = options.out is not None and options.out.is_file()
    found: dict[str, dict[str, Any]] = json.loads(options.out.read_text())["rows"] if kept else {}
    print("| work | difftilt | bare | TRL | against bare | against TRL |\n|---|---|---|---|---|---|")
    for name, row in measured(options.runs, options.parts):
        cells = (f"{row[key]:.2f}" for key in ("difftilt", "bare", "trl", "against_bare", "against_trl"))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        found[name] = {**row, "runs": options.runs, "commit": provenance()["commit"]}
        if options.out is not None:
            options.out.write_text(json.dumps({"rows": found, **facts}, indent=2) + "\n")


def measured(runs: int, parts: Sequence[str]) -> Iterator[tuple[str, dict[str, float]]]:
    """Name and times of each work, as they are found."""
    for live in (1, STEPS) if "backprop" in parts else ():
        yield f"backprop through {live}, lora", backprop(runs, live, lora=True)
    for kind in ("lora", "full") if "ppo" in parts else ():
        for name, row in ppo(runs, kind == "lora").items():
            yield f"{name}, {kind}", row


if __name__ == "__main__":
    main()
