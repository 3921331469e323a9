"""The image models in the package: what their cards say is what they do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("diffusers")

from difftilt.core.policy import CONFIG, WEIGHTS, Policy
from difftilt.core.trajectory import sample_states
from difftilt.data import find
from difftilt.domains.image import TASKS, ZOO
from difftilt.metrics.chain_bound import has_bound
from difftilt.rewards.classifier import ImageClassifier
from difftilt.rewards.images import jpeg_bytes

MODELS = [(task, part) for task in TASKS for part in task.parts if (ZOO / task.name / part / CONFIG).is_file()]
DENOISERS = [task for task, part in MODELS if part == "denoiser"]
CLASSIFIERS = [task for task, part in MODELS if part == "classifier"]


@pytest.mark.parametrize(("task", "part"), MODELS, ids=lambda value: getattr(value, "name", value))
def test_a_model_is_small_and_has_its_numbers(task, part) -> None:
    folder = ZOO / task.name / part
    assert (folder / WEIGHTS).stat().st_size < 6e6
    model = (Policy if part == "denoiser" else ImageClassifier).from_pretrained(folder)
    assert model.card["training"]["command"].startswith(f"difftilt pretrain {task.name}")
    assert model.card["metrics"]["parameters"] == sum(p.numel() for p in model.parameters()) < 1.5e6


@pytest.mark.parametrize("task", DENOISERS, ids=lambda task: task.name)
def test_designs_are_distinct_and_as_large_as_the_card_says(task) -> None:
    """H0: the mean size is the card's; n = 24 against the card's 256, 6 standard errors of 24: about 1e-8 by chance."""
    policy = Policy.from_pretrained(ZOO / task.name / "denoiser")
    assert has_bound(policy)
    assert policy.steps == task.prior("gaussian").steps
    designs = policy.codec.decode(sample_states(policy, 24, torch.Generator().manual_seed(5)))
    assert len({design.tobytes() for design in designs}) == 24
    sizes = np.array([jpeg_bytes(design) for design in designs])
    card = policy.card["metrics"]["sampled_jpeg_bytes"]
    assert abs(sizes.mean() - card) < 6 * sizes.std() / 24**0.5
    assert abs(1.3 * card - sizes.mean()) > 6 * sizes.std() / 24**0.5  # the twin: another size would be seen


@pytest.mark.parametrize("task", CLASSIFIERS, ids=lambda task: task.name)
def test_the_accuracy_on_the_card_is_that_on_held_out_images(task) -> None:
    if find(task.data_set) is None:
        pytest.skip(f"{task.data_set} is not on this machine")
    classifier = ImageClassifier.from_pretrained(ZOO / task.name / "classifier")
    assert classifier.labels == task.labels
    data = task.split(task.read())
    with torch.no_grad():
        log_p = classifier(data.states[data.test] / 2 + 0.5)
    right = (log_p.argmax(1) == data.scores[data.test].long()).double().mean().item()
    assert right == pytest.approx(classifier.card["metrics"]["test_accuracy"], abs=1e-3)
    assert right > 2 * classifier.card["metrics"]["most_common_class_accuracy"]
