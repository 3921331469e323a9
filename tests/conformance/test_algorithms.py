"""What every algorithm of ``build.ALGORITHMS`` must do, whatever its method, on tokens and on vectors."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from difftilt import build
from difftilt.algorithms.state import SHARES
from difftilt.core.algorithm import Algorithm, Anchor, State
from difftilt.core.codec import TokenCodec, VectorCodec
from difftilt.core.noise import Cosine
from difftilt.core.policy import Policy
from difftilt.core.reward import DifferentiableReward, score
from difftilt.core.trajectory import sample_states
from difftilt.errors import ConfigError, DataError, OracleError, StateError, UnsupportedError
from difftilt.networks import ConvDenoiser
from difftilt.problems.landscapes import PairwiseReward
from difftilt.processes.gaussian import Gaussian
from difftilt.processes.masked import Masked
from difftilt.rng import seeded_initialisation
from difftilt.tracking.checkpoint import load_checkpoint, save_checkpoint

ALPHA, LENGTH, BATCH, STEPS = 0.3, 5, 12, 3
CODEC = TokenCodec("ACGT", LENGTH)
VECTORS = VectorCodec()
UNDEFINED = {("adjoint_matching", "tokens"): "expected a chain of Gaussian steps"}
"""Pairs of algorithm and kind of state that are refused, and how."""
ONE_ANCHOR = ("distill", "value_weighted_mle")
"""Methods that steer the reference, of which there can be one."""
WORLD = ["tokens"]
"""The kind of state that the test at hand is about; see :func:`world`."""
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "adjoint_matching": [{}, {"epochs": 2, "minibatches": 3, "steps_per_path": 2}],
    "ppo": [{}, {"kl": "closed_form"}, {"baseline": "running", "steps_per_path": 2, "epochs": 3, "minibatches": 5}],
    "reward_backprop": [
        {},
        {"truncation": 2},
        {"random_truncation": True},
        {"truncation": 1, "low_variance": 2},
        {"read_from": 0.4},
    ],
    "path_consistency": [{}, {"span": 2, "epochs": 2, "minibatches": 3}, {"steps_per_path": 1}],
    "detailed_balance": [{}],
    "subtrajectory_balance": [{}],
    "vargrad": [{}],
    "reinforce": [{}, {"baseline": "value", "steps_per_path": 2}],
    "raft": [{"keep": 0.3}],
    "renoised_mle": [{}, {"steps_per_path": 2}],
    "value_weighted_mle": [{"value_paths": 64, "value_updates": 50}],
    "distill": [{"teacher": "refine", "effort": 4}, {"teacher": "best_of_n", "effort": 4}],
    "reward_weighted_mle": [{}, {"control_variate": False}, {"path_correction": False}],
    "trajectory_balance": [{}, {"log_z": "learned", "epochs": 2, "minibatches": 3}, {"steps_per_path": 1}],
}
CASES = [(name, settings) for name in build.ALGORITHMS for settings in SETTINGS.get(name, [{}])]


def case_id(value: object) -> str:
    return str(value) if isinstance(value, str) else "-".join(f"{k}={v}" for k, v in value.items()) or "defaults"


every = pytest.mark.parametrize(("name", "settings"), CASES, ids=case_id)


@pytest.fixture(autouse=True, params=["tokens", "vectors"])
def world(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs every test on both kinds of state; undefined pairs have a test of their own."""
    case = getattr(request.node, "callspec", None)
    name, settings = (case.params.get(key) for key in ("name", "settings")) if case else (None, None)
    if (name, request.param) in UNDEFINED and settings is not None:
        pytest.skip("undefined")
    if request.param == "vectors" and settings and name != "adjoint_matching":
        pytest.skip("settings other than the defaults are tested on tokens")
    WORLD[0] = request.param
    yield
    WORLD[0] = "tokens"


class Counting(nn.Module):
    """A denoiser that counts its passes per design, and how often it ran outside eval mode."""

    time_free = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.rows, self.training_rows, self.conditions = network, 0, 0, set()

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        self.rows += len(x_t)
        self.training_rows += len(x_t) * self.training
        self.conditions.add(cond is None)
        return self.network(x_t, t, cond)


class CountedReward(PairwiseReward):
    """Counts what it was asked."""

    def __init__(self) -> None:
        self.world = WORLD[0]
        rng = torch.Generator().manual_seed(3)
        single, pair = torch.randn(LENGTH, 4, generator=rng), torch.randn(LENGTH, LENGTH, 4, 4, generator=rng)
        super().__init__(single.double(), 0.2 * pair.double(), CODEC)
        self.designs: list[Any] = []
        self.relaxed = 0

    def __call__(self, designs: Any) -> torch.Tensor:
        self.designs += designs
        if self.world == "vectors":
            return self.bowl(VECTORS.encode(designs))
        return super().on_probabilities(nn.functional.one_hot(CODEC.encode(designs), 4).double())

    def on_probabilities(self, p: torch.Tensor) -> torch.Tensor:
        self.relaxed += len(p)
        return self.bowl(p) if self.world == "vectors" else super().on_probabilities(p)

    def bowl(self, x: torch.Tensor) -> torch.Tensor:
        """A bent reward on vectors, of about the same spread."""
        return (2 * x.sum(-1) - 0.2 * (x - 1).square().sum(-1) + 1).double()


class Perceptron(nn.Module):
    """A small network on vectors, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(LENGTH + 1, 16)
        self.layers = nn.Sequential(nn.SiLU(), nn.Dropout(0.3), nn.Linear(16, LENGTH))

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        return self.layers(self.embed(torch.cat([x_t.float(), t[:, None].float()], dim=1)))


def policy(seed: int = 0) -> Policy:
    if WORLD[0] == "vectors":
        with seeded_initialisation(seed):
            denoiser = Counting(Perceptron())
        return Policy(
            denoiser, Gaussian(Cosine(0.05), prediction="x_0", sigma_min=0.3), VECTORS, (LENGTH,), steps=STEPS
        )
    with seeded_initialisation(seed):
        denoiser = Counting(ConvDenoiser(4, LENGTH, width=8, kernel=3, dilations=(1, 2), dropout=0.3))
    return Policy(denoiser, Masked(4), CODEC, (LENGTH,), steps=STEPS)


def made(name: str, settings: dict[str, Any], *, anchors: int = 1, **more: Any) -> tuple[Any, Any]:
    """An algorithm and its state on a fresh policy, whose references are that policy (and another)."""
    algorithm = build.algorithm(name)(**{"batch": BATCH, "learning_rate": 0.01, **settings, **more})
    tuned = policy()
    if anchors > 1 and name in ONE_ANCHOR:
        with pytest.raises(UnsupportedError, match="expected one anchor"):
            algorithm.init(tuned, [Anchor(policy().frozen_copy(), ALPHA)] * anchors)
        pytest.skip("one anchor only")
    references = [Anchor(policy(seed).frozen_copy(), ALPHA / anchors) for seed in range(anchors)]
    return algorithm, algorithm.init(tuned, references)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parameters(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize(("name", "kind"), UNDEFINED)
def test_undefined_pairs_are_refused_with_the_reason(name: str, kind: str) -> None:
    if kind == WORLD[0]:
        with pytest.raises(UnsupportedError, match=UNDEFINED[name, kind]):
            made(name, {})


def test_every_algorithm_has_cases_here() -> None:
    assert set(SETTINGS) == set(build.ALGORITHMS), "add the new algorithm's own settings to SETTINGS"


@every
def test_it_is_a_frozen_record_of_documented_settings(name: str, settings: dict[str, Any]) -> None:
    algorithm, state = made(name, settings)
    assert isinstance(algorithm, Algorithm)
    assert isinstance(state, State)
    assert algorithm.alpha > 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        algorithm.alpha = 1.0
    assert all(field.default is not dataclasses.MISSING for field in dataclasses.fields(algorithm))


@every
def test_the_info_has_the_common_numbers_and_all_of_them_are_finite(name: str, settings: dict[str, Any]) -> None:
    algorithm, state = made(name, settings)
    info = algorithm.step(state, CountedReward(), generator())
    assert dataclasses.is_dataclass(info)
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.reward = 0.0
    record = dataclasses.asdict(info)
    assert {"reward", "kl_nats", "network_evaluations", "oracle_calls"} <= set(record)
    meaningless = {key for key, value in record.items() if value is None}
    assert meaningless <= (set() if WORLD[0] == "tokens" else {"tau"})
    for key in record.keys() - meaningless:
        assert isinstance(record[key], int | float), key
        assert math.isfinite(record[key]), key


@every
def test_designs_of_the_update_are_kept_and_the_reward_is_their_mean(name: str, settings: dict[str, Any]) -> None:
    algorithm, state = made(name, settings)
    reward = CountedReward()
    info = algorithm.step(state, reward, generator())
    assert state.x_0.shape == (BATCH, LENGTH)
    assert state.x_0.dtype == (torch.int64 if WORLD[0] == "tokens" else torch.float32)
    codec = state.policy.codec
    designs = codec.decode(state.x_0)
    assert info.reward == pytest.approx(CountedReward()(designs).mean().item(), rel=1e-5)
    if name == "distill":  # the teacher scores what it throws away, too
        assert BATCH < info.oracle_calls <= len(reward.designs) + reward.relaxed
        return
    if name == "value_weighted_mle":  # so does the value, and every candidate of a last step
        assert info.oracle_calls == len(reward.designs) == 64 + BATCH + 4 * BATCH
        return
    designs_each = 1 + settings.get("low_variance", 0) + ("read_from" in settings)
    assert info.oracle_calls == len(reward.designs) + reward.relaxed == BATCH * designs_each
    assert not reward.designs or torch.equal(codec.encode(reward.designs), codec.encode(designs))


@every
@pytest.mark.parametrize("anchors", [1, 2])
def test_network_evaluations_are_those_of_a_counting_network(name: str, settings: dict[str, Any], anchors: int) -> None:
    """Per design and step, of the policy and of every reference, recomputation included."""
    algorithm, state = made(name, settings, anchors=anchors)
    rng = generator()
    for _ in range(2):
        modules = [state.policy.denoiser, *(reference.denoiser for reference in state.references)]
        before = sum(module.rows for module in modules)
        info = algorithm.step(state, CountedReward(), rng)
        assert info.network_evaluations == sum(module.rows for module in modules) - before


@every
def test_the_first_update_starts_at_a_kl_of_zero_and_later_ones_do_not(name: str, settings: dict[str, Any]) -> None:
    algorithm, state = made(name, settings)
    rng = generator()
    infos = [algorithm.step(state, CountedReward(), rng) for _ in range(6)]
    assert abs(infos[0].kl_nats) < 1e-4
    assert abs(infos[-1].kl_nats) > 1e-3


@every
def test_updates_raise_the_reward(name: str, settings: dict[str, Any]) -> None:
    """Mean of 40 updates at a high rate: the last ten are better than the first ten, by far more than noise."""
    if name == "renoised_mle":
        pytest.skip("it learns the reversal of q, which an untrained network is not: tested on exact problems")
    algorithm, state = made(name, settings, batch=48, learning_rate=0.03)
    rng, reward = generator(), CountedReward()

    def updated() -> float:
        info = algorithm.step(state, reward, rng)
        if name != "distill":
            return info.reward
        drawn = sample_states(state.policy, 48, rng)  # the record is of the teacher's designs
        return score(CountedReward(), state.policy.codec, drawn).mean

    rewards = [updated() for _ in range(40)]
    if name == "distill":  # its first update is large already
        drawn = sample_states(state.references[0], 480, rng)
        rewards[:10] = [score(CountedReward(), state.policy.codec, drawn).mean] * 10
    assert sum(rewards[-10:]) / 10 > sum(rewards[:10]) / 10 + 0.5


@every
def test_references_stay_as_they_are_to_the_last_bit(name: str, settings: dict[str, Any]) -> None:
    algorithm, state = made(name, settings, anchors=2)
    before = [parameters(reference) for reference in state.references]
    start = parameters(state.policy)
    for _ in range(3):
        algorithm.step(state, CountedReward(), generator())
    for reference, kept in zip(state.references, before, strict=True):
        assert torch.equal(parameters(reference), kept)
        assert all(p.grad is None for p in reference.parameters())
    assert not torch.equal(parameters(state.policy), start)


@every
def test_policy_and_references_run_in_eval_mode_without_conditions(name: str, settings: dict[str, Any]) -> None:
    """Pitfall 11: dropout between rollout and update makes ratios differ from 1."""
    algorithm, state = made(name, settings)
    assert not state.policy.training
    algorithm.step(state, CountedReward(), generator())
    for module in (state.policy.denoiser, state.references[0].denoiser):
        assert module.rows > 0
        assert module.training_rows == 0
        assert module.conditions == {True}


@every
def test_a_saved_state_goes_on_as_if_nothing_had_happened(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Through a checkpoint on disk; without the optimiser's moments it does not (twin)."""
    algorithm, state = made(name, settings)
    for seed in range(3):
        algorithm.step(state, CountedReward(), generator(seed))
    save_checkpoint(tmp_path, 1, state.state_dict())
    saved = load_checkpoint(tmp_path)[1]
    going_on = dataclasses.asdict(algorithm.step(state, CountedReward(), generator(9)))
    end = parameters(state.policy)

    def resumed(loaded: dict[str, Any]) -> tuple[dict[str, Any], torch.Tensor]:
        _, fresh = made(name, settings)
        fresh.load_state_dict(copy.deepcopy(loaded))
        info = dataclasses.asdict(algorithm.step(fresh, CountedReward(), generator(9)))
        return info, parameters(fresh.policy)

    info, parameters_again = resumed(saved)
    assert info == going_on
    assert torch.equal(parameters_again, end)
    forgetful = {**saved, "optimiser": {**saved["optimiser"], "state": {}}}
    assert not torch.equal(resumed(forgetful)[1], end)


@every
def test_a_state_of_another_number_of_anchors_is_refused(name: str, settings: dict[str, Any]) -> None:
    _, state = made(name, settings)
    _, other = made(name, settings, anchors=2)
    with pytest.raises(StateError, match="expected 2 anchors; got 1 in the checkpoint"):
        other.load_state_dict(state.state_dict())


@every
def test_equal_seeds_give_equal_updates(name: str, settings: dict[str, Any]) -> None:
    """All randomness comes from the given generator: the global one is neither used nor moved."""
    ends, before = [], torch.random.get_rng_state()
    for seed in (1, 1, 2):
        algorithm, state = made(name, settings)
        for _ in range(2):
            algorithm.step(state, CountedReward(), generator(seed))
        ends.append(parameters(state.policy))
        torch.rand(3)
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
    torch.random.set_rng_state(before)
    algorithm.step(state, CountedReward(), generator())
    assert torch.equal(torch.random.get_rng_state(), before)


@every
def test_a_learning_rate_of_zero_share_moves_nothing(name: str, settings: dict[str, Any]) -> None:
    algorithm, state = made(name, settings)
    start = parameters(state.policy)
    state.scale_learning_rate(0.0)
    algorithm.step(state, CountedReward(), generator())
    assert torch.equal(parameters(state.policy), start)
    state.scale_learning_rate(0.5)
    assert state.optimiser.param_groups[0]["lr"] == pytest.approx(0.005), (
        "a share of the configured rate, not of the last"
    )
    algorithm.step(state, CountedReward(), generator())
    assert not torch.equal(parameters(state.policy), start)


@every
def test_frozen_parameters_stay_and_a_policy_without_others_is_refused(name: str, settings: dict[str, Any]) -> None:
    algorithm = build.algorithm(name)(batch=BATCH, **settings)
    anchors = [Anchor(policy().frozen_copy(), ALPHA)]
    with pytest.raises(
        ConfigError, match=r"expected a policy with trainable parameters; got none; call policy.requires"
    ):
        algorithm.init(policy().frozen_copy(), anchors)
    part = policy()
    part.denoiser.network.embed.requires_grad_(False)
    state = algorithm.init(part, anchors)
    before = copy.deepcopy(part.state_dict())
    algorithm.step(state, CountedReward(), generator())
    moved = {key for key, value in part.state_dict().items() if not torch.equal(value, before[key])}
    assert moved
    assert not any(".embed." in key for key in moved)


@every
@pytest.mark.parametrize("weights", [[], [0.0], [-1.0], [0.5, 0.0]])
def test_a_temperature_that_is_not_positive_is_refused(
    name: str, settings: dict[str, Any], weights: list[float]
) -> None:
    algorithm = build.algorithm(name)(batch=BATCH, **settings)
    if not weights and name in ("ppo", "reinforce", "reward_backprop"):
        assert algorithm.init(policy(), []).anchors == []  # alpha = 0: the reward alone
        return
    with pytest.raises(ConfigError, match="expected alpha > 0 for every anchor"):
        algorithm.init(policy(), [Anchor(policy().frozen_copy(), weight) for weight in weights])


@every
def test_the_callers_anchors_are_not_changed(name: str, settings: dict[str, Any]) -> None:
    algorithm = build.algorithm(name)(batch=BATCH, **settings)
    anchors = [Anchor(policy().frozen_copy(), ALPHA)]
    state = algorithm.init(policy(), anchors)
    state.anchors[0] = Anchor(anchors[0].policy, 7.0)
    assert anchors[0].weight == ALPHA
    assert state.alpha == 7.0
    assert state.weights.tolist() == [7.0]


@every
def test_numbers_without_meaning_are_refused_before_anything_is_paid(name: str, settings: dict[str, Any]) -> None:
    anchors = [Anchor(policy().frozen_copy(), ALPHA)]
    kind = build.algorithm(name)
    numeric = {f.name: type(f.default) for f in dataclasses.fields(kind) if type(f.default) in (int, float)}
    assert {"alpha", "batch", "learning_rate"} <= set(numeric)
    del numeric["alpha"]  # the anchors' weight, tested above
    for field, type_ in numeric.items():
        if field in SHARES:
            most = "below 1" if field == "running" else "1"
            for bad in (-0.1, 1.0 if field == "running" else 1.1, math.nan):
                with pytest.raises(ConfigError, match=f"expected {field} of 0 to {most}; got {bad}"):
                    kind(**{field: bad})
            continue
        for bad in (0, -1) if type_ is int else (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(ConfigError, match=f"expected {field} above 0; got {bad}"):
                kind(**{field: bad}).init(policy(), anchors)
    if "minibatches" in numeric:
        with pytest.raises(ConfigError, match="expected at most as many minibatches as paths, 3; got 4"):
            kind(batch=3, minibatches=4).init(policy(), anchors)


@every
def test_steps_without_noise_are_refused(name: str, settings: dict[str, Any]) -> None:
    """Theory 1, steps without density; more in tests/unit/test_reward_backprop.py."""

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x_t: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
            return self.weight * x_t

    silent = Policy(Linear(), Gaussian(Cosine(0.05)), CODEC, (2,), steps=STEPS)
    with pytest.raises(UnsupportedError, match="got 1 of 3 steps without"):
        build.algorithm(name)(batch=BATCH, **settings).init(silent, [Anchor(silent.frozen_copy(), ALPHA)])


@every
def test_infeasible_designs_never_enter_the_parameters(name: str, settings: dict[str, Any]) -> None:
    """NaN for some, for all but one, and for all: the parameters stay finite, or the method says it cannot."""
    for limit in (0.5, 3.5, 99.0):
        algorithm, state = made(name, settings)

        class Partial(CountedReward):
            bar = limit

            def cut(self, value: torch.Tensor) -> torch.Tensor:
                return torch.where(value < self.bar, torch.nan, value)

            def __call__(self, designs: Any) -> torch.Tensor:
                return self.cut(super().__call__(designs))

            def on_probabilities(self, p: torch.Tensor) -> torch.Tensor:
                return self.cut(super().on_probabilities(p))

        reward = Partial()
        if name in ("reward_backprop", "adjoint_matching"):
            assert isinstance(reward, DifferentiableReward)
            with pytest.raises(UnsupportedError, match="expected a finite reward for every design"):
                algorithm.step(state, reward, generator())
        elif settings.get("kl") == "closed_form":
            with pytest.raises(UnsupportedError, match="expected a feasible design on every path"):
                algorithm.step(state, reward, generator())
        elif name in ONE_ANCHOR and limit == 99.0:  # a teacher and a value need one design at least
            with pytest.raises((OracleError, DataError), match=r"got NaN for all|expected a feasible design"):
                algorithm.step(state, reward, generator())
        else:
            info = algorithm.step(state, reward, generator())
            assert info.feasible_fraction == pytest.approx(
                sum(not math.isnan(v) for v in Partial()(state.policy.codec.decode(state.x_0)).tolist()) / BATCH
            )
        assert parameters(state.policy).isfinite().all()
