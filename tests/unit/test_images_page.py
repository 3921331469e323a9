"""Examples and commands of docs/images.md run, on tiny models; its tables name what there is."""

from __future__ import annotations

import csv
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

for library in ("PIL", "diffusers", "transformers", "peft"):
    pytest.importorskip(library)

import difftilt as dt  # noqa: E402
import tiny  # noqa: E402
from difftilt import build  # noqa: E402
from difftilt.cli import main  # noqa: E402
from difftilt.data import ImageSet  # noqa: E402
from difftilt.domains.image import EMOJI, TASKS, _unet  # noqa: E402
from difftilt.domains.task import Prior  # noqa: E402
from difftilt.networks import ConvClassifier  # noqa: E402
from difftilt.rewards.classifier import ImageClassifier  # noqa: E402
from difftilt.training.pretrain import PretrainConfig  # noqa: E402

PAGE = (Path(__file__).parents[2] / "docs" / "images.md").read_text(encoding="utf-8")
SMALLER = {"steps=200": "steps=1", "steps=50": "steps=2", "batch=32": "batch=8, minibatches=1", "batch=8": "batch=2",
           "group=4": "group=2"}  # fmt: skip
TINY = replace(
    EMOJI, priors={"gaussian": Prior(denoiser=_unet((16, 16)), training=PretrainConfig(updates=2, batch=4), steps=3)}
)


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def icons(folder: Path, n: int = 30, size: int = 8) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(n):
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / f"{number:03d}.png")


def clip(folder: Path) -> None:
    from safetensors.torch import save_file
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8,
        projection_dim=12,
    )  # fmt: skip
    tiny.seeded(CLIPVisionModelWithProjection, config=config).save_pretrained(folder)
    save_file({"weight": torch.ones(1, 12), "bias": torch.zeros(1)}, folder / "aesthetic.safetensors")


def test_every_example_runs_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ImageClassifier(ConvClassifier(1, 10, width=4), "0123456789").save_pretrained(Path("models/digits/classifier"))
    clip(Path("clip-vit-large-patch14"))
    icons(Path("my-photos"), size=40)
    (tmp_path / "my-photos" / "broken.png").write_bytes(b"no image")
    images = ImageSet(Path("x"), np.zeros((40, 8, 8, 3), dtype=np.uint8))
    TINY.untrained("gaussian", TINY.split(images), seed=0).save_pretrained(Path("models/emoji/denoiser"))
    code = "\n".join(blocks("python"))
    for large, small in SMALLER.items():
        assert large in code
        code = code.replace(large, small)
    code = re.sub(r"StableDiffusionPipeline\.from_pretrained\([^()]*\)", "stand_in", code)
    names: dict[str, Any] = {"stand_in": tiny.stable_diffusion(tmp_path)}
    exec(compile(code, "images.md", "exec"), names)
    said = capsys.readouterr().out
    assert said.startswith("643 ")
    assert '30 (32, 32) ("broken.png: ' in said
    assert names["bound"].shape == (8,)
    assert len(names["policy"].trainable()) < len(list(names["policy"].parameters()))
    for result in ("smaller", "prettier", "result"):
        assert isinstance(names[result].policy, dt.Policy)
    assert names["images"].images.shape == (30, 32, 32, 3)


@pytest.mark.skipif("emoji" not in build.TASKS, reason="the tasks of images are not wired up")
def test_every_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(build.TASKS, "emoji", TINY)
    icons(Path("my-icons"))
    more = {
        "pretrain": ["--updates", "2"],
        "finetune": ["--steps", "1", "--batch", "8", "--designs", "6", "--log-z-samples", "0"],
        "steer": ["--designs", "6", "--log-z-samples", "0", "--candidates", "2"],
    }
    for line in (line for block in blocks("sh") for line in block.splitlines()):
        command, *words = shlex.split(line)
        assert command == "difftilt"
        words += more[words[0]] + ([] if "--data" in words else ["--data", "my-icons"])
        assert main(words) == 0, (line, capsys.readouterr().err)
    for run in ("emoji", "red", "icons"):
        folder = tmp_path / "runs" / run
        rows = list(csv.DictReader((folder / "samples.csv").open()))
        assert len(rows) == 6
        assert all((folder / row["file"]).is_file() for row in rows)
        assert (folder / "report.html").read_text(encoding="utf-8").count("data:image/png;base64") >= 2


def test_the_tables_name_every_task_and_reward() -> None:
    for task in TASKS:
        assert f"| `{task.name}` |" in PAGE
        for name in task.rewards:
            assert f"`{name}`" in PAGE or name.startswith("label-"), name
