"""Reward backpropagation: the pathwise gradient against exact ones, checkpointing, truncation, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from difftilt.algorithms import pathwise
from difftilt.algorithms.pathwise import differentiable_rollout
from difftilt.algorithms.ppo import PPO
from difftilt.algorithms.reward_backprop import RewardBackprop, reward_backprop_loss
from difftilt.algorithms.trajectory_balance import TrajectoryBalance
from difftilt.core.algorithm import Anchor
from difftilt.core.codec import TokenCodec, VectorCodec
from difftilt.core.noise import Cosine
from difftilt.core.policy import Policy
from difftilt.core.schedule import uniform_grid
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.problems.landscapes import TableReward, corrected, random_pairwise
from difftilt.problems.linear_gaussian import Chain, LinearGaussian, Quadratic
from difftilt.problems.tilted import TiltedProblem
from difftilt.processes.gaussian import Gaussian
from difftilt.rewards.table import TableReward as MeasuredTable
from difftilt.values.plug_in import PlugIn

ALPHA = 0.5
ALL = torch.zeros(1, dtype=torch.long)


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def plane(process: Gaussian, steps: int = 4) -> LinearGaussian:
    covariance = torch.stack([vector(1.0, 0.4), vector(0.4, 0.7)])
    return LinearGaussian(vector(1.0, -0.5), covariance, process, uniform_grid(steps))


REWARD = Quadratic.reward(torch.stack([vector(0.5, 0.1), vector(0.1, 0.3)]), vector(2.0, 1.0), vector(0.3, -0.2))
NOISY = Gaussian(Cosine(0.05), sigma_min=0.1)
PROCESSES = {
    "ddpm": NOISY,
    "ddim x_0": Gaussian(Cosine(0.05), kernel="ddim", eta=0.5, sigma_min=0.1, prediction="x_0"),
    "ode with a floor": Gaussian(Cosine(0.05), kernel="ddim", eta=0.0, sigma_min=0.2, prediction="v"),
}


def jolted(policy: Policy, size: float, seed: int = 5) -> Policy:
    """``policy`` moved away from where it is, in place."""
    noise = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)
    return policy


@pytest.fixture(scope="module")
def tokens() -> TiltedProblem:
    """3 tokens, 3 letters, one token per step."""
    return random_pairwise(3, 3, alpha=ALPHA, target_kl=1.0, seed=0)


def rolled(
    policy: Policy, reference: Policy, n: int, *, seed: int = 0, tau: float = 1.0, cut: torch.Tensor = ALL
) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return differentiable_rollout(policy, n, rng, [reference], tau=tau, cut=cut.expand(n))[:2]


def objective(policy: Policy, reference: Policy, reward: Any, n: int, **options: Any) -> torch.Tensor:
    """One batch's estimate of J, reward units, with its graph."""
    x_0, kl = rolled(policy, reference, n, **options)
    value = reward.on_probabilities(x_0[..., :-1] if x_0.ndim == 3 else x_0)
    return -ALPHA * reward_backprop_loss(value.double(), kl, vector(ALPHA))


def gradient(scalar: torch.Tensor, policy: Policy) -> torch.Tensor:
    parts = torch.autograd.grad(scalar, [p for p in policy.parameters() if p.requires_grad])
    return torch.cat([part.flatten() for part in parts])


# --- the loss ------------------------------------------------------------------------------------------------------


def test_the_loss_is_minus_the_objective_in_nats() -> None:
    """By hand: -( mean(r) - sum_a w_a mean(KL_a) ) / sum(w)."""
    reward, kl = vector(1.0, 3.0).requires_grad_(), torch.stack([vector(0.5, 1.5), vector(2.0, 0.0)]).requires_grad_()
    loss = reward_backprop_loss(reward, kl, vector(0.3, 0.1))
    assert loss.item() == pytest.approx(-(2.0 - 0.3 * 1.0 - 0.1 * 1.0) / 0.4)
    loss.backward()
    torch.testing.assert_close(reward.grad, vector(-1.25, -1.25))
    torch.testing.assert_close(kl.grad, torch.stack([vector(0.375, 0.375), vector(0.125, 0.125)]))


# --- exact on Gaussian chains --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_the_pathwise_gradient_is_that_of_the_exact_objective(name: str) -> None:
    """H0: each of 24 mean gradients over 64 batches of 256 equals autograd of the closed form.

    False alarm below 1e-6 in all (7 standard errors of a t with 63 degrees of freedom). Twin: the KL with the wrong
    sign, or dropped, is told apart by the same test.
    """
    problem = plane(PROCESSES[name])
    reference, policy = problem.pretrained().frozen_copy(), jolted(problem.pretrained(), 0.1)
    exact = gradient(Chain.read(policy).objective(REWARD, ALPHA, Chain.read(reference)), policy)
    rng, rows = torch.Generator().manual_seed(0), {1.0: [], 0.0: [], -1.0: []}
    for _ in range(64):
        x_0, kl, _ = differentiable_rollout(policy, 256, rng, [reference], tau=1.0, cut=ALL.expand(256))
        for sign, kept in rows.items():
            loss = reward_backprop_loss(REWARD.on_probabilities(x_0), sign * kl, vector(ALPHA))
            kept.append(-ALPHA * torch.cat([g.flatten() for g in torch.autograd.grad(
                loss, list(policy.parameters()), retain_graph=True)]))  # fmt: skip

    def worst(kept: list[torch.Tensor]) -> float:
        sample = torch.stack(kept)
        return ((sample.mean(0) - exact).abs() / (sample.std(0) / 8)).max().item()

    assert worst(rows[1.0]) < 7
    assert worst(rows[0.0]) > 7
    assert worst(rows[-1.0]) > 7


def test_updates_reach_the_best_policy_of_the_class() -> None:
    """J within 0.01 of the class optimum, from 0.9 below; the start, and alpha doubled (twin), are farther."""
    problem = plane(NOISY, steps=3)
    reference = problem.pretrained().frozen_copy()
    chain = Chain.read(reference)
    best = chain.expected_value(REWARD, ALPHA, soft=False).item()

    def reached(alpha: float) -> float:
        algorithm = RewardBackprop(alpha=alpha, batch=256, learning_rate=0.05)
        state = algorithm.init(problem.pretrained(), [Anchor(reference, alpha)])
        rng = torch.Generator().manual_seed(0)
        for update in range(80):
            state.scale_learning_rate(1 - update / 81)
            algorithm.step(state, REWARD, rng)
        return Chain.read(state.policy).objective(REWARD, ALPHA, chain).item()

    start = chain.objective(REWARD, ALPHA, chain).item()
    assert best - 0.01 < reached(ALPHA) <= best + 1e-9
    assert start < best - 0.2
    assert reached(2 * ALPHA) < best - 0.02


# --- tokens: straight-through Gumbel-softmax -----------------------------------------------------------------------


def straight_through_bias(problem: TiltedProblem, tau: float, batches: int = 12) -> float:
    """Norm of (mean gradient - exact gradient), the noise's share subtracted, relative to the exact one."""
    policy = jolted(problem.tunable(), 0.5, seed=0)
    exact = gradient(problem.objective(policy, grad=True), policy)
    rows = torch.stack(
        [
            gradient(objective(policy, problem.pretrained, problem.reward, 2000, seed=b, tau=tau), policy)
            for b in range(batches)
        ]
    )
    noise = (rows.var(0) / batches).sum()
    return (((rows.mean(0) - exact).square().sum() - noise).clamp(min=0).sqrt() / exact.norm()).item()


def test_the_straight_through_gradient_is_biased_and_less_so_at_a_lower_temperature(tokens: TiltedProblem) -> None:
    """Measured: 0.50, 0.28, 0.09 of the exact gradient at tau = 2, 1, 0.3 (noise 0.02); a floor of 0.09 at 0.1."""
    biases = [straight_through_bias(tokens, tau) for tau in (2.0, 1.0, 0.3)]
    assert 0.4 < biases[0] < 0.6
    assert 0.2 < biases[1] < 0.35
    assert biases[2] < 0.17


def test_for_a_single_token_the_bias_vanishes_with_the_temperature() -> None:
    """Nothing reads the relaxed token but the reward, which is linear in it. Measured: 0.24, 0.00 (noise 0.01)."""
    single = random_pairwise(1, 3, alpha=ALPHA, target_kl=0.3, seed=0)
    assert 0.2 < straight_through_bias(single, 1.0) < 0.3
    assert straight_through_bias(single, 0.1) < 0.05


def test_the_logged_reward_and_the_kept_states_are_those_of_hard_designs(tokens: TiltedProblem) -> None:
    algorithm = RewardBackprop(batch=64, tau=2.0)
    policy = jolted(tokens.tunable(), 0.5)
    state = algorithm.init(policy, [Anchor(tokens.pretrained, ALPHA)])
    seen = []

    class Watched:
        def __call__(self, designs: list[str]) -> torch.Tensor:
            raise AssertionError("finished designs are not asked for")

        def on_probabilities(self, p: torch.Tensor) -> torch.Tensor:
            seen.append(p.detach())
            return tokens.reward.on_probabilities(p)

    info = algorithm.step(state, Watched(), torch.Generator().manual_seed(0))
    assert seen[0].shape == (64, 3, 3)
    assert torch.equal(seen[0], torch.nn.functional.one_hot(seen[0].argmax(-1), 3).to(seen[0])), "soft in value"
    designs = tokens.pretrained.codec.decode(state.x_0)
    assert info.reward == pytest.approx(tokens.reward(designs).mean().item(), abs=1e-12)
    assert info.oracle_calls == 64


def test_the_logged_kl_is_the_path_kl(tokens: TiltedProblem) -> None:
    """H0: its mean is the exact path KL, over 20,000 paths; 5.5 standard errors (false alarm 4e-8)."""
    policy = jolted(tokens.tunable(), 0.5)
    _, kl = rolled(policy, tokens.pretrained, 20_000)
    exact = tokens.chain.path_kl(policy, tokens.pretrained).item()
    error = (kl[0].std() / 20_000**0.5).item()
    assert abs(kl[0].mean().item() - exact) < 5.5 * error
    assert abs(kl[0].mean().item() - 2 * exact) > 5.5 * error


def test_the_temperature_is_annealed_geometrically_over_the_updates(tokens: TiltedProblem) -> None:
    algorithm = RewardBackprop(batch=4, tau=1.0, tau_end=0.25, tau_updates=2)
    state = algorithm.init(tokens.tunable(), [Anchor(tokens.pretrained, ALPHA)])
    rng = torch.Generator().manual_seed(0)
    taus = [algorithm.step(state, tokens.reward, rng).tau for _ in range(4)]
    assert taus == pytest.approx([1.0, 0.5, 0.25, 0.25])


def test_continuous_states_which_nothing_relaxes_log_no_temperature() -> None:
    algorithm, problem = RewardBackprop(batch=4), plane(NOISY)
    state = algorithm.init(problem.pretrained(), [Anchor(problem.pretrained().frozen_copy(), ALPHA)])
    assert algorithm.step(state, REWARD, torch.Generator().manual_seed(0)).tau is None


# --- checkpointing -------------------------------------------------------------------------------------------------


def plain(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Stands in for torch's checkpoint: keeps all activations."""
    return function(*arguments)


@pytest.mark.parametrize("kind", ["tokens", "network", "gaussian"])
def test_the_checkpointed_gradient_is_the_plain_one_to_the_last_bit(
    kind: str, tokens: TiltedProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pitfall 24: the recomputation must see the same noise."""
    if kind == "gaussian":
        problem = plane(NOISY)
        reference, policy, reward = problem.pretrained().frozen_copy(), jolted(problem.pretrained(), 0.1), REWARD
    else:
        start = tokens.tunable() if kind == "tokens" else corrected(tokens.pretrained, hidden=16)
        reference, policy, reward = tokens.pretrained, jolted(start, 0.3), tokens.reward
    checkpointed = gradient(objective(policy, reference, reward, 64, tau=0.7), policy)
    monkeypatch.setattr(pathwise, "checkpoint", plain)
    assert torch.equal(gradient(objective(policy, reference, reward, 64, tau=0.7), policy), checkpointed)
    assert checkpointed.norm() > 0


def test_noise_drawn_from_an_advancing_generator_would_give_another_gradient(tokens: TiltedProblem) -> None:
    """The twin of the test above: the same chain with the run's own generator inside the checkpointed step."""
    policy = jolted(tokens.tunable(), 0.3)

    def estimate(recompute: Callable[..., Any]) -> torch.Tensor:
        rng = torch.Generator().manual_seed(0)

        def one_step(x: torch.Tensor, k: int) -> torch.Tensor:
            return policy.step(x, policy.grid[k], policy.grid[k + 1]).relax(rng, tau=0.7)

        x = policy.prior(64, rng)
        for k in range(policy.steps):
            x = recompute(one_step, x, k)
        return gradient(tokens.reward.on_probabilities(x[..., :-1]).mean(), policy)

    def careless(function: Callable[..., Any], *arguments: Any) -> torch.Tensor:
        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=True)  # the global state only

    kept, wrong = estimate(plain), estimate(careless)
    assert (wrong - kept).norm() > 0.05 * kept.norm()


def saved_elements(policy: Policy, reference: Policy, reward: Any, n: int) -> int:
    """Numbers that autograd keeps between the forward and the backward pass, outside of checkpointed regions."""
    count = 0

    def pack(x: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        objective(policy, reference, reward, n)
    return count


def test_activations_are_not_kept(tokens: TiltedProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations of one step are kept, however many there are; without checkpoints, of all (twin)."""

    def kept(hidden: int, steps: int = 3) -> int:
        policy = corrected(tokens.pretrained, hidden=hidden).with_steps(steps)
        return saved_elements(policy, tokens.pretrained.with_steps(steps), tokens.reward, 32)

    narrow, wide, long = kept(8), kept(256), kept(8, steps=9)
    activations = wide - narrow
    assert kept(256, steps=9) - long == activations
    assert long - narrow <= 6 * 2 * 32 * 3 * 4, "more than a state or two for each further step"
    monkeypatch.setattr(pathwise, "checkpoint", plain)
    assert kept(256) - kept(8) > 2 * activations


# --- truncation ----------------------------------------------------------------------------------------------------


class Probe(torch.nn.Module):
    """Adds a free vector to the prediction of each step and trajectory: its gradient tells where gradient flows."""

    def __init__(self, base: torch.nn.Module, steps: int, batch: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        noise = torch.randn(steps, batch, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.free = torch.nn.Parameter(0.1 * noise)  # away from the reference, so that the KL has a gradient too
        self.graph_on: list[bool] = []

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        self.graph_on.append(torch.is_grad_enabled())
        step = round((1 - t[0].item()) * self.free.shape[0])
        return self.base(x_t, t, cond) + self.free[step].to(x_t.dtype)


def probed(batch: int, steps: int = 6) -> tuple[Policy, Policy]:
    problem = plane(NOISY, steps)
    policy = problem.pretrained()
    policy.denoiser = Probe(policy.denoiser, steps, batch)
    return policy, problem.pretrained().frozen_copy()


def live_steps(policy: Policy, reference: Policy, batch: int, cut: torch.Tensor) -> torch.Tensor:
    """``[K, B]``: whether any gradient reaches step ``k`` of trajectory ``b``."""
    scalar = objective(policy, reference, REWARD, batch, cut=cut)
    (grad,) = torch.autograd.grad(scalar, [policy.denoiser.free])
    return (grad != 0).any(-1)


@pytest.mark.parametrize("truncation", [1, 2, 6, 99])
def test_exactly_the_last_steps_carry_gradient(truncation: int) -> None:
    policy, reference = probed(3)
    cut = RewardBackprop(truncation=truncation, batch=3)._cuts(torch.full((3,), 6), torch.Generator())
    live = live_steps(policy, reference, 3, cut)
    expected = torch.arange(6) >= 6 - truncation
    assert torch.equal(live, expected[:, None].expand(-1, 3))


def test_truncation_changes_neither_the_designs_nor_the_gradient_of_the_last_steps() -> None:
    problem = plane(NOISY)
    reference, policy = problem.pretrained().frozen_copy(), jolted(problem.pretrained(), 0.1)
    full = torch.autograd.grad(objective(policy, reference, REWARD, 64), list(policy.parameters()))
    short = torch.autograd.grad(objective(policy, reference, REWARD, 64, cut=ALL + 2), list(policy.parameters()))
    for whole, part in zip(full, short, strict=True):
        assert torch.equal(part[2:], whole[2:])
        assert (part[:2] == 0).all()
        assert (whole[:2] != 0).any()
    assert torch.equal(rolled(policy, reference, 8)[0], rolled(policy, reference, 8, cut=ALL + 2)[0])


def test_steps_before_the_cut_run_without_a_graph() -> None:
    """Pitfall 25: building a graph and detaching afterwards pays for it."""
    policy, reference = probed(3)
    rolled(policy, reference, 3, cut=ALL + 4)
    assert policy.denoiser.graph_on == [False] * 4 + [True] * 2


def is_suffix(live: torch.Tensor) -> torch.Tensor:
    """For each column, whether the live steps are a non-empty run that ends with the last step."""
    return (live.int().diff(dim=0) >= 0).all(0) & live[-1]


def test_the_random_cut_is_drawn_once_per_trajectory() -> None:
    """Defect 10 and pitfall 23: a suffix in every trajectory, of independent lengths, each length equally often.

    H0: cuts are uniform on 0..5, over 3,000 trajectories; 5.5 standard errors of each of 6 counts (false alarm 2e-7).
    The twin draws anew at every step, as public code does.
    """
    policy, reference = probed(3000)
    algorithm = RewardBackprop(batch=3000, random_truncation=True)
    cut = algorithm._cuts(torch.full((3000,), 6), torch.Generator().manual_seed(1))
    live = live_steps(policy, reference, 3000, cut)
    assert is_suffix(live).all()
    assert torch.equal(live.sum(0), 6 - cut)
    counts = torch.bincount(cut, minlength=6)
    assert len(counts) == 6
    assert ((counts - 500).abs() < 5.5 * (3000 * 5 / 36) ** 0.5).all()
    redrawn = torch.arange(6)[:, None] >= torch.randint(0, 6, (6, 3000), generator=torch.Generator().manual_seed(1))
    assert not is_suffix(redrawn).all()


def test_the_random_cut_is_redrawn_at_every_update_and_used_by_the_step(tokens: TiltedProblem) -> None:
    algorithm, rng = RewardBackprop(batch=64, random_truncation=True), torch.Generator().manual_seed(0)
    first, second = (algorithm._cuts(torch.full((64,), 6), rng) for _ in range(2))
    assert not torch.equal(first, second)

    def moved(**settings: Any) -> torch.Tensor:
        chosen = RewardBackprop(batch=64, **settings)
        state = chosen.init(tokens.tunable(), [Anchor(tokens.pretrained, ALPHA)])
        chosen.step(state, tokens.reward, torch.Generator().manual_seed(0))
        start, end = tokens.pretrained.denoiser.logits, state.policy.denoiser.logits
        masked = (tokens.chain.states == 3).sum(-1)  # steps taken = 3 - masked
        return torch.stack([(end - start)[masked == m].abs().max() for m in (3, 2, 1)]) > 0

    assert moved().tolist() == [True, True, True]
    assert moved(truncation=1).tolist() == [False, False, True]
    assert moved(truncation=2).tolist() == [False, True, True]
    assert moved(random_truncation=True).tolist() == [True, True, True]


@pytest.mark.parametrize("settings", [{"truncation": 0}, {"truncation": 2, "random_truncation": True}])
def test_a_truncation_without_meaning_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected truncation >= 1"):
        RewardBackprop(**settings)


# --- reading early -------------------------------------------------------------------------------------------------

EARLY = RewardBackprop(alpha=0.0, batch=6, read_from=0.5)


def early_objective(policy: Policy, references: list[Policy], read: int, cut: int = 0) -> torch.Tensor:
    """Reward of one trajectory's predicted design, minus its KL, with its graph."""
    rng, step = torch.Generator().manual_seed(0), torch.tensor([read])
    _, kl, seen = differentiable_rollout(policy, 1, rng, references, tau=1.0, cut=ALL + cut, read=step)
    return PlugIn(policy, REWARD)(seen, policy.grid[step]).sum() - ALPHA * kl.sum()


@pytest.mark.parametrize("read", [1, 3, 5])
def test_an_early_reading_has_the_gradient_of_finite_differences_up_to_its_step_and_none_after(read: int) -> None:
    """The twin, finished designs, has gradient in the last step too."""
    policy, _ = probed(1)
    free = policy.denoiser.free
    (exact,) = torch.autograd.grad(early_objective(policy, [], read), [free])
    assert torch.equal((exact != 0).any(-1)[:, 0], torch.arange(6) <= read)
    for place in itertools.product(range(read + 1), (0,), range(2)):
        ends = []
        for move in (0.5, -1.0):
            free.data[place] += move
            ends.append(early_objective(policy, [], read).item())
        free.data[place] += 0.5
        assert ends[0] - ends[1] == pytest.approx(exact[place].item(), rel=1e-4)  # quadratic in it
    x_0 = differentiable_rollout(policy, 1, torch.Generator().manual_seed(0), [], tau=1.0, cut=ALL)[0]
    (finished,) = torch.autograd.grad(REWARD.on_probabilities(x_0).sum(), [free])
    assert (finished[-1] != 0).any()


@pytest.mark.parametrize("read", [1, 4])
def test_a_step_after_the_reading_is_trained_by_its_own_kl_alone(read: int) -> None:
    """Each late step's gradient is that of its KL at the same state, taken as given."""
    policy, reference = probed(1)
    free = policy.denoiser.free
    (found,) = torch.autograd.grad(early_objective(policy, [reference], read), [free])
    rng = torch.Generator().manual_seed(0)
    x_t, seeds = policy.prior(1, rng), torch.randint(2**62, (6,), generator=rng).tolist()
    for k in range(6):
        own, other = (p.step(x_t, policy.grid[k], policy.grid[k + 1]) for p in (policy, reference))
        (alone,) = torch.autograd.grad(-ALPHA * own.kl(other).sum(), [free])
        same = torch.allclose(found[k], alone[k], rtol=1e-10, atol=1e-12)
        assert same == (k > read), "early steps have more than their own KL"
        x_t = own.sample(torch.Generator().manual_seed(seeds[k])).detach()


@pytest.mark.parametrize("truncation", [1, 2, 9])
def test_truncation_counts_back_from_the_reading(truncation: int) -> None:
    policy, _ = probed(6)
    algorithm = dataclasses.replace(EARLY, truncation=truncation)
    read = algorithm._readings(policy, torch.Generator().manual_seed(0))
    cut = algorithm._cuts(read, torch.Generator())
    policy, _ = probed(1)
    for step, first in zip(read.tolist(), cut.tolist(), strict=True):
        (found,) = torch.autograd.grad(early_objective(policy, [], step, first), [policy.denoiser.free])
        live = (torch.arange(6) >= step - truncation) & (torch.arange(6) <= step)
        assert torch.equal((found != 0).any(-1)[:, 0], live)


def test_readings_are_uniform_over_the_steps_from_their_share_on() -> None:
    """H0: uniform on 3, 4, 5 of 6, over 3,000 trajectories; 5.5 standard errors of 3 counts (false alarm 1e-7)."""
    policy, _ = probed(1)
    read = dataclasses.replace(EARLY, batch=3000)._readings(policy, torch.Generator().manual_seed(1))
    counts = torch.bincount(read, minlength=7)
    assert counts[[0, 1, 2, 6]].sum() == 0
    assert ((counts[3:6] - 1000).abs() < 5.5 * (3000 * 2 / 9) ** 0.5).all()
    finished = dataclasses.replace(EARLY, read_from=None)._readings(policy, torch.Generator())
    assert (finished == 6).all()


def test_with_an_early_reading_the_logged_reward_is_still_that_of_finished_designs(tokens: TiltedProblem) -> None:
    state = EARLY.init(jolted(tokens.tunable(), 0.5), [])
    info = EARLY.step(state, tokens.reward, torch.Generator().manual_seed(0))
    designs = tokens.pretrained.codec.decode(state.x_0)
    assert info.reward == pytest.approx(tokens.reward(designs).mean().item(), abs=1e-12)
    assert info.oracle_calls == 12


@pytest.mark.parametrize("settings", [{"read_from": 0.0}, {"read_from": 1.1}, {"read_from": math.nan}])
def test_a_share_without_a_step_to_read_at_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected read_from above 0, at most 1"):
        RewardBackprop(**settings)


def test_redone_last_steps_are_not_read_early() -> None:
    with pytest.raises(ConfigError, match=r"expected low_variance.*without read_from"):
        RewardBackprop(truncation=1, low_variance=2, read_from=0.5)


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reward", [TableReward({"AAA": 1.0}), MeasuredTable({"AAA": 1.0}, "t")])
def test_a_table_has_no_gradient(tokens: TiltedProblem, reward: Any) -> None:
    algorithm = RewardBackprop(batch=4)
    state = algorithm.init(tokens.tunable(), [Anchor(tokens.pretrained, ALPHA)])
    with pytest.raises(UnsupportedError, match=r"on_probabilities.*use --algorithm ppo"):
        algorithm.step(state, reward, torch.Generator())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_infeasible_design_never_enters_the_loss(tokens: TiltedProblem, bad: float) -> None:
    class Partial:
        def __call__(self, designs: list[str]) -> torch.Tensor:
            return torch.zeros(len(designs))

        def on_probabilities(self, p: torch.Tensor) -> torch.Tensor:
            value = tokens.reward.on_probabilities(p)
            return torch.where(p[:, 0, 0] > 0.5, bad, value)

    algorithm = RewardBackprop(batch=32)
    state = algorithm.init(tokens.tunable(), [Anchor(tokens.pretrained, ALPHA)])
    before = copy.deepcopy(state.policy.state_dict())
    with pytest.raises(UnsupportedError, match=r"expected a finite reward for every design; got .* of 32 infeasible"):
        algorithm.step(state, Partial(), torch.Generator().manual_seed(0))
    assert all(torch.equal(value, before[name]) for name, value in state.policy.state_dict().items())


@pytest.mark.parametrize("algorithm", [PPO(), TrajectoryBalance(), RewardBackprop()], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize(
    ("process", "silent"),
    [(Gaussian(Cosine(0.05)), 1), (Gaussian(Cosine(0.05), kernel="ddim", eta=0.0), 4)],
    ids=["ddpm", "ode"],
)
def test_tuning_steps_without_noise_is_refused_as_it_would_be_free(
    algorithm: Any, process: Gaussian, silent: int
) -> None:
    """Their KL is 0 or infinite, so nothing would be charged (theory, section 1)."""
    problem = plane(process)
    anchors = [Anchor(problem.pretrained().frozen_copy(), ALPHA)]
    with pytest.raises(UnsupportedError, match=f"got {silent} of 4 steps without; give the process sigma_min > 0"):
        algorithm.init(problem.pretrained(), anchors)
    floored = plane(Gaussian(**{**process.config(), "sigma_min": 0.05}))
    state = algorithm.init(floored.pretrained(), [Anchor(floored.pretrained().frozen_copy(), ALPHA)])
    assert state.updates == 0


def test_a_process_says_which_steps_have_no_noise() -> None:
    grid = uniform_grid(3)

    def silent(process: Any) -> list[bool]:
        return [process.noiseless(t, s) for t, s in itertools.pairwise(grid)]

    assert silent(Gaussian()) == [False, False, True]
    assert silent(Gaussian(variance="fixed_large")) == [False, False, True]
    assert silent(Gaussian(variance="fixed_large", sigma_min=1e-3)) == [False, False, False]
    assert silent(Gaussian(kernel="ddim", eta=0.0)) == [True, True, True]
    assert silent(Gaussian(kernel="ddim", eta=0.0, sigma_min=1e-3)) == [False, False, False]
    assert silent(random_pairwise(2, 2).pretrained.process) == [False, False, False]


# --- continuous states of any shape --------------------------------------------------------------------------------


def test_a_continuous_state_with_two_axes_is_not_taken_for_tokens() -> None:
    class Shrink(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(0.9))

        def forward(self, x_t: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
            return self.weight * x_t

    class Sum:
        def __call__(self, designs: list[Any]) -> torch.Tensor:
            return torch.zeros(len(designs))

        def on_probabilities(self, p: torch.Tensor) -> torch.Tensor:
            assert p.shape == (8, 3, 5)
            return p.sum((1, 2))

    policy = Policy(Shrink(), NOISY, VectorCodec(), (3, 5), steps=3)
    algorithm = RewardBackprop(batch=8)
    state = algorithm.init(policy, [Anchor(policy.frozen_copy(), ALPHA)])
    info = algorithm.step(state, Sum(), torch.Generator().manual_seed(0))
    assert state.x_0.shape == (8, 3, 5)
    assert state.x_0.is_floating_point()
    assert info.reward == pytest.approx(state.x_0.sum((1, 2)).double().mean().item(), rel=1e-5)


def test_positions_held_fixed_stay_fixed_and_are_not_charged(tokens: TiltedProblem) -> None:
    codec: TokenCodec = tokens.pretrained.codec
    fixed = torch.tensor([-1, int(codec.encode([codec.alphabet[1] * 3])[0, 0]), -1])
    held = tokens.tunable().holding(fixed)
    algorithm = dataclasses.replace(RewardBackprop(), batch=32)
    state = algorithm.init(held, [Anchor(tokens.pretrained.holding(fixed), ALPHA)])
    info = algorithm.step(state, tokens.reward, torch.Generator().manual_seed(0))
    assert (state.x_0[:, 1] == 1).all()
    assert info.kl_nats == 0
