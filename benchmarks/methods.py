"""All methods side by side, each with at most 20,000 oracle calls and 4 CPU minutes to train or steer.

Run: ``make bench-methods``, or ``python benchmarks/methods.py run --jobs 2``, then ``table`` and ``plot``. One part:
``python benchmarks/methods.py one TASK METHOD SEED``. Finished parts are kept in ``--out`` and not run again.

Every method gets the same task, reward, alpha and calls, among them those for its 1,000 designs or more.
``value_weighted`` and ``smc-value`` follow a soft value regressed on 8,192 of their calls, other samplers plug-in
values. A method that the clock stopped says so.

Parts besides methods: log Z from the pretrained model alone, once for each task (shared by all gaps, its calls not
counted), and ``pool``: 20,000 pretrained designs, from which best-of-N is known for every N.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from parts import log_z_row, run_missing, write_part

import difftilt as dt
from difftilt import build
from difftilt.core.algorithm import Weighted
from difftilt.core.policy import Policy, counting_passes
from difftilt.core.reward import Reward
from difftilt.core.stats import log_mean_exp
from difftilt.errors import UnsupportedError
from difftilt.metrics.log_z import LogZ
from difftilt.rewards.oracle import Oracle, as_oracle
from difftilt.rng import Streams
from difftilt.training.designs import best_of, draw
from difftilt.training.evaluate import evaluate_steered

CALLS, DESIGNS, CLOCK = 20_000, 1000, 240.0
VALUE_CALLS = 8192
SEEDS = (0, 1, 2)
ALPHA = {"utr-mrl": 0.1, "yeast-promoter": 0.5}
"""Reward units per nat."""

TRAINED: dict[str, dict[str, Any]] = {
    "ppo": {"steps_per_path": 4},
    "reinforce": {"steps_per_path": 4, "batch": 128},
    "reward_backprop": {"tau_updates": 200},
    "trajectory_balance": {"steps_per_path": 4, "log_z": "learned"},
    "vargrad": {"steps_per_path": 4},
    "path_consistency": {"steps_per_path": 4},
    "detailed_balance": {"steps_per_path": 4},
    "reward_weighted_mle": {"steps_per_path": 4, "batch": 128},
    "renoised_mle": {"steps_per_path": 4, "batch": 128},
    "value_weighted_mle": {"steps_per_path": 4, "value_paths": VALUE_CALLS, "batch": 64},
    "raft": {"steps_per_path": 4},
    "distill": {"teacher": "refine", "effort": 9, "batch": 128, "steps_per_path": 4},
    "adjoint_matching": {},
}
"""Settings that differ from the defaults; learning rate 2e-3 throughout."""
SAME = {"subtrajectory_balance": "path_consistency"}
"""Methods whose loss is another's times a constant, which Adam does not see."""
UPDATE_CALLS = {"distill": 10 * 128, "value_weighted_mle": 64 + 64}
"""Calls of an update, where they are not one for each path of the batch."""
STEERED: dict[str, tuple[Any, int, bool]] = {
    "best_of_n": (lambda alpha: dt.BestOfN(candidates=CALLS // DESIGNS), DESIGNS, False),
    "value_weighted": (lambda alpha: dt.ValueWeighted(alpha=alpha, candidates=11), DESIGNS, True),
    "smc": (lambda alpha: dt.SMC(alpha=alpha), 1024, False),
    "smc-value": (lambda alpha: dt.SMC(alpha=alpha), 11_776, True),
    "smc-bootstrap": (lambda alpha: dt.SMC(alpha=alpha, kind="bootstrap"), 19_968, False),
    "refine": (lambda alpha: dt.Refine(alpha=alpha, moves=19), DESIGNS, False),
    "classifier_guidance": (lambda alpha: dt.ClassifierGuidance(alpha=alpha), DESIGNS, False),
    "mcmc": (lambda alpha: dt.MCMC(alpha=alpha), DESIGNS, False),
}
"""Sampler, designs (in four rounds), and whether a value is regressed first."""
ROUNDS = 4
FIVE = ("ppo", "reward_backprop", "trajectory_balance", "reward_weighted_mle", "smc-value")
METHODS = {"utr-mrl": (*TRAINED, *STEERED), "yeast-promoter": (*FIVE, "best_of_n")}


@dataclass(frozen=True)
class Setting:
    """A task with everything that its methods share."""

    name: str
    alpha: float
    policy: Policy
    oracle: Oracle
    judge: Reward
    log_z: LogZ
    describe: Callable[[torch.Tensor], dict[str, Any]]


def setting(task: str, out: Path) -> Setting:
    """Load a task; its log Z must be there."""
    entry = build.task(task)
    policy = build.load_task_policy(entry)
    known = json.loads((out / f"{task}-log_z-0.json").read_text())
    judge = build.load_judge(entry)
    assert judge is not None
    return Setting(
        task,
        ALPHA[task],
        policy,
        as_oracle(build.load_reward(entry, None)),
        judge,
        LogZ(**{field.name: known[field.name] for field in fields(LogZ)}),
        entry.describe(policy, entry.known()),
    )


def train(given: Setting, method: str, seed: int) -> dict[str, Any]:
    """Tune within the calls and the clock, then evaluate."""
    algorithm = build.algorithm(method)(alpha=given.alpha, learning_rate=2e-3, **TRAINED[method])
    left = CALLS - DESIGNS - (VALUE_CALLS if method == "value_weighted_mle" else 0)
    updates = left // UPDATE_CALLS.get(method, algorithm.batch)
    started, bought = time.process_time(), [0]

    def late(record: dict[str, Any]) -> bool:
        bought.append(given.oracle.calls)
        if bought[-1] + (bought[-1] - bought[-2]) > CALLS - DESIGNS:
            return True
        return time.process_time() - started > CLOCK

    result = dt.finetune(
        given.policy, given.oracle, algorithm, loop=dt.LoopConfig(steps=updates, seed=seed), on_step=late
    )
    seconds, done, calls = time.process_time() - started, result.history[-1], given.oracle.calls
    out_of_time = seconds > CLOCK and done["step"] < updates
    with given.oracle.evaluating():
        evaluation = dt.evaluate(
            result.policy,
            result.pretrained,
            given.oracle,
            alpha=given.alpha,
            judge=given.judge,
            independent=given.log_z,
            designs=DESIGNS,
            training_calls=calls,
            describe=given.describe,
            seed=seed,
        )
    facts, gap = evaluation.facts, evaluation.gap
    return {
        "updates": done["step"],
        "out_of_time": out_of_time,
        "designs": DESIGNS,
        **outcome(facts["after"]),
        "kl_nats": facts["kl_nats"]["mean"],
        "kl_sense": "estimate",
        "gap_nats": gap.gap_nats,
        "gap_error": gap.error,
        "verdict": gap.verdict,
        "ess_fraction": gap.ess_fraction,
        "oracle_calls": calls + DESIGNS,
        "network_evaluations": done["network_evaluations"],
        "seconds": seconds,
    }


def steer(given: Setting, method: str, seed: int) -> dict[str, Any]:
    """Steer within the calls and the clock, then evaluate."""
    make, designs, regressed = STEERED[method]
    sampler, streams, started = make(given.alpha), Streams(seed), time.process_time()
    policy, parts = given.policy.frozen_copy(), []
    value = None
    with counting_passes(policy) as passes:
        if regressed:
            rng = streams("value")
            value = build.soft_value("regression", policy, given.oracle, rng, alpha=given.alpha, samples=VALUE_CALLS)
        while len(parts) < ROUNDS and time.process_time() - started < CLOCK:
            parts.append(sampler(policy, given.oracle, designs // ROUNDS, streams("steer"), value=value))
    seconds, calls = time.process_time() - started, given.oracle.calls
    drawn = Weighted(
        torch.cat([part.x_0 for part in parts]),
        torch.cat([part.log_weight for part in parts]),
        None if parts[0].log_z is None else log_mean_exp(torch.tensor([part.log_z for part in parts])).item(),
    )
    with given.oracle.evaluating():
        facts = evaluate_steered(
            drawn,
            policy,
            given.oracle,
            alpha=given.alpha,
            judge=given.judge,
            independent=given.log_z,
            steering_calls=calls,
            kl_bound=getattr(sampler, "kl_bound", None),
            population=getattr(sampler, "particles", 1),
            describe=given.describe,
            seed=seed,
        ).facts
    return {
        "out_of_time": len(parts) < ROUNDS,
        "designs": len(drawn.x_0),
        **outcome(facts["after"]),
        "kl_nats": facts["kl_nats"]["mean"],
        "kl_sense": facts["kl_nats"]["sense"],
        "effective_designs": facts["effective_designs"],
        "oracle_calls": calls,
        "network_evaluations": passes.rows,
        "seconds": seconds,
    }


def outcome(after: dict[str, Any]) -> dict[str, float]:
    """Means of the designs."""
    own = ("feasible_fraction", "unique_fraction", "diversity", "novelty", "kmer_correlation")
    means = ("reward", "judge", "pretrained_log_likelihood")
    return {name: after[name]["mean"] for name in means} | {name: after[name] for name in own if name in after}


def pool(given: Setting, seed: int) -> dict[str, Any]:
    """Best-of-N from 20,000 pretrained designs."""
    drawn = draw(given.policy, given.policy, given.oracle, given.judge, CALLS, Streams(seed)("pool"))
    chosen = [best_of(2**power, drawn) for power in range(10)]
    return {"best_of": [{"n": row["n"], "kl_nats": row["kl_bound_nats"], **_pair(row)} for row in chosen]}


def _pair(row: dict[str, Any]) -> dict[str, float]:
    return {"reward": row["reward"], "judge": row["judge"]}


def one(task: str, method: str, seed: int, out: Path) -> dict[str, Any]:
    """Run one part and return its row."""
    torch.set_num_threads(1)
    head = {"task": task, "method": method, "seed": seed, "alpha": ALPHA[task]}
    if method == "log_z":
        return head | log_z_row(task, ALPHA[task], 4096)
    given, cpu = setting(task, out), time.process_time()
    try:
        row = pool(given, seed) if method == "pool" else (train if method in TRAINED else steer)(given, method, seed)
    except UnsupportedError as error:
        return head | {"undefined": str(error)}
    assert method == "pool" or row["oracle_calls"] <= CALLS, row
    return head | row | {"cpu_seconds": time.process_time() - cpu}


def run(out: Path, jobs: int) -> None:
    """Run what is missing: all methods with the first seed first."""
    for name in ("log_z", "pool"):
        run_missing(__file__, out, [[task, name, "0"] for task in METHODS], jobs)
    parts = [[task, method, str(seed)] for seed in SEEDS for task, methods in METHODS.items() for method in methods]
    run_missing(__file__, out, parts, jobs)


def rows(out: Path, task: str) -> dict[str, list[dict[str, Any]]]:
    """Finished rows of each method of a task."""
    found = [json.loads(path.read_text()) for path in sorted(out.glob(f"{task}-*.json"))]
    return {method: [row for row in found if row["method"] == method] for method in METHODS[task]}


def median(mine: list[dict[str, Any]], key: str) -> float | None:
    """Median over seeds; ``None`` where a row lacks it."""
    values = [row.get(key) for row in mine]
    return None if not values or None in values else statistics.median(values)  # ty: ignore[invalid-argument-type]


COLUMNS = {
    "reward": "{:.3f}",
    "judge": "{:.3f}",
    "kl_nats": "{:.2f}",
    "gap_nats": "{:.2f}",
    "diversity": "{:.3f}",
    "novelty": "{:.1f}",
    "unique_fraction": "{:.0%}",
    "oracle_calls": "{:,.0f}",
    "seconds": "{:.0f}",
}


def table(out: Path) -> str:
    """Medians over seeds, a table for each task, the highest judge first."""
    lines = []
    for task in METHODS:
        found = {method: mine for method, mine in rows(out, task).items() if mine}
        done = {method: mine for method, mine in found.items() if "undefined" not in mine[0]}
        names = ("method", "seeds", *(name.replace("_", " ") for name in COLUMNS), "notes")
        lines += ["", f"### `{task}`, alpha {ALPHA[task]}", "", f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
        for method, mine in sorted(done.items(), key=lambda item: -(median(item[1], "judge") or 0)):
            cells = []
            for name, form in COLUMNS.items():
                middle = median(mine, name)
                cells.append("-" if middle is None else form.format(middle))
            lines.append(f"| {method} | {len(mine)} | {' | '.join(cells)} | {notes(mine)} |")
        lines += [
            "",
            *(f"`{method}`: {mine[0]['undefined']}  " for method, mine in found.items() if method not in done),
        ]
        lines += [
            f"`{name}`: the same as `{other}`, whose loss it has times a constant."
            for name, other in SAME.items()
            if other in found
        ]
    return "\n".join(lines).strip()


def notes(mine: list[dict[str, Any]]) -> str:
    """What a reader must know of these rows."""
    said = []
    if "verdict" in mine[0]:
        said.append(f"gap certified in {sum(row['verdict'] == 'certified' for row in mine)} of {len(mine)}")
    if mine[0]["kl_sense"] != "estimate":
        said.append(f"KL {mine[0]['kl_sense']} this")
    late = sum(row["out_of_time"] for row in mine)
    said += [f"stopped by the clock in {late} of {len(mine)}"] if late else []
    return "; ".join(said)


def plot(out: Path) -> None:
    """Judge against KL: each method's median over seeds, and best-of-N for every N."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "difftilt", "font.size": 9})
    import matplotlib.pyplot as plt

    for task in METHODS:
        figure, axes = plt.subplots(figsize=(7.2, 5), layout="constrained")
        curve = json.loads((out / f"{task}-pool-0.json").read_text())["best_of"]
        kls, judges = [point["kl_nats"] for point in curve], [point["judge"] for point in curve]
        axes.plot(kls, judges, color="0.6", marker=".", label="best of N")
        for point in curve[2::2]:
            axes.annotate(f"N = {point['n']}", (point["kl_nats"], point["judge"]), (4, -11), color="0.5",
                          textcoords="offset points", fontsize=7)  # fmt: skip
        spots, beyond = [], []
        for method, mine in rows(out, task).items():
            kl, judge = median(mine, "kl_nats"), median(mine, "judge")
            bound = bool(mine) and mine[0].get("kl_sense") == "at least"
            if kl is None or judge is None or method == "best_of_n" or (bound and kl == 0):
                continue
            if kl > 2 * kls[-1]:  # it would press all others together
                beyond.append(f"{method}: judge {judge:.2f} at {kl:.0f} nats")
                continue
            spots.append((judge, kl, f"{method} (KL at least)" if bound else method))
            colour = "C0" if method in TRAINED else "C1"
            axes.plot(kl, judge, "o" if method in TRAINED else "D", color=colour, ms=5, mfc="none" if bound else colour)
        low, high = axes.get_ylim()
        below = 2.0  # names in a column at the right, in order, a line to each
        for judge, kl, name in sorted(spots, reverse=True):
            below = min(below - 0.045, (judge - low) / (high - low))
            axes.annotate(name, (kl, judge), (1.03, below), textcoords="axes fraction", fontsize=7, va="center",
                          arrowprops={"arrowstyle": "-", "color": "0.8", "lw": 0.6})  # fmt: skip
        axes.plot([], [], "o", color="C0", label="tuned")
        axes.plot([], [], "D", color="C1", label="steered")
        axes.set_xlabel("KL to the pretrained model, nats" + "".join(f"  ({text}, not drawn)" for text in beyond))
        axes.set_ylabel(f"judge, {build.task(task).score_name}")
        axes.legend(frameon=False, loc="lower right")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(out / f"{task}.svg", metadata={"Date": None})
        plt.close(figure)


def main() -> None:
    """Parse the command and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "methods")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run").add_argument("--jobs", type=int, default=2)
    commands.add_parser("table")
    commands.add_parser("plot")
    single = commands.add_parser("one")
    single.add_argument("task", choices=METHODS)
    single.add_argument("method", choices=["log_z", "pool", *METHODS["utr-mrl"]])
    single.add_argument("seed", type=int)
    options = parser.parse_args()
    if options.command == "run":
        run(options.out, options.jobs)
    elif options.command == "table":
        print(table(options.out))
    elif options.command == "plot":
        plot(options.out)
    else:
        part = [options.task, options.method, str(options.seed)]
        row = one(options.task, options.method, options.seed, options.out)
        write_part(options.out, part, row)
        print(json.dumps(row))


if __name__ == "__main__":
    main()
