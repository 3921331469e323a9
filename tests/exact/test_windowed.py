"""A window of noise in a flow: what is tuned is charged, what is not charged is not tuned."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import difftilt as dt
from difftilt.algorithms.adjoint_matching import AdjointMatching
from difftilt.algorithms.paths import choose_steps
from difftilt.core.algorithm import Anchor
from difftilt.core.policy import Policy, counting_passes
from difftilt.core.schedule import uniform_grid
from difftilt.core.trajectory import rollout
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.networks.windowed import Windowed, windowed
from difftilt.problems.exact_value import FunctionValue
from difftilt.problems.library import entry
from difftilt.problems.linear_gaussian import AffineDenoiser, Chain, LinearGaussian, Quadratic
from difftilt.processes.flow import Flow
from difftilt.processes.gaussian import Gaussian

ALPHA, STEPS, HIGH, LOW = 0.5, 8, 0.75, 0.25
REWARD: Quadratic = entry("linear-gaussian-flow").make().reward
WINDOW = [2, 3, 4, 5]
"""Steps that start at 0.75, 0.625, 0.5 and 0.375."""


def plain(process: Flow | None = None) -> Policy:
    """The data of linear-gaussian-flow in 8 steps."""
    data = entry("linear-gaussian-flow").make().model
    return LinearGaussian(data.mean, data.covariance, process or Flow(0.7), uniform_grid(STEPS)).pretrained()


def tuned(size: float = 0.3) -> tuple[Policy, Policy]:
    """A windowed policy somewhere away from its start, and its reference."""
    policy = windowed(plain(), HIGH, LOW, level=1.0)
    reference, noise = policy.frozen_copy(), torch.Generator().manual_seed(0)
    for parameter in policy.denoiser.tuned.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)
    return policy, reference


@torch.no_grad()
def chain(policy: Policy) -> Chain:
    return Chain.read(policy)


@torch.no_grad()
def test_the_path_kl_is_that_of_the_windows_steps() -> None:
    """Step KLs of a rollout: 0 outside, and their sum is the exact path KL within 6 standard errors (p < 1e-8)."""
    policy, reference = tuned()
    path = rollout(policy, 4000, torch.Generator().manual_seed(1), references=[reference], with_kl=True)
    assert path.silent.tolist() == [k not in WINDOW for k in range(STEPS)]
    assert path.noisy.tolist() == WINDOW
    assert (path.kl[:, path.silent] == 0).all()
    assert (path.log_ratio[:, path.silent] == 0).all()
    exact = chain(policy).kl(chain(reference)).item()
    assert 0.1 < exact < 10
    for estimate, same in ((path.kl[0, WINDOW].sum(0), True), (path.log_ratio[0, WINDOW].sum(0), True),
                           (path.kl[0, WINDOW[:-1]].sum(0), False)):  # fmt: skip
        error = (estimate.std() / len(estimate) ** 0.5).item()
        assert (abs(estimate.mean().item() - exact) < 6 * error) == same


def test_a_window_over_the_whole_grid_is_the_plain_sde() -> None:
    """The same states and log-probabilities to the last bit; with another level (twin) they differ."""
    sde, whole, other = plain(Flow(0.7, sigma_min=0.05)), plain(Flow(sigma_min=0.05)), plain(Flow(sigma_min=0.05))
    ran = rollout(sde, 32, torch.Generator().manual_seed(0))
    for policy, level, same in ((whole, 0.7, True), (other, 0.8, False)):
        again = rollout(windowed(policy, 1.0, 0.0, level=level), 32, torch.Generator().manual_seed(0))
        assert torch.equal(ran.states, again.states) == same == torch.equal(ran.log_prob, again.log_prob)


def test_steps_outside_the_window_are_those_of_the_ode() -> None:
    policy, ode = tuned()[0], plain(Flow(0.0))
    path = rollout(policy, 16, torch.Generator().manual_seed(0))
    for k in range(STEPS):
        mean = ode.step(path.states[k], *path.times[k : k + 2]).mean
        assert torch.equal(path.states[k + 1], mean) == (k not in WINDOW)


def test_tuning_the_window_reaches_its_class_optimum_and_pays_for_it() -> None:
    """Exact J, 0.9 of the way up; the KL of the last rollouts is the exact one within 6 standard errors."""
    policy = windowed(plain(), HIGH, LOW, level=1.0)
    reference = policy.frozen_copy()
    frozen = copy.deepcopy(policy.denoiser.frozen.state_dict())
    policy.requires_grad_(True)
    algorithm = dt.PPO(batch=256, learning_rate=0.03)
    state, rng = algorithm.init(policy, [Anchor(reference, ALPHA)]), torch.Generator().manual_seed(0)
    for _ in range(60):
        algorithm.step(state, REWARD, rng)
    before, best = chain(reference), chain(reference).optimum(REWARD, ALPHA, soft=False)
    start, most = (c.objective(REWARD, ALPHA, before).item() for c in (before, best))
    reached = chain(policy)
    assert reached.objective(REWARD, ALPHA, before).item() > start + 0.9 * (most - start)
    drawn = rollout(policy, 4000, rng, references=[reference]).log_ratio[0].sum(0)
    assert abs(drawn.mean() - reached.kl(before)) < 6 * drawn.std() / 4000**0.5
    assert reached.kl(before) > 0.2
    assert all(torch.equal(value, policy.denoiser.frozen.state_dict()[name]) for name, value in frozen.items())


def test_tuning_steps_without_noise_is_refused_by_name() -> None:
    """Twin: the same chain with its network everywhere; or anchors that run the silent steps otherwise."""
    free = plain(Flow(1.0, window=(HIGH, LOW)))
    with pytest.raises(UnsupportedError, match=r"got 4 of 8 steps without; .*difftilt\.windowed"):
        dt.PPO().init(free, [Anchor(free.frozen_copy(), ALPHA)])
    policy, reference = tuned()
    dt.PPO().init(policy, [Anchor(reference, ALPHA)])
    other = windowed(plain(), HIGH, LOW, level=1.0)
    other.denoiser.frozen.bias += 0.1
    with pytest.raises(UnsupportedError, match=r"got another step from t = 1; take the frozen copy"):
        dt.PPO().init(policy, [Anchor(reference, ALPHA), Anchor(other, ALPHA)])


def test_a_method_that_draws_its_own_times_is_refused() -> None:
    policy, reference = tuned()
    with pytest.raises(UnsupportedError, match=r"got 4 of 8 steps run by a frozen one; use"):
        dt.RenoisedMLE().init(policy, [Anchor(reference, ALPHA)])


@pytest.mark.parametrize("count", [None, 2])
def test_updates_learn_from_the_windows_steps_alone(count: int | None) -> None:
    """Each as often; sums scaled for 4 steps, not for 8."""
    path = rollout(tuned()[0], 4000, torch.Generator().manual_seed(0))
    steps = choose_steps(path, torch.arange(4000), count, torch.Generator().manual_seed(1))
    assert steps.scale == 4 / (count or 4)
    share = steps.k.bincount(minlength=STEPS).double() / 4000
    error = 6 * 0.5 / 4000**0.5
    expected = torch.tensor([(count or 4) / 4 * (k in WINDOW) for k in range(STEPS)], dtype=torch.float64)
    assert torch.allclose(share, expected, atol=error)
    assert torch.equal(steps.log_prob, path.log_prob[steps.k, steps.path])


METHODS: dict[Any, float] = {
    dt.PPO(kl="closed_form"): 0.7,
    dt.PPO(ratio="gaussian_kl"): 0.7,
    dt.TrajectoryBalance(replay=0.25, exploration=0.25): 0.7,
    dt.PathConsistency(): 0.5,
    dt.RewardWeightedMLE(): 0.5,
    dt.AdjointMatching(): 0.7,
    dt.RewardBackprop(): 0.7,
    dt.Distill(): 0.5,
}


@pytest.mark.parametrize("settings", METHODS, ids=lambda settings: type(settings).__name__)
def test_every_method_tunes_a_window(settings: Any) -> None:
    """A share of the way to the class optimum in 30 updates; passes counted; reference passes on 4 of 8 steps."""
    policy = windowed(plain(), HIGH, LOW, level=1.0)
    reference = policy.frozen_copy()
    algorithm = type(settings)(**{**vars(settings), "batch": 128, "learning_rate": 0.03})
    state, rng = algorithm.init(policy, [Anchor(reference, ALPHA)]), torch.Generator().manual_seed(0)
    with counting_passes(policy, reference) as passes:
        first = algorithm.step(state, REWARD, rng)
    if not isinstance(settings, dt.RewardBackprop | dt.Distill):
        assert first.network_evaluations == passes.rows
    if isinstance(settings, dt.PPO):
        rolled, updates = 128 * (STEPS + 4), 2 * 128 * 4 * (2 if settings.kl == "closed_form" else 1)
        assert passes.rows == rolled + updates
    for _ in range(30):
        algorithm.step(state, REWARD, rng)
    before = chain(reference)
    start, most = (
        c.objective(REWARD, ALPHA, before).item() for c in (before, before.optimum(REWARD, ALPHA, soft=False))
    )
    assert chain(policy).objective(REWARD, ALPHA, before).item() > start + METHODS[settings] * (most - start)


@pytest.mark.parametrize("alpha", [ALPHA, 2 * ALPHA])
def test_adjoints_run_through_the_steps_without_noise(alpha: float) -> None:
    """At the class optimum the regression is at rest, within 6 standard errors; not for another alpha (twin)."""
    reference = windowed(plain(), HIGH, LOW, level=1.0).frozen_copy()
    best = chain(reference).optimum(REWARD, ALPHA, soft=False)
    data = entry("linear-gaussian-flow").make().model
    solver = LinearGaussian(data.mean, data.covariance, reference.process, reference.grid)
    policy = copy.deepcopy(reference)
    policy.denoiser.tuned = solver.policy(best).denoiser
    algorithm = AdjointMatching(batch=4000)
    state, rng = algorithm.init(policy, [Anchor(reference, alpha)]), torch.Generator().manual_seed(0)
    data = algorithm.collect(state, REWARD, rng)
    targets = algorithm.targets(state, data)
    distance = []
    for k in WINDOW:
        law = policy.step(data.path.states[k], *data.path.times[k : k + 2])
        off = (targets[k] - law.mean).detach().double()
        distance.append((off.mean(0).abs() / (off.std(0) / 4000**0.5)).max())
    assert (torch.stack(distance).max().item() < 6) == (alpha == ALPHA)


def test_samplers_weigh_chains_with_steps_without_noise() -> None:
    """E[Z-hat] = Z within 7 standard errors of 30 runs (t of 29 degrees: p < 2e-7); e^E[r] is not it."""
    policy = windowed(plain(), HIGH, LOW, level=1.0).frozen_copy()
    exact = chain(policy)
    value, sampler = FunctionValue(policy.grid, exact.values(REWARD, ALPHA)), dt.SMC(alpha=ALPHA, particles=64)
    seeds = [torch.Generator().manual_seed(seed) for seed in range(30)]
    z = torch.tensor([sampler(policy, REWARD, 64, rng, value=value).log_z for rng in seeds]).exp()
    mean = REWARD.expectation(*(part[-1] for part in exact.marginals()))
    for answer, same in ((exact.log_z(REWARD, ALPHA), True), (mean / ALPHA, False)):
        off = (z.mean() - answer.exp()).abs() / (z.std() / 30**0.5)
        assert (off < 7) == same


def test_value_weighted_steering_works_within_a_window() -> None:
    """With exact values and 32 candidates the mean reward is that of the soft-optimal kernels but for O(1/32)."""
    policy = windowed(plain(), HIGH, LOW, level=1.0).frozen_copy()
    soft = chain(policy).optimum(REWARD, ALPHA)
    target, start = (REWARD.expectation(*(part[-1] for part in c.marginals())).item() for c in (soft, chain(policy)))
    value = FunctionValue(policy.grid, chain(policy).values(REWARD, ALPHA))
    drawn = dt.ValueWeighted(alpha=ALPHA, candidates=32)(
        policy, REWARD, 2000, torch.Generator().manual_seed(0), value=value
    )
    rewards = REWARD(drawn.x_0)
    assert abs(rewards.mean() - target) < 6 * rewards.std() / 2000**0.5 + 0.1 * (target - start)
    assert target - start > 0.3


# --- the denoiser ---------------------------------------------------------------------------------------------------


def test_a_batch_of_both_kinds_of_times_is_split() -> None:
    policy = tuned()[0]
    x_t = torch.randn(STEPS, 2, generator=torch.Generator().manual_seed(0))
    together = policy.denoiser(x_t, policy.grid[:-1])
    for k in range(STEPS):
        network = policy.denoiser.tuned if k in WINDOW else policy.denoiser.frozen
        assert torch.equal(together[k], network(x_t[k : k + 1], policy.grid[k : k + 1])[0])
    together.sum().backward()
    assert all(p.grad is None for p in policy.denoiser.frozen.parameters())
    moved = policy.denoiser.tuned.bias.grad.abs().sum(1) > 0
    assert moved.tolist() == [k in WINDOW for k in range(STEPS)]


def test_the_frozen_network_stays_frozen_and_in_eval_mode() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    denoiser = Windowed(copy.deepcopy(network), network, HIGH, LOW)
    policy = Policy(denoiser, Flow(1.0, window=(HIGH, LOW)), plain().codec, (2,), steps=STEPS)
    policy.requires_grad_(True).train()
    assert [p.requires_grad for p in denoiser.parameters()] == [True, True, False, False]
    assert [denoiser.tuned[1].training, denoiser.frozen[1].training] == [True, False]
    policy.requires_grad_(False).eval()
    assert not any(p.requires_grad for p in denoiser.parameters())
    assert not denoiser.tuned[1].training


def test_float32_times_belong_where_their_float64_ones_do() -> None:
    denoiser = Windowed(nn.Identity(), nn.Identity(), 0.7, 0.3)
    for times in (uniform_grid(10)[:-1], uniform_grid(10)[:-1].float()):
        assert denoiser.tuned_at(times).tolist() == [3 <= k <= 6 for k in range(10)]


def test_a_windowed_policy_comes_back_from_its_folder(tmp_path: Any) -> None:
    policy = tuned()[0]
    policy.save_pretrained(tmp_path)
    again = dt.load(str(tmp_path))
    assert again.process.window == (HIGH, LOW)
    assert isinstance(again.denoiser, Windowed)
    rng = (torch.Generator().manual_seed(0) for _ in range(2))
    assert torch.equal(rollout(policy, 8, next(rng)).states, rollout(again, 8, next(rng)).states)


@pytest.mark.parametrize(("high", "level", "warned"), [(1.0, 1.5, False), (1.0, 0.7, True), (0.75, 1.5, True)])
def test_a_window_forgets_the_prior_if_it_has_the_first_step_and_memoryless_noise(
    high: float, level: float, warned: bool
) -> None:
    """Exactly: the best value of x_1 is alpha log Z; fine-tuning warns elsewhere, and takes the policy as it is."""
    policy = windowed(plain(), high, 0.2, level=level)
    assert policy.process.memoryless is not warned
    assert not policy.process.full_noise
    c = chain(policy)
    lost = ALPHA * c.log_z(REWARD, ALPHA) - c.expected_value(REWARD, ALPHA)
    assert (lost < 1e-9) == (high == 1.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = dt.finetune(policy, REWARD, dt.PPO(alpha=ALPHA, batch=16), loop=dt.LoopConfig(steps=2))
    assert any("expected a memoryless process" in str(w.message) for w in caught) == warned
    assert not torch.equal(result.policy.denoiser.tuned.bias, policy.denoiser.tuned.bias)
    assert torch.equal(result.policy.denoiser.frozen.bias, policy.denoiser.frozen.bias)


def test_what_is_no_window_is_refused() -> None:
    for window in ((0.3, 0.7), (1.2, 0.5), (0.5, 0.5), (0.5, -0.1)):
        with pytest.raises(ConfigError, match="expected a window"):
            Flow(window=window)
        with pytest.raises(ConfigError, match="expected a window"):
            windowed(plain(), *window)
    with pytest.raises(ConfigError, match="window in which a step starts"):
        windowed(plain(), 0.6, 0.51)
    with pytest.raises(ConfigError, match="got level 0"):
        windowed(plain(), HIGH, LOW, level=0)
    other = Policy(AffineDenoiser(2, plain().grid.tolist()), Gaussian(), plain().codec, (2,), grid=plain().grid)
    with pytest.raises(UnsupportedError, match=r"expected a flow.*got Gaussian"):
        windowed(other, HIGH, LOW)
