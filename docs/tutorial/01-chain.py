# %% [markdown]
# # 1. A chain small enough to see whole
#
# **The question.** We have a model that makes sequences, and a number that says how good a sequence is. What would it *mean* to
# have a better model whose designs still look like those of the old one, and can we write that model down?
#
# On a chain that is small enough, yes: here are all its states, all its probabilities, and the answer. No sampling, no training.
# The pages after this one reach the same answer in other ways, and each is checked against it.

# %% tags=["hide"]
import torch
from drawing import BLUE, GREY, ORANGE, RED, axes, say, show, table

# %% [markdown]
# ## The chain
#
# The smallest diffusion model of sequences: start with every position *masked*, show one position a step, and let a network say
# which letter it becomes. Time runs from `t = 1` (all masked: "noise") to `t = 0` (all shown: a design). The law of designs is a sum
# over the orders in which positions may be shown:
#
# $$
# p_{pre}(x_0) = \sum_{\text{paths to } x_0} \prod_{k=0}^{K-1} p_{pre}(x_s \mid x_t) \qquad (1)
# $$
#
# [`random_pairwise`][difftilt.problems.landscapes.random_pairwise] draws such a model at random, and a reward with it: here two
# positions and three letters. `chain` computes (1), and all else on this page, by
# [`occupancy`][difftilt.problems.enumerated.EnumeratedChain.occupancy]: dynamic programming, nothing approximated.

# %%
from difftilt.problems.landscapes import random_pairwise

problem = random_pairwise(length=2, letters=3, alpha=0.5, target_kl=0.8, seed=4)
chain, pretrained = problem.chain, problem.pretrained
designs = pretrained.codec.decode(chain.designs)

# %% tags=["hide"]
states, free = len(chain.states), chain.states.shape[1]
say(
    f"That is {states} states in all: one with everything masked, {len(chain.levels[1])} with one position shown, and "
    f"{len(designs)} finished designs. Here they are, with the probability that the chain passes through each (area), and the "
    "reward of each design (colour)."
)


def name(state):
    return "".join(
        "·" if letter == chain.letters else "ACG"[letter]
        for letter in state.tolist()
    )


def places():
    """Where each state is drawn: columns by number of masked positions."""
    spots = {}
    for column, level in enumerate((2, 1, 0)):
        rows = chain.levels[level].tolist()
        for i, row in enumerate(rows):
            spots[row] = (
                column,
                ((len(rows) - 1) / 2 - i) * (1.35 if level == 1 else 1),
            )
    return spots


SPOTS = places()


def draw_chain(panel, kernel, title, colour_of, limits):
    """The chain as a graph: widths and areas are probabilities of passing; returns the law of designs."""
    passing = torch.zeros(len(chain.states), dtype=torch.float64)
    passing[-1] = 1.0
    for k in range(chain.steps):
        for block in chain.blocks(k):
            flow = kernel(k, block).exp() * passing[block.index, None]
            for source, targets, masses in zip(
                block.index.tolist(),
                block.successors.tolist(),
                flow.tolist(),
                strict=True,
            ):
                for target, mass in zip(targets, masses, strict=True):
                    (x0, y0), (x1, y1) = SPOTS[source], SPOTS[target]
                    panel.plot(
                        [x0, x1],
                        [y0, y1],
                        color=GREY,
                        lw=9 * mass + 0.15,
                        alpha=0.45,
                        zorder=1,
                    )
            passing.index_add_(0, block.successors.flatten(), flow.flatten())
    for row, (x, y) in SPOTS.items():
        area, colour = 900 * passing[row].item(), colour_of[row].item()
        dots = panel.scatter(
            [x],
            [y],
            s=[max(area, 4)],
            c=[colour],
            cmap="cividis",
            vmin=limits[0],
            vmax=limits[1],
            edgecolors=GREY,
            linewidths=0.6,
            zorder=2,
        )
        panel.text(
            x + 0.1 + 0.0045 * area**0.5,
            y,
            name(chain.states[row]),
            va="center",
            fontsize=9,
            family="monospace",
        )
    panel.set(
        xlim=(-0.25, 2.5),
        title=title,
        yticks=[],
        xticks=[0, 1, 2],
        xticklabels=["t = 1", "t = ½", "t = 0"],
    )
    panel.grid(False)
    panel.spines["left"].set_visible(False)
    return dots, passing[chain.levels[0]]


low, high = problem.table.min().item(), problem.table.max().item()
reward_of = chain.spread(problem.table)


def pretrained_kernel(k, block):
    """Log p_pre(x_s | x_t), from the states of a block to their successors."""
    return block.log_prob(problem.reference[k])


# %% tags=["hide"]
figure, panel = axes(width=5.2, height=3.6)
mean_reward = chain.spread(problem.table)
for k in reversed(range(chain.steps)):  # the mean reward of what each state becomes
    for block in chain.blocks(k):
        mean_reward[block.index] = (
            pretrained_kernel(k, block).exp() * mean_reward[block.successors]
        ).sum(1)
dots, _ = draw_chain(
    panel, pretrained_kernel, "the pretrained chain", mean_reward, (low, high)
)
figure.colorbar(dots, ax=panel, label="reward (mean, where unfinished)", shrink=0.8)
show(
    figure,
    "All states of the chain. Area and width: probability of passing. Colour: reward, or its mean over what comes.",
)

# %% [markdown]
# ## What we want: the tilted law
#
# Better designs that still look like the data: maximise the reward, and pay for every nat of distance to the pretrained chain,
#
# $$
# J(\theta) = E_{p_\theta}[r(x_0)] - \alpha \sum_k E\big[ KL( p_\theta(\cdot | x_t) \| p_{pre}(\cdot | x_t) ) \big] \qquad (2)
# $$
#
# where `alpha` is a price: so many units of reward per nat. Among *all* laws of designs the best is known, in one line:
#
# $$
# p^*(x_0) = \frac{1}{Z}\, p_{pre}(x_0)\, e^{r(x_0)/\alpha}, \qquad J^* = \alpha \log Z \qquad (3)
# $$
#
# This is the **tilted law**, and it is what everything in this library aims at
# ([`TiltedProblem.tilted`][difftilt.problems.tilted.TiltedProblem.tilted],
# [`log_z`][difftilt.problems.tilted.TiltedProblem.log_z]). A small `alpha` leans hard toward reward, a large one hardly at all.

# %%
from difftilt.problems.tilted import TiltedProblem, kl_divergence

laws = {
    alpha: TiltedProblem(pretrained, problem.reward, alpha=alpha).tilted
    for alpha in (2.0, 0.5, 0.1)
}

# %% tags=["hide"]
order = problem.table.argsort().tolist()
figure, panel = axes(width=5.4, height=2.9)
for i, (label, law, colour) in enumerate(
    [
        ("pretrained", problem.pretrained_law, GREY),
        *(
            (f"alpha = {alpha}", law, colour)
            for (alpha, law), colour in zip(
                laws.items(), (BLUE, ORANGE, RED), strict=True
            )
        ),
    ]
):
    panel.bar(
        [x + 0.2 * i - 0.3 for x in range(len(order))],
        law[order],
        0.2,
        color=colour,
        label=label,
    )
panel.set_xticks(
    range(len(order)), [f"{designs[i]}\n{problem.table[i]:.1f}" for i in order]
)
panel.set(xlabel="design, and its reward (worst to best)", ylabel="probability")
panel.legend()
show(
    figure,
    "The pretrained law and three tilts of it. The smaller alpha, the more weight on the best designs.",
)

# %% [markdown]
# ## What it costs
#
# Each `alpha` buys some reward for some nats. Between the pretrained law and "always the best design" lies a curve; no law of
# designs is above it. Its slope at any point *is* `alpha`: the price at which the next nat is bought.

# %%
curve = []
for alpha in torch.logspace(-1.5, 1.5, 60).tolist():
    law = TiltedProblem(pretrained, problem.reward, alpha=alpha).tilted
    curve.append(
        (kl_divergence(law, problem.pretrained_law), (law @ problem.table).item())
    )

# %% tags=["hide"]
rng = torch.Generator().manual_seed(0)
others = []
for _ in range(400):  # any other law: here random mixtures of p_pre and random laws
    share = torch.rand((), generator=rng, dtype=torch.float64)
    random = torch.rand(len(designs), generator=rng, dtype=torch.float64).pow(3)
    law = share * problem.pretrained_law + (1 - share) * random / random.sum()
    others.append(
        (kl_divergence(law, problem.pretrained_law), (law @ problem.table).item())
    )
figure, panel = axes(width=5.2, height=3.0)
panel.scatter(
    *zip(*others, strict=True), s=6, color=GREY, alpha=0.5, label="other laws"
)
panel.plot(*zip(*curve, strict=True), color=ORANGE, label="tilted laws")
point = (
    kl_divergence(problem.tilted, problem.pretrained_law),
    problem.target_mean_reward,
)
panel.plot(*point, "o", color=RED, label=f"alpha = {problem.alpha}")
panel.axline(point, slope=problem.alpha, color=RED, lw=1, ls="--")
panel.set(
    xlabel="KL to the pretrained law (nats)",
    ylabel="mean reward",
    xlim=(-0.05, curve[0][0] * 1.05),
    ylim=(None, high + 0.1),
)
panel.legend(loc="lower right")
show(
    figure,
    "The best reward for so many nats. The dashed line has slope alpha and touches the curve at the tilted law.",
)

# %% [markdown]
# ## How a chain gets there: soft values
#
# (3) is a law of *designs*. A chain must be told what to do at each step, before it knows how the design will end. What it needs is
# the **soft value**: how much tilt is still to come from here,
#
# $$
# v_t(x_t) = \alpha \log E_{pre}\big[ e^{r(x_0)/\alpha} \,\big|\, x_t \big], \qquad
# e^{v_t(x_t)/\alpha} = \sum_{x_s} p_{pre}(x_s | x_t)\, e^{v_s(x_s)/\alpha} \qquad (4)
# $$
#
# ([`soft_values`][difftilt.problems.enumerated.EnumeratedChain.soft_values] computes the right side, backward in time.) With it, the
# best step is the old one, tilted by where it leads:
#
# $$
# p^*(x_s | x_t) = p_{pre}(x_s | x_t)\, e^{(v_s(x_s) - v_t(x_t))/\alpha} \qquad (5)
# $$

# %%
values = problem.soft_values()


def soft_optimal_kernel(k, block):
    """Equation (5), in logs."""
    gain = values[k + 1][block.successors] - values[k, block.index, None]
    return pretrained_kernel(k, block) + gain / problem.alpha


# %% tags=["hide"]
value_of = chain.spread(problem.table)
for k, level in ((0, 2), (1, 1)):
    value_of[chain.levels[level]] = values[k][chain.levels[level]]
figure, panels = axes(2, width=7.4, height=3.6)
draw_chain(panels[0], pretrained_kernel, "pretrained", value_of, (low, high))
dots, reached = draw_chain(
    panels[1], soft_optimal_kernel, "soft-optimal", value_of, (low, high)
)
figure.colorbar(dots, ax=panels, label="soft value", shrink=0.8)
show(
    figure,
    "The same chain before and after. Steps toward states of high soft value became likelier, all others rarer.",
)

# %% [markdown]
# Run this chain and the designs have the tilted law, exactly. And the number at the root, before anything is decided, is the best
# possible objective:

# %% tags=["hide"]
root = values[0, -1].item()
table(
    [
        {
            "": "largest difference of the chain's law to (3)",
            "value": f"{(reached - problem.tilted).abs().max().item():.1e}",
        },
        {"": "soft value of the root, v₁", "value": root},
        {"": "alpha log Z", "value": problem.alpha * problem.log_z},
        {"": "mean reward before", "value": problem.mean_reward(pretrained)},
        {"": "mean reward after", "value": problem.target_mean_reward},
        {
            "": "KL spent, nats",
            "value": kl_divergence(problem.tilted, problem.pretrained_law),
        },
    ]
)

# %% [markdown]
# ## How far is a policy from it?
#
# From (2) and (3): the distance of any policy to the optimum can be read off its objective, without knowing the optimum's kernels,
#
# $$
# \text{gap}(\theta) = \log Z - J(\theta)/\alpha = KL\big( p_\theta(\text{path}) \,\|\, p^*(\text{path}) \big) \ge 0 \qquad (6)
# $$
#
# This is the **optimality gap** in nats that `difftilt` prints for every run ([`gap`][difftilt.problems.tilted.TiltedProblem.gap]).
# A greedy policy that always makes the best design has the highest reward of all, and is far from the law all the same: it forgot the data.

# %%
from difftilt.problems.landscapes import TabularDenoiser


def with_law(law):
    """A policy that samples a law of designs: the denoiser has its conditionals."""
    policy = pretrained.frozen_copy()
    policy.denoiser = TabularDenoiser.from_joint(law.view([chain.letters] * free))
    return policy


greedy = 1e-9 * torch.ones_like(problem.tilted)
greedy[problem.table.argmax()] = 1.0
rows = []
for label, law in [
    ("pretrained", problem.pretrained_law),
    (
        "half way (geometric mean)",
        (problem.pretrained_law.log() + problem.tilted.log()).mul(0.5).softmax(0),
    ),
    ("tilted law", problem.tilted),
    ("always the best design", greedy / greedy.sum()),
]:
    policy = with_law(law)
    gap = problem.gap(policy)
    rows.append(
        {
            "policy": label,
            "mean reward": problem.mean_reward(policy),
            "J": problem.objective(policy).item(),
            "gap (nats)": max(gap, 0.0) if gap > -1e-9 else gap,
        }
    )
table(rows)

# %% [markdown]
# ## What to take away
#
# - The target is a law, not a design: (3). `alpha` is a price in reward units per nat.
# - Everything a chain needs to reach it is the soft value (4). Methods differ in how they come by it, or do without.
# - The gap (6) says how far any policy is, in nats. A high reward alone says nothing: the greedy policy has the highest.
#
# !!! example "Exercise"
#     Give every design the same reward plus a constant `c`. Which of (2) to (6) change, and by how much? Check with
#     `TiltedProblem(pretrained, shifted, alpha=0.5)`. Then double the reward *and* `alpha`.
