r"""Masked (absorbing-state) diffusion as a discrete-time chain of K steps.

Forward: each of the ``L`` tokens is masked independently, and is still seen at time ``t`` with probability
:math:`\alpha_t = 1 - t`. The network gives token laws :math:`\pi_\theta(x_0^i \mid x_t)` over the ``V`` letters (no
mask, no time: the optimum does not depend on ``t``). One reverse step ``t -> s`` is a *reveal law* over which masked
positions are shown, times a *token law* for each of them:

.. math:: p(x_s \mid x_t) = \rho(R \mid x_t) \prod_{i \in R} \pi_\theta(x_s^i \mid x_t)               \qquad (1)

- ``reveal="independent"``: each masked position is shown with probability :math:`(t - s) / t`: the exact reversal's
  K-step discretisation.
- ``reveal="count"``: of ``m`` masked positions exactly ``n = m - round(m s / t)`` are shown, uniformly at random,
  :math:`\rho = 1 / \binom{m}{n}`. With ``K = L`` steps this is one token per step in random order.

Both laws enter ``log_prob`` and ``kl``; the reveal law does not depend on the network, so

.. math:: KL = \frac{E|R|}{m} \sum_{i\,\text{masked}} KL( \pi_\theta^i \| \pi_{ref}^i )                \qquad (2)

Revealed tokens never change. Sampling draws the positions first and the tokens only there.

References:
    Austin et al. 2021 (D3PM, absorbing kernel), https://arxiv.org/abs/2107.03006;
    Sahoo et al. 2024 (MDLM, eq. 7 and 10), https://arxiv.org/abs/2406.07524.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from difftilt.core.process import Process
from difftilt.core.registry import register
from difftilt.core.transition import Transition
from difftilt.errors import ConfigError
from difftilt.types import Bool, Float, Int, Tensor

REVEALS = ("count", "independent")


@register("process", "masked")
class Masked(Process):
    """Absorbing-state diffusion over ``vocabulary`` letters; the mask token is ``vocabulary``.

    Args:
        vocabulary: number of letters ``V``.
        reveal: the reveal law, ``"count"`` or ``"independent"`` (see the module).
    """

    memoryless = True  # x_1 is one state: all masked
    bounds_likelihood = True
    discrete = True

    def __init__(self, vocabulary: int, reveal: str = "count") -> None:
        if reveal not in REVEALS:
            raise ConfigError(f"expected reveal to be one of {', '.join(REVEALS)}; got '{reveal}'; correct it")
        self.vocabulary, self.reveal = vocabulary, reveal

    @property
    def mask(self) -> int:
        """The mask token."""
        return self.vocabulary

    def prior(self, shape: tuple[int, ...], rng: torch.Generator) -> Int[Tensor, "B L"]:
        """All masked."""
        return torch.full(shape, self.mask, dtype=torch.long, device=rng.device)

    def clamp(self, x: Int[Tensor, "B L"], fixed: Int[Tensor, " L"]) -> Int[Tensor, "B L"]:
        """Show the fixed tokens from the start: the chain then samples the rest given them."""
        return torch.where(fixed >= 0, fixed, x)

    def corrupt(self, x_0: Int[Tensor, "B L"], t: Tensor, rng: torch.Generator) -> Int[Tensor, "B L"]:
        """Mask each token with probability ``t``."""
        noise = torch.rand(x_0.shape, generator=rng, device=x_0.device)
        return torch.where(noise < t.reshape(-1, 1), self.mask, x_0)

    def transition(self, prediction: Float[Tensor, "B L V"], x_t: Tensor, t: Tensor, s: Tensor) -> MaskedStep:
        """The kernel (1); ``prediction`` are the logits of the token laws.

        ``x_t`` are tokens ``[B, L]`` or a state made by :meth:`MaskedStep.relax`, ``[B, L, V + 1]``.
        """
        return MaskedStep(prediction, x_t, s / t, self.reveal)

    def denoised(self, prediction: Float[Tensor, "B L V"], x_t: Tensor, t: Tensor) -> Float[Tensor, "B L V"]:
        r"""Token probabilities: :math:`\pi_\theta` where masked, the token itself where shown.

        ``x_t`` is ``[B, L]`` or relaxed, ``[B, L, V + 1]``; then the two are mixed in its own proportions.
        """
        letters = self.vocabulary
        x = x_t if x_t.ndim == 3 else F.one_hot(x_t, letters + 1).to(prediction.dtype)
        return x[..., :letters] + x[..., letters:] * prediction.softmax(-1)

    def denoising_loss(
        self, prediction: Float[Tensor, "B L V"], x_0: Int[Tensor, "B L"], x_t: Int[Tensor, "B L"], t: Tensor
    ) -> Float[Tensor, " B"]:
        r""":math:`\frac1t \sum_{i\,\text{masked}} -\log \pi_\theta(x_0^i \mid x_t)`, nats.

        Its mean over ``t ~ U(0, 1)`` bounds :math:`-\log p(x_0)` of the continuous-time model from above (MDLM eq. 10).
        """
        loss = F.cross_entropy(prediction.flatten(0, 1), x_0.flatten(), reduction="none").view_as(x_0)
        return (loss * (x_t == self.mask)).sum(-1) / t

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"vocabulary": self.vocabulary, "reveal": self.reveal}


class MaskedStep(Transition):
    """The law (1) of one step.

    Args:
        logits: unnormalised log token laws, ``[B, L, V]``.
        x_t: current tokens ``[B, L]``, or a relaxed state ``[B, L, V + 1]``, one-hot in value.
        keep: :math:`s / t`, the expected fraction of masked positions that stay masked, scalar or ``[B]``.
        reveal: the reveal law.
    """

    discrete = True

    def __init__(self, logits: Float[Tensor, "B L V"], x_t: Tensor, keep: Tensor, reveal: str) -> None:
        self.logits, self.reveal = logits, reveal
        self.relaxed = x_t if x_t.ndim == 3 else None
        self.x_t = x_t if self.relaxed is None else x_t.detach().argmax(-1)
        self.masked = self.x_t == logits.shape[-1]
        self.keep = keep.expand(x_t.shape[0])
        if reveal == "count":
            m = self.masked.sum(-1)
            self.shown = m - (m * self.keep + 0.5 - 1e-9).floor().long()

    def _positions(self, rng: torch.Generator) -> Bool[Tensor, "B L"]:
        """Draw the set R of positions to show."""
        noise = torch.rand(self.x_t.shape, generator=rng, device=self.x_t.device, dtype=torch.float64)
        if self.reveal == "independent":
            return self.masked & (noise >= self.keep[:, None])
        most = int(self.shown.max())
        if most == 0:
            return torch.zeros_like(self.masked)
        order = noise.masked_fill(~self.masked, -1.0).topk(most, dim=-1).indices
        chosen = torch.arange(most, device=noise.device) < self.shown[:, None]
        return torch.zeros_like(self.masked).scatter_(1, order, chosen)

    @torch.no_grad()
    def sample(self, rng: torch.Generator) -> Int[Tensor, "B L"]:
        """Show the drawn positions; their tokens come from a float64 Gumbel race (float32 would cut the tails)."""
        rows, columns = self._positions(rng).nonzero(as_tuple=True)
        logits = self.logits[rows, columns].double()
        noise = torch.rand(logits.shape, generator=rng, device=logits.device, dtype=torch.float64)
        x_s = self.x_t.clone()
        x_s[rows, columns] = (logits - torch.log(-torch.log(noise))).argmax(-1)
        return x_s

    def log_prob(self, x_s: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
        """Log of (1); ``-inf`` where a shown token changed or the number shown is impossible."""
        shown = self.masked & (x_s != self.logits.shape[-1])
        token = x_s.where(shown, 0)
        picked = self.logits.gather(-1, token[..., None])[..., 0] - self.logits.logsumexp(-1)
        possible = (self.masked | (x_s == self.x_t)).all(-1)
        n = shown.sum(-1)
        if self.reveal == "count":
            m = self.masked.sum(-1).double()
            reveal = -_log_binomial(m, self.shown.double())
            possible = possible & (n == self.shown)
        else:
            stay = (self.masked.sum(-1) - n).double()
            reveal = torch.xlogy(stay, self.keep) + torch.xlogy(n.double(), 1 - self.keep)
        law = picked.where(shown, 0).sum(-1) + reveal.to(picked.dtype)
        return law.where(possible, -torch.inf)

    def kl(self, other: MaskedStep) -> Float[Tensor, " B"]:
        """Equation (2), in nats."""
        mine, theirs = self.logits.log_softmax(-1), other.logits.log_softmax(-1)
        log_ratio = (mine - theirs).where(~mine.isneginf(), 0)  # 0 log 0 = 0, while a diverged network's NaN stays
        total = (mine.exp() * log_ratio).sum(-1).where(self.masked, 0).sum(-1)
        fraction = self._expected_fraction().to(mine.dtype)
        return (total * fraction).where(fraction > 0, 0)

    def _expected_fraction(self) -> Float[Tensor, " B"]:
        if self.reveal == "independent":
            return 1 - self.keep
        return self.shown.double() / self.masked.sum(-1).clamp(min=1)

    def relax(self, rng: torch.Generator, *, tau: float) -> Float[Tensor, "B L V1"]:
        """Straight-through Gumbel-softmax: exact one-hot samples of (1) forward, the relaxed gradient backward."""
        x_t = self.relaxed
        if x_t is None:
            x_t = F.one_hot(self.x_t, self.logits.shape[-1] + 1).to(self.logits.dtype)
        rows, columns = self._positions(rng).nonzero(as_tuple=True)
        logits = self.logits[rows, columns]
        noise = torch.rand(logits.shape, generator=rng, device=logits.device, dtype=torch.float64)
        soft = ((logits - torch.log(-torch.log(noise)).to(logits.dtype)) / tau).softmax(-1)
        hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
        token = hard + (soft - soft.detach())  # exactly one-hot: the bracket is 0
        return x_t.index_put((rows, columns), F.pad(token, (0, 1)))


def _log_binomial(m: Tensor, n: Tensor) -> Tensor:
    return torch.lgamma(m + 1) - torch.lgamma(n + 1) - torch.lgamma(m - n + 1)
