# %% [markdown]
# # 7. Flows, memoryless noise, adjoint matching
#
# **The question.** Image models are flows: an ODE carries noise to data, and the noise decides the design. Then tuning the steps cannot reach
# the tilted law, and the usual objective is not even defined. What has to change, and what does one gain?

# %% tags=["hide"]
import torch
from drawing import BLUE, GREEN, GREY, ORANGE, RED, axes, say, show, size, table
from matplotlib import colormaps
from practice import tune

# %% [markdown]
# ## One set of marginals, many chains
#
# A flow's network predicts the velocity $u = E[\epsilon - x_0 | x_t]$ along straight paths $x_t = (1-t)\, x_0 + t\, \epsilon$. The ODE
# $dx = u\, dt$ turns noise into data; so does, with the *same law at every time*, the SDE
#
# $$
# dx = \Big( u + \frac{g_t^2}{2t}\, \hat\epsilon \Big) dt + g_t\, dw, \qquad g_t = a \sqrt{t / (1 - t)} \qquad (1)
# $$
#
# for any level $a$ ([`Flow`][difftilt.processes.flow.Flow], which solves each step exactly rather than by Euler). Here is one network, exact for
# two-mode data, run at three levels. Paths are coloured by where they *start*.

# %%
import difftilt as dt
from difftilt.core.codec import VectorCodec
from difftilt.core.noise import Linear
from difftilt.core.trajectory import rollout
from difftilt.problems.mixture import MixtureDenoiser
from difftilt.processes import Flow


class Velocity(torch.nn.Module):
    """The exact velocity of two-mode data; any module of (x_t, t, cond) does."""

    def __init__(self):
        super().__init__()
        self.data = MixtureDenoiser(
            [0.6, 0.4], [[-1.2], [1.0]], [0.35, 0.35], Linear(), "x_0"
        )

    def forward(self, x_t, t, cond=None):
        t = t[:, None].double()
        x_0 = self.data.posterior_mean(x_t, 1 - t[:, 0], t[:, 0])
        return ((x_t - (1 - t) * x_0) / t - x_0).to(x_t.dtype)


levels = {"ODE, a = 0": 0.0, "a = 0.7": 0.7, "memoryless, a = √2": 2**0.5}
chains = {
    name: dt.load(
        Velocity(),
        process=Flow(level),
        codec=VectorCodec(),
        event_shape=(1,),
        steps=40,
    )
    for name, level in levels.items()
}

# %% tags=["hide"]
figure, panels = axes(3, width=8.4, height=2.9, sharey=True)
rows = []
for panel, (name, chain) in zip(panels, chains.items(), strict=True):
    path = rollout(chain, size(2000, 30), torch.Generator().manual_seed(1))
    some = path.states[:, : size(40, 6), 0]
    first = some[0]
    for line, start in zip(some.T, first, strict=True):
        shade = (start.item() + 2) / 4
        panel.plot(
            path.times, line, color=colormaps["coolwarm"](shade), lw=0.9, alpha=0.8
        )
    panel.set(xlim=(1, 0), title=name, xlabel="t: noise to data", ylim=(-3, 3))
    ranks = torch.stack(
        [
            path.states[0, :, 0].argsort().argsort(),
            path.x_0[:, 0].argsort().argsort(),
        ]
    ).double()
    rows.append(
        {
            "chain": name,
            "rank correlation of noise and design": torch.corrcoef(ranks)[
                0, 1
            ].item(),
            "mean of designs": path.x_0.mean().item(),
            "std of designs": path.x_0.std().item(),
        }
    )
panels[0].set_ylabel("x")
show(
    figure,
    "The same network at three levels of noise. The ODE keeps the order of its starts; the memoryless chain forgets them.",
)
table(rows)

# %% [markdown]
# ## Why forgetting matters
#
# Fine-tuning changes the steps and keeps the law of $x_1$. The soft-optimal steps from a fixed prior end at
#
# $$
# p^*_{fixed}(x_0) = E_{x_1}\Big[ p_{pre}(x_0 | x_1)\, e^{(r(x_0) - v_1(x_1))/\alpha} \Big] \qquad (2)
# $$
#
# which is the tilted law only if $v_1$ is the same for every noise ([`Problem`][difftilt.problems.problem.Problem]): if the start tells nothing of the
# design. An ODE is the worst case: there the start tells everything. In between lies DDIM, whose `eta` goes from 0 (an ODE) to 1 (DDPM). Gaussian data
# and a quadratic reward have both laws in closed form, so here is the distance from what tuning *can* reach, at best, to the tilted law:

# %%
from torch.distributions import MultivariateNormal, kl_divergence

from difftilt.core.noise import VP
from difftilt.problems.library import entry, linear_gaussian
from difftilt.processes import Gaussian

etas = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0][: size(8, 2)]
lengths = (16, 64)[: size(2, 1)]


def out_of_reach(process, steps):
    """KL of (2) to the tilted law, nats."""
    problem = linear_gaussian(process, steps, alpha=0.5)
    return kl_divergence(
        MultivariateNormal(*problem.target), MultivariateNormal(*problem.tilted)
    ).item()


distance = {
    steps: [
        out_of_reach(Gaussian(VP(), kernel="ddim", eta=eta, sigma_min=0.05), steps)
        for eta in etas
    ]
    for steps in lengths
}
flows = {
    level: out_of_reach(Flow(level, sigma_min=0.05), 16)
    for level in (0.2, 0.7, 2**0.5)
}

# %% tags=["hide"]
figure, panel = axes(width=5.2, height=2.7)
for (steps, values), colour in zip(distance.items(), (RED, BLUE), strict=False):
    panel.plot(etas, values, "o-", color=colour, ms=4, label=f"DDIM, {steps} steps")
panel.set(
    xlabel="eta (0: an ODE, 1: full noise)",
    ylabel="KL of (2) to the tilted law (nats)",
    yscale="log",
)
panel.legend()
show(
    figure,
    "What tuning can reach at best, against the tilted law: with little noise the start keeps part of the tilt.",
)
say(
    "And the flow of (1)? With exact steps it forgets at any level above 0, because its noise is infinite at `t = 1`, where it starts: the same distance is "
    + ", ".join(
        f"{nats:.0e} nats at a = {level:.2g}"
        if nats > 1e-12
        else f"zero to rounding at a = {level:.2g}"
        for level, nats in flows.items()
    )
    + ". Codes that clamp the noise there, and step by Euler, lose that."
)

# %% [markdown]
# `difftilt` warns where a process may not be memoryless; for flows it asks for $a \ge \sqrt 2$, the level for which adjoint matching is derived. (SMC and
# refine tilt the prior too, so they need no such care.)
#
# ## Adjoint matching
#
# For Gaussian steps the best shift of a mean is known in terms of how the reward changes along the path. Carry that *adjoint* back through the
# **pretrained** chain and regress on it; the tuned chain itself is never differentiated:
#
# $$
# a_K = \nabla r(x_0), \qquad m_k = \mu_{pre}(x_t) + \sigma_k^2\, a_{k+1} / \alpha, \qquad a_k = J_\mu^\top a_{k+1} \qquad (3)
# $$
#
# $$
# L(\theta) = \frac1B \sum_b \sum_k \frac{|\mu_\theta(x_t) - m_k|^2}{2 \sigma_k^2} \qquad (4)
# $$
#
# ([`AdjointMatching`][difftilt.algorithms.adjoint_matching.AdjointMatching].) On Gaussian data in the plane, 16 memoryless steps, three methods with equally
# many designs:

# %%
plane = entry("linear-gaussian-flow").make()
options = {"alpha": plane.alpha, "learning_rate": 0.05}
runs = {
    "adjoint matching": tune(plane, dt.AdjointMatching(**options, batch=32), 240),
    "reward backpropagation": tune(
        plane, dt.RewardBackprop(**options, batch=32), 240
    ),
    "ppo": tune(
        plane, dt.PPO(**options, batch=128), 60
    ),  # several steps from each rollout
}

# %% tags=["hide"]
figure, panels = axes(2, width=7.8, height=3.2)


def ellipse(mean, covariance, spread):
    """Points where the density of a Gaussian is that of ``spread`` standard deviations."""
    angle = torch.linspace(0, 2 * torch.pi, 100, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()])
    return (
        mean[:, None] + spread * torch.linalg.cholesky(covariance) @ circle
    ).tolist()


laws = [
    ("pretrained", plane.law(plane.pretrained), GREY, "-"),
    ("tilted law", plane.tilted, ORANGE, "-"),
]
laws += [
    ("adjoint matching", plane.law(runs["adjoint matching"].policy), BLUE, "--")
]
for name, law, colour, style in laws:
    for spread in (1, 2):
        panels[0].plot(
            *ellipse(*law, spread),
            color=colour,
            ls=style,
            lw=1.5,
            label=name if spread == 1 else None,
        )
panels[0].set(xlabel="first coordinate", ylabel="second coordinate", aspect="equal")
panels[0].legend(fontsize=8, loc="lower right")
for (name, run), colour in zip(runs.items(), (BLUE, ORANGE, GREEN), strict=True):
    panels[1].plot(run.calls, run.kl, color=colour, label=name)
panels[1].axhline(
    plane.class_kl,
    color=GREY,
    ls="--",
    lw=1,
    label="the best objective in the class",
)
panels[1].set(
    yscale="log",
    xlabel="designs scored",
    ylabel="KL to the tilted law (nats, exact)",
)
panels[1].legend(fontsize=8)
show(
    figure,
    "Left: one and two standard deviations of each law. Right: the way there. Gaussian steps of fixed width cannot hold the tilted law itself: dashed is the law of the best objective.",
)

# %% [markdown]
# ## Noise in a window
#
# Since all levels share their marginals, noise can be kept to part of the chain, and only that part tuned; the rest runs as the cheap ODE of the
# pretrained network (MixGRPO). [`dt.windowed`][difftilt.networks.windowed.windowed] makes such a policy. What an update costs:

# %%
flow = dt.load(
    Velocity(),
    process=Flow(sigma_min=0.05),
    codec=VectorCodec(),
    event_shape=(1,),
    steps=40,
)
window = dt.windowed(
    dt.load(
        Velocity(), process=Flow(), codec=VectorCodec(), event_shape=(1,), steps=40
    ),
    0.8,
    0.4,
    level=0.7,
)
table(
    [
        {
            "chain": name,
            "steps": policy.steps,
            "steps with noise, tuned and charged": int((~policy.silent).sum()),
        }
        for name, policy in (("memoryless throughout", flow), ("a window", window))
    ]
)

# %% [markdown]
# ## What to take away
#
# - One network, many chains with the same marginals. Only those that forget their noise can be tuned to the tilted law.
# - A step without noise has no density: no ratio, no KL. Give it noise, or leave it to the frozen network.
# - Where the reward has a gradient, adjoint matching regresses on exact targets, and needs no graph of the tuned chain.
#
# !!! example "Exercise"
#     Add 256 to `lengths`. Which way do the points at small `eta` move, and what part has `sigma_min` in that? Then set `sigma_min=0` in
#     `Flow` and tune: what does the error ask for?
