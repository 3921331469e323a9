r"""A causal transformer: the denoiser of masked diffusion that shows positions in order.

Each position's law depends on the positions before it alone. Where the chain shows one position a step, in order
(:attr:`~difftilt.processes.masked.Masked.in_order`), nothing is lost by that, and one call on a finished design gives
the laws of all steps at once:

.. math:: -\log p(x_0) = -\sum_i \log \pi_\theta(x_0^i \mid x_0^{<i})                                        \qquad (1)

exactly, where other denoisers get a bound from one random step of each design; methods that learn from paths read all
steps of a path in that one call too. A chain is run with the keys and values of what it has shown kept, so that a step
reads one position. It is masked diffusion in blocks of one
token (Arriola et al. 2025), or an autoregressive model with a chain around it. Text with a grammar that is read from
the left, such as SELFIES, is learned many times faster so than in random order.

Hidden positions before a position are seen as masks. Trained with some of them, the network says what comes later given
only a beginning, position by position: the one-jump guess that plug-in values read.

References:
    Arriola et al. 2025 (block diffusion), https://arxiv.org/abs/2503.09573.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from difftilt.core.registry import register
from difftilt.errors import ConfigError
from difftilt.networks.layers import AttentionBlock, Memory, TokenEmbedding
from difftilt.types import Condition, Float, Int, Tensor


@register("denoiser", "causal_transformer")
class CausalDenoiser(nn.Module):
    """Token logits at each position from the tokens before it; does not look at the time. No dropout.

    Args:
        vocabulary: letters ``V``; the input has one symbol more, the mask.
        length: positions ``L``.
        width: model width, a multiple of ``heads``.
        depth: number of layers.
        heads: attention heads.
        temperature: what logits are divided by but in pretraining. Below 1 each law is sharpened after it was fitted:
            sequences of many steps, each a little too broad, keep to the rules more often. Samples, likelihoods and
            tuning are all of the sharpened law.

    Raises:
        ConfigError: a temperature that is not above 0, or a width that is not a multiple of ``heads``.
    """

    time_free = True
    causal = True

    def __init__(
        self,
        vocabulary: int,
        length: int,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ConfigError(f"expected a temperature above 0; got {temperature}; 1 leaves the laws as fitted")
        self.arguments = {
            "vocabulary": vocabulary, "length": length, "width": width, "depth": depth, "heads": heads,
            "temperature": temperature,
        }  # fmt: skip
        self.temperature = temperature
        self.embed = TokenEmbedding(vocabulary + 1, length, width)
        self.start = nn.Parameter(0.02 * torch.randn(width))
        self.tower = nn.Sequential(*(AttentionBlock(width, heads, causal=True) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocabulary))

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Condition | None = None, memory: list[Memory] | None = None
    ) -> Float[Tensor, "B L V"]:
        """Logits of the token laws; ``x_t`` is ``[B, L]`` tokens or ``[B, L, V + 1]`` relaxed tokens.

        With a ``memory`` of the same chains, of tokens, it reads the next position alone; logits elsewhere are 0.
        """
        if memory is not None:
            return self._next(x_t, memory)
        before = self.embed(x_t)[:, :-1]
        first = self.start.to(before).expand(len(before), 1, -1)
        return self._sharpened(self.head(self.tower(torch.cat([first, before], dim=1))))

    def memory(self) -> list[Memory]:
        """What a run of chains is read with, one position a call, from the first: nothing yet."""
        return [Memory() for _ in self.tower]

    def _next(self, x_t: Int[Tensor, "B L"], memory: list[Memory]) -> Float[Tensor, "B L V"]:
        place = memory[0].positions
        h = self.start.expand(len(x_t), 1, -1)
        if place > 0:
            h = self.embed.token(x_t[:, place - 1 : place]) + self.embed.position[place - 1]
        for block, own in zip(self.tower, memory, strict=True):
            h = block(h, own)
        return F.pad(self._sharpened(self.head(h)), (0, 0, place, x_t.shape[1] - 1 - place))

    def _sharpened(self, logits: Tensor) -> Tensor:
        return logits if self.training else logits / self.temperature

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return self.arguments
