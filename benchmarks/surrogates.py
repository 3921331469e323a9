"""Surrogates where they are used: designs chosen by them, few rows; and many rows, fast.

- ``tfbind8``: eight rounds of 64 measurements with noise 0.02, drawn without repeats from the exact law (7) of theory,
  ``p_pre^{a/(a+b)} p_i^{b/(a+b)} exp((r_hat + C std) / (a + b))``, a = b = 0.05, over all 65,536 designs; p_pre is the
  Markov law of the worse half. Regret is that of J, as a share of ``a log Z - J(p_pre)``. Coverage is of the next
  round's measurements, pooled over rounds 3 to 8, with the spread as fitted and as tempered (which is what is used).
- ``utr``: 10,000 rows of length 50, 8 members: seconds to fit, Spearman on rows held out, seconds to score 10,000.
- ``members``: one training step of 8 members, batched against one after another.

Run: ``python benchmarks/surrogates.py`` (needs the data sets), then ``table``. Finished rows of ``--out`` are kept.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from parts import take_turns
from torch.func import functional_call

from difftilt import build
from difftilt.core.codec import TokenCodec
from difftilt.core.registry import construct
from difftilt.core.stats import spearman
from difftilt.data import load, random_split
from difftilt.problems.markov import markov_law
from difftilt.problems.tfbind import LETTERS
from difftilt.surrogates.calibration import calibration, temper
from difftilt.surrogates.ensemble import Ensemble
from difftilt.surrogates.gaussian_process import GaussianProcess
from difftilt.surrogates.linear import Linear
from difftilt.surrogates.measurements import Forecast, Measurements, readable
from difftilt.surrogates.surrogate import ROWS, Learner, Surrogate
from difftilt.surrogates.training import default_network, forward
from difftilt.tracking.run import provenance

LEARNERS: dict[str, Learner] = {
    "gaussian_process": GaussianProcess(),
    "gaussian_process-strands": GaussianProcess(both_strands=True),
    "linear": Linear(),
    "ensemble": Ensemble(),
}
FACTORS = ("SIX6_REF_R1", "KLF1_REF_R1", "ARX_REF_R1", "NR1H4_REF_R1", "GFI1_REF_R1", "POU4F3_REF_R1")
ROUNDS, BATCH, NOISE, ALPHA, BETA = 8, 64, 0.02, 0.05, 0.05


def predict_all(surrogate: Surrogate, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and std of all designs."""
    with torch.no_grad():
        mean, std = zip(*[surrogate.at(part) for part in x.split(ROWS)], strict=True)
    return torch.cat(mean), torch.cat(std)


def joined(forecasts: list[Forecast]) -> Forecast:
    """One after another."""
    return Forecast(*[torch.cat(part) for part in zip(*[vars(one).values() for one in forecasts], strict=True)])


def tfbind8(factor: str, name: str, c: float, seed: int) -> dict[str, Any]:
    """One campaign."""
    codec, rng = TokenCodec(LETTERS, 8), torch.Generator().manual_seed(seed)
    tokens = torch.cartesian_prod(*[torch.arange(4)] * 8)
    designs = codec.decode(tokens)
    table = load(f"tfbind8/{factor}")
    score = dict(zip(table.sequences, table.scores.tolist(), strict=True))
    truth = torch.tensor([score[design] for design in designs], dtype=torch.float64)
    x = readable(codec, designs)
    log_pre = markov_law(tokens[truth <= truth.median()], tokens, vocabulary=4).log()
    best = ALPHA * (log_pre + truth / ALPHA).logsumexp(0)
    start = log_pre.exp() @ truth
    log_p, rows, value, past, seconds = log_pre, [], torch.empty(0, dtype=torch.float64), [], 0.0
    raw, tempered, rounds = [], [], []
    for number in range(ROUNDS):
        chosen = torch.multinomial(log_p.exp(), BATCH, generator=rng)
        measured = truth[chosen] + NOISE * torch.randn(BATCH, generator=rng, dtype=torch.float64)
        if number:
            past.append(surrogate.forecast(mean[chosen], std[chosen], measured))
            if number > 1:
                raw.append(past[-1])
                tempered.append(calibration(past[-1], factor=surrogate.factor))
        rows += chosen.tolist()
        value = torch.cat([value, measured])
        begun = time.process_time()
        surrogate = LEARNERS[name].fit(codec, Measurements([designs[i] for i in rows], value), rng)
        surrogate = surrogate.tempered(temper(surrogate.held_out, joined(past[-2:]) if past else None))
        seconds += time.process_time() - begun
        mean, std = predict_all(surrogate, x)
        log_p = (ALPHA * log_pre + BETA * log_p + mean + c * std) / (ALPHA + BETA)
        log_p = log_p - log_p.logsumexp(0)
        reward, kl = log_p.exp() @ truth, log_p.exp() @ (log_p - log_pre)
        rounds.append({
            "reward": reward.item(), "regret": ((best - reward + ALPHA * kl) / (best - start)).item(),
            "best": value.max().item(), "spearman": spearman(mean, truth), "factor": surrogate.factor,
        })  # fmt: skip
    return {
        "part": "tfbind8", "factor": factor, "learner": name, "c": c, "seed": seed, "rounds": rounds,
        "as_fitted": asdict(calibration(joined(raw))),
        "coverage_50": sum(one.coverage_50 for one in tempered) / len(tempered),
        "coverage_90": sum(one.coverage_90 for one in tempered) / len(tempered),
        "coverage_90_by_round": [one.coverage_90 for one in tempered],
        "fit_cpu_seconds": seconds / ROUNDS,
    }  # fmt: skip


def utr(seed: int) -> dict[str, Any]:
    """Many rows."""
    entry = build.task("utr-mrl")
    table = entry.read()
    table = table.take(entry.rows(table))
    codec, y = entry.codec(50), torch.from_numpy(table.scores).double()
    train, test, _ = (torch.from_numpy(part) for part in random_split(len(y), (0.6, 0.1, 0.3), seed=seed))
    train = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:10_000]]
    given = Measurements([table.sequences[i] for i in train.tolist()], y[train])
    begun, cpu = time.monotonic(), time.process_time()
    surrogate = Ensemble().fit(codec, given, torch.Generator().manual_seed(seed))
    fitted, cpu = time.monotonic() - begun, time.process_time() - cpu
    mean, std = surrogate.predict([table.sequences[i] for i in test.tolist()])
    begun = time.monotonic()
    surrogate.predict(given.designs)
    scored = time.monotonic() - begun
    inside = ((y[test] - mean).abs() <= 1.644854 * surrogate.predictive_std(std)).double().mean().item()
    return {
        "part": "utr", "seed": seed, "rows": len(train), "members": 8, "threads": torch.get_num_threads(),
        "fit_seconds": fitted, "fit_cpu_seconds": cpu, "score_10000_seconds": scored,
        "spearman": spearman(mean, y[test]), "coverage_90": inside,
    }  # fmt: skip


def members(length: int) -> dict[str, Any]:
    """One step of training, forward and backward, of 8 members."""
    with torch.random.fork_rng():
        made = [construct("regressor", default_network((length, 4))) for _ in range(8)]
    stacked, _ = torch.func.stack_module_state(made)
    p = torch.nn.functional.one_hot(torch.arange(128 * length).view(128, length) % 4, 4).float()

    def batched() -> None:
        forward(made[0], stacked, p).square().mean().backward()

    def one_by_one() -> None:
        for e in range(8):
            one = {name: value[e] for name, value in stacked.items()}
            functional_call(made[0], one, (p,)).square().mean().backward()

    times = take_turns(30, {"batched": batched, "one by one": one_by_one})
    best = {name: min(seconds) for name, seconds in times.items()}
    return {"part": "members", "length": length, "seconds": best, "ratio": best["one by one"] / best["batched"]}


def parts(seed: int) -> Iterator[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]:
    """What identifies each part, and its work."""
    for length in (8, 50):
        yield {"part": "members", "length": length}, lambda length=length: members(length)
    yield {"part": "utr", "seed": seed}, lambda: utr(seed)
    for factor in FACTORS:
        for c in (0.0, 1.0):
            for name in LEARNERS:
                yield (
                    {"part": "tfbind8", "factor": factor, "learner": name, "c": c, "seed": seed},
                    lambda factor=factor, name=name, c=c: tfbind8(factor, name, c, seed),
                )


COLUMNS: dict[str, Callable[[dict[str, Any]], float]] = {
    "E[r]": lambda row: row["rounds"][-1]["reward"],
    "regret": lambda row: row["rounds"][-1]["regret"],
    "Spearman, 128 rows": lambda row: row["rounds"][1]["spearman"],
    "512 rows": lambda row: row["rounds"][-1]["spearman"],
    "90 %, as fitted": lambda row: row["as_fitted"]["coverage_90"],
    "tempered": lambda row: row["coverage_90"],
    "50 %": lambda row: row["coverage_50"],
    "s per fit": lambda row: row["fit_cpu_seconds"],
}


def table(rows: list[dict[str, Any]]) -> None:
    """Means over the factors and seeds that every surrogate has finished, as Markdown."""
    runs = {(row["learner"], row["c"], row["factor"], row["seed"]): row for row in rows if row["part"] == "tfbind8"}
    kinds = [(name, c) for name in LEARNERS for c in (0.0, 1.0)]
    done = [one for one in {key[2:] for key in runs} if all((*kind, *one) in runs for kind in kinds)]
    print(f"{len(done)} campaigns each: {', '.join(sorted(factor for factor, _ in done))}\n")
    print("| surrogate | C | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 2) + "|")
    for kind in kinds:
        means = [sum(value(runs[*kind, *one]) for one in done) / len(done) for value in COLUMNS.values()]
        print(f"| {kind[0]} | {kind[1]:g} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("run", "table"), default="run")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = json.loads(options.out.read_text()) if options.out.is_file() else []
    if options.what == "table":
        return table(rows)
    for key, work in parts(options.seed):
        if not any(key.items() <= row.items() for row in rows):
            rows.append(work() | provenance())
            print(json.dumps({name: value for name, value in rows[-1].items() if name != "rounds"}), flush=True)
            options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
