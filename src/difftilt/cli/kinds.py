"""The two commands that make runs, as :class:`~difftilt.cli.settings.Kind`, and the plan of their command lines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from difftilt import build
from difftilt.algorithms.state import SHARES
from difftilt.cli import flags
from difftilt.cli.settings import JobSettings, Kind, Plan, read_plan
from difftilt.core.algorithm import Sampler
from difftilt.errors import ConfigError, nearest
from difftilt.samplers.classifier_guidance import ClassifierGuidance
from difftilt.samplers.smc import SMC
from difftilt.samplers.value_weighted import ValueWeighted
from difftilt.training.loop import LoopConfig

ZERO = ("feasibility_weight", "log_z_samples", "final_learning_rate", "ess_fraction", "tempering", "moves", *SHARES)
"""Numbers that may be 0."""


@dataclass(frozen=True, kw_only=True)
class Settings(JobSettings):
    """Settings of `difftilt finetune`."""

    algorithm: str = "ppo"
    """How: a name of `difftilt list`. Each has flags of its own: add --help to see them."""


@dataclass(frozen=True, kw_only=True)
class SteerSettings(JobSettings):
    """Settings of `difftilt steer`."""

    sampler: str = "smc"
    """How: a name of `difftilt list`. Each has flags of its own: add --help to see them."""
    value: Annotated[str | None, tyro.conf.arg(metavar="|".join(build.VALUES))] = None
    """Estimate of the soft value. A state that is looked at costs: plug_in 1 reward call on the expected design (for
    rewards with gradients; the default there); one_jump n calls (the default elsewhere); monte_carlo n calls and n runs
    of the steps left; regression none, but n calls once."""
    value_samples: int | None = None
    """The n above; 4 for one_jump, 16 for monte_carlo, 2048 for regression when not set."""
    log_z_samples: int | None = None
    """Reward calls of the independent estimate of log Z, which checks that of smc and bounds the KL of others; 4096 for
    smc with a model or table, else 0, when not set."""


@dataclass(frozen=True, kw_only=True)
class Seeded:
    """What surrounds a sampler."""

    seed: int = 0
    """Seed of every random stream of the run."""


COSTS = {
    "best_of_n": "A design costs --candidates reward calls and as many runs of the chain.",
    "value_weighted": "A design costs --candidates reward calls and, at each step, as many values and a network pass.",
    "smc": "A design costs one reward call and, at each step, one value (twisted) and one network pass.",
    "refine": "A design costs 1 + --moves reward calls and about half as many runs of the chain.",
    "classifier_guidance": "A design costs one reward call and, at each step, one gradient of the value; with --tokens "
    "exact as many values as masked positions times letters.",
    "mcmc": "A design costs --moves gradients of the reward. Vectors and images only.",
}
"""What a design costs; a plug-in value costs a network pass and a reward call each."""

FINETUNE = Kind(
    command="difftilt finetune",
    role="algorithm",
    methods=build.ALGORITHMS,
    method=build.algorithm,
    settings=Settings,
    loop=LoopConfig,
    summary=lambda name: (
        "Tilt a pretrained model toward a reward. With --algorithm NAME --help: the flags of that method."
    ),
)
STEER = Kind(
    command="difftilt steer",
    role="sampler",
    methods=build.SAMPLERS,
    method=build.sampler,
    frugal={"best_of_n": {"candidates": 16}, "value_weighted": {"candidates": 8}},
    settings=SteerSettings,
    loop=Seeded,
    summary=lambda name: (
        "Draw designs from the tilted law of a pretrained model without training. With --sampler NAME --help: the "
        f"flags of that sampler. {COSTS[name]}"
    ),
)


def plan_from(argv: Sequence[str], kind: Kind = FINETUNE) -> Plan:
    """The plan of a command line of ``kind``.

    Raises:
        ConfigError: it makes no sense; see the message.
    """
    stored, plan = read_plan(kind, argv, _yield_to)
    if kind is FINETUNE and "learning_rate" not in plan.filed | flags.given(argv):
        plan = _at_own_rate(plan)
    if plan.place.resume is not None:
        refuse_changes(stored, plan)
    check_ranges(plan)
    return plan


def _at_own_rate(plan: Plan) -> Plan:
    """The same at the learning rate of the task's model, if it has one."""
    rate = build.tuning_rate(plan.settings.task, plan.settings.process)
    if rate is None:
        return plan
    return dataclasses.replace(plan, method=dataclasses.replace(plan.method, learning_rate=rate))


def _yield_to(base: Plan, given: set[str]) -> Plan:
    """Drop a KL budget for an alpha."""
    if {"alpha", "kl_budget"} <= given:
        raise ConfigError("expected --alpha or --kl-budget; got both; leave out one: a budget finds its own alpha")
    if "alpha" in given and base.kind is FINETUNE:
        return dataclasses.replace(base, loop=dataclasses.replace(base.loop, kl_budget=None))
    return base


def refuse_changes(stored: Plan, asked: Plan) -> None:
    """A resumed run keeps its settings.

    Raises:
        ConfigError: another value for one of them.
    """
    before, after = stored.tables(), asked.tables()
    for table, old in before.items():
        new = after[table]
        for name in old:
            same = set(old[name]) == set(new[name]) if name in ("fix", "require") else old[name] == new[name]
            if not same:
                flag = name if name == "task" else "--" + name.replace("_", "-")
                raise ConfigError(
                    f"expected the run's own {flag} {old[name]}; got {new[name]}; leave it out, or start a new run"
                )
    if asked.place.run is not None and asked.place.run.resolve() != Path(str(asked.place.resume)).resolve():
        raise ConfigError("expected --run or --resume; got both; a resumed run stays in its folder")


def check_ranges(plan: Plan) -> None:
    """Numbers that no method can use.

    Raises:
        ConfigError: one of them.
    """
    command, settings = plan.kind.command, plan.settings
    if not settings.task:
        raise ConfigError(f"expected a task; got none; for example `{command} utr-mrl`, see `difftilt list`")
    for values in plan.tables().values():
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or name == "seed":
                continue
            if not math.isfinite(value) or value < 0 or (value == 0 and name not in ZERO):
                least = "0 or more" if name in ZERO else "more than 0"
                raise ConfigError(f"expected {least} for {_flag(name)}; got {value}; correct it")
    batch, parts = (getattr(plan.method, name, None) for name in ("batch", "minibatches"))
    if batch is not None and batch < 2:
        raise ConfigError(f"expected --batch 2 or more; got {batch}; advantages compare the designs of a batch")
    if batch is not None and parts is not None and parts > batch:
        raise ConfigError(f"expected at most as many --minibatches as --batch {batch}; got {parts}; lower it")
    if settings.designs < 2:
        raise ConfigError(f"expected --designs 2 or more; got {settings.designs}; intervals need more than one")
    if plan.kind is STEER:
        _check_value(settings, looks=looks_at_values(plan.method))


def _check_value(settings: SteerSettings, *, looks: bool) -> None:
    """Flags of a soft value that would mean nothing."""
    if settings.value is not None and settings.value not in build.VALUES:
        raise nearest(settings.value, build.VALUES, what="value")
    if settings.value is not None and not looks:
        raise ConfigError(
            f"expected --value with a sampler that looks at soft values; got --sampler {settings.sampler} as set; "
            "leave it out, or use smc, value_weighted or classifier_guidance"
        )
    if settings.value_samples is not None and settings.value in (None, "plug_in"):
        raise ConfigError(
            f"expected --value one_jump, monte_carlo or regression with --value-samples; got {settings.value}; set it, "
            "or leave out --value-samples"
        )


def looks_at_values(sampler: Sampler) -> bool:
    """Whether a sampler makes use of soft values."""
    if isinstance(sampler, SMC):
        return sampler.kind == "twisted"
    return isinstance(sampler, ValueWeighted | ClassifierGuidance)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
