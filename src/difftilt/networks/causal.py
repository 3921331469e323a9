r"""A causal transformer: the denoiser of masked diffusion that shows positions in order.

Each position's law depends on the positions before it alone. Where the chain shows one position a step, in order
(:attr:`~difftilt.processes.masked.Masked.in_order`), nothing is lost by that, and one call on a finished design gives
the laws of all steps at once:

.. math:: -\log p(x_0) = -\sum_i \log \pi_\theta(x_0^i \mid x_0^{<i})                                        \qquad (1)

exactly, where other denoisers get a bound from one random step of each design. It is masked diffusion in blocks of one
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
from torch import nn

from difftilt.core.registry import register
from difftilt.errors import ConfigError
from difftilt.networks.layers import AttentionBlock, TokenEmbedding
from difftilt.types import Condition, Float, Tensor


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

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Float[Tensor, "B L V"]:
        """Logits of the token laws; ``x_t`` is ``[B, L]`` tokens or ``[B, L, V + 1]`` relaxed tokens."""
        before = self.embed(x_t)[:, :-1]
        first = self.start.to(before).expand(len(before), 1, -1)
        logits = self.head(self.tower(torch.cat([first, before], dim=1)))
        return logits if self.training else logits / self.temperature

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return self.arguments
