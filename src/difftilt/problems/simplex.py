r"""Simplex diffusion of a few letters, judged by the law of its decoded designs.

Positions of the pretrained chain are independent: its denoiser is the posterior of a product law
(:mod:`difftilt.problems.stick_posterior`). So what it decodes to, from any state, is known by quadrature
(:mod:`difftilt.problems.stick_plane`): with :math:`h_k^i` the chances of the last letters,

.. math::
    p_{pre}(x_0) &= \prod_i E_{prior}\, h_0^i(x_0^i \mid u), \qquad p^* \propto p_{pre}\, e^{r/\alpha}     \qquad (1) \\
    v_k(u) &= \alpha \log \sum_{x_0} e^{r(x_0)/\alpha} \prod_i h_k^i(x_0^i \mid u_i)                    \qquad (2)

A tuned policy couples the positions; its law is that of ``draws`` designs, always with the same noise, and KL is told
without the bias of a histogram, :math:`(C - 1) / 2N` for ``C`` cells and ``N`` draws. Noise tells next to nothing of
the design: the law that tuning aims at from the fixed prior, and the tilted law, are taken as one.

Steps keep their variances, so that the soft-optimal kernels are not in the class, and tuned policies miss the tilted
law by :math:`O(1/K)`: the most by those that maximise the objective, which save on the tilt.
"""

from __future__ import annotations

from functools import cached_property, partial

import torch

from difftilt.core.policy import Policy
from difftilt.core.reward import Reward, score
from difftilt.core.sticks import break_sticks, sticks_of
from difftilt.core.trajectory import sample_states
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.problems.exact_value import FunctionValue
from difftilt.problems.problem import Histogram, TiltedLaw
from difftilt.problems.stick_plane import INSIDE, OUTSIDE, ends, letters, nodes
from difftilt.problems.stick_posterior import StickPosterior
from difftilt.problems.tilted import kl_divergence
from difftilt.processes.simplex import Simplex
from difftilt.types import Float, Int, Tensor

LETTERS = 3
DRAWS = 20_000
"""Designs whose law is told by :meth:`SimplexProblem.kl` and :meth:`SimplexProblem.mean_reward`."""
BATCH = 10_000


class SimplexProblem(TiltedLaw):
    """A policy over simplex diffusion of three letters, a reward and a temperature, with exact answers.

    Args:
        pretrained: :math:`p_{pre}`, frozen by the caller; each position read alone.
        reward: scores designs; every one must be feasible.
        alpha: KL temperature, reward units per nat.

    Raises:
        ConfigError: ``alpha <= 0``.
        UnsupportedError: another process or vocabulary, positions that see each other, or infeasible designs.
    """

    def __init__(self, pretrained: Policy, reward: Reward, *, alpha: float) -> None:
        process = pretrained.process
        if not isinstance(process, Simplex) or process.vocabulary != LETTERS:
            raise UnsupportedError(
                f"expected simplex diffusion of {LETTERS} letters; got {type(process).__name__} over "
                f"{pretrained.event_shape}; positions are solved on the plane of their two sticks"
            )
        if not alpha > 0:
            raise ConfigError(f"expected alpha > 0 (reward units per nat); got {alpha}; a small one is nearly greedy")
        self.pretrained, self.reward, self.alpha, self.process = pretrained, reward, alpha, process
        self.length = pretrained.event_shape[0]
        if not self._alone():
            raise UnsupportedError(
                "expected a denoiser that reads each position alone; got one whose answer at a position changes with "
                "the others; start from the posterior of a product law"
            )
        self.designs = torch.cartesian_prod(*[torch.arange(LETTERS)] * self.length).view(-1, self.length)
        self.table = score(reward, pretrained.codec, sticks_of(self.designs, LETTERS)).value
        if self.table.isnan().any():
            raise UnsupportedError("expected a reward for every design; got NaN for some; use a masked problem")
        self.nodes = nodes()

    @torch.no_grad()
    def _alone(self) -> bool:
        rng = torch.Generator().manual_seed(0)
        state, other = (self.pretrained.prior(8, rng) for _ in range(2))
        time = self.pretrained.grid[self.pretrained.steps // 2].expand(8)
        answer = self.pretrained.denoiser(state, time, None).log_softmax(-1)
        for i in range(self.length):
            mixed = other.clone()
            mixed[:, i] = state[:, i]
            if not torch.allclose(self.pretrained.denoiser(mixed, time, None).log_softmax(-1)[:, i], answer[:, i]):
                return False
        return True

    @cached_property
    def ends(self) -> Float[Tensor, "K n n L V"]:
        """:math:`h` of (1) on the nodes, noisiest first."""
        return ends(self.pretrained, self.nodes)

    @cached_property
    def pretrained_law(self) -> Float[Tensor, " N"]:
        """:math:`p_{pre}(x_0)` of (1)."""
        every_other = nodes(INSIDE // 2 + 1, OUTSIDE // 2)
        coarse = letters(self.process, every_other, ends(self.pretrained, every_other)[0])
        law = (4 * letters(self.process, self.nodes, self.ends[0]) - coarse) / 3
        return law[torch.arange(self.length), self.designs].prod(1)

    @cached_property
    def target_mean_reward(self) -> float:
        """Mean reward under :attr:`tilted`."""
        return (self.tilted @ self.table).item()

    def drawn(self, policy: Policy, draws: int, groups: int = 1) -> Float[Tensor, "G N"]:
        """Shares of the designs in each of ``groups`` of draws; the same noise for every policy."""
        rng, found = torch.Generator().manual_seed(0), []
        for _ in range(groups):
            x_0 = sample_states(policy, draws // groups, rng, batch=BATCH)
            found.append(torch.bincount(self.cells(x_0), minlength=len(self.designs)).double() / len(x_0))
        return torch.stack(found)

    def cells(self, x_0: Float[Tensor, "N L V1"]) -> Int[Tensor, " N"]:
        """Index of the decoded design."""
        place = LETTERS ** torch.arange(self.length - 1, -1, -1)
        return break_sticks(x_0.clamp(0, 1)).argmax(-1) @ place

    def nats(self, law: Float[Tensor, " N"], draws: int) -> float:
        """KL to :attr:`tilted` of a law of which ``law`` are shares of ``draws`` designs, without their bias."""
        return kl_divergence(law, self.tilted) - (len(law) - 1) / (2 * draws)

    def kl(self, policy: Policy) -> float:
        """KL of the law of designs under ``policy`` to :attr:`tilted`, nats; may be just below 0."""
        return self.nats(self.drawn(policy, DRAWS)[0], DRAWS)

    def mean_reward(self, policy: Policy) -> float:
        """Mean reward under ``policy``."""
        return (self.drawn(policy, DRAWS)[0] @ self.table).item()

    @cached_property
    def reached(self) -> Policy:
        """A policy of the class near the tilted law: its posterior."""
        law = self.tilted.view([LETTERS] * self.length)
        policy = self.pretrained.frozen_copy()
        policy.denoiser = StickPosterior.of(law, policy.grid, self.process)
        return policy.requires_grad_(False)

    @cached_property
    def class_kl(self) -> float:
        """KL of :attr:`reached` to the tilted law, nats: the class comes as near, or nearer."""
        return max(self.kl(self.reached), 0.0)

    def value(self) -> FunctionValue:
        """(2) at any state, linear between the nodes; at the end the reward. Gradient flows before the end."""
        steps = [partial(self._value_before, k) for k in range(self.pretrained.steps)]
        return FunctionValue(self.pretrained.grid, [*steps, lambda x_0: self.table[self.cells(x_0)]])

    def _value_before(self, k: int, x_t: Float[Tensor, "B L V1"]) -> Float[Tensor, " B"]:
        u, x = x_t.double(), self.nodes
        left = (torch.searchsorted(x, u.detach().contiguous()) - 1).clamp(0, len(x) - 2)
        share = ((u - x[left]) / (x[left + 1] - x[left])).clamp(0, 1)
        law = u.new_zeros(())
        for corner in torch.cartesian_prod(torch.arange(2), torch.arange(2)):
            weight = torch.where(corner == 1, share, 1 - share).prod(-1, keepdim=True)
            one, other = (left + corner).unbind(-1)
            law = law + weight * self.ends[k, one, other, torch.arange(self.length)]
        log_law = law.clamp(min=torch.finfo(law.dtype).tiny).log()
        chances = sum(log_law[:, i, self.designs[:, i]] for i in range(self.length))
        return self.alpha * (chances + self.table / self.alpha).logsumexp(1)

    def tunable(self) -> Policy:
        """A copy of the pretrained policy, with gradients."""
        return self.pretrained.frozen_copy().requires_grad_(True)

    def law_of(self, x_0: Tensor, log_weight: Float[Tensor, " N"], *, fixed_prior: bool = False) -> Histogram:
        """Finished states against :attr:`tilted`, design by design."""
        return Histogram.count(self.cells(x_0), log_weight, self.tilted)
