"""Rewards of images: sizes are Pillow's own, differentiable ones equal the call on 8 bits, gradients are right."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")

from PIL import Image

from difftilt.core.codec import ImageCodec
from difftilt.core.reward import DifferentiableReward
from difftilt.errors import ConfigError, DataError, StateError
from difftilt.networks import ConvClassifier
from difftilt.rewards.classifier import ImageClassifier
from difftilt.rewards.function import as_reward
from difftilt.rewards.images import brightness, colour, compressibility, incompressibility, jpeg_bytes
from difftilt.rewards.likelihood import LabelLikelihood
from difftilt.rng import seeded_initialisation


def images(n: int = 5, shape: tuple[int, ...] = (16, 16, 3), seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8))


def classifier(channels: int = 3, labels: int = 4) -> ImageClassifier:
    with seeded_initialisation(0):
        network = ConvClassifier(channels, labels, width=4)
    return ImageClassifier(network, [f"kind {i}" for i in range(labels)], temperature=1.7)


DIFFERENTIABLE = {
    "brightness": brightness,
    "redness": lambda: colour("red"),
    "blueness": lambda: colour("blue"),
    "label": lambda: classifier().reward("kind 2"),
}


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28)])
def test_a_size_is_that_of_the_file_that_pillow_writes(shape: tuple[int, ...], tmp_path: Path) -> None:
    for i, design in enumerate(images(3, shape)):
        Image.fromarray(design).save(tmp_path / f"{i}.jpg", quality=95)
        size = (tmp_path / f"{i}.jpg").stat().st_size
        assert jpeg_bytes(design) == size == jpeg_bytes(Image.fromarray(design))
        assert compressibility()([design]).tolist() == [-size / 1000] == (-incompressibility()([design])).tolist()


def test_a_blank_image_of_32_pixels_has_643_bytes() -> None:
    assert jpeg_bytes(np.full((32, 32, 3), 255, dtype=np.uint8)) == 643


def test_quality_reaches_the_encoder() -> None:
    design = images(1)[0]
    buffer = io.BytesIO()
    Image.fromarray(design).save(buffer, format="JPEG", quality=40)
    assert compressibility(quality=40)([design]).item() == -buffer.tell() / 1000
    with pytest.raises(ConfigError, match="quality of 1 to 95"):
        compressibility(quality=100)


def test_compressibility_is_a_black_box_and_a_bad_design_costs_that_design_only() -> None:
    reward = as_reward(compressibility())
    assert not isinstance(compressibility(), DifferentiableReward)
    values = reward([*images(2), np.zeros((4, 4, 3))])
    assert values.isnan().tolist() == [False, False, True]
    assert "float64" in str(reward.reasons[2])


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_a_differentiable_reward_is_the_call_on_the_8_bit_design(name: str) -> None:
    reward, codec = DIFFERENTIABLE[name](), ImageCodec()
    assert isinstance(reward, DifferentiableReward)
    x_0 = 3 * torch.rand((6, 3, 16, 16), generator=torch.Generator().manual_seed(1)) - 1.5  # beyond the scale too
    called, relaxed = reward(codec.decode(x_0)), reward.on_probabilities(codec.readable(x_0))
    torch.testing.assert_close(relaxed.double(), called, rtol=0, atol=1e-6)
    assert not torch.allclose(reward.on_probabilities((x_0 / 2 + 0.5).clamp(0, 1)).double(), called, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_are_finite_differences(name: str) -> None:
    reward = DIFFERENTIABLE[name]()
    p = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(2)).double()
    if name == "label":
        reward = classifier_in_float64()
    assert torch.autograd.gradcheck(reward.on_probabilities, (p.requires_grad_(True),), eps=1e-6, atol=1e-6)


def classifier_in_float64():
    return classifier().double().reward("kind 2")


def test_a_colour_is_its_share_over_the_others() -> None:
    red = np.zeros((4, 4, 3), dtype=np.uint8)
    red[..., 0] = 255
    grey = np.full((4, 4, 3), 77, dtype=np.uint8)
    assert colour("red")([red, grey]).tolist() == pytest.approx([1, 0], abs=1e-6)
    assert colour("green")([red]).item() == pytest.approx(-0.5)
    assert brightness()([red]).item() == pytest.approx(0.299)
    assert brightness()([red[..., 0]]).item() == 1


def test_what_is_no_image_of_one_size_is_refused() -> None:
    with pytest.raises(DataError, match="one size"):
        brightness()([*images(1), *images(1, (8, 8, 3))])
    with pytest.raises(DataError, match="red, green and blue"):
        colour("red")(images(1, (8, 8)))
    with pytest.raises(ConfigError, match="'red'"):
        colour("rad")


def test_log_probabilities_sum_to_one_and_feed_conditional_generation() -> None:
    model, designs = classifier(), images(3)
    table = model.log_likelihood(designs)
    torch.testing.assert_close(table.exp().sum(1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(model.reward(1)(designs), table[:, 1], rtol=0, atol=1e-6)
    under = LabelLikelihood(model.log_likelihood).under({"y": torch.tensor([2, 0, 3])})
    torch.testing.assert_close(torch.as_tensor(under(designs)), table[torch.arange(3), torch.tensor([2, 0, 3])])
    with pytest.raises(ConfigError, match=r"'kind \d'"):
        model.reward("kind one")


def test_a_classifier_is_kept_in_a_folder(tmp_path: Path) -> None:
    model, designs = classifier(), images(3)
    model.card = {"name": "tiny", "metrics": {"test_accuracy": 0.5}}
    model.save_pretrained(tmp_path)
    read = ImageClassifier.from_pretrained(tmp_path)
    assert read.labels == model.labels
    assert read.card == model.card
    assert torch.equal(read.log_likelihood(designs), model.log_likelihood(designs))
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(StateError, match=r"model\.safetensors"):
        ImageClassifier.from_pretrained(tmp_path)
