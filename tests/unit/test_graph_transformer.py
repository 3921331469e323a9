"""The graph transformer: its symmetry, what it is certain of, and the structure it counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from difftilt.core.registry import construct, describe
from difftilt.errors import ConfigError
from difftilt.networks.graph_transformer import FARTHEST, Graph, GraphTransformer
from difftilt.rng import seeded_initialisation

NODES, ATOMS, BONDS = 6, 4, 4
PAIRS = torch.triu_indices(NODES, NODES, 1)
LENGTH = 1 + NODES + PAIRS.shape[1]


def network(**changes) -> GraphTransformer:
    settings = {"nodes": NODES, "atoms": ATOMS, "bonds": BONDS, "width": 24, "edge_width": 16, "depth": 3, "heads": 4}
    with seeded_initialisation(0):
        return GraphTransformer(**(settings | changes)).double().eval()


def states(sizes: list[int], *, hidden: float = 0.4, seed: int = 0) -> torch.Tensor:
    """Graphs of these sizes, some of their atoms and bonds masked."""
    rng = torch.Generator().manual_seed(seed)
    size = torch.tensor(sizes)[:, None]
    atoms = torch.randint(1, ATOMS, (len(sizes), NODES), generator=rng) * (torch.arange(NODES) < size)
    drawn = torch.randint(1, BONDS, (len(sizes), PAIRS.shape[1]), generator=rng)
    bonds = drawn * (torch.rand(drawn.shape, generator=rng) < 0.4) * (PAIRS[1] < size)
    x = torch.cat([size - 1, atoms, bonds], dim=1)
    masked = torch.rand(x.shape, generator=rng) < hidden
    masked[:, 0] = False
    return x.masked_fill(masked, network().vocabulary)


def permuted(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """The same graphs, or their logits, with place ``i`` holding what was at ``order[i]``."""
    pairs = x[:, 1 + NODES :]
    square = torch.zeros(len(x), NODES, NODES, *pairs.shape[2:], dtype=x.dtype)
    square[:, PAIRS[0], PAIRS[1]] = square[:, PAIRS[1], PAIRS[0]] = pairs
    square = square[:, order][:, :, order]
    return torch.cat([x[:, :1], x[:, 1 : 1 + NODES][:, order], square[:, PAIRS[0], PAIRS[1]]], dim=1)


@pytest.mark.parametrize("size", [NODES, 4, None], ids=["full", "with empty places", "size masked"])
def test_permuted_places_give_permuted_logits(size):
    x = states([size or NODES] * 16)
    if size is None:
        x[:, 0] = network().vocabulary
    order = torch.cat([torch.tensor([2, 0, 3, 1]), torch.tensor([5, 4] if size != 4 else [4, 5])])
    model, t = network(), torch.ones(16)
    torch.testing.assert_close(model(permuted(x, order), t), permuted(model(x, t), order), rtol=1e-9, atol=1e-9)
    moved = permuted(x, order)
    moved[:, 1] = moved[:, 1].where(moved[:, 1] == model.vocabulary, 1 + moved[:, 1] % (ATOMS - 1))  # another graph
    assert not torch.allclose(model(moved, t), permuted(model(x, t), order), atol=1e-3)


def test_what_the_size_says_is_certain():
    model = network()
    x = states([3, 6, 1, 2])
    law = model(x, torch.ones(4)).softmax(-1)
    assert law.sum(-1).allclose(torch.ones(4, LENGTH, dtype=law.dtype))
    for row, size in enumerate([3, 6, 1, 2]):
        empty = torch.cat([torch.zeros(1, dtype=torch.bool), torch.arange(NODES) >= size, PAIRS[1] >= size])
        assert law[row, empty, 0].eq(1).all()
        assert law[row, 1 : 1 + size, 0].eq(0).all()  # a place within the size is not empty
        assert law[row, 1 : 1 + size, 1:ATOMS].gt(0).all()
        assert law[row, 1 + NODES :][PAIRS[1] < size].gt(0)[:, :BONDS].all()
    assert law[:, 1 : 1 + NODES, ATOMS:].eq(0).all()
    assert law[:, 1 + NODES :, BONDS:].eq(0).all()
    assert law[:, 0, :NODES].gt(0).all()
    x[:, 0] = model.vocabulary
    assert model(x, torch.ones(4)).softmax(-1)[:, 1 : 1 + NODES, :ATOMS].gt(0).all()  # it may be empty after all


def test_a_graph_is_the_same_in_any_batch():
    """Cut to the largest graph of the batch, or not: the same logits."""
    model, x = network(), states([2, 3, 6, 4])
    together = model(x, torch.ones(4))
    for row in range(4):
        torch.testing.assert_close(model(x[row : row + 1], torch.ones(1))[0], together[row], rtol=1e-9, atol=1e-9)


def test_relaxed_tokens_are_read_as_the_tokens_they_are():
    model, x = network(), states([3, 6, 5])
    x[2, 0] = model.vocabulary
    relaxed = F.one_hot(x, model.vocabulary + 1).double().requires_grad_()
    logits = model(relaxed, torch.ones(3))
    torch.testing.assert_close(logits, model(x, torch.ones(3)))
    (gradient,) = torch.autograd.grad(logits.softmax(-1).square().sum(), relaxed)
    assert gradient.isfinite().all()
    assert gradient[1, 1:].abs().sum(-1).gt(0).all()


def test_laws_do_not_depend_on_time():
    model, x = network(), states([3, 6])
    assert model.time_free
    assert torch.equal(model(x, torch.ones(2)), model(x, torch.zeros(2)))


# --- structure, counted a second time -----------------------------------------------------------------------------


def by_hand(x: list[int], size: int) -> dict[str, np.ndarray]:
    """Distances, components and masked pairs of one graph, by plain loops."""
    order, masked = np.zeros((size, size)), np.zeros((size, size))
    for (i, j), letter in zip(PAIRS.T.tolist(), x[1 + NODES :], strict=True):
        if j < size:
            order[i, j] = order[j, i] = letter if letter < BONDS else 0
            masked[i, j] = masked[j, i] = letter >= BONDS
    distance = np.full((size, size), np.inf)
    for start in range(size):
        distance[start, start], queue = 0, [start]
        while queue:
            here = queue.pop(0)
            for other in range(size):
                if order[here, other] and distance[start, other] == np.inf:
                    distance[start, other] = distance[start, here] + 1
                    queue.append(other)
    same = np.isfinite(distance)
    between = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            if not same[i, j]:
                between[i, j] = sum(masked[k, m] for k in range(size) for m in range(size) if same[i, k] and same[j, m])
    leaving = [sum(masked[k, m] for k in range(size) for m in range(size) if same[i, k] and not same[i, m])
               for i in range(size)]  # fmt: skip
    parts = len({tuple(row) for row in same.tolist()})
    return {
        "distance": np.where(np.isfinite(distance), np.minimum(distance, FARTHEST), FARTHEST + 1),
        "between": between, "leaving": np.array(leaving), "masked": masked.sum(1), "valence": order.sum(1),
        "parts": np.array(parts), "cycles": np.array((order > 0).sum() / 2 - size + parts),
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_structural_features_are_what_plain_loops_count(seed):
    sizes = [6, 5, 3, 2, 1, 6, 4]
    model, x = network(), states(sizes, hidden=0.15 * seed, seed=seed)
    graph = Graph.read(x, model)
    of_node, of_pair, of_whole, used = model._features(graph)
    for row, size in enumerate(sizes):
        expected = by_hand(x[row].tolist(), size)
        np.testing.assert_array_equal(graph.distance[row, :size, :size].numpy(), expected["distance"])
        here = graph.row == row
        between = expected["between"][graph.first[here], graph.second[here]]
        np.testing.assert_allclose(of_pair[here, 0].numpy(), np.log1p(between))
        np.testing.assert_array_equal(of_pair[here, 1].numpy(), between == 1)  # a bond there is a must
        np.testing.assert_allclose(of_node[row, :size, 0].numpy(), np.log1p(expected["masked"]))
        np.testing.assert_allclose(of_node[row, :size, 5].numpy(), np.log1p(expected["leaving"]))
        np.testing.assert_allclose(of_whole[row, 0].item(), math.log1p(expected["parts"]))
        np.testing.assert_allclose(of_whole[row, 5].item(), math.log1p(expected["cycles"]))
        np.testing.assert_array_equal(used[row, :size].numpy() % 9, np.minimum(expected["valence"], 8))


def test_far_places_of_a_long_chain_are_joined():
    """20 atoms in a row: farther apart than distances are told, and still one component."""
    nodes = 20
    model = network(nodes=nodes)
    pairs = torch.triu_indices(nodes, nodes, 1)
    x = torch.cat([torch.tensor([nodes - 1]), torch.ones(nodes).long(), (pairs[1] - pairs[0] == 1).long()])[None]
    graph = Graph.read(x, model)
    assert graph.same.eq(1).all()
    assert graph.distance[0, 0].tolist() == [min(d, FARTHEST) for d in range(nodes)]


def test_it_is_described_by_its_arguments():
    model = network()
    again = construct("denoiser", describe(model)).double()
    again.load_state_dict(model.state_dict())
    x = states([3, 6])
    assert torch.equal(again(x, torch.ones(2)), model(x, torch.ones(2)))
    with pytest.raises(ConfigError, match="multiple of 5 heads"):
        network(heads=5)
