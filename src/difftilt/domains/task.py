"""What a task is: data, the part of them that p_pre learns, rewards, and what its practitioners look at.

A domain subclasses :class:`Task`; everything else (training, commands, reports) asks a task and knows no domain.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch

from difftilt.core.codec import Codec
from difftilt.core.policy import Policy
from difftilt.core.reward import Reward
from difftilt.data import find
from difftilt.errors import UnsupportedError, nearest
from difftilt.training.designs import Describe, DesignSet
from difftilt.training.pretrain import PretrainConfig
from difftilt.types import Float, Int, Tensor

MASKED = "masked"
"""Process of most priors."""
DENOISER = "denoiser"
"""Folder of a task's first p_pre."""
FEWEST = 20
"""Designs below which nothing is trained."""


@runtime_checkable
class Designs(Protocol):
    """A set of designs as read from a file: a :class:`~difftilt.data.Table`, or images."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def skipped(self) -> int:
        """Designs of the file that could not be read and were left out."""
        ...

    def __len__(self) -> int:
        """How many."""
        ...


@dataclass(frozen=True, kw_only=True)
class Prior:
    """A p_pre of a task, over one process."""

    denoiser: Mapping[str, Any] = field(default_factory=lambda: {"type": "conv"})
    """Its network; sizes are filled in."""
    training: PretrainConfig = field(default_factory=PretrainConfig)
    """How it is trained."""
    steps: int = 16
    """Steps K of its chain."""
    tuning_rate: float | None = None
    """Learning rate at which it is tuned, by `difftilt finetune` and in campaigns; theirs when not set."""
    note: str | None = None
    """What its card says besides."""


@dataclass(frozen=True, kw_only=True)
class NamedReward:
    """A reward of a task that is not the learned ensemble, nor the measured table."""

    make: Callable[..., Reward]
    """The reward: ``make()``, or ``make(folder)`` of the model that :attr:`part` names."""
    summary: str
    """One line."""
    score_name: str
    """What it is, with its unit."""
    part: str | None = None
    """The one of the task's models that it reads; it needs no file when not set."""


@dataclass(frozen=True, kw_only=True)
class LearnedReward:
    """A reward of a task that was learned from measurements, with the judge that was learned from others of them."""

    part: str
    """Folder of the reward among the task's models."""
    judge: str
    """Folder of its judge."""
    summary: str
    """One line."""
    score_name: str
    """What it is, with its unit."""


@dataclass(frozen=True)
class TaskData:
    """A task's designs as states, split: test rows are seen by nobody, reward and judge rows are disjoint."""

    codec: Codec
    states: Tensor
    """``[N, *event]``."""
    scores: Float[Tensor, " N"]
    """NaN where there is none."""
    test: Int[Tensor, " T"]
    reward: Int[Tensor, " R"]
    judge: Int[Tensor, " J"]
    prior_train: Int[Tensor, " P"]
    prior_validation: Int[Tensor, " Q"]
    prior_test: Int[Tensor, " S"]


@dataclass(frozen=True)
class Picture:
    """A drawing for a run's page."""

    name: str
    """Of its file, without suffix."""
    title: str
    caption: str
    data: str | bytes
    """SVG text, or PNG."""


@dataclass(frozen=True)
class Histogram:
    """Shares of designs by a property; the page draws it."""

    name: str
    title: str
    axis: str
    """The property, with its unit."""
    edges: Sequence[float]
    """Of the bins, ascending, one more than there are bins."""
    shares: Mapping[str, Sequence[float]]
    """By ``"data"``, ``"before"`` and ``"after"``: what share of designs is in each bin."""


@dataclass(frozen=True)
class Scene:
    """What pictures are made of."""

    pretrained: Policy
    tuned: Policy | None
    """``None`` where a sampler steered."""
    before: DesignSet
    after: DesignSet
    known: Any
    """What :meth:`Task.known` said."""
    seed: int
    score_name: str = "reward"
    """What the designs are scored by, with its unit."""


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A named problem."""

    name: str
    """What the user types."""
    domain: str
    """``"dna"``, ``"rna"``, ``"protein"``, ``"molecule"`` or ``"image"``."""
    summary: str
    """One line."""
    data_set: str
    """Name of its data set."""
    score_name: str
    """What the default reward is, with its unit."""
    naturalness: str
    """What likelihood under p_pre does and does not mean here."""
    priors: Mapping[str, Prior] = field(default_factory=lambda: {MASKED: Prior()})
    """Every p_pre it has, by process; the first is meant where none is named."""
    rewards: Mapping[str, NamedReward | LearnedReward] = field(default_factory=dict)
    """Rewards by name, beside ``model`` (learned) and ``table`` (measured)."""
    default_reward: str = "model"
    """``"model"``, ``"table"``, or a name in :attr:`rewards`."""
    shipped: bool = True
    """Whether its models are in the zoo."""

    column: ClassVar[str] = "sequence"
    """Header of the designs in files."""
    parts: ClassVar[tuple[str, ...]] = (DENOISER,)
    """The models that are trained for it."""

    # --- data ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def read(self, path: Path | None = None, *, skip_invalid: bool = False) -> Designs:
        """Its data set, or one's own file in its place, checked.

        Args:
            path: one's own file; the named set where not given.
            skip_invalid: leave out designs that cannot be read, where the default is an error that names them.

        Raises:
            DataError: the file does not hold designs of this task; the line is named.
        """

    @abstractmethod
    def split(self, data: Designs, *, seed: int = 0) -> TaskData:
        """States and who may see which; 10 % are for tests where nothing else is said."""

    def rows_of(self, part: str, data: Designs, split: TaskData, *, seed: int) -> TaskData:
        """What ``part`` is trained and tested on: the rows of ``split``, this task's split of ``data`` by ``seed``."""
        return split

    def score_of(self, part: str) -> str:
        """What a reward or judge predicts, with its unit."""
        return self.score_name

    @property
    def split_note(self) -> str:
        """How :meth:`split` splits, for cards."""
        return "at random"

    def trainable(self, data: Designs) -> tuple[str, ...]:
        """The :attr:`parts` that can be trained from ``data``."""
        return self.parts

    def known(self, path: Path | None = None) -> Any:
        """What novelty is told by: the designs that p_pre was trained on; ``None`` where they are not at hand.

        States, unless a domain knows better; only its own :meth:`describe` and :meth:`pictures` read it.
        """
        if path is None and find(self.data_set) is None:
            return None
        data = self.split(self.read(path))
        return data.states[torch.cat([data.prior_train, data.prior_validation])]

    # --- models --------------------------------------------------------------------------------------------------

    @abstractmethod
    def untrained(self, process: str, data: TaskData, *, seed: int) -> Policy:
        """A policy over ``process`` around a fresh network, its numbers drawn from ``seed``."""

    @abstractmethod
    def measure(self, policy: Policy, data: TaskData, *, seed: int) -> dict[str, Any]:
        """What the card of a finished p_pre says of its quality, on rows that it has not seen."""

    def fit(self, part: str, data: TaskData, *, seed: int, told: Callable[[str], None]) -> tuple[Any, dict[str, Any]]:
        """Train one of :attr:`parts` that is no denoiser; returns it, with a card to fill, and the numbers on that."""
        raise UnsupportedError(f"expected a part of {self.name}, {', '.join(self.parts)}; got '{part}'; choose one")

    def limited(self, reward: Reward, policy: Policy) -> Reward:
        """``reward`` for designs of ``policy`` within the limits of the task, infeasible beyond them."""
        return reward

    @property
    def process(self) -> str:
        """Process of the p_pre that is meant where none is named."""
        return next(iter(self.priors))

    def prior(self, process: str) -> Prior:
        """The p_pre over a process.

        Raises:
            ConfigError: the task has none.
        """
        if process not in self.priors:
            raise nearest(process, self.priors, what=f"process of {self.name}")
        return self.priors[process]

    def folder(self, process: str) -> str:
        """Folder of the p_pre over a process among a task's models."""
        self.prior(process)
        return DENOISER if process == self.process else process

    # --- what people look at -------------------------------------------------------------------------------------

    @abstractmethod
    def describe(self, policy: Policy, known: Any) -> Describe:
        """Metrics of finished states, by name: numbers, or plain values that the page knows."""

    def facts(self, policy: Policy) -> dict[str, Any]:
        """Plain values for the table ``task`` of a run's ``config.toml``."""
        return {}

    def pictures(self, scene: Scene) -> list[Picture | Histogram]:
        """Drawings for a run's page."""
        return []

    def written(self, designs: Sequence[Any], folder: Path) -> list[str]:
        """Designs as a table shows them; what is no text is put into a file below ``folder``, and named."""
        return [str(design) for design in designs]

    def check(self, data: Designs, policy: Policy) -> None:
        """One's own data are of the designs that ``policy`` makes.

        Raises:
            DataError: they are not.
        """
        return
