"""What a conditional model is tuned for: a table of conditions, and how an update draws from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from difftilt.errors import ConfigError
from difftilt.types import Condition, Float, Int, Tensor


@dataclass(frozen=True)
class Conditions:
    """A table of conditions (prompts, labels, targets)."""

    table: Condition
    """Named tensors with one row for each of the ``M`` conditions."""
    group: int = 1
    """Designs made for one condition in an update; baselines that compare a group's designs need 2 or more."""

    def __post_init__(self) -> None:
        sizes = {name: len(value) for name, value in self.table.items()}
        if not sizes or len(set(sizes.values())) != 1 or not all(sizes.values()) or self.group < 1:
            raise ConfigError(
                f"expected named tensors of equally many conditions, and a group of 1 or more; got {sizes} and "
                f"{self.group}; correct them"
            )

    def __len__(self) -> int:
        """Number of conditions ``M``."""
        return len(next(iter(self.table.values())))

    def draw(self, n: int, rng: torch.Generator) -> Int[Tensor, " n"]:
        """Numbers of ``n`` conditions: groups of equal ones, each condition as often as chance has it.

        Raises:
            ConfigError: ``n`` is not a multiple of the group.
        """
        if n % self.group:
            raise ConfigError(f"expected a batch that is a multiple of the group {self.group}; got {n}; change one")
        chosen = torch.randint(len(self), (n // self.group,), generator=rng, device=rng.device)
        return chosen.repeat_interleave(self.group)

    def rows(self, index: Int[Tensor, " n"]) -> Condition:
        """Conditions by number, on the device of ``index``."""
        return {name: value.to(index.device)[index] for name, value in self.table.items()}


def as_vectors(cond: Condition) -> Float[Tensor, "n d"]:
    """All numbers of each row's condition in one float64 vector, to tell conditions apart."""
    return torch.cat([cond[name].reshape(len(cond[name]), -1).double() for name in sorted(cond)], dim=1)


def numbers(cond: Condition | None, n: int, device: torch.device) -> Int[Tensor, " n"]:
    """A number for each of ``n`` rows, the same where all conditions are."""
    if not cond:
        return torch.zeros(n, dtype=torch.long, device=device)
    return as_vectors(cond).unique(dim=0, return_inverse=True)[1]


def rows_of(cond: Condition | None, rows: slice | Tensor, repeats: int = 1) -> Condition | None:
    """Some rows of every condition, each ``repeats`` times in a row."""
    return cond and {
        name: value[rows] if repeats == 1 else value[rows].repeat_interleave(repeats, 0) for name, value in cond.items()
    }


def first_row(conditions: Conditions | None, device: torch.device) -> Condition | None:
    """The first condition, for one design; ``None`` where there are none."""
    return None if conditions is None else conditions.rows(torch.zeros(1, dtype=torch.long, device=device))


def repeated(cond: Condition | None, times: int) -> Condition | None:
    """All rows, ``times`` over."""
    return cond and {name: value.repeat(times, *[1] * (value.ndim - 1)) for name, value in cond.items()}
