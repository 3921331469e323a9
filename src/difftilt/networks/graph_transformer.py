r"""A permutation-equivariant transformer over graphs whose tokens are masked.

A state is one row of tokens: how many nodes there are, what each of ``n`` places holds, and the bond of every pair,
:math:`[s, a_1 \dots a_n, e_{12}, e_{13} \dots e_{n-1,n}]`. Nodes ``h``, pairs ``z`` and the whole ``g`` are updated
together; with :math:`\bar x` for layer normalisation, pairs being unordered,

.. math::
    h_i &\leftarrow h_i + W \sum_j \mathrm{softmax}_j\Big( \frac{q_i \cdot k_j}{\sqrt d} (1 + \mu(\bar z_{ij}))
        + \beta(\bar z_{ij}) \Big) v_j + W' \sum_j \bar z_{ij}, \qquad h_i \leftarrow h_i + \mathrm{MLP}(\bar h_i, g) \\
    z_{ij} &\leftarrow z_{ij} + \mathrm{MLP}(\bar z_{ij} + u_i + u_j + p_i \odot p_j + g), \qquad
        u, p = \text{linear in } \bar h                                                                  \qquad (1) \\
    g &\leftarrow g + \mathrm{MLP}(g, \mathrm{mean}_i \bar h_i, \mathrm{mean}_{ij} \bar z_{ij})

**What is known once the size is.** Places beyond it are empty, and so are their pairs: these letters have probability
1, and empty places are left out of (1). Letters that a position cannot hold have probability 0 (logit :math:`-\infty`).

**Structural features**, of what is shown so far (Vignac et al. 2023, section 4: a message-passing network cannot count
cycles or components). Of a node: the sum of its bond orders, jointly with its letter (the valence it has used), its
masked pairs, the masked pairs that leave its component. Of a pair: the distance along shown bonds, and the masked pairs
between the two components: where that is 1, the graph falls apart without a bond. Of the whole: components, cycles,
masked tokens, and how often each letter is there. They are integers of the tokens: no gradient flows through them.

Differs from DiGress in: pairs are kept once, not twice; nodes are told the sum of their pairs; no spectral features; no
time, since the masks say it; and empty places are not computed. The symmetry is that of places within the size.

References:
    Vignac et al. 2023 (DiGress, appendix A: the layers), https://arxiv.org/abs/2209.14734;
    Dwivedi & Bresson 2021 (graph transformer), https://arxiv.org/abs/2012.09699.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from difftilt.core.registry import register
from difftilt.errors import ConfigError
from difftilt.types import Bool, Condition, Float, Int, Tensor

FARTHEST = 7
"""Distances from here on are told apart no more."""
HIGHEST = 8
"""Sums of bond orders likewise."""
COUNTS = (1, 2, 3, 4)
"""Numbers of masked pairs that are told apart, beside their logarithm."""


@register("denoiser", "graph_transformer")
class GraphTransformer(nn.Module):
    """Equation (1) and its heads.

    Args:
        nodes: places ``n``.
        atoms: letters of a place, the first meaning that it is empty.
        bonds: letters of a pair, the first meaning that there is no bond; letter ``k`` has bond order ``k``.
        width: features of a node, a multiple of ``heads``.
        edge_width: features of a pair, and of the whole.
        depth: layers.
        heads: attention heads.

    Raises:
        ConfigError: ``width`` is not a multiple of ``heads``.
    """

    time_free = True
    pairs: Int[Tensor, "2 P"]

    def __init__(
        self,
        nodes: int,
        atoms: int,
        bonds: int = 4,
        width: int = 96,
        edge_width: int = 48,
        depth: int = 5,
        heads: int = 6,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"expected a width that is a multiple of {heads} heads; got {width}; change one of them")
        self.arguments = {
            "nodes": nodes, "atoms": atoms, "bonds": bonds, "width": width, "edge_width": edge_width, "depth": depth,
            "heads": heads,
        }  # fmt: skip
        self.nodes, self.atoms, self.bonds = nodes, atoms, bonds
        self.vocabulary = max(nodes, atoms, bonds)
        self.register_buffer("pairs", torch.triu_indices(nodes, nodes, 1), persistent=False)
        self.size = nn.Embedding(nodes + 1, edge_width)
        self.atom = nn.Embedding(atoms + 1, width)
        self.used = nn.Embedding((atoms + 1) * (HIGHEST + 1), width)
        self.bond = nn.Embedding(bonds + 1, edge_width)
        self.distance = nn.Embedding(FARTHEST + 2, edge_width)
        counted = 1 + len(COUNTS)
        self.of_node, self.of_pair = nn.Linear(2 * counted, width), nn.Linear(counted, edge_width)
        self.of_whole = nn.Linear(3 * counted + 2 + atoms + 1, edge_width)
        self.layers = nn.ModuleList(Layer(width, edge_width, heads) for _ in range(depth))
        self.size_head = _head(edge_width, nodes)
        self.node_head = _head(width, atoms)
        self.pair_head = _head(edge_width, bonds)

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Float[Tensor, "B L V"]:
        """Logits of the token laws; ``x_t`` is ``[B, L]`` tokens or ``[B, L, V + 1]`` relaxed tokens.

        Gradient flows to the weights, and to relaxed tokens through the embeddings.
        """
        relaxed = x_t if x_t.ndim == 3 else None
        tokens = x_t if relaxed is None else x_t.detach().argmax(-1)
        graph = Graph.read(tokens, self)
        nodes = slice(1, 1 + graph.width)
        with torch.no_grad():
            of_node, of_pair, of_whole, used = self._features(graph)
        h = self._embed(self.atom, graph.node, relaxed, nodes) + self.used(used) + self.of_node(of_node)
        rows = graph.row, 1 + self.nodes + graph.column
        z = self._embed(self.bond, graph.bond[graph.row, graph.column], relaxed, rows)
        z = z + self.distance(graph.distance[graph.row, graph.first, graph.second]) + self.of_pair(of_pair)
        g = self._embed(self.size, graph.size, relaxed, 0) + self.of_whole(of_whole)
        for layer in self.layers:
            h, z, g = layer(h, z, g, graph)
        return self._assembled(graph, self.size_head(g), self.node_head(h), self.pair_head(z))

    def _embed(self, table: nn.Embedding, letters: Tensor, relaxed: Tensor | None, at: Any) -> Tensor:
        """Embedding of the letters of a kind, the mask last; letters another kind has are not met."""
        if relaxed is None:
            return table(letters)
        rows = relaxed[:, at] if isinstance(at, int | slice) else relaxed[at]
        own = torch.cat([rows[..., : table.num_embeddings - 1], rows[..., -1:]], dim=-1)
        return own.to(table.weight.dtype) @ table.weight

    def _features(self, graph: Graph) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Structural features of nodes, pairs and the whole, and the index of letter and valence."""
        dtype, present = self.atom.weight.dtype, graph.present.to(self.atom.weight.dtype)
        same, masked = graph.same, graph.masked
        through = same @ masked  # [i, l]: masked pairs between the component of i and node l
        between = (through @ same)[graph.row, graph.first, graph.second]
        between = between * (1 - same[graph.row, graph.first, graph.second])
        leaving = (through * (1 - same)).sum(-1)
        of_node = torch.cat([_counted(masked.sum(-1)), _counted(leaving)], dim=-1)
        bonds = (graph.order > 0).to(dtype).sum((-1, -2)) / 2
        parts = (present / same.sum(-1).clamp(min=1)).sum(-1).round()
        size = present.sum(-1)
        letters = F.one_hot(graph.node, self.atoms + 1).to(dtype) * present[..., None]
        whole = [_counted(parts), _counted(bonds - size + parts), _counted(masked.sum((-1, -2)) / 2)]
        shares = torch.stack([bonds / size, masked.sum((-1, -2)) / (size * (size - 1)).clamp(min=1)], dim=-1)
        of_whole = torch.cat([*whole, shares, letters.sum(1) / 4], dim=-1)
        valence = graph.order.sum(-1).long().clamp(max=HIGHEST)
        return of_node, _counted(between), of_whole, graph.node * (HIGHEST + 1) + valence

    def _assembled(self, graph: Graph, size: Tensor, node: Tensor, pair: Tensor) -> Float[Tensor, "B L V"]:
        """Logits of all positions: those of the network where something may be, certainty where nothing can."""
        batch, n = graph.present.shape[0], self.nodes
        logits = size.new_full((batch, 1 + n + self.pairs.shape[1], self.vocabulary), -torch.inf)
        logits[:, 1:, 0] = 0.0
        unknown = (graph.size == n)[:, None]
        empty = torch.full((self.atoms,), 0.0, device=node.device, dtype=node.dtype)
        empty[0] = -torch.inf  # a place within the size is not empty
        node = torch.where(unknown[..., None], node, node + empty)
        row, place = graph.present.nonzero(as_tuple=True)
        logits[:, 0, :n] = size
        logits[row, 1 + place, : self.atoms] = node[row, place]
        logits[graph.row, 1 + n + graph.column, : self.bonds] = pair
        return logits

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return self.arguments


@dataclass(frozen=True)
class Graph:
    """What is shown of a batch of graphs, cut to places that may be taken; each kind of letters has its mask last."""

    size: Int[Tensor, " B"]
    """Letter of the size."""
    node: Int[Tensor, "B n"]
    """Letters of places."""
    bond: Int[Tensor, "B P"]
    """Letters of all pairs."""
    present: Bool[Tensor, "B n"]
    """Places within the size; all of them where it is masked."""
    row: Int[Tensor, " R"]
    """Graph of each pair of present places."""
    column: Int[Tensor, " R"]
    """Its number among all pairs."""
    first: Int[Tensor, " R"]
    """Its first place."""
    second: Int[Tensor, " R"]
    """Its second place."""
    order: Float[Tensor, "B n n"]
    """Bond orders shown."""
    masked: Float[Tensor, "B n n"]
    """Whether a pair of present places is masked."""
    same: Float[Tensor, "B n n"]
    """Whether two places are joined by shown bonds; 1 on the diagonal."""
    distance: Int[Tensor, "B n n"]
    """Number of shown bonds between two places; ``FARTHEST`` if at least that, one more if there is no way."""

    @property
    def width(self) -> int:
        """Places that are computed: the largest size of the batch."""
        return self.present.shape[1]

    @classmethod
    @torch.no_grad()
    def read(cls, x: Int[Tensor, "B L"], network: GraphTransformer) -> Graph:
        """The graphs of tokens ``x``, which mean what they do to ``network``."""
        nodes, bonds, pairs, mask = network.nodes, network.bonds, network.pairs, network.vocabulary
        size = x[:, 0].where(x[:, 0] < mask, nodes)
        count = (size + 1).clamp(max=nodes)
        n = int(count.max())
        place = torch.arange(n, device=x.device)
        present = place < count[:, None]
        bond = x[:, 1 + nodes :]
        bond = bond.where(bond < mask, bonds)
        node = x[:, 1 : 1 + n]
        node = node.where(node < mask, network.atoms)
        row, column = (pairs[1] < count[:, None]).nonzero(as_tuple=True)
        first, second = pairs[0][column], pairs[1][column]
        letter, one = bond[row, column], torch.eye(n, device=x.device, dtype=network.atom.weight.dtype)

        def square(values: Tensor) -> Float[Tensor, "B n n"]:
            matrix = one.new_zeros(len(x), n, n)
            matrix[row, first, second] = matrix[row, second, first] = values.to(one)
            return matrix

        order, masked = square(letter.where(letter < bonds, 0)), square(letter == bonds)
        near = (order + one).clamp(max=1)
        reached, distance = one.expand(len(x), n, n), torch.zeros_like(order)
        for _ in range(FARTHEST - 1):
            distance = distance + (1 - reached)
            reached = (reached @ near).clamp(max=1)
        distance = distance + (1 - reached)
        same, steps = reached, FARTHEST - 1
        while steps < n - 1:
            same, steps = (same @ same).clamp(max=1), 2 * steps
        distance = (distance + (1 - same)).long()
        return cls(size, node, bond, present, row, column, first, second, order, masked, same, distance)


class Layer(nn.Module):
    """One round of (1).

    Args:
        width: features of a node.
        edge_width: features of a pair and of the whole.
        heads: attention heads.
    """

    def __init__(self, width: int, edge_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.dense_norm, self.pair_norm = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(edge_width)
        self.read, self.write = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias, self.gather = nn.Linear(edge_width, 2 * heads), nn.Linear(edge_width, width)
        self.dense = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.told_node, self.told_pair = nn.Linear(edge_width, width), nn.Linear(edge_width, edge_width)
        self.ends = nn.Linear(width, 2 * edge_width)
        self.pair = nn.Sequential(
            nn.Linear(edge_width, 2 * edge_width), nn.GELU(), nn.Linear(2 * edge_width, edge_width)
        )
        whole = 2 * edge_width + width
        self.whole = nn.Sequential(
            nn.LayerNorm(whole), nn.Linear(whole, 2 * edge_width), nn.GELU(), nn.Linear(2 * edge_width, edge_width)
        )

    def forward(
        self, h: Float[Tensor, "B n D"], z: Float[Tensor, "R E"], g: Float[Tensor, "B E"], graph: Graph
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Updated nodes, pairs and whole."""
        batch, n, _ = h.shape
        size = graph.present.to(h.dtype).sum(-1, keepdim=True)
        normed, pairs = self.norm(h), self.pair_norm(z)
        query, key, value = self.read(normed).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = z.new_zeros(batch, n, n, 2 * self.heads)
        told = self.bias(pairs)
        bias = bias.index_put((graph.row, graph.first, graph.second), told)
        bias = bias.index_put((graph.row, graph.second, graph.first), told)
        scale, shift = bias.permute(0, 3, 1, 2).chunk(2, dim=1)
        score = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5 * (1 + scale) + shift
        score = score.masked_fill(~graph.present[:, None, None, :], -torch.inf)
        mixed = (score.softmax(-1) @ value).transpose(1, 2).flatten(2)
        place = graph.row * n
        total = z.new_zeros(batch * n, z.shape[-1])
        total = total.index_add(0, place + graph.first, pairs).index_add(0, place + graph.second, pairs)
        mean = total.view(batch, n, -1) / (size[..., None] - 1).clamp(min=1)
        h = h + self.write(mixed) + self.gather(mean)
        h = h + self.dense(self.dense_norm(h) + self.told_node(g)[:, None])

        sums, products = self.ends(self.dense_norm(h)).flatten(0, 1).chunk(2, dim=-1)
        first, second = place + graph.first, place + graph.second
        met = sums[first] + sums[second] + products[first] * products[second]
        z = z + self.pair(pairs + met + self.told_pair(g)[graph.row])

        here = (h * graph.present[..., None]).sum(1) / size
        there = mean.sum(1) / size
        g = g + self.whole(torch.cat([g, here, there], dim=-1))
        return h, z, g


def _head(width: int, letters: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, letters))


def _counted(count: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape C"]:
    """A number as its logarithm and whether it is each of :data:`COUNTS`."""
    return torch.stack([torch.log1p(count.clamp(min=0)), *((count == k).to(count.dtype) for k in COUNTS)], dim=-1)
