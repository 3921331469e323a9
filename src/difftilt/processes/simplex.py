r"""Diffusion on the simplex by stick-breaking with Jacobi diffusions (DDSM, "Dirichlet diffusion").

A position's letter probabilities :math:`x \in \Delta^{V-1}` are broken into :math:`V - 1` sticks
(:mod:`difftilt.core.sticks`),

.. math:: x_c = u_c \prod_{i<c} (1 - u_i), \qquad x_{V-1} = \prod_i (1 - u_i)                        \qquad (1)

Forward: each stick is a Jacobi diffusion with stationary law Beta(1, :math:`b_i`), :math:`b_i = V - 1 - i`, so that
:math:`x_1` is uniform on the simplex, at the balanced speed :math:`c_i = 2 / (1 + b_i)`, which relaxes all alike:

.. math:: du_i = \tfrac{c_i}2 \big( 1 - u_i - b_i u_i \big) d\tau + \sqrt{c_i u_i (1 - u_i)}\, dW,
    \qquad \tau = \tau_1 t^2                                                                         \qquad (2)

started for letter ``c`` at :math:`u_i = 0` for ``i < c`` and :math:`u_c = 1`; sticks behind have no mass to break and
start from their stationary law. The network gives laws of the letter, :math:`\pi_\theta(c \mid x_t)`; the score is the
exact mixture of those of the forward laws (:mod:`difftilt.core.jacobi`),

.. math:: S_i = \sum_c \pi_\theta(c \mid x_t)\, \partial_{u_i} \log q_\tau(u_i \mid c)                \qquad (3)

One reverse step is Euler-Maruyama on the reversed (2), over :math:`\Delta = \tau_t - \tau_s`,

.. math:: u_s = u_t + \Delta \Big[ c_i u (1 - u) S_i + c_i (1 - 2 u) - \tfrac{c_i}2 (1 - u - b_i u) \Big]
    + \sqrt{ c_i u (1 - u) \Delta }\; z                                                              \qquad (4)

with :math:`u = u_t` clamped into ``[edge, 1 - edge]`` inside the brackets, the root, (1) and the network's input. The
state itself is never clamped, so that (4) is Gaussian with the density it says. Two policies differ in the score only:

.. math:: KL = \tfrac12 \sum_i c_i\, u (1 - u)\, (S_i - S_i')^2 \Delta                                \qquad (5)

**Pretraining loss**, score matching with the likelihood's weight, :math:`S^*` the score of the true letter:

.. math:: \frac{d\tau}{dt} \sum_i \tfrac12 c_i u_i (1 - u_i) ( S_i - S_i^* )^2                       \qquad (6)

whose mean over ``t ~ U(0, 1)`` bounds :math:`-\log p(x_0)` up to what is left of the letter at ``t = 1``, at most
:math:`O(e^{-2 \tau_1})` nats a position. A design is read off as the largest letter of each position.

Differs from DDSM in: the network predicts letters, not scores (at best the two are one, by (3)), so that it is bounded
and a reward can be asked of :math:`E[x_0 \mid x_t]`; forward laws are positive mixtures, not truncated series; states
are not clamped; argmax decoding, which leaves no position empty.

References:
    Avdeyev et al. 2023 (DDSM), https://arxiv.org/abs/2305.10699; Anderson 1982 (reversal),
    https://doi.org/10.1016/0304-4149(82)90051-5.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F

from difftilt.core.jacobi import START, early_lines, lines_of_descent, mean_lines, moments
from difftilt.core.process import Process
from difftilt.core.registry import register
from difftilt.core.sticks import break_sticks
from difftilt.core.transition import Transition
from difftilt.errors import ConfigError
from difftilt.types import Float, Int, Tensor

CLOCK = 500
"""Times are read to this fraction of 1."""
POINTS = 257
"""Points of the tables, equally spaced in the arcsine of the root, in which (2) has constant noise."""


@register("process", "simplex")
class Simplex(Process):
    r"""Jacobi stick-breaking diffusion; states are sticks ``[B, L, V - 1]``.

    Args:
        vocabulary: number of letters ``V``, 2 or more.
        horizon: diffusion time at ``t = 1``, :math:`\tau_1`; correlations with ``x_0`` fall as its exponential.
        edge: distance from 0 and 1 that (4) keeps inside its coefficients.

    Raises:
        ConfigError: an argument is out of range.
    """

    memoryless = True  # up to exp(-horizon) of the letter
    bounds_likelihood = True
    ends_in_corners = True

    def __init__(self, vocabulary: int, *, horizon: float = 4.0, edge: float = 1e-5) -> None:
        if vocabulary < 2 or not horizon > 0 or not 0 < edge < 0.1:
            raise ConfigError(
                "expected 2 letters or more, horizon > 0 and edge in (0, 0.1); got "
                f"{vocabulary}, {horizon} and {edge}; correct them"
            )
        self.vocabulary, self.horizon, self.edge = vocabulary, horizon, edge
        self.b = stationary(vocabulary)
        """Second parameter of each stick's stationary Beta."""
        self.speed = 2 / (1 + self.b)
        """Speed of each stick."""

    @property
    def tables(self) -> Tables:
        """Forward laws, computed at first use."""
        return tables(self.vocabulary, self.horizon)

    def prior(self, shape: tuple[int, ...], rng: torch.Generator) -> Float[Tensor, "B L V1"]:
        """Uniform on the simplex: every stick from its stationary law."""
        return self._stationary(shape, rng).float()

    def _stationary(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        noise = torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float64)
        return 1 - noise ** (1 / self.b.to(rng.device))  # Beta(1, b) by inversion

    def corrupt(self, x_0: Tensor, t: Tensor, rng: torch.Generator) -> Float[Tensor, "B L V1"]:
        """Draw from (2) exactly; ``x_0`` are letters ``[B, L]``, or finished states, of which the letters are read."""
        x_0 = _letters(x_0)
        index = _clock(t).expand(len(x_0))
        shape = (*x_0.shape, self.vocabulary - 1)
        count = self.tables.draw(index, shape, rng)
        noise = torch.rand(shape, generator=rng, device=x_0.device, dtype=torch.float64)
        b, stick = self.b.to(x_0.device), torch.arange(self.vocabulary - 1, device=x_0.device)
        from_zero = 1 - noise ** (1 / (b + count))
        from_one = torch.ones_like(noise)
        for j in range(self.vocabulary - 1):  # Beta(1 + m, b) with whole b: a product of powers of uniforms
            other = torch.rand(shape, generator=rng, device=x_0.device, dtype=torch.float64)
            from_one = from_one * torch.where(j < b, other ** (1 / (1 + count + j)), 1.0)
        letter = x_0[..., None]
        u = torch.where(stick < letter, from_zero, torch.where(stick == letter, from_one, 0.0))
        return torch.where(stick > letter, self._stationary(shape, rng), u).float()

    def transition(
        self, prediction: Float[Tensor, "B L V"], x_t: Float[Tensor, "B L V1"], t: Tensor, s: Tensor
    ) -> SimplexStep:
        """The kernel (4); ``prediction`` are the logits of the letter laws. Gradient flows to it and to ``x_t``."""
        t, s = (time.double().reshape(-1, 1, 1) for time in (t, s))
        step = (self.horizon * (t.square() - s.square())).to(prediction.dtype)
        u, b, speed = self._inside(x_t), self.b.to(x_t), self.speed.to(x_t)
        pull = self._weighted_score(prediction, self._scores(u, t))
        drift = speed * (pull + 1 - 2 * u - 0.5 * (1 - u - b * u))
        return SimplexStep(x_t + step * drift, (speed * u * (1 - u) * step).sqrt())

    def _inside(self, x_t: Float[Tensor, "B L V1"]) -> Float[Tensor, "B L V1"]:
        return x_t.clamp(self.edge, 1 - self.edge)

    def _weighted_score(
        self, prediction: Float[Tensor, "B L V"], scores: tuple[Tensor, Tensor, Tensor]
    ) -> Float[Tensor, "B L V1"]:
        """:math:`u (1 - u) S` of (3), from :meth:`_scores`."""
        law = prediction.softmax(-1)
        here = law[..., :-1]
        after = (law.sum(-1, keepdim=True) - law.cumsum(-1))[..., :-1]  # the letter is further on: the stick is 0
        before = 1 - here - after
        zero, one, free = scores
        return after * zero + here * one + before * free

    def _scores(self, u: Float[Tensor, "B L V1"], t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """:math:`u (1 - u)` times the score of a stick from 0, from 1, and from its stationary law."""
        b = self.b.to(u)
        lines = self.tables.mean_lines(u, _clock(t))
        return -(b - 1 + lines[0]) * u, lines[1] * (1 - u) - (b - 1) * u, -(b - 1) * u

    def denoised(
        self, prediction: Float[Tensor, "B L V"], x_t: Float[Tensor, "B L V1"], t: Tensor
    ) -> Float[Tensor, "B L V"]:
        r"""Letter probabilities :math:`\pi_\theta`."""
        return prediction.softmax(-1)

    def denoising_loss(
        self, prediction: Float[Tensor, "B L V"], x_0: Tensor, x_t: Float[Tensor, "B L V1"], t: Tensor
    ) -> Float[Tensor, " B"]:
        """Equation (6), nats; ``x_0`` as in :meth:`corrupt`."""
        u = self._inside(x_t.double())
        time = t.double().reshape(-1, 1, 1)
        own = F.one_hot(_letters(x_0), self.vocabulary).double().log()
        scores = self._scores(u, time)
        error = self._weighted_score(prediction.double(), scores) - self._weighted_score(own, scores)
        rate = 2 * self.horizon * time
        return (0.5 * rate * self.speed.to(u) * error.square() / (u * (1 - u))).sum((1, 2))

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"vocabulary": self.vocabulary, "horizon": self.horizon, "edge": self.edge}


def _letters(x_0: Tensor) -> Int[Tensor, "B L"]:
    return break_sticks(x_0.clamp(0, 1)).argmax(-1) if x_0.is_floating_point() else x_0


def _clock(t: Tensor) -> Int[Tensor, " T"]:
    """Index of each time, ``[B]``, or ``[1]`` of one for all."""
    return (t.reshape(-1) * CLOCK).round().long().clamp(1, CLOCK)


class SimplexStep(Transition):
    """The law (4) of one step: Gaussian, with a std of its own for every stick.

    Args:
        mean: ``[B, L, V - 1]``.
        std: likewise, above 0; the same for all policies at the same state.
    """

    def __init__(self, mean: Float[Tensor, "B L V1"], std: Float[Tensor, "B L V1"]) -> None:
        self.mean, self.std = mean, std

    def rsample(self, rng: torch.Generator) -> Float[Tensor, "B L V1"]:
        """``mean + std * noise``: exact pathwise gradient, through the std too."""
        noise = torch.randn(self.mean.shape, generator=rng, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.std * noise

    @torch.no_grad()
    def sample(self, rng: torch.Generator) -> Float[Tensor, "B L V1"]:
        """The same draw as :meth:`rsample`, outside any graph."""
        return self.rsample(rng)

    def log_prob(self, x_s: Float[Tensor, "B L V1"]) -> Float[Tensor, " B"]:
        """Log-density, nats, summed over the event in float64."""
        scaled = ((x_s - self.mean) / self.std).double()
        return -(0.5 * scaled.square() + self.std.double().log() + 0.5 * math.log(2 * math.pi)).sum((1, 2))

    def kl(self, other: SimplexStep) -> Float[Tensor, " B"]:
        """Equation (5), nats, float64."""
        return (0.5 * ((self.mean - other.mean) / self.std).double().square()).sum((1, 2))


def stationary(vocabulary: int) -> Float[Tensor, " V1"]:
    """Second parameters ``b`` of the sticks' stationary Betas."""
    return vocabulary - 1 - torch.arange(vocabulary - 1, dtype=torch.float64)


@functools.cache
def tables(vocabulary: int, horizon: float) -> Tables:
    """The tables of all processes with these settings: they take seconds to compute."""
    b = stationary(vocabulary)
    return Tables(b, 2 / (1 + b), horizon)


class Tables:
    """Forward laws of every stick at the times of the clock.

    Args:
        b: second parameter of each stick.
        speed: of each stick.
        horizon: diffusion time at ``t = 1``.
    """

    def __init__(self, b: Float[Tensor, " V1"], speed: Float[Tensor, " V1"], horizon: float) -> None:
        square = (torch.arange(CLOCK + 1, dtype=torch.float64) / CLOCK).square()
        self.times = horizon * square[:, None] * speed  # [CLOCK + 1, V1], of the standard Jacobi diffusion
        angle = torch.linspace(0, math.pi / 2, POINTS, dtype=torch.float64)
        points = angle.sin().square().clamp(1e-9, 1 - 1e-9)
        scaled, laws = [], []
        for second, column in zip(b.tolist(), self.times.T, strict=True):
            late = [time for time in column.tolist() if time > START]
            law = lines_of_descent(1 + second, late)
            rows = [time * early_lines(points, 1 + second, time) for time in column[1 : -len(late)].tolist()]
            for time, weight in zip(late, law, strict=True):
                rows.append(time * mean_lines(points, 1.0, second, weight))
            scaled.append(torch.stack([rows[0], *rows]))
            laws.append(F.pad(law, (0, 0, len(column) - len(late), 0)))
        width = max(law.shape[1] for law in laws)
        self.lines = torch.stack(scaled, 1)
        """``T`` times the two means of :func:`mean_lines`, ``[CLOCK + 1, V1, 2, POINTS]``."""
        self.below = torch.stack([F.pad(law, (0, width - law.shape[1])) for law in laws], 1).cumsum(-1)
        """Distribution function of ``m``, ``[CLOCK + 1, V1, M]``; 0 at times before ``START``."""
        self.moments = torch.tensor(
            [[moments(1 + second, time) for second, time in zip(b.tolist(), row.tolist(), strict=True)]
             for row in self.times.clamp(min=1e-12)],
            dtype=torch.float64,
        )  # fmt: skip
        """Mean and standard deviation of ``m`` for short times, ``[CLOCK + 1, V1, 2]``."""

    def draw(self, index: Int[Tensor, " B"], shape: tuple[int, ...], rng: torch.Generator) -> Float[Tensor, "B L V1"]:
        """Numbers of lines of descent at times of the clock."""
        device = rng.device
        noise = torch.rand(shape, generator=rng, device=device, dtype=torch.float64)
        below = self.below.to(device)[index][:, None].expand(*shape[:2], -1, -1)
        late = torch.searchsorted(below.contiguous(), noise[..., None])[..., 0].double()
        mean, std = self.moments.to(device)[index][:, None].unbind(-1)  # [B, 1, V1]
        soon = (mean + std * torch.special.ndtri(noise)).round().clamp(min=1)
        return torch.where(self.times.to(device)[index][:, None] > START, late, soon)

    def mean_lines(self, u: Float[Tensor, "B L V1"], index: Int[Tensor, " T"]) -> tuple[Tensor, Tensor]:
        """:math:`M_0` and :math:`M_1` at sticks ``u``, linear between points. Gradient flows to ``u``."""
        index = index.to(self.lines.device).view(-1, 1, 1)
        place = u.sqrt().clamp(max=1.0).asin() * ((POINTS - 1) / (math.pi / 2))
        left = place.detach().floor().long().clamp(max=POINTS - 2)
        share, stick = (place - left)[..., None], torch.arange(u.shape[-1], device=u.device)
        low, high = (self.lines[index, stick, :, point].to(u) for point in (left, left + 1))
        both = (low + share * (high - low)) / self.times[index, stick].to(u)[..., None]
        return both[..., 0], both[..., 1]
