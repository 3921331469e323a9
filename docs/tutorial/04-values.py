# %% [markdown]
# # 4. Soft values: weigh steps, or learn from weighted ones
#
# **The question.** The soft value says where good designs are still to come ([1](01-chain.md)). If we had it, every step could be chosen by it,
# without training. How is it estimated, which estimate is right, and what becomes of the errors?

# %% tags=["hide"]
import torch
from drawing import BLUE, GREEN, GREY, ORANGE, RED, VIOLET, axes, show, size
from practice import tune

from difftilt.problems.landscapes import random_pairwise

# %%
problem = random_pairwise(length=4, letters=4, alpha=0.5, target_kl=1.5, seed=2)
alpha, pretrained, reward = problem.alpha, problem.pretrained, problem.reward
exact = problem.value()  # by dynamic programming

# %% [markdown]
# ## Four estimates, and the truth
#
# $$
# v_t(x_t) = \alpha \log E_{pre}\big[ e^{r(x_0)/\alpha} \,\big|\, x_t \big] \qquad (1)
# $$
#
# - **plug-in**, $r(E[x_0 | x_t])$: one network call, and the reward of a mixture it has never seen
#   ([`PlugIn`][difftilt.values.plug_in.PlugIn]; DPS, SVDD-PM);
# - **one jump**: designs drawn letter by letter from $x_t$, then (1) ([`OneJump`][difftilt.values.plug_in.OneJump]);
# - **Monte Carlo**: designs by running the chain to its end; right for many rollouts, low for few
#   ([`MonteCarlo`][difftilt.values.monte_carlo.MonteCarlo]);
# - **regression** on finished paths, with the loss whose minimum *is* (1), for the residual $d = (r - f)/\alpha$:
#
# $$
# L(f) = E_{pre}\big[ e^d - d - 1 \big] \qquad (2)
# $$
#
# ([`soft_value_loss`][difftilt.values.regression.soft_value_loss]). Squared error would learn $E[r|x_t]$ instead, which knows no `alpha`.

# %%
from difftilt.core.trajectory import rollout
from difftilt.values.calibration import calibration
from difftilt.values.monte_carlo import MonteCarlo
from difftilt.values.plug_in import OneJump, PlugIn
from difftilt.values.regression import Regression, fit_value

rng = torch.Generator().manual_seed(0)
settings = Regression(
    alpha=alpha, paths=size(2048, 32), updates=size(800, 3), batch=256
)
estimates = {
    "plug-in": PlugIn(pretrained, reward),
    "one jump, 16": OneJump(pretrained, reward, rng, alpha, 16),
    "Monte Carlo, 16": MonteCarlo(pretrained, reward, rng, alpha, 16),
    "regression": fit_value(pretrained, reward, rng, settings),
}
path = rollout(pretrained, size(150, 8), rng)
found = {
    name: calibration(estimate, exact, path) for name, estimate in estimates.items()
}

# %% tags=["hide"]
figure, panels = axes(4, width=8.4, height=2.5, sharex=True, sharey=True)
half = 2  # two letters shown, two masked
for panel, (name, rows) in zip(panels, found.items(), strict=True):
    row = rows[half]
    panel.plot(row.exact, row.estimate, ".", color=BLUE, alpha=0.5, ms=4)
    panel.axline((0, 0), slope=1, color=GREY, lw=1)
    panel.set(title=f"{name}\nbias {row.bias:+.2f}", xlabel="exact")
panels[0].set_ylabel("estimated soft value")
show(
    figure,
    "Estimates against exact soft values, half way through the chain. On the line is right.",
)

# %% [markdown]
# ## Value-weighted sampling
#
# With a value in hand, no training is needed: propose `M` next states, keep one with probability in proportion to its weight,
#
# $$
# x_s^1, \dots, x_s^M \sim p_{pre}(\cdot | x_t), \qquad P(x_s = x_s^i) \propto e^{v_s(x_s^i)/\alpha} \qquad (3)
# $$
#
# ([`ValueWeighted`][difftilt.samplers.value_weighted.ValueWeighted]; SVDD). With exact values the error falls as `1/M`. With another value the
# sampler goes to *another law*, whatever `M` is; and with the argmax in place of (3), as in the paper's public code, it goes to none.

# %%
import difftilt as dt

draws = size(4000, 50)


def variation(sampler, value):
    """Total variation of draws to the tilted law, and their mean reward."""
    drawn = sampler(
        pretrained, reward, draws, torch.Generator().manual_seed(1), value=value
    )
    told = problem.law_of(drawn.x_0, drawn.log_weight)
    return told.total_variation, (told.observed @ problem.table).item()


candidates = [1, 2, 4, 8, 16, 32][: size(6, 2)]
cases = {
    "exact value": ({}, exact),
    "regression": ({}, estimates["regression"]),
    "plug-in": ({}, estimates["plug-in"]),
    "exact value, argmax": ({"choice": "argmax"}, exact),
}
curves = {
    name: [
        variation(dt.ValueWeighted(alpha=alpha, candidates=m, **options), value)
        for m in candidates
    ]
    for name, (options, value) in cases.items()
}
law = problem.tilted
floor = problem.law_of(
    problem.chain.designs[
        torch.multinomial(law, draws, replacement=True, generator=rng)
    ],
    torch.zeros(draws),
)

# %% tags=["hide"]
figure, panels = axes(2, width=7.6, height=2.9)
for (name, curve), colour in zip(
    curves.items(), (BLUE, GREEN, VIOLET, RED), strict=True
):
    panels[0].plot(
        candidates,
        [point[0] for point in curve],
        "o-",
        color=colour,
        ms=4,
    )
    panels[1].plot(
        candidates,
        [point[1] for point in curve],
        "o-",
        color=colour,
        label=name,
        ms=4,
    )
panels[0].axhline(floor.total_variation, color=GREY, ls="--", lw=1)
panels[0].text(
    candidates[0],
    floor.total_variation,
    f"{draws:,} draws of the law itself",
    color=GREY,
    fontsize=8,
    va="bottom",
)
panels[1].axhline(problem.target_mean_reward, color=GREY, ls="--", lw=1)
panels[1].text(
    candidates[0],
    problem.target_mean_reward,
    "the law",
    color=GREY,
    fontsize=8,
    va="bottom",
)
panels[0].set(ylabel="total variation to the tilted law")
panels[1].set(ylabel="mean reward")
for panel in panels:
    panel.set(xscale="log", xlabel="candidates M")
    panel.set_xticks(candidates, [str(m) for m in candidates])
    panel.minorticks_off()
panels[1].legend(fontsize=8, loc="lower right")
show(
    figure,
    "Left: distance to the law, right: reward. More reward than the law is no success: argmax overshoots it.",
)

# %% [markdown]
# ## Learn from weights instead
#
# Sampling by (3) pays `M` times for each design, for ever. The same weights can train the network once. Weigh whole *paths* of the pretrained
# chain by what they became, or single *steps* by their value:
#
# $$
# L = - E_{pre}\Big[ \frac{e^{r(x_0)/\alpha}}{Z} \sum_k \log p_\theta(x_s|x_t) \Big] \qquad
# L = - E\Big[ e^{(v_s(x_s) - v_t(x_t))/\alpha} \log p_\theta(x_s | x_t) \Big] \qquad (4)
# $$
#
# The left is **reward-weighted MLE** ([`weighted_mle_loss`][difftilt.algorithms.reward_weighted_mle.weighted_mle_loss]), the right
# **value-weighted MLE** ([`ValueWeightedMLE`][difftilt.algorithms.value_weighted_mle.ValueWeightedMLE]). Both are *forward* KLs: they cover every
# mode of the law, where policy gradients may lose one.

# %%
options = {"alpha": alpha, "batch": 128, "learning_rate": 0.05}
runs = {
    "reward-weighted MLE": tune(problem, dt.RewardWeightedMLE(**options), 150),
    "value-weighted, exact value": tune(
        problem, dt.ValueWeightedMLE(**options), 150, value=exact
    ),
    "value-weighted, regression": tune(
        problem, dt.ValueWeightedMLE(**options), 150, value=estimates["regression"]
    ),
    "value-weighted, plug-in": tune(
        problem, dt.ValueWeightedMLE(**options), 150, value=estimates["plug-in"]
    ),
    "RAFT (best tenth)": tune(problem, dt.RAFT(**{**options, "batch": 128}), 60),
}

# %% tags=["hide"]
figure, panel = axes(width=5.6, height=3.0)
for (name, run), colour in zip(
    runs.items(), (ORANGE, BLUE, GREEN, VIOLET, RED), strict=True
):
    panel.plot(run.calls, run.kl, color=colour, label=name)
panel.set(yscale="log", xlabel="paths", ylabel="KL to the tilted law (nats, exact)")
panel.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
show(
    figure,
    "Each method goes where its weights point: to the law if they are right, elsewhere if the value is wrong, and nowhere for RAFT.",
)

# %% [markdown]
# ## The compounding trap
#
# Draw candidates from the *tuned* policy and weigh them by reward once more, round after round, without dividing by what was already gained,
# and the tilt compounds: after `n` rounds the law is $p_{pre}\, e^{n r/\alpha}$. This is what `path_correction=False` does; it is there to be
# compared.

# %%
compounding = tune(
    problem, dt.RewardWeightedMLE(**options, path_correction=False), 150
)

# %% tags=["hide"]
figure, panel = axes(width=5.2, height=2.6)
panel.plot(
    runs["reward-weighted MLE"].calls,
    runs["reward-weighted MLE"].reward,
    color=ORANGE,
    label="with the path's correction",
)
panel.plot(compounding.calls, compounding.reward, color=RED, label="without")
panel.axhline(
    problem.target_mean_reward, color=GREY, ls="--", lw=1, label="the law"
)
panel.set(xlabel="paths", ylabel="mean reward (exact)")
panel.legend()
show(
    figure,
    "Without the correction the reward passes the law's and goes on to the single best design.",
)

# %% [markdown]
# ## What to take away
#
# - Plug-in values are cheap and are not soft values. Check an estimate where the truth is known, or by the gap.
# - Steering by a value and training on it aim at the same law, and inherit the same errors.
# - Weights must be those of the *pretrained* chain, or corrected for the path.
#
# !!! example "Exercise"
#     Replace `"plug-in"` by `MonteCarlo` with 1 rollout in `cases`. Its bias is by Jensen's inequality: which sign, and does a larger `M`
#     mend it?
