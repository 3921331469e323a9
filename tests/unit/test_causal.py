"""Masked diffusion in order by a causal network: what it sees, its exact likelihood, and how it is trained."""

from __future__ import annotations

import itertools

import pytest
import torch

from difftilt.algorithms.paths import choose_steps
from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy, counting_passes
from difftilt.core.trajectory import rollout, sample_states
from difftilt.errors import ConfigError
from difftilt.networks import CausalDenoiser, TransformerDenoiser
from difftilt.networks.lora import lora
from difftilt.processes.masked import Masked, in_order
from difftilt.rng import seeded_initialisation
from difftilt.training import pretrain as module
from difftilt.training.pretrain import PretrainConfig, denoising_bounds, pretrain

LETTERS, LENGTH = 3, 4
MASK = LETTERS


def network(kind: type = CausalDenoiser, *, sharp: float = 3.0) -> torch.nn.Module:
    """Untrained, with logits that are far from flat."""
    with seeded_initialisation(0):
        made = kind(LETTERS, LENGTH, width=16, depth=2, heads=2).eval()
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.data.mul_(sharp)
    return made


def policy(denoiser: torch.nn.Module) -> Policy:
    return Policy(
        denoiser, Masked(LETTERS, stages=in_order(LENGTH)), TokenCodec("ABC", LENGTH), (LENGTH,), steps=LENGTH
    )


def every() -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(LETTERS), repeat=LENGTH)))


def sees(made: torch.nn.Module, place: int) -> list[int]:
    """Positions whose logits change with the letter at ``place``."""
    x, t = every()[:1], torch.ones(1)
    other = x.clone()
    other[:, place] = 1
    changed = (made(other, t) - made(x, t)).abs().amax(-1)[0]
    return (changed > 1e-6).nonzero().flatten().tolist()


@pytest.mark.parametrize("place", range(LENGTH))
def test_a_position_sees_what_stands_before_it_alone(place: int) -> None:
    assert sees(network(), place) == list(range(place + 1, LENGTH))


def test_full_attention_would_see_itself() -> None:
    """The twin."""
    assert sees(network(TransformerDenoiser), 1) == list(range(LENGTH))


def test_the_likelihood_is_exact_a_law_and_that_of_the_path() -> None:
    made = policy(network())
    nats = denoising_bounds(made.denoiser, made.process, every(), torch.Generator())
    assert (-nats).exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    paths = rollout(made, 50, torch.Generator().manual_seed(1))
    place = (paths.states[-1] * LETTERS ** torch.arange(LENGTH - 1, -1, -1)).sum(-1)
    torch.testing.assert_close(paths.log_prob.double().sum(0), -nats[place], rtol=0, atol=1e-5)


def test_samples_follow_that_law() -> None:
    """H0: 20,000 designs have the law. Chi-squared over 81 designs; a z above 5 has a false-alarm rate below 1e-6."""
    made = policy(network())
    probability = (-denoising_bounds(made.denoiser, made.process, every(), torch.Generator())).exp()

    def z(drawn: torch.Tensor) -> float:
        place = (drawn * LETTERS ** torch.arange(LENGTH - 1, -1, -1)).sum(-1)
        seen, expected = torch.bincount(place, minlength=81).double(), len(drawn) * probability
        use = expected > 5
        statistic = ((seen - expected)[use].square() / expected[use]).sum().item()
        return (statistic - int(use.sum())) / (2 * int(use.sum())) ** 0.5

    assert z(sample_states(made, 20_000, torch.Generator().manual_seed(2))) < 5
    assert z(sample_states(made, 20_000, torch.Generator().manual_seed(2)).flip(1)) > 5, "the twin: read from the right"


def test_the_bound_of_random_times_is_the_same_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """In order and causal the bound's mean is the likelihood (H0; z below 5). Twin: full attention's is not."""

    def gap(made: torch.nn.Module) -> float:
        chain, x_0 = policy(made), every()[[5, 40, 77]]
        exact = module._of_all_steps(made(x_0, torch.zeros(3)), x_0)
        monkeypatch.setattr(made, "causal", False, raising=False)
        rng, draws = torch.Generator().manual_seed(3), 400
        parts = torch.stack([denoising_bounds(made, chain.process, x_0, rng, draws=4) for _ in range(draws)])
        return ((parts.mean(0) - exact).abs() / (parts.std(0) / draws**0.5)).max().item()

    with torch.no_grad():
        assert gap(network()) < 5
        assert gap(network(TransformerDenoiser)) > 5


def trained(updates: int = 150) -> torch.nn.Module:
    """Of words that repeat their first letter, A or B alike often."""
    with seeded_initialisation(0):
        made = CausalDenoiser(LETTERS, LENGTH, width=16, depth=1, heads=2)
    words = torch.tensor([[0] * LENGTH, [1] * LENGTH]).repeat(20, 1)
    settings = PretrainConfig(updates=updates, batch=32, learning_rate=2e-2, validate_every=updates, ema=0.9)
    pretrain(made, Masked(LETTERS, stages=in_order(LENGTH)), words, words, settings)
    return made.eval()


def test_training_finds_the_law_of_the_data_and_of_what_comes_later() -> None:
    made, t = trained(), torch.zeros(1)
    nats = denoising_bounds(made, policy(made).process, torch.tensor([[0] * LENGTH]), torch.Generator())
    assert nats.item() == pytest.approx(torch.tensor(2.0).log().item(), abs=0.05)
    later = made(torch.tensor([[0, MASK, MASK, MASK]]), t).softmax(-1)[0, 1:, 0]
    assert (later > 0.9).all(), "given the first letter, all others are known"
    nothing = made(torch.tensor([[MASK] * LENGTH]), t).softmax(-1)[0]
    torch.testing.assert_close(nothing[:, :2], torch.full((LENGTH, 2), 0.5), rtol=0, atol=0.15)


def test_trained_on_whole_words_alone_it_would_not_know_what_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: masks were never seen, and what is said behind them is of no law."""

    def whole(
        denoiser: torch.nn.Module, process: object, x_0: torch.Tensor, x_t: object, t: torch.Tensor
    ) -> torch.Tensor:
        return module._of_all_steps(denoiser(x_0, t, None), x_0)

    monkeypatch.setattr(module, "_training_loss", whole)
    nothing = trained()(torch.tensor([[MASK] * LENGTH]), torch.zeros(1)).softmax(-1)[0, 1:, :2]
    assert (nothing - 0.5).abs().max() > 0.15


def test_a_temperature_sharpens_the_law_but_not_while_it_is_fitted() -> None:
    plain = CausalDenoiser(LETTERS, LENGTH, width=16, depth=1, heads=2)
    sharp = CausalDenoiser(**{**plain.config(), "temperature": 0.5})
    sharp.load_state_dict(plain.state_dict())
    x, t = every(), torch.zeros(81)
    assert torch.equal(plain.train()(x, t), sharp.train()(x, t))
    torch.testing.assert_close(2 * plain.eval()(x, t), sharp.eval()(x, t))
    assert CausalDenoiser(**sharp.config()).temperature == 0.5
    nats = denoising_bounds(sharp, policy(sharp).process, x, torch.Generator())
    assert (-nats).exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_a_temperature_of_0_is_refused() -> None:
    with pytest.raises(ConfigError, match="above 0"):
        CausalDenoiser(LETTERS, LENGTH, temperature=0.0)


@pytest.mark.parametrize(
    ("stages", "ordered"),
    [
        (in_order(4), True),
        (None, False),
        ([(4, 1.0, 0.0)], False),
        ([(1, 1.0, 0.5), (3, 0.5, 0.0)], False),
        ([(1, 0.5, 0.0), (1, 1.0, 0.5)], False),
        ([(1, 1.0, 0.4), (1, 0.5, 0.0)], False),
    ],
)
def test_in_order_is_one_position_after_the_other(stages: list | None, ordered: bool) -> None:
    assert Masked(LETTERS, stages=stages).in_order == ordered


def without_memory(made: Policy) -> Policy:
    """The same chain, whose network is called on whole states at every step."""
    plain = policy(made.denoiser)
    plain.stepping = lambda: plain.step  # type: ignore[method-assign]
    return plain


def differently_tuned() -> tuple[Policy, Policy]:
    """A policy, and one whose network has moved."""
    other = network()
    with torch.no_grad():
        for number, parameter in enumerate(other.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return policy(network()), policy(other)


def test_a_run_with_memory_draws_the_same_chains_with_the_same_laws() -> None:
    made, reference = differently_tuned()
    kept, plain = (
        rollout(own, 200, torch.Generator().manual_seed(4), references=[theirs], with_kl=True)
        for own, theirs in ((made, reference), (without_memory(made), without_memory(reference)))
    )
    assert torch.equal(kept.states, plain.states)
    torch.testing.assert_close(kept.log_prob, plain.log_prob, rtol=0, atol=1e-5)
    torch.testing.assert_close(kept.reference_log_prob, plain.reference_log_prob, rtol=0, atol=1e-5)
    assert kept.kl is not None
    assert plain.kl is not None
    torch.testing.assert_close(kept.kl, plain.kl, rtol=0, atol=1e-5)
    assert kept.kl.mean() > 0.01


def test_adapters_are_read_at_once_too() -> None:
    made = lora(policy(network()), rank=2)
    with torch.no_grad():
        for number, parameter in enumerate(made.trainable()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    assert made.at_once
    kept, plain = (rollout(own, 50, torch.Generator().manual_seed(8)) for own in (made, without_memory(made)))
    assert torch.equal(kept.states, plain.states)
    torch.testing.assert_close(kept.log_prob, plain.log_prob, rtol=0, atol=1e-5)
    steps = choose_steps(kept, torch.arange(50), 2, torch.Generator().manual_seed(9))
    torch.testing.assert_close(steps.log_prob_under(made), steps.log_prob, rtol=0, atol=1e-5)


def test_held_letters_are_remembered_too() -> None:
    made = policy(network()).holding(torch.tensor([-1, 2, -1, 0]))
    plain = without_memory(made).holding(made.fixed)
    plain.stepping = lambda: plain.step  # type: ignore[method-assign]
    kept, whole = (rollout(own, 100, torch.Generator().manual_seed(5)) for own in (made, plain))
    assert torch.equal(kept.states, whole.states)
    torch.testing.assert_close(kept.log_prob, whole.log_prob, rtol=0, atol=1e-5)


def test_a_memory_of_other_chains_gives_another_law() -> None:
    """The twin: keys and values belong to the chains that were read."""
    made = network()
    memory, other, x = made.memory(), made.memory(), torch.full((2, LENGTH), MASK)
    x[:, 0] = torch.tensor([0, 1])
    for remembered, rows in ((memory, x), (other, x.flip(0))):
        for _ in range(2):
            made(rows, torch.zeros(2), None, remembered)
    after = [made(x, torch.zeros(2), None, remembered)[:, 2] for remembered in (memory, other)]
    torch.testing.assert_close(after[0], made(x, torch.zeros(2))[:, 2], rtol=0, atol=1e-5)
    assert (after[0] - after[1]).abs().max() > 1e-3


@pytest.mark.parametrize("count", [None, 1, 3])
def test_steps_of_a_path_are_read_in_one_call_with_the_same_laws_and_gradients(count: int | None) -> None:
    made, behaviour = differently_tuned()
    path = rollout(behaviour, 6, torch.Generator().manual_seed(6))
    steps = choose_steps(path, torch.tensor([4, 0, 5]), count, torch.Generator().manual_seed(7))
    gradients = []
    for law in (steps.law(made), made.step(steps.x_t, steps.t, steps.s)):
        made.denoiser.zero_grad()
        log_prob = law.log_prob(steps.x_s)
        log_prob.square().sum().backward()
        gradients.append(
            (log_prob.detach(), *(p.grad.clone() for p in made.denoiser.parameters() if p.grad is not None))
        )
    for at_once, each in zip(*gradients, strict=True):
        torch.testing.assert_close(at_once, each, rtol=1e-4, atol=1e-5)
    with counting_passes(made) as passes:
        steps.law(made)
    assert passes.rows == 3, "one state of each path"


def test_other_chains_are_read_state_by_state() -> None:
    """More steps than positions, other orders and full attention are not read at once."""
    causal = network()
    assert policy(causal).at_once
    assert not policy(network(TransformerDenoiser)).at_once
    any_order = Policy(causal, Masked(LETTERS), TokenCodec("ABC", LENGTH), (LENGTH,), steps=LENGTH)
    process = Masked(LETTERS, reveal="independent", stages=in_order(LENGTH))
    finer = Policy(causal, process, TokenCodec("ABC", LENGTH), (LENGTH,), steps=2 * LENGTH)
    for other in (any_order, finer):
        assert not other.at_once
        assert other.stepping() == other.step


def test_a_run_reads_every_position_once() -> None:
    """As one call on finished designs does. The twin reads whole states at every step."""
    made, positions = policy(network()), []
    made.denoiser.tower[0].read.register_forward_pre_hook(
        lambda module, inputs: positions.append(inputs[0][..., 0].numel())
    )

    def read(chain: Policy) -> int:
        positions.clear()
        sample_states(chain, 8, torch.Generator())
        return sum(positions)

    assert read(made) == 8 * LENGTH
    assert read(without_memory(made)) == 8 * LENGTH**2
