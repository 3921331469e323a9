# %% [markdown]
# # Benchmarks
#
# Read from the result files in `benchmarks/` when this page was built: nothing here is typed. Commands, conditions and everything else that
# was measured are in the [notes](notes.md).

# %% tags=["remove"]
import json
import statistics
from collections import defaultdict
from pathlib import Path

import difftilt
from drawing import BLUE, GREEN, GREY, ORANGE, RED, axes, say, show, table

FOLDER = Path(difftilt.__file__).parents[2] / "benchmarks"


def commits(rows):
    """The commits that made some rows."""
    return ", ".join(
        f"`{commit}`" for commit in sorted({row["commit"] for row in rows})
    )


# %% [markdown]
# ## All methods at equal cost
#
# Each method tunes or steers the same shipped models with the same budget of reward calls. What counts is not the reward that it raised
# but the held-out **judge**, and how many nats it paid. The grey line is best-of-N, which needs no training at all.

# %% tags=["hide"]
STEER = {
    "best_of_n",
    "smc",
    "smc-value",
    "smc-bootstrap",
    "value_weighted",
    "refine",
    "classifier_guidance",
    "mcmc",
}


def middle(rows, name):
    """Median over seeds."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return statistics.median(values) if values else None


for title in ("utr-mrl", "yeast-promoter"):
    by_method = defaultdict(list)
    for path in sorted((FOLDER / "methods").glob(f"{title}-*.json")):
        row = json.loads(path.read_text())
        by_method[row["method"]].append(row)
    curve = by_method.pop("pool")[0]["best_of"]
    by_method.pop("log_z", None)
    done = {
        name: rows
        for name, rows in by_method.items()
        if middle(rows, "judge") and middle(rows, "kl_nats")
    }
    longest = 1.3 * curve[-1]["kl_nats"]
    figure, panel = axes(width=6.6, height=4.4)
    panel.plot(
        [point["kl_nats"] for point in curve],
        [point["judge"] for point in curve],
        ".-",
        color=GREY,
        lw=1.2,
        label="best of N",
    )
    spots = sorted(
        (
            (middle(rows, "kl_nats"), middle(rows, "judge"), name)
            for name, rows in done.items()
        ),
        key=lambda spot: spot[1],
    )
    spots = [
        spot for spot in spots if spot[0] <= longest and spot[2] != "best_of_n"
    ]
    heights, last = [], -1e9
    low, high = (
        min(spots[0][1], curve[0]["judge"]),
        max(spots[-1][1], curve[-1]["judge"]),
    )
    for kl, judge, name in spots:
        colour = ORANGE if name in STEER else BLUE
        panel.plot(kl, judge, "o" if colour == BLUE else "D", color=colour, ms=5)
        last = max(judge, last + 0.036 * (high - low))
        heights.append(last)
        panel.annotate(name, (kl, judge), (1.02 * longest, last), fontsize=8, color=colour, va="center", annotation_clip=False,
                       arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.4, "alpha": 0.6})  # fmt: skip
    panel.plot([], [], "o", color=BLUE, label="tuned")
    panel.plot([], [], "D", color=ORANGE, label="steered")
    panel.set(
        xlabel="KL to the pretrained model (nats)",
        ylabel="judge (mean)",
        title=title,
        xlim=(-0.1, longest),
    )
    panel.legend(loc="lower right")
    show(
        figure,
        f"{title}: judge against KL, medians over seeds; above the grey line is better than best-of-N for the same nats.",
    )
    rows = [row for mine in done.values() for row in mine]
    say(
        f"alpha {rows[0]['alpha']}, at most {max(row['oracle_calls'] for row in rows):,} reward calls, up to "
        f"{max(len(mine) for mine in done.values())} seeds. Command: `make bench-methods`; commits: {commits(rows)}. Beyond the right edge: "
        + (
            ", ".join(
                f"`{n}` ({middle(m, 'kl_nats'):.0f} nats)"
                for n, m in done.items()
                if middle(m, "kl_nats") > longest
            )
            or "none"
        )
        + "."
    )

# %% [markdown]
# ## The law that each method claims
#
# On problems whose answer is exact: the share of the pretrained model's KL to the claimed law that a method removes. Hollow: it claims no law
# there. [All rows](../truth.md).

# %% tags=["hide"]
truth = json.loads((FOLDER / "truth" / "default.json").read_text())
problems = list(dict.fromkeys(row["problem"] for row in truth["rows"]))
methods = list(
    dict.fromkeys(
        row["algorithm"] for row in truth["rows"] if row["kl_removed"] is not None
    )
)
figure, panel = axes(width=7.0, height=0.19 * len(methods) + 1.0)
for row in truth["rows"]:
    if row["kl_removed"] is None:
        continue
    left = max(1 - row["kl_removed"], 1e-5)
    colour = {True: GREEN, False: RED, None: GREY}[row["passed"]]
    panel.plot(
        left,
        methods.index(row["algorithm"]),
        "o",
        color=colour,
        ms=4.5,
        mfc=colour if row["passed"] is not None else "none",
        alpha=0.8,
    )
panel.set_yticks(range(len(methods)), methods, fontsize=7.5)
panel.set(
    xscale="log",
    xlabel="share of the KL that is left (log)",
    xlim=(8e-6, 3),
    ylim=(len(methods) - 0.5, -0.5),
)
panel.invert_xaxis()
show(
    figure,
    "Each dot is a method on a problem: how much of the KL to the law it claims is left. Green: the claim holds. Grey: none made.",
)
verdicts = [row["passed"] for row in truth["rows"]]
say(
    f"{verdicts.count(True)} claims hold, {verdicts.count(False)} fail; {len(problems)} problems. Command: `difftilt verify`; "
    f"commit `{truth['commit']}`, torch {truth['torch']}."
)

# %% [markdown]
# ## Campaigns
#
# Strategies of lab-in-the-loop campaigns on landscapes that were measured whole: mean rank by the best design found, over landscapes.

# %% tags=["hide"]
summary = json.loads(
    (FOLDER / "campaigns" / "tfbind8" / "summary.json").read_text()
)
ranks = sorted(
    summary["mean_ranks"]["best"].items(), key=lambda item: item[1]["mean"]
)
figure, panel = axes(width=5.4, height=2.4)
for i, (_, rank) in enumerate(ranks):
    panel.errorbar(
        rank["mean"], i, xerr=rank["half"], fmt="o", color=BLUE, capsize=3
    )
panel.set_yticks(range(len(ranks)), [name for name, _ in ranks])
panel.set(
    xlabel="mean rank (1 is best), 95 % interval", ylim=(len(ranks) - 0.5, -0.5)
)
show(
    figure,
    "tfbind8: mean rank of each strategy over landscapes, by the best design found.",
)
settings = summary["settings"]
say(
    f"{ranks[0][1]['n']} landscapes, {settings['rounds']} rounds of {settings['batch']} measurements, noise {settings['noise']}. More, and paired "
    "differences: [strategies](../strategies.md)."
)

# %% [markdown]
# ## Beside TRL, and the bare network

# %% tags=["hide"]
trl = json.loads((FOLDER / "against_trl.json").read_text())["rows"]
table(
    [
        {
            "work": name,
            "difftilt (CPU s)": row["difftilt"],
            "TRL (CPU s)": row["trl"],
            "against TRL": row["against_trl"],
            "against the bare network": row["against_bare"],
            "turns": row["runs"],
        }
        for name, row in trl.items()
    ]
)
say(
    f"Command: `python benchmarks/against_trl.py`, conditions in the [notes](notes.md#against_trl); commits: {commits(list(trl.values()))}."
)
