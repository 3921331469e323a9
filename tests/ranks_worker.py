"""What one of several processes does in the tests of ``difftilt.core.ranks``; run alone, the same in one process.

``python ranks_worker.py NAME FOLDER`` with ``RANK`` and ``WORLD_SIZE`` set writes ``FOLDER/NAME-RANK.json``.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__" and os.environ.get("DIFFTILT_TYPECHECK", "1") != "0":
    from jaxtyping import install_import_hook

    install_import_hook("difftilt", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import torch
from torch import distributed, nn
from torch.utils.checkpoint import checkpoint

from difftilt import build
from difftilt.core import ranks, shares
from difftilt.core.algorithm import Algorithm
from difftilt.core.codec import TokenCodec
from difftilt.core.noise import Cosine
from difftilt.core.policy import Policy
from difftilt.core.schedule import uniform_grid
from difftilt.errors import StateError
from difftilt.networks import ConvDenoiser
from difftilt.problems.landscapes import PairwiseReward
from difftilt.problems.linear_gaussian import LinearGaussian, Quadratic
from difftilt.processes.gaussian import Gaussian
from difftilt.processes.masked import Masked
from difftilt.rng import seeded_initialisation
from difftilt.tracking.run import RunFolder
from difftilt.training.finetune import finetune
from difftilt.training.loop import LoopConfig

LENGTH, STEPS, UPDATES = 5, 3, 4
COMMON: dict[str, Any] = {"alpha": 0.5, "batch": 15, "learning_rate": 0.02}
"""An odd batch: the last row is made up."""
METHODS: dict[str, dict[str, Any]] = {
    "ppo": {"baseline": "running", "scale": "running", "steps_per_path": 2, "minibatches": 3},
    "trajectory_balance": {"log_z": "learned", "replay": 0.5},
    "reward_backprop": {"random_truncation": True},
}
DOUBLES: dict[str, dict[str, Any]] = {
    "reinforce": {"baseline": "value"},
    "path_consistency": {"replay": 0.3},
    "distill": {"teacher": "smc", "effort": 4},
}
VECTORS: dict[str, dict[str, Any]] = {
    "ppo": {"kl": "closed_form"},
    "trajectory_balance": {"exploration": 0.3},
    "reward_backprop": {"truncation": 1, "low_variance": 2},
    "adjoint_matching": {"epochs": 2, "minibatches": 2},
}


class Counted:
    """A reward that remembers how often this process was asked."""

    def __init__(self, reward: Any) -> None:
        self.reward, self.asked = reward, 0

    def __call__(self, designs: Any) -> torch.Tensor:
        self.asked += 1
        return self.reward(designs)

    def on_probabilities(self, p: torch.Tensor) -> torch.Tensor:
        return self.reward.on_probabilities(p)


def tokens() -> tuple[Policy, Any]:
    codec = TokenCodec("ACGT", LENGTH)
    with seeded_initialisation(0):
        network = ConvDenoiser(4, LENGTH, width=8, kernel=3, dilations=(1, 2))
        reward = PairwiseReward(
            torch.randn(LENGTH, 4).double(), 0.2 * torch.randn(LENGTH, LENGTH, 4, 4).double(), codec
        )
    return Policy(network, Masked(4), codec, (LENGTH,), steps=STEPS).eval(), reward


def vectors() -> tuple[Policy, Any]:
    process = Gaussian(Cosine(0.05), kernel="ddpm", sigma_min=0.1)
    eye = torch.eye(2, dtype=torch.float64)
    policy = LinearGaussian(eye[0], 0.5 * eye, process, uniform_grid(STEPS)).pretrained()
    return policy, Quadratic.reward(eye, -eye[0], eye[1])


def doubles() -> tuple[Policy, Any]:
    policy, reward = tokens()
    return policy.double(), reward


WORLDS: dict[str, tuple[Callable[[], tuple[Policy, Any]], dict[str, dict[str, Any]]]] = {
    "tokens": (tokens, METHODS),
    "doubles": (doubles, DOUBLES),
    "vectors": (vectors, VECTORS),
}
CASES = [f"{world}-{name}" for world, (_, methods) in WORLDS.items() for name in methods]


def tuned(case: str, *, shares: int = 1, **options: Any) -> dict[str, Any]:
    """Numbers of a run: parameters, records, and the calls that this process paid for."""
    world, _, name = case.partition("-")
    problem, methods = WORLDS[world]
    policy, reward = problem()
    scorer = Counted(reward)
    algorithm: Algorithm = build.ALGORITHMS[name](**COMMON, **methods[name])
    loop = LoopConfig(steps=UPDATES, judge_every=2, checkpoint_every=2, ema=0.5 if name == "ppo" else None,
                      shares=shares)  # fmt: skip
    judge = Counted(reward)
    result = finetune(policy, scorer, algorithm, **{"loop": loop, "judge": judge, **options})
    return {
        "parameters": [p.detach().double().flatten().tolist() for p in result.policy.parameters()],
        "history": [{k: v for k, v in record.items() if k != "seconds"} for record in result.history],
        "calls": result.oracle.calls,
        "asked": scorer.asked,
        "judged": judge.asked,
    }


class Nested(nn.Module):
    """A network that calls another one that is split too, on rows and conditions; smooth, float64."""

    def __init__(self) -> None:
        super().__init__()
        with seeded_initialisation(1):
            self.inner = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double()
            self.outer = nn.Linear(4, 3).double()

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: dict[str, torch.Tensor] | None) -> torch.Tensor:
        shift = 0 if cond is None else cond["y"]
        return self.outer(self.inner(x + t[:, None] + shift))


def split(rows: int, *, inner: bool = True, rematerialised: bool = False) -> dict[str, Any]:
    """Prediction and gradients of two calls in a row, the second on what the first said in another order.

    A checkpoint ends its second forward pass by an exception from within, once it has what it needs.
    """
    network = Nested()
    generator = torch.Generator().manual_seed(rows)
    x, t, y = (torch.randn(rows, *shape, generator=generator).double() for shape in ((3,), (), (3,)))
    x.requires_grad_(True)
    seen: list[int] = []
    with ranks.together(network, *([network.inner] if inner else []), network):
        network.outer.register_forward_hook(lambda module, arguments, result: seen.append(len(result)))

        def call(*arguments: Any) -> torch.Tensor:
            return checkpoint(network, *arguments, use_reentrant=False) if rematerialised else network(*arguments)

        said = call(call(x, t, None).flip(0) * x, t.flip(0), {"y": y}).sin()
        loss = (said.square() * torch.arange(1.0, rows + 1)[:, None]).sum()
        loss.backward()
        again = torch.autograd.grad(network(x, t, None).square().sum(), [x, *network.parameters()])
    assert x.grad is not None
    numbers = [said, x.grad, *(p.grad for p in network.parameters()), *again]
    return {"numbers": [value.double().flatten().tolist() for value in numbers], "rows": seen[:2]}


def halves() -> dict[str, Any]:
    """Half-precision predictions go around too."""
    network = nn.Linear(3, 2).bfloat16()
    with torch.no_grad():
        network.weight.fill_(0.5)
        network.bias.fill_(1.0)
    with ranks.together(network):
        said = network(torch.arange(9.0).view(3, 3).bfloat16())
        said.sum().backward()
    assert network.weight.grad is not None
    return {"said": said.tolist(), "gradient": network.weight.grad.tolist()}


SPLITS: dict[str, tuple[int, dict[str, Any]]] = {
    "no rows": (0, {}),
    "one row": (1, {}),
    "even": (6, {}),
    "uneven": (5, {}),
    "checkpointed": (5, {"rematerialised": True}),
    "not nested": (5, {"inner": False}),
}


def everything(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {case: tuned(case) for case in CASES}
    found |= {name: split(n, **how) for name, (n, how) in SPLITS.items()} | {"halves": halves()}
    told: list[int] = []
    kept = RunFolder(folder / "run")

    def stop(record: dict[str, Any]) -> bool:
        told.append(record["step"])
        return record["step"] == 3

    found["stopped"] = tuned("tokens-ppo", folder=kept, on_step=stop)
    found["resumed"] = tuned("tokens-ppo", folder=kept, resume=True)
    found["told"] = told
    eight = tuned("tokens-reward_backprop", shares=8)
    found["eight"] = {field: eight[field] for field in ("parameters", "history", "calls")}
    if ranks.count() > 1:
        found["refused"] = refused(folder)
    else:
        found["shared"] = {case: tuned(case, shares=2) for case in CASES}
    return found


def wrong(folder: Path) -> dict[str, Any]:
    """Known-bad variants."""
    right = ranks._sum, shares._Share.backward

    def own_only(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        whole = gradients[0].new_zeros(2, *gradients[0].shape)
        whole[distributed.get_rank()] = gradients[0]
        return whole.flatten(0, 1)[: context.rows], None

    ranks._sum = lambda gradient: gradient
    no_sum = {case: tuned(case) for case in ("tokens-ppo", "vectors-reward_backprop")} | {"uneven": split(5)}
    ranks._sum, shares._Share.backward = right[0], staticmethod(own_only)
    no_state = {"vectors-adjoint_matching": tuned("vectors-adjoint_matching"), "uneven": split(5)}
    return {"no sum": no_sum, "no state gradient": no_state}


def refused(folder: Path) -> dict[str, Any]:
    """What ends a run, and with which words, in each process."""
    policy, reward = tokens()
    with torch.no_grad():
        next(policy.parameters()).add_(0.1 * distributed.get_rank())
    backprop, ppo = (build.ALGORITHMS[name](**COMMON) for name in ("reward_backprop", "ppo"))
    own = Counted(vectors()[1])
    own.on_probabilities = lambda p: own.reward.on_probabilities(p) + distributed.get_rank()  # type: ignore[method-assign]

    def fails(record: dict[str, Any]) -> None:
        raise KeyError("no such gauge")

    def full(*whatever: Any) -> None:
        raise StateError("expected to write; got a full disk; free space")

    crowded = RunFolder(folder / "crowded")
    crowded.append = full  # type: ignore[method-assign]
    runs: dict[str, Callable[[], Any]] = {
        "another model": lambda: finetune(policy, reward, ppo),
        "a reward of its own": lambda: finetune(vectors()[0], own, backprop),
        "a callback": lambda: tuned("tokens-ppo", on_step=fails),
        "a full disk": lambda: tuned("tokens-ppo", folder=crowded),
        "uneven shares": lambda: tuned("tokens-ppo", shares=3),
        "a used folder": lambda: tuned("tokens-ppo", folder=RunFolder(folder / "run")),
    }
    said = {}
    for name, run in runs.items():
        try:
            run()
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said


def a_failing_oracle(folder: Path) -> dict[str, Any]:
    def broken(designs: list[str]) -> list[float]:
        raise ZeroDivisionError("the scorer is broken")

    finetune(tokens()[0], broken, build.ALGORITHMS["ppo"](**COMMON), folder=RunFolder(folder / "run"))
    return {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, folder = sys.argv[1], Path(sys.argv[2])
    rank = int(os.environ["RANK"])
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/{name}-store",
        rank=rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=datetime.timedelta(seconds=120),
    )
    status = 0
    try:
        (folder / f"{name}-{rank}.json").write_text(json.dumps(globals()[name](folder)))
    except Exception:
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    os._exit(status)  # gloo's threads may abort where another process is gone already
