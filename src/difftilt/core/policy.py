r"""A policy: denoiser + process + time grid, i.e. the Markov chain that is run.

.. math:: p_\theta(x_{0:1}) = p(x_1) \prod_{k=0}^{K-1} p_\theta(x_{t_{k+1}} \mid x_{t_k})

Saved as a model folder (``config.json``, ``model.safetensors``, ``README.md`` card) by the Hub's own mixin.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from safetensors.torch import load_file, save_file
from torch import nn

from difftilt.core.codec import Codec
from difftilt.core.process import Process
from difftilt.core.registry import construct, describe
from difftilt.core.transition import Transition
from difftilt.errors import ConfigError, DiffTiltError, ShapeError, StateError
from difftilt.types import Bool, Condition, Float, Tensor

Module = TypeVar("Module", bound=nn.Module)
Model = TypeVar("Model", bound="ModelFolder")
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class ModelFolder(ModelHubMixin):
    """Saved as ``config.json``, ``model.safetensors`` and a ``README.md`` made from its card, and loaded again."""

    card: dict[str, Any]

    def generate_model_card(self, *args: Any, **kwargs: Any) -> Any:
        """The folder's ``README.md``, from the card."""
        from huggingface_hub import ModelCard

        return ModelCard(card_text(self.card))

    @classmethod
    def from_pretrained(cls: type[Model], pretrained_model_name_or_path: str | Path, **options: Any) -> Model:
        """Load a model folder or Hub repository, in eval mode.

        Raises:
            StateError: it is missing, truncated, not ours, or holds other tensors than its config says.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **options)
        except DiffTiltError:
            raise
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise unreadable(str(pretrained_model_name_or_path), error) from error


class Policy(nn.Module, ModelFolder):
    """A runnable diffusion model.

    Args:
        denoiser: network ``(x_t [B, *event], t [B], cond) -> prediction``; what it predicts is the process's matter.
        process: the mathematics of a step.
        codec: states to designs and back.
        event_shape: shape of one state, e.g. ``(L,)``.
        steps: number of steps ``K`` of the chain; the grid is the process's unless ``grid`` is given.
        grid: decreasing times from 1 to 0, ``[K + 1]``.
        fixed: values of components held fixed, -1 where free (see :meth:`holding`).
        card: facts about the model (task, data, metrics), kept with it.
    """

    grid: Float[Tensor, " K1"]
    fixed: Tensor | None

    def __init__(
        self,
        denoiser: nn.Module,
        process: Process,
        codec: Codec,
        event_shape: tuple[int, ...],
        *,
        steps: int = 16,
        grid: Float[Tensor, " K1"] | None = None,
        fixed: Tensor | None = None,
        card: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.denoiser, self.process, self.codec = denoiser, process, codec
        self.event_shape = tuple(event_shape)
        self.card = dict(card or {})
        grid = process.grid(steps) if grid is None else grid.double()
        if grid[0] != 1 or grid[-1] != 0 or not (grid.diff() < 0).all():
            raise ConfigError(f"expected a grid of times decreasing from 1 to 0; got {grid.tolist()}; use uniform_grid")
        self.register_buffer("grid", grid, persistent=False)
        self.register_buffer("fixed", fixed, persistent=False)

    @property
    def steps(self) -> int:
        """Number of steps ``K``."""
        return self.grid.shape[0] - 1

    @property
    def device(self) -> torch.device:
        """Where the chain runs."""
        return self.grid.device

    @property
    def silent(self) -> Bool[Tensor, " K"]:
        """Which steps add no noise."""
        silent = [self.process.noiseless(t, s) for t, s in zip(self.grid[:-1], self.grid[1:], strict=True)]
        return torch.tensor(silent, device=self.device)

    @property
    def at_once(self) -> bool:
        """Whether one network call on a finished state gives the laws of all its steps, of one position each."""
        return gives_all_steps(self.denoiser, self.process) and (self.steps,) == self.event_shape

    def tuned_at(self, t: Tensor) -> bool:
        """Whether training the denoiser moves the step from ``t``, a scalar; else a frozen network runs it."""
        tuned_at = getattr(self.denoiser, "tuned_at", None)
        return tuned_at is None or bool(tuned_at(t))

    def requires_grad_(self, requires_grad: bool = True) -> Policy:
        """Tune :meth:`trainable`, or freeze everything. A denoiser with ``wake()`` is told that it is tuned."""
        if requires_grad:
            getattr(self.denoiser, "wake", lambda: None)()
        for parameter in self.trainable() if requires_grad else self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Policy:
        """Move and cast the network; the grid only moves: times stay float64 whatever the weights are."""
        grid = self.grid
        super()._apply(fn, recurse)
        self.grid = grid.to(self.grid.device)
        return self

    def prior(self, n: int, rng: torch.Generator) -> Tensor:
        """Draw ``n`` initial states :math:`x_1`, held-fixed components imposed."""
        x_1 = self.process.prior((n, *self.event_shape), rng)
        return x_1 if self.fixed is None else self.process.clamp(x_1, self.fixed)

    def step(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition | None = None) -> Transition:
        """The law of :math:`x_s` given ``x_t``; ``t`` and ``s`` are scalars or ``[B]``.

        Gradient flows to the denoiser and, where defined, to ``x_t``.
        """
        times = t.expand(x_t.shape[0]) if t.ndim == 0 else t
        return self.process.transition(self.denoiser(x_t, times, cond), x_t, t, s)

    def stepping(self) -> Callable[[Tensor, Tensor, Tensor, Condition | None], Transition]:
        """:meth:`step`, for one run of the same chains from the first step to the last.

        The network of a policy that is :attr:`at_once` keeps what it has read and reads one position a step: the law is
        that of :meth:`step` up to rounding, and its logits are 0 at the positions that the step cannot show.
        """
        if not self.at_once:
            return self.step
        memory = cast(Any, self.denoiser).memory()

        def step(x_t: Tensor, t: Tensor, s: Tensor, cond: Condition | None = None) -> Transition:
            return self.process.transition(self.denoiser(x_t, t.expand(len(x_t)), cond, memory), x_t, t, s)

        return step

    def holding(self, fixed: Tensor | None) -> Policy:
        """The same network with other components held fixed (values of the event, -1 where free)."""
        if fixed is not None and tuple(fixed.shape) != self.event_shape:
            raise ShapeError(f"expected fixed of shape {self.event_shape}; got {tuple(fixed.shape)}; pass one event")
        return self._with(grid=self.grid, fixed=fixed)

    def with_steps(self, steps: int) -> Policy:
        """The same network run in ``steps`` steps, spaced as the process has them: another chain, hence another law."""
        return self._with(grid=self.process.grid(steps), fixed=self.fixed)

    def with_denoiser(self, denoiser: nn.Module) -> Policy:
        """The same chain around another network."""
        return self._with(grid=self.grid, fixed=self.fixed, denoiser=denoiser)

    def _with(self, *, grid: Tensor, fixed: Tensor | None, denoiser: nn.Module | None = None) -> Policy:
        network = self.denoiser if denoiser is None else denoiser
        policy = Policy(
            network, self.process, self.codec, self.event_shape, grid=grid.cpu(), fixed=fixed, card=self.card
        )
        return policy.to(self.device)

    def trainable(self) -> list[nn.Parameter]:
        """What tuning changes: parameters that require gradients; where none does, see :func:`trainable`."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad] or trainable(self.denoiser)

    def copy(self) -> Policy:
        """A copy that can be tuned by itself: what tuning does not change is shared, not held twice."""
        own = {id(parameter) for parameter in self.trainable()}
        return sharing_copy(self, [parameter for parameter in self.parameters() if id(parameter) not in own])

    def frozen_copy(self) -> Policy:
        """A :meth:`copy` in eval mode without gradients: a reference. Parts that have ``settle()`` are told by it."""
        made = self.copy().eval().requires_grad_(False)
        for module in made.denoiser.modules():
            getattr(module, "settle", lambda: None)()
        return made

    def sample(self, n: int, *, seed: int = 0, batch: int = 256, cond: Condition | None = None) -> list[Any]:
        """``n`` decoded designs.

        Args:
            n: how many.
            seed: the same seed gives the same designs (same batch size, one thread).
            batch: designs per network call.
            cond: conditions, one row per design.
        """
        from difftilt.core.trajectory import sample_states
        from difftilt.rng import Streams

        if n < 1 or batch < 1:
            raise ConfigError(f"expected at least one design and one per batch; got {n} and {batch}; raise them")
        rng = Streams(seed, self.device)("sample")
        return self.codec.decode(sample_states(self, n, rng, batch=batch, cond=cond))

    # --- model folders -------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """What ``config.json`` holds: every part by its registered name, and the card."""
        return {
            "library": "difftilt",
            "denoiser": describe(self.denoiser),
            "process": describe(self.process),
            "codec": describe(self.codec),
            "event_shape": list(self.event_shape),
            "grid": self.grid.tolist(),
            "fixed": None if self.fixed is None else self.fixed.tolist(),
            "card": self.card,
        }

    def _save_pretrained(self, save_directory: Path) -> None:
        save_parts(save_directory, self.config(), self.denoiser)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **hub: Any) -> Policy:
        config, weights = read_parts(model_id, **hub)
        fixed = config["fixed"]
        policy = cls(
            construct("denoiser", config["denoiser"]),
            construct("process", config["process"]),
            construct("codec", config["codec"]),
            tuple(config["event_shape"]),
            grid=torch.tensor(config["grid"], dtype=torch.float64),
            fixed=None if fixed is None else torch.tensor(fixed),
            card=config["card"],
        )
        load_weights(policy.denoiser, weights, where=model_id)
        return policy.eval()


def gives_all_steps(denoiser: nn.Module, process: Process) -> bool:
    """Whether positions are shown in order, by a network that sees the positions before alone."""
    return getattr(denoiser, "causal", False) and getattr(process, "in_order", False)


def sharing_copy(module: Module, shared: Iterable[nn.Parameter]) -> Module:
    """A copy of ``module`` that reads the numbers of ``shared``, frozen, in place of copies of them."""
    own = {id(parameter): nn.Parameter(parameter.detach(), requires_grad=False) for parameter in shared}
    return copy.deepcopy(module, own)


def trainable(denoiser: nn.Module) -> list[nn.Parameter]:
    """What tuning a denoiser changes: what its ``trainable()`` says, such as adapters, or all of it."""
    own = getattr(denoiser, "trainable", None)
    return list(denoiser.parameters()) if own is None else own()


@dataclass
class Passes:
    """Network passes, counted per state."""

    rows: int = 0


@contextmanager
def counting_passes(*policies: Policy) -> Generator[Passes]:
    """Counts the states that the denoisers of ``policies`` read inside the block."""
    passes = Passes()

    def count(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        passes.rows += len(arguments[0])

    denoisers = {id(policy.denoiser): policy.denoiser for policy in policies}
    hooks = [denoiser.register_forward_pre_hook(count, prepend=True) for denoiser in denoisers.values()]
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()


def save_parts(folder: Path, config: dict[str, Any], network: nn.Module) -> None:
    """Write ``config.json`` and ``model.safetensors`` of a network described by ``config``."""
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    # Cloned, because weights that are tied, or shared with a frozen part, are written for each of their names.
    save_file({name: value.clone().contiguous() for name, value in network.state_dict().items()}, folder / WEIGHTS)


def read_parts(model_id: str, **hub: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what :func:`save_parts` wrote, from a folder or a Hub repository.

    Raises:
        StateError: a file is missing, truncated or not ours.
    """
    options = {k: v for k, v in hub.items() if k in ("revision", "cache_dir", "force_download", "local_files_only")}
    paths = []
    for name in (CONFIG, WEIGHTS):
        path = Path(model_id) / name
        if not path.is_file() and not Path(model_id).is_dir():
            path = Path(hf_hub_download(model_id, name, token=hub.get("token"), **options))
        paths.append(path)
    try:
        return json.loads(paths[0].read_text(encoding="utf-8")), load_file(paths[1])
    except Exception as error:
        raise unreadable(model_id, error) from error


def unreadable(model_id: str, error: Exception) -> StateError:
    """The error for a model folder or repository that cannot be loaded."""
    return StateError(
        f"expected a model folder with {CONFIG} and {WEIGHTS} at '{model_id}'; got {type(error).__name__}: "
        f"{(str(error).splitlines() or [''])[0]}; check the path, or copy the folder again"
    )


def load_weights(network: nn.Module, weights: dict[str, Tensor], *, where: str) -> None:
    """Copy ``weights`` into ``network``; a mismatch is a :class:`StateError` naming the first tensor that differs."""
    own = network.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        expected = tuple(own[name].shape) if name in own else "no such tensor"
        came = tuple(weights[name].shape) if name in weights else "no such tensor"
        if expected != came:
            raise StateError(f"expected {expected} for '{name}' of '{where}'; got {came}; is it another model's file?")
        if not weights[name].isfinite().all():
            raise StateError(f"expected finite numbers in '{name}' of '{where}'; got others; copy the file again")
    network.load_state_dict(weights)


def card_text(card: dict[str, Any]) -> str:
    """A model card in Markdown: the facts in ``card``, one section for each nested table; lists are left out."""
    lines = ["---", "library_name: difftilt", "tags: [difftilt, diffusion]", "---", ""]
    lines += [f"# {card.get('name', 'difftilt model')}", "", str(card.get("summary", "")), ""]
    for key, value in card.items():
        if not isinstance(value, dict | list) and key not in ("name", "summary"):
            lines.append(f"- {key.replace('_', ' ')}: {value}")
    for key, value in card.items():
        if isinstance(value, dict):
            lines += ["", f"## {key.replace('_', ' ').capitalize()}", ""]
            lines += [f"- {name.replace('_', ' ')}: {entry}" for name, entry in value.items()]
    return "\n".join(lines) + "\n"
