r"""Hard constraints on designs, kept by the sampler: letters that could not be completed any more are never shown.

.. math:: p^C(x_s \mid x_t) = \rho(R \mid x_t) \prod_{i \in R}
    \frac{\pi^i(x_s^i \mid x_t)\, 1[x_s^i \in A_i(x_t)]}{\sum_{v \in A_i(x_t)} \pi^i(v \mid x_t)}           \qquad (1)

:math:`A_i(x_t)` are the letters that stand at ``i`` in some design which keeps the constraints and has all letters that
:math:`x_t` shows (:mod:`~difftilt.campaigns.automaton`, exact). With one token per step the chain (1) ends in designs
that keep them, in every one that :math:`p_{pre}` gives a chance, and is :math:`p_{pre}` where nothing is excluded.
p_pre and the tuned policy are both run by (1), so that their KL is that of the constrained chains, and
:math:`p_{pre}^C` takes the place of :math:`p_{pre}` in equation (7). Its law is not :math:`p_{pre}(\cdot \mid C)`: each
step is normalised by itself.

Letters shown in one step do not know each other, so that several of them can break a constraint together. Such designs
have no reward, and none is proposed: they are dropped, and counted. So it is with processes whose letters are not shown
one by one (all but the masked one), and with designs that are known or to be avoided.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from difftilt.campaigns.automaton import Automaton
from difftilt.campaigns.earlier import read_as
from difftilt.campaigns.settings import Constraints
from difftilt.core.codec import Codec, TokenCodec, fault_of
from difftilt.core.fixing import hold
from difftilt.core.policy import Policy, trainable
from difftilt.core.reward import DifferentiableReward
from difftilt.errors import ConfigError, UnsupportedError
from difftilt.processes.masked import Masked
from difftilt.types import Bool, Condition, Float, Tensor

SITES = {
    "AscI": "GGCGCGCC", "BamHI": "GGATCC", "BbsI": "GAAGAC", "BglII": "AGATCT", "BsaI": "GGTCTC", "BsmBI": "CGTCTC",
    "ClaI": "ATCGAT", "EcoRI": "GAATTC", "EcoRV": "GATATC", "HindIII": "AAGCTT", "KpnI": "GGTACC", "MluI": "ACGCGT",
    "NcoI": "CCATGG", "NdeI": "CATATG", "NheI": "GCTAGC", "NotI": "GCGGCCGC", "PacI": "TTAATTAA", "PstI": "CTGCAG",
    "SacI": "GAGCTC", "SalI": "GTCGAC", "SapI": "GCTCTTC", "SmaI": "CCCGGG", "SpeI": "ACTAGT", "XbaI": "TCTAGA",
    "XhoI": "CTCGAG",
}  # fmt: skip
"""Restriction sites by name, 5' to 3'."""
CODES = {
    "A": "A", "C": "C", "G": "G", "T": "T", "R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC",
    "B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT",
}  # fmt: skip
"""IUPAC codes."""
MOST_WORDS = 4096


class ConstrainedDenoiser(nn.Module):
    """Equation (1): a denoiser whose letters that are not allowed have logit ``-inf``.

    Where the letters shown cannot be completed any more, the denoiser's own letters stay.

    Args:
        base: the denoiser, over tokens.
        automaton: what is allowed.
    """

    def __init__(self, base: nn.Module, automaton: Automaton) -> None:
        super().__init__()
        self.base, self.automaton = base, automaton
        self.time_free = getattr(base, "time_free", False)

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition | None = None) -> Float[Tensor, "B L V"]:
        """Logits of tokens ``[B, L]`` or relaxed tokens ``[B, L, V + 1]``."""
        allowed = self.automaton.allowed(x_t if x_t.ndim == 2 else x_t.detach().argmax(-1))
        allowed = allowed | ~allowed.any(-1, keepdim=True)
        return self.base(x_t, t, cond).masked_fill(~allowed, -torch.inf)

    def trainable(self) -> list[nn.Parameter]:
        """Those of the denoiser."""
        return trainable(self.base)

    def wake(self) -> None:
        """Tells the denoiser that it is tuned."""
        getattr(self.base, "wake", lambda: None)()


class Rules:
    """Constraints, ready to be kept by policies of one chain.

    Args:
        settings: what is to be kept.
        policy: whose codec and process are meant.

    Raises:
        ConfigError: a constraint that makes no sense of these designs, or no design keeps all of them.
        DataError: the file of designs to avoid cannot be read.
        UnsupportedError: constraints on letters, of designs that have none.
    """

    def __init__(self, settings: Constraints, policy: Policy) -> None:
        self.settings, self.codec, self._held = settings, policy.codec, policy.fixed
        self.avoided = frozenset(() if settings.avoid is None else read_as(policy.codec, settings.avoid).sequences)
        self.automaton = _automaton(settings, policy.codec)
        held = hold(policy, settings.fix)
        self.fixed = held.fixed if settings.fix else None
        self.sampled = isinstance(policy.process, Masked)
        if self.automaton is not None and self.sampled:
            first = held.prior(1, torch.Generator(policy.device).manual_seed(0))
            if not self.automaton.keeps(first).item():
                raise ConfigError("expected constraints that some design keeps; got none that does; relax one of them")

    def on(self, policy: Policy) -> Policy:
        """The policy run by (1), with the fixed letters held."""
        held = hold(policy, self.settings.fix)
        if self.automaton is None or not self.sampled:
            return held
        return held.with_denoiser(ConstrainedDenoiser(held.denoiser, self.automaton))

    def off(self, policy: Policy) -> Policy:
        """The policy that :meth:`on` was given, as it is saved."""
        inside = policy.denoiser
        plain = policy.with_denoiser(inside.base) if isinstance(inside, ConstrainedDenoiser) else policy
        return plain.holding(self._held) if self.settings.fix else plain

    @torch.no_grad()
    def keeps(self, designs: Sequence[Any]) -> Bool[Tensor, " B"]:
        """Which designs keep the constraints on letters, fixed ones too."""
        kept = torch.ones(len(designs), dtype=torch.bool)
        if self.automaton is None and self.fixed is None:
            return kept
        assert isinstance(self.codec, TokenCodec)
        letters = TokenCodec.encode(self.codec, designs)
        if self.fixed is not None:
            fixed = self.fixed.to(letters)
            kept &= ((letters == fixed) | (fixed < 0)).all(1)
        return kept if self.automaton is None else kept & self.automaton.keeps(letters)


class Kept:
    """A reward of designs that keep the constraints and have a state, by which a surrogate reads them.

    The others have none.

    Args:
        reward: of every design.
        rules: the constraints.
    """

    def __init__(self, reward: DifferentiableReward, rules: Rules) -> None:
        self.reward, self.rules = reward, rules

    def __call__(self, designs: Sequence[Any]) -> Float[Tensor, " B"]:
        """Reward units; NaN where a constraint is broken, or there is no state."""
        rows = [row for row, design in enumerate(designs) if fault_of(self.rules.codec, design) is None]
        readable = [designs[row] for row in rows]
        values = torch.full((len(designs),), torch.nan, dtype=torch.float64)
        if readable:
            value = torch.as_tensor(self.reward(readable), dtype=torch.float64)
            values = values.to(value.device)
            values[rows] = value.where(self.rules.keeps(readable).to(value.device), torch.nan)
        return values

    def on_probabilities(self, p: Float[Tensor, "B *event"]) -> Float[Tensor, " B"]:
        """The reward of relaxed designs, of which no constraint is defined. Gradient flows."""
        return self.reward.on_probabilities(p)


def _automaton(settings: Constraints, codec: Codec) -> Automaton | None:
    """What keeps the constraints on letters; ``None`` where there are none."""
    asked = (settings.forbid, settings.longest_run, settings.gc_min, settings.gc_max, settings.parent)
    if not any(entry not in (None, ()) for entry in asked):
        return None
    if not isinstance(codec, TokenCodec):
        raise UnsupportedError(
            f"expected designs of letters for constraints; got {type(codec).__name__}; leave them out"
        )
    letters = {letter: token for token, letter in enumerate(codec.alphabet)}
    nucleic = set(codec.alphabet) in ({*"ACGT"}, {*"ACGU"})
    letters |= {"T": letters.get("T", letters.get("U", 0))} if nucleic else {}
    words = {word for entry in settings.forbid for word in _words(entry, letters, nucleic=nucleic)}
    if settings.both_strands:
        if not nucleic:
            raise ConfigError(f"expected DNA or RNA with both_strands; got letters {codec.alphabet}; leave it out")
        pair = {letters[a]: letters[b] for a, b in ("AT", "CG", "GC", "TA")}
        words |= {tuple(pair[v] for v in reversed(word)) for word in words}
    if settings.longest_run is not None:
        words |= {(v,) * (settings.longest_run + 1) for v in range(codec.vocabulary)}
    if (settings.gc_min, settings.gc_max) != (None, None) and not nucleic:
        raise ConfigError(f"expected DNA or RNA with a range of GC; got letters {codec.alphabet}; leave it out")
    low, high = settings.gc_min or 0.0, 1.0 if settings.gc_max is None else settings.gc_max
    least, most = math.ceil(low * codec.length - 1e-9), math.floor(high * codec.length + 1e-9)
    parent = None if settings.parent is None else TokenCodec.encode(codec, [settings.parent])[0]
    counted = [letters[v] for v in "GC"] if nucleic else []
    if least > most:
        raise ConfigError(f"expected a range of GC that {codec.length} letters can meet; got {low} to {high}; widen it")
    return Automaton(sorted(words), codec.length, codec.vocabulary, counted=counted, least=least, most=most,
                     parent=parent, mutations=settings.mutations or 0)  # fmt: skip


def _words(entry: str, letters: dict[str, int], *, nucleic: bool) -> list[tuple[int, ...]]:
    """Words that a setting forbids, as tokens.

    Raises:
        ConfigError: no letters of the alphabet, or too many words.
    """
    named = {name.casefold(): site for name, site in SITES.items()} if nucleic else {}
    text = named.get(entry.casefold(), entry.upper().replace("U", "T") if nucleic else entry)
    options = [CODES.get(letter, "") if nucleic else letter for letter in text]
    if not text or not all(option and all(letter in letters for letter in option) for option in options):
        raise ConfigError(
            f"expected a word of the designs' letters or a restriction site; got '{entry}'; known sites: "
            f"{', '.join(SITES)}"
        )
    words = list(itertools.islice(itertools.product(*options), MOST_WORDS + 1))
    if len(words) > MOST_WORDS:
        raise ConfigError(f"expected at most {MOST_WORDS} words; got more by the codes of '{entry}'; shorten it")
    return [tuple(letters[letter] for letter in word) for word in words]
