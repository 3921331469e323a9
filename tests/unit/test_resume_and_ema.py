"""A resumed run is the uninterrupted one in every part that it keeps; and the moving average is its formula."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from difftilt import build
from difftilt.algorithms.baselines import BaselineState
from difftilt.algorithms.path_consistency import PathConsistencyState
from difftilt.algorithms.ppo import PPO
from difftilt.algorithms.replay import OffPolicyState
from difftilt.algorithms.state import TunedState, restore
from difftilt.core.policy import Policy
from difftilt.errors import ConfigError, StateError
from difftilt.problems.landscapes import corrected, random_pairwise
from difftilt.problems.tilted import TiltedProblem
from difftilt.rng import Streams
from difftilt.tracking.checkpoint import load_checkpoint
from difftilt.tracking.run import RunFolder
from difftilt.training.ema import Ema
from difftilt.training.finetune import FinetuneResult, finetune
from difftilt.training.loop import LoopConfig

LOOP = LoopConfig(steps=6, checkpoint_every=2, ema=0.6)
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "running statistics": ("ppo", {"baseline": "running", "scale": "running", "steps_per_path": 2}),
    "value baseline": ("reinforce", {"baseline": "value"}),
    "replay and learned log Z": ("trajectory_balance", {"replay": 0.5, "log_z": "learned"}),
    "replay and value network": ("path_consistency", {"replay": 0.3, "exploration": 0.2}),
    "annealing and cuts": ("reward_backprop", {"random_truncation": True, "tau_updates": 6}),
}


@pytest.fixture(scope="module")
def problem() -> TiltedProblem:
    return random_pairwise(3, 3, alpha=0.5, target_kl=1.0, seed=0)


@pytest.fixture(scope="module")
def part(problem: TiltedProblem) -> Policy:
    """A policy whose network is trained on top of a frozen table, as an adapter is on its base."""
    return corrected(problem.pretrained, hidden=8)


def run(problem: TiltedProblem, policy: Policy, case: str, **options: Any) -> FinetuneResult:
    name, settings = SETTINGS[case]
    algorithm = build.ALGORITHMS[name](alpha=0.5, batch=12, learning_rate=0.02, **settings)
    return finetune(policy, problem.reward, algorithm, **{"loop": LOOP, **options})


def numbers(result: FinetuneResult) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in result.history]


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """Places where two checkpoints differ in a bit."""
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return [where]
        inner = [differences(first[key], second[key], f"{where}/{key}") for key in first if key != "seconds"]
        return list(itertools.chain.from_iterable(inner))
    if isinstance(first, list):
        return differences(dict(enumerate(first)), dict(enumerate(second)), where)
    if isinstance(first, torch.Tensor):
        alike = first.shape == second.shape and torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)
        return [] if alike and first.dtype == second.dtype else [where]
    return [] if first == second else [where]


def stopped_and_resumed(problem: TiltedProblem, part: Policy, case: str, at: int, folder: RunFolder) -> FinetuneResult:
    run(problem, part, case, folder=folder, on_step=lambda record: record["step"] == at)
    return run(problem, part, case, folder=folder, resume=True)


@pytest.mark.parametrize("at", [2, 3])
@pytest.mark.parametrize("case", SETTINGS)
def test_a_stopped_and_resumed_run_is_the_uninterrupted_one_to_the_last_bit(
    case: str, at: int, problem: TiltedProblem, part: Policy, tmp_path: Path
) -> None:
    """With a frozen part and an average; at a checkpoint and one update beyond.

    Not only what is returned: all that the last checkpoints hold, so that whatever comes later is the same too.
    """
    whole = run(problem, part, case, folder=RunFolder(tmp_path / "whole"))
    folder = RunFolder(tmp_path / "resumed")
    resumed = stopped_and_resumed(problem, part, case, at, folder)
    assert numbers(resumed) == numbers(whole)
    mine, theirs = dict(resumed.policy.named_parameters()), dict(whole.policy.named_parameters())
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    states = [load_checkpoint(tmp_path / name / "checkpoints")[1] for name in ("resumed", "whole")]
    assert differences(*states) == []
    assert set(states[0]) == {"algorithm", "streams", "oracle", "totals", "seconds", "average"}


@pytest.mark.parametrize(
    ("case", "owner", "base"),
    [
        ("running statistics", Ema, None),
        ("running statistics", Streams, None),
        ("running statistics", torch.optim.Adam, None),
        ("running statistics", BaselineState, TunedState),
        ("value baseline", BaselineState, TunedState),
        ("replay and value network", OffPolicyState, TunedState),
        ("replay and value network", PathConsistencyState, OffPolicyState),
    ],
)
def test_a_resume_that_forgets_a_part_is_seen(
    case: str, owner: Any, base: Any, problem: TiltedProblem, part: Policy, tmp_path: Path, monkeypatch: Any
) -> None:
    """Twin: each part of the state is needed, and the comparison above sees when it is not restored."""
    run(problem, part, case, folder=RunFolder(tmp_path / "whole"))
    forget = (lambda self, state: None) if base is None else base.load_state_dict
    monkeypatch.setattr(owner, "load_state_dict", forget)
    stopped_and_resumed(problem, part, case, 2, RunFolder(tmp_path / "resumed"))
    states = [load_checkpoint(tmp_path / name / "checkpoints")[1] for name in ("resumed", "whole")]
    assert differences(*states)


def test_only_trained_parameters_are_kept_and_others_are_refused(
    problem: TiltedProblem, part: Policy, tmp_path: Path
) -> None:
    """The frozen part does not go into every checkpoint; a run is not resumed on another set of parameters."""
    folder = RunFolder(tmp_path)
    run(problem, part, "running statistics", folder=folder, loop=dataclasses.replace(LOOP, steps=2))
    _, saved = load_checkpoint(folder.checkpoints)
    trained = {name for name, value in part.named_parameters() if value.requires_grad}
    assert saved["algorithm"]["policy"].keys() == saved["average"]["average"].keys() == trained
    assert "denoiser.table.logits" not in trained
    with pytest.raises(StateError, match=r"expected shape .* for 'denoiser.logits'; got no such tensor"):
        run(problem, problem.pretrained, "running statistics", folder=folder, resume=True)
    wide = corrected(problem.pretrained, hidden=9)
    with pytest.raises(StateError, match=r"expected shape \(9,\) for 'denoiser.network.0.bias'; got shape \(8,\)"):
        run(problem, wide, "running statistics", folder=folder, resume=True)
    with pytest.raises(StateError, match="expected no such tensor for 'b'"):
        restore({"a": torch.zeros(1)}, {"a": torch.ones(1), "b": torch.ones(1)})


# --- the average ---------------------------------------------------------------------------------------------------


def visited(problem: TiltedProblem, policy: Policy, ema: float | None) -> tuple[list[torch.Tensor], FinetuneResult]:
    """Trained numbers before the first update and after each, and the run."""
    seen: list[torch.Tensor] = []

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Watched(PPO):
        def step(self, state: Any, reward: Any, rng: Any) -> Any:
            if not seen:
                seen.append(torch.cat([p.detach().flatten() for p in state.parameters]))
            info = super().step(state, reward, rng)
            seen.append(torch.cat([p.detach().flatten() for p in state.parameters]))
            return info

    loop = dataclasses.replace(LOOP, ema=ema)
    return seen, finetune(policy, problem.reward, Watched(alpha=0.5, batch=12, learning_rate=0.02), loop=loop)


@pytest.mark.parametrize("ema", [0.0, 0.3, 0.99])
def test_a_run_returns_the_weighted_sum_of_the_parameters_it_visited(ema: float, problem: TiltedProblem) -> None:
    r""":math:`\sum_k w_k \theta_k`, :math:`w_k = (1 - \lambda_k) \prod_{j > k} \lambda_j`, :math:`\lambda_0 = 0`."""
    seen, result = visited(problem, problem.tunable(), ema)
    decays = [0.0, *(min(ema, (1 + k) / (10 + k)) for k in range(1, LOOP.steps + 1))]
    weights = [(1 - decay) * torch.tensor(decays[k + 1 :]).prod().item() for k, decay in enumerate(decays)]
    assert sum(weights) == pytest.approx(1)
    expected = sum(weight * value for weight, value in zip(weights, seen, strict=True))
    returned = torch.cat([p.flatten() for p in result.policy.parameters()])
    assert torch.allclose(returned, expected, rtol=0, atol=1e-7)
    assert torch.equal(returned, seen[-1]) == (ema == 0)


def test_without_an_average_the_last_update_is_returned_and_training_is_the_same(
    problem: TiltedProblem, part: Policy
) -> None:
    """The average watches: records do not depend on it. What is frozen stays as it is to the last bit."""
    seen, plain = visited(problem, part, None)
    _, averaged = visited(problem, part, 0.9)
    trained = torch.cat([p.flatten() for p in plain.policy.denoiser.network.parameters()])
    assert torch.equal(trained, seen[-1])
    assert numbers(plain) == numbers(averaged)
    assert torch.equal(averaged.policy.denoiser.table.logits, part.denoiser.table.logits)
    assert not torch.equal(averaged.policy.denoiser.network[0].weight, plain.policy.denoiser.network[0].weight)


def test_the_average_of_half_precision_moves_where_half_precision_would_not() -> None:
    """0.01 of a step of 1/16 from 1 is below half of bfloat16's spacing there, 1/128."""
    values = {"w": torch.ones(3, dtype=torch.bfloat16)}
    average = Ema(values, 0.99)
    average.updates = 10_000
    values["w"].sub_(1 / 16)
    for _ in range(100):
        average.update(values)
    assert average.average["w"].dtype == torch.float32
    assert torch.allclose(average.average["w"], torch.tensor(1 - (1 - 0.99**100) / 16), rtol=1e-5)
    naive = torch.ones(3, dtype=torch.bfloat16)
    for _ in range(100):
        naive.lerp_(values["w"], 0.01)
    assert torch.equal(naive, torch.ones(3, dtype=torch.bfloat16)), "twin: kept in bfloat16 it stays where it was"


@pytest.mark.parametrize("ema", [-0.1, 1.0, 2.0, float("nan")])
def test_a_decay_without_meaning_is_refused(ema: float) -> None:
    with pytest.raises(ConfigError, match="expected a decay of 0 to below 1"):
        LoopConfig(ema=ema)


@pytest.mark.parametrize(("before", "after"), [(0.5, None), (None, 0.5)])
def test_an_average_is_not_begun_or_dropped_on_resume(
    before: float | None, after: float | None, problem: TiltedProblem, part: Policy, tmp_path: Path
) -> None:
    folder, short = RunFolder(tmp_path), dataclasses.replace(LOOP, steps=2)
    run(problem, part, "running statistics", folder=folder, loop=dataclasses.replace(short, ema=before))
    loop = dataclasses.replace(short, steps=4, ema=after)
    with pytest.raises(StateError, match=f"expected a checkpoint for ema {after}; got another"):
        run(problem, part, "running statistics", folder=folder, loop=loop, resume=True)
