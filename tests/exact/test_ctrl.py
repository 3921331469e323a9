"""Conditional generation: one policy for all labels reaches the Bayes posterior of each."""

from __future__ import annotations

import pytest
import torch

from difftilt.algorithms.distill import Distill
from difftilt.algorithms.ppo import PPO
from difftilt.algorithms.reward_weighted_mle import RewardWeightedMLE
from difftilt.algorithms.trajectory_balance import TrajectoryBalance
from difftilt.core.algorithm import Anchor
from difftilt.core.conditions import Conditions
from difftilt.core.policy import Policy
from difftilt.errors import ConfigError, OracleError, UnsupportedError
from difftilt.networks.conditioned import conditioned
from difftilt.problems.landscapes import random_pairwise
from difftilt.problems.tilted import TiltedProblem
from difftilt.rewards.likelihood import LabelLikelihood
from difftilt.training.finetune import LoopConfig, finetune

LABELS = 3


@pytest.fixture(scope="module")
def start() -> Policy:
    """4 tokens, 3 letters, one token per step, with a label it does not look at."""
    return conditioned(random_pairwise(4, 3, alpha=1.0, target_kl=1.0, seed=0).pretrained, LABELS, hidden=64)


@pytest.fixture(scope="module")
def classifier(start: Policy) -> LabelLikelihood:
    """p(y | x) given: a softmax of three random functions of the design."""
    rng = torch.Generator().manual_seed(1)
    weight = 1.5 * torch.randn(4, 3, LABELS, generator=rng, dtype=torch.float64)

    def log_likelihood(designs: list[str]) -> torch.Tensor:
        tokens = start.codec.encode(designs)
        return weight[torch.arange(4), tokens].sum(1).log_softmax(-1)

    return LabelLikelihood(log_likelihood)


def kl_to_posterior(start: Policy, policy: Policy, classifier: LabelLikelihood, label: int) -> float:
    """Exact KL of the policy under one label to p_pre(x) p(y | x) / Z."""
    y = torch.tensor([label])
    count = 3**4
    reward = classifier.under({"y": y.expand(count)})
    return TiltedProblem(start.frozen_copy(), reward, alpha=1.0, cond={"y": y}).kl(policy)


@pytest.mark.parametrize(
    "algorithm",
    [
        TrajectoryBalance(batch=384, learning_rate=5e-3),
        TrajectoryBalance(batch=384, learning_rate=5e-3, log_z="learned"),
        PPO(batch=384, learning_rate=5e-3, baseline="group"),
        RewardWeightedMLE(batch=384, learning_rate=5e-3),
    ],
    ids=["vargrad", "balance", "ppo", "likelihood"],
)
def test_every_label_reaches_its_bayes_posterior(start: Policy, classifier: LabelLikelihood, algorithm: object) -> None:
    """At most 0.01 nats for each; the posterior of another label is further off (twin)."""
    tuned = conditioned(start_of(start), LABELS, hidden=64)
    conditions = Conditions({"y": torch.arange(LABELS)})
    state = algorithm.init(tuned, [Anchor(start.frozen_copy(), 1.0)], conditions)
    rng = torch.Generator().manual_seed(0)
    for update in range(200):
        state.scale_learning_rate(1 - update / 201)
        algorithm.step(state, classifier, rng)
    for label in range(LABELS):
        assert kl_to_posterior(start, state.policy, classifier, label) < 0.01
        y = torch.tensor([(label + 1) % LABELS])
        wrong = TiltedProblem(
            start.frozen_copy(), classifier.under({"y": torch.tensor([label]).expand(81)}), alpha=1.0, cond={"y": y}
        )
        assert wrong.kl(state.policy) > 0.1


def test_distillation_steers_each_row_by_its_own_label(start: Policy, classifier: LabelLikelihood) -> None:
    """Scores are those of the row's label, and designs drawn for a label are likelier to have it than p_pre's."""
    conditions, algorithm = Conditions({"y": torch.arange(LABELS)}), Distill(batch=512, teacher="refine", effort=16)
    state = algorithm.init(conditioned(start_of(start), LABELS), [Anchor(start.frozen_copy(), 1.0)], conditions)
    data = algorithm.collect(state, classifier, torch.Generator().manual_seed(0))
    every = torch.stack(
        [classifier.under({"y": torch.full((512,), y)})(start.codec.decode(data.path.x_0)) for y in range(LABELS)]
    )
    assert torch.equal(data.scores.value, every.gather(0, data.condition[None])[0])
    for label in range(LABELS):
        own = every[label].exp()
        assert own[data.condition == label].mean() > own[data.condition != label].mean() + 0.1


def start_of(policy: Policy) -> Policy:
    """The unconditional policy inside."""
    return Policy(policy.denoiser.base, policy.process, policy.codec, policy.event_shape, grid=policy.grid)


def test_the_start_does_not_look_at_the_label(start: Policy) -> None:
    x_t = start.prior(3, torch.Generator())
    laws = [start.step(x_t, start.grid[0], start.grid[1], {"y": torch.full((3,), y)}).logits for y in range(LABELS)]
    assert torch.equal(laws[0], laws[1])
    assert torch.equal(laws[0], start_of(start).step(x_t, start.grid[0], start.grid[1]).logits)


def test_labels_that_are_missing_are_asked_for(start: Policy, classifier: LabelLikelihood) -> None:
    with pytest.raises(ConfigError, match="expected a condition 'y'"):
        start.step(start.prior(2, torch.Generator()), start.grid[0], start.grid[1])
    with pytest.raises(OracleError, match="expected a label for each design"):
        classifier(["AAAA"])


def test_a_conditioned_policy_survives_its_folder(start: Policy, tmp_path: object) -> None:
    start.save_pretrained(tmp_path)
    again = Policy.from_pretrained(tmp_path)
    x_t, cond = start.prior(2, torch.Generator()), {"y": torch.tensor([0, 2])}
    laws = [policy.step(x_t, start.grid[0], start.grid[1], cond).logits for policy in (start, again)]
    assert torch.equal(*laws)


def test_policies_over_vectors_bring_their_own_conditional_network() -> None:
    from difftilt.core.noise import Cosine
    from difftilt.core.schedule import uniform_grid
    from difftilt.problems.linear_gaussian import LinearGaussian
    from difftilt.processes.gaussian import Gaussian

    eye = torch.eye(2, dtype=torch.float64)
    chain = LinearGaussian(eye[0], eye, Gaussian(Cosine(0.05), sigma_min=0.1), uniform_grid(4)).pretrained()
    with pytest.raises(UnsupportedError, match="expected a policy over tokens; got Gaussian"):
        conditioned(chain, 2)


def test_the_loop_tunes_for_conditions_and_buys_no_answer_twice(start: Policy, classifier: LabelLikelihood) -> None:
    """Asked by design and label, counted once each; the wrong row's label (twin) would give other rewards."""
    asked: list[int] = []

    class Counting(LabelLikelihood):
        def under(self, cond: dict[str, torch.Tensor]) -> object:
            plain = super().under(cond)

            def reward(designs: list[str]) -> torch.Tensor:
                asked.append(len(designs))
                return plain(designs)

            return reward

    tuned = conditioned(start_of(start), LABELS, hidden=64)
    conditions = Conditions({"y": torch.arange(LABELS)})
    algorithm = PPO(alpha=1.0, batch=96, learning_rate=5e-3)
    loop = LoopConfig(steps=40)
    result = finetune(tuned, Counting(classifier.log_likelihood), algorithm, conditions=conditions, loop=loop)
    assert sum(asked) == result.oracle.calls <= 81 * LABELS
    assert result.history[-1]["reward"] > result.history[0]["reward"] + 0.2
    cond = {"y": torch.tensor([0, 1, 2, 1, 0])}
    designs = ["AAAA", "AAAA", "CGAA", "CGAA", "AAAA"]
    right = classifier.under(cond)(designs)
    assert torch.equal(result.oracle.under(cond)(designs), right)
    assert not torch.equal(classifier.under({"y": cond["y"].roll(1)})(designs), right)
