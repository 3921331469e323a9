"""What a round learns: a surrogate of all that was measured, tempered by how past rounds turned out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from difftilt.campaigns.earlier import measured_before
from difftilt.campaigns.history import FAILED, Design, History
from difftilt.campaigns.settings import Picking
from difftilt.core.codec import Codec
from difftilt.errors import DataError, DiffTiltError
from difftilt.surrogates.calibration import calibration, temper
from difftilt.surrogates.ensemble import MANY, Ensemble
from difftilt.surrogates.feasibility import Feasibility, Logistic
from difftilt.surrogates.gaussian_process import GaussianProcess
from difftilt.surrogates.linear import Linear
from difftilt.surrogates.measurements import Forecast, Measurements
from difftilt.surrogates.surrogate import Learner, Surrogate

SPREAD = ("factor", "misfit", "noise")
"""Facts of a round with which its predictions become intervals of measurements."""
PESSIMISTS = 16
"""Members of the ensemble that a lower bound is of."""
MOST_SPREAD = 1e30
"""Largest standard deviation of values, and the inverse of the smallest: networks compute in single precision."""


@dataclass(frozen=True)
class Learned:
    """A fit, and what is to be remembered of it."""

    surrogate: Surrogate
    """Tempered."""
    feasibility: Feasibility | None
    """Where some design failed."""
    facts: dict[str, Any]


def learn(
    history: History, codec: Codec, settings: Picking, rng: torch.Generator, *, how: str = "mean"
) -> Learned | None:
    """Fit a surrogate to what is measured.

    Args:
        history: replicates are rows of their own; failed designs are infeasible.
        codec: reads designs.
        settings: which surrogate; designs measured before the campaign.
        rng: the only source of randomness.
        how: the acquisition it is for, see :func:`learner`.

    Returns:
        ``None`` where there is nothing to learn yet; see :func:`measurements`.

    Raises:
        ConfigError: the surrogate's packages are not installed.
        DataError: the file of earlier designs cannot be read, or the values cannot be fitted.
    """
    data = measurements(history, codec, settings)
    if data is None:
        return None
    surrogate = fit(learner(settings, len(set(data.designs)), how), codec, data, rng)
    past = {entry.number: forecast_of(history, entry.number) for entry in history.rounds}
    told = {n: each for n, each in past.items() if each is not None and not each.measured.isnan().all()}
    factor = temper(surrogate.held_out, together(list(told.values())[-2:]) if told else None)
    surrogate = surrogate.tempered(factor)
    failed = not data.feasible.all()
    return Learned(surrogate, Logistic().fit(codec, data) if failed else None, {
        "rows": int(data.feasible.sum()),
        "infeasible": int((~data.feasible).sum()),
        "surrogate": type(surrogate).__name__,
        **{name: getattr(surrogate, name) for name in SPREAD},
        "held_out": numbers(surrogate.held_out, factor),
        "last_round": None if not told else numbers(told[max(told)], history.rounds[max(told) - 1].facts["factor"]),
    })  # fmt: skip


def measurements(history: History, codec: Codec, settings: Picking) -> Measurements | None:
    """Everything measured: the file of earlier designs, then the campaign's; NaN where a design failed.

    Returns:
        ``None`` where there are no two designs whose means over replicates differ: nothing can be fitted.

    Raises:
        DataError: the file cannot be read, or values are too large or too much alike for arithmetic.
    """
    earlier, scores = measured_before(settings.start, codec)
    designs, values = history.data()
    failed = [design.design for design in history.in_state(FAILED)]
    data = Measurements([*earlier, *designs, *failed], torch.cat([
        torch.tensor(scores, dtype=torch.float64), values, torch.full((len(failed),), math.nan, dtype=torch.float64),
    ]))  # fmt: skip
    try:
        rows = data.rows(codec)
    except DataError:
        return None
    if not 1 / MOST_SPREAD < rows.scale < MOST_SPREAD:
        raise DataError(
            f"expected values with a standard deviation of {1 / MOST_SPREAD:g} to {MOST_SPREAD:g}; got "
            f"{rows.scale:.3g}, in values from {rows.y.min():.3g} to {rows.y.max():.3g}; correct those that are wrong "
            "(`campaign record --correct`), or begin a campaign in another unit"
        )
    return data


def fit(learner: Learner, codec: Codec, data: Measurements, rng: torch.Generator) -> Surrogate:
    """A surrogate of measurements.

    Raises:
        DataError: the values cannot be fitted.
    """
    try:
        return learner.fit(codec, data, rng)
    except DiffTiltError:
        raise
    except Exception as error:  # BoTorch, GPyTorch and torch have no class of errors in common
        told = data.value[data.feasible]
        raise DataError(
            f"expected values that {type(learner).__name__} can fit; got {len(told)} from {told.min():.3g} to "
            f"{told.max():.3g} ({type(error).__name__}); correct those that are wrong, or measure more designs"
        ) from error


def learner(settings: Picking, designs: int, how: str = "mean") -> Learner:
    """The surrogate's settings, by name and number of designs.

    ``bootstrap`` is of an ensemble of resamples alone, as SEIKO's. For a lower bound ``auto`` is an ensemble, as
    BRAID's, which extrapolates and says where: pessimism pays there, while a Gaussian process goes back to its mean
    and promises little too much as it is (docs/strategies.md).
    """
    if how == "bootstrap":
        return Ensemble(prior_std=0.0)
    if settings.surrogate == "auto" and how == "lcb":
        return Ensemble(members=PESSIMISTS)
    name = settings.surrogate if settings.surrogate != "auto" else "ensemble" if designs > MANY else "gp"
    kinds = {"gp": GaussianProcess(), "gp_both_strands": GaussianProcess(both_strands=True), "linear": Linear()}
    return kinds.get(name, Ensemble())


def forecast_of(history: History, number: int) -> Forecast | None:
    """A round's predictions beside what came of them, NaN where nothing did; ``None`` where it predicted nothing."""
    spread = spread_of(history, number)
    designs = [design for design in history.designs if design.round == number and design.mean is not None]
    if spread is None or not designs:
        return None
    mean, std = (_column([getattr(design, name) for design in designs]) for name in ("mean", "std"))
    model = (std.square() + spread["misfit"] ** 2).sqrt() / spread["factor"]
    replicates = _column([max(1, len(design.values)) for design in designs])
    return Forecast(mean, model, spread["noise"] / replicates.sqrt(), _column([_measured(d) for d in designs]))


def spread_of(history: History, number: int) -> dict[str, float] | None:
    """What a round's facts say of its surrogate's spread."""
    facts = history.rounds[number - 1].facts
    return {name: float(facts[name]) for name in SPREAD} if all(name in facts for name in SPREAD) else None


def together(parts: Sequence[Forecast]) -> Forecast:
    """Forecasts of several rounds."""
    columns = [field.name for field in dataclasses.fields(Forecast)]
    return Forecast(*[torch.cat([getattr(part, name) for part in parts]) for name in columns])


def numbers(forecast: Forecast, factor: float) -> dict[str, float | None]:
    """Calibration as JSON: a number that is none is ``None``."""
    found = dataclasses.asdict(calibration(forecast, factor=factor))
    return {name: None if math.isnan(value) else value for name, value in found.items()}


def _column(values: Sequence[float | int | None]) -> torch.Tensor:
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)


def _measured(design: Design) -> float:
    return math.nan if design.value is None else design.value
