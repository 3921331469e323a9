"""Settings of a campaign's strategies: how a round learns, picks and tunes. JSON in the data base."""

from __future__ import annotations

import math
from dataclasses import dataclass

from difftilt.errors import ConfigError, nearest

SURROGATES = ("auto", "gp", "gp_both_strands", "linear", "ensemble")
RULES = ("greedy", "as_drawn")


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How a round's policy is tuned, (7) of docs/strategies.md."""

    alpha: float = 0.05
    """Weight of the KL to p_pre, reward units per nat; above 0."""
    beta: float = 0.05
    """Weight of the KL to the policy of the round before, reward units per nat; 0 or more."""
    kl_budget: float | None = None
    """KL of a round's policy to that of the round before, nats: sets beta. Beta is as given when not set."""
    algorithm: str | None = None
    """Any method of `difftilt list` that is told several references; by the process when not set: trajectory_balance
    for letters, reward_backprop for the others."""
    updates: int = 16
    """Updates per round."""
    paths: int = 128
    """Designs per update, scored by the surrogate alone."""
    learning_rate: float | None = None
    """Of Adam, at the first update; the task's own, else 0.004, when not set."""

    @property
    def rate(self) -> float:
        """The learning rate."""
        return 4e-3 if self.learning_rate is None else self.learning_rate

    def __post_init__(self) -> None:
        if not (self.alpha > 0 and self.beta >= 0 and math.isfinite(self.alpha + self.beta)):
            raise ConfigError(
                f"expected alpha above 0 and beta 0 or more; got {self.alpha} and {self.beta}; correct it"
            )
        if self.kl_budget is not None and not 0 < self.kl_budget < math.inf:
            raise ConfigError(f"expected a KL budget above 0 nats, a number; got {self.kl_budget}; correct --kl-budget")
        if min(self.updates, self.paths) < 2 or not self.rate > 0:
            raise ConfigError("expected 2 or more updates and paths, a learning rate above 0; got less; raise them")


@dataclass(frozen=True, kw_only=True)
class Picking:
    """What is learned from measurements, and how a plate is picked by it."""

    surrogate: str = "auto"
    """gp, gp_both_strands, linear or ensemble; auto is gp up to 2,000 designs, ensemble beyond and for conservative."""
    c: float = 1.0
    """Weight of the epistemic std in upper and lower bounds, standard deviations; 0 or more."""
    rule: str = "greedy"
    """greedy picks the best of a pool one after the other, each knowing those before; as_drawn takes what the tuned
    policy draws first."""
    pool: int = 8
    """Candidates drawn for each design of a plate."""
    apart: int = 1
    """Least number of letters in which two designs of a plate differ."""
    start: str | None = None
    """File of designs measured before the campaign, with a score column; they cost nothing."""

    def __post_init__(self) -> None:
        for value, known, what in ((self.surrogate, SURROGATES, "surrogate"), (self.rule, RULES, "rule")):
            if value not in known:
                raise nearest(value, known, what=what)
        if not 0 <= self.c < math.inf or min(self.pool, self.apart) < 1:
            raise ConfigError("expected c 0 or more, pool and apart 1 or more; got less; raise them")


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What every design has to keep."""

    fix: tuple[str, ...] = ()
    """Letters held fixed, e.g. 10:ATG; the first position is 1."""
    forbid: tuple[str, ...] = ()
    """Words that occur nowhere: letters, with IUPAC codes (N, R, ...) in DNA and RNA, or a restriction site's name."""
    both_strands: bool = False
    """Forbidden words do not occur on the other strand either."""
    longest_run: int | None = None
    """Most equal letters in a row."""
    gc_min: float | None = None
    """Least share of G and C, 0 to 1."""
    gc_max: float | None = None
    """Largest share of G and C, 0 to 1."""
    parent: str | None = None
    """A design to stay close to."""
    mutations: int | None = None
    """Most letters in which a design differs from the parent."""
    avoid: str | None = None
    """File of designs that are not proposed, besides those of the campaign."""

    def __post_init__(self) -> None:
        if (self.parent is None) != (self.mutations is None):
            raise ConfigError("expected parent and mutations together; got one of them; give both")
        low, high = self.gc_min or 0.0, 1.0 if self.gc_max is None else self.gc_max
        if not 0 <= low <= high <= 1:
            raise ConfigError(f"expected a range of GC within 0 to 1; got {low} to {high}; correct it")
        if min(1 if self.longest_run is None else self.longest_run, 1 + (self.mutations or 0)) < 1:
            raise ConfigError("expected longest_run 1 or more and mutations 0 or more; got less; raise them")
