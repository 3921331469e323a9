# %% [markdown]
# # 10. Over-optimisation: when the reward rises and the truth does not
#
# **The question.** The reward is a model, fitted to few measurements. Tuning searches exactly where it is wrong in our favour. How far can it
# be trusted, how is the moment noticed when it should not be, and what helps?

# %% tags=["hide"]
import json
import statistics
from pathlib import Path

import torch
from drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    VIOLET,
    axes,
    say,
    show,
    size,
    table,
)

# %% [markdown]
# ## A reward model, and the truth beside it
#
# A landscape of six letters whose truth is a table, so that nothing has to be estimated. What a laboratory gets to see is a few designs of the pretrained
# model, measured once each, with more noise than the designs differ. On these it fits a surrogate: a mean, and how unsure it is
# ([`Linear`][difftilt.surrogates.linear.Linear]). Like every model it lacks something: it looks at letters one by one, and the truth has pairs. Since one
# laboratory may be lucky, here are several, with different designs and noise.

# %%
from difftilt.core.trajectory import sample_states
from difftilt.problems.landscapes import random_pairwise
from difftilt.surrogates.linear import Linear
from difftilt.surrogates.measurements import Measurements

problem = random_pairwise(length=6, letters=4, alpha=0.5, target_kl=3.0, seed=1)
codec, truth, p_pre = (
    problem.pretrained.codec,
    problem.table,
    problem.pretrained_law,
)
every = codec.decode(problem.chain.designs)


def laboratory(seed, measurements=20):
    """A surrogate fitted to a few designs; its mean and std of every design."""
    rng = torch.Generator().manual_seed(seed)
    measured = codec.decode(sample_states(problem.pretrained, measurements, rng))
    value = torch.as_tensor(problem.reward(measured))
    value = value + 1.5 * value.std() * torch.randn(
        len(value), generator=rng, dtype=torch.float64
    )
    surrogate = Linear(features=("one_hot",)).fit(
        codec, Measurements(measured, value), rng
    )
    return surrogate, *surrogate.predict(every)


laboratories = [laboratory(seed) for seed in range(size(12, 2))]
surrogate, mean, std = laboratories[0]

# %% tags=["hide"]
figure, panel = axes(width=5.0, height=3.0)
dots = panel.scatter(mean, truth, c=std, s=6, cmap="viridis", rasterized=True)
panel.axline((truth.mean().item(), truth.mean().item()), slope=1, color=GREY, lw=1)
figure.colorbar(dots, ax=panel, label="std of the surrogate")
panel.set(xlabel="reward model (mean)", ylabel="truth")
show(
    figure,
    "Every design: what the model says, and what is true. Far right lie those it likes best; below the line it is too kind.",
)

# %% [markdown]
# ## Turn the dial
#
# The tilted law of the *model* is exact, for every `alpha`. So is its true mean reward: the **judge**. Going to smaller `alpha` spends more nats:
#
# $$
# p_\alpha(x) \propto p_{pre}(x)\, e^{\hat r(x)/\alpha}, \qquad
# \text{over-optimisation} = E_{p_\alpha}[\hat r] - E_{p_\alpha}[r] \qquad (1)
# $$

# %%
alphas = torch.logspace(1.0, -1.5, 60, dtype=torch.float64)


def dial(reward, believed):
    """KL, promised and true mean reward of the tilted law, for every alpha."""
    rows = []
    for alpha in alphas:
        law = (p_pre.log() + reward / alpha).softmax(0)
        kl = (torch.xlogy(law, law) - law * p_pre.log()).sum()
        rows.append([kl.item(), (law @ believed).item(), (law @ truth).item()])
    return torch.tensor(rows, dtype=torch.float64).T


def average(c):
    """Over laboratories, for a reward of the mean less ``c`` std."""
    return torch.stack(
        [dial(mean - c * std, mean) for _, mean, std in laboratories]
    ).mean(0)


ideal = dial(truth, truth)
kl, promised, judged = average(0.0)
peak = int(judged.argmax())

# %% tags=["hide"]
figure, panel = axes(width=5.6, height=3.1)
for _, mean_of, _ in laboratories:
    spent, _, true = dial(mean_of, mean_of)
    panel.plot(spent, true, color=ORANGE, lw=0.6, alpha=0.5)
panel.plot(kl, promised, color=BLUE, label="promised by the model")
panel.plot(kl, judged, color=ORANGE, label="true")
panel.plot(
    ideal[0], ideal[2], color=GREY, ls="--", lw=1.2, label="had we known the truth"
)
panel.fill_between(kl, judged, promised, color=RED, alpha=0.12, lw=0)
panel.plot(kl[peak], judged[peak], "o", color=ORANGE)
panel.set(xlabel="KL to the pretrained law (nats)", ylabel="mean reward")
panel.legend(fontsize=8)
show(
    figure,
    "The red area is over-optimisation: the promise grows with every nat, and the truth falls behind it. Thin lines: the truth of each laboratory.",
)
say(
    f"On average the truth is at its highest, {judged[peak]:.2f}, at {kl[peak]:.1f} nats, where the model promises {promised[peak]:.2f}. At the smallest alpha, "
    f"{kl[-1]:.1f} nats, it promises {promised[-1]:.2f}, and the truth is {judged[-1]:.2f}."
)

# %% [markdown]
# The same on real models. Reward and judge of the benchmark's runs on 5'UTRs, where both are networks trained on disjoint halves of the data:

# %% tags=["hide"]
import difftilt

FOLDER = Path(difftilt.__file__).parents[2] / "benchmarks"
RUNS = {
    "ppo": "methods/utr-mrl-ppo",
    "reward_backprop": "methods/utr-mrl-reward_backprop",
    "raft, no KL": "methods/utr-mrl-raft",
    "ppo, sharper": "utr_mrl/ppo-sharp",
    "reward_backprop, sharper": "utr_mrl/reward_backprop-sharp",
}
rows = []
for name, start in RUNS.items():
    found = [
        json.loads(path.read_text())
        for path in sorted(FOLDER.glob(f"{start}-[0-9].json"))
    ]
    middle = {
        key: statistics.median(row[key] for row in found)
        for key in ("kl_nats", "reward", "judge")
    }
    rows.append(
        {
            "run": name
            if "raft" in name
            else f"{name} (alpha {found[0]['alpha']})",
            **middle,
        }
    )
table(
    [
        {
            "run": row["run"],
            "KL (nats)": row["kl_nats"],
            "reward": row["reward"],
            "judge": row["judge"],
            "reward less judge": row["reward"] - row["judge"],
        }
        for row in sorted(rows, key=lambda row: row["kl_nats"])
    ]
)
say("Medians over seeds, from `benchmarks/methods` and `benchmarks/utr_mrl`.")

# %% [markdown]
# ## Remedy 1: a budget of nats
#
# Nobody knows a good `alpha` beforehand, but how far a model may be trusted is easier to say in nats. With `--kl-budget`, or here `kl_budget`, the price is
# found during the run:

# %%
import difftilt as dt
from difftilt.surrogates.rewards import Bound

updates, budget = size(60, 3), 2.0
run = dt.finetune(
    problem.tunable(),
    Bound(surrogate),
    dt.PPO(alpha=1.0, batch=size(128, 8), learning_rate=0.05),
    loop=dt.LoopConfig(steps=updates, kl_budget=budget, judge_every=1),
    judge=problem.reward,
)

# %% tags=["hide"]
figure, panels = axes(3, width=8.2, height=2.5)
steps = [line["step"] for line in run.history]
panels[0].plot(steps, [line["kl_nats"] for line in run.history], color=BLUE)
panels[0].axhline(budget, color=GREY, ls="--", lw=1)
panels[0].set(xlabel="updates", ylabel="KL (nats)", title="spent")
panels[1].plot(steps, [line["alpha"] for line in run.history], color=VIOLET)
panels[1].set(xlabel="updates", ylabel="reward per nat", title="alpha, as found")
panels[2].plot(
    steps, [line["reward"] for line in run.history], color=BLUE, label="reward"
)
panels[2].plot(
    steps, [line["judge"] for line in run.history], color=ORANGE, label="judge"
)
panels[2].set(xlabel="updates", ylabel="mean", title="reward and judge")
panels[2].legend(fontsize=8)
show(
    figure,
    "A run with a budget: alpha falls until the budget is met, and hovers there. This laboratory's model is flatter than the truth, so the judge is above it.",
)

# %% [markdown]
# ## Remedy 2: pessimism
#
# The model also says how unsure it is. On a fixed data set, where nothing more will be measured, tune for what it is *sure* of (BRAID):
#
# $$
# \hat r(x) - C\, g(x) \qquad (2)
# $$
#
# with the epistemic std `g` ([`Bound`][difftilt.surrogates.rewards.Bound] with a negative `c`). A *positive* `c` explores, which is for campaigns
# ([tutorial 11](11-campaign.md)).

# %%
pessimistic = {c: average(c) for c in (0.0, 1.0, 2.0)}

# %% tags=["hide"]
figure, panels = axes(2, width=7.8, height=3.0, sharex=True)
for (c, (spent, said, true)), colour in zip(
    pessimistic.items(), (ORANGE, GREEN, BLUE), strict=True
):
    panels[0].plot(spent, true, color=colour, label=f"C = {c:g}")
    panels[1].plot(spent, said - true, color=colour)
panels[0].plot(
    ideal[0], ideal[2], color=GREY, ls="--", lw=1.2, label="had we known the truth"
)
panels[0].set(ylabel="true mean reward", xlabel="KL to the pretrained law (nats)")
panels[1].set(ylabel="promised less true", xlabel="KL to the pretrained law (nats)")
figure.legend(fontsize=8, loc="outside upper center", ncols=4)
show(
    figure,
    "Left: the truth reached for so many nats, by pessimism. Right: how much less the promise is off.",
)

# %% tags=["hide"]
conservative = json.loads((FOLDER / "conservative.json").read_text())["rows"]
pairs = {}
for row in conservative:
    if row["what"] == "law" and row["share"] < 1:
        pairs.setdefault(
            (row["surrogate"], row["task"], row["coverage"], row["seed"]), {}
        )[row["how"]] = row
gains = {}
for (kind, *_), pair in pairs.items():
    if {"conservative", "mean"} <= set(pair):
        gains.setdefault(kind, []).append(
            (
                pair["conservative"]["judge"] - pair["mean"]["judge"],
                pair["conservative"]["over_optimisation"]
                - pair["mean"]["over_optimisation"],
            )
        )
say(
    "On measured landscapes (`benchmarks/conservative.json`, the sharper alpha), pessimism against the plain mean, medians over landscapes and seeds:"
)
table(
    [
        {
            "surrogate": kind,
            "runs": len(values),
            "judge, difference": statistics.median(v[0] for v in values),
            "over-optimisation, difference": statistics.median(
                v[1] for v in values
            ),
        }
        for kind, values in gains.items()
    ]
)

# %% [markdown]
# ## What to take away
#
# - The gap between reward and judge grows with the nats spent. Report both, and the nats.
# - A KL budget is a brake that needs no unit; pessimism is a compass where uncertainty is known.
# - The remedy of all remedies is more measurements, where the model is used: [tutorial 11](11-campaign.md).
#
# !!! example "Exercise"
#     Give each laboratory 20 more designs, drawn from the tilted law of its `mean` at the `alpha` of the peak rather than from the pretrained model, and
#     fit again. Where is the new peak, and how high?
