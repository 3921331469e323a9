"""Settings of the loop around any algorithm."""

from __future__ import annotations

from dataclasses import dataclass

from difftilt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Settings of the loop around an algorithm."""

    steps: int = 100
    """Updates."""
    seed: int = 0
    """Seed of every random stream of the run."""
    kl_budget: float | None = None
    """KL to the pretrained policy to meet, nats: alpha is found, starting from the spread of a few rewards. Alpha stays
    fixed when not set."""
    final_learning_rate: float = 0.05
    """Learning rate at the last update, as a share of the first; linear in between."""
    checkpoint_every: int = 10
    """Updates between checkpoints: a crash loses at most this many."""
    judge_every: int = 5
    """Updates between evaluations of the batch by the judge."""
    ema: float | None = None
    """Decay of a moving average of the tuned parameters, 0 to below 1, which is what the run returns: steadier than
    the last update at large learning rates. The last update is returned when not set; the logged numbers are its."""
    shares: int = 1
    """Parts in which each call of the networks is run, one after the other or by several processes: a run with 2 is
    the same to the last bit in one process and in two. 1 is as many as there are processes."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"expected at least 1 step; got {self.steps}; raise --steps")
        if min(self.checkpoint_every, self.judge_every) < 1:
            came = f"checkpoint_every {self.checkpoint_every} and judge_every {self.judge_every}"
            raise ConfigError(f"expected intervals of at least 1 update; got {came}; raise them")
        if not 0 <= self.final_learning_rate <= 1:
            raise ConfigError(
                f"expected a final learning rate of 0 to 1 times the first; got {self.final_learning_rate}; correct it"
            )
        if self.kl_budget is not None and not self.kl_budget > 0:
            raise ConfigError(f"expected a KL budget above 0 nats; got {self.kl_budget}; raise --kl-budget")
        if self.shares < 1:
            raise ConfigError(f"expected at least 1 share; got {self.shares}; raise --shares")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ConfigError(f"expected a decay of 0 to below 1; got {self.ema}; correct --ema")
