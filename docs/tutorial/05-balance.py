# %% [markdown]
# # 5. Path consistency and balance
#
# **The question.** PPO and weighted likelihood learn from the *mean* of many paths. But the answer of [1](01-chain.md) is an equation that holds
# on **every** path. Can a loss simply ask for it to hold, and learn from any path, whoever made it?

# %% tags=["hide"]
import torch
from drawing import BLUE, GREEN, GREY, ORANGE, RED, VIOLET, axes, show, size
from practice import tune

from difftilt.problems.landscapes import random_pairwise, TabularDenoiser

# %% [markdown]
# ## One equation, on any stretch of a path
#
# The soft-optimal kernel is $p^* = p_{pre}\, e^{(v_s - v_t)/\alpha}$. In logs, with the log-ratio $l_k = \log p_\theta - \log p_{pre}$ of a step,
#
# $$
# v_t(x_t) - v_s(x_s) + \alpha\, l_k = 0 \quad \text{on every step} \qquad (1)
# $$
#
# Summed over a whole path the values in between cancel:
#
# $$
# \log Z + \sum_k l_k - r(x_0)/\alpha = 0 \quad \text{on every path} \qquad (2)
# $$
#
# | loss | asks for | also learns |
# |---|---|---|
# | path consistency, detailed balance | (1) on single steps | a value network |
# | subtrajectory balance | (1) summed over stretches of any length | a value network |
# | trajectory balance | (2) | log Z |
# | VarGrad | (2), with the batch's own mean in place of log Z | nothing |
#
# Each squares the left side: [`path_consistency_loss`][difftilt.algorithms.path_consistency.path_consistency_loss],
# [`trajectory_balance_loss`][difftilt.algorithms.trajectory_balance.trajectory_balance_loss]. GFlowNets know the same equations by the names of
# flows, $F_t = p_{pre,t}\, e^{v_t/\alpha}$; here the backward policy is the pretrained chain's own.

# %%
problem = random_pairwise(length=4, letters=4, alpha=0.5, target_kl=1.5, seed=2)
alpha, pretrained, chain = problem.alpha, problem.pretrained, problem.chain

# %% [markdown]
# ## All paths at once
#
# The chain is so small that every path can be listed ([`trajectories`][difftilt.problems.enumerated.EnumeratedChain.trajectories]). Here is the left
# side of (2), for every path, under three policies. At the optimum *all* residuals are zero: not their mean, each one.


# %%
def with_law(law):
    policy = pretrained.frozen_copy()
    policy.denoiser = TabularDenoiser.from_joint(law.view([4] * 4))
    return policy


between = (problem.pretrained_law.log() + problem.tilted.log()).mul(0.5).softmax(0)
policies = {
    "pretrained": pretrained,
    "half way": with_law(between),
    "optimal": with_law(problem.tilted),
}
residuals = {}
for name, policy in policies.items():
    paths = chain.trajectories(policy, [pretrained])
    designs = paths.x_0
    tilt = torch.as_tensor(problem.reward(pretrained.codec.decode(designs))) / alpha
    residuals[name] = (
        problem.log_z + paths.log_ratio[0].sum(0) - tilt
    )  # equation (2)

# %% tags=["hide"]
figure, panel = axes(width=5.6, height=2.7)
for (name, residual), colour in zip(
    residuals.items(), (GREY, BLUE, ORANGE), strict=True
):
    panel.plot(
        residual.sort().values,
        torch.linspace(0, 1, len(residual)),
        color=colour,
        label=name,
    )
panel.set(xlabel="residual of (2) (nats)", ylabel="share of all paths below")
panel.legend()
show(
    figure,
    f"The residual on each of the {len(residual):,} paths. Half way its spread is half; at the optimum it is zero everywhere.",
)

# %% [markdown]
# ## The five losses

# %%
import difftilt as dt

options = {"alpha": alpha, "batch": 128, "learning_rate": 0.05}
runs = {
    "trajectory balance": tune(problem, dt.TrajectoryBalance(**options), 150),
    "VarGrad": tune(problem, dt.VarGrad(**options), 150),
    "path consistency": tune(problem, dt.PathConsistency(**options), 150),
    "detailed balance": tune(problem, dt.DetailedBalance(**options), 150),
    "subtrajectory balance": tune(problem, dt.SubtrajectoryBalance(**options), 150),
}

# %% tags=["hide"]
figure, panels = axes(2, width=7.8, height=3.0)
colours = (ORANGE, RED, BLUE, VIOLET, GREEN)
for (name, run), colour in zip(runs.items(), colours, strict=True):
    panels[0].plot(run.calls, run.kl, color=colour, label=name)
panels[0].set(
    yscale="log",
    xlabel="designs scored",
    ylabel="KL to the tilted law (nats, exact)",
)
panels[0].legend(fontsize=8)
log_z = [info.log_z for info in runs["trajectory balance"].infos]
panels[1].plot(
    [128 * (i + 1) for i in range(len(log_z))], log_z, color=ORANGE, label="learned"
)
panels[1].axhline(problem.log_z, color=GREY, ls="--", lw=1, label="exact")
panels[1].set(xlabel="designs scored", ylabel="log Z (nats)")
panels[1].legend()
show(
    figure,
    "Left: all five reach the same law. Right: trajectory balance learns log Z on the way, which is the best possible objective over alpha.",
)

# %% [markdown]
# ## From anybody's paths
#
# A policy gradient is an average over the *current* policy's paths. (1) and (2) hold on any path: old ones, those of other policies, those of a
# more adventurous one. So scored designs with their paths can be used again (`replay`), and a call to the reward is never wasted. Here half of
# each batch is replayed, and so not scored again:

# %%
fresh, replayed = {}, {}
for seed in range(size(3, 1)):
    fresh[seed] = tune(problem, dt.TrajectoryBalance(**options), 60, seed=seed)
    replayed[seed] = tune(
        problem, dt.TrajectoryBalance(**options, replay=0.5), 120, seed=seed
    )

# %% tags=["hide"]
figure, panel = axes(width=5.4, height=2.8)
for name, group, share, colour in (
    ("all fresh", fresh, 1.0, BLUE),
    ("half replayed", replayed, 0.5, ORANGE),
):
    for seed, run in group.items():
        panel.plot(
            [calls * share for calls in run.calls],
            run.kl,
            color=colour,
            lw=1.2,
            label=name if seed == 0 else None,
        )
panel.set(
    yscale="log",
    xlabel="fresh designs scored",
    ylabel="KL to the tilted law (nats, exact)",
)
panel.legend()
show(
    figure,
    "Trajectory balance with and without replay, by the number of designs that had to be scored; one line per seed.",
)

# %% [markdown]
# ## What to take away
#
# - The optimum is an equation per path. A squared residual that is zero everywhere is the law, whoever made the paths.
# - Noise vanishes at the optimum, as with the KL inside the return: VarGrad's gradient on own paths *is* REINFORCE's, doubled.
# - Where the trained class cannot hold the law (several tokens in one step), the residual cannot vanish, and squares of it end elsewhere
#   than the best objective: then stay on-policy ([when](../choose.md)).
#
# !!! example "Exercise"
#     In the figure of residuals, which policy would put all mass on the best design, and what would its line look like? It has no spread on its
#     *own* paths: why does that not make it optimal, and which number of the log gives it away?
