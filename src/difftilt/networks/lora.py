r"""Low-rank adapters on any denoiser: :math:`W x + \frac{a}{r} B A x`, with ``B = 0`` at the start.

Only ``A`` and ``B`` are tuned; the rest is frozen, shared between a policy, its reference and its tuned copy, and never
held twice. A reference that was never tuned runs with its adapters switched off: the pretrained network itself.

References:
    Hu et al. 2021, https://arxiv.org/abs/2106.09685; peft, https://huggingface.co/docs/peft.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from safetensors.torch import save_file
from torch import nn

from difftilt.core.policy import Policy, sharing_copy
from difftilt.core.registry import construct, describe, register
from difftilt.errors import ConfigError
from difftilt.rng import seeded_initialisation
from difftilt.types import Condition, Float, Tensor

INNER = ("base", "tuned", "model")
"""Attributes under which denoisers keep the network that they wrap."""
USUAL = (("to_q", "to_k", "to_v", "to_out.0"), ("query", "key", "value"), ("q_proj", "k_proj", "v_proj"))
"""Names of attention layers, in diffusers and in transformers; the first that are there get adapters."""


@register("denoiser", "lora")
class Adapted(nn.Module):
    """A denoiser with adapters in some of its layers.

    Args:
        base: the denoiser, or its description; its own weights are frozen.
        rank: ``r``.
        lora_alpha: ``a``; the rank when not given.
        targets: ends of the names of the layers that get adapters; attention layers when not given, or all linear
            layers where there are none.
        dropout: share of the adapters' inputs dropped in train mode. Tuning runs in eval mode, where it is off.

    Raises:
        ConfigError: no layer has such a name, or a setting is out of its range.
    """

    def __init__(
        self,
        base: nn.Module | dict[str, Any],
        rank: int = 8,
        lora_alpha: int | None = None,
        targets: Sequence[str] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ConfigError(
                f"expected peft for adapters; got '{error}'; run: pip install 'difftilt[lora]'"
            ) from error

        if not isinstance(rank, int) or rank < 1:
            raise ConfigError(f"expected a whole rank of at least 1; got {rank}; change it")
        if not 0 <= dropout < 1:
            raise ConfigError(f"expected a dropout of 0 to less than 1; got {dropout}; it is a share")
        if isinstance(targets, str):
            raise ConfigError(f"expected a list of names of layers; got '{targets}'; pass targets=['{targets}']")
        self.base = base if isinstance(base, nn.Module) else cast(nn.Module, construct("denoiser", base))
        self.rank, self.lora_alpha, self.dropout = rank, lora_alpha or rank, dropout
        model = self.model
        layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        self.targets = list(targets or _usual(model))
        idle = [end for end in self.targets if not any(name == end or name.endswith(f".{end}") for name in layers)]
        if idle or not self.targets:
            raise ConfigError(
                f"expected names of linear layers; got '{(idle or ['none'])[0]}', which {type(model).__name__} lacks; "
                f"it has {', '.join(sorted({name.rpartition('.')[2] for name in layers})) or 'none'}"
            )
        self.base.requires_grad_(False)
        self.settings = LoraConfig(
            r=rank,
            lora_alpha=self.lora_alpha,
            target_modules=self.targets,
            lora_dropout=dropout,
            init_lora_weights="gaussian",
        )
        inject_adapter_in_model(self.settings, model)
        for parameter in self.trainable():  # whatever the base's: half-precision numbers do not take small updates
            parameter.data = parameter.data.float()

    @property
    def model(self) -> nn.Module:
        """The network that holds the adapters: the innermost one, of diffusers, transformers or one's own."""
        return innermost(self.base)

    def trainable(self) -> list[nn.Parameter]:
        """``A`` and ``B`` of every layer: what is tuned."""
        return [parameter for name, parameter in self.named_parameters() if ".lora_" in name]

    def settle(self) -> None:
        """Switch the adapters off where they add nothing: a reference then costs no more than the bare network."""
        if all((parameter == 0).all() for name, parameter in self.named_parameters() if ".lora_B." in name):
            self._switch(False)

    def wake(self) -> None:
        """Switch the adapters on again, to be tuned."""
        self._switch(True)

    def _switch(self, on: bool) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        for module in self.modules():
            if isinstance(module, BaseTunerLayer):
                module.enable_adapters(on)

    def forward(self, x_t: Tensor, t: Float[Tensor, " B"], cond: Condition | None = None, *memory: Any) -> Tensor:
        """The prediction of the adapted denoiser. Gradient flows to the adapters and to ``x_t``."""
        return self.base(x_t, t, cond, *memory)

    @property
    def causal(self) -> bool:
        """Whether the denoiser is."""
        return getattr(self.base, "causal", False)

    def memory(self) -> Any:
        """What the denoiser reads a run of chains with, where it is causal."""
        return cast(Any, self.base).memory()

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            "base": describe(self.base), "rank": self.rank, "lora_alpha": self.lora_alpha, "targets": self.targets,
            "dropout": self.dropout,
        }  # fmt: skip

    def save(self, folder: Path) -> None:
        """Write the adapters as diffusers' pipelines load them (``load_lora_weights``), or else as peft does."""
        from peft import get_peft_model_state_dict

        folder.mkdir(parents=True, exist_ok=True)
        model = self.model
        weights = {name: value.contiguous() for name, value in get_peft_model_state_dict(model).items()}
        kind = type(model).__name__
        if kind in ("UNet2DConditionModel", "SD3Transformer2DModel"):
            from diffusers.loaders import SD3LoraLoaderMixin, StableDiffusionLoraLoaderMixin

            if kind == "UNet2DConditionModel":
                StableDiffusionLoraLoaderMixin.save_lora_weights(folder, unet_lora_layers=weights)
            else:
                SD3LoraLoaderMixin.save_lora_weights(folder, transformer_lora_layers=weights)
            return
        self.settings.save_pretrained(str(folder))
        named = {f"base_model.model.{name}": value for name, value in weights.items()}
        save_file(named, folder / "adapter_model.safetensors")


def innermost(denoiser: nn.Module) -> nn.Module:
    """The network itself, without what the chain wraps around it; whole: its own parts may be called a model too."""
    for name in INNER:
        inner = getattr(denoiser, name, None)
        if isinstance(inner, nn.Module) and not hasattr(denoiser, "save_pretrained"):
            return innermost(inner)
    return denoiser


def _usual(model: nn.Module) -> Sequence[str]:
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for ends in USUAL:
        if all(any(name == end or name.endswith(f".{end}") for name in names) for end in ends):
            return ends
    return names


def lora(
    policy: Policy,
    *,
    rank: int = 8,
    lora_alpha: int | None = None,
    targets: Sequence[str] | None = None,
    dropout: float = 0.0,
    seed: int = 0,
) -> Policy:
    """``policy`` with adapters that change nothing yet. Its own weights are shared with the result, not copied.

    Args:
        policy: left as it is.
        rank: see :class:`Adapted`, like the next three.
        lora_alpha: see there.
        targets: see there.
        dropout: see there.
        seed: of the adapters' initial weights.

    Raises:
        ConfigError: it has adapters, or a window.
    """
    for module in policy.denoiser.modules():
        if isinstance(module, Adapted) or hasattr(module, "tuned_at"):
            has = "adapters" if isinstance(module, Adapted) else "a window; adapt first: windowed(lora(policy))"
            raise ConfigError(
                f"expected a policy without adapters or window; got one with {has}; tune those that are there"
            )
    base = sharing_copy(policy.denoiser, policy.denoiser.parameters())
    with seeded_initialisation(seed):
        denoiser = Adapted(base, rank, lora_alpha, targets, dropout)
    return policy.with_denoiser(denoiser).eval()
