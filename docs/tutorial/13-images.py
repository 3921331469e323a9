# %% [markdown]
# # 13. Images
#
# **The question.** Rewards of pictures come in three kinds: some can be differentiated, some cannot, and some are a label that one would like to have. Which method goes with which,
# and what does it cost when a state has hundreds of dimensions and the last steps hardly any noise?
#
# Two small models that are in the package: handwritten digits, 28 x 28, and emoji, 32 x 32 in colour. They are small enough for a laptop, and look like it.

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
    pictures,
    say,
    show,
    size,
    table,
)

# %%
import difftilt as dt
from difftilt.build import load_reward, task
from difftilt.core.trajectory import rollout
from difftilt.domains.image.pictures import same_noise

digits, emoji = dt.load("digits"), dt.load("emoji")
chain = rollout(digits, 12, torch.Generator().manual_seed(0))

# %% tags=["hide"]
shown = [digits.steps * part // 8 for part in (0, 1, 2, 3, 4, 6, 8)]
pictures(
    {
        ("noise" if k == 0 else f"step {k}"): digits.codec.decode(chain.states[k])
        for k in shown
    },
    "Twelve digits on their way out of noise. Shapes are decided in the first half of the steps; the others clean up.",
)
last = digits.step(chain.states[-2], chain.times[-2], chain.times[-1])
say(
    f"{digits.steps} steps of Gaussian noise. That of the last has a standard deviation of {127.5 * last.std.mean().item():.2g} levels of 8 bits: enough to have a density, too little to be seen. "
    "A change that one *can* see there is many standard deviations, and is charged as such."
)

# %% [markdown]
# ## A reward with a gradient
#
# How red an image is, is a mean over pixels, so its gradient runs back through the whole chain ([tutorial 3](03-backprop.md)):
#
# $$
# \nabla_\theta\, E\big[ r(x_0) \big] - \alpha\, \nabla_\theta\, KL\big( p_\theta(x_{0:T}) \,\|\, p_{pre}(x_{0:T}) \big), \qquad x_s = \mu_\theta(x_t) + \sigma_t\, \varepsilon_t \qquad (1)
# $$
#
# ([`RewardBackprop`][difftilt.algorithms.reward_backprop.RewardBackprop]). Steps of Gaussians are no trouble to it, and a handful of paths is a batch:

# %%
redness = load_reward(task("emoji"), "redness")
red = {
    alpha: dt.finetune(
        emoji,
        redness,
        dt.RewardBackprop(alpha=alpha, batch=size(8, 2), learning_rate=2e-4),
        loop=dt.LoopConfig(steps=size(6, 2)),
    )
    for alpha in (1e-3, 1e-4)
}
before, *after = same_noise(
    [emoji, *(run.policy for run in red.values())], 12, seed=3
)

# %% tags=["hide"]
pictures(
    {
        "before": before,
        **{
            f"alpha {alpha:g}": images
            for alpha, images in zip(red, after, strict=True)
        },
    },
    "The same noise before and after tuning. The smaller alpha has asked for more red, and has got it: look what is left of the faces.",
)
figure, panels = axes(2, width=7.6, height=2.6)
for (alpha, run), colour in zip(red.items(), (ORANGE, RED), strict=True):
    steps = [line["step"] for line in run.history]
    panels[0].plot(
        steps,
        [line["reward"] for line in run.history],
        "o-",
        ms=3,
        color=colour,
        label=f"alpha {alpha:g}",
    )
    panels[1].plot(
        steps, [line["kl_nats"] for line in run.history], "o-", ms=3, color=colour
    )
panels[0].set(xlabel="updates", ylabel="redness (mean, -1 to 1)")
panels[1].set(xlabel="updates", ylabel="KL of paths (nats)")
panels[0].legend(fontsize=8)
show(
    figure,
    "A few updates suffice. The first pays many nats; later ones find cheaper ones, at steps with more noise.",
)
table(
    [
        {
            "designs of": "pretrained",
            "redness": redness(before).mean().item(),
            "KL (nats)": 0.0,
            "KL by numbers": 0.0,
            "calls": 0,
        }
    ]
    + [
        {
            "designs of": f"alpha {alpha:g}",
            "redness": redness(images).mean().item(),
            "KL (nats)": run.history[-1]["kl_nats"],
            "KL by numbers": run.history[-1]["kl_nats"] / images[0].size,
            "calls": run.history[-1]["oracle_calls"],
        }
        for (alpha, run), images in zip(red.items(), after, strict=True)
    ]
)
say(
    f"An image is {before[0].size:,} numbers, so that a fraction of a nat for each is much. Nats of images are not nats of sequences."
)

# %% [markdown]
# ## A reward without one
#
# The size of a JPEG is a number that a program hands out. Nothing can be differentiated; what is left are draws and their scores. A pool of designs of the pretrained model,
# once drawn, says what best-of-N reaches for every N ([`best_of_n_weights`][difftilt.metrics.best_of_n.best_of_n_weights]), and at most at which KL:
#
# $$
# KL \le \log N - \frac{N - 1}{N} \qquad (2)
# $$

# %%
from difftilt.metrics.best_of_n import best_of_n_weights

small = load_reward(task("digits"), "compressibility")
pool = digits.sample(size(512, 16), seed=9)
kilobytes = -small(pool)
best_of = {
    n: (kilobytes * best_of_n_weights(-kilobytes, n)).sum().item()
    for n in (1, 2, 4, 8, 16, 32)
    if n < len(pool)
}

# %% tags=["hide"]
order = kilobytes.argsort().tolist()
pictures(
    {
        "smallest": [pool[i] for i in order[:12]],
        "largest": [pool[i] for i in order[-12:]],
    },
    "The digits of the pool with the smallest and the largest JPEGs: thin strokes are cheap.",
)
table(
    [
        {
            "N": n,
            "kB, mean": value,
            "KL at most (nats)": math.log(n) - (n - 1) / n,
            "calls of the reward a design": n,
        }
        for n, value in best_of.items()
    ]
)

# %% [markdown]
# Tuning can go on where best-of-N ends. What that takes on emoji, from the committed runs of the benchmark (`benchmarks/images`):

# %% tags=["hide"]
import difftilt

FOLDER = Path(difftilt.__file__).parents[2] / "benchmarks" / "images"
rows = [
    json.loads(path.read_text())
    for path in sorted(FOLDER.glob("compressibility-*-[0-9].json"))
]
rows = [
    row for row in rows if row.get("kl_nats") is not None and row.get("frontier")
]
COLOURS = dict(
    zip(
        sorted({row["method"] for row in rows}),
        (GREY, BLUE, GREEN, ORANGE, VIOLET, RED),
        strict=False,
    )
)
figure, panel = axes(width=5.8, height=3.2)
for row in rows:
    path = [point for point in row["frontier"] if point[0] and point[0] > 0]
    panel.plot(
        *zip(*path, strict=True), color=COLOURS[row["method"]], lw=0.9, alpha=0.8
    )
    panel.plot(
        row["kl_nats"],
        row["after"]["reward"],
        "o",
        color=COLOURS[row["method"]],
        ms=5,
    )
for method, colour in COLOURS.items():
    panel.plot([], [], "o-", color=colour, label=method)
panel.set(
    xscale="log",
    xlabel="KL to the pretrained model (nats, log)",
    ylabel="minus the size of the JPEG (kB)",
)
panel.legend(fontsize=8)
show(
    figure,
    "Emoji toward small JPEGs: each line the way of a run, each dot its end. A policy gradient pays for every pixel that its noise moves.",
)
table(
    [
        {
            "run": f"{row['method']}, seed {row['seed']}",
            "minus kB": row["after"]["reward"],
            "KL (nats)": row["kl_nats"],
            "calls": row["oracle_calls"],
        }
        for row in rows
    ]
)

# %% [markdown]
# ## A label
#
# A classifier says how likely an image is a three. With $r(x) = \log p(3 \mid x)$ and $\alpha = 1$ the tilted law *is* the conditional law:
#
# $$
# p^*(x) \propto p_{pre}(x)\, e^{\log p(3 | x)} = p_{pre}(x)\, p(3 \mid x) \propto p_{pre}(x \mid 3) \qquad (3)
# $$
#
# So it is known what should come out. The pool, weighted by $p(3 \mid x)$, is a (poor) sample of it, and its mean weight is $Z$, the share of threes
# ([`log_mean_exp`][difftilt.core.stats.log_mean_exp]). Steering aims at the same law without a pool: [`SMC`][difftilt.samplers.smc.SMC] by weights and resampling on the way.

# %%
from difftilt.core.stats import effective_sample_size, log_mean_exp

three = load_reward(task("digits"), "label-3")
score = three(pool)
weight = score.softmax(0)
truth = {
    "reward": (weight * score).sum().item(),
    "log_z": log_mean_exp(score).item(),
}
truth["kl"] = truth["reward"] - truth["log_z"]

n = size(64, 8)
smc = dt.SMC(alpha=1.0)(digits, three, n, torch.Generator().manual_seed(0))
chosen = dt.ValueWeighted(alpha=1.0, candidates=size(4, 2))(
    digits, three, n, torch.Generator().manual_seed(0)
)
candidates = size(12, 2)
best = [
    max(range(start, start + candidates), key=lambda i: score[i].item())
    for start in range(0, len(pool) - candidates + 1, candidates)
]

# %% tags=["hide"]
made = {
    "pretrained": (pool, torch.zeros(len(pool))),
    "the target, by weights of the pool": (pool, score),
    "SMC": (digits.codec.decode(smc.x_0), smc.log_weight),
    "by values": (digits.codec.decode(chosen.x_0), chosen.log_weight),
    f"best of {candidates}": ([pool[i] for i in best], torch.zeros(len(best))),
}
rows = []
for name, (images, log_weight) in made.items():
    own, share = three(images), torch.as_tensor(log_weight).double().softmax(0)
    rows.append(
        {
            "designs of": name,
            "log p(3), mean": (share * own).sum().item(),
            "p(3), mean": (share * own.exp()).sum().item(),
            "different": len({image.tobytes() for image in images}) / len(images),
            "worth so many": effective_sample_size(
                torch.as_tensor(log_weight).double()
            ).item(),
            "log Z (nats)": truth["log_z"]
            if "target" in name
            else smc.log_z
            if name == "SMC"
            else "",
        }
    )
table(rows)
rng = torch.Generator().manual_seed(1)


def some(name):
    """Twelve of them, drawn by weight."""
    images, log_weight = made[name]
    share = torch.as_tensor(log_weight).double().softmax(0)
    return [
        images[i]
        for i in torch.multinomial(
            share, 12, replacement=True, generator=rng
        ).tolist()
    ]


pictures(
    {name.replace(", by weights of the pool", ""): some(name) for name in made},
    "Twelve of each, drawn by weight. A classifier is fooled here and there, and whoever follows it is fooled with it.",
)
say(
    f"The target is {truth['kl']:.2f} nats from the pretrained law, if the pool may be trusted with it: it is worth {effective_sample_size(score).item():.0f} of its {len(pool)} designs. "
    "Best-of-N is not the target: it takes the most certain threes. Tuning toward a law that is so near would cost what the sections above show, many times as many nats, "
    "for the noise of its gradients is paid at the steps with little noise. For a label, steer."
)

# %% [markdown]
# ## Likelihood
#
# Of the *8-bit* image, a bound, from the pretrained network run in many small steps ([`chain_bounds`][difftilt.metrics.chain_bound.chain_bounds]):
#
# $$
# -\log P(x) &\le KL\big(q(x_1|x) \,\|\, p(x_1)\big) + E\big[-\log P(x|x_t)\big] \\
# &\quad + \sum_{t} E\, KL\big(q(x_s|x_t,x) \,\|\, p(x_s|x_t)\big) \qquad (4)
# $$

# %%
from difftilt.metrics.chain_bound import chain_bounds, likelihood_chain

long_chain = likelihood_chain(emoji)


def bits(images):
    """Bits per number of each image, at most."""
    x_0 = emoji.codec.encode(images)
    bound = chain_bounds(
        long_chain,
        x_0,
        torch.Generator().manual_seed(0),
        levels=True,
        draws=size(16, 2),
    )
    return bound / images[0].size / math.log(2)


count = size(32, 4)
drawn = same_noise([emoji, *(run.policy for run in red.values())], count, seed=4)
of = {
    name: bits(images)
    for name, images in zip(
        ("pretrained", *(f"alpha {a:g}" for a in red)), drawn, strict=True
    )
}

# %% tags=["hide"]
figure, panel = axes(width=5.4, height=2.4)
spread = torch.linspace(-0.25, 0.25, count)
for i, (values, colour) in enumerate(
    zip(of.values(), (BLUE, ORANGE, RED), strict=True)
):
    panel.plot(values, i + spread, ".", color=colour, ms=5)
    panel.plot([values.median()] * 2, [i - 0.35, i + 0.35], color=colour, lw=2.5)
held_out = dict(emoji.card)["metrics"]["test_bound_bits_per_dimension"]
panel.axvline(
    held_out, color=GREY, ls="--", lw=1.2, label="held-out emoji, on the card"
)
panel.legend(fontsize=8)
panel.set_yticks(range(len(of)), list(of))
panel.set(
    xscale="log",
    xlabel="bits per number of an image (at most, log)",
    ylim=(-0.6, len(of) - 0.4),
)
show(
    figure,
    "Each dot an emoji, lines are medians. Fine detail decides: smooth images are cheap, whether one likes them or not.",
)
say(
    "Medians: "
    + ", ".join(
        f"{name} {values.median().item():.2f}" for name, values in of.items()
    )
    + f" bits, of {count} each; a few images with specks cost many times that. A likelihood is a "
    "warning where it falls, and no praise where it rises: a blank image has the highest of all."
)

# %% [markdown]
# ## What to take away
#
# - With a gradient: backpropagation, few paths, few updates, and let it run through the whole chain.
# - Without: best-of-N first. A policy gradient of few images is mostly noise, and each of its pixels is charged.
# - For a label at $\alpha = 1$ the answer is known, so that it can be checked: by weights of a pool where the label is not rare, by $\log Z$ where it is.
# - Look at the pictures, from the same noise. No number here sees that a face is gone.
#
# !!! example "Exercise"
#     Go for *blueness* with `truncation=2`, so that gradients pass the last two steps only. How many nats does the same reward cost now, and where in the chain are they spent?
