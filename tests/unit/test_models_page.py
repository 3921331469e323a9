"""Examples of docs/models.md run, on tiny models in place of the Hub's; docs/from-trl.md names real settings."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import difftilt as dt
from difftilt.networks.pipeline import pipeline_policy

for library in ("diffusers", "transformers", "peft"):
    pytest.importorskip(library)

import tiny  # noqa: E402

DOCS = Path(__file__).parents[2] / "docs"
SMALLER = {"steps=200": "steps=1", "steps=50": "steps=2", "steps=28": "steps=2", "batch=32": "batch=8, minibatches=1",
           "length=64": "length=6", "steps=16": "steps=2", "group=4": "group=2"}  # fmt: skip


def examples(page: str) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL))


def test_every_example_of_the_models_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, tokenizer = tiny.protein_model(tmp_path)
    stand_ins = {
        "StableDiffusionPipeline": tiny.stable_diffusion(tmp_path),
        "StableDiffusion3Pipeline": tiny.stable_diffusion_3(tmp_path),
        "DiTPipeline": tiny.dit(),
        "UNet2DModel": tiny.unet(),
        "AutoModelForMaskedLM": model,
        "AutoTokenizer": tokenizer,
    }
    code = examples("models.md")
    for large, small in SMALLER.items():
        assert large in code
        code = code.replace(large, small)
    code = re.sub(r"(\w+)\.from_pretrained\([^()]*\)", r'stand_ins["\1"]', code)
    names: dict[str, Any] = {"torch": torch, "stand_ins": stand_ins}
    exec(compile(code, "models.md", "exec"), names)
    assert len(names["images"]) == 4
    assert (tmp_path / "fox-adapters").is_dir()
    assert names["result"].policy.codec.alphabet == tiny.RESIDUES


def test_settings_on_the_page_for_users_of_trl_exist() -> None:
    text = (DOCS / "from-trl.md").read_text()
    calls = re.findall(r"`?(PPO|RewardBackprop|LoopConfig|dt\.load|dt\.prompts|dt\.lora)\(([^)`]*)", text)
    assert len(calls) > 20
    for called, arguments in calls:
        known = set(inspect.signature(pipeline_policy).parameters) if called == "dt.load" else set(
            inspect.signature(getattr(dt, called.removeprefix("dt."))).parameters
        )  # fmt: skip
        assert set(re.findall(r"(\w+)=", arguments)) <= known, (called, arguments)
    assert dataclasses.is_dataclass(dt.PPO)
