# %% [markdown]
# # 9. Enhancers, where naturalness matters
#
# **The question.** An enhancer is a piece of genome that turns a gene up in the right cells. Friedman et al. (2021) measured thousands that the factor CRX
# binds, in mouse retinas. A model of these measurements is weak: can a design still be raised toward more activity, and how do we notice when it has
# stopped to look like a piece of a genome?
#
# The same way as with [5'UTRs](08-utr.md), on the task `crx-enhancer`, and with another moral. There the library was random letters and reward and judge were good.
# Here sequences have a past, and the reward knows little.

# %% tags=["hide"]
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

# %%
import difftilt as dt
from difftilt.build import load_judge, load_reward, task
from difftilt.data import find

crx = task("crx-enhancer")
policy, reward, judge = (
    dt.load("crx-enhancer"),
    load_reward(crx, "model"),
    load_judge(crx),
)
codec, card = policy.codec, dict(policy.card)
length, letters = codec.length, codec.alphabet
natural = policy.sample(size(384, 12), seed=1)

# %% [markdown]
# ## The data
#
# Most elements were turned so that the site that CRX binds, at their centre, reads TAATCC. Each was measured as it is, and again with all its CRX sites broken. If the
# data set is on this machine it is used here (`difftilt data prepare crx-enhancer` fetches it); if not, designs of the shipped model stand in, and the judge for the
# retina.


# %%
def broken(designs):
    """Designs whose TAATCC, on either strand, have lost their core."""
    return [
        design.replace("TAATCC", "TACTCC").replace("GGATTA", "GGAGTA")
        for design in designs
    ]


at_hand = find("crx-enhancer") is not None
if at_hand:
    measured = crx.read()
    kind = measured.column("construct")
    elements = [measured.sequences[i] for i in (kind == "WT").nonzero()[0]]
    name = [label.rpartition("_")[0] for label in measured.column("label")]
    whole = {name[i]: i for i in (kind == "WT").nonzero()[0]}
    rows = [
        (whole[name[i]], i)
        for i in (kind == "MUT-allCrxSites").nonzero()[0]
        if name[i] in whole
    ]
    pairs = [(measured.sequences[a], measured.sequences[b]) for a, b in rows]
    activity = torch.from_numpy(measured.scores[torch.tensor(rows).numpy()]).clamp(
        min=crx.floor
    )
else:
    elements = natural
    pairs = [
        (a, b) for a, b in zip(natural, broken(natural), strict=True) if a != b
    ]
    activity = torch.stack(
        [judge([pair[side] for pair in pairs]) for side in (0, 1)], 1
    )
activity = activity.double()


# %% tags=["hide"]
def at_positions(designs, motif="TAATCC"):
    """Share of designs with the motif at each position, as it is written."""
    return torch.tensor(
        [
            sum(d.startswith(motif, i) for d in designs)
            for i in range(length - len(motif) + 1)
        ]
    ) / len(designs)


source = (
    "elements as found in the genome"
    if at_hand
    else "designs of the shipped model, scored by the judge"
)
say(f"Here: {len(elements):,} {source}.")
measured_there = ~activity.isnan().any(1)
figure, panels = axes(2, width=8.0, height=2.9)
low, high = (
    activity[measured_there]
    .quantile(torch.tensor([0.0, 0.999], dtype=torch.float64))
    .tolist()
)
bins = torch.linspace(low, high + 1e-6, 40).numpy()
for side, name, colour in ((0, "as found", BLUE), (1, "CRX sites broken", RED)):
    values = activity[measured_there, side]
    panels[0].hist(
        values.numpy(),
        bins=bins,
        color=colour,
        alpha=0.55,
        density=True,
        label=name,
    )
    panels[0].axvline(values.mean(), color=colour, lw=1.4)
panels[0].set(
    xlabel="log2 activity over the basal promoter",
    ylabel="density",
    title="activity",
)
panels[0].legend(fontsize=8)
placed = {
    "elements" if at_hand else "stand-ins": at_positions(elements),
    "designs of the model": at_positions(natural),
}
peak = int(at_positions(elements).argmax())
near = range(max(0, peak - 6), min(length - 6, peak + 7))
for (name, shares), colour, style in zip(
    placed.items(), (GREY, BLUE), ("o-", "x--"), strict=True
):
    panels[1].plot(
        near, shares[list(near)], style, color=colour, lw=1.2, ms=5, label=name
    )
panels[1].set(
    xlabel="position (bases)",
    ylabel="share that starts TAATCC here",
    title="the CRX site",
)
panels[1].legend(fontsize=8)
show(
    figure,
    "Left: activity of elements, and of the same with their CRX sites broken; lines are means. Right: where the site is, and where the model has learned to put it.",
)

# %% [markdown]
# ## How much of a genome does the model know?
#
# Less than one would like, and that is to be measured before anything is called natural. A *Markov model* of order $n$ guesses each letter from the $n$ before it
# ([`MarkovModel`][difftilt.metrics.sequences.MarkovModel]); counting is all that its training takes. A diffusion model that is no better than the best of those has learned
# no more than words of a few letters:

# %% tags=["hide"]
metrics = card["metrics"]
orders = {n: metrics[f"markov_{n}_nats_per_token"] for n in (2, 3, 5)}
figure, panel = axes(width=5.2, height=2.7)
panel.plot(
    list(orders),
    list(orders.values()),
    "o-",
    color=GREY,
    ms=4,
    label="Markov models",
)
panel.plot(
    metrics["best_markov_order"],
    metrics["best_markov_nats_per_token"],
    "D",
    color=ORANGE,
    label="the best of them, chosen on other elements",
)
panel.axhline(
    metrics["test_bound_nats_per_token"],
    color=BLUE,
    label="diffusion model (an upper bound)",
)
panel.axhspan(
    metrics["test_bound_nats_per_token"] - 2 * metrics["test_bound_error"],
    metrics["test_bound_nats_per_token"] + 2 * metrics["test_bound_error"],
    color=BLUE,
    alpha=0.12,
    lw=0,
)
panel.set(xlabel="order: letters looked back", ylabel="nats per base, held out")
panel.legend(fontsize=8)
show(
    figure,
    "Held-out elements: how many nats each base costs, less is better. From the card of the shipped model; the band is two standard errors.",
)
gain, error = (
    metrics["advantage_over_best_markov"],
    metrics["advantage_over_best_markov_error"],
)
say(
    f"The diffusion model is better than the best Markov model by {gain:.4f} ± {error:.4f} nats a base, or {gain * length:.1f} nats an element of {length} bases: it knows "
    f"where the site is, and how GC content goes with a whole element. It is not much, and it is what *natural* can mean on this page."
)

# %% [markdown]
# ## Motifs and words
#
# Two yardsticks that need no network. How often a design has a site of a known motif, on either strand ([`sites`][difftilt.metrics.motifs.sites]):
#
# $$
# \text{sites}(x) = \sum_i \max\Big( \prod_j [x_{i+j} \in m_j],\ \prod_j [\bar x_{i+k-1-j} \in m_j] \Big) \qquad (1)
# $$
#
# and how far the words of a set of designs are from those of the training elements, from 0 to 1 ([`spectrum_distance`][difftilt.metrics.motifs.spectrum_distance]):
#
# $$
# d(p, q) = \sqrt{\tfrac12 D\big(p \,\|\, \tfrac{p+q}{2}\big) + \tfrac12 D\big(q \,\|\, \tfrac{p+q}{2}\big)} \qquad (2)
# $$
#
# Held-out elements are the reference: two samples of one law are not at distance 0 either.

# %%
lookout = crx.lookout


def looks(designs):
    """Sites of motifs, and distances of words, of some designs."""
    return lookout.describe(card, codec.encode(designs))


facts = {"held-out elements": card["held_out"], "pretrained model": looks(natural)}

# %% tags=["hide"]
HEADS = {
    **{
        f"sites_{motif}": f"{motif} ({binder})"
        for motif, binder in crx.motifs.items()
    },
    "kmer4_distance": "distance, 4 letters",
    "kmer6_distance": "distance, 6 letters",
}


def told(facts):
    """A table of sites and distances."""
    table(
        [
            {"": name, **{HEADS[key]: row[key] for key in HEADS}}
            for name, row in facts.items()
        ]
    )


told(facts)
say(
    f"Sites in a design, and distances to the words of {metrics['training_designs']:,} training elements (of {metrics['test_designs']} held-out elements, and of {len(natural)} designs: "
    "fewer designs are farther)."
)

# %% [markdown]
# ## A weak reward
#
# What the reward and its judge are worth is on their cards. What they have *learned* can be asked: show them the pairs of above, elements and the same with broken CRX sites, which they
# have seen in part while they were trained. Do they mind, as retinas do?

# %%
models = {"reward": reward, "judge": judge}
minds = {
    n: model([b for _, b in pairs]) - model([a for a, _ in pairs])
    for n, model in models.items()
}
before = {n: model(natural) for n, model in models.items()}
change = activity[:, 1] - activity[:, 0]

# %% tags=["hide"]


def rank_correlation(a, b):
    """Spearman's, of what both have."""
    there = ~(a.isnan() | b.isnan())
    ranks = [x[there].double().argsort().argsort().double() for x in (a, b)]
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


table(
    [
        {
            "model": n,
            "Spearman, test rows": model.card["metrics"]["test_spearman"],
            "R²": model.card["metrics"]["test_r_squared"],
            "change when CRX sites break": minds[n].mean().item(),
            "share that falls": (minds[n] < 0).double().mean().item(),
            "Spearman with the change as measured": rank_correlation(
                minds[n], change
            )
            if at_hand
            else "",
        }
        for n, model in models.items()
    ]
)
if at_hand:
    say(
        f"In the retina, {len(pairs):,} pairs lose {-change.nanmean().item():.2f} on average when their CRX sites break, and {(change < 0).double().mean().item():.0%} of them fall."
    )
figure, panels = axes(2, width=8.0, height=2.9)
panels[0].plot(before["reward"], before["judge"], ".", color=BLUE, alpha=0.5)
panels[0].set(
    xlabel="reward (log2 activity)",
    ylabel="judge (log2 activity)",
    title="designs of the pretrained model",
)
edge = 4 * max(values.std().item() for values in minds.values())
for (n, values), colour in zip(minds.items(), (ORANGE, BLUE), strict=True):
    panels[1].hist(
        values.numpy(),
        bins=torch.linspace(-edge, edge, 61).numpy(),
        color=colour,
        alpha=0.6,
        label=n,
    )
panels[1].axvline(0, color=GREY, lw=1)
if at_hand:
    panels[1].axvline(
        change.nanmean(), color=RED, ls="--", lw=1.4, label="mean, measured"
    )
panels[1].set(
    xlabel="predicted change of log2 activity",
    ylabel="pairs",
    title="when CRX sites break",
)
panels[1].legend(fontsize=8)
show(
    figure,
    "Left: reward and judge hardly agree on single designs. Right: breaking the site for which these elements were chosen is all but nothing to them.",
)
gc = torch.tensor(
    [(d.count("G") + d.count("C")) / length for d in natural], dtype=torch.float64
)
with_gc = {
    n: torch.corrcoef(torch.stack([values.double(), gc]))[0, 1].item()
    for n, values in before.items()
}
agreement = torch.corrcoef(torch.stack([before["reward"], before["judge"]]))[
    0, 1
].item()
say(
    f"Over {len(natural)} designs the correlation of reward and judge is {agreement:.2f}; with the share of G and C it is {with_gc['reward']:.2f} and {with_gc['judge']:.2f}. Such models see what is "
    "spread over a whole element, and not one word in it. Whoever tunes for them will get the former."
)

# %% [markdown]
# ## Three ways to ask for more
#
# Best-of-N, which cannot leave what the model makes. PPO with a *budget* of nats. And backpropagation at a small `alpha`, as one would run it who believes the reward:

# %%
candidates, budget = size(16, 2), 3.0
best = sorted(zip(reward(natural).tolist(), natural, strict=True), reverse=True)[
    : max(1, len(natural) // candidates)
]
careful = dt.finetune(
    policy,
    reward,
    dt.PPO(alpha=0.05, batch=size(48, 4), learning_rate=3e-3, steps_per_path=6),
    loop=dt.LoopConfig(steps=size(14, 2), judge_every=1, kl_budget=budget),
    judge=judge,
)
believing = dt.finetune(
    policy,
    reward,
    dt.RewardBackprop(alpha=0.02, batch=size(12, 2), learning_rate=3e-3),
    loop=dt.LoopConfig(steps=size(7, 2), judge_every=1, final_learning_rate=0.3),
    judge=judge,
)

# %% tags=["hide"]
figure, panels = axes(2, width=8.0, height=3.0)
for panel, run, title in (
    (panels[0], careful, f"PPO, a budget of {budget:g} nats"),
    (panels[1], believing, "backpropagation, believing"),
):
    lines = [line for line in run.history if line.get("judge") is not None]
    for name, colour in (("reward", ORANGE), ("judge", BLUE)):
        panel.plot(
            [line["step"] for line in lines],
            [line[name] for line in lines],
            color=colour,
            label=name,
        )
    panel.set(xlabel="updates", ylabel="log2 activity (mean)", title=title)
    twin = panel.twinx()
    twin.plot(
        [line["step"] for line in lines],
        [line["kl_nats"] for line in lines],
        ":",
        color=GREY,
        lw=1.4,
    )
    twin.set_ylabel("KL (nats, dotted)")
    twin.spines["right"].set_visible(True)
    twin.grid(False)
panels[0].legend(fontsize=8)
show(
    figure,
    "The scales differ. With a budget, reward and judge rise by little, together. Believed, the reward leaves the judge behind, and the nats go with it.",
)

# %% [markdown]
# ## What became of the designs

# %%
designs = {
    "pretrained model": natural,
    f"best of {candidates}": [design for _, design in best],
    "PPO, budget": careful.policy.sample(size(192, 8), seed=3),
    "backpropagation": believing.policy.sample(size(192, 8), seed=3),
}
facts |= {name: looks(mine) for name, mine in designs.items()}

# %% tags=["hide"]
from difftilt.training.pretrain import denoising_bounds

rng, rows, likelihoods = torch.Generator().manual_seed(0), [], {}
for name, mine in designs.items():
    tokens = codec.encode(mine)
    likelihoods[name] = (
        denoising_bounds(
            policy.denoiser, policy.process, tokens[: size(96, 4)], rng, draws=8
        )
        / length
    )
    rows.append(
        {
            "designs of": name,
            "reward": reward(mine).mean().item(),
            "judge": judge(mine).mean().item(),
            "nats per base, by the pretrained model": likelihoods[name]
            .mean()
            .item(),
            "G or C": sum(d.count("G") + d.count("C") for d in mine)
            / (length * len(mine)),
            "different": len(set(mine)) / len(mine),
        }
    )
table(rows)
told(facts)
if at_hand:
    top = activity[measured_there, 0].quantile(0.99).item()
    say(
        f"For comparison: one element in a hundred was measured at {top:.2f} or more. Backpropagation promises {rows[-1]['reward']:.2f} for its *mean* design; the judge says {rows[-1]['judge']:.2f}."
    )

# %% tags=["hide"]
figure, panels = axes(2, width=8.0, height=3.0)
colours = dict(zip(designs, (GREY, GREEN, BLUE, RED), strict=True))
for i, (name, values) in enumerate(likelihoods.items()):
    spread = 0.5 * (torch.rand(len(values), generator=rng) - 0.5)
    panels[0].plot(values, i + spread, ".", color=colours[name], alpha=0.5, ms=4)
    panels[0].plot(
        [values.mean()] * 2, [i - 0.35, i + 0.35], color=colours[name], lw=2.5
    )
panels[0].axvline(metrics["test_bound_nats_per_token"], color=VIOLET, ls="--", lw=1)
panels[0].set_yticks(range(len(designs)), list(designs))
panels[0].set(xlabel="nats per base, by the pretrained model", title="likelihood")
panels[0].invert_yaxis()
for name, mine in designs.items():
    share = torch.tensor([(d.count("G") + d.count("C")) / length for d in mine])
    panels[1].hist(share.numpy(), bins=torch.linspace(0.2, 1.0, 33).numpy(), density=True, histtype="step",
                   color=colours[name], lw=1.6)  # fmt: skip
panels[1].set(
    xlabel="share of G and C in a design", ylabel="density", title="composition"
)
show(
    figure,
    "Left: each dot a design; dashed, held-out elements. Designs likelier than elements are no more natural for it. Right, in the same colours: GC content.",
)

# %% [markdown]
# Which words has tuning written? Those of six letters that have become more frequent, by the largest share of all words:

# %%
from difftilt.metrics.motifs import word_counts


def spectrum(mine):
    """Share of each word of six letters, both strands counted."""
    counts = word_counts(codec.encode(mine), 6, letters, both_strands=True).double()
    return counts / counts.sum()


shares = {name: spectrum(mine) for name, mine in designs.items()}

# %% tags=["hide"]
words = ["".join(letters[number // len(letters) ** place % len(letters)] for place in range(5, -1, -1))
         for number in range(len(letters) ** 6)]  # fmt: skip
once = [
    i
    for i, word in enumerate(words)
    if word <= word[::-1].translate(str.maketrans("ACGT", "TGCA"))
]
rows = []
for name in list(designs)[1:]:
    change = shares[name] - shares["pretrained model"]
    gained = sorted(once, key=lambda i, change=change: -change[i].item())[:5]
    rows.append(
        {
            "designs of": name,
            "words gained (each stands for its other strand too)": ", ".join(
                f"`{words[i]}`" for i in gained
            ),
            "their share before": shares["pretrained model"][gained].sum().item(),
            "and after": shares[name][gained].sum().item(),
        }
    )
table(rows)

# %% [markdown]
# ## What to take away
#
# - A weak reward is not useless: it can choose among designs that are natural anyway, which is what best-of-N does, for fewer nats than a few updates take. It must not lead.
# - The judge here is as weak as the reward, so that its agreement is weak evidence too. What does not depend on either is counted: sites, words, GC content, likelihood.
# - Compare every such number with held-out elements, and mind both directions: designs likelier than nature are repeats of what the model finds easy.
# - Before all that: is the generative model better than counting words? If not, its likelihood is a word count.
#
# !!! example "Exercise"
#     Hold the CRX site at its place with `--fix`, and give PPO the same budget (`difftilt finetune crx-enhancer --kl-budget 3`). What do the nats buy now that
#     the site is free? And what does a second motif of your own, `--motif TGAYTCA`, say of the designs?
