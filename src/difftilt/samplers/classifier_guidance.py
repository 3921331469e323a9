r"""Classifier guidance: each step leans towards larger soft values, along their gradient.

Gaussian steps :math:`N(\mu, \sigma^2)` with full noise (DDPM, DDIM with ``eta = 1``, memoryless flows, simplex steps
with their std of each stick): the soft-optimal kernel (theory 5) with :math:`v_s` replaced by its tangent at the mean,

.. math:: \mu \leftarrow \mu + \frac{\sigma^2}{\alpha} \nabla v_s(\mu)                                 \qquad (1)

whose law misses (2)* by O(1/K). With less noise (``eta < 1``, other flows, ODEs) a shift of the mean would do too
little or nothing; there the score is tilted, :math:`\nabla \log p^*_t = \nabla \log p_t + \nabla v_t / \alpha`
(theory 6), that is

.. math:: \hat x_0 \leftarrow \hat x_0 + \frac{\sigma_t^2}{\alpha_t \alpha} \nabla v_t(x_t)              \qquad (2)

and the step is the process's own. (2) asks for values given the *noising* law, :math:`E_q[e^{r/\alpha} | x_t]`, as of a
full-noise chain; it reaches (2) of the theory, prior included, as K grows.

Tokens: the logits of each masked position ``i`` are tilted by the values of the states with one letter more,

.. math:: \ell_i(a) \leftarrow \ell_i(a) + v_s(x_{i \leftarrow a}) / \alpha                              \qquad (3)

- ``tokens="exact"`` evaluates them, :math:`m V` values a state, for any value. Defined where a step shows one token:
  with exact values it is the best policy in the class, and the soft-optimal one if the denoiser's laws agree in every
  order.
- ``tokens="first_order"`` reads them off one gradient at the relaxed one-hot state: a guess, cheap, for differentiable
  values. Positions shown together are tilted apart. So are those of uniform diffusion, whose every step may change all:
  there the laws of :math:`x_s` are tilted, and only this way.

At noiseless steps (1) moves nothing. Designs are not weighted: with anything but exact values no law is claimed. As the
``proposal`` of :class:`~difftilt.samplers.smc.SMC` a :class:`GuidedPolicy` is corrected, and the law is exact.

References:
    Dhariwal and Nichol 2021 (algorithms 1 and 2: (1), (2)), https://arxiv.org/abs/2105.05233; Vignac et al. 2023
    (DiGress, first-order guidance of tokens), https://arxiv.org/abs/2209.14734; Nisonoff et al. 2024,
    https://arxiv.org/abs/2406.01572.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from difftilt.core.algorithm import Weighted
from difftilt.core.conditions import rows_of
from difftilt.core.gaussian_step import GaussianStep, GaussianSteps, per_row
from difftilt.core.policy import Policy
from difftilt.core.reward import Reward, score, under
from difftilt.core.trajectory import rollout, sample_states
from difftilt.core.transition import Transition
from difftilt.core.value import Value
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.processes.masked import Masked, MaskedStep
from difftilt.processes.simplex import Simplex, SimplexStep
from difftilt.processes.uniform import Uniform, UniformStep
from difftilt.samplers.steering import ROWS, check_alpha, check_designs, unweighted
from difftilt.types import Condition, Float, Tensor
from difftilt.values.plug_in import default_value

TOKENS = ("first_order", "exact")


@dataclass(frozen=True, kw_only=True)
class ClassifierGuidance:
    """Settings of classifier guidance; see the module for the method."""

    alpha: float = 0.1
    """KL temperature, reward units per nat; positive. Its inverse is what others call the guidance scale."""
    tokens: str = "first_order"
    """``"first_order"`` or ``"exact"``: how (3) is found; no matter for Gaussian processes."""

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if self.tokens not in TOKENS:
            raise ConfigError(f"expected tokens to be one of {', '.join(TOKENS)}; got '{self.tokens}'; correct it")

    def __call__(
        self,
        policy: Policy,
        reward: Reward,
        n: int,
        rng: torch.Generator,
        *,
        cond: Condition | None = None,
        value: Value | None = None,
        paths: bool = False,
    ) -> Weighted:
        """``n`` unweighted designs (``-inf`` where infeasible), no estimate of log Z."""
        check_designs(n)
        if value is None:
            value = default_value(policy, reward, rng, alpha=self.alpha, cond=cond)
        guided = GuidedPolicy(policy, value, alpha=self.alpha, tokens=self.tokens)
        states = rollout(guided, n, rng, cond=cond).states if paths else sample_states(guided, n, rng, cond=cond)[None]
        feasible = score(under(reward, cond), policy.codec, states[-1]).feasible
        return Weighted(states[-1], unweighted(feasible), None, states if paths else None)


class GuidedPolicy(Policy):
    """A policy whose steps are guided; it shares the network of the one it guides.

    Args:
        policy: p_pre.
        value: soft value; differentiable unless ``tokens="exact"``.
        alpha: KL temperature, reward units per nat; positive.
        tokens: see the module.

    Raises:
        UnsupportedError: guidance is not defined for the process.
    """

    def __init__(self, policy: Policy, value: Value, *, alpha: float, tokens: str = "first_order") -> None:
        if not isinstance(policy.process, Masked | Uniform | Simplex | GaussianSteps):
            raise UnsupportedError(
                f"expected a process of this library; got {type(policy.process).__name__}, whose steps have no known "
                "guided form; use smc or value_weighted"
            )
        if isinstance(policy.process, Uniform) and tokens == "exact":
            raise UnsupportedError(
                'expected steps that show one token, for tokens="exact"; got uniform diffusion, whose every step may '
                'change all; use tokens="first_order", or smc'
            )
        super().__init__(
            policy.denoiser, policy.process, policy.codec, policy.event_shape, grid=policy.grid.cpu(),
            fixed=policy.fixed, card=policy.card,
        )  # fmt: skip
        self.value, self.alpha, self.tokens = value, alpha, tokens
        self.to(policy.device)

    at_once = False  # the guidance of a step is seen at its own state

    def step(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition | None = None) -> Transition:
        """The guided law of :math:`x_s`."""
        if isinstance(self.process, GaussianSteps) and not self.process.full_noise:
            return self._tilted_score(self.process, x_t, t, s, cond)
        law = super().step(x_t, t, s, cond)
        if isinstance(law, GaussianStep | SimplexStep):
            if not law.has_density:
                return law
            pull = gradient(self.value, law.mean, s, cond) / self.alpha
            std = law.std if isinstance(law, SimplexStep) else per_row(law.std, pull)
            return type(law)(law.mean + std.square() * pull, law.std)
        assert isinstance(law, MaskedStep | UniformStep)
        if self.tokens == "exact" and isinstance(law, MaskedStep):
            tilt = self._single_site(law, x_t, s, cond)
        else:
            like = law.logits if isinstance(law, MaskedStep) else law.log_law
            one_hot = F.one_hot(x_t, self.process.vocabulary + 1).to(like.dtype)
            tilt = gradient(self.value, one_hot, s, cond)[..., :-1] / self.alpha
        return law.tilted(tilt)

    def _tilted_score(
        self, process: GaussianSteps, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition | None
    ) -> Transition:
        """Equation (2), as a change of the prediction, in which the estimate of ``x_0`` is linear.

        Where no signal is left (a flow at ``t = 1``) nothing is to be learnt of the design, and nothing is shifted.
        """
        times = t.expand(len(x_t))
        alpha_t, sigma_t = (scale.view(-1, *(1,) * (x_t.ndim - 1)) for scale in process.schedule.scales(times))
        unit = torch.ones_like(alpha_t)
        per_unit = process.denoised(unit, torch.zeros_like(unit), times)
        pull = gradient(self.value, x_t, t, cond) / self.alpha
        scale = (sigma_t.square() / (alpha_t * per_unit)).where(alpha_t > 0, 0.0)
        shift = scale.to(pull.dtype) * pull
        return process.transition(self.denoiser(x_t, times, cond) + shift, x_t, t, s)

    @torch.no_grad()
    def _single_site(self, law: MaskedStep, x_t: Tensor, s: Tensor, cond: Condition | None) -> Float[Tensor, "B L V"]:
        """Equation (3) at every masked position; 0 elsewhere, and where no letter leads to a feasible design."""
        if law.reveal != "count" or int(law.shown.max()) > 1:
            raise UnsupportedError(
                "expected steps that show one token, where moves are single-site; got a step that may show several; "
                'use reveal="count" with as many steps as tokens, or tokens="first_order"'
            )
        letters = law.logits.shape[-1]
        row, place = law.masked.nonzero(as_tuple=True)
        tilt = torch.zeros(law.logits.shape, dtype=torch.float64, device=x_t.device)
        for part in torch.arange(len(row), device=x_t.device).split(max(1, ROWS // letters)):
            rows, places = row[part], place[part]
            x_s = x_t[rows].repeat_interleave(letters, 0)
            every = torch.arange(letters, device=x_t.device).repeat(len(part))
            x_s[torch.arange(len(x_s), device=x_t.device), places.repeat_interleave(letters)] = every
            times = s.expand(len(x_t))[rows].repeat_interleave(letters)
            after = self.value(x_s, times, rows_of(cond, rows, letters)).view(-1, letters) / self.alpha
            tilt[rows, places] = after.where((after > -torch.inf).any(1, keepdim=True), 0)
        return tilt


def gradient(
    value: Callable[[Tensor, Tensor, Condition | None], Tensor], x: Tensor, t: Tensor, cond: Condition | None
) -> Tensor:
    """Gradient of the values of a batch of states with respect to each, outside any other graph.

    Raises:
        UnsupportedError: the value is not differentiable.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        total = value(x, t, cond).sum()
        if not total.requires_grad:
            raise UnsupportedError(
                f"expected a differentiable value; got {type(value).__name__}, through which no gradient flows; use a "
                'plug-in or regressed value, or tokens="exact"'
            )
        return torch.autograd.grad(total, x)[0]
