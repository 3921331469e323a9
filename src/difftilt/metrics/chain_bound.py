r"""A bound on the negative log-likelihood of a design under a chain of Gaussian steps.

For the chain :math:`p(x_1) \prod_k p(x_{s}|x_{t})` and the noising law ``q``, with the posterior
:math:`q(x_s|x_t,x_0)` of the noising law (DDPM's, whatever the noise of the chain),

.. math::
    -\log p(x_0) \le KL(q(x_1|x_0) \,\|\, p(x_1))
    + \sum_{k:\, s > 0} E_{q(x_t|x_0)} KL(q(x_s|x_t,x_0) \,\|\, p(x_s|x_t))
    + E_{q(x_t|x_0)} [-\log p(x_0|x_t)]                                                                  \qquad (1)

- **tight** where ``p`` is the reversal of ``q``: the steps of the chain have the law of the noising process run
  backwards. Else too large by :math:`KL(q(path|x_0) \| p(path|x_0))`.
- **levels**: an image is the rounding of a state to 8 bits, so that its probability is that of the state to fall
  between the rounding's limits, which for the ends of the scale are infinite; the last term of (1) is then
  :math:`-\log P(x_0 \pm \tfrac12 level|x_t)`. It is a probability, so that the bound is at least 0 up to its Monte
  Carlo error, and divided by ``d log 2`` it is the bits per dimension of the literature.
- **steps**: (1) is of the chain that is given. A sampler of 20 steps has a narrow last step, and so a likelihood that
  says little of its designs. :func:`likelihood_chain` is the same network run in many steps: what a model's likelihood
  means, as for tokens that are revealed one by one.

Monte Carlo: one :math:`x_t` for each term; of the sum, a stratified draw of steps where not all are asked for.
Either way (1) is estimated without bias.

Differs from the paper in: the last step's std is the chain's (``sigma_min``), and not of the noise schedule.

References:
    Ho et al. 2020 (eq. 5 and 13), https://arxiv.org/abs/2006.11239; Kingma et al. 2021 (eq. 11),
    https://arxiv.org/abs/2107.00630.
"""

from __future__ import annotations

import math

import torch

from difftilt.core.codec import ImageCodec
from difftilt.core.gaussian_step import GaussianStep, GaussianSteps, per_row
from difftilt.core.policy import Policy
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.types import Float, Int, Tensor

STEPS = 500
"""Of the chain whose likelihood is reported: the change of its noise from step to step is below a level of 8 bits."""
DRAWS = 16
"""Steps of it that are looked at for each design."""
LEVEL = 1 / 127.5
"""One level of 8 bits, in units of a state from -1 to 1."""


def has_bound(policy: Policy) -> bool:
    """Whether (1) is finite and of the design: pixels, and Gaussian steps that all have noise."""
    return (
        isinstance(policy.process, GaussianSteps)
        and type(policy.codec) is ImageCodec  # pixels: of latents, one has no likelihood of the image
        and not bool(policy.silent.any())
    )


def likelihood_chain(policy: Policy, steps: int = STEPS) -> Policy:
    """The same network run in ``steps`` equally spaced steps: the chain whose likelihood stands for the model's."""
    return policy.with_steps(steps)


@torch.no_grad()
def chain_bounds(
    policy: Policy,
    x_0: Float[Tensor, "N *event"],
    rng: torch.Generator,
    *,
    levels: bool = False,
    draws: int | None = None,
    batch: int = 256,
) -> Float[Tensor, " N"]:
    r"""An unbiased estimate of (1) for each design, nats, summed over the event, float64.

    Args:
        policy: the chain; its network is used as it is (put it in eval mode). Conditions are not supported.
        x_0: finished states.
        rng: noise source, on the policy's device.
        levels: whether designs are the roundings of states to 8 bits; ``x_0`` is rounded first.
        draws: steps that stand for the sum, beside the last, which always counts; all when not given.
        batch: states per network call.

    Raises:
        ConfigError: no step is drawn.
        UnsupportedError: the process is not Gaussian, or a step of the chain has no density.
    """
    process = policy.process
    if not isinstance(process, GaussianSteps):
        raise UnsupportedError(
            f"expected Gaussian steps; got {type(process).__name__}; for tokens use training.pretrain.denoising_bounds"
        )
    if bool(policy.silent.any()):
        raise UnsupportedError(
            f"expected steps that all have a density; got {int(policy.silent.sum())} of {policy.steps} without; set "
            "sigma_min > 0, and eta = 1"
        )
    if draws is not None and draws < 1:
        raise ConfigError(f"expected at least 1 step to be drawn; got {draws}; raise draws")
    if levels:
        x_0 = ((x_0 + 1) / LEVEL).round().clamp(0, 255) * LEVEL - 1
    return torch.cat([_bounds(policy, process, part, rng, levels, draws) for part in x_0.split(batch)])


def _bounds(
    policy: Policy, process: GaussianSteps, x_0: Tensor, rng: torch.Generator, levels: bool, draws: int | None
) -> Float[Tensor, " B"]:
    rows, inner = len(x_0), policy.steps - 1
    one = policy.grid[0]
    alpha, sigma = process.schedule.scales(one)
    noised = GaussianStep(alpha.to(x_0) * x_0, sigma)
    total = noised.kl(GaussianStep(torch.zeros_like(x_0), torch.as_tensor(process.prior_std, device=x_0.device)))
    if inner:
        chosen = _strata(inner, inner if draws is None else min(draws, inner), rows, rng)
        for k in chosen:
            t, s = policy.grid[k], policy.grid[k + 1]
            x_t = process.corrupt(x_0, t, rng)
            law = policy.step(x_t, t, s)
            assert isinstance(law, GaussianStep)
            total = total + inner / len(chosen) * posterior(process, x_0, x_t, t, s).kl(law)
    t, s = policy.grid[inner], policy.grid[inner + 1]
    last = policy.step(process.corrupt(x_0, t.expand(rows), rng), t, s)
    assert isinstance(last, GaussianStep)
    return total - (level_log_prob(last, x_0) if levels else last.log_prob(x_0))


def _strata(total: int, draws: int, rows: int, rng: torch.Generator) -> Int[Tensor, "n B"]:
    """``draws`` of ``total`` numbers for each row, one in each of as many equal parts; all of them in order at most."""
    parts = torch.arange(draws, dtype=torch.float64, device=rng.device)[:, None]
    within = 0.5 if draws == total else torch.rand((draws, rows), generator=rng, device=rng.device, dtype=torch.float64)
    return ((parts + within) * total / draws).long().clamp(max=total - 1).expand(draws, rows)


def posterior(process: GaussianSteps, x_0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> GaussianStep:
    r""":math:`q(x_s | x_t, x_0)` of the noising law, for ``s > 0``."""
    (alpha_t, sigma_t), (alpha, sigma) = process.schedule.scales(t), process.schedule.scales(s)
    kept = alpha_t * sigma / (alpha * sigma_t)
    noise = (x_t - per_row(alpha_t, x_0) * x_0) / per_row(sigma_t, x_0)
    mean = per_row(alpha, x_0) * x_0 + per_row(sigma * kept, x_0) * noise
    return GaussianStep(mean, sigma * (1 - kept.square()).sqrt())


def level_log_prob(law: GaussianStep, x_0: Float[Tensor, "B *event"]) -> Float[Tensor, " B"]:
    """Log-probability that a draw of ``law`` is rounded to ``x_0``, which is on levels; nats, event-summed."""
    mean, std, x = law.mean.double(), per_row(law.std, law.mean.double()), x_0.double()
    low = ((x - LEVEL / 2 - mean) / std).where(x > -1 + LEVEL / 2, -math.inf)
    high = ((x + LEVEL / 2 - mean) / std).where(x < 1 - LEVEL / 2, math.inf)
    right = low > 0  # the upper tail is the lower one of the mirror image, which keeps its digits
    low, high = torch.where(right, -high, low), torch.where(right, -low, high)
    top = torch.special.log_ndtr(high)
    return (top + torch.log1p(-(torch.special.log_ndtr(low) - top).exp())).flatten(1).sum(-1)
