"""A protein language model as p_pre near a wild type: a tiny ESM with random weights, whole and with adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import difftilt as dt

for library in ("transformers", "peft"):
    pytest.importorskip(library)

import tiny  # noqa: E402

WILD_TYPE = "MKTAYIAK"
SITES = [2, 3, 5, 6, 8]
LOOP = dt.LoopConfig(steps=2)


def lysines(designs: list[str]) -> list[float]:
    return [float(design.count("K")) for design in designs]


def limited(folder: Path, most: int = 2) -> dt.Policy:
    model, tokenizer = tiny.protein_model(folder)
    policy = dt.load(model, tokenizer=tokenizer, length=len(WILD_TYPE))
    return dt.near(dt.varying(policy, WILD_TYPE, SITES), WILD_TYPE, most)


def changed(designs: list[str]) -> list[int]:
    return [sum(map(str.__ne__, design, WILD_TYPE)) for design in designs]


def test_its_designs_are_at_most_so_many_mutations_from_the_wild_type_at_the_named_sites(tmp_path):
    designs = limited(tmp_path).sample(64)
    assert max(changed(designs)) == 2
    held = [i for i in range(len(WILD_TYPE)) if i + 1 not in SITES]
    assert all(design[i] == WILD_TYPE[i] for design in designs for i in held)


@pytest.mark.parametrize("adapted", [False, True])
def test_tuning_keeps_the_limit_and_starts_from_the_model_itself(adapted, tmp_path):
    policy = limited(tmp_path)
    policy = dt.lora(policy, rank=2) if adapted else policy
    result = dt.finetune(policy, dt.Near(lysines, WILD_TYPE, 2), dt.PPO(alpha=0.1, batch=8, minibatches=1), loop=LOOP)
    assert abs(result.history[0]["kl_nats"]) < 1e-4
    assert max(changed(result.policy.sample(32))) <= 2
    before, after = (dict(p.denoiser.named_parameters()) for p in (result.pretrained, result.policy))
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved
    assert all(".lora_" in name for name in moved) == adapted


def test_a_design_beyond_the_limit_has_no_reward_whatever_the_model_says(tmp_path):
    reward = dt.Near(lysines, WILD_TYPE, 2)
    assert reward([WILD_TYPE, "KKKKKKKK"]).isnan().tolist() == [False, True]


def test_samplers_keep_the_limit_too(tmp_path):
    policy = limited(tmp_path)
    reward = dt.Near(lysines, WILD_TYPE, 2)
    made = dt.SMC(alpha=0.5)(policy, reward, 32, torch.Generator().manual_seed(0))
    assert max(changed(policy.codec.decode(made.x_0))) <= 2
