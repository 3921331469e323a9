r"""Uniform discrete diffusion (D3PM) as a discrete-time chain of K steps.

Forward: each of the ``L`` tokens still is itself at time ``t`` with probability :math:`\alpha_t = 1 - t`, and else any
of the ``V`` letters, itself included. With :math:`a = \alpha_t / \alpha_s`, of one token,

.. math::
    q(x_t \mid x_0) &= \alpha_t [x_t = x_0] + (1 - \alpha_t) / V                                      \qquad (1) \\
    q(x_s \mid x_t, x_0) &= q(x_t \mid x_s)\, q(x_s \mid x_0) / q(x_t \mid x_0), \quad
        q(x_t \mid x_s) = a [x_t = x_s] + (1 - a) / V                                                 \qquad (2)

The network gives laws :math:`\pi_\theta(x_0^i \mid x_t)`; the reverse step is the exact posterior (2) under them,

.. math::
    p(x_s \mid x_t) = \prod_i \sum_{x_0^i} \pi_\theta(x_0^i \mid x_t)\, q(x_s^i \mid x_t^i, x_0^i)
        = \prod_i q(x_t^i \mid x_s^i) \Big[ \alpha_s w^i(x_s^i) + \frac{1 - \alpha_s}{V} \sum_a w^i(a) \Big],
    \quad w^i(a) = \frac{ \pi_\theta^i(a) }{ q(x_t^i \mid x_0^i = a) }                                \qquad (3)

so at ``s = 0`` the token law is :math:`\pi_\theta` itself. Every token may change at every step, and a chain of few
steps draws its tokens independently: correlations cost steps.

**Pretraining loss.** With :math:`\rho_y(a) = q_t(y \mid a) / q_t(x_t \mid a)` and the model's
:math:`\bar\rho_y = \sum_a \pi_\theta(a) \rho_y(a)` (the rate of (3) in the limit of many steps),

.. math::
    \frac{1}{V (1 - t)} \sum_i \sum_{y \ne x_t^i}
        \Big[ \bar\rho_y^i - \rho_y^i + \rho_y^i \log \frac{\rho_y^i}{\bar\rho_y^i} \Big]             \qquad (4)

whose mean over ``t ~ U(0, 1)`` bounds :math:`-\log p(x_0)` of the continuous-time chain from above.

Differs from UDLM, whose model rate has a ratio of means, :math:`q_t(y) / q_t(x_t)` under :math:`\pi_\theta`, in place
of the mean of ratios. References:
    Austin et al. 2021 (D3PM, uniform kernel, eq. 3-4), https://arxiv.org/abs/2107.03006;
    Campbell et al. 2022 (the bound for rates), https://arxiv.org/abs/2205.14987;
    Schiff et al. 2024 (UDLM), https://arxiv.org/abs/2412.10193.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F

from difftilt.core.process import Process
from difftilt.core.registry import register
from difftilt.core.transition import Transition
from difftilt.types import Float, Int, Tensor


@register("process", "uniform")
class Uniform(Process):
    """Uniform diffusion over ``vocabulary`` letters.

    Networks are those of masked diffusion, with one symbol more than there are letters; that symbol never occurs.

    Args:
        vocabulary: number of letters ``V``.
    """

    memoryless = True  # at t = 1 every letter is as likely, whatever x_0 was
    bounds_likelihood = True
    discrete = True

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def prior(self, shape: tuple[int, ...], rng: torch.Generator) -> Int[Tensor, "B L"]:
        """Letters drawn uniformly."""
        return torch.randint(0, self.vocabulary, shape, generator=rng, device=rng.device)

    def corrupt(self, x_0: Int[Tensor, "B L"], t: Tensor, rng: torch.Generator) -> Int[Tensor, "B L"]:
        """Equation (1): draw each token anew with probability ``t``."""
        noise = torch.rand(x_0.shape, generator=rng, device=x_0.device)
        return torch.where(noise < t.reshape(-1, 1), self.prior(tuple(x_0.shape), rng), x_0)

    def transition(self, prediction: Float[Tensor, "B L V"], x_t: Tensor, t: Tensor, s: Tensor) -> UniformStep:
        """The kernel (3); ``prediction`` are the logits of the token laws.

        ``x_t`` are tokens ``[B, L]`` or a state made by :meth:`UniformStep.relax`, ``[B, L, V + 1]``.
        """
        return UniformStep(prediction, x_t, 1 - t, 1 - s)

    def denoised(self, prediction: Float[Tensor, "B L V"], x_t: Tensor, t: Tensor) -> Float[Tensor, "B L V"]:
        r"""Token probabilities :math:`\pi_\theta`."""
        return prediction.softmax(-1)

    def denoising_loss(
        self, prediction: Float[Tensor, "B L V"], x_0: Int[Tensor, "B L"], x_t: Int[Tensor, "B L"], t: Tensor
    ) -> Float[Tensor, " B"]:
        """Equation (4), nats, in float64: near ``t = 1`` its terms cancel."""
        t = t.double().clamp(max=1 - 1e-6).reshape(-1, 1, 1)
        here = F.one_hot(x_t, self.vocabulary).double()
        seen = (1 - t) * here + t / self.vocabulary  # q_t(x_t | a), over a
        own, letters = F.one_hot(x_0, self.vocabulary).double(), torch.eye(self.vocabulary, device=x_t.device)
        law = prediction.double().softmax(-1)

        def ratios(mass: Tensor) -> Tensor:
            weight = mass / seen
            return (1 - t) * (weight @ letters.double()) + t / self.vocabulary * weight.sum(-1, keepdim=True)

        true, model = ratios(own), ratios(law)
        terms = (model - true + true * (true / model).log()) * (1 - here)
        return (terms.sum(-1) / (self.vocabulary * (1 - t[..., 0]))).sum(-1)

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"vocabulary": self.vocabulary}


class UniformStep(Transition):
    r"""The law (3) of one step.

    Args:
        logits: unnormalised log token laws, ``[B, L, V]``.
        x_t: current tokens ``[B, L]``, or a relaxed state ``[B, L, V + 1]``, one-hot in value.
        alpha_t: :math:`\alpha_t`, scalar or ``[B]``.
        alpha_s: :math:`\alpha_s`, likewise.
    """

    discrete = True

    def __init__(self, logits: Float[Tensor, "B L V"], x_t: Tensor, alpha_t: Tensor, alpha_s: Tensor) -> None:
        letters = logits.shape[-1]
        relaxed = x_t if x_t.ndim == 3 else F.one_hot(x_t, letters + 1).double()
        here = relaxed[..., :letters].double()
        alpha_t, alpha_s = alpha_t.double().reshape(-1, 1, 1), alpha_s.double().reshape(-1, 1, 1)
        stay = alpha_t / alpha_s
        forward = stay * here + (1 - stay) / letters
        log_weight = logits.double().log_softmax(-1) - (alpha_t * here + (1 - alpha_t) / letters).log()
        anew = ((1 - alpha_s) / letters).log() + log_weight.logsumexp(-1, keepdim=True)
        kept, anew = alpha_s.log() + log_weight, anew.expand_as(log_weight)
        never = kept.isneginf() & anew.isneginf()  # of which logaddexp has no gradient
        either = torch.logaddexp(kept.masked_fill(never, 0.0), anew.masked_fill(never, 0.0))
        self.log_law: Float[Tensor, "B L V"] = forward.log() + either.masked_fill(never, -torch.inf)
        """Log law of each token of :math:`x_s`, nats, float64."""
        self._dtype = logits.dtype

    @torch.no_grad()
    def sample(self, rng: torch.Generator) -> Int[Tensor, "B L"]:
        """Draw every token, by a Gumbel race."""
        return self._race(rng).argmax(-1)

    def log_prob(self, x_s: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
        """Log of (3)."""
        return self.log_law.gather(-1, x_s[..., None])[..., 0].sum(-1)

    def kl(self, other: UniformStep) -> Float[Tensor, " B"]:
        """Sum of the tokens' KLs, nats."""
        log_ratio = (self.log_law - other.log_law).where(~self.log_law.isneginf(), 0)
        return (self.log_law.exp() * log_ratio).sum((-2, -1))

    def tilted(self, tilt: Float[Tensor, "B L V"]) -> UniformStep:
        """The step with token laws times ``exp(tilt)``, nats."""
        step = copy.copy(self)
        step.log_law = (self.log_law + tilt).log_softmax(-1)
        return step

    def relax(self, rng: torch.Generator, *, tau: float) -> Float[Tensor, "B L V1"]:
        """Straight-through Gumbel-softmax: exact one-hot samples of (3) forward, the relaxed gradient backward."""
        soft = (self._race(rng) / tau).softmax(-1).to(self._dtype)
        hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
        return F.pad(hard + (soft - soft.detach()), (0, 1))

    def _race(self, rng: torch.Generator) -> Float[Tensor, "B L V"]:
        law = self.log_law
        noise = torch.rand(law.shape, generator=rng, device=law.device, dtype=torch.float64)
        return law - torch.log(-torch.log(noise))
