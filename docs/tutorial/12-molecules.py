# %% [markdown]
# # 12. Molecules
#
# **The question.** A model of drug-like molecules can be asked for better ones. What does it take that the answers are molecules, are many, and are not one trick repeated?
#
# The model is in the package: `zinc-qed`, masked diffusion over SELFIES, trained on ZINC250k. Rewards are computed by RDKit, which knows rules of thumb and no biology: they are
# cheap, cannot be differentiated, and are easily fooled.

# %% tags=["hide"]
import json
import math
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
    show_svg,
    size,
    table,
)

# %%
import difftilt as dt
from difftilt.build import load_reward, task
from difftilt.core.molecules import read_molecules
from difftilt.core.trajectory import rollout
from difftilt.domains.molecule.drawing import grid
from difftilt.domains.molecule.quality import properties, quality

zinc = task("zinc-qed")
policy, qed = dt.load("zinc-qed"), load_reward(zinc, "qed")
codec, card = policy.codec, dict(policy.card)["metrics"]

# %% [markdown]
# ## A molecule, word by word
#
# A SELFIES is a list of symbols of which *every* one is a molecule, so that nothing has to be thrown away. Symbols that often stand together are one word. The model shows the words of a design
# from left to right, one a step, with a transformer that sees those before: as a language model does. Masked diffusion is what it is by its process
# ([in order](../processes.md#in-order)), so that everything else on this site applies.

# %%
chain = rollout(policy, size(24, 4), torch.Generator().manual_seed(2))
longest = max(
    range(chain.batch), key=lambda i: len(codec.decode(chain.x_0[i : i + 1])[0])
)

# %% tags=["hide"]
stages = [
    k for k in range(1, chain.steps + 1) if k % max(1, chain.steps // 12) == 0
]
seen, captions = [], []
for k in stages:
    state = chain.states[k][longest : longest + 1].clone()
    state[state >= codec.vocabulary] = 0  # hidden words are read as the end
    smiles = codec.decode(state)[0]
    if smiles and (not seen or smiles != seen[-1]):
        seen.append(smiles)
        captions.append(f"after {k} words")
show_svg(
    grid(seen[-8:], captions[-8:]),
    "One design on its way: what is there so far is a molecule at every step, though seldom the one it will be.",
)

# %% [markdown]
# ## Validity is not quality
#
# That nearly all designs are valid comes for free. What does not: that they look like what chemists draw. So the properties of designs are compared with those of the training molecules, from the
# card of the model:

# %%
pool = policy.sample(size(1024, 24), seed=1)
facts = quality(pool, None)

# %% tags=["hide"]
table(
    [
        {
            "property (mean)": name,
            "training molecules": card[f"training_{key}_mean"],
            "designs, on the card": card[f"{key}_mean"],
            "designs, here": facts[f"{key}_mean"],
        }
        for name, key in (
            ("QED: drug-likeness, 0 to 1", "qed"),
            ("logP: octanol over water, log10", "logp"),
            ("SA: difficulty of synthesis, 1 to 10", "sa_score"),
            ("rings", "rings"),
        )
    ]
)
say(
    f"Of {len(pool):,} designs {facts['valid_fraction']:.1%} are valid, {facts['unique_fraction']:.1%} differ; of {card['sampled_designs']:,} on the card {card['novel_fraction']:.1%} are not in the data. "
    f"The likelihood bound of a held-out molecule is {card['test_bound_nats']:.1f} nats, that of a Markov model of two words {card['markov_2_nats']:.1f}. The designs are harder to make than real ones."
)
own = properties([m for m in read_molecules(pool)[0] if m is not None])
figure, panels = axes(3, width=8.2, height=2.3)
for panel, key, label, mean in (
    (panels[0], "qed", "QED (0 to 1)", "training_qed_mean"),
    (panels[1], "logp", "logP (log10)", "training_logp_mean"),
    (panels[2], "sa_score", "SA (1 easy to 10 hard)", "training_sa_score_mean"),
):
    panel.hist(own[key], bins=30, color=BLUE, alpha=0.6, density=True)
    panel.axvline(own[key].mean(), color=BLUE, lw=1.6)
    panel.axvline(card[mean], color=ORANGE, lw=1.6, ls="--")
    panel.set(xlabel=label)
panels[0].set(ylabel="density")
show(
    figure,
    "Designs of the pretrained model; lines are means: solid of the designs, dashed of the training molecules.",
)

# %% [markdown]
# ## Best of N: hard to beat
#
# Drug-like molecules are not rare among those of the model, so that drawing more and keeping the best is cheap. From the pool, for every N at once
# ([`best_of_n_weights`][difftilt.metrics.best_of_n.best_of_n_weights]):
#
# $$
# E[\max_{i \le N} r(x_i)], \qquad KL \le \log N - \frac{N - 1}{N} \qquad (1)
# $$

# %%
from difftilt.metrics.best_of_n import best_of_n_weights

score = qed(pool).nan_to_num(nan=0.0)
curve = [
    (math.log(n) - (n - 1) / n, (score * best_of_n_weights(score, n)).sum().item())
    for n in (1, 2, 4, 8, 16, 32, 64)
    if n <= len(pool) // 4
]
kept = size(16, 2)
best = [
    max(range(i, i + kept), key=lambda j: score[j].item())
    for i in range(0, len(pool) - kept + 1, kept)
]

# %% tags=["hide"]
show_svg(
    grid(pool[:8], [f"QED {value:.2f}" for value in score[:8].tolist()]),
    "Designs of the pretrained model, as they come.",
)
top = sorted(best, key=lambda i: -score[i].item())[:8]
show_svg(
    grid([pool[i] for i in top], [f"QED {score[i].item():.2f}" for i in top]),
    f"Best of {kept}: the first eight.",
)

# %% [markdown]
# ## SMC: the tilted law, and its price
#
# Sequential Monte Carlo carries a population along, weighs it by what it promises, and draws again ([tutorial 6](06-steering.md),
# [`SMC`][difftilt.samplers.smc.SMC]):
#
# $$
# p_\alpha(x) \propto p_{pre}(x)\, e^{r(x)/\alpha} \qquad (2)
# $$
#
# Some reward calls a design at every step, and no training. Whatever is drawn again is there twice. Its KL follows from its own numbers, $E[r]/\alpha - \log Z$.

# %%
alpha = 0.02
smc = dt.SMC(alpha=alpha)(
    policy, qed, size(96, 8), torch.Generator().manual_seed(0)
)
from_smc = codec.decode(smc.x_0)
smc_kl = (
    smc.log_weight.softmax(0) @ qed(from_smc).nan_to_num(nan=0.0)
).item() / alpha - smc.log_z

# %% [markdown]
# ## PPO: some updates
#
# A policy gradient of a noisy batch moves every weight a little for nothing, and each move costs nats. So few weights are let loose: biases and the scales of normalisation.

# %%
few = policy.copy()
for parameter in few.denoiser.parameters():
    parameter.requires_grad_(parameter.ndim == 1)
run = dt.finetune(
    few,
    qed,
    dt.PPO(alpha=alpha, batch=size(128, 8), steps_per_path=4, learning_rate=4e-3),
    loop=dt.LoopConfig(steps=size(30, 2), final_learning_rate=0.3),
)
from_ppo = run.policy.sample(size(384, 8), seed=3)

# %% tags=["hide"]
sets = {
    "pretrained": pool,
    f"best of {kept}": [pool[i] for i in best],
    "SMC": from_smc,
    "PPO, some updates": from_ppo,
}
costs = {
    "pretrained": (0.0, ""),
    f"best of {kept}": (math.log(kept) - (kept - 1) / kept, " at most"),
    "SMC": (smc_kl, " estimated"),
    "PPO, some updates": (run.history[-1]["kl_nats"], ""),
}
rows, whole = [], {}
for name, designs in sets.items():
    whole[name] = quality(designs, None)
    kl, sense = costs[name]
    rows.append(
        {
            "designs of": name,
            "QED": qed(designs).nanmean().item(),
            "SA": whole[name]["sa_score_mean"],
            "valid": whole[name]["valid_fraction"],
            "different": whole[name]["unique_fraction"],
            "diversity": whole[name]["internal_diversity"],
            "KL (nats)": f"{kl:.2f}{sense}",
        }
    )
table(rows)
say(
    f"Diversity is the mean Tanimoto distance of two designs. SMC estimates $\\log Z$ to be {smc.log_z:.1f} nats; of its {len(from_smc)} designs {whole['SMC']['unique_fraction']:.0%} differ. "
    f"PPO has bought {run.history[-1]['oracle_calls']:,} scores."
)
show_svg(
    grid(
        from_smc[:8], [f"QED {value:.2f}" for value in qed(from_smc[:8]).tolist()]
    ),
    "Of SMC, as they come: look for the same molecule twice.",
)

# %% [markdown]
# ## Reward against KL
#
# The same by committed runs of the benchmark (`benchmarks/molecules`), longer than a page may take, beside the curve of best-of-N from above:

# %% tags=["hide"]
import difftilt

FOLDER = Path(difftilt.__file__).parents[2] / "benchmarks" / "molecules"
found = [
    json.loads(path.read_text()) for path in sorted(FOLDER.glob("qed-*-[0-9].json"))
]
COLOURS = {
    "ppo": BLUE,
    "smc": ORANGE,
    "value_weighted": GREEN,
    "reward_weighted_mle": VIOLET,
    "trajectory_balance": RED,
}
figure, panel = axes(width=6.0, height=3.4)
panel.plot(
    *zip(*curve, strict=True),
    ".-",
    color=GREY,
    label="best of N, this page (KL at most)",
)
for row in found:
    if row["method"] not in COLOURS:
        continue
    way = torch.tensor(row.get("trace", [])).reshape(-1, 2)
    if len(way):
        smooth = way[: len(way) // 5 * 5].reshape(-1, 5, 2).mean(1)
        panel.plot(
            smooth[:, 0],
            smooth[:, 1],
            color=COLOURS[row["method"]],
            lw=0.9,
            alpha=0.7,
        )
    if row["kl_nats"] is not None:
        panel.plot(
            row["kl_nats"],
            row["reward"],
            "o" if len(way) else "D",
            color=COLOURS[row["method"]],
            ms=6,
        )
    else:
        panel.axhline(row["reward"], color=COLOURS[row["method"]], ls=":", lw=1)
for method in dict.fromkeys(
    row["method"] for row in found if row["method"] in COLOURS
):
    panel.plot(
        [],
        [],
        {"smc": "D", "value_weighted": ":"}.get(method, "o-"),
        color=COLOURS[method],
        label=method,
    )
panel.set(xlabel="KL to the pretrained model (nats)", ylabel="QED (mean, 0 to 1)")
panel.legend(fontsize=8)
show(
    figure,
    "Each line the way of a run through training, each mark its end. A dotted line is a method whose KL is not known. Above the grey line is better than best-of-N.",
)
table(
    [
        {
            "run": f"{row['method']}, alpha {row['alpha']:g}, seed {row['seed']}",
            "QED": row["reward"],
            "KL (nats)": "not known"
            if row["kl_nats"] is None
            else f"{row['kl_nats']:.2f}",
            "different": row["unique_fraction"],
            "diversity kept": row["diversity_kept"],
            "reward calls": row["oracle_calls"],
        }
        for row in found
        if row["method"] in COLOURS
    ]
)

# %% [markdown]
# ## What the reward does not say
#
# QED has an opinion on eight properties, and none on whether a molecule can be made. So ask for both: the geometric mean of QED and a desirability of synthesis
# ([`Objectives`][difftilt.rewards.chemistry.Objectives] puts together your own). Best-of-N by either, from the same pool, costs nothing more:

# %%
both = load_reward(zinc, "qed_and_ease")
pair = both(pool).nan_to_num(nan=0.0)
by_both = [
    max(range(i, i + kept), key=lambda j: pair[j].item())
    for i in range(0, len(pool) - kept + 1, kept)
]

# %% tags=["hide"]
figure, panel = axes(width=5.4, height=3.2)
valid = [
    i for i, molecule in enumerate(read_molecules(pool)[0]) if molecule is not None
]
place = {i: k for k, i in enumerate(valid)}
panel.plot(
    own["sa_score"], own["qed"], ".", color=GREY, alpha=0.35, ms=4, label="pool"
)
for name, chosen, colour in (
    (f"best of {kept} by QED", best, BLUE),
    (f"best of {kept} by both", by_both, ORANGE),
):
    rows_of = [place[i] for i in chosen if i in place]
    panel.plot(
        own["sa_score"][rows_of],
        own["qed"][rows_of],
        "o",
        color=colour,
        ms=4,
        alpha=0.8,
        label=name,
    )
panel.set(xlabel="SA (1 easy to 10 hard)", ylabel="QED (0 to 1)")
panel.invert_xaxis()
panel.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
show(
    figure,
    "Up and to the right is better. Who asks for one property alone gets the other as it comes.",
)
table(
    [
        {
            "best by": name,
            "QED": own["qed"][rows_of].mean().item(),
            "SA": own["sa_score"][rows_of].mean().item(),
        }
        for name, rows_of in (
            ("QED", [place[i] for i in best if i in place]),
            ("both", [place[i] for i in by_both if i in place]),
        )
    ]
)
top = sorted(by_both, key=lambda i: -pair[i].item())[:8]
show_svg(
    grid(
        [pool[i] for i in top],
        [
            f"QED {own['qed'][place[i]]:.2f}, SA {own['sa_score'][place[i]]:.1f}"
            for i in top
        ],
    ),
    "The best by both.",
)

# %% [markdown]
# ## Another way to write them
#
# Where validity is not automatic: `qm9-graph` draws *graphs*, atoms first and then bonds, of at most nine heavy atoms. Which of its designs are none, and why, comes with the reward:
# infeasible designs are NaN, with a reason, and the methods treat them as what must not happen.

# %%
graphs = dt.load("qm9-graph")
drawn = graphs.sample(size(192, 8), seed=0)
small = quality(drawn, None)

# %% tags=["hide"]
say(
    f"Of {len(drawn)} graphs {small['valid_fraction']:.1%} are molecules"
    + "".join(
        f", {value:.1%} fail by {key.removeprefix('invalid_')}"
        for key, value in small.items()
        if key.startswith("invalid_")
    )
    + "."
)
shown = [
    design
    for design, molecule in zip(drawn, read_molecules(drawn)[0], strict=True)
    if molecule is not None
][:8]
show_svg(
    grid(shown, [""] * len(shown)),
    "Designs of the graph model: small, strained, and all its own.",
)

# %% [markdown]
# ## What to take away
#
# - With SELFIES a design is a molecule. Whether it is a *good* one is said by properties beside the data's, and by looking.
# - Where good designs are not rare, draw more. Tuning pays where good designs are rare, or drawing is dear.
# - Count different designs, not designs: SMC has the law right and the molecules twice.
# - Computed properties are rules of thumb. Two rewards that pull against each other are harder to fool than one.
#
# !!! example "Exercise"
#     Ask for molecules like paracetamol that are easy to make: write a `scorer.py` with `Objectives` of `SimilarityReward` and `PropertyReward("sa_score", smaller(2, 5))`
#     ([molecules](../molecules.md#rewards)). Good designs are rare now. Does best-of-N still win?
