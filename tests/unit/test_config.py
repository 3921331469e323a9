"""Settings to TOML and back."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from difftilt.config import from_mapping, read_toml, to_toml
from difftilt.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    steps: int = 3
    budget: float | None = None
    place: Path | None = None
    log: bool = False
    inner: Inner = field(default_factory=Inner)


def test_settings_survive_the_way_to_toml_and_back():
    settings = Outer(steps=7, budget=1.5, place=Path("a/b"), log=True, inner=Inner(0.1, ("x", "y")))
    assert from_mapping(Outer, tomllib.loads(to_toml(settings))) == settings


def test_what_is_none_is_left_out_and_becomes_the_default():
    text = to_toml(Outer())
    assert "budget" not in text
    assert from_mapping(Outer, tomllib.loads(text)) == Outer()


def test_a_whole_number_serves_where_a_number_is_expected():
    assert from_mapping(Outer, {"budget": 2}).budget == 2.0
    assert isinstance(from_mapping(Inner, {"rate": 1}).rate, float)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"step": 1}, "expected a known setting in settings; got 'step'; did you mean 'steps'?"),
        ({"inner": {"rates": 1}}, "expected a known setting in settings.inner; got 'rates'; did you mean 'rate'?"),
        ({"steps": 1.5}, "expected int for settings.steps; got 1.5; correct it"),
        ({"steps": True}, "expected int for settings.steps; got True; correct it"),
        ({"budget": "8"}, "expected float or None for settings.budget; got '8'; correct it"),
        ({"log": 1}, "expected bool for settings.log; got 1; correct it"),
    ],
)
def test_wrong_settings_are_explained(values, said):
    with pytest.raises(ConfigError) as caught:
        from_mapping(Outer, values)
    assert str(caught.value) == said


def test_a_file_that_is_no_toml_is_explained(tmp_path):
    file = tmp_path / "x.toml"
    with pytest.raises(ConfigError, match="got no such file"):
        read_toml(file)
    file.write_text("steps = \n")
    with pytest.raises(ConfigError, match=r"expected TOML in .*line 1"):
        read_toml(file)
    with pytest.raises(ConfigError, match="expected a settings file"):
        read_toml(tmp_path)
