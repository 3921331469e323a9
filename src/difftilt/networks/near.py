r"""Designs that stay near a wild type: at most ``m`` mutations, kept by the sampler.

.. math:: p^C(x_s \mid x_t) = \rho(R \mid x_t) \prod_{l \in R}
    \frac{\pi^l(x_s^l \mid x_t)\, 1[x_s^l \in A_l(x_t)]}{\sum_{a \in A_l(x_t)} \pi^l(a \mid x_t)}, \qquad
    A_l(x_t) = \begin{cases} \text{all letters} & n(x_t) < m \\ \{ w^l \} & n(x_t) \ge m \end{cases}        \qquad (1)

where :math:`n(x_t)` counts the letters shown that differ from the wild type ``w``. While fewer than ``m`` differ, any
letter at any masked site can be completed to a design with at most ``m`` (by the wild type's letters elsewhere); once
``m`` do, only the wild type's can: (1) excludes exactly the letters that no allowed design has. With one letter per
step every design keeps the limit. Letters shown in one step do not know each other, so that several mutations at once
can pass it; after that only the wild type's letters are shown, and such a design has no reward
(:class:`~difftilt.rewards.near.Near`).

p_pre and the tuned policy both run by (1), so that their KL is that of the limited chains. The law is not
:math:`p_{pre}(\cdot \mid n \le m)`: each step is normalised by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy, trainable
from difftilt.core.registry import construct, describe, register
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.processes.masked import Masked
from difftilt.types import Condition, Float, Tensor


@register("denoiser", "near")
class NearDenoiser(nn.Module):
    """Equation (1): where the limit is reached, logits of mutations are ``-inf``.

    Args:
        base: the denoiser, over tokens, or its description.
        wild_type: tokens ``w``.
        most: the limit ``m``.
    """

    wild_type: Tensor

    def __init__(self, base: nn.Module | dict[str, Any], wild_type: Sequence[int], most: int) -> None:
        super().__init__()
        self.base: nn.Module = base if isinstance(base, nn.Module) else construct("denoiser", base)
        self.register_buffer("wild_type", torch.tensor(list(wild_type)), persistent=False)
        self.most = most
        self.time_free = getattr(self.base, "time_free", False)

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Float[Tensor, "B L V"]:
        """Logits of tokens ``[B, L]`` or relaxed tokens ``[B, L, V + 1]``, one-hot in value."""
        logits = self.base(x_t, t, cond)
        letters = logits.shape[-1]
        tokens = x_t if x_t.ndim == 2 else x_t.detach().argmax(-1)
        masked = tokens == letters  # a letter that is shown keeps its logits: no loss of it is infinite times zero
        full = ((tokens != self.wild_type) & ~masked).sum(1) >= self.most
        mutant = F.one_hot(self.wild_type, letters) == 0
        return logits.masked_fill((full[:, None] & masked)[..., None] & mutant, -torch.inf)

    def trainable(self) -> list[nn.Parameter]:
        """Those of the denoiser."""
        return trainable(self.base)

    def wake(self) -> None:
        """Tells the denoiser that it is tuned."""
        getattr(self.base, "wake", lambda: None)()

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"base": describe(self.base), "wild_type": self.wild_type.tolist(), "most": self.most}


def near(policy: Policy, wild_type: str, most: int | None) -> Policy:
    """``policy`` run by (1); the network is shared with the result.

    Args:
        policy: over the masked process; a limit that it has already is replaced.
        wild_type: the design to stay near.
        most: mutations allowed, at least 1; ``None`` for no limit.

    Raises:
        ConfigError: no mutation allowed, or letters held fixed that are more mutations than allowed.
        DataError: a wild type of another length or of other letters than the designs.
        UnsupportedError: a process whose letters are not shown one by one.
    """
    plain = policy.denoiser
    plain = plain.base if isinstance(plain, NearDenoiser) else plain
    if most is None:
        return policy.with_denoiser(plain)
    if not isinstance(policy.codec, TokenCodec) or not isinstance(policy.process, Masked):
        raise UnsupportedError(
            f"expected masked diffusion over letters for a limit of mutations; got {type(policy.process).__name__}; "
            "leave it to the reward: rewards.near.Near"
        )
    if most < 1:
        raise ConfigError(f"expected at least one mutation; got {most}; raise the limit")
    tokens = policy.codec.encode([wild_type])[0]
    if policy.fixed is not None:
        held = policy.fixed.cpu()
        differ = int(((held >= 0) & (held != tokens)).sum())
        if differ > most:
            raise ConfigError(
                f"expected at most {most} mutations; got {differ} among the letters held fixed; hold fewer"
            )
    limited = NearDenoiser(plain, tokens.tolist(), most).train(plain.training)
    return policy.with_denoiser(limited)


def varying(policy: Policy, wild_type: str, sites: Sequence[int]) -> Policy:
    """``policy`` with every residue but those of ``sites`` held as in the wild type; the network is shared.

    A model that was not trained on variants of this protein, such as a protein language model, then sees the wild type
    around the sites from the first step on.

    Args:
        policy: whose process can hold letters.
        wild_type: the design to vary.
        sites: positions that may change, counted from 1.

    Raises:
        ConfigError: no site, or one that the wild type does not have.
        DataError: a wild type of another length or of other letters than the designs.
        UnsupportedError: designs are no strings, or the process cannot hold letters.
    """
    if not isinstance(policy.codec, TokenCodec):
        raise UnsupportedError(f"expected designs that are strings; got {type(policy.codec).__name__}")
    tokens = policy.codec.encode([wild_type])[0]
    wrong = [site for site in sites if not 1 <= site <= len(tokens)]
    if wrong or not sites:
        came = f"site {wrong[0]}" if wrong else "none"
        raise ConfigError(f"expected sites from 1 to {len(tokens)}; got {came}; count from the first letter")
    free = torch.zeros(len(tokens), dtype=torch.bool)
    free[[site - 1 for site in sites]] = True
    fixed = tokens.where(~free, -1).to(policy.device)
    policy.process.clamp(fixed[None], fixed)  # a process that cannot hold positions says so
    return policy.holding(fixed)
