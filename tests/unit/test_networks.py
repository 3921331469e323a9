"""Small networks: shapes, relaxed inputs, saving, and that a network computes the same with and without gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from difftilt.algorithms.ppo import PPO
from difftilt.core.algorithm import Anchor
from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy
from difftilt.core.registry import construct, describe
from difftilt.core.trajectory import rollout
from difftilt.errors import ConfigError
from difftilt.networks import (
    CausalDenoiser,
    ConvDenoiser,
    ConvRegressor,
    RecurrentRegressor,
    ScanRegressor,
    TransformerDenoiser,
)
from difftilt.networks.layers import AttentionBlock, DilatedTower, TokenEmbedding
from difftilt.processes.masked import Masked
from difftilt.rng import seeded_initialisation

DENOISERS: dict[str, Any] = {
    "conv": lambda: ConvDenoiser(4, 12, width=8, kernel=3, dilations=(1, 2), dropout=0.2),
    "transformer": lambda: TransformerDenoiser(4, 12, width=16, depth=2, heads=2),
    "causal_transformer": lambda: CausalDenoiser(4, 12, width=16, depth=2, heads=2),
}
REGRESSORS: dict[str, Any] = {
    "conv": lambda: ConvRegressor(4, 12, width=8, kernel=3, dilations=(1, 2), hidden=8),
    "recurrent": lambda: RecurrentRegressor(4, 12, width=8, kernel=3),
    "scan": lambda: ScanRegressor(4, 12, width=8, kernel=3, hidden=8),
}


def made(make: Any) -> nn.Module:
    with seeded_initialisation(0):
        return make().eval()


def states(n: int = 6, symbols: int = 5) -> torch.Tensor:
    return torch.randint(symbols, (n, 12), generator=torch.Generator().manual_seed(0))


T = torch.full((6,), 0.5)


@pytest.mark.parametrize("name", DENOISERS)
def test_a_denoiser_reads_tokens_and_their_one_hot_alike(name: str) -> None:
    network, x = made(DENOISERS[name]), states()
    hard, soft = network(x, T), network(F.one_hot(x, 5).float(), T)
    assert hard.shape == (6, 12, 4)
    torch.testing.assert_close(hard, soft, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", REGRESSORS)
def test_a_regressor_reads_tokens_and_their_one_hot_alike(name: str) -> None:
    network, x = made(REGRESSORS[name]), states(symbols=4)
    assert network(x).shape == (6,)
    torch.testing.assert_close(network(x), network(F.one_hot(x, 4).float()), rtol=0, atol=1e-5)


def test_a_scan_finds_a_motif_wherever_it_is_and_counts_it() -> None:
    """One filter set by hand to AC; twin: the maximum alone does not tell one site from two."""
    network = made(lambda: ScanRegressor(4, 12, width=1, kernel=3, hidden=1))
    with torch.no_grad():
        network.filters.weight.zero_()
        network.filters.weight[0, 0, 0], network.filters.weight[0, 1, 1] = 1.0, 1.0
        network.filters.bias.fill_(-1.0)
        network.hidden.weight.fill_(1.0), network.hidden.bias.zero_()
        network.head.weight.fill_(1.0), network.head.bias.zero_()
    designs = ["GACGGGGGGGGG", "GGGGGGGACGGG", "GACGGGGACGGG", "GGGGGGGGGGGG", "CAGGGGGGGGGG"]
    tokens = torch.tensor([["ACGT".index(letter) for letter in design] for design in designs])
    sites = torch.tensor([1.0, 1.0, 2.0, 0.0, 0.0])
    torch.testing.assert_close(network(tokens), (sites > 0) + 10 * sites / 12)


@pytest.mark.parametrize("name", DENOISERS)
def test_rows_of_a_batch_do_not_see_one_another_and_positions_do(name: str) -> None:
    network, x = made(DENOISERS[name]), states()
    torch.testing.assert_close(network(x, T)[2:3], network(x[2:3], T[:1]), rtol=0, atol=1e-5)
    other = x.clone()
    other[:, 5] = (other[:, 5] + 1) % 5
    changed = (network(other, T) - network(x, T)).abs().amax(-1)
    assert (changed[:, 6] > 0).all()
    assert (network(x.roll(1, 1), T).roll(-1, 1) - network(x, T)).abs().max() > 1e-3, "positions are told apart"


@pytest.mark.parametrize("name", DENOISERS)
def test_denoisers_do_not_look_at_the_time(name: str) -> None:
    network, x = made(DENOISERS[name]), states()
    assert network.time_free
    assert torch.equal(network(x, T), network(x, T / 7))


@pytest.mark.parametrize("name", DENOISERS)
def test_a_network_computes_the_same_with_and_without_gradients(name: str) -> None:
    """To the last bit. torch's fused transformer layer, taken only without gradients, differs by 5e-7."""
    network, x = made(DENOISERS[name]), states()
    with torch.no_grad():
        free = network(x, T)
    assert torch.equal(network(x, T), free)


def test_the_fused_transformer_layer_would_not() -> None:
    """The twin of the test above."""
    with seeded_initialisation(0):
        layer = nn.TransformerEncoderLayer(
            16, 2, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        ).eval()
        x = torch.randn(6, 12, 16)
    with torch.no_grad():
        free = layer(x)
    assert not torch.equal(layer(x), free)


@pytest.mark.parametrize("name", DENOISERS)
def test_the_ratio_of_a_real_network_is_exactly_one_on_the_batch_it_was_stored_on(name: str) -> None:
    """Theory 5: against the log-probability stored at rollout, same slices, one thread."""
    policy = Policy(made(DENOISERS[name]), Masked(4), TokenCodec("ACGT", 12), (12,), steps=4)
    algorithm = PPO(batch=16, minibatches=1, epochs=1)
    state = algorithm.init(policy, [Anchor(policy.frozen_copy(), 0.1)])

    class Flat:
        def __call__(self, designs: list[str]) -> list[float]:
            return [float(design.count("A")) for design in designs]

    rng = torch.Generator().manual_seed(0)
    path = rollout(state.policy, 16, rng)
    for k in range(4):
        law = state.policy.step(path.states[k], policy.grid[k], policy.grid[k + 1])
        assert torch.equal(law.log_prob(path.states[k + 1]).double(), path.log_prob[k])
    assert algorithm.step(state, Flat(), rng).ratio_first_pass < 1e-5, "re-batched: all steps at once"


@pytest.mark.parametrize(
    ("kind", "make"),
    [("denoiser", make) for make in DENOISERS.values()] + [("regressor", make) for make in REGRESSORS.values()],
    ids=[*DENOISERS, *REGRESSORS],
)
def test_a_network_is_made_again_from_its_description(kind: str, make: Any) -> None:
    network = made(make)
    again = construct(kind, describe(network)).eval()
    again.load_state_dict(network.state_dict())
    x = states(symbols=4)
    arguments = (x, T) if kind == "denoiser" else (x,)
    assert torch.equal(again(*arguments), network(*arguments))
    assert describe(again) == describe(network)


def test_dropout_acts_in_training_only() -> None:
    for make in (DENOISERS["conv"], REGRESSORS["conv"], REGRESSORS["recurrent"], REGRESSORS["scan"]):
        network, x = made(make), states(symbols=4)
        arguments = (x, T) if isinstance(network, ConvDenoiser) else (x,)
        assert torch.equal(network(*arguments), network(*arguments))
        network.train()
        assert not torch.equal(network(*arguments), network(*arguments))


def test_an_embedding_of_relaxed_tokens_is_their_mean_embedding() -> None:
    embed = made(lambda: TokenEmbedding(5, 12, 8))
    p = torch.softmax(torch.randn(6, 12, 5, generator=torch.Generator().manual_seed(0)), -1)
    expected = sum(p[..., a, None] * embed(torch.full((6, 12), a)) for a in range(5))
    torch.testing.assert_close(embed(p), expected)


def test_the_tower_sees_as_far_as_it_says() -> None:
    tower = made(lambda: DilatedTower(4, 3, (1, 2)))
    for layer in tower.layers:
        nn.init.constant_(layer.weight, 0.1)
    h = torch.ones(1, 4, 21, requires_grad=True)
    tower(h)[0, :, 10].sum().backward()
    seen = (h.grad[0].abs().sum(0) > 0).nonzero()[:, 0].tolist()
    assert seen == list(range(7, 14)), "1 + (kernel - 1) * sum(dilations) = 7 positions"


def test_a_recurrent_reward_gives_gradients_in_eval_mode() -> None:
    network = made(REGRESSORS["recurrent"])
    p = torch.full((2, 12, 4), 0.25, requires_grad=True)
    network(p).sum().backward()
    assert p.grad.abs().sum() > 0


def test_attention_needs_heads_that_share_the_width() -> None:
    with pytest.raises(ConfigError, match="expected a width that is a multiple of 3 heads; got 16"):
        TransformerDenoiser(4, 12, width=16, heads=3)


def test_attention_is_its_formula() -> None:
    """One head by hand: softmax(q k' / sqrt(d)) v on the normed input, added; then the dense layer, added."""
    block = made(lambda: AttentionBlock(6, 1)).double()
    h = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q, k, v = block.read(block.norm(h)).chunk(3, -1)
    mixed = h + block.write(torch.softmax(q @ k.transpose(1, 2) / 6**0.5, -1) @ v)
    torch.testing.assert_close(block(h), mixed + block.dense(block.dense_norm(mixed)))
    two = made(lambda: AttentionBlock(6, 2)).double()
    assert not torch.allclose(two(h), block(h))
