r"""Pretrained laws that are Markov chains over positions, fitted in closed form, and their exact denoisers.

.. math::
    p(x) &= \hat p(x^1) \prod_{i=1}^{L-1} \hat p_i(x^{i+1} \mid x^i), \qquad
    \hat p_i(b \mid a) = \frac{n_i(a, b) + \tfrac12}{n_i(a) + \tfrac12 V}                                  \qquad (1) \\
    \pi^i(a \mid x_t) &= p(x^i = a \mid \text{letters shown}) \propto m_i(a)\, w_i(a)                      \qquad (2) \\
    m_{i+1} &= \hat p_i^\top e_i,\; e_i = \text{letter shown, else } m_i, \qquad
    w_i = \hat p_i\, e'_{i+1},\; e'_i = \text{letter shown, else } w_i                                        \qquad (3)

:math:`n_i(a, b)` counts designs in which ``b`` follows ``a`` at position ``i``. Half a count each leaves every design,
also those with pairs that were never seen, a positive probability: how natural a design is falls with each rare step
in it, and no design is ruled out. Where all partial states can be held in memory, the denoiser is a
:class:`~difftilt.problems.joint.JointDenoiser`; elsewhere one step matrix serves all positions
(:math:`n = \sum_i n_i`, which has to be learned from few designs) and (2) is computed by (3) at each call. Conditionals
agree in whatever order letters are shown, so one token per step samples (1) exactly.

What is tuned is a network that adds to the logits of (2), 0 at the start.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy
from difftilt.core.registry import register
from difftilt.errors import UnsupportedError
from difftilt.problems.enumerated import MOST_STATES
from difftilt.problems.joint import JointDenoiser
from difftilt.problems.landscapes import silent_network
from difftilt.processes.masked import Masked
from difftilt.rng import seeded_initialisation
from difftilt.types import Condition, Float, Int, Tensor


@register("denoiser", "markov")
class MarkovDenoiser(nn.Module):
    """Equation (2) by (3), with a network added to the logits.

    Args:
        vocabulary: letters ``V``.
        length: positions ``L``.
        hidden: units of each of the network's two hidden layers.
    """

    time_free = True
    log_first: Float[Tensor, " V"]
    log_step: Float[Tensor, "V V"]

    def __init__(self, vocabulary: int, length: int, hidden: int = 256) -> None:
        super().__init__()
        self.vocabulary, self.length, self.hidden = vocabulary, length, hidden
        self.network = silent_network(vocabulary, length, hidden)
        self.register_buffer("log_first", torch.zeros(vocabulary, dtype=torch.float64))
        self.register_buffer("log_step", torch.zeros(vocabulary, vocabulary, dtype=torch.float64))

    @classmethod
    def of(cls, first: Float[Tensor, " V"], step: Float[Tensor, "V V"], length: int) -> MarkovDenoiser:
        """Of the law of the first letter, and of each letter given the one before it (rows sum to 1)."""
        with seeded_initialisation(0):
            denoiser = cls(len(first), length)
        denoiser.log_first.copy_(first.log())
        denoiser.log_step.copy_(step.log())
        return denoiser

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Float[Tensor, "B L V"]:
        """Logits at masked positions. Gradient flows to the network.

        Raises:
            UnsupportedError: relaxed tokens.
        """
        if x_t.ndim != 2:
            raise UnsupportedError(
                "expected tokens [B, L]; got relaxed ones, for which (2) is not defined; use an algorithm without them"
            )
        one_hot = F.one_hot(x_t, self.vocabulary + 1)
        return self._exact(x_t) + self.network(one_hot.flatten(1).float()).view(-1, self.length, self.vocabulary)

    def _exact(self, x_t: Int[Tensor, "B L"]) -> Float[Tensor, "B L V"]:
        step, shown = self.log_step.exp(), (x_t < self.vocabulary)[..., None]
        letter = F.one_hot(x_t, self.vocabulary + 1)[..., :-1].double()
        left = [self.log_first.exp().expand(len(x_t), -1)]
        right = [torch.ones_like(left[0])]
        for i in range(self.length - 1):
            left.append(letter[:, i].where(shown[:, i], left[-1]) @ step)
            j = self.length - 1 - i
            behind = letter[:, j].where(shown[:, j], right[-1]) @ step.T
            right.append(behind / behind.sum(1, keepdim=True))
        return (torch.stack(left, 1) * torch.stack(right[::-1], 1)).log()

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"vocabulary": self.vocabulary, "length": self.length, "hidden": self.hidden}


def markov_prior(codec: TokenCodec, seen: Int[Tensor, "N L"], *, both_strands: bool = False) -> Policy:
    """The frozen policy of (1) fitted to ``seen``, one token per step.

    Args:
        codec: reads designs.
        seen: what it learns from.
        both_strands: of DNA whose reward has no strand: tune both readings alike (where states can be enumerated).
    """
    letters, length = codec.vocabulary, codec.length
    if (letters + 1) ** length <= MOST_STATES:
        every = torch.cartesian_prod(*[torch.arange(letters)] * length).view(-1, length)
        law = markov_law(seen, every, vocabulary=letters)
        denoiser = JointDenoiser.of(law.view([letters] * length), both_strands=both_strands)
    else:
        first = torch.bincount(seen[:, 0], minlength=letters) + 0.5
        pairs = torch.bincount((seen[:, :-1] * letters + seen[:, 1:]).flatten(), minlength=letters**2) + 0.5
        step = pairs.double().view(letters, letters)
        denoiser = MarkovDenoiser.of(first.double() / first.sum(), step / step.sum(1, keepdim=True), length)
    return Policy(denoiser, Masked(letters), codec, (length,), steps=length).frozen_copy()


def markov_law(seen: Int[Tensor, "B L"], designs: Int[Tensor, "N L"], *, vocabulary: int) -> Float[Tensor, " N"]:
    """Equation (1), fitted to ``seen``: probability of each of ``designs``."""
    one_hot = F.one_hot(seen, vocabulary).double()
    first = one_hot[:, 0].sum(0) + 0.5
    log_law = (first / first.sum()).log()[designs[:, 0]]
    for i in range(seen.shape[1] - 1):
        pair = one_hot[:, i].T @ one_hot[:, i + 1] + 0.5
        log_law = log_law + (pair / pair.sum(1, keepdim=True)).log()[designs[:, i], designs[:, i + 1]]
    return log_law.exp()
