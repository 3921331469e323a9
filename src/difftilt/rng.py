"""Named random streams.

Everything random takes a ``torch.Generator``; nothing seeds global state. A run owns one :class:`Streams`: each
purpose (``"rollout"``, ``"update"``, ``"evaluate"``) has a stream of its own, so that adding a draw to one purpose does
not move the numbers of another, and all of them are saved in a checkpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import contextmanager

import torch


class Streams:
    """Independent generators derived from one seed and a name.

    Args:
        seed: any integer; the same seed and name give the same stream on the same device type.
        device: where the generators live; draws are made there.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.seed = seed
        self.device = torch.device(device)
        self._generators: dict[str, torch.Generator] = {}

    def __call__(self, name: str) -> torch.Generator:
        """The generator of ``name``, created on first use, advanced by every draw."""
        if name not in self._generators:
            digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
            generator = torch.Generator(self.device)
            generator.manual_seed(int.from_bytes(digest[:7], "big"))
            self._generators[name] = generator
        return self._generators[name]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """States of all streams used so far, as byte tensors."""
        return {name: generator.get_state() for name, generator in self._generators.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore streams saved by :meth:`state_dict`; streams not named there start afresh."""
        self._generators = {}
        for name, value in state.items():
            self(name).set_state(value.cpu())


@contextmanager
def seeded_initialisation(seed: int) -> Generator[None, None, None]:
    """Seed torch's global generator inside the block, where networks are built, and restore it after.

    The one exception to "nothing seeds global state": torch's layers draw their initial weights from it, and dropout
    its masks, and take no generator.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # noqa: TID251
        yield
