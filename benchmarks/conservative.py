r"""Pessimism on a fixed data set (BRAID): designs tuned for ``r_hat - std`` beside designs tuned for ``r_hat``.

A surrogate is fitted once and p_pre is tuned for it; nothing is measured after. The judge is the measured table, noise
free. *Promised* is :math:`E_p[\hat r]`, and over-optimisation is what was promised less what the judge says,

.. math:: E_p[\hat r] - E_p[r], \qquad p \propto p_{pre}\, e^{(\hat r - c \sigma) / \alpha}               \qquad (1)

``law`` rows are of (1) itself, summed over all designs, so that no tuning blurs the comparison. ``tuned`` rows are of
the policy that ``conservative`` and ``greedy`` tune for it, with their method and 32 updates; ``to_law`` is its KL to
(1), nats: a policy that is not near (1) says nothing of it.

The p_pre of campaigns on ``tfbind8`` ties both strands: it tunes both readings of a site alike, so that it aims at (1)
of the *mean over both* of :math:`\hat r - c \sigma`, and cannot follow what the model says of one reading alone. That
is ``tied law``, in closed form. ``tuned`` starts from the same law without the tie, so that it aims at (1).

Pessimism can only help where the model is wrong, knows it, and is led there. So data cover one region, and p_pre more:

- ``lead``: a library around a lead, as made by error-prone PCR. The lead is the best of 32 draws of p_pre, the data are
  128 of its mutants with 1 to 3 substitutions (1 or 2 of the four sites of gb1). p_pre goes far beyond them.
- ``draws``: 128 draws of p_pre, which cover evenly what it makes. The control: there is little to be known better.

The landscapes of :data:`CHOSEN_ON` were looked at while these numbers, c = 1, 16 members and the priors of the ensemble
were chosen. The others were run once, after that. On SIX6, 32 updates at a learning rate of 0.016 were seen to come
within 0.08 nats of (1), of 6 to 8 that p_pre is away.

Run: ``python benchmarks/conservative.py`` (needs the data sets), then ``table``. Finished rows of ``--out`` are kept.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from difftilt.campaigns.acquisition import acquisition
from difftilt.campaigns.learning import Learned
from difftilt.campaigns.settings import Tuning
from difftilt.campaigns.simulation.landscape import Landscape
from difftilt.campaigns.simulation.summary import mean_of
from difftilt.campaigns.update import tune
from difftilt.core.policy import Policy
from difftilt.core.stats import spearman
from difftilt.core.trajectory import sample_states
from difftilt.lab.landscapes import BINDING, landscape
from difftilt.problems.joint import JointDenoiser
from difftilt.rng import Streams
from difftilt.surrogates.calibration import temper
from difftilt.surrogates.ensemble import Ensemble
from difftilt.surrogates.gaussian_process import GaussianProcess
from difftilt.surrogates.linear import Linear
from difftilt.surrogates.measurements import Measurements
from difftilt.surrogates.surrogate import ROWS, Learner, Prediction, Surrogate
from difftilt.tracking.run import provenance

HOW = {"conservative": "lcb", "mean": "mean"}
LEARNERS: dict[str, Learner] = {
    "additive": Linear(features=("one_hot",)),
    "linear": Linear(),
    "ensemble": Ensemble(members=16),
    "gaussian process": GaussianProcess(),
}
CHOSEN_ON = tuple(name for name in BINDING if any(factor in name for factor in ("SIX6", "ARX", "KLF1", "NR1H4")))
HELD_OUT = tuple(name for name in BINDING if name not in CHOSEN_ON)
GROUPS = {
    "tfbind8, 7 held out": HELD_OUT, "tfbind8, 5 chosen on": CHOSEN_ON, "splicing": ("splicing",), "gb1": ("gb1",)
}  # fmt: skip
KNOWN, NOISE, C, FIRST, UPDATES, RATE = 128, 0.02, 1.0, 32, 32, 0.016
MOST = {"gb1": 2}
"""Substitutions of a mutant; else 3."""
COOLER = (1.0, 0.4)
"""Temperatures, as shares of the landscape's own."""


def mutants(parent: torch.Tensor, n: int, vocabulary: int, most: int, rng: torch.Generator) -> torch.Tensor:
    """Distinct mutants ``[n, L]`` of tokens ``[L]``, with 1 to ``most`` substitutions."""
    found: dict[tuple[int, ...], None] = {}
    while len(found) < n:
        child, number = parent.clone(), int(torch.randint(1, most + 1, (1,), generator=rng))
        places = torch.randperm(len(parent), generator=rng)[:number]
        child[places] = (child[places] + torch.randint(1, vocabulary, (number,), generator=rng)) % vocabulary
        found[tuple(child.tolist())] = None
    return torch.tensor(list(found))


def known_of(own: Landscape, coverage: str, rng: torch.Generator) -> Measurements:
    """What is known: designs as ``coverage`` says, measured once each; NaN where infeasible."""
    codec = own.prior.codec
    designs = codec.decode(sample_states(own.prior, FIRST if coverage == "lead" else KNOWN, rng))
    if coverage == "lead":
        value = torch.as_tensor(own.oracle(designs)).double().nan_to_num(nan=-torch.inf)
        lead = codec.encode([designs[int(value.argmax())]])[0]
        designs = codec.decode(mutants(lead, KNOWN, codec.vocabulary, MOST.get(own.name, 3), rng))  # ty: ignore
    value = torch.as_tensor(own.oracle(designs)).double()
    return Measurements(designs, value + NOISE * torch.randn(len(designs), generator=rng).double())


@torch.no_grad()
def predictions(surrogate: Surrogate, own: Landscape) -> Prediction:
    """Mean and std of every feasible design."""
    codec = own.prior.codec
    every = torch.cartesian_prod(*[torch.arange(codec.vocabulary)] * codec.length)[~own.table.isnan()]  # ty: ignore
    parts = [surrogate.at(torch.nn.functional.one_hot(part, codec.vocabulary).double()) for part in every.split(ROWS)]
    return Prediction(*(torch.cat(column) for column in zip(*parts, strict=True)))


def judged(p: torch.Tensor, found: Prediction, own: Landscape) -> dict[str, float]:
    """A law over the feasible designs."""
    there = ~own.table.isnan()
    value, log_pre = own.table[there], own.log_pre[there]
    said, promised = (p @ value).item(), (p @ found.mean).item()
    return {
        "judge": said, "promised": promised, "over_optimisation": promised - said,
        "kl": (torch.xlogy(p, p) - p * log_pre).sum().item(),
    }  # fmt: skip


@lru_cache(maxsize=1)
def fitted(task: str, coverage: str, kind: str, seed: int) -> tuple[Landscape, Surrogate, Prediction]:
    """A landscape, a surrogate of its data, tempered, and what that says of every feasible design."""
    own, streams = landscape(task), Streams(seed)
    data = known_of(own, coverage, streams(f"data-{coverage}"))
    surrogate = LEARNERS[kind].fit(own.prior.codec, data, streams("fit"))
    surrogate = surrogate.tempered(temper(surrogate.held_out))
    return own, surrogate, predictions(surrogate, own)


def laws(task: str, coverage: str, kind: str, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of (1)."""
    began = time.process_time()
    own, _, found = fitted(task, coverage, kind, seed)
    there = ~own.table.isnan()
    error = found.mean - own.table[there]
    for share in COOLER:
        for name, c in {"conservative": C, "mean": 0.0}.items():
            p = (own.log_pre[there] + (found.mean - c * found.std) / (share * own.alpha)).softmax(0)
            reached = torch.multinomial(p, 2000, replacement=True, generator=Streams(seed)("reached"))
            yield {"share": share, "how": name} | judged(p, found, own) | {
                "std": (p @ found.std).item(), "std_of_p_pre": (own.log_pre[there].softmax(0) @ found.std).item(),
                "rank_correlation_of_std_and_error": spearman(found.std[reached], error[reached]),
                "seconds": time.process_time() - began,
            }  # fmt: skip


def tied_laws(task: str, coverage: str, kind: str, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of (1) for what a policy that ties both strands is tuned for; of DNA that is measured everywhere."""
    own, _, found = fitted(task, coverage, kind, seed)
    for share in COOLER:
        for name, c in {"conservative": C, "mean": 0.0}.items():
            reward = found.mean - c * found.std
            both = (reward + other_strand(reward, own.prior.codec.length)) / 2  # ty: ignore
            yield {"share": share, "how": name} | judged(
                (own.log_pre + both / (share * own.alpha)).softmax(0), found, own
            )


def tuned(task: str, coverage: str, kind: str, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of policies that strategies tune for (1)."""
    own, surrogate, found = fitted(task, coverage, kind, seed)
    prior, there = untied(own), ~own.table.isnan()
    for name, how in HOW.items():
        began, rng = time.process_time(), Streams(seed)("tune")
        reward = acquisition(how, Learned(surrogate, None, {}), rng, c=C, temperature=own.alpha)
        settings = Tuning(alpha=own.alpha, beta=0.0, updates=UPDATES, learning_rate=RATE)
        law = own.law(tune(prior, prior, reward, settings, rng, told=None).policy)[there]
        p, c = law / law.sum(), {"conservative": C, "mean": 0.0}[name]
        aim = (own.log_pre[there] + (found.mean - c * found.std) / own.alpha).log_softmax(0)
        to_law = (torch.xlogy(p, p) - p * aim).sum().item()
        yield {"share": 1.0, "how": name} | judged(p, found, own) | {
            "to_law": to_law, "updates": UPDATES, "seconds": time.process_time() - began,
        }  # fmt: skip


def other_strand(value: torch.Tensor, length: int) -> torch.Tensor:
    """The value of each design's reverse complement; letters in the order ACGT."""
    axes = tuple(range(length))
    return value.view([4] * length).permute(axes[::-1]).flip(axes).flatten()


def untied(own: Landscape) -> Policy:
    """p_pre with tables for each design alone."""
    codec = own.prior.codec
    law = own.log_pre.exp().view([codec.vocabulary] * codec.length)  # ty: ignore
    return own.prior.with_denoiser(JointDenoiser.of(law)).frozen_copy()


KINDS = {"law": laws, "tied law": tied_laws, "tuned": tuned}


def table(rows: list[dict[str, Any]]) -> str:
    """Means over landscapes, or over seeds of one; paired differences with 95 % intervals."""
    head = "| law | landscapes | data | surrogate | alpha | n | judge | over-optimisation | KL | judge, difference | over-optimisation, difference | KL to (1) |"  # noqa: E501
    lines = [head, "|" + "---|" * 12]
    for what, coverage, (group, tasks), kind, share in itertools.product(
        KINDS, ("lead", "draws"), GROUPS.items(), LEARNERS, COOLER
    ):
        own = [
            row for row in rows if row["what"] == what and row["coverage"] == coverage and row["task"] in tasks
            and row["surrogate"] == kind and row["share"] == share
        ]  # fmt: skip
        if own:
            lines.append(f"| {what} | {group} | {coverage} | {kind} | x {share:g} | {_line(own)} |")
    return "\n".join(lines) + "\n"


def _line(own: list[dict[str, Any]]) -> str:
    """Both means, and their difference by landscape, or by seed of one landscape."""
    by = "task" if len({row["task"] for row in own}) > 1 else "seed"
    units = sorted({row[by] for row in own})

    def of(how: str, field: str) -> list[float]:
        each = [[row[field] for row in own if row["how"] == how and row[by] == unit] for unit in units]
        return [sum(found) / len(found) for found in each]

    both = []
    for field in ("judge", "over_optimisation", "kl"):
        low, mean = (mean_of(of(how, field)) for how in HOW)
        assert low is not None
        assert mean is not None
        digits = 1 if field == "kl" else 3
        both.append(f"{mean.mean:.{digits}f} to {low.mean:.{digits}f}")
    apart = [
        mean_of(a - b for a, b in zip(*(of(how, field) for how in HOW), strict=True))
        for field in ("judge", "over_optimisation")
    ]
    far = [row["to_law"] for row in own if "to_law" in row]
    nearness = f"{sum(far) / len(far):.3f}, at most {max(far):.3f}" if far else ""
    return " | ".join([str(len(units)), *both, *("" if one is None else one.text() for one in apart), nearness])


def parts() -> Iterator[tuple[str, str, str, str, int]]:
    """Kind of law, task, coverage, surrogate and seed of each part."""
    for what, coverage, tasks, seeds in (
        ("law", "lead", HELD_OUT, 2), ("law", "draws", HELD_OUT, 1), ("law", "lead", ("splicing", "gb1"), 3),
        ("law", "lead", CHOSEN_ON, 2),
    ):  # fmt: skip
        for task, seed, kind in itertools.product(tasks, range(seeds), LEARNERS):
            yield what, task, coverage, kind, seed
    extrapolating = itertools.product(range(2), ("ensemble", "additive", "linear"))
    for seed, kind in (*extrapolating, *itertools.product(range(2), ("gaussian process",))):
        for task, what in itertools.product(HELD_OUT, ("tied law", "tuned")):
            yield what, task, "lead", kind, seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("run", "table"), default="run")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--parts", type=int, help="run at most so many of those that are missing")
    options = parser.parse_args()
    rows = json.loads(options.out.read_text())["rows"] if options.out.is_file() else []
    if options.what == "table":
        print(table(rows), end="")
        return
    torch.set_num_threads(1)
    key = ("what", "task", "coverage", "surrogate", "seed")
    done = {tuple(row[name] for name in key) for row in rows}
    missing = [part for part in parts() if part not in done]
    for part in missing[: options.parts]:
        what, *of = part
        rows += [dict(zip(key, part, strict=True)) | row for row in KINDS[what](*of)]  # ty: ignore
        options.out.write_text(json.dumps({"rows": rows, **provenance()}, indent=1) + "\n")
        print(*part, flush=True)


if __name__ == "__main__":
    main()
