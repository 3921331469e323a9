"""A policy runs its chain, keeps its grid and fixed positions, and survives a trip through a folder."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy, card_text
from difftilt.core.trajectory import rollout, sample_states, step_log_prob
from difftilt.errors import ConfigError, ShapeError, StateError
from difftilt.problems.landscapes import TabularDenoiser
from difftilt.processes.masked import Masked

CARD = {"name": "toy", "summary": "A toy.", "task": "none", "metrics": {"nats_per_token": 0.5}}


def make_policy(*, steps: int = 2, seed: int = 0, **options) -> Policy:
    denoiser = TabularDenoiser(2, 3)
    nn.init.normal_(denoiser.logits, generator=torch.Generator().manual_seed(seed))
    return Policy(denoiser, Masked(2, "independent"), TokenCodec("AC", 3), (3,), steps=steps, card=CARD, **options)


# --- grids, fixed positions, copies -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "grid", [[1.0, 0.5], [0.9, 0.0], [1.0, 0.5, 0.5, 0.0], [0.0, 1.0], [1.0], [1.0, math.nan, 0.0]]
)
def test_a_grid_that_does_not_fall_from_one_to_zero_is_refused(grid):
    with pytest.raises(ConfigError, match="decreasing from 1 to 0"):
        make_policy(grid=torch.tensor(grid))


def test_other_steps_and_fixed_positions_share_the_network():
    policy = make_policy()
    other = policy.with_steps(5).holding(torch.tensor([-1, 1, -1]))
    assert other.denoiser is policy.denoiser
    assert (other.steps, policy.steps) == (5, 2)
    assert policy.fixed is None
    assert other.with_steps(3).fixed.tolist() == [-1, 1, -1]
    assert other.holding(None).fixed is None
    with pytest.raises(ShapeError, match=r"shape \(3,\); got \(2,\)"):
        policy.holding(torch.tensor([-1, 1]))


def test_a_frozen_copy_is_independent():
    policy = make_policy()
    copy = policy.frozen_copy()
    policy.denoiser.logits.data.zero_()
    assert copy.denoiser.logits.abs().max() > 0
    assert not copy.training
    assert not any(p.requires_grad for p in copy.parameters())
    assert all(p.requires_grad for p in policy.parameters())


def test_samples_depend_on_the_seed_only():
    policy = make_policy()
    designs = policy.sample(50, seed=1)
    assert designs == policy.sample(50, seed=1) != policy.sample(50, seed=2)
    assert {len(design) for design in designs} == {3}
    held = policy.holding(torch.tensor([1, -1, -1])).sample(50)
    assert {design[0] for design in held} == {"C"}
    assert len(policy.sample(5, batch=2)) == 5


# --- rollouts -----------------------------------------------------------------------------------------------------


def test_rollout_log_prob_is_that_of_its_own_states():
    policy, references = make_policy(), [make_policy(seed=1), make_policy(seed=2)]
    paths = rollout(policy, 64, torch.Generator().manual_seed(0), references=references)
    assert (paths.steps, paths.batch) == (2, 64)
    assert paths.states.shape == (3, 64, 3)
    assert paths.log_ratio.shape == (2, 2, 64)
    for k in range(2):
        t, s = paths.times[k], paths.times[k + 1]
        again = step_log_prob(policy, paths.states[k], paths.states[k + 1], t, s)
        assert torch.equal(again, paths.log_prob[k])
        for row, reference in zip(paths.reference_log_prob, references, strict=True):
            assert torch.equal(row[k], step_log_prob(reference, paths.states[k], paths.states[k + 1], t, s))
    assert torch.equal(paths.x_0, paths.states[-1])
    assert not paths.log_prob.requires_grad


def test_rollout_without_references_and_sample_states_agree():
    policy = make_policy()
    paths = rollout(policy, 10, torch.Generator().manual_seed(0))
    assert paths.log_ratio.shape == (0, 2, 10)
    assert torch.equal(paths.x_0, sample_states(policy, 10, torch.Generator().manual_seed(0)))


def test_a_batch_of_conditions_is_split_with_the_samples():
    class Copies(nn.Module):
        """Shows the letter its condition names."""

        def forward(self, x_t, t, cond=None):
            return 50.0 * nn.functional.one_hot(cond["letter"], 2).float()[:, None].expand(-1, x_t.shape[1], -1)

    policy = Policy(Copies(), Masked(2), TokenCodec("AC", 3), (3,), steps=3)
    letter = torch.tensor([0, 1, 1, 0, 1])
    x_0 = sample_states(policy, 5, torch.Generator().manual_seed(0), batch=2, cond={"letter": letter})
    assert torch.equal(x_0, letter[:, None].expand(-1, 3))
    paths = rollout(policy, 5, torch.Generator().manual_seed(0), cond={"letter": letter})
    assert torch.equal(paths.x_0, letter[:, None].expand(-1, 3))


# --- model folders ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    make_policy(fixed=torch.tensor([-1, 0, -1])).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_policy_runs_the_same_chain(folder):
    saved, loaded = make_policy(fixed=torch.tensor([-1, 0, -1])), Policy.from_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert torch.equal(loaded.denoiser.logits, saved.denoiser.logits)
    assert loaded.config() == saved.config()
    assert loaded.card == CARD
    assert not loaded.training
    assert loaded.sample(20) == saved.sample(20)
    again = folder.parent / "again"
    loaded.save_pretrained(again)
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_the_card_is_readable(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\nlibrary_name: difftilt\n")
    for line in ("# toy", "A toy.", "- task: none", "## Metrics", "- nats per token: 0.5"):
        assert line in text.splitlines()
    assert "# difftilt model" in card_text({})


def test_a_tensor_of_the_wrong_shape_is_named(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({"logits": weights["logits"][:9].contiguous()}, folder / "model.safetensors")
    with pytest.raises(StateError, match=r"expected \(27, 3, 2\) for 'logits'.*got \(9, 3, 2\)"):
        Policy.from_pretrained(folder)


def test_a_missing_or_foreign_tensor_is_named(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "extra": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(StateError, match="expected no such tensor for 'extra'"):
        Policy.from_pretrained(folder)
    save_file({"renamed": weights["logits"]}, folder / "model.safetensors")
    with pytest.raises(StateError, match=r"for 'logits'.*got no such tensor"):
        Policy.from_pretrained(folder)


def truncate(path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


@pytest.mark.parametrize("keep", [0.0, 0.05, 0.9])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_truncated_file_is_a_state_error(folder, name, keep):
    truncate(folder / name, keep)
    with pytest.raises(StateError, match="expected a model folder with config") as caught:
        Policy.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_file_or_folder_is_a_state_error(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(StateError, match="expected a model folder"):
        Policy.from_pretrained(folder)
    with pytest.raises(StateError, match="expected a model folder"):
        Policy.from_pretrained(folder / "nowhere")


def test_another_librarys_config_is_a_state_error(folder):
    for text in ("[]", '{"model_type": "bert"}'):
        (folder / "config.json").write_text(text)
        with pytest.raises(StateError, match="expected a model folder"):
            Policy.from_pretrained(folder)


def test_a_misspelt_part_proposes_the_nearest(folder):
    config = json.loads((folder / "config.json").read_text())
    config["denoiser"]["type"] = "tabullar"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="did you mean 'tabular'"):
        Policy.from_pretrained(folder)
