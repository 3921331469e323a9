# %% [markdown]
# # 2. Policy gradients and PPO
#
# **The question.** The reward is a black box: a docking program, a trained model behind a wall, a person. We can ask it for numbers and
# nothing else. How does a chain learn from numbers alone to lean toward what is good, and stop leaning at the right place?

# %% tags=["hide"]
import torch
from drawing import BLUE, GREY, ORANGE, RED, axes, show, size, table
from practice import tune

# %% [markdown]
# The problem: four tokens of four letters, small enough that the exact answer is known (see [1](01-chain.md)). What is tuned is a table, one
# row of logits for each partial sequence, so that nothing is lost to a network.

# %%
from difftilt.problems.landscapes import random_pairwise

problem = random_pairwise(length=4, letters=4, alpha=0.5, target_kl=1.5, seed=2)
alpha, pretrained = problem.alpha, problem.pretrained

# %% [markdown]
# ## The chain as a decision process
#
# A state is a partly shown sequence, an action shows the next letter, the policy is the network, and the reward comes at the end. With
# the path's log-ratio $l_k = \log p_\theta(x_s|x_t) - \log p_{pre}(x_s|x_t)$ its **return** is
#
# $$
# R = r(x_0) - \alpha \sum_k l_k, \qquad E[R] = J(\theta) \qquad (1)
# $$
#
# and the gradient of the objective needs no gradient of the reward:
#
# $$
# \nabla_\theta J = E\Big[ (R - b) \sum_k \nabla_\theta \log p_\theta(x_s \mid x_t) \Big] \qquad (2)
# $$
#
# for any `b` that does not depend on the path itself. Here it is, by hand; the library's is
# [`Reinforce`][difftilt.algorithms.reinforce.Reinforce], with the baseline of
# [`mean_of_others`][difftilt.algorithms.advantages.mean_of_others].

# %%
from difftilt.core.trajectory import rollout, step_log_prob


def estimate(policy, paths, rng, *, baseline, kl=True):
    """Equation (2) from some paths, as one flat vector."""
    drawn = rollout(policy, paths, rng, references=[pretrained])
    returns = torch.as_tensor(problem.reward(policy.codec.decode(drawn.x_0)))
    if kl:
        returns = returns - alpha * drawn.log_ratio[0].sum(0)
    if baseline:
        returns = (
            (returns - returns.mean()) * paths / (paths - 1)
        )  # minus the mean of the others
    log_prob = sum(
        step_log_prob(
            policy,
            drawn.states[k],
            drawn.states[k + 1],
            drawn.times[k],
            drawn.times[k + 1],
        )
        for k in range(policy.steps)
    )
    (gradient,) = torch.autograd.grad(
        (returns * log_prob).mean(), policy.trainable()
    )
    return gradient.flatten()


policy = problem.tunable()
(exact,) = torch.autograd.grad(
    problem.objective(policy, grad=True), policy.trainable()
)
exact = exact.flatten()

# %% [markdown]
# The right answer is known: [`problem.objective`][difftilt.problems.tilted.TiltedProblem.objective] is the exact $J$, and autograd gives its
# gradient. How well do estimates of (2) point along it?

# %% tags=["hide"]
rng = torch.Generator().manual_seed(0)
batches = [16, 64, 256, 1024][: size(4, 1)]
repeats = size(8, 2)


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


points = {
    with_baseline: [
        [
            cosine(estimate(policy, n, rng, baseline=with_baseline), exact)
            for _ in range(repeats)
        ]
        for n in batches
    ]
    for with_baseline in (True, False)
}
figure, panel = axes(width=5.2, height=2.8)
for with_baseline, colour, label in (
    (True, BLUE, "minus the mean of the other paths"),
    (False, GREY, "no baseline"),
):
    means = [sum(values) / len(values) for values in points[with_baseline]]
    panel.plot(batches, means, "-", color=colour, label=label)
    for n, values in zip(batches, points[with_baseline], strict=True):
        panel.plot([n] * len(values), values, ".", color=colour, alpha=0.5)
panel.set(
    xscale="log",
    xlabel="paths in the batch",
    ylabel="cosine with the exact gradient",
    ylim=(None, 1.02),
)
panel.legend()
show(
    figure,
    "Estimates of (2) point ever better along the exact gradient. A baseline costs nothing and saves most of the noise.",
)

# %% [markdown]
# ## Where it stops: the KL belongs inside
#
# Near the optimum something pleasant happens. There $\log p^*(\text{path}) - \log p_{pre}(\text{path}) = r/\alpha - \log Z$, so the return (1)
# is *the same for every path*, and the noise of (2) vanishes. Leave the KL out and the returns never agree: the policy goes on to the single
# best design.

# %%
from types import SimpleNamespace

import difftilt as dt

settings = {"batch": 128, "learning_rate": 0.05}
# the same problem, where a nat costs next to nothing; judged by the same law
cheap = SimpleNamespace(
    pretrained=pretrained,
    reward=problem.reward,
    alpha=alpha / 50,
    tunable=problem.tunable,
    kl=problem.kl,
    mean_reward=problem.mean_reward,
)
runs = {
    "reinforce": tune(problem, dt.Reinforce(alpha=alpha, **settings), 150),
    "ppo": tune(problem, dt.PPO(alpha=alpha, **settings), 150),
    "ppo, hardly any KL": tune(cheap, dt.PPO(alpha=alpha / 50, **settings), 150),
}

# %% tags=["hide"]
figure, panels = axes(2, width=7.6, height=2.9)
colours = dict(zip(runs, (BLUE, ORANGE, RED), strict=True))
before = problem.kl(pretrained)
for name, run in runs.items():
    panels[0].plot(run.calls, run.kl, color=colours[name], label=name)
    spread = [info.return_std for info in run.infos]
    panels[1].plot(
        [128 * (i + 1) for i in range(len(spread))], spread, color=colours[name]
    )
panels[0].axhline(before, color=GREY, ls="--", lw=1)
panels[0].text(
    panels[0].get_xlim()[1],
    before,
    "pretrained",
    color=GREY,
    ha="right",
    va="bottom",
    fontsize=8,
)
panels[0].set(
    xlabel="designs scored",
    ylabel="KL to the tilted law (nats, exact)",
    yscale="log",
)
panels[1].set(
    xlabel="designs scored", ylabel="spread of returns (nats)", yscale="log"
)
panels[0].legend(fontsize=8)
show(
    figure,
    "Left: distance to the law. Right: with the KL in the return its spread falls with the gap; nothing is left to learn from at the end.",
)

# %% [markdown]
# ## PPO: use a rollout more than once
#
# Rewards are dear and gradients cheap, so take several steps from one batch. After the first the paths are those of an *older* policy; the
# ratio $\rho_k$ of new to stored probability corrects for that, and clipping keeps it where the correction can be trusted:
#
# $$
# L(\theta) = - \frac1B \sum_b \sum_k \min\big( \rho_k A_b,\; \text{clip}(\rho_k, 1 - \epsilon, 1 + \epsilon) A_b \big) \qquad (3)
# $$
#
# ([`ppo_loss`][difftilt.algorithms.ppo.ppo_loss]; all of it in [PPO](../algorithms/ppo.md).) Two numbers of the log say whether it is
# healthy: the ratio of the *first* pass must be 1, and later ones must sometimes be clipped.

# %%
info = runs["ppo"].infos[len(runs["ppo"].infos) // 4]
table(
    [
        {
            "logged": "ratio_first_pass (largest |log ratio|)",
            "value": f"{info.ratio_first_pass:.1e}",
        },
        {"logged": "clip_fraction", "value": info.clip_fraction},
        {"logged": "log_ratio_rms (nats)", "value": info.log_ratio_rms},
        {"logged": "kl_nats", "value": info.kl_nats},
    ]
)

# %% [markdown]
# ## A trap: dividing by the spread
#
# Many implementations divide the advantage by its standard deviation. Where the KL is a term of its own beside the advantage (here `kl="closed_form"`), that
# changes its price from update to update, and `alpha` means something else in each. Here are the laws that are reached, with and without:

# %%
closed = {
    "KL in closed form": tune(
        problem, dt.PPO(alpha=alpha, kl="closed_form", **settings), 150, looks=3
    ),
    "the same, advantages divided by their std": tune(
        problem,
        dt.PPO(alpha=alpha, kl="closed_form", scale="batch", **settings),
        150,
        looks=3,
    ),
}

# %% tags=["hide"]
law = {
    "run": "the tilted law itself",
    "KL to the tilted law": 0.0,
    "mean reward": problem.target_mean_reward,
}
table(
    [
        {
            "run": name,
            "KL to the tilted law": run.kl[-1],
            "mean reward": run.reward[-1],
        }
        for name, run in {**runs, **closed}.items()
    ]
    + [law]
)

# %% [markdown]
# ## What to take away
#
# - A black box is enough: (2) needs only numbers. A baseline is free.
# - Keep the KL in the return, in nats, with a price `alpha`; then noise vanishes where learning should stop.
# - PPO spends fewer reward calls for the same law. Its first-pass ratio is a self-test, not a result.
#
# !!! example "Exercise"
#     Add 10 to every reward. What happens to the grey points of the first figure, and to the blue ones? Why? Then set `epochs=1,
#     minibatches=1` in `dt.PPO`: which number of the log says that it is REINFORCE now?
