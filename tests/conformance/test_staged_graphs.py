"""Every algorithm and sampler on molecular graphs in stages: a tiny network, drug-likeness, most designs invalid."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch

from difftilt import build
from difftilt.core.algorithm import Anchor
from difftilt.core.molecules import chemistry, read_molecule
from difftilt.core.policy import Policy
from difftilt.core.trajectory import rollout, sample_states, step_log_prob
from difftilt.errors import UnsupportedError
from difftilt.networks.graph_transformer import GraphTransformer
from difftilt.rng import seeded_initialisation

pytest.importorskip("rdkit")

from difftilt.domains.molecule.graph_codec import GraphCodec
from difftilt.domains.molecule.graphs import staged

ALPHA = 0.1
CODEC = GraphCodec(["C", "N", "O"], 4)
DIFFERENTIABLE = ("reward_backprop", "classifier_guidance")
SETTINGS: dict[str, dict[str, Any]] = {
    "distill": {"teacher": "refine", "effort": 4},
    "value_weighted_mle": {"value_paths": 64, "value_updates": 20},
    "raft": {"keep": 0.3},
}
SAMPLERS: dict[str, dict[str, Any]] = {
    "best_of_n": {"candidates": 3},
    "value_weighted": {"candidates": 3},
    "smc": {"particles": 4},
    "refine": {"moves": 6},
    "classifier_guidance": {},
}
UNDEFINED = {"adjoint_matching": "chain of Gaussian steps", "mcmc": "process with a score"}


@functools.cache
def drug_likeness(design: str) -> float:
    molecule, _ = read_molecule(design)
    return math.nan if molecule is None else chemistry("rdkit.Chem.QED").qed(molecule)


def black_box(designs: list[str]) -> torch.Tensor:
    return torch.tensor([drug_likeness(design) for design in designs], dtype=torch.float64)


class Oxygens:
    """Share of places that hold oxygen, which is defined on probabilities too."""

    def __call__(self, designs: list[str]) -> torch.Tensor:
        return torch.tensor([design.count("O") / CODEC.nodes for design in designs], dtype=torch.float64)

    def on_probabilities(self, p: torch.Tensor) -> torch.Tensor:
        return p[:, 1 : 1 + CODEC.nodes, 3].mean(-1).double()


def reward(name: str) -> Any:
    return Oxygens() if name in DIFFERENTIABLE else black_box


def policy() -> Policy:
    with seeded_initialisation(0):
        denoiser = GraphTransformer(4, 4, width=16, edge_width=8, depth=1, heads=2)
        with torch.no_grad():  # most pairs have no bond, so that some graphs are molecules
            denoiser.pair_head[-1].bias.copy_(torch.tensor([1.0, 1.0, -1.0, -2.0]))
    return Policy(denoiser, staged(CODEC), CODEC, (CODEC.length,), steps=6).eval()


def test_some_designs_are_molecules_and_some_are_not():
    values = black_box(policy().sample(200))
    assert 0.05 < values.isnan().double().mean() < 0.95


def test_the_stored_log_prob_is_that_of_the_stored_state_exactly():
    """Recomputed on the same slices with one thread, in training's graph: equal to the last bit."""
    chain = policy()
    path = rollout(chain, 16, torch.Generator().manual_seed(0), references=[chain.frozen_copy()])
    for k in range(path.steps):
        again = step_log_prob(chain, path.states[k], path.states[k + 1], path.times[k], path.times[k + 1], None)
        assert torch.equal(again.detach().double(), path.log_prob[k])
    assert (path.log_ratio == 0).all()


def test_states_on_the_way_show_the_size_then_atoms_then_bonds():
    states, mask = rollout(policy(), 32, torch.Generator().manual_seed(0)).states, CODEC.vocabulary
    size, atoms, bonds = (states[:, :, part] == mask for part in (slice(0, 1), slice(1, 5), slice(5, None)))
    assert not (size.any(-1) & ~atoms.all(-1)).any()
    assert not (atoms.any(-1) & ~bonds.all(-1)).any()
    x_0 = states[-1]
    beyond = torch.arange(4) > x_0[:, :1]
    assert (x_0[:, 1:5][beyond] == 0).all()
    assert (x_0[:, 1:5][~beyond] > 0).all()


@pytest.mark.parametrize("name", [name for name in build.ALGORITHMS if name not in UNDEFINED])
def test_algorithms_run_from_a_kl_of_zero_and_equal_seeds_repeat(name: str) -> None:
    runs = []
    for _ in range(2):
        algorithm = build.algorithm(name)(batch=32, learning_rate=0.01, **SETTINGS.get(name, {}))
        state = algorithm.init(policy(), [Anchor(policy().frozen_copy(), ALPHA)])
        rng = torch.Generator().manual_seed(0)
        first, second = (algorithm.step(state, reward(name), rng) for _ in range(2))
        if name != "distill":  # whose numbers are those of its teacher
            assert first.kl_nats == pytest.approx(0, abs=1e-5)
        for info in (first, second):
            assert all(math.isfinite(value) for value in vars(info).values() if isinstance(value, float))
        if hasattr(first, "ratio_first_pass"):
            assert first.ratio_first_pass < 1e-5
        assert all(p.isfinite().all() for p in state.policy.parameters())
        runs.append([p.clone() for p in state.policy.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "trajectory_balance", "reward_weighted_mle", "value_weighted_mle"])
def test_updates_raise_drug_likeness(name: str) -> None:
    """Mean QED of 1,024 designs, infeasible ones counted as 0, after 25 updates: up by 5 standard errors."""
    settings = {"value_paths": 1024, "value_updates": 200} if name == "value_weighted_mle" else {}
    algorithm = build.algorithm(name)(batch=64, learning_rate=0.02, **settings)
    reference = policy().frozen_copy()
    state = algorithm.init(policy(), [Anchor(reference, 0.05)])
    rng = torch.Generator().manual_seed(0)
    for _ in range(25):
        algorithm.step(state, black_box, rng)
    means = []
    for chain in (reference, state.policy):
        designs = CODEC.decode(sample_states(chain, 1024, torch.Generator().manual_seed(1)))
        values = black_box(designs).nan_to_num(0.0)
        means.append((values.mean().item(), values.std().item() / 1024**0.5))
    assert means[1][0] > means[0][0] + 5 * math.hypot(means[0][1], means[1][1])


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_give_weighted_designs_and_equal_seeds_repeat(name: str) -> None:
    settings = SAMPLERS[name] if name == "best_of_n" else {"alpha": ALPHA, **SAMPLERS[name]}
    if name == "classifier_guidance":
        settings["tokens"] = "first_order"
    drawn = [
        build.sampler(name)(**settings)(
            policy().requires_grad_(False), reward(name), 16, torch.Generator().manual_seed(0)
        )
        for _ in range(2)
    ]
    assert len(CODEC.decode(drawn[0].x_0)) == 16
    assert torch.equal(drawn[0].x_0, drawn[1].x_0)
    assert torch.equal(drawn[0].log_weight, drawn[1].log_weight)
    assert not drawn[0].log_weight.isnan().any()


@pytest.mark.parametrize("name", UNDEFINED)
def test_undefined_methods_say_why(name: str) -> None:
    def tune() -> None:
        algorithm = build.algorithm(name)(batch=4)
        state = algorithm.init(policy(), [Anchor(policy().frozen_copy(), ALPHA)])
        algorithm.step(state, black_box, torch.Generator().manual_seed(0))

    def steer() -> None:
        sampler = build.sampler(name)(alpha=ALPHA)
        sampler(policy().requires_grad_(False), black_box, 4, torch.Generator().manual_seed(0))

    with pytest.raises(UnsupportedError, match=UNDEFINED[name]):
        (tune if name in build.ALGORITHMS else steer)()


def test_every_method_is_here() -> None:
    assert set(SAMPLERS) | set(UNDEFINED) >= set(build.SAMPLERS)
