"""What was tuned, in the format of the library that the network came from."""

from __future__ import annotations

from pathlib import Path

from difftilt.core.policy import Policy
from difftilt.errors import ConfigError
from difftilt.networks.lora import Adapted, innermost


def save_adapters(policy: Policy, folder: str | Path) -> None:
    """Write a tuned policy's adapters: see :meth:`~difftilt.networks.lora.Adapted.save`.

    Raises:
        ConfigError: it has none.
    """
    adapted = _adapters(policy)
    if adapted is None:
        raise ConfigError(
            f"expected a policy with adapters; got one with {type(policy.denoiser).__name__}; make it with "
            "difftilt.lora, or save the whole network with difftilt.save_network"
        )
    adapted.save(Path(folder))


def save_network(policy: Policy, folder: str | Path) -> None:
    """Write a network that was tuned whole, as diffusers' or transformers' ``from_pretrained`` loads it.

    Raises:
        ConfigError: it has adapters, or is no network of these libraries.
    """
    if _adapters(policy) is not None:
        raise ConfigError(
            "expected a network that was tuned whole; got one with adapters; use difftilt.save_adapters: the network "
            "itself is as it was"
        )
    network = innermost(policy.denoiser)
    save = getattr(network, "save_pretrained", None)
    if save is None:
        raise ConfigError(
            f"expected a network of diffusers or transformers; got {type(network).__name__}; save the policy with "
            "policy.save_pretrained"
        )
    save(str(folder), safe_serialization=True)


def _adapters(policy: Policy) -> Adapted | None:
    return next((module for module in policy.denoiser.modules() if isinstance(module, Adapted)), None)
