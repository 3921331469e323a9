"""Tasks over images of one size, 8 bits a channel."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from difftilt.core.codec import ImageCodec
from difftilt.core.policy import Policy
from difftilt.core.registry import construct
from difftilt.core.schedule import uniform_grid
from difftilt.core.trajectory import sample_states
from difftilt.data import ImageSet, group_split, load_images, random_split, read_images
from difftilt.domains.image.classifying import ClassifierConfig, train_classifier
from difftilt.domains.image.describing import describe_images, pixels_of, quality
from difftilt.domains.image.pictures import before_and_after, best, grid, write_images
from difftilt.domains.task import DENOISER, FEWEST, Designs, Histogram, Picture, Scene, Task, TaskData
from difftilt.errors import DataError
from difftilt.metrics.chain_bound import DRAWS, chain_bounds, likelihood_chain
from difftilt.rewards.classifier import ImageClassifier
from difftilt.rewards.images import jpeg_bytes, luma
from difftilt.rng import Streams, seeded_initialisation
from difftilt.training.designs import Describe
from difftilt.types import Tensor

GAUSSIAN = "gaussian"
CLASSIFIER = "classifier"
SAMPLES = 256
"""Designs of a finished p_pre that are compared with held-out ones."""
SHOWN = 24
"""Images of a picture."""


def _alone(images: ImageSet) -> list[str]:
    """Every image is a group of its own."""
    return [str(number) for number in range(len(images))]


@dataclass(frozen=True, kw_only=True)
class ImageTask(Task):
    """A named problem over images of one size."""

    processes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings of each process, by its name."""
    spacing: float = 2.0
    """Times of the chain are :math:`(k / K)^{spacing}`: steps shorten toward the data, so that noise falls by about the
    same factor from step to step, and a change of the network costs about as many nats at each. Equally spaced (1), the
    last step would cost hundreds of times as many."""
    fractions: tuple[float, float, float] = (0.85, 0.05, 0.1)
    """Shares of training, validation and test, of images that come without a split."""
    groups: Callable[[ImageSet], list[str]] = _alone
    """Images of one name never fall in different parts."""
    grouping: str = "at random"
    """How :attr:`groups` splits, for cards."""

    column: ClassVar[str] = "file"

    # --- data ----------------------------------------------------------------------------------------------------

    def read(self, path: Path | None = None, *, skip_invalid: bool = False) -> ImageSet:
        """Its set, or one's own folder, ``.npz`` or IDX file; see :mod:`difftilt.data.images`."""
        if path is None:
            return load_images(self.data_set)
        images = read_images(path, skip_invalid=skip_invalid)
        if len(images) < FEWEST:
            raise DataError(f"{path}: expected at least {FEWEST} images; got {len(images)}; add more")
        return images

    def split(self, data: Designs, *, seed: int = 0) -> TaskData:
        """The source's own split where it has one; else :attr:`fractions`. Scores are the numbers of the labels."""
        images = _images(data)
        codec = ImageCodec()
        if images.split is not None:
            train, validation, test = (np.flatnonzero(images.split == part) for part in range(3))
        elif self.groups is _alone or images.names is None:
            train, validation, test = random_split(len(images), self.fractions, seed=seed)
        else:
            train, validation, test = group_split(self.groups(images), self.fractions, seed=seed)
        none = np.full(len(images), np.nan)
        rows = [torch.from_numpy(part) for part in (train, validation, test)]
        if min(len(part) for part in rows) == 0:
            raise DataError(f"{images.path}: expected images in each split; got an empty one; leave the split out")
        return TaskData(
            codec=codec,
            states=codec.encode(list(images.images)),
            scores=torch.from_numpy(none if images.labels is None else images.labels.astype(np.float64)).float(),
            test=rows[2],
            reward=rows[0],
            judge=rows[0][:0],
            prior_train=rows[0],
            prior_validation=rows[1],
            prior_test=rows[2],
        )

    @property
    def split_note(self) -> str:
        """How images are split."""
        return self.grouping

    def trainable(self, data: Designs) -> tuple[str, ...]:
        """The denoiser alone where there are no labels."""
        return self.parts if _images(data).labels is not None else (DENOISER,)

    def check(self, data: Designs, policy: Policy) -> None:
        """Images have the model's size and channels."""
        images = _images(data)
        came, need = (images.channels, *images.size), policy.event_shape
        if came != need:
            raise DataError(
                f"{images.path}: expected images of {need[2]} x {need[1]} pixels and {need[0]} channels, as the model "
                f"makes; got {came[2]} x {came[1]} and {came[0]}; convert them, or use --models with a model of that "
                "size (see `difftilt pretrain`)"
            )

    # --- models --------------------------------------------------------------------------------------------------

    def untrained(self, process: str, data: TaskData, *, seed: int) -> Policy:
        """The prior's UNet, sized for the images.

        Raises:
            DataError: a side is no multiple of what the UNet halves it by.
        """
        prior = self.prior(process)
        channels, height, width = data.states.shape[1:]
        spec = dict(prior.denoiser)
        patch, model = spec["patch"], spec["model"]
        levels = len(model["config"]["block_out_channels"])
        unit = patch * 2 ** (levels - 1)
        if height % unit or width % unit:
            raise DataError(
                f"expected images whose sides are multiples of {unit} pixels for the UNet of {self.name}; got {width} "
                f"x {height}; resize them, e.g. difftilt.data.read_images(folder, size={unit * max(1, width // unit)})"
            )
        sizes = {
            "sample_size": [height // patch, width // patch],
            "in_channels": patch**2 * channels,
            "out_channels": patch**2 * channels,
        }
        model = {**model, "config": {**model["config"], **sizes}}
        with seeded_initialisation(seed):
            denoiser = construct("denoiser", {**spec, "model": model})
        made = construct("process", {"type": process, **self.processes.get(process, {})})
        event = (channels, height, width)
        grid = uniform_grid(prior.steps) ** self.spacing
        card = {"bytes": _bytes(data.codec.decode(data.states[data.prior_train][:SAMPLES]))}
        return Policy(denoiser, made, ImageCodec(), event, grid=grid, card=card)

    def measure(self, policy: Policy, data: TaskData, *, seed: int) -> dict[str, Any]:
        """The likelihood bound of held-out images, and samples beside held-out images."""
        train, test = data.states[data.prior_train], data.states[data.prior_test]
        rng = Streams(seed)("measure")
        bounds = chain_bounds(likelihood_chain(policy), test, rng, levels=True, draws=DRAWS) / test[0].numel()
        drawn = sample_states(policy, SAMPLES, rng, batch=64)
        error = (bounds.std() / len(bounds) ** 0.5).item()
        return {
            "test_bound_nats_per_dimension": round(bounds.mean().item(), 4),
            "test_bound_error": round(error, 4),
            "test_bound_bits_per_dimension": round(bounds.mean().item() / math.log(2), 4),
            "steps": policy.steps,
            "sampled_designs": SAMPLES,
            **quality(drawn, test, train),
        }

    def fit(
        self, part: str, data: TaskData, *, seed: int, told: Callable[[str], None]
    ) -> tuple[ImageClassifier, dict[str, Any]]:
        """The classifier of labelled images."""
        if part != CLASSIFIER:
            return super().fit(part, data, seed=seed, told=told)
        return train_classifier(data, self.labels, replace(self.classifier, seed=seed), told=told)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of its classes."""
        return ()

    @property
    def classifier(self) -> ClassifierConfig:
        """How its classifier is trained."""
        return ClassifierConfig()

    # --- what people look at -------------------------------------------------------------------------------------

    def known(self, path: Path | None = None) -> Any:
        """Pixels of the training images."""
        states = super().known(path)
        return None if states is None else pixels_of(states)

    def describe(self, policy: Policy, known: Any) -> Describe:
        """Uniqueness, diversity, distance to the training images, colours, bytes."""
        return describe_images(known if known is not None and tuple(known.shape[1:]) == policy.event_shape else None)

    def facts(self, policy: Policy) -> dict[str, Any]:
        """Size and channels."""
        channels, height, width = policy.event_shape
        return {"channels": channels, "height": height, "width": width}

    def pictures(self, scene: Scene) -> list[Picture | Histogram]:
        """Grids before and after, the best designs, and two properties of all."""
        drawn: list[Picture | Histogram] = []
        if scene.tuned is not None:
            drawn.append(
                Picture(
                    "before-after",
                    "The same noise, before and after",
                    "Rows in pairs: above the pretrained model, below the tuned one, from the same noise.",
                    before_and_after(scene.pretrained, scene.tuned, scene.seed, n=SHOWN),
                )
            )
        else:
            for name, title, designs in (
                ("before", "Pretrained", scene.before.designs),
                ("after", "Steered", scene.after.designs),
            ):
                drawn.append(Picture(name, title, "The first designs drawn.", grid(designs[:SHOWN], 12)))
        chosen = best(scene.after, SHOWN)
        if chosen:
            caption = "Different designs, the largest reward first."
            drawn.append(Picture("best", "Best designs", caption, grid([scene.after.designs[i] for i in chosen], 12)))
        return drawn + self._histograms(scene)

    def _histograms(self, scene: Scene) -> list[Picture | Histogram]:
        sets = {"before": scene.before.designs, "after": scene.after.designs}
        if scene.known is not None and tuple(scene.known.shape[1:]) == scene.pretrained.event_shape:
            sets = {"data": ImageCodec().decode(2 * scene.known[:1000] - 1), **sets}
        bytes_of = {name: [jpeg_bytes(design) / 1000 for design in designs] for name, designs in sets.items()}
        light = {name: _luma(designs) for name, designs in sets.items()}
        return [
            _histogram("jpeg", "Size as a JPEG", "kB at quality 95", bytes_of),
            _histogram("brightness", "Brightness", "mean luma, 0 to 1", light),
        ]

    def written(self, designs: Sequence[Any], folder: Path) -> list[str]:
        """PNG files below ``folder``."""
        return write_images(folder, designs)


@dataclass(frozen=True, kw_only=True)
class LabelledImageTask(ImageTask):
    """The same with classes, of which a classifier is trained."""

    names: tuple[str, ...]
    """Of its classes."""
    classifying: ClassifierConfig = field(default_factory=ClassifierConfig)
    """How its classifier is trained."""

    parts: ClassVar[tuple[str, ...]] = (DENOISER, CLASSIFIER)

    @property
    def labels(self) -> tuple[str, ...]:
        """As named."""
        return self.names

    @property
    def classifier(self) -> ClassifierConfig:
        """As set."""
        return self.classifying


def _images(data: Designs) -> ImageSet:
    assert isinstance(data, ImageSet)
    return data


def _bytes(designs: Sequence[np.ndarray]) -> float:
    return round(float(np.mean([jpeg_bytes(design) for design in designs])), 1)


def _luma(designs: Sequence[np.ndarray]) -> list[float]:
    stacked = torch.from_numpy(np.stack(designs))
    pixels: Tensor = (stacked[:, None] if stacked.ndim == 3 else stacked.movedim(-1, 1)).float() / 255
    return luma(pixels).tolist()


def _histogram(name: str, title: str, axis: str, values: Mapping[str, Sequence[float]], bins: int = 24) -> Histogram:
    """Shares over bins that span all values."""
    everything = np.concatenate([np.asarray(own) for own in values.values()])
    low, high = float(everything.min()), float(everything.max())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    shares = {key: (np.histogram(own, edges)[0] / max(1, len(own))).tolist() for key, own in values.items()}
    return Histogram(name, title, axis, edges.tolist(), shares)
