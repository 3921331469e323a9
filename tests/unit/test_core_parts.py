"""Registry, codec, grids, random streams and statistics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from difftilt.core.codec import Codec, TokenCodec
from difftilt.core.registry import construct, describe, lookup, register
from difftilt.core.reward import score
from difftilt.core.schedule import anneal, uniform_grid
from difftilt.core.stats import effective_sample_size, kl_k1, kl_k3, log_mean_exp, mean_and_error
from difftilt.errors import ConfigError, DataError, ShapeError
from difftilt.processes.masked import Masked
from difftilt.rng import Streams

# --- registry -----------------------------------------------------------------------------------------------------


def test_a_described_part_is_constructed_again():
    spec = describe(Masked(5, "independent"))
    assert spec == {"type": "masked", "vocabulary": 5, "reveal": "independent"}
    again = construct("process", spec)
    assert isinstance(again, Masked)
    assert describe(again) == spec


def test_an_unknown_name_proposes_the_nearest():
    with pytest.raises(ConfigError, match="got 'maskd'; did you mean 'masked'"):
        lookup("process", "maskd")
    with pytest.raises(ConfigError, match="choose one of"):
        lookup("process", "zzzz")


def test_an_unregistered_subclass_does_not_pass_for_its_parent():
    class Special(Masked):
        """Another kernel; saved as "masked" it would load as something else."""

    with pytest.raises(ConfigError, match="got Special; decorate"):
        describe(Special(4))
    register("process", "special-for-this-test")(Special)
    assert describe(Special(4))["type"] == "special-for-this-test"
    assert describe(Masked(4))["type"] == "masked"


# --- codec --------------------------------------------------------------------------------------------------------


@given(st.lists(st.text("ACGT", min_size=7, max_size=7), max_size=5))
def test_designs_come_back_from_their_tokens(designs):
    codec = TokenCodec("ACGT", 7)
    tokens = codec.encode(designs)
    assert tokens.shape == (len(designs), 7)
    assert codec.decode(tokens) == designs


def test_tokens_follow_the_alphabet():
    codec = TokenCodec("ACGT", 4, aliases={"U": "T"})
    assert codec.encode(["ACGT", "acgu", "UUuu"]).tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [3, 3, 3, 3]]
    assert codec.decode(torch.tensor([[3, 2, 1, 0]])) == ["TGCA"]
    assert codec.vocabulary == 4
    assert isinstance(codec, Codec)
    assert TokenCodec(**codec.config()).encode(["ACGU"]).tolist() == [[0, 1, 2, 3]]


def test_an_alphabet_with_both_cases_keeps_them_apart():
    for alphabet in ("Cc", "cC"):
        codec = TokenCodec(alphabet, 2)
        assert codec.decode(codec.encode(["Cc", "cC"])) == ["Cc", "cC"]


@pytest.mark.parametrize(
    ("designs", "message"),
    [
        (["ACGT", "ACG"], "expected designs of 4 letters; got 3 letters in design 2"),
        (["ACGT", "ACNT"], "got 'N' in design 2, position 3"),
        (["ACG–"], "got '–' in design 1, position 4"),
        (["ACG?"], "got '\\?' in design 1, position 4"),
        ([""], "got 0 letters in design 1"),
    ],
)
def test_a_design_that_cannot_be_read_is_named(designs, message):
    with pytest.raises(DataError, match=message):
        TokenCodec("ACGT", 4).encode(designs)


def test_a_masked_state_is_no_design():
    with pytest.raises(ShapeError, match="got token 4"):
        TokenCodec("ACGT", 2).decode(torch.tensor([[0, 4]]))


def test_scores_keep_nan_for_infeasible_designs():
    scores = score(
        lambda designs: [math.nan if "A" in d else len(d) for d in designs],
        TokenCodec("AC", 2),
        torch.tensor([[0, 1], [1, 1]]),
    )
    assert scores.value.dtype == torch.float64
    assert scores.feasible.tolist() == [False, True]
    assert scores.mean == 2.0
    nothing = score(lambda designs: [math.nan] * len(designs), TokenCodec("AC", 2), torch.tensor([[0, 1]]))
    assert math.isnan(nothing.mean)


# --- grids --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3, 16, 1000])
def test_a_uniform_grid_ends_exactly(steps):
    grid = uniform_grid(steps)
    assert grid.dtype == torch.float64
    assert (grid[0], grid[-1], len(grid)) == (1.0, 0.0, steps + 1)
    torch.testing.assert_close(grid.diff(), torch.full((steps,), -1 / steps, dtype=torch.float64))


def test_a_grid_of_no_steps_is_refused():
    with pytest.raises(ConfigError, match="at least 1 step; got 0"):
        uniform_grid(0)


def test_anneal_is_geometric_and_clipped():
    assert [anneal(1.0, 0.01, u) for u in (-1, 0, 0.5, 1, 2)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])


# --- random streams -----------------------------------------------------------------------------------------------


def draw(streams: Streams, name: str, n: int = 4) -> list[float]:
    return torch.rand(n, generator=streams(name)).tolist()


def test_a_stream_depends_on_seed_and_name_only():
    one, two = Streams(3), Streams(3)
    draw(one, "update", 100)  # draws elsewhere do not move it
    assert draw(one, "rollout") == draw(two, "rollout")
    assert draw(Streams(3), "rollout") != draw(Streams(3), "update")
    assert draw(Streams(3), "rollout") != draw(Streams(4), "rollout")
    assert draw(two, "rollout") != draw(Streams(3), "rollout")  # it advances


def test_streams_are_resumed_where_they_were():
    one = Streams(3)
    draw(one, "rollout")
    state = {name: value.clone() for name, value in one.state_dict().items()}
    expected = draw(one, "rollout"), draw(one, "fresh")
    two = Streams(3)
    draw(two, "other")
    two.load_state_dict(state)
    assert (draw(two, "rollout"), draw(two, "fresh")) == expected
    assert set(two.state_dict()) == {"rollout", "fresh"}


def test_streams_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    draw(Streams(3), "rollout")
    assert torch.equal(before, torch.random.get_rng_state())


# --- statistics ---------------------------------------------------------------------------------------------------


def test_log_mean_exp_in_logs_only():
    w = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    expected = math.log((1 + math.e + math.e**2) / 3)
    assert log_mean_exp(w).item() == pytest.approx(expected)
    assert log_mean_exp(w + 5000).item() == pytest.approx(expected + 5000)
    assert log_mean_exp(torch.tensor([-math.inf, 0.0])).item() == pytest.approx(-math.log(2))
    assert log_mean_exp(torch.tensor([-math.inf, -math.inf])).item() == -math.inf


def test_effective_sample_size_counts_equal_weights():
    w = torch.tensor([1.0, 1.0, 1.0, -math.inf], dtype=torch.float64)
    assert effective_sample_size(w).item() == pytest.approx(3)
    assert effective_sample_size(w - 2000).item() == pytest.approx(3)
    assert effective_sample_size(torch.tensor([2.0, 1.0]).log().double()).item() == pytest.approx(9 / 5)
    assert effective_sample_size(torch.full((3,), -math.inf)).item() == 0


def test_k1_and_k3_have_the_kl_as_their_mean():
    p, q = torch.tensor([0.2, 0.3, 0.5]).double(), torch.tensor([0.6, 0.3, 0.1]).double()
    log_ratio = (p / q).log()
    kl = (p * log_ratio).sum()
    torch.testing.assert_close((p * kl_k1(log_ratio)).sum(), kl)
    torch.testing.assert_close((p * kl_k3(log_ratio)).sum(), kl)
    assert kl_k1(log_ratio).min() < 0 <= kl_k3(log_ratio).min()
    tiny = torch.tensor([1e-9], dtype=torch.float64)
    assert kl_k3(tiny).item() == pytest.approx(0.5e-18, abs=1e-19)  # not lost to cancellation


def test_mean_and_its_error():
    mean, error = mean_and_error(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert (mean, error) == (2.5, pytest.approx(math.sqrt(5 / 3 / 4)))
    assert math.isnan(mean_and_error(torch.tensor([1.0]))[1])
