"""What is shipped for enhancers: the models are what their cards say, and p_pre beats any Markov model."""

from __future__ import annotations

import pytest
import torch

from difftilt import build
from difftilt.core.policy import CONFIG
from difftilt.core.trajectory import sample_states
from difftilt.data import find
from difftilt.domains.dna import CRX
from difftilt.domains.task import DENOISER, TaskData
from difftilt.metrics.motifs import reverse_complement, sites
from difftilt.metrics.sequences import best_markov
from difftilt.rewards.ensemble import EnsembleReward
from difftilt.training.pretrain import denoising_bounds
from difftilt.training.regress import measure_fit

LENGTH = 164


@pytest.fixture(scope="module")
def data() -> TaskData:
    if find(CRX.data_set) is None:
        pytest.skip(f"data set {CRX.data_set} is not here")
    return CRX.split(CRX.read())


def bounds(x: torch.Tensor) -> torch.Tensor:
    policy = build.load_task_policy(CRX)
    return denoising_bounds(policy.denoiser, policy.process, x, torch.Generator().manual_seed(1), draws=4) / LENGTH


def test_the_card_says_that_p_pre_beats_the_best_markov_model_by_far() -> None:
    metrics = build.load_task_policy(CRX).card["metrics"]
    assert metrics["advantage_over_best_markov"] > 6 * metrics["advantage_over_best_markov_error"]
    assert metrics["best_markov_nats_per_token"] < metrics["markov_5_nats_per_token"]
    assert metrics["test_bound_nats_per_token"] < 1.32


def test_the_card_s_bound_and_yardstick_are_those_of_the_test_rows(data: TaskData) -> None:
    """Fresh noise, four draws a design: within 5 paired standard errors (false alarm below 1e-6) of the card.

    Twin: the other strand of the same designs, on which p_pre does not know the place of the site, is out of it.
    """
    metrics = build.load_task_policy(CRX).card["metrics"]
    test = data.states[data.prior_test]
    train, validation = data.states[data.prior_train], data.states[data.prior_validation]
    markov = best_markov(train, validation, 4, range(5, 8), (100.0, 300.0))
    assert (markov.order, markov.smoothing) == (metrics["best_markov_order"], metrics["best_markov_smoothing"])
    theirs = -markov.log_prob(test) / LENGTH
    assert theirs.mean().item() == pytest.approx(metrics["best_markov_nats_per_token"], abs=1e-5)

    def deviation(x: torch.Tensor) -> float:
        advantage = theirs - bounds(x)
        return (advantage.mean().item() - metrics["advantage_over_best_markov"]) / (
            advantage.std().item() / len(x) ** 0.5
        )

    assert abs(deviation(test)) < 5
    assert deviation(reverse_complement(test, "ACGT")) < -5


def test_samples_have_the_site_of_crx_at_their_centre(data: TaskData) -> None:
    """TAAT between letters 76 and 88 in most elements, in fewer samples, rarely elsewhere.

    128 samples: shares with standard errors of at most 0.045, bounds five of them away from what 256 samples gave.
    """
    policy = build.load_task_policy(CRX)
    drawn = sample_states(policy, 128, torch.Generator().manual_seed(0))

    def share(x: torch.Tensor, start: int) -> float:
        return (sites(x[:, start : start + 12], "TAAT", "ACGT", both_strands=False) > 0).double().mean().item()

    test = data.states[data.prior_test]
    assert share(test, 76) > 0.5
    assert share(drawn, 76) > 0.25
    assert share(drawn, 20) < 0.2
    assert share(test, 20) < 0.2


@pytest.mark.parametrize("part", ["reward", "judge"])
def test_reward_and_judge_are_as_good_as_their_cards_say(part: str, data: TaskData) -> None:
    folder = build.model_folder(CRX, part)
    assert folder is not None
    model = EnsembleReward.from_pretrained(str(folder))
    metrics = model.card["metrics"]
    test = data.test
    assert CRX.floor is not None
    fit = measure_fit(model(data.states[test]), data.scores[test].clamp(min=CRX.floor))
    assert fit.rows == metrics["test_rows"]
    assert fit.spearman == pytest.approx(metrics["test_spearman"], abs=2e-3)
    assert fit.r_squared == pytest.approx(metrics["test_r_squared"], abs=2e-3)
    assert fit.spearman > 4 / fit.rows**0.5, "better than chance: 1 / sqrt(n) is the standard error of no correlation"


def test_what_is_shipped_is_small() -> None:
    folder = build.ZOO / CRX.name
    assert {path.parent.name for path in folder.glob(f"*/{CONFIG}")} == {DENOISER, "reward", "judge"}
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 6e6
