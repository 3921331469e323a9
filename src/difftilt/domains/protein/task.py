r"""Protein tasks: variants of a wild type, with residues numbered as in the literature.

Where p_pre is a law of near copies (a ``"variants"`` denoiser, and few mutations per site), three things are kept by
its sampler, and so by everything that is tuned or steered from it:

- the sites of note, e.g. a chromophore, are held as in the wild type;
- no design has more mutations than the designs of p_pre's law in the data (:mod:`~difftilt.networks.near`);
- p_pre learns only from designs that keep both.

With one's own data in the set's place the wild type is the task's, unless the designs are much nearer to their own
consensus (or of another length): then it is that, residues count from 1, and no site is of note.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from difftilt.core.codec import TokenCodec
from difftilt.core.policy import Policy
from difftilt.core.reward import Reward
from difftilt.core.trajectory import sample_states
from difftilt.domains.protein.alignment import Line, alignment
from difftilt.domains.protein.quality import PSEUDOCOUNT, against_sites, exact_fit, two_modes
from difftilt.domains.sequence import SAMPLES, SequenceTask
from difftilt.domains.task import Histogram, Picture, Scene, TaskData
from difftilt.metrics import proteins, sequences
from difftilt.networks.near import NearDenoiser, near
from difftilt.networks.variants import VariantDenoiser, site_frequencies
from difftilt.problems.enumerated import MOST_STATES
from difftilt.rewards.ensemble import EnsembleReward
from difftilt.rewards.near import Near
from difftilt.rng import Streams
from difftilt.training.designs import Describe
from difftilt.types import Bool, Float, Int, Tensor

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
RARE = 0.3
"""Mutations per site up to which designs are near copies, whose number of mutations is nearly Poisson."""
TOP = 8
"""Designs in the drawing."""
LONGEST_LOGO = 100
"""Residues beyond which a logo by position shows nothing."""


@dataclass(frozen=True, kw_only=True)
class ProteinTask(SequenceTask):
    """A named problem over variants of one protein."""

    alphabet: str = AMINO_ACIDS
    aliases: Mapping[str, str] = field(default_factory=dict)
    wild_type: str
    """The protein as it was found, or as it was first engineered."""
    numbers: Sequence[int]
    """Usual number of each residue."""
    noted: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Sites of note by name, as usual numbers; held as in the wild type where p_pre is a law of near copies."""
    bright: float | None = None
    """Score that parts two modes, of which the upper one works; ``None`` where there are no modes."""
    exact: bool = False
    """Whether designs can be enumerated, so that the card's numbers are exact."""

    # --- the wild type -------------------------------------------------------------------------------------------

    def reference(self, tokens: Int[Tensor, "N L"]) -> str:
        """The wild type of designs: the task's, or their consensus where that is much nearer."""
        codec = self.codec(tokens.shape[1])
        consensus = torch.stack([torch.bincount(column, minlength=codec.vocabulary).argmax() for column in tokens.T])
        if len(self.wild_type) == tokens.shape[1]:
            own = codec.encode([self.wild_type])[0]
            far, close = (proteins.mutations(tokens, w).double().mean() for w in (own, consensus))
            if far <= 2 * close + 1:
                return self.wild_type
        return codec.decode(consensus[None])[0]

    def wild_type_of(self, policy: Policy) -> str:
        """The wild type that ``policy`` was made with."""
        said = policy.card.get("wild_type")
        if said is None:
            for module in policy.denoiser.modules():
                tokens = getattr(module, "wild_type", None)
                if isinstance(tokens, Tensor) and isinstance(policy.codec, TokenCodec):
                    return policy.codec.decode(tokens[None])[0]
        if said is None and policy.event_shape[0] == len(self.wild_type):
            said = self.wild_type
        return str(said or "")

    def numbers_of(self, wild_type: str) -> Sequence[int]:
        """Usual numbers of residues; 1, 2, ... where the wild type is not the task's."""
        return self.numbers if wild_type == self.wild_type else range(1, len(wild_type) + 1)

    def held(self, wild_type: str) -> Bool[Tensor, " L"]:
        """Sites of note."""
        numbers = torch.tensor(list(self.numbers_of(wild_type)))
        noted = [number for site in self.noted.values() for number in site] if wild_type == self.wild_type else []
        return torch.isin(numbers, torch.tensor(noted, dtype=numbers.dtype))

    @property
    def split_note(self) -> str:
        """At random; what that means for variants of one protein."""
        if self.cluster_distance is not None:
            return super().split_note
        return "at random: no test variant was trained on, but its single mutations were, in others"

    # --- models --------------------------------------------------------------------------------------------------

    def untrained(self, process: str, data: TaskData, *, seed: int) -> Policy:
        """The prior's network; one of variants starts from the data's frequencies, near copies with their limits."""
        train = data.states[data.prior_train]
        wild_type = self.reference(train)
        tokens = self.codec(len(wild_type)).encode([wild_type])[0]
        prior = self.prior(process)
        if prior.denoiser["type"] != "variants":
            policy = super().untrained(process, data, seed=seed)
            policy.card["wild_type"] = wild_type
            return policy
        filled = {**prior.denoiser, "wild_type": tokens.tolist()}
        entry = replace(self, priors={**self.priors, process: replace(prior, denoiser=filled)})
        policy = super(ProteinTask, entry).untrained(process, data, seed=seed)
        assert isinstance(policy.denoiser, VariantDenoiser)
        policy.card = {"wild_type": wild_type}
        frequencies = site_frequencies(train, len(self.alphabet), pseudocount=PSEUDOCOUNT)
        if (train != tokens).double().mean() > RARE:
            policy.denoiser.start_from(frequencies)
            return policy
        learned = torch.cat([train, data.states[data.prior_validation], data.states[data.prior_test]])
        most = max(1, int(proteins.mutations(learned, tokens).max()))
        shares = proteins.mutation_shares(train, tokens, most) * len(train) + 0.5
        policy.denoiser.start_from(frequencies, shares / shares.sum())
        held = self.held(wild_type)
        if held.any():
            policy = policy.holding(tokens.where(held, -1))
        policy = near(policy, wild_type, most)
        policy.card["most_mutations"] = most
        return policy

    def fit(
        self, part: str, data: TaskData, *, seed: int, told: Callable[[str], None]
    ) -> tuple[EnsembleReward, dict[str, Any]]:
        """An ensemble of regressors; where scores have two modes, how well these are told apart besides."""
        tokens = self.codec(data.states.shape[1]).encode([self.reference(data.states)])[0]
        chosen = {
            name: {**spec, "wild_type": tokens.tolist()} if spec["type"] in ("variants", "stability") else spec
            for name, spec in (("reward", self.reward), ("judge", self.judge))
        }
        reward, metrics = super(ProteinTask, replace(self, **chosen)).fit(part, data, seed=seed, told=told)
        predicted, measured = reward(data.states[data.test]).double(), data.scores[data.test].double()
        if self.bright is not None and 0 < (measured > self.bright).sum() < len(measured):
            counts = proteins.mutations(data.states[data.test], tokens)
            metrics |= two_modes(predicted, measured, counts, self.bright)
        return reward, metrics

    def measure(self, policy: Policy, data: TaskData, *, seed: int) -> dict[str, Any]:
        """The bound beside simpler laws, and mutations of samples beside those of held-out designs."""
        wild_type = self.wild_type_of(policy)
        tokens = self.codec(len(wild_type)).encode([wild_type])[0]
        train, test = data.states[data.prior_train], data.states[data.prior_test]
        metrics: dict[str, Any] = {}
        if self.exact and (policy.process.vocabulary + 1) ** len(wild_type) <= MOST_STATES:
            metrics |= exact_fit(policy, data)
        elif limit_of(policy) is None:
            metrics |= super().measure(policy, data, seed=seed)
        else:
            metrics |= against_sites(policy, train, test, tokens, seed=seed)
        drawn = sample_states(policy, SAMPLES, Streams(seed)("mutations"))
        most = int(max(proteins.mutations(part, tokens).max() for part in (train, test, drawn)))
        shares = {name: proteins.mutation_shares(part, tokens, most) for name, part in (("s", drawn), ("t", test))}
        seen = set(self.codec(len(wild_type)).decode(train))
        designs = self.codec(len(wild_type)).decode(drawn)
        return metrics | {
            "sampled_mutations_mean": round(proteins.mutations(drawn, tokens).double().mean().item(), 3),
            "sampled_mutations_most": int(proteins.mutations(drawn, tokens).max()),
            "test_mutations_mean": round(proteins.mutations(test, tokens).double().mean().item(), 3),
            "test_mutations_most": int(proteins.mutations(test, tokens).max()),
            "mutations_total_variation": round(proteins.total_variation(shares["s"], shares["t"]), 4),
            "sampled_shares_by_mutations": " ".join(f"{share:.3f}" for share in shares["s"].tolist()),
            "test_shares_by_mutations": " ".join(f"{share:.3f}" for share in shares["t"].tolist()),
            "sampled_unique": round(sequences.unique_fraction(drawn), 4),
            "sampled_novel": round(sum(design not in seen for design in designs) / len(designs), 4),
        }

    # --- what people look at -------------------------------------------------------------------------------------

    def describe(self, policy: Policy, known: Any) -> Describe:
        """Mutations, BLOSUM62 distance to the wild type (with Biopython), uniqueness, diversity, novelty."""
        wild_type = self.wild_type_of(policy)
        tokens = self.codec(len(wild_type)).encode([wild_type])[0]
        common = super().describe(policy, None)
        similarity = proteins.blosum62(self.alphabet) if proteins.has_blosum() else None

        def describe(x_0: Tensor) -> dict[str, Any]:
            x_0 = x_0.cpu()
            facts = dict(common(x_0))
            facts.pop("kmer_correlation", None)  # of near copies it is 1 whatever they are
            if len(wild_type) > LONGEST_LOGO:
                facts.pop("position_frequencies")
            if isinstance(known, Tensor) and known.shape[1] == len(wild_type):
                facts["novelty"] = proteins.nearest_distance(x_0, known, tokens).double().mean().item()
            count = proteins.mutations(x_0, tokens)
            facts["mutations_from_wild_type"] = count.double().mean().item()
            facts["most_mutations"] = float(count.max())
            if similarity is not None:
                facts["blosum62_distance"] = proteins.blosum_distance(x_0, tokens, similarity).mean().item()
            return facts

        return describe

    def limited(self, reward: Reward, policy: Policy) -> Reward:
        """``reward`` within the limit of mutations that ``policy`` keeps; NaN beyond it, with the reason.

        Letters shown in one step can pass the limit together (:mod:`~difftilt.networks.near`).
        """
        most = limit_of(policy)
        return reward if most is None else Near(reward, self.wild_type_of(policy), most)

    def facts(self, policy: Policy) -> dict[str, Any]:
        """Wild type, first number, and the limits that the sampler keeps."""
        wild_type = self.wild_type_of(policy)
        numbers = list(self.numbers_of(wild_type))
        facts: dict[str, Any] = {**super().facts(policy), "wild_type": wild_type}
        consecutive = numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else False
        facts |= {"first_residue": numbers[0]} if consecutive else {"residues": numbers}
        most = limit_of(policy)
        if most is not None:
            facts["most_mutations"] = most
        if policy.fixed is not None:
            held = policy.fixed.cpu().tolist()
            facts["held"] = [
                f"{self.alphabet[token]}{number}" for token, number in zip(held, numbers, strict=True) if token >= 0
            ]
        return facts

    def pictures(self, scene: Scene) -> list[Picture | Histogram]:
        """The best designs against the wild type, and the number of mutations."""
        wild_type = self.wild_type_of(scene.pretrained)
        numbers = self.numbers_of(wild_type)
        tokens = self.codec(len(wild_type)).encode([wild_type])[0]
        best = best_designs(scene.after.designs, scene.after.reward, TOP)
        drawings: list[Picture | Histogram] = []
        if best:
            lines = [Line(design, f"{i}. {value:.3g}") for i, (design, value) in enumerate(best, start=1)]
            marked = self.noted if wild_type == self.wild_type else {}
            drawings.append(
                Picture(
                    name="alignment",
                    title="Best designs against the wild type",
                    caption=(
                        f"The {len(best)} best distinct designs by reward; columns in which none differs are left out. "
                        f"Residues are numbered {numbers[0]} to {numbers[-1]}, as in the literature on this protein."
                        if wild_type == self.wild_type
                        else f"The {len(best)} best distinct designs by reward; columns in which none differs are left "
                        "out. Residues are counted from 1."
                    ),
                    data=alignment(lines, wild_type, numbers, marked=marked, heading="reward"),
                )
            )
        groups = {"before": scene.before.x_0, "after": scene.after.x_0}
        if isinstance(scene.known, Tensor) and scene.known.shape[1] == len(wild_type):
            groups = {"data": scene.known, **groups}
        most = int(max(proteins.mutations(x.cpu(), tokens).max() for x in groups.values()))
        drawings.append(
            Histogram(
                name="mutations",
                title="Mutations from the wild type",
                axis="mutations",
                edges=[n - 0.5 for n in range(most + 2)],
                shares={k: proteins.mutation_shares(x.cpu(), tokens, most).tolist() for k, x in groups.items()},
            )
        )
        return drawings


def limit_of(policy: Policy) -> int | None:
    """Mutations that the sampler of ``policy`` keeps to; ``None`` without a limit."""
    return next((module.most for module in policy.denoiser.modules() if isinstance(module, NearDenoiser)), None)


def best_designs(designs: Sequence[str], reward: Float[Tensor, " N"], most: int) -> list[tuple[str, float]]:
    """The best distinct designs that have a reward, best first."""
    best: dict[str, float] = {}
    for index in reward.nan_to_num(-torch.inf).argsort(descending=True, stable=True).tolist():
        value = reward[index].item()
        if value == value and len(best) < most:
            best.setdefault(designs[index], value)
    return list(best.items())
