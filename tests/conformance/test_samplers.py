"""What every steering sampler must do, on every process it is defined for, and what it says where it is not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import scipy.stats
import torch
from torch import nn

from difftilt import build
from difftilt.core.algorithm import Sampler
from difftilt.core.codec import TokenCodec
from difftilt.core.noise import Cosine
from difftilt.core.policy import Policy
from difftilt.core.process import Process
from difftilt.core.schedule import uniform_grid
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.metrics.log_z import systematic
from difftilt.problems.enumerated import EnumeratedChain
from difftilt.problems.landscapes import TabularDenoiser
from difftilt.problems.linear_gaussian import Chain, LinearGaussian
from difftilt.processes.gaussian import Gaussian
from difftilt.processes.masked import Masked
from difftilt.samplers import refine, smc, value_weighted
from difftilt.samplers.best_of_n import BestOfN
from difftilt.samplers.classifier_guidance import ClassifierGuidance, GuidedPolicy
from difftilt.samplers.mcmc import MCMC
from difftilt.samplers.refine import Refine
from difftilt.samplers.smc import SMC
from difftilt.samplers.value_weighted import ValueWeighted

N, STEPS = 7, 4
SAMPLERS: dict[str, Any] = {
    "best_of_n": BestOfN(candidates=3),
    "value_weighted": ValueWeighted(alpha=0.5, candidates=3),
    "value_weighted, argmax": ValueWeighted(alpha=0.5, candidates=3, choice="argmax"),
    "smc": SMC(alpha=0.5, particles=4, tempering=0.0),
    "smc, bootstrap": SMC(alpha=0.5, particles=4, kind="bootstrap"),
    "smc, tempered": SMC(alpha=0.5, particles=4, tempering=2.0, ess_fraction=1.0),
    "refine": Refine(alpha=0.5, moves=24),
    "refine, renoised": Refine(alpha=0.5, moves=24, restart="renoised"),
    "classifier_guidance": ClassifierGuidance(alpha=0.5),
    "classifier_guidance, exact": ClassifierGuidance(alpha=0.5, tokens="exact"),
    "mcmc": MCMC(alpha=0.5, step_size=0.01, moves=5),
    "mcmc, mala": MCMC(
        alpha=0.5, kernel="mala", step_size=0.01, moves=5, log_density=lambda x: -x.double().square().sum(1)
    ),
}
PROCESSES = {
    "tokens": Masked(3),
    "tokens, independent": Masked(3, "independent"),
    "ddpm": Gaussian(Cosine(0.05), prediction="x_0", sigma_min=0.05),
    "ddim, eta 0.5": Gaussian(Cosine(0.05), kernel="ddim", eta=0.5, prediction="x_0"),
    "ode": Gaussian(Cosine(0.05), kernel="ddim", eta=0.0),
}


def undefined(sampler: str, process: str) -> str | None:
    """Why a pair is not defined, as its error says it."""
    tokens = process.startswith("tokens")
    if sampler.startswith("mcmc") and tokens:
        return "process with a score"
    if sampler.startswith("value_weighted") and process == "ode":
        return "noise in some step"
    if sampler == "classifier_guidance, exact" and process == "tokens, independent":
        return "show one token"
    return None


PAIRS = [(s, p) for s in SAMPLERS for p in PROCESSES]
DEFINED = [pair for pair in PAIRS if undefined(*pair) is None]
every = pytest.mark.parametrize(("sampler", "process"), DEFINED, ids=lambda v: v)


class Told(nn.Module):
    """Passes on, counts rows, and remembers the conditions it was told."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.rows, self.conditions = network, 0, []

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        self.rows += len(x_t)
        self.conditions.append(None if cond is None else cond["c"])
        assert cond is None or len(cond["c"]) == len(x_t)
        return self.network(x_t, t, None)


class Sum:
    """Differentiable: how much of the first letter, or the sum of the coordinates. Some designs may be infeasible."""

    def __init__(self, process: Process, infeasible: str = "none") -> None:
        self.tokens, self.infeasible, self.calls = isinstance(process, Masked), infeasible, 0

    def __call__(self, designs: Sequence[Any]) -> torch.Tensor:
        self.calls += len(designs)
        values = [float(design.count("A")) if self.tokens else float(design.sum()) for design in designs]
        bad = [self.infeasible == "all" or (self.infeasible == "some" and value < 0.5) for value in values]
        return torch.tensor([math.nan if b else v for v, b in zip(values, bad, strict=True)], dtype=torch.float64)

    def on_probabilities(self, p: torch.Tensor) -> torch.Tensor:
        return p[..., 0].sum(1) if self.tokens else p.sum(1)


class BlackBox:
    """The same without a derivative."""

    def __init__(self, reward: Sum) -> None:
        self.reward = reward

    def __call__(self, designs: Sequence[Any]) -> torch.Tensor:
        return self.reward(designs)


def policy(name: str) -> Policy:
    process = PROCESSES[name]
    if isinstance(process, Masked):
        table = TabularDenoiser(3, STEPS)
        nn.init.normal_(table.logits, generator=torch.Generator().manual_seed(0))
        return (
            Policy(Told(table), process, TokenCodec("ACG", STEPS), (STEPS,), steps=STEPS).eval().requires_grad_(False)
        )
    mean, covariance = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    made = LinearGaussian(mean, covariance, process, uniform_grid(STEPS)).pretrained().requires_grad_(False)
    made.denoiser = Told(made.denoiser)
    return made


class Scaled:
    """``factor * r + shift`` of a reward, differentiable where that is."""

    def __init__(self, reward: Any, factor: float = 1.0, shift: float = 0.0) -> None:
        self.reward, self.factor, self.shift = reward, factor, shift

    def __call__(self, designs: Sequence[Any]) -> torch.Tensor:
        return self.factor * self.reward(designs) + self.shift

    def on_probabilities(self, p: torch.Tensor) -> torch.Tensor:
        return self.factor * self.reward.on_probabilities(p) + self.shift


class ByCondition:
    """Depends on the condition: the reward where ``c`` is 1, its opposite where it is 0; none without."""

    def __init__(self, reward: Sum) -> None:
        self.reward = reward

    def __call__(self, designs: Sequence[Any]) -> torch.Tensor:
        raise AssertionError("asked without conditions")

    def under(self, cond: Any) -> Any:
        sign = 2.0 * cond["c"].double() - 1
        return Signed(self.reward, sign)


class Signed(Scaled):
    """One factor for each row."""

    def __call__(self, designs: Sequence[Any]) -> torch.Tensor:
        assert len(designs) == len(self.factor)
        return super().__call__(designs)

    def on_probabilities(self, p: torch.Tensor) -> torch.Tensor:
        assert len(p) == len(self.factor)
        return super().on_probabilities(p)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every
def test_it_returns_n_states_with_weights(sampler: str, process: str) -> None:
    made, own = SAMPLERS[sampler], policy(process)
    assert isinstance(made, Sampler)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.alpha = 1.0
    kept = made(own, Sum(own.process), N, generator())
    assert kept.x_0.shape == (N, *own.event_shape)
    assert kept.log_weight.shape == (N,)
    assert kept.log_weight.dtype == torch.float64
    assert kept.log_weight.isfinite().all()
    assert len(own.codec.decode(kept.x_0)) == N
    assert (kept.log_z is not None) == sampler.startswith("smc")
    assert kept.log_z is None or math.isfinite(kept.log_z)
    assert not kept.x_0.requires_grad


@every
def test_equal_seeds_give_equal_designs_and_the_global_generator_stays(sampler: str, process: str) -> None:
    made, own = SAMPLERS[sampler], policy(process)
    before, kept = torch.random.get_rng_state(), []
    for seed in (1, 1, 2, 3):
        kept.append(made(own, Sum(own.process), 30, generator(seed)))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(kept[0].x_0, kept[1].x_0)
    assert torch.equal(kept[0].log_weight, kept[1].log_weight)
    assert not torch.equal(kept[0].x_0, kept[2].x_0) or not torch.equal(kept[0].x_0, kept[3].x_0)


@every
def test_it_raises_the_reward(sampler: str, process: str) -> None:
    """Weighted mean of 400 designs against 400 of the policy: more than 4 standard errors of either."""
    own = policy(process)
    reward = Sum(own.process)
    plain = reward(own.codec.decode(BestOfN(candidates=1)(own, reward, 400, generator(1)).x_0))
    kept = SAMPLERS[sampler](own, reward, 400, generator())
    value = reward(own.codec.decode(kept.x_0))
    bar = 2 if sampler.startswith("mcmc") else 4  # a few small steps
    assert (kept.log_weight.softmax(0) * value).sum() > plain.mean() + bar * plain.std() / 20


@every
def test_infeasible_designs_weigh_nothing_and_feasible_ones_something(sampler: str, process: str) -> None:
    own = policy(process)
    reward = Sum(own.process, "some")
    kept = SAMPLERS[sampler](own, reward, 40, generator())
    bad = reward(own.codec.decode(kept.x_0)).isnan()
    assert (~bad).any()
    if sampler != "best_of_n":  # unweighted by contract; keeps an infeasible design only if all are
        assert torch.isneginf(kept.log_weight[bad]).all()
    assert kept.log_weight[~bad].isfinite().all()
    assert not kept.x_0.isnan().any()


@every
def test_where_nothing_is_feasible_every_weight_is_zero(sampler: str, process: str) -> None:
    own = policy(process)
    kept = SAMPLERS[sampler](own, Sum(own.process, "all"), N, generator())
    assert kept.x_0.shape == (N, *own.event_shape)
    if sampler != "best_of_n":
        assert torch.isneginf(kept.log_weight).all()
    assert kept.log_z in (None, -math.inf)


@every
def test_conditions_reach_every_network_call_row_by_row(sampler: str, process: str) -> None:
    """Every call has as many rows of conditions as states, all of them of this batch; every row is asked for."""
    own = policy(process)
    c = torch.arange(N) % 3
    SAMPLERS[sampler](own, Sum(own.process), N, generator(), cond={"c": c})
    assert all(told is not None for told in own.denoiser.conditions)
    assert set(torch.cat(own.denoiser.conditions).tolist()) == {0, 1, 2}


@every
def test_a_reward_that_depends_on_conditions_is_asked_for_those_of_each_row(sampler: str, process: str) -> None:
    """As with the reward of the one condition, to the last digit; and row by row where conditions are mixed.

    Of 400 designs those told 1 have the higher reward, by 4 standard errors of either half.
    """
    made, own = SAMPLERS[sampler], policy(process)
    reward = Sum(own.process)
    for c in (0, 1):
        cond = {"c": torch.full((N,), c)}
        plain = made(own, Scaled(reward, 2.0 * c - 1), N, generator(), cond=cond)
        asked = made(own, ByCondition(reward), N, generator(), cond=cond)
        assert torch.equal(asked.x_0, plain.x_0)
        assert torch.equal(asked.log_weight, plain.log_weight)
        assert asked.log_z == plain.log_z
    c = torch.arange(400) % 2
    kept = made(own, ByCondition(reward), 400, generator(), cond={"c": c})
    value = reward(own.codec.decode(kept.x_0))
    share = [kept.log_weight.where(c == label, -torch.inf).softmax(0) for label in (0, 1)]
    bar = 2 if sampler.startswith("mcmc") else 4  # a few small steps
    assert (share[1] - share[0]) @ value > bar * value.std() / 200**0.5


def test_batches_of_a_large_run_keep_the_conditions_of_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network's batch cut to 8 rows; the reward and the network check that conditions are as many as designs."""
    for module in (refine, smc, value_weighted):
        monkeypatch.setattr(module, "ROWS", 8)
    own, c = policy("tokens"), torch.arange(60) % 2
    for sampler in ("refine", "refine, renoised", "smc", "value_weighted", "best_of_n"):
        made = BestOfN(candidates=1024) if sampler == "best_of_n" else SAMPLERS[sampler]
        kept = made(own, ByCondition(Sum(own.process)), 60, generator(), cond={"c": c})
        value = Sum(own.process)(own.codec.decode(kept.x_0))
        assert value[c == 1].mean() > value[c == 0].mean() + 0.5, sampler


def test_values_are_told_the_condition_of_each_candidate() -> None:
    """A policy that shows the letter of its condition: what is shown agrees with the value's condition, row by row."""

    class Obedient(nn.Module):
        def forward(self, x_t: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
            return 60.0 * nn.functional.one_hot(cond["c"], 3)[:, None].double().expand(-1, STEPS, -1)

    def agree(x: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
        shown = x != 3
        right = ((x == cond["c"][:, None]) | ~shown).all(1)
        return (right.double() - 1) * 1000  # guidance tries other letters: they must look bad in their own row

    own = policy("tokens")
    own.denoiser = Obedient()
    c = torch.tensor([0, 1, 2, 2, 1, 0, 1])
    for name in ("value_weighted", "smc", "classifier_guidance, exact"):
        seen = []

        def value(x: torch.Tensor, t: torch.Tensor, cond: Any, seen: list[Any] = seen) -> torch.Tensor:
            seen.append((agree(x, t, cond) == 0).double().mean().item())
            return agree(x, t, cond)

        kept = SAMPLERS[name](own, Sum(own.process), N, generator(), cond={"c": c}, value=value)
        assert torch.equal(kept.x_0, c[:, None].expand(-1, STEPS))
        assert seen == [pytest.approx(1 / 3 if name.startswith("classifier") else 1.0)] * len(seen), name


def test_reward_calls_and_network_rows_are_those_documented() -> None:
    """With a value that costs nothing; per design and step."""
    expected = {
        "best_of_n": (3 * N, 3 * N * STEPS),
        "value_weighted": (3 * N, N * STEPS),
        "value_weighted, argmax": (3 * N, N * STEPS),
        "smc": (N, N * STEPS),
        "smc, bootstrap": (N, N * STEPS),
        "smc, tempered": (N, N * STEPS),
        "refine": (25 * N, None),
        "refine, renoised": (25 * N, None),
        "classifier_guidance, exact": (N, N * STEPS),
    }
    for name, (calls, rows) in expected.items():
        own = policy("tokens")
        reward = Sum(own.process)
        SAMPLERS[name](own, reward, N, generator(), value=lambda x, t, cond=None: torch.zeros(len(x)).double())
        assert reward.calls == calls, name
        assert rows is None or own.denoiser.rows == rows, name
        assert N * STEPS <= own.denoiser.rows <= calls * STEPS, name


# --- laws -------------------------------------------------------------------------------------------------------------

CARRIES = "smc"
"""The sampler whose weights are those of the tilted law; of the others designs are."""


def heated(sampler: str, factor: float) -> Any:
    """The sampler at ``factor`` times its temperature; best of N has none."""
    made = SAMPLERS[sampler]
    return made if sampler == "best_of_n" else dataclasses.replace(made, alpha=factor * made.alpha)


def test_every_registered_sampler_is_tried_on_tokens_and_vectors() -> None:
    assert {type(made) for made in SAMPLERS.values()} == set(build.SAMPLERS.values())
    assert {type(process) for process in PROCESSES.values()} == {Masked, Gaussian}


@every
def test_a_constant_added_to_the_reward_moves_log_z_by_itself_over_alpha_and_nothing_else(
    sampler: str, process: str
) -> None:
    own, shift = policy(process), 2.0
    plain = SAMPLERS[sampler](own, Sum(own.process), 40, generator())
    moved = SAMPLERS[sampler](own, Scaled(Sum(own.process), shift=shift), 40, generator())
    carried = shift / 0.5 if sampler.startswith(CARRIES) else 0.0
    torch.testing.assert_close(moved.x_0, plain.x_0, rtol=0, atol=1e-5)
    torch.testing.assert_close(moved.log_weight, plain.log_weight + carried, rtol=0, atol=1e-5)
    assert plain.log_z is None or moved.log_z == pytest.approx(plain.log_z + carried, abs=1e-5)


@every
def test_reward_and_alpha_scaled_alike_change_nothing(sampler: str, process: str) -> None:
    """Twin: the reward scaled alone."""
    own = policy(process)
    plain = SAMPLERS[sampler](own, Sum(own.process), 40, generator())
    scaled = heated(sampler, 4.0)(own, Scaled(Sum(own.process), 4.0), 40, generator())
    torch.testing.assert_close(scaled.x_0, plain.x_0, rtol=0, atol=1e-5)
    torch.testing.assert_close(scaled.log_weight, plain.log_weight, rtol=0, atol=1e-5)
    assert plain.log_z is None or scaled.log_z == pytest.approx(plain.log_z, abs=1e-5)
    if sampler not in ("best_of_n", "value_weighted, argmax"):
        alone = SAMPLERS[sampler](own, Scaled(Sum(own.process), 4.0), 40, generator())
        assert not torch.equal(alone.x_0, plain.x_0) or not torch.equal(alone.log_weight, plain.log_weight)


NO_PRETRAINED_LIMIT = {
    "value_weighted, argmax": "takes the best whatever alpha is",
    "mcmc": "its law is that of noisy data",
    "mcmc, mala": "its law is that of the density it was given",
    "refine, renoised": "its restarts do not follow the chain's own bridge",
}


@pytest.mark.parametrize(("sampler", "process"), [p for p in DEFINED if p[0] not in NO_PRETRAINED_LIMIT])
def test_an_infinite_alpha_gives_the_pretrained_law(sampler: str, process: str) -> None:
    """H0: 2,000 designs follow it; false alarm 1e-7. Twin: they do not at the sampler's own alpha.

    Tokens: Pearson statistic on cells of expectation >= 10. Vectors: mean and second moment within 5.5 s.e.
    """
    own = policy(process)
    hot = BestOfN(candidates=1) if sampler == "best_of_n" else heated(sampler, 1e9)
    kept = hot(own, Sum(own.process), 2000, generator())
    assert kept.log_weight.abs().max() < 1e-6
    assert kept.log_z is None or abs(kept.log_z) < 1e-6
    assert follows_the_pretrained_law(own, kept.x_0, kept.log_weight)
    steered = SAMPLERS[sampler](own, Sum(own.process), 2000, generator())
    assert not follows_the_pretrained_law(own, steered.x_0, steered.log_weight)


def follows_the_pretrained_law(own: Policy, x_0: torch.Tensor, log_weight: torch.Tensor) -> bool:
    drawn = x_0[systematic(log_weight, generator(1))]
    if isinstance(own.process, Masked):
        expected = 2000 * EnumeratedChain(own).marginal(own)
        counts = torch.bincount(drawn @ 3 ** torch.arange(STEPS - 1, -1, -1), minlength=3**STEPS).double()
        cells = expected >= 10
        observed = torch.cat([counts[cells], counts[~cells].sum()[None]])
        wanted = torch.cat([expected[cells], expected[~cells].sum()[None]])
        return scipy.stats.chi2.sf(((observed - wanted) ** 2 / wanted).sum().item(), len(wanted) - 1) > 1e-7
    means, covariances = Chain.read(own).marginals()
    mean, second = means[-1], covariances[-1].diagonal() + means[-1].square()
    far = [
        ((found.mean(0) - known).abs() / (found.std(0) / 2000**0.5)).max().item()
        for found, known in ((drawn, mean), (drawn.square(), second))
    ]
    return max(far) < 5.5


@every
def test_one_design_can_be_asked_for(sampler: str, process: str) -> None:
    own = policy(process)
    kept = SAMPLERS[sampler](own, Sum(own.process), 1, generator())
    assert kept.x_0.shape == (1, *own.event_shape)
    reward = Sum(own.process)(own.codec.decode(kept.x_0)).item()
    assert kept.log_weight.item() == pytest.approx(reward / 0.5 if sampler.startswith(CARRIES) else 0.0, abs=1e-9)
    assert kept.log_z is None or kept.log_z == pytest.approx(reward / 0.5)


@pytest.mark.parametrize(("sampler", "process"), [pair for pair in PAIRS if undefined(*pair)], ids=lambda v: v)
def test_undefined_pairs_say_why(sampler: str, process: str) -> None:
    own = policy(process)
    with pytest.raises(UnsupportedError, match=undefined(sampler, process)):
        SAMPLERS[sampler](own, Sum(own.process), N, generator())


@pytest.mark.parametrize("process", ["tokens", "ddpm"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_black_boxes_are_served_or_refused_with_the_reason(sampler: str, process: str) -> None:
    own = policy(process)
    reward = BlackBox(Sum(own.process))
    reason = undefined(sampler, process)
    if reason is None and sampler.startswith("mcmc"):
        reason = "black box"
    if reason is None and (sampler == "classifier_guidance" or (sampler.startswith("cl") and process == "ddpm")):
        reason = "differentiable value"
    if reason is None:
        assert SAMPLERS[sampler](own, reward, N, generator()).x_0.shape == (N, *own.event_shape)
    else:
        with pytest.raises(UnsupportedError, match=reason):
            SAMPLERS[sampler](own, reward, N, generator())


def test_undefined_settings_say_why() -> None:
    class Other(Process):
        def prior(self, shape: Any, rng: Any) -> Any: ...
        def corrupt(self, x_0: Any, t: Any, rng: Any) -> Any: ...
        def transition(self, prediction: Any, x_t: Any, t: Any, s: Any) -> Any: ...
        def denoising_loss(self, prediction: Any, x_0: Any, x_t: Any, t: Any) -> Any: ...

    own = policy("tokens")
    with pytest.raises(UnsupportedError, match="log_density for mala"):
        MCMC(kernel="mala")
    with pytest.raises(UnsupportedError, match="process of this library; got Other"):
        GuidedPolicy(Policy(nn.Identity(), Other(), own.codec, (STEPS,)), Sum(own.process), alpha=1.0)
    with pytest.raises(UnsupportedError, match="estimates x_0 from one prediction; got Other"):
        Other().denoised(torch.zeros(1), torch.zeros(1), torch.zeros(()))
    with pytest.raises(UnsupportedError, match="through which no gradient flows"):
        GuidedPolicy(own, lambda x, t, cond: torch.zeros(len(x)), alpha=1.0).sample(2)
    for kind in (SMC, Refine, ClassifierGuidance, MCMC):
        with pytest.raises(ConfigError, match="alpha > 0"):
            kind(alpha=-1.0)
    for settings in ({"particles": 0}, {"ess_fraction": 1.5}, {"tempering": -1.0}, {"tempering": math.nan}):
        with pytest.raises(ConfigError, match="particles >= 1, ess_fraction in"):
            SMC(**settings)
    with pytest.raises(ConfigError, match="twisted, bootstrap; got 'plain'"):
        SMC(kind="plain")
    with pytest.raises(ConfigError, match="moves >= 0; got -1"):
        Refine(moves=-1)
    with pytest.raises(ConfigError, match="first_order, exact; got 'all'"):
        ClassifierGuidance(tokens="all")
    with pytest.raises(ConfigError, match="ula, mala; got 'hmc'"):
        MCMC(kernel="hmc")
    with pytest.raises(ConfigError, match="step_size > 0"):
        MCMC(step_size=0.0)
    for time in (0.0, 1.0, 2.0):
        with pytest.raises(ConfigError, match=r"a time in \(0, 1\); got"):
            MCMC(time=time)


@every
@pytest.mark.parametrize("n", [0, -1])
def test_drawing_nothing_is_refused(sampler: str, process: str, n: int) -> None:
    own = policy(process)
    with pytest.raises(ConfigError, match=f"n >= 1 designs to draw; got {n}"):
        SAMPLERS[sampler](own, Sum(own.process), n, torch.Generator())


def test_chains_that_run_away_are_refused() -> None:
    own = policy("ddpm")
    with pytest.raises(ConfigError, match="chains that stay finite; got infinite or NaN states with step_size 1e"):
        MCMC(alpha=0.5, step_size=1e30, moves=50)(own, Sum(own.process), 3, torch.Generator().manual_seed(0))
