"""What every gradient-trained policy carries: parameters, optimiser, anchors, and the number of updates."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from difftilt.core.algorithm import Anchor
from difftilt.core.conditions import Conditions, first_row
from difftilt.core.policy import Policy
from difftilt.errors import ConfigError, StateError, UnsupportedError
from difftilt.types import Condition, Float, Int, Tensor

SHARES = ("replay", "exploration", "running")
"""Settings that may be 0; their own class checks that they are no more than 1."""


def check_settings(settings: Any) -> None:
    """Refuse numbers that no algorithm can use.

    Raises:
        ConfigError: one is not positive (``feasibility_weight``: negative), or there are more minibatches than paths.
    """
    for name, value in dataclasses.asdict(settings).items():
        if name == "alpha" or isinstance(value, bool) or not isinstance(value, int | float):
            continue  # alpha is checked as the anchors' weight
        zero = name in ("feasibility_weight", *SHARES)
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
            raise ConfigError(f"expected {name} {'0 or more' if zero else 'above 0'}; got {value}; correct it")
    if getattr(settings, "minibatches", 1) > settings.batch:
        raise ConfigError(
            f"expected at most as many minibatches as paths, {settings.batch}; got {settings.minibatches}; lower it"
        )


def refuse_lone_paths(paths: int, needed: int, what: str) -> None:
    """For methods that learn nothing from a path by itself.

    Raises:
        ConfigError: ``batch`` is ``paths``, fewer than ``needed``.
    """
    if paths < needed:
        raise ConfigError(f"expected a batch of at least {needed}, since each path is {what}; got {paths}; raise batch")


def refuse_conditions(conditions: Conditions | None, what: str) -> None:
    """For methods whose value network does not see conditions.

    Raises:
        UnsupportedError: there are several.
    """
    if conditions is not None and len(conditions) > 1:
        raise UnsupportedError(
            f"expected one condition for {what}, whose value network sees none; got {len(conditions)}; use "
            "trajectory_balance, ppo or reward_weighted_mle"
        )


@torch.no_grad()
def charge_every_step(policy: Policy, anchors: list[Anchor], conditions: Conditions | None) -> None:
    """See that no step is free: those without noise are run by a frozen network, as the anchors run them.

    Raises:
        UnsupportedError: tuning would move one of them, or an anchor's first one is another (seen at one state).
    """
    silent = policy.silent
    free = sum(policy.tuned_at(t) for t in policy.grid[:-1][silent])
    if free:
        raise UnsupportedError(
            f"expected noise in every step, so that its KL can be charged; got {free} of {policy.steps} steps "
            "without; give the process sigma_min > 0, or let a frozen network run them (difftilt.windowed, for flows)"
        )
    if silent.all():
        raise UnsupportedError(
            f"expected a step with noise to tune; got none of {policy.steps}; give the process sigma_min > 0, or a "
            "window in which a step starts"
        )
    for t, s in zip(policy.grid[:-1][silent][:1], policy.grid[1:][silent][:1], strict=True):
        x_t = policy.prior(1, torch.Generator(policy.device).manual_seed(0))
        cond = first_row(conditions, x_t.device)
        own = policy.step(x_t, t, s, cond)
        if any(own.kl(anchor.policy.step(x_t, t, s, cond)).item() != 0 for anchor in anchors):
            raise UnsupportedError(
                f"expected anchors that share the steps without noise, whose KL is infinite where they differ; got "
                f"another step from t = {t.item():.3g}; take the frozen copy of the windowed policy as the anchor"
            )


class TunedState:
    """A policy under training; the optimiser lives as long as the state does.

    Without anchors, which :attr:`greedy` methods take, alpha is 0: there is no KL and no law to reach, no reference is
    run, and what is told in nats elsewhere is in reward units.

    Args:
        policy: tuned in place; put in eval mode, because train-time randomness would make ratios meaningless.
        anchors: reference policies and their weights, all positive; at least one, unless :attr:`greedy`.
        conditions: what designs are made for; ``None`` where the model has no conditions.
        learning_rate: of Adam.
        extra: further parameters to train, each with its own learning rate.

    Raises:
        ConfigError: a weight is not positive, or no parameter can be trained.
        UnsupportedError: a tuned step has no noise. Its KL is 0 or infinite, so tuning it would be free of charge.
            Steps that a frozen network runs, alike for all anchors, need none (:mod:`difftilt.networks.windowed`).
    """

    greedy = False
    """Whether the objective without a KL, :math:`E[r]`, is one that the method can climb."""

    def __init__(
        self,
        policy: Policy,
        anchors: list[Anchor],
        conditions: Conditions | None = None,
        *,
        learning_rate: float,
        extra: list[dict[str, Any]] | None = None,
    ) -> None:
        whole = anchors or self.greedy
        if not whole or not all(math.isfinite(anchor.weight) and anchor.weight > 0 for anchor in anchors):
            came = [anchor.weight for anchor in anchors] or 0
            raise ConfigError(
                f"expected alpha > 0 for every anchor; got {came}; the tilted law needs a positive temperature (ppo, "
                "reinforce and reward_backprop take 0 and climb the reward alone)"
            )
        charge_every_step(policy, anchors, conditions)
        self.policy, self.anchors, self.updates = policy.eval(), list(anchors), 0
        self.conditions = conditions
        self.x_0: Tensor | None = None
        self.trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        self.parameters = list(self.trained.values())
        if not self.parameters:
            raise ConfigError("expected a policy with trainable parameters; got none; call policy.requires_grad_(True)")
        check_precision(self.trained)
        groups: list[dict[str, Any]] = [{"params": self.parameters, "lr": learning_rate}, *(extra or [])]
        self.optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self._rates = [group["lr"] for group in self.optimiser.param_groups]

    def draw_conditions(self, n: int, rng: torch.Generator) -> tuple[Int[Tensor, " n"], Condition | None]:
        """Conditions of ``n`` designs by number, and their rows; number 0 and ``None`` where there are none."""
        if self.conditions is None:
            return torch.zeros(n, dtype=torch.long, device=self.policy.device), None
        index = self.conditions.draw(n, rng)
        return index, self.conditions.rows(index)

    def descend(self, losses: Iterable[Float[Tensor, ""]], max_gradient_norm: float) -> Float[Tensor, ""]:
        """One optimiser step down the sum of ``losses``, one graph at a time.

        Returns:
            The gradient's norm before it is cut to ``max_gradient_norm``.

        Raises:
            StateError: the gradient is not finite. The parameters stay as they were.
        """
        self.optimiser.zero_grad(set_to_none=True)
        for loss in losses:
            loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, max_gradient_norm)
        if not norm.isfinite():
            raise StateError(
                f"expected a finite gradient in update {self.updates + 1}; got {norm.item()}; lower the learning rate, "
                "raise alpha, or let the reward return None in place of huge numbers"
            )
        self.optimiser.step()
        return norm

    def remember(self, data: Any) -> None:
        """Keep scored paths of any behaviour to learn from.

        Raises:
            UnsupportedError: the method is on-policy: its loss means something on fresh paths of its own only.
        """
        raise UnsupportedError(
            "expected a method whose loss is valid on anyone's paths; got an on-policy one; use trajectory_balance, "
            "path_consistency or reward_weighted_mle"
        )

    def scale_learning_rate(self, factor: float) -> None:
        """Set every learning rate to ``factor`` times its configured value."""
        for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = factor * rate

    @property
    def references(self) -> list[Policy]:
        """The anchors' policies."""
        return [anchor.policy for anchor in self.anchors]

    @property
    def weights(self) -> Float[Tensor, " A"]:
        """The anchors' weights, ``[A]``, float64, reward units per nat."""
        return torch.tensor([a.weight for a in self.anchors], dtype=torch.float64, device=self.policy.device)

    @property
    def alpha(self) -> float:
        """Total temperature, the sum of the weights; what divides rewards: 1 where there are none."""
        return sum(anchor.weight for anchor in self.anchors) or 1.0

    def state_dict(self) -> dict[str, Any]:
        """Trained parameters, optimiser, anchor weights and update count; what is fixed is not stored."""
        return {
            "policy": {name: value.detach() for name, value in self.trained.items()},
            "optimiser": self.optimiser.state_dict(),
            "anchor_weights": [anchor.weight for anchor in self.anchors],
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`.

        Raises:
            StateError: it is that of other anchors, or of other parameters.
        """
        if len(state["anchor_weights"]) != len(self.anchors):
            raise StateError(
                f"expected {len(self.anchors)} anchors; got {len(state['anchor_weights'])} in the checkpoint; "
                "resume with the settings the run was started with"
            )
        restore(self.trained, state["policy"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.anchors = [Anchor(a.policy, w) for a, w in zip(self.anchors, state["anchor_weights"], strict=True)]
        self.updates = state["updates"]


@torch.no_grad()
def restore(parameters: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy ``saved`` numbers into ``parameters``.

    Raises:
        StateError: names or shapes differ; the first that does is named.
    """
    for name in sorted(parameters.keys() | saved.keys()):
        expected, came = (
            f"shape {tuple(part[name].shape)}" if name in part else "no such tensor" for part in (parameters, saved)
        )
        if expected != came:
            raise StateError(
                f"expected {expected} for '{name}'; got {came} in the checkpoint; resume with the model and the "
                "trainable parameters that the run was started with"
            )
        parameters[name].copy_(saved[name])


class GreedyState(TunedState):
    """That of a method which can do without a KL."""

    greedy = True


def check_precision(trained: Mapping[str, Tensor]) -> None:
    """Refuse to tune float16, in which Adam divides by 0; warn of bfloat16.

    Raises:
        ConfigError: a parameter is float16.
    """
    narrow = next(((name, p.dtype) for name, p in trained.items() if p.itemsize < 4), None)
    if narrow is None:
        return
    text = (
        f"expected parameters of 32 bits to tune; got {narrow[0]} in {narrow[1]}, which loses small updates; tune "
        "adapters (difftilt.lora), or load in float32 and pass precision='bfloat16'"
    )
    if narrow[1] == torch.float16:
        raise ConfigError(text)
    warnings.warn(text, stacklevel=2)
