"""What can be known of a campaign before its first plate is paid for: whether its strategy can go on after it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from difftilt.campaigns.adaptive import Adaptive
from difftilt.campaigns.constraints import Rules
from difftilt.campaigns.history import CampaignSettings, History
from difftilt.campaigns.learning import learner, measurements
from difftilt.campaigns.strategies import READS, strategy
from difftilt.campaigns.update import algorithm_for
from difftilt.core.algorithm import Anchor
from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy
from difftilt.errors import ConfigError, DataError, UnsupportedError
from difftilt.surrogates.gaussian_process import GaussianProcess, check_installed


def check_reads(settings: CampaignSettings) -> None:
    """Refuse settings other than the defaults that the strategy does not read.

    Raises:
        ConfigError: there is such a setting, or no strategy of that name.
    """
    strategy(settings.strategy)
    reads = READS[settings.strategy]
    idle = [
        field.name
        for part in (settings.tuning, settings.picking)
        for field in dataclasses.fields(part)
        if field.name not in reads and getattr(part, field.name) != field.default
    ]
    if idle:
        known = ", ".join(map(_flag, reads)) or "none but the constraints"
        raise ConfigError(
            f"expected settings that the strategy {settings.strategy} reads ({known}); got "
            f"{', '.join(map(_flag, idle))}, without effect there; leave it out, or choose another strategy"
        )
    if settings.constraints.both_strands and not settings.constraints.forbid:
        raise ConfigError("expected --forbid with --both-strands; got no word to forbid on either strand; name one")


def check_settings(settings: CampaignSettings, policy: Policy) -> None:
    """Find what would make a plate impossible, the first or a later one.

    Args:
        settings: of a campaign that is not begun.
        policy: p_pre of its task.

    Raises:
        ConfigError: a setting makes no sense of this task, or a package is missing that the strategy will need.
        DataError: a file of designs cannot be read, or nothing can be learned from designs measured before.
        UnsupportedError: the task has no such designs.
    """
    check_reads(settings)
    first = policy.process.prior((1, *policy.event_shape), torch.Generator(policy.device).manual_seed(0))
    if first.is_floating_point() and not isinstance(policy.codec.decode(first)[0], str):
        raise UnsupportedError(
            f"expected designs that a plate can name in text; got those of {type(policy.codec).__name__}; propose and "
            "measure them in a loop of your own: tune with dt.finetune, learn with difftilt.surrogates"
        )
    proposer = strategy(settings.strategy)(policy, Path())
    if "surrogate" in READS[settings.strategy]:
        how = proposer.plan.acquisition if isinstance(proposer, Adaptive) else "mean"
        if isinstance(learner(settings.picking, 0, how), GaussianProcess):
            check_installed()
    run, tuning, start = Rules(settings.constraints, policy).on(policy), settings.tuning, settings.picking.start
    if "algorithm" in READS[settings.strategy]:
        fixed = run.frozen_copy()
        anchors = [Anchor(fixed, weight) for weight in (tuning.alpha, tuning.beta) if weight]
        algorithm_for(run, tuning).init(run.copy().requires_grad_(True), anchors)
    apart, codec = settings.picking.apart, policy.codec
    if "apart" in READS[settings.strategy] and isinstance(codec, TokenCodec) and apart > codec.length:
        raise ConfigError(
            f"expected designs of a plate to differ in at most all {codec.length} letters; got --apart {apart}, which "
            "leaves one design; lower it"
        )
    if start is not None and measurements(History(settings), policy.codec, settings.picking) is None:
        raise DataError(f"{start}: expected 2 designs or more of different scores; got fewer; add some, or no --start")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
