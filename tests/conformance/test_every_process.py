"""Every algorithm and sampler on uniform, simplex and flow processes; what is not defined says why."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from difftilt import build
from difftilt.core.algorithm import Anchor
from difftilt.core.codec import SimplexCodec, TokenCodec, VectorCodec
from difftilt.core.policy import Policy
from difftilt.core.trajectory import rollout, sample_states, step_log_prob
from difftilt.errors import UnsupportedError
from difftilt.networks import TimedConvDenoiser
from difftilt.problems.landscapes import PairwiseReward
from difftilt.processes import Flow, Simplex, Uniform
from difftilt.rng import seeded_initialisation

ALPHA, LENGTH, STEPS = 0.5, 4, 3
LETTERS = TokenCodec("ACGT", LENGTH)
PROCESSES = ("uniform", "simplex", "flow", "flow, sde")
SETTINGS: dict[str, dict[str, Any]] = {
    "distill": {"teacher": "refine", "effort": 4},
    "value_weighted_mle": {"value_paths": 64, "value_updates": 20},
    "raft": {"keep": 0.3},
}
SAMPLERS: dict[str, dict[str, Any]] = {
    "best_of_n": {"candidates": 3},
    "value_weighted": {"candidates": 3},
    "smc": {"particles": 4},
    "refine": {"moves": 6},
    "classifier_guidance": {},
    "mcmc": {"step_size": 0.01, "moves": 3},
}
UNDEFINED = {
    ("adjoint_matching", "uniform"): "expected a chain of Gaussian steps",
    ("adjoint_matching", "simplex"): "expected a chain of Gaussian steps",
    ("mcmc", "uniform"): "process with a score",
    ("mcmc", "simplex"): "process with a score",
}


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(LENGTH + 1, 16), nn.SiLU(), nn.Linear(16, LENGTH))

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        return self.layers(torch.cat([x_t.float(), t[:, None].float()], dim=1))


class Bowl:
    def __call__(self, designs: list[Any]) -> torch.Tensor:
        return self.on_probabilities(VectorCodec().encode(designs))

    def on_probabilities(self, p: torch.Tensor) -> torch.Tensor:
        return (p.sum(-1) - 0.3 * (p - 1).square().sum(-1)).double()


def reward(name: str) -> Any:
    if name.startswith("flow"):
        return Bowl()
    rng = torch.Generator().manual_seed(3)
    single, pair = torch.randn(LENGTH, 4, generator=rng), torch.randn(LENGTH, LENGTH, 4, 4, generator=rng)
    return PairwiseReward(single.double(), 0.2 * pair.double(), LETTERS)


def policy(name: str) -> Policy:
    with seeded_initialisation(0):
        if name.startswith("flow"):
            process = Flow(sigma_min=0.2) if name == "flow" else Flow(1.0, sigma_min=0.2)
            return Policy(Perceptron(), process, VectorCodec(), (LENGTH,), steps=STEPS).eval()
        reads, process, codec, event = {
            "uniform": ("tokens", Uniform(4), LETTERS, (LENGTH,)),
            "simplex": ("sticks", Simplex(4), SimplexCodec("ACGT", LENGTH), (LENGTH, 3)),
        }[name]
        denoiser = TimedConvDenoiser(4, LENGTH, reads, width=16, kernel=3, dilations=(1, 1), dropout=0.2)
        return Policy(denoiser, process, codec, event, steps=STEPS).eval()


def started(name: str, process: str, **more: Any) -> tuple[Any, Any]:
    algorithm = build.algorithm(name)(batch=12, learning_rate=0.01, **SETTINGS.get(name, {}), **more)
    return algorithm, algorithm.init(policy(process), [Anchor(policy(process).frozen_copy(), ALPHA)])


pairs = pytest.mark.parametrize(
    ("name", "process"),
    [(name, process) for name in build.ALGORITHMS for process in PROCESSES if (name, process) not in UNDEFINED],
)


@pairs
def test_it_runs_from_a_kl_of_zero_with_finite_numbers_and_equal_seeds_repeat(name: str, process: str) -> None:
    runs = []
    for _ in range(2):
        algorithm, state = started(name, process)
        rng = torch.Generator().manual_seed(0)
        first, second = (algorithm.step(state, reward(process), rng) for _ in range(2))
        if name != "distill":  # whose numbers are those of its teacher
            assert first.kl_nats == pytest.approx(0, abs=1e-5)
        for info in (first, second):
            assert all(math.isfinite(value) for value in vars(info).values() if value is not None)  # tau of no tokens
        if hasattr(first, "ratio_first_pass"):
            assert first.ratio_first_pass < 1e-5
        runs.append((vars(second), [p.clone() for p in state.policy.parameters()]))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))


@pairs
def test_updates_raise_the_reward(name: str, process: str) -> None:
    """Mean reward of 2,048 designs after 25 updates at a small alpha: up by 5 standard errors."""
    settings = {} if name == "raft" else {"alpha": 0.1}
    algorithm = build.algorithm(name)(batch=64, learning_rate=0.02, **SETTINGS.get(name, {}), **settings)
    reference, scorer, means = policy(process).frozen_copy(), reward(process), []
    state = algorithm.init(policy(process), [Anchor(reference, 0.1)])
    rng = torch.Generator().manual_seed(0)
    for _ in range(25):
        algorithm.step(state, scorer, rng)
    for chain in (reference, state.policy):
        designs = chain.codec.decode(sample_states(chain, 2048, torch.Generator().manual_seed(1)))
        values = torch.as_tensor(scorer(designs))
        means.append((values.mean().item(), values.std().item() / 2048**0.5))
    assert means[1][0] > means[0][0] + 5 * math.hypot(means[0][1], means[1][1])


@pytest.mark.parametrize("process", PROCESSES)
def test_the_stored_log_prob_is_that_of_the_stored_state_exactly(process: str) -> None:
    """Recomputed on the same slices with one thread, in training's graph: equal to the last bit."""
    chain = policy(process)
    path = rollout(chain, 6, torch.Generator().manual_seed(0), references=[chain.frozen_copy()])
    for k in range(path.steps):
        again = step_log_prob(chain, path.states[k], path.states[k + 1], path.times[k], path.times[k + 1], None)
        assert torch.equal(again.detach().double(), path.log_prob[k])
    assert (path.log_ratio == 0).all()


@pytest.mark.parametrize(("name", "process"), UNDEFINED)
def test_undefined_pairs_say_why(name: str, process: str) -> None:
    def tune() -> None:
        algorithm, state = started(name, process)
        algorithm.step(state, reward(process), torch.Generator().manual_seed(0))

    def steer() -> None:
        sampler = build.sampler(name)(alpha=ALPHA, **SAMPLERS[name])
        sampler(policy(process).requires_grad_(False), reward(process), 4, torch.Generator().manual_seed(0))

    with pytest.raises(UnsupportedError, match=UNDEFINED[name, process]):
        (tune if name in build.ALGORITHMS else steer)()


@pytest.mark.parametrize(
    ("name", "process"),
    [(name, process) for name in build.SAMPLERS for process in PROCESSES if (name, process) not in UNDEFINED],
)
def test_samplers_give_weighted_designs_and_equal_seeds_repeat(name: str, process: str) -> None:
    settings = SAMPLERS[name] if name == "best_of_n" else {"alpha": ALPHA, **SAMPLERS[name]}
    drawn = [
        build.sampler(name)(**settings)(
            policy(process).requires_grad_(False), reward(process), 6, torch.Generator().manual_seed(0)
        )
        for _ in range(2)
    ]
    assert len(policy(process).codec.decode(drawn[0].x_0)) == 6
    assert drawn[0].log_weight.isfinite().all()
    assert torch.equal(drawn[0].x_0, drawn[1].x_0)


def test_every_method_is_here() -> None:
    assert set(SAMPLERS) == set(build.SAMPLERS)
