# %% [markdown]
# # 3. Reward backpropagation
#
# **The question.** Now the reward is a network that we hold, and can be differentiated. Each rollout then brings a whole gradient instead of
# one number. What is that worth, what memory does it cost, and why must one not trust it on tokens?

# %% tags=["hide"]
import torch
from drawing import BLUE, GREEN, GREY, ORANGE, RED, axes, show, size, table
from practice import tune

# %% [markdown]
# ## The pathwise gradient
#
# A Gaussian step is $x_s = \mu_\theta(x_t) + \sigma \epsilon$: hold the noise fixed and the design is a differentiable function of the
# parameters. So is the objective, KL in closed form included:
#
# $$
# \nabla_\theta J = E_\epsilon\Big[ \nabla_\theta \Big( r(x_0(\epsilon)) - \alpha \sum_k KL\big( p_\theta(\cdot|x_t) \,\|\, p_{pre}(\cdot|x_t) \big) \Big) \Big] \qquad (1)
# $$
#
# ([`reward_backprop_loss`][difftilt.algorithms.reward_backprop.reward_backprop_loss] on a
# [`differentiable_rollout`][difftilt.algorithms.pathwise.differentiable_rollout].) On Gaussian data in the plane with a quadratic reward the
# exact gradient is known. Beside it, estimates by (1), and by the score function of [2](02-ppo.md), from equally many designs:

# %%
from difftilt.algorithms.pathwise import differentiable_rollout
from difftilt.algorithms.reward_backprop import reward_backprop_loss
from difftilt.core.trajectory import rollout, step_log_prob
from difftilt.problems.library import entry
from difftilt.problems.linear_gaussian import Chain

plane = entry("linear-gaussian").make()
alpha = plane.alpha
policy = plane.tunable()
weights = torch.tensor([alpha], dtype=torch.float64)


def flat(loss):
    return torch.cat(
        [
            g.flatten()
            for g in torch.autograd.grad(
                loss, policy.trainable(), allow_unused=True
            )
            if g is not None
        ]
    )


exact = flat(
    -Chain.read(policy).objective(plane.reward, alpha, plane.chain) / alpha
)


def pathwise(paths, rng):
    x_0, kl, _ = differentiable_rollout(
        policy,
        paths,
        rng,
        [plane.pretrained],
        tau=1.0,
        cut=torch.zeros(paths, dtype=torch.long),
        read=None,
    )
    return flat(
        reward_backprop_loss(plane.reward.on_probabilities(x_0), kl, weights)
    )


def score_function(paths, rng):
    drawn = rollout(policy, paths, rng, references=[plane.pretrained])
    returns = plane.reward(drawn.x_0) / alpha - drawn.log_ratio[0].sum(0)
    steps = zip(
        drawn.states[:-1],
        drawn.states[1:],
        drawn.times[:-1],
        drawn.times[1:],
        strict=True,
    )
    log_prob = sum(
        step_log_prob(policy, x_t, x_s, t, s) for x_t, x_s, t, s in steps
    )
    return flat(-((returns - returns.mean()) * log_prob).mean())


# %% tags=["hide"]
rng = torch.Generator().manual_seed(0)
batches = [8, 32, 128, 512][: size(4, 1)]


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


figure, panel = axes(width=5.2, height=2.8)
for method, colour, label in (
    (pathwise, ORANGE, "pathwise (1)"),
    (score_function, BLUE, "score function"),
):
    points = [
        [cosine(method(n, rng), exact) for _ in range(size(8, 2))] for n in batches
    ]
    panel.plot(
        batches,
        [sum(values) / len(values) for values in points],
        color=colour,
        label=label,
    )
    for n, values in zip(batches, points, strict=True):
        panel.plot([n] * len(values), values, ".", color=colour, alpha=0.5)
panel.set(
    xscale="log",
    xlabel="designs per gradient",
    ylabel="cosine with the exact gradient",
)
panel.legend()
show(
    figure,
    "Both estimates are right on average. One design with a gradient is worth many with a number alone.",
)

# %% [markdown]
# ## Memory
#
# (1) is backpropagation through the whole chain, and naively the graph of every step is held until the end. `difftilt` checkpoints each step:
# only states are kept, and a step is run again when its gradient is due, *with the same noise*. Truncation (DRaFT-K) drops the graph before
# the last `K'` steps. What autograd holds, on the shipped 5'UTR model:

# %%
import difftilt as dt
from difftilt.algorithms.pathwise import differentiable_step

utr = dt.load("utr-mrl").requires_grad_(True)
batch = size(16, 2)


def held(run):
    """Bytes held for the backward pass, each storage once, without parameters."""
    own = {p.untyped_storage().data_ptr() for p in utr.parameters()}
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = run()
    return sum(n for n, _ in seen.values()), kept


def checkpointed(steps, last):
    chain = utr.with_steps(steps)
    cut = torch.full((batch,), steps - last)
    return lambda: differentiable_rollout(
        chain,
        batch,
        torch.Generator().manual_seed(0),
        [],
        tau=1.0,
        cut=cut,
        read=None,
    )


def plain(steps):
    chain = utr.with_steps(steps)

    def run():
        rng = torch.Generator().manual_seed(0)
        step = differentiable_step(chain, rng, [], tau=1.0, cond=None)
        x_t = chain.prior(batch, rng)
        for k in range(steps):
            x_t, _ = step(x_t, k)
        return x_t

    return run


# %% tags=["hide"]
lengths = [1, 2, 4, 8, 16][: size(5, 2)]
megabytes = {
    "the whole graph": [held(plain(n))[0] / 1e6 for n in lengths],
    "each step checkpointed": [held(checkpointed(n, n))[0] / 1e6 for n in lengths],
    "and the last step only (K' = 1)": [
        held(checkpointed(n, 1))[0] / 1e6 for n in lengths
    ],
}
figure, panel = axes(width=5.2, height=2.8)
for (name, values), colour in zip(
    megabytes.items(), (RED, BLUE, GREEN), strict=True
):
    panel.plot(lengths, values, "o-", color=colour, label=name, ms=4)
panel.set(
    xlabel="steps of the chain",
    ylabel=f"held for backward (MB, batch {batch})",
    xscale="log",
    yscale="log",
)
panel.set_xticks(lengths, [str(n) for n in lengths])
panel.set_yticks([5, 10, 20, 50], ["5", "10", "20", "50"])
panel.minorticks_off()
panel.legend(fontsize=8)
show(
    figure,
    "Memory of the backward pass: the naive graph grows with the chain, the checkpointed one stays that of one step and the states.",
)

# %% [markdown]
# ## Tokens: the bias
#
# A letter is not a differentiable function of anything. The usual remedy is *straight-through*: the hard letter goes forward, and the
# gradient of a softmax at temperature `tau` goes back. The reward that is reported is the right one, and the gradient is wrong, even without
# truncation. How wrong can be seen on a chain whose answer is known. Each dot is a run at one `tau`, held throughout:

# %%
from difftilt.problems.landscapes import random_pairwise

problem = random_pairwise(length=4, letters=4, alpha=0.5, target_kl=1.5, seed=2)
taus = (2.0, 1.0, 0.5, 0.25)[: size(4, 2)]
runs = {
    tau: tune(
        problem,
        dt.RewardBackprop(
            alpha=0.5, tau=tau, tau_end=tau, batch=64, learning_rate=0.05
        ),
        150,
        looks=5,
    )
    for tau in taus
}

# %% tags=["hide"]
figure, panels = axes(2, width=7.4, height=2.8)
panels[0].plot(taus, [runs[tau].kl[-1] for tau in taus], "o-", color=RED)
panels[0].axhline(problem.kl(problem.pretrained), color=GREY, lw=1, ls="--")
panels[0].text(
    taus[0],
    problem.kl(problem.pretrained),
    "pretrained",
    color=GREY,
    fontsize=8,
    va="bottom",
    ha="right",
)
panels[0].set(
    xscale="log",
    yscale="log",
    xlabel="tau",
    ylabel="KL to the tilted law (nats)",
)
noise = [
    sum(info.gradient_norm for info in runs[tau].infos[-20:])
    / len(runs[tau].infos[-20:])
    for tau in taus
]
panels[1].plot(taus, noise, "o-", color=BLUE)
panels[1].set(
    xscale="log", yscale="log", xlabel="tau", ylabel="gradient norm (nats)"
)
for panel in panels:
    panel.set_xticks(taus, [str(tau) for tau in taus])
    panel.minorticks_off()
show(
    figure,
    "Left: where straight-through gradients lead. Right: their size at the end, which is noise: the price of a small tau.",
)

# %% [markdown]
# A large `tau` ends at another law, a small one is noisy. Hence two habits: anneal `tau` (the default goes from 1 to 0.3), and *look at the
# gap*. Where the law must be right, let an unbiased method finish: [balance](05-balance.md) from where backpropagation stopped, with the
# pretrained model as the anchor still.

# %%
from difftilt.core.algorithm import Anchor

start = runs[taus[1]]
polished = start.policy.copy()
state = dt.TrajectoryBalance(alpha=0.5, batch=256, learning_rate=0.03).init(
    polished, [Anchor(problem.pretrained, 0.5)]
)
balance = dt.TrajectoryBalance(alpha=0.5, batch=256, learning_rate=0.03)
rng = torch.Generator().manual_seed(1)
updates = size(80, 2)
for update in range(updates):
    state.scale_learning_rate(1 - update / updates)
    balance.step(state, problem.reward, rng)

# %% tags=["hide"]
table(
    [
        {
            "": "pretrained",
            "KL to the tilted law (nats)": problem.kl(problem.pretrained),
            "mean reward": problem.mean_reward(problem.pretrained),
        },
        {
            "": f"after backpropagation, tau = {taus[1]}",
            "KL to the tilted law (nats)": start.kl[-1],
            "mean reward": start.reward[-1],
        },
        {
            "": "and then trajectory balance",
            "KL to the tilted law (nats)": problem.kl(polished),
            "mean reward": problem.mean_reward(polished),
        },
        {
            "": "the law",
            "KL to the tilted law (nats)": 0.0,
            "mean reward": problem.target_mean_reward,
        },
    ]
)

# %% [markdown]
# ## What to take away
#
# - On vectors and images the pathwise gradient is exact and far less noisy than the score function's.
# - Memory need not grow with the chain. A checkpointed step must repeat its own noise, or its gradient is silently wrong.
# - On tokens it is fast and biased: state `tau`, read the gap, polish with an unbiased method.
#
# !!! example "Exercise"
#     Give `pathwise` the cut `torch.full((paths,), 12)`: a gradient through the last four steps of sixteen. Is its cosine with the exact
#     gradient still near 1 for many designs? Which parameters get no gradient at all?
