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

**Stages.** Positions may come in runs ``i`` with a window :math:`(a_i, b_i)` of time each, in which the run is masked:

.. math:: \alpha_t^i = 1 - u_t^i, \qquad u_t^i = \mathrm{clamp}\big( (t - a_i) / (b_i - a_i),\, 0,\, 1 \big)  \qquad (3)

so that some kinds of tokens are finished before others begin (how many atoms, then which, then the bonds). A masked
position is shown with probability :math:`1 - u_s^i / u_t^i`, or of the ``m`` masked ones of a run exactly
:math:`n_i = m_i - \mathrm{round}(m_i u_s^i / u_t^i)`, :math:`\rho = \prod_i 1 / \binom{m_i}{n_i}`; (2) is a sum over
runs, each with its own fraction. One run with the window (0, 1) is the process above. Tokens shown in one step are
independent, so the times of a chain include every end of a window (:meth:`Masked.grid`), lest a run begins in the step
in which another ends. The bound's weight is :math:`1 / (t - a_i)` for masked positions within their window, else 0.
With runs of one position, one window after the other (:func:`in_order`), positions are shown from left to right.

References:
    Austin et al. 2021 (D3PM, absorbing kernel), https://arxiv.org/abs/2107.03006;
    Sahoo et al. 2024 (MDLM, eq. 7 and 10), https://arxiv.org/abs/2406.07524;
    Shi et al. 2024 (masking schedules that differ between tokens), https://arxiv.org/abs/2406.04329.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from difftilt.core.process import Process
from difftilt.core.registry import register
from difftilt.core.schedule import stepped_grid, uniform_grid
from difftilt.core.transition import Transition
from difftilt.errors import ConfigError, ShapeError
from difftilt.types import Bool, Float, Int, Tensor

REVEALS = ("count", "independent")


@register("process", "masked")
class Masked(Process):
    """Absorbing-state diffusion over ``vocabulary`` letters; the mask token is ``vocabulary``.

    Args:
        vocabulary: number of letters ``V``.
        reveal: the reveal law, ``"count"`` or ``"independent"`` (see the module).
        stages: runs of consecutive positions, ``(positions, from, to)`` with the window :math:`b_i, a_i` of (3), later
            (noisier) time first; one run with the window (1, 0) when not given.

    Raises:
        ConfigError: an unknown reveal law, or a run without positions or with an empty window.
    """

    memoryless = True  # x_1 is one state: all masked
    bounds_likelihood = True
    discrete = True

    def __init__(self, vocabulary: int, reveal: str = "count", stages: Sequence[Sequence[float]] | None = None) -> None:
        if reveal not in REVEALS:
            raise ConfigError(f"expected reveal to be one of {', '.join(REVEALS)}; got '{reveal}'; correct it")
        self.vocabulary, self.reveal = vocabulary, reveal
        self.stages = None if stages is None else [_checked(stage) for stage in stages]

    @property
    def mask(self) -> int:
        """The mask token."""
        return self.vocabulary

    @property
    def in_order(self) -> bool:
        """Whether positions are shown one at a time, from left to right."""
        stages = self.stages or []
        after = all(low >= high for (_, _, low), (_, high, _) in itertools.pairwise(stages))
        return bool(stages) and after and all(count == 1 for count, _, _ in stages)

    def grid(self, steps: int | Sequence[int]) -> Float[Tensor, " K1"]:
        """Times of a chain of ``steps``, the ends of all windows among them.

        Args:
            steps: of the whole chain, shared out by the windows' widths, at least one to each stretch between ends,
                and by the law "count" no more than it has positions to show; or of each such stretch, in the order of
                generation.

        Raises:
            ConfigError: fewer steps than stretches, or another number of them.
        """
        if self.stages is None:
            return uniform_grid(steps) if isinstance(steps, int) else stepped_grid([1.0, 0.0], steps)
        ends = sorted({1.0, 0.0} | {time for _, high, low in self.stages for time in (high, low)}, reverse=True)
        most = [
            sum(count for count, high, low in self.stages if high > last and low < first)
            for first, last in itertools.pairwise(ends)
        ]
        return stepped_grid(ends, steps, most if self.reveal == "count" else None)

    def prior(self, shape: tuple[int, ...], rng: torch.Generator) -> Int[Tensor, "B L"]:
        """All masked."""
        return torch.full(shape, self.mask, dtype=torch.long, device=rng.device)

    def clamp(self, x: Int[Tensor, "B L"], fixed: Int[Tensor, " L"]) -> Int[Tensor, "B L"]:
        """Show the fixed tokens from the start: the chain then samples the rest given them."""
        return torch.where(fixed >= 0, fixed, x)

    def corrupt(self, x_0: Int[Tensor, "B L"], t: Tensor, rng: torch.Generator) -> Int[Tensor, "B L"]:
        """Mask each token with the probability (3), ``t`` where there are no stages."""
        noise = torch.rand(x_0.shape, generator=rng, device=x_0.device)
        hidden = t.reshape(-1, 1)
        if self.stages is not None:
            widths = torch.tensor([run.stop - run.start for run in self._runs(x_0)], device=x_0.device)
            hidden = self._hidden(t.reshape(-1)).repeat_interleave(widths, dim=1)
        return torch.where(noise < hidden, self.mask, x_0.long())

    def transition(self, prediction: Float[Tensor, "B L V"], x_t: Tensor, t: Tensor, s: Tensor) -> MaskedStep:
        """The kernel (1); ``prediction`` are the logits of the token laws.

        ``x_t`` are tokens ``[B, L]`` or a state made by :meth:`MaskedStep.relax`, ``[B, L, V + 1]``.
        """
        if self.stages is None:
            return MaskedStep(prediction, x_t, s / t, self.reveal)
        now, after = self._hidden(t.reshape(-1)), self._hidden(s.reshape(-1))
        keep = (after / now).where(now > 0, 0.0)  # past its window a run has nothing left to hide
        return MaskedStep(prediction, x_t, keep, self.reveal, self._runs(x_t))

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

        With stages, the weight :math:`1 / (t - a_i)` of a run of ``n`` positions is replaced by its mean over ``t``
        given that ``m`` of them are masked, :math:`\frac{n + 1}{m (b_i - a_i)}`: the same bound, without the weights
        that grow beyond all bounds at the end of a window.
        """
        loss = F.cross_entropy(prediction.flatten(0, 1), x_0.flatten().long(), reduction="none").view_as(x_0)
        masked = x_t == self.mask
        if self.stages is None:
            return (loss * masked).sum(-1) / t
        total = torch.zeros_like(loss[:, 0])
        for run, (positions, high, low) in zip(self._runs(x_t), self.stages, strict=True):
            weight = (positions + 1) / (masked[:, run].sum(-1).clamp(min=1) * (high - low))
            inside = loss[:, run].where(masked[:, run], 0).sum(-1)  # shown letters may be impossible under a network
            total = total + (inside * weight).where((low < t) & (t < high), 0)
        return total

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        stages = {} if self.stages is None else {"stages": [list(stage) for stage in self.stages]}
        return {"vocabulary": self.vocabulary, "reveal": self.reveal, **stages}

    def _hidden(self, t: Float[Tensor, " B"]) -> Float[Tensor, "B S"]:
        """Probability (3) of each run to be masked."""
        assert self.stages is not None
        return torch.stack([((t - low) / (high - low)).clamp(0, 1) for _, high, low in self.stages], dim=-1)

    def _runs(self, x: Tensor) -> list[slice]:
        """Positions of each run.

        Raises:
            ShapeError: the runs are of another length than the state.
        """
        assert self.stages is not None
        ends = [0, *itertools.accumulate(positions for positions, _, _ in self.stages)]
        if ends[-1] != x.shape[1]:
            raise ShapeError(
                f"expected states of {ends[-1]} positions, as the stages have; got {x.shape[1]}; correct the stages"
            )
        return [slice(first, last) for first, last in itertools.pairwise(ends)]


def in_order(length: int) -> list[tuple[int, float, float]]:
    """Stages of one position each, as wide as each other, from left to right."""
    ends = [1 - place / length for place in range(length + 1)]
    return [(1, high, low) for high, low in itertools.pairwise(ends)]


def _checked(stage: Sequence[float]) -> tuple[int, float, float]:
    if len(stage) != 3 or int(stage[0]) != stage[0] or stage[0] < 1 or not 1 >= stage[1] > stage[2] >= 0:
        raise ConfigError(
            f"expected a stage (positions, from, to) with 1 >= from > to >= 0; got {tuple(stage)}; correct it"
        )
    return int(stage[0]), float(stage[1]), float(stage[2])


class MaskedStep(Transition):
    """The law (1) of one step.

    Args:
        logits: unnormalised log token laws, ``[B, L, V]``.
        x_t: current tokens ``[B, L]``, or a relaxed state ``[B, L, V + 1]``, one-hot in value.
        keep: :math:`u_s / u_t`, the expected fraction of masked positions that stay masked, scalar or ``[B]``; with
            runs, ``[S]``, ``[1, S]`` or ``[B, S]``.
        reveal: the reveal law.
        runs: positions of each of ``S`` runs; all positions are one run when not given.
    """

    discrete = True

    def __init__(
        self,
        logits: Float[Tensor, "B L V"],
        x_t: Tensor,
        keep: Tensor,
        reveal: str,
        runs: Sequence[slice] | None = None,
    ) -> None:
        self.logits, self.reveal = logits, reveal
        self.relaxed = x_t if x_t.ndim == 3 else None
        self.x_t = x_t if self.relaxed is None else x_t.detach().argmax(-1)
        self.masked = self.x_t == logits.shape[-1]
        self.runs = [slice(None)] if runs is None else list(runs)
        batch = x_t.shape[0]
        self.keep = keep.expand(batch) if runs is None else keep.expand(batch, len(self.runs))
        self._keep = self.keep.view(batch, len(self.runs))
        if reveal == "count":
            m = self._per_run(self.masked)
            self._shown = m - (m * self._keep + 0.5 - 1e-9).floor().long()

    @property
    def shown(self) -> Int[Tensor, " B"]:
        """How many positions the law "count" shows."""
        return self._shown.sum(-1)

    def _per_run(self, per_position: Tensor) -> Tensor:
        """Sums over the positions of each run, ``[B, S]``."""
        return torch.stack([per_position[:, run].sum(-1) for run in self.runs], dim=-1)

    def _positions(self, rng: torch.Generator) -> Bool[Tensor, "B L"]:
        """Draw the set R of positions to show."""
        noise = torch.rand(self.x_t.shape, generator=rng, device=self.x_t.device, dtype=torch.float64)
        chosen = torch.zeros_like(self.masked)
        for number, run in enumerate(self.runs):
            masked, noisy = self.masked[:, run], noise[:, run]
            if self.reveal == "independent":
                chosen[:, run] = masked & (noisy >= self._keep[:, number, None])
                continue
            shown = self._shown[:, number]
            most = int(shown.max())
            if most > 0:
                order = noisy.masked_fill(~masked, -1.0).topk(most, dim=-1).indices
                first = torch.arange(most, device=noise.device) < shown[:, None]
                chosen[:, run] = torch.zeros_like(masked).scatter_(1, order, first)
        return chosen

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
        rows, columns = shown.nonzero(as_tuple=True)
        logits = self.logits[rows, columns]
        token_law = logits.gather(-1, x_s[rows, columns, None])[:, 0] - logits.logsumexp(-1)
        picked = torch.zeros_like(shown, dtype=logits.dtype).index_put((rows, columns), token_law)
        possible = (self.masked | (x_s == self.x_t)).all(-1)
        m, n = self._per_run(self.masked), self._per_run(shown)
        if self.reveal == "count":
            reveal = -_log_binomial(m.double(), self._shown.double())
            possible = possible & (n == self._shown).all(-1)
        else:
            reveal = torch.xlogy((m - n).double(), self._keep) + torch.xlogy(n.double(), 1 - self._keep)
        law = picked.sum(-1) + reveal.sum(-1).to(picked.dtype)
        return law.where(possible, -torch.inf)

    def kl(self, other: MaskedStep) -> Float[Tensor, " B"]:
        """Equation (2), in nats."""
        mine, theirs = self.logits.log_softmax(-1), other.logits.log_softmax(-1)
        log_ratio = (mine - theirs).where(~mine.isneginf(), 0)  # 0 log 0 = 0, while a diverged network's NaN stays
        total = self._per_run((mine.exp() * log_ratio).sum(-1).where(self.masked, 0))
        fraction = self._expected_fraction().to(mine.dtype)
        return (total * fraction).where(fraction > 0, 0).sum(-1)

    def _expected_fraction(self) -> Float[Tensor, "B S"]:
        if self.reveal == "independent":
            return 1 - self._keep
        return self._shown.double() / self._per_run(self.masked).clamp(min=1)

    def tilted(self, tilt: Float[Tensor, "B L V"]) -> MaskedStep:
        """The step with token laws times ``exp(tilt)``, nats."""
        step = copy.copy(self)
        step.logits = self.logits + tilt.to(self.logits.dtype)
        return step

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
