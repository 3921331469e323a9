# %% [markdown]
# # difftilt
#
# **Tilt any diffusion model toward a reward.** You have a pretrained diffusion model, of sequences, molecules, images or vectors, and a
# way to score what it makes. You want designs that score higher and *still look like the data*: the tilted law,
#
# $$
# p^*(x) \propto p_{pre}(x)\, e^{r(x)/\alpha}
# $$
#
# `difftilt` reaches it by fine-tuning (PPO, reward backpropagation, balance, weighted likelihood, adjoint matching) or by steering
# without training (SMC, value-weighted sampling, guidance, MCMC). It says of every run how far it is from that law, in nats, with a
# held-out judge beside the reward; and it runs campaigns with a laboratory in the loop.

# %% tags=["remove"]
import torch
from drawing import BLUE, GREY, ORANGE, axes, show, size

from difftilt.problems.library import entry

problem = entry("mixture").make()
matrices, grid = problem.reference.matrix, problem.pretrained.grid
marginals = [problem.prior]
for matrix in matrices:
    marginals.append(marginals[-1] @ matrix)
twist = [
    (problem.table / problem.alpha - (problem.table / problem.alpha).max()).exp()
]
for matrix in reversed(matrices):
    twist.insert(0, matrix @ twist[0])
tilted = [p * w / (p @ w) for p, w in zip(marginals, twist, strict=True)]

rng = torch.Generator().manual_seed(1)
seen = (problem.x.abs() < 3.4).nonzero()[:, 0]


def paths(first, steps, n):
    """Sample paths on the grid, as indices."""
    states = [torch.multinomial(first, n, replacement=True, generator=rng)]
    for k, matrix in enumerate(matrices):
        rows = matrix[states[-1]] * (steps[k + 1] if steps else 1.0)
        states.append(torch.multinomial(rows, 1, generator=rng)[:, 0])
    return problem.x[torch.stack(states)]


drawn = [
    paths(marginals[0], None, size(14, 2)),
    paths(tilted[0], twist, size(14, 2)),
]

# %% tags=["remove"]
figure, panels = axes(
    3, width=8.2, height=3.1, sharey=True, gridspec_kw={"width_ratios": [3, 3, 1.3]}
)
for panel, laws, lines, title, colour, tint in (
    (panels[0], marginals, drawn[0], "the pretrained chain", GREY, "Greys"),
    (panels[1], tilted, drawn[1], "tilted", ORANGE, "Oranges"),
):
    density = torch.stack([law[seen] / law.max() for law in laws]).T
    shade = {
        "shading": "nearest",
        "alpha": density.pow(0.6).clamp(0, 1),
        "rasterized": True,
    }
    panel.pcolormesh(
        grid, problem.x[seen], density, cmap=tint, vmin=-0.3, vmax=1.4, **shade
    )
    panel.plot(grid, lines, color=colour, lw=0.7, alpha=0.8)
    panel.set(xlim=(1.03, -0.03), xlabel="t: noise to data", title=title)
    panel.grid(False)
panels[0].set(ylabel="x", ylim=(-3.2, 3.2))
panels[2].fill_betweenx(
    problem.x[seen],
    0,
    marginals[-1][seen] / problem.width,
    color=GREY,
    alpha=0.5,
    lw=0,
    label="pretrained",
)
panels[2].plot(
    tilted[-1][seen] / problem.width, problem.x[seen], color=ORANGE, label="tilted"
)
weight = (problem.table / problem.alpha).exp()[seen]
panels[2].plot(
    weight / weight.max(),
    problem.x[seen],
    color=BLUE,
    lw=1,
    ls="--",
    label="exp(r/α), scaled",
)
panels[2].set(xlabel="density", title="designs", xlim=(0, None))
panels[2].legend(loc="lower right", fontsize=7)
panels[2].grid(False)
show(
    figure,
    "A diffusion model on the line, exactly: its law at every time, and some paths. Tilted by a reward, the whole chain leans, "
    "and ends at the old law times exp(r/α).",
)

# %% [markdown]
# ## In fifteen lines
#
# A shipped model of 5'UTRs, your own function as the reward, and a few updates:

# %%
import difftilt as dt


def no_start_codon(designs):  # any function from designs to numbers
    return [float("ATG" not in design) for design in designs]


policy = dt.load("utr-mrl")
result = dt.finetune(
    policy,
    no_start_codon,
    dt.PPO(alpha=0.3, batch=size(64, 8), learning_rate=3e-3, steps_per_path=4),
    loop=dt.LoopConfig(steps=size(12, 2)),
)
for name, model in (("before", policy), ("after", result.policy)):
    designs = model.sample(size(200, 8))
    share = sum(no_start_codon(designs)) / len(designs)
    print(f"{name}: {share:.0%} without an upstream start, as {designs[0]}")
print(f"KL to the pretrained model: {result.history[-1]['kl_nats']:.2f} nats")

# %% [markdown]
# ## Where to go
#
# - [Install](install.md), then the [quick start](quickstart.md): one run, its folder and its report.
# - [Which method](choose.md): a table by what you have.
# - The [tutorial](tutorial/index.md): every idea on a problem small enough to know the answer, then on 5'UTRs.
# - [Your own model, reward or data](bring-your-own.md). From [TRL](from-trl.md).
# - [Campaigns](campaigns.md): plates out, results in.
# - [What you can trust](truth.md): each method against the law it claims.
