"""Image tasks: emoji and photos of clothes, 32 x 32 RGB, and handwritten digits, 28 x 28 grey."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import difftilt
from difftilt.data import ImageSet, record_of
from difftilt.data.image_record import ImageRecord
from difftilt.domains.image.classifying import ClassifierConfig
from difftilt.domains.image.task import CLASSIFIER, GAUSSIAN, ImageTask, LabelledImageTask
from difftilt.domains.task import NamedReward, Prior
from difftilt.rewards.classifier import ImageClassifier
from difftilt.rewards.images import PixelReward, brightness, colour, compressibility, incompressibility
from difftilt.training.pretrain import PretrainConfig

SKIN_TONES = frozenset({"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"})
SETTINGS: Mapping[str, Any] = {"schedule": "cosine", "prediction": "v", "sigma_min": 0.002, "clip": 1.0}
"""Of the Gaussian process: sigma_min, a quarter of a level of 8 bits, gives the last step a density."""
ZOO = Path(difftilt.__file__).parent / "zoo"

GREY = {
    "compressibility": NamedReward(
        make=compressibility, summary="minus the size as a JPEG at quality 95", score_name="compressibility (-kB)"
    ),
    "incompressibility": NamedReward(
        make=incompressibility, summary="the size as a JPEG at quality 95", score_name="incompressibility (kB)"
    ),
    "brightness": NamedReward(make=brightness, summary="mean luma", score_name="brightness (0 to 1)"),
}
"""Rewards of any image."""
COLOUR = GREY | {
    name: NamedReward(
        make=partial(colour, own), summary=f"{own} over the mean of the other two", score_name=f"{name} (-1 to 1)"
    )
    for own, name in (("red", "redness"), ("green", "greenness"), ("blue", "blueness"))
}
"""Rewards of RGB images."""


def without_skin_tone(images: ImageSet) -> list[str]:
    """The code points of each emoji but for those of skin tones: the tones of one emoji stay together."""
    names = images.names or tuple(map(str, range(len(images))))
    return ["_".join(point for point in name.split("_") if point not in SKIN_TONES) for name in names]


def label_reward(label: str, folder: Path) -> PixelReward:
    """The log-probability of a label under the classifier in ``folder``.

    Raises:
        ConfigError: the classifier has no such label.
    """
    return ImageClassifier.from_pretrained(str(folder)).reward(label)


def _labelled(labels: tuple[str, ...]) -> dict[str, NamedReward]:
    return {
        f"label-{label}": NamedReward(
            make=partial(label_reward, label),
            part=CLASSIFIER,
            summary=f"log-probability of '{label}' under the classifier; alpha 1 samples that class",
            score_name=f"log p({label} | image) (nats)",
        )
        for label in labels
    }


def _labels(data_set: str) -> tuple[str, ...]:
    record = record_of(data_set)
    assert isinstance(record, ImageRecord)
    return record.label_names


def _unet(channels: tuple[int, ...]) -> dict[str, Any]:
    """A UNet over squares of 2 x 2 pixels: a quarter of the places, which is what an update costs."""
    levels = len(channels)
    return {
        "type": "diffusers",
        "timesteps": 1000,
        "continuous": True,
        "patch": 2,
        "model": {
            "class": "UNet2DModel",
            "config": {
                "block_out_channels": list(channels),
                "layers_per_block": 1,
                "norm_num_groups": 8,
                "attention_head_dim": 16,
                "down_block_types": ["DownBlock2D"] * levels,
                "up_block_types": ["UpBlock2D"] * levels,
            },
        },
    }


def _prior(channels: tuple[int, ...], updates: int) -> dict[str, Prior]:
    training = PretrainConfig(updates=updates, batch=32, learning_rate=2e-3, ema=0.998, validate_every=updates // 8)
    return {GAUSSIAN: Prior(denoiser=_unet(channels), training=training, steps=16, tuning_rate=2e-5)}


LIKELIHOOD = (
    "The likelihood shown is a bound for the 8-bit image under the network run in 500 steps. It is dominated by fine "
    "detail, so that a high value does not mean a natural image. "
)

EMOJI = ImageTask(
    name="emoji",
    domain="image",
    summary="Noto emoji, 32 x 32 RGB, toward images that compress well (or not), bright, or of one colour",
    data_set="emoji",
    score_name="compressibility (-kB)",
    naturalness=LIKELIHOOD + "p_pre has seen 3,042 emoji; skin tones of one emoji are never split.",
    priors=_prior((32, 64, 80), 10_000),
    processes={GAUSSIAN: SETTINGS},
    rewards=COLOUR,
    default_reward="compressibility",
    groups=without_skin_tone,
    grouping="at random, but the skin tones of one emoji together",
)

CLOTHING = LabelledImageTask(
    name="clothing",
    domain="image",
    summary="photos of clothes, 32 x 32 RGB, toward one of ten garments, or of one colour, brightness or size",
    data_set="clothing",
    score_name="log p(dress | image) (nats)",
    naturalness=LIKELIHOOD + "p_pre has seen 3,068 photos.",
    priors=_prior((32, 64, 80), 10_000),
    processes={GAUSSIAN: SETTINGS},
    rewards=COLOUR | _labelled(_labels("clothing")),
    default_reward="label-dress",
    grouping="the source's own: 3,068 train, 341 validation, 372 test",
    names=_labels("clothing"),
    classifying=ClassifierConfig(width=16, epochs=20, mirror=True),
)

DIGITS = LabelledImageTask(
    name="digits",
    domain="image",
    summary="handwritten digits, 28 x 28 grey, toward one of ten digits, or of one brightness or size",
    data_set="digits",
    score_name="log p(3 | image) (nats)",
    naturalness=LIKELIHOOD + "p_pre has seen 7,500 images of MNIST's test set: do not judge it there.",
    priors=_prior((32, 64), 1200),
    processes={GAUSSIAN: SETTINGS},
    rewards=GREY | _labelled(_labels("digits")),
    default_reward="label-3",
    fractions=(0.75, 0.05, 0.2),
    grouping="at random: 75 % training, 5 % validation, 20 % test, all of MNIST's test set",
    names=_labels("digits"),
    classifying=ClassifierConfig(width=12, epochs=6),
)

TASKS = (EMOJI, CLOTHING, DIGITS)
