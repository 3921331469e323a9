r"""What letter a position of a simplex chain ends with, by quadrature on the plane of its two sticks.

For three letters and a denoiser that reads each position alone, the state of a position is a point :math:`u` of the
plane, and each step two independent Gaussians with mean and std :math:`\mu_k(u), \sigma_k(u)`
(:mod:`difftilt.processes.simplex`). With :math:`h_k(c \mid u)` the chance to end with letter ``c`` from ``u`` at step
``k``,

.. math::
    h_k(c \mid u) &= \sum_{ab} w_a(u)\, w_b(u)\, h_{k+1}(c \mid u_a, u_b), \qquad
        p_{pre}(c) = E_{prior}\, h_0(c \mid u)                                                        \qquad (1) \\
    w_a &= E[\text{hat}_a(Y)] = D_{a-1} - D_a, \quad
        D_a = \frac{G(u_a) - G(u_{a+1})}{u_{a+1} - u_a}, \quad G(z) = E (Y - z)^+                     \qquad (2)

so that functions that are linear between the nodes are integrated exactly, however narrow the step. The last step
meets argmax decoding, which is not continuous: letter 0 where :math:`u_0 > m / (1 + m)`,
:math:`m = \max(u_1, 1 - u_1)`; of the others letter 1 where :math:`u_1 > 1/2`:

.. math:: h_{K-1}(0 \mid u) = E_{u_1'} \Phi_0(u_1'), \qquad
    h_{K-1}(1 \mid u) = E_{u_1'} 1[u_1' > \tfrac12] (1 - \Phi_0(u_1'))                                  \qquad (3)

with :math:`\Phi_0(u_1')` the chance of letter 0 given the second stick, in closed form.

**Accuracy.** The error falls as the square of the spacing of the nodes, so that :math:`p_{pre}` is extrapolated from
two spacings (Richardson). States beyond the nodes count as at the last one.
"""

from __future__ import annotations

import math

import torch

from difftilt.core.policy import Policy
from difftilt.processes.simplex import Simplex, SimplexStep
from difftilt.types import Float, Tensor

INSIDE, OUTSIDE, REACH = 49, 8, 1.0
"""Nodes on [0, 1], equally spaced in the arcsine of the root; nodes on either side, and how far they go."""


def nodes(inside: int = INSIDE, outside: int = OUTSIDE, reach: float = REACH) -> Float[Tensor, " n"]:
    """Nodes of each stick, 0, 1/2 and 1 among them; denser toward 0 and 1."""
    middle = torch.linspace(0, math.pi / 2, inside, dtype=torch.float64).sin().square()
    beyond = reach * torch.linspace(0, 1, outside + 1, dtype=torch.float64)[1:].square()
    return torch.cat([-beyond.flip(0), middle, 1 + beyond])


@torch.no_grad()
def ends(policy: Policy, x: Float[Tensor, " n"]) -> Float[Tensor, "K n n L V"]:
    """Equation (1): chances of the last letter of each position, from every step and pair of nodes."""
    plane = torch.cartesian_prod(x, x)
    states = plane[:, None].expand(-1, *policy.event_shape)
    found: list[Tensor] = []
    for k in reversed(range(policy.steps)):
        law = policy.step(states, policy.grid[k], policy.grid[k + 1])
        assert isinstance(law, SimplexStep)
        parts = []
        for i in range(policy.event_shape[0]):
            (mean, other), (std, wide) = law.mean[:, i].T, law.std[:, i].T
            second = above(other, wide, x)
            if k == policy.steps - 1:
                first, rest = _decode(mean, std, _chance(other, wide, x[len(x) // 2 :]), second, x)
            else:
                after = found[-1][:, :, i, :2]
                both = (weights(above(mean, std, x)) @ after.flatten(1)).unflatten(1, (len(x), 2))
                first, rest = torch.einsum("mbc,mb->cm", both, weights(second))
            parts.append(torch.stack([first, rest, 1 - first - rest], 1))
        found.append(torch.stack(parts, 1).unflatten(0, (len(x), len(x))))
    return torch.stack(found[::-1])


def above(mean: Float[Tensor, " m"], std: Float[Tensor, " m"], x: Float[Tensor, " n"]) -> Float[Tensor, "m n1"]:
    """:math:`D` of (2) between neighbouring nodes, for a Gaussian."""
    z = (mean[:, None] - x) / std[:, None]
    over = std[:, None] * (torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi) + z * torch.special.ndtr(z))
    return -over.diff(dim=1) / x.diff()


def above_stationary(b: float, x: Float[Tensor, " n"]) -> Float[Tensor, "1 n1"]:
    """:math:`D` of (2) for Beta(1, b)."""
    within = x.clamp(0, 1)
    over = (1 - within) ** (b + 1) / (b + 1) + (within - x).clamp(min=0)
    return -over.diff()[None] / x.diff()


def weights(above: Float[Tensor, "m n1"], mass: Float[Tensor, " m"] | None = None) -> Float[Tensor, "m n"]:
    """:math:`w` of (2); ``mass`` is the probability of lying beyond the first node, where that counts for nothing."""
    first = torch.ones_like(above[:, 0]) if mass is None else mass
    return -torch.cat([first[:, None], above, torch.zeros_like(first)[:, None]], 1).diff(dim=1)


def _chance(mean: Float[Tensor, " m"], std: Float[Tensor, " m"], x: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
    return torch.special.ndtr((mean - x[0]) / std)


def _decode(
    mean: Float[Tensor, " m"],
    std: Float[Tensor, " m"],
    upper: Float[Tensor, " m"],
    second: Float[Tensor, "m n1"],
    x: Float[Tensor, " n"],
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Equation (3): chances of letters 0 and 1."""
    inside, half = x.clamp(0, 1), len(x) // 2
    most = torch.maximum(inside, 1 - inside)
    zero = torch.special.ndtr((mean[:, None] - most / (1 + most)) / std[:, None])
    first = (weights(second) * zero).sum(1)
    return first, (weights(second[:, half:], upper) * (1 - zero[:, half:])).sum(1)


def letters(process: Simplex, x: Float[Tensor, " n"], first: Float[Tensor, "n n L V"]) -> Float[Tensor, "L V"]:
    """The law of each position's letter, from :func:`ends` of the first step."""
    one, other = (weights(above_stationary(b, x))[0] for b in process.b.tolist())
    return torch.einsum("a,b,ablv->lv", one, other, first)
