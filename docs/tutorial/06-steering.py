# %% [markdown]
# # 6. The same law by other means
#
# **The question.** For a few designs, training is a detour. Guidance, best of N, sequential Monte Carlo, Markov chain Monte Carlo: each makes
# better designs from the untouched model. Which of them sample the tilted law, at what price, and how do they fail?

# %% tags=["hide"]
import math

import torch
from drawing import BLUE, GREEN, GREY, ORANGE, axes, show, size, table

# %% [markdown]
# The problem is one number, so that a law can be looked at: data with two modes, a 16-step Gaussian chain, a reward that grows to the right.
# Everything exact is by quadrature ([`LineProblem`][difftilt.problems.line.LineProblem]).

# %%
import difftilt as dt
from difftilt.core.policy import counting_passes
from difftilt.problems.library import entry
from difftilt.verification.steering import Counted, log_density

problem = entry("mixture").make()
alpha, pretrained = problem.alpha, problem.pretrained
exact_value, density = problem.value(), log_density(problem)

# %% [markdown]
# ## Six samplers
#
# - **best of N** keeps the best of N designs. It aims at no law, but spends at most $\log N - (N-1)/N$ nats, and is the yardstick.
# - **guidance** leans each step along the gradient of a value: $\mu \leftarrow \mu + \sigma^2 \nabla v_s(\mu)/\alpha$
#   ([`GuidedPolicy`][difftilt.samplers.classifier_guidance.GuidedPolicy]). Exact values leave an error of order 1/K.
# - **value-weighted** sampling was [tutorial 4](04-values.md).
# - **SMC** carries weights, by (1): a population of particles, resampled where the weights grow uneven ([`SMC`][difftilt.samplers.smc.SMC]). *Any* twist
#   $\psi$ gives the right law; a good one gives even weights.
# - **refine** restarts a design from a stored point of its own path and accepts with $\min(1, e^{(r' - r)/\alpha})$
#   ([`Refine`][difftilt.samplers.refine.Refine]): exact in the long run, for any chain and any black box.
# - **MALA** walks in the space of designs by the gradient of $\log p_{pre} + r/\alpha$ and corrects by acceptance
#   ([`MCMC`][difftilt.samplers.mcmc.MCMC]). It needs a density.
#
# $$
# G = \frac{\psi_s(x_s)}{\psi_t(x_t)} \frac{p_{pre}(x_s | x_t)}{q(x_s | x_t)}, \qquad \psi_t \approx e^{v_t/\alpha}, \quad \psi_0 = e^{r/\alpha} \qquad (1)
# $$

# %%
n = size(3000, 60)
samplers = {
    "best of 8": (dt.BestOfN(candidates=8), None),
    "guidance, plug-in value": (dt.ClassifierGuidance(alpha=alpha), None),
    "guidance, exact value": (dt.ClassifierGuidance(alpha=alpha), exact_value),
    "value-weighted, M = 16": (
        dt.ValueWeighted(alpha=alpha, candidates=16),
        exact_value,
    ),
    "SMC, no twist": (dt.SMC(alpha=alpha, particles=500, kind="bootstrap"), None),
    "SMC, plug-in twist": (dt.SMC(alpha=alpha, particles=500), None),
    "refine": (dt.Refine(alpha=alpha, moves=size(40, 3)), None),
    "MALA": (
        dt.MCMC(
            alpha=alpha,
            kernel="mala",
            step_size=0.1,
            moves=size(60, 3),
            log_density=density,
        ),
        None,
    ),
}
drawn, cost = {}, {}
for name, (sampler, value) in samplers.items():
    reward = Counted(problem.reward)
    with counting_passes(pretrained) as passes:
        drawn[name] = sampler(
            pretrained, reward, n, torch.Generator().manual_seed(0), value=value
        )
    cost[name] = (passes.rows / n, reward.calls / n)

# %% tags=["hide"]
figure, panels = axes(4, 2, width=8.6, height=4.2, sharex=True, sharey=True)
edges = torch.linspace(-3.2, 3.2, 49, dtype=torch.float64)
for panel, (name, run) in zip(panels.flat, drawn.items(), strict=True):
    panel.hist(
        run.x_0[:, 0].numpy(),
        bins=edges.numpy(),
        weights=run.log_weight.softmax(0).numpy() / (edges[1] - edges[0]).item(),
        color=BLUE,
        alpha=0.45,
    )
    panel.plot(problem.x, problem.pretrained_law / problem.width, color=GREY, lw=1)
    panel.plot(problem.x, problem.tilted / problem.width, color=ORANGE, lw=1.5)
    panel.set(title=name, xlim=(-3.2, 3.2))
for panel in panels[1]:
    panel.set_xlabel("x")
for panel in panels[:, 0]:
    panel.set_ylabel("density")
show(
    figure,
    "Draws of each sampler (blue), the pretrained law (grey) and the tilted law (orange), exact.",
)

# %% tags=["hide"]
rows = []
for name, run in drawn.items():
    told = problem.law_of(run.x_0, run.log_weight)
    weights = run.log_weight.softmax(0)
    rows.append(
        {
            "sampler": name,
            "total variation": told.total_variation,
            "mean reward": (
                weights @ torch.as_tensor(problem.reward(run.x_0))
            ).item(),
            "network passes per design": cost[name][0],
            "reward calls per design": cost[name][1],
            "designs it is worth": int(1 / weights.square().sum().item())
            if len(run.x_0.unique()) == n
            else len(run.x_0.unique()),
        }
    )
cells = torch.multinomial(
    problem.tilted, n, replacement=True, generator=torch.Generator().manual_seed(1)
)
floor = problem.law_of(
    problem.x[cells, None], torch.zeros(n, dtype=torch.float64)
).total_variation
rows.append(
    {
        "sampler": "the law itself",
        "total variation": floor,
        "mean reward": (problem.tilted @ problem.table).item(),
        "network passes per design": "",
        "reward calls per design": "",
        "designs it is worth": n,
    }
)
table(rows)

# %% [markdown]
# (`total variation` of *n* perfect draws is not 0: the last row says how much is noise. Mind the last column: SMC's copies are the same design. Refine and MALA
# are Markov chains from the pretrained law: the fewer moves, the more of it is left.)
#
# ## Z, for free
#
# The mean weight of SMC estimates the normaliser without bias, $E[\hat Z] = Z$, whatever the twist; its *log* is biased low. Since the gap of every
# run needs log Z, it matters how many particles that takes:
#
# $$
# \hat Z = \frac1N \sum_i w_i \qquad (2)
# $$

# %%
counts = [4, 16, 64, 256][: size(4, 2)]
particles = size(16384, 512)  # in all: many small populations, or few large ones
rng = torch.Generator().manual_seed(2)
logs = {"bootstrap": {}, "twisted": {}}
for kind in logs:
    for m in counts:
        run = dt.SMC(alpha=alpha, particles=m, kind=kind)(
            pretrained, problem.reward, particles, rng
        )
        # log Ẑ of each population
        logs[kind][m] = run.log_weight.view(-1, m).logsumexp(1) - math.log(m)

# %% tags=["hide"]
figure, panels = axes(2, width=7.6, height=2.8, sharex=True)
for kind, colour, label in (
    ("bootstrap", GREY, "no twist"),
    ("twisted", BLUE, "plug-in twist"),
):
    means = [logs[kind][m].mean().item() for m in counts]
    ratio = [(logs[kind][m] - problem.log_z).exp() for m in counts]
    errors = [r.std().item() / math.sqrt(len(r)) for r in ratio]
    panels[0].errorbar(
        counts,
        [r.mean().item() for r in ratio],
        yerr=errors,
        color=colour,
        marker="o",
        ms=4,
        capsize=2,
    )
    panels[1].plot(counts, means, "o-", color=colour, label=label, ms=4)
panels[0].axhline(1, color=ORANGE, ls="--", lw=1)
panels[1].axhline(problem.log_z, color=ORANGE, ls="--", lw=1)
panels[0].set(ylabel="mean of Ẑ / Z (± standard error)")
panels[1].set(ylabel="mean of log Ẑ (nats)")
panels[1].legend(loc="lower right")
for panel in panels:
    panel.set(xscale="log", xlabel="particles N")
    panel.set_xticks(counts, [str(m) for m in counts])
    panel.minorticks_off()
show(
    figure,
    "Left: Ẑ is unbiased at any N, with or without a twist. Right: its log is biased low, less with more particles or a better twist.",
)

# %% [markdown]
# ## How long must refine run?
#
# Markov chains forget where they started. Here refine starts from the pretrained law, and its mean reward climbs to that of the law.

# %%
moves = [0, 2, 5, 10, 20, 40][: size(6, 2)]
climbed = []
for count in moves:
    run = dt.Refine(alpha=alpha, moves=count)(
        pretrained, problem.reward, size(2000, 40), torch.Generator().manual_seed(3)
    )
    climbed.append(torch.as_tensor(problem.reward(run.x_0)).mean().item())

# %% tags=["hide"]
figure, panel = axes(width=5.0, height=2.5)
panel.plot(moves, climbed, "o-", color=GREEN, label="refine", ms=4)
panel.axhline(
    (problem.tilted @ problem.table).item(),
    color=ORANGE,
    ls="--",
    lw=1,
    label="tilted law",
)
panel.axhline(
    (problem.pretrained_law @ problem.table).item(),
    color=GREY,
    ls="--",
    lw=1,
    label="pretrained",
)
panel.set(xlabel="moves (a reward call each)", ylabel="mean reward")
panel.legend()
show(
    figure,
    "Refine from the pretrained law: the mean reward by the number of moves.",
)

# %% [markdown]
# ## What to take away
#
# - SMC and refine reach the tilted law with a black box and an untouched model; weights or moves are the price.
# - Guidance is as good as its value; the plug-in value leads to another law. As a *proposal* of SMC it is corrected.
# - Best of N is the yardstick: never report a method without it.
#
# !!! example "Exercise"
#     Give SMC the exact value, `value=exact_value`, and `tempering=0.0`. What becomes of the weights, and of the spread of log Ẑ? Then give it
#     a *wrong* twist (the exact value of the reward turned around): is Ẑ still unbiased?
