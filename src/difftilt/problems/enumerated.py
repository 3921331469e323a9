r"""Exact answers for any policy on a masked token chain, by dynamic programming over partial states.

With ``F`` free positions and ``V`` letters there are :math:`S = (V+1)^F` partial states (each position a letter or
the mask). From a state with ``m`` masked positions one step shows the set ``R`` with probability :math:`\rho_m(|R|)`
(the reveal law, no parameters) and fills it from the token laws :math:`\pi^i(\cdot \mid x_t)` of the network:

.. math::
    P_k(x_s \mid x_t) &= \rho_m(|R|) \prod_{i \in R} \pi^i(x_s^i \mid x_t)                           \qquad (1) \\
    \mu_{k+1}(x_s) &= \sum_{x_t} \mu_k(x_t) P_k(x_s \mid x_t), \quad \mu_0 = 1_{\text{all masked}}   \qquad (2) \\
    KL(\text{path}) &= \sum_k \sum_{x_t} \mu_k(x_t) \frac{E|R|}{m}
        \sum_{i\,\text{masked}} KL(\pi_\theta^i \| \pi_{ref}^i)                                      \qquad (3) \\
    e^{v_t(x_t)/\alpha} &= \sum_{x_s} P_k(x_s \mid x_t)\, e^{v_s(x_s)/\alpha}, \quad v_0 = r         \qquad (4)

Only states that the chain can visit at a step, and only successors of positive reveal probability, are touched: with
one token per step :math:`\sum_m \binom{F}{m} V^{F-m} m V` numbers in all, with independent reveals at most
:math:`(2V+1)^F` per step. Nothing is approximated; sums are float64 (the network's own precision is the limit). The
reveal law is written here a second time, on purpose: the judge does not share the code that it judges.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
import torch.nn.functional as F

from difftilt.core.policy import Policy
from difftilt.core.trajectory import Trajectory, step_log_prob
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.processes.masked import Masked, MaskedStep
from difftilt.types import Condition, Float, Int, Tensor

MOST_STATES, MOST_PATHS = 2_000_000, 1_000_000
NETWORK_BATCH, CHUNK = 8192, 1 << 21  # states per network call; transition probabilities held at once

TokenLaws: TypeAlias = list[dict[int, Tensor]]
"""Of each step, by number of masked positions ``m``: log token laws ``[R, m, V]`` there, of the ``R`` such states."""


@dataclass(frozen=True)
class Block:
    """Transitions of one step from ``R`` states with equally many masked positions to ``C`` successors each."""

    level: int
    """Number of masked positions ``m``."""
    part: slice
    """Which states of that level."""
    index: Int[Tensor, " R"]
    """The states :math:`x_t`, as rows of :attr:`EnumeratedChain.states`."""
    successors: Int[Tensor, "R C"]
    """The states :math:`x_s`, likewise."""
    filling: Int[Tensor, "C m"]
    """What each masked position becomes, the mask included."""
    log_reveal: Float[Tensor, " C"]
    r""":math:`\log \rho_m(|R|)` of each successor, nats."""

    def log_prob(self, laws: dict[int, Tensor]) -> Float[Tensor, "R C"]:
        """Log of equation (1), nats. Gradient flows to the laws."""
        own = F.pad(laws[self.level][self.part], (0, 1))  # staying masked contributes log 1
        if len(self.filling) == own.shape[-1] ** self.level:  # all fillings, in order: an outer sum is much cheaper
            total = own.new_zeros(len(own), 1)
            for j in range(self.level):
                total = (total[:, :, None] + own[:, j, None]).flatten(1)
            return total + self.log_reveal
        log_prob = self.log_reveal.expand(len(self.index), -1)
        for j in range(self.level):
            log_prob = log_prob + own[:, j].index_select(1, self.filling[:, j])
        return log_prob


class EnumeratedChain:
    """The state space and the reveal law that ``policy`` shares with every other policy of its chain.

    Methods take any policy with the same process, grid, length and fixed positions. ``grad=True`` keeps the graph to
    the denoiser's parameters (small chains only: it holds the network's activations on all states).

    Args:
        policy: gives process (:class:`~difftilt.processes.masked.Masked`), grid, length and fixed positions.
        cond: one condition (leading axis 1 in every tensor), used for every state.

    Attributes:
        states: all partial states ``[S, L]`` in lexicographic order, the mask last.
        designs: the ``N`` finished ones ``[N, L]``, likewise; laws of :math:`x_0` are over these.

    Raises:
        UnsupportedError: the process is not masked, or there are more than two million partial states.
    """

    def __init__(self, policy: Policy, *, cond: Condition | None = None) -> None:
        if not isinstance(policy.process, Masked):
            raise UnsupportedError(
                f"expected a policy over the masked process; got {type(policy.process).__name__}; "
                "use a problem of its own kind"
            )
        if policy.process.stages is not None:
            raise UnsupportedError(
                "expected a masked process without stages, whose states are enumerated by how many tokens are masked; "
                "got one with stages; leave them out"
            )
        letters, device = policy.process.vocabulary, policy.device
        fixed = torch.full(policy.event_shape, -1) if policy.fixed is None else policy.fixed
        fixed = fixed.to(device)
        free = (fixed < 0).nonzero()[:, 0]
        count, base = len(free), letters + 1
        if base**count > MOST_STATES:
            raise UnsupportedError(
                f"expected at most {MOST_STATES:,} partial states; got {base}^{count}; use a shorter design"
            )
        self.template, self.cond, self.letters = policy, cond, letters
        self.strides = base ** torch.arange(count - 1, -1, -1, device=device)
        digits = torch.arange(base**count, device=device)[:, None] // self.strides % base
        self.states = fixed.repeat(len(digits), 1)
        self.states[:, free] = digits
        masked = digits == letters
        self.levels = [(masked.sum(-1) == m).nonzero()[:, 0] for m in range(count + 1)]
        self.masked = [masked[rows].nonzero()[:, 1].view(len(rows), m) for m, rows in enumerate(self.levels)]
        self.positions = [free[places] for places in self.masked]
        self.designs = self.states[self.levels[0]]
        self.reveals = reveal_laws(policy.grid.tolist(), count, by_count=policy.process.reveal == "count")
        self.steps = len(self.reveals)
        self._known: dict[tuple[int, tuple[int, ...]], tuple[Tensor, Tensor | None]] = {}

    def laws(self, policy: Policy, *, grad: bool = False) -> TokenLaws:
        """Log token laws of ``policy`` on every state that the chain can visit, nats, float64.

        The network is asked at every step, or once for all if it declares ``time_free = True``.

        Raises:
            ConfigError: ``policy`` runs another chain.
        """
        same = self._signature(policy), self._signature(self.template)
        if same[0] != same[1]:
            raise ConfigError(f"expected the chain {same[1]}; got {same[0]}; make an EnumeratedChain of that policy")
        time_free = getattr(policy.denoiser, "time_free", False) and type(policy).step is Policy.step
        laws: TokenLaws = []
        known: dict[int, Tensor] = {}
        with torch.set_grad_enabled(grad):
            for k, reveal in enumerate(self.reveals):
                known = {m: known[m] if time_free and m in known else self._ask(policy, k, m) for m in reveal}
                laws.append(known)
        return laws

    def _ask(self, policy: Policy, k: int, m: int) -> Float[Tensor, "R m V"]:
        t, s = policy.grid[k], policy.grid[k + 1]
        parts = []
        for rows, places in zip(
            self.levels[m].split(NETWORK_BATCH), self.positions[m].split(NETWORK_BATCH), strict=True
        ):
            if m == 0:
                logits = torch.zeros(len(rows), 0, self.letters, device=rows.device)
            else:
                law = policy.step(self.states[rows], t, s, self._cond(len(rows)))
                assert isinstance(law, MaskedStep)
                logits = law.logits.take_along_dim(places[..., None], 1)
            parts.append(logits.double().log_softmax(-1))
        return torch.cat(parts)

    def _cond(self, n: int) -> Condition | None:
        return self.cond and {name: value.expand(n, *value.shape[1:]) for name, value in self.cond.items()}

    def _signature(self, policy: Policy) -> tuple[object, ...]:
        fixed = None if policy.fixed is None else policy.fixed.tolist()
        return policy.process.config(), policy.event_shape, fixed, policy.grid.tolist()

    def blocks(self, k: int) -> Iterator[Block]:
        """All transitions of step ``k`` from states that the chain can visit, a bounded number at a time."""
        for m, reveal in self.reveals[k].items():
            sizes = tuple(n for n, value in enumerate(reveal) if value > -math.inf)
            filling, successors = self._fillings(m, sizes)
            log_reveal = torch.tensor(reveal, dtype=torch.float64, device=filling.device)
            log_reveal = log_reveal[(filling < self.letters).sum(-1)]
            if successors is not None:
                yield Block(m, slice(None), self.levels[m], successors, filling, log_reveal)
                continue
            size = max(1, CHUNK // len(filling))
            for start in range(0, len(self.levels[m]), size):
                part = slice(start, start + size)
                after = self._successors(m, part, filling)
                yield Block(m, part, self.levels[m][part], after, filling, log_reveal)

    def _fillings(self, m: int, sizes: tuple[int, ...]) -> tuple[Int[Tensor, "C m"], Tensor | None]:
        """Ways to show so many of ``m`` masked positions, and all successors if they fit in one block; kept."""
        if (m, sizes) not in self._known:
            letter = torch.arange(self.letters + 1, device=self.strides.device)
            filling = torch.cartesian_prod(*[letter] * m).view(-1, m) if m else letter.new_zeros(1, 0)
            shown = (filling < self.letters).sum(-1)
            filling = filling[torch.isin(shown, shown.new_tensor(sizes))]
            few = len(filling) * len(self.levels[m]) <= CHUNK
            self._known[m, sizes] = filling, self._successors(m, slice(None), filling) if few else None
        return self._known[m, sizes]

    def _successors(self, m: int, part: slice, filling: Int[Tensor, "C m"]) -> Int[Tensor, "R C"]:
        successors = self.levels[m][part, None].repeat(1, len(filling))
        for j in range(m):
            successors += self.strides[self.masked[m][part, j], None] * (filling[:, j] - self.letters)
        return successors

    def occupancy(self, laws: TokenLaws) -> Float[Tensor, "K1 S"]:
        """Equation (2): the law of the state at each time, noisiest first. Gradient flows to the laws."""
        first = torch.zeros(len(self.states), dtype=torch.float64, device=self.states.device)
        first[-1] = 1.0
        marginals = [first]
        for k in range(self.steps):
            after = torch.zeros_like(first)
            for block in self.blocks(k):
                mass = block.log_prob(laws[k]).exp() * marginals[-1][block.index, None]
                after = after.index_add(0, block.successors.flatten(), mass.flatten())
            marginals.append(after)
        return torch.stack(marginals)

    def marginal(self, policy: Policy, *, grad: bool = False) -> Float[Tensor, " N"]:
        """The law of :math:`x_0` under ``policy``, over :attr:`designs`."""
        with torch.set_grad_enabled(grad):
            return self.occupancy(self.laws(policy, grad=grad))[-1][self.levels[0]]

    def path_kl(self, policy: Policy, reference: Policy, *, grad: bool = False) -> Float[Tensor, ""]:
        """Equation (3), nats: the closed form of the process, weighted by where ``policy`` goes."""
        with torch.set_grad_enabled(grad):
            mine, theirs = self.laws(policy, grad=grad), self.laws(reference, grad=grad)
            total = torch.zeros((), dtype=torch.float64, device=self.states.device)
            for k, occupancy in enumerate(self.occupancy(mine)[:-1]):
                for m, reveal in self.reveals[k].items():
                    p, q = mine[k][m], theirs[k][m]
                    kl = (p.exp() * (p - q).where(p > -math.inf, 0)).sum((1, 2))
                    total = total + expected_fraction(reveal) * occupancy[self.levels[m]] @ kl
            return total

    def soft_values(self, reference: TokenLaws, reward: Float[Tensor, " N"], *, alpha: float) -> Float[Tensor, "K1 S"]:
        """Equation (4), reward units, noisiest time first, of the states that can be visited then; NaN elsewhere.

        Args:
            reference: token laws of the pretrained policy.
            reward: of each design; ``-inf`` where infeasible (weight exactly 0).
            alpha: KL temperature, reward units per nat.
        """
        values = self.spread(reward)[None].repeat(self.steps + 1, 1)
        values[:-1] = math.nan
        for k in reversed(range(self.steps)):
            for block in self.blocks(k):
                log_weight = block.log_prob(reference[k]) + values[k + 1][block.successors] / alpha
                values[k, block.index] = alpha * log_weight.logsumexp(-1)
        return values

    def expected_gain(
        self, laws: TokenLaws, reference: TokenLaws, reward: Float[Tensor, " N"], *, alpha: float
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        r""":math:`P_\theta(F)` and :math:`E_\theta[ 1_F (r(x_0) - \alpha \sum_k l_k) ]` in one backward pass.

        Args:
            laws: of the policy. Gradient flows.
            reference: of the pretrained policy. Gradient flows.
            reward: of each design; NaN where infeasible, which defines ``F``.
            alpha: KL temperature, reward units per nat.
        """
        feasible = ~reward.isnan()
        reach = self.spread(feasible.double(), empty=0.0)
        gain = self.spread(reward.where(feasible, 0), empty=0.0)
        for k in reversed(range(self.steps)):
            earlier_reach, earlier_gain = torch.zeros_like(reach), torch.zeros_like(gain)
            for block in self.blocks(k):
                mine, theirs = block.log_prob(laws[k]), block.log_prob(reference[k])
                log_ratio = (mine - theirs).where(mine > -math.inf, 0)
                after = reach[block.successors]
                payoff = gain[block.successors] - alpha * (log_ratio * after).where(after > 0, 0)
                earlier_reach = earlier_reach.index_add(0, block.index, (mine.exp() * after).sum(-1))
                earlier_gain = earlier_gain.index_add(0, block.index, (mine.exp() * payoff).sum(-1))
            reach, gain = earlier_reach, earlier_gain
        return reach[-1], gain[-1]

    def spread(self, values: Float[Tensor, " N"], *, empty: float = math.nan) -> Float[Tensor, " S"]:
        """Values of the designs as values of all states, ``empty`` at the unfinished ones."""
        spread = torch.full((len(self.states),), empty, dtype=torch.float64, device=self.states.device)
        return spread.index_copy(0, self.levels[0], values.double())

    @torch.no_grad()
    def trajectories(self, policy: Policy, references: Sequence[Policy] = ()) -> Trajectory:
        """Every path of positive probability under ``policy``, as one rollout. Tiny chains only.

        Weight path ``b`` by ``log_prob[:, b].sum().exp()`` and any Monte-Carlo mean over rollouts becomes exact.

        Raises:
            UnsupportedError: more than a million paths.
        """
        laws = self.laws(policy)
        paths = torch.full((1, 1), len(self.states) - 1, device=self.states.device)
        for k in range(self.steps):
            longer = []
            for block in self.blocks(k):
                row_of = torch.full((len(self.states),), -1, device=self.states.device)
                row_of[block.index] = torch.arange(len(block.index), device=self.states.device)
                row = row_of[paths[-1]]
                before, row = paths[:, row >= 0], row[row >= 0]
                width = block.successors.shape[1]
                if len(row) * width > MOST_PATHS:
                    raise UnsupportedError(
                        f"expected at most {MOST_PATHS:,} paths; got more by step {k}; use fewer tokens or letters"
                    )
                possible = (block.log_prob(laws[k])[row] > -math.inf).flatten()
                after = torch.cat([before.repeat_interleave(width, 1), block.successors[row].view(1, -1)])
                longer.append(after[:, possible])
            paths = torch.cat(longer, dim=1)
        states, times = self.states[paths], policy.grid
        cond = self._cond(paths.shape[1])
        scores = [
            [step_log_prob(p, x_t, x_s, t, s, cond).double() for p in (policy, *references)]
            for x_t, x_s, t, s in zip(states[:-1], states[1:], times[:-1], times[1:], strict=True)
        ]
        table = torch.stack([torch.stack(row) for row in scores], dim=1)
        return Trajectory(states, table[0], table[1:], times, cond)


def reveal_laws(grid: Sequence[float], free: int, *, by_count: bool) -> list[dict[int, list[float]]]:
    r"""Of each step, for every number ``m`` of masked positions it may start from: :math:`\log \rho_m`, nats.

    Args:
        grid: decreasing times from 1 to 0.
        free: masked positions at the start.
        by_count: the reveal law "count", else "independent".

    Returns:
        Log-probability of one set, by its size 0 to ``m``; ``-inf`` where impossible.
    """
    laws, levels = [], [free]
    for t, s in pairwise(grid):
        laws.append({m: _reveal_law(m, s / t, by_count) for m in levels})
        levels = sorted({m - n for m, law in laws[-1].items() for n, value in enumerate(law) if value > -math.inf})
    return laws


def _reveal_law(m: int, keep: float, by_count: bool) -> list[float]:
    if by_count:
        shown = m - math.ceil(m * keep - 0.5 - 1e-9)  # the nearest number stays masked; of two, the smaller
        return [-math.log(math.comb(m, n)) if n == shown else -math.inf for n in range(m + 1)]
    return [math.log(keep ** (m - n) * (1 - keep) ** n) if keep or n == m else -math.inf for n in range(m + 1)]


def expected_fraction(reveal: Sequence[float]) -> float:
    """Share of the masked positions that a step shows on average; 0 where none is masked."""
    m = len(reveal) - 1
    return sum(math.comb(m, n) * math.exp(value) * n for n, value in enumerate(reveal)) / m if m else 0.0
