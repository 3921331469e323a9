# %% [markdown]
# # 11. A laboratory in the loop
#
# **The question.** Measurements can be bought, a plate at a time. Which designs should be on the next plate: those the model likes, those it knows
# least about, or some of both, and how is the model kept on the ground between plates?

# %% tags=["hide"]
import torch
from drawing import BLUE, GREY, ORANGE, axes, say, show, size, table

# %% [markdown]
# ## The laboratory
#
# A stand-in whose truth is known: an *Ehrlich function* (Stanton et al. 2024), made for such tests. A design is worth something only if it has certain
# motifs, spread over it, and is *infeasible* if it has a banned pair of letters: most sequences fail. The pretrained model has seen some allowed designs,
# the worse half of them.

# %%
from difftilt.lab.landscapes import landscape

lab = landscape("ehrlich-8")

# %% tags=["hide"]
feasible = ~lab.table.isnan()
values, counts = lab.table[feasible].unique(return_counts=True)
mass = torch.stack(
    [lab.log_pre[feasible][lab.table[feasible] == v].exp().sum() for v in values]
)
say(
    f"{len(lab.table):,} designs, of which {feasible.double().mean():.0%} are feasible."
)
figure, panel = axes(width=5.0, height=2.5)
places = range(len(values))
panel.bar(
    [x - 0.2 for x in places],
    counts / feasible.sum(),
    0.4,
    color=GREY,
    label="of all feasible designs",
)
panel.bar(
    [x + 0.2 for x in places],
    mass / mass.sum(),
    0.4,
    color=BLUE,
    label="under the pretrained model",
)
panel.set_xticks(places, [f"{v:.2g}" for v in values])
panel.set(xlabel="value", ylabel="share", yscale="log")
panel.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
show(
    figure,
    "The best designs are rare, and the pretrained model hardly ever makes one.",
)

# %% [markdown]
# ## One round
#
# Fit a surrogate $\hat r$ with its uncertainty $g$ to all that was measured; tune the model toward the *optimistic* reward, held back by two KLs, one to
# the pretrained model and one to the model of the last round (SEIKO):
#
# $$
# p^{(i+1)} = \arg\max_p\; E_p[\hat r + g] - \alpha\, KL(p \| p_{pre}) - \beta\, KL(p \| p^{(i)}) \qquad (1)
# $$
#
# ([`tune`][difftilt.campaigns.update.tune]); then pick a plate from its designs, none twice. In code a round is two calls. Results may come as a file, in any
# order, with failures; here the stand-in answers.

# %%
import difftilt.campaigns.campaign as campaigns
from difftilt.campaigns.history import CampaignSettings
from difftilt.campaigns.settings import Tuning
from difftilt.campaigns.simulation.runner import policy_of
from difftilt.campaigns.strategies import strategy

rounds, batch = size(5, 2), size(32, 8)
tuning = Tuning(
    alpha=lab.alpha, beta=lab.alpha, updates=size(16, 2), paths=size(128, 16)
)


def measure(designs, rng):
    """What the laboratory sends back: noisy values, or failures with a reason."""
    truth = torch.as_tensor(
        lab.oracle([design.design for design in designs])
    ).double()
    noisy = truth + 0.02 * torch.randn(
        len(designs), generator=rng, dtype=torch.float64
    )
    return [
        {"id": design.id, "value": value}
        if value == value
        else {"id": design.id, "status": "failed: banned pair of letters"}
        for design, value in zip(designs, noisy.tolist(), strict=True)
    ]


def run(name):
    """A campaign, round by round."""
    settings = CampaignSettings(
        name=name,
        task=lab.name,
        strategy=name,
        batch=batch,
        budget=rounds * batch,
        tuning=tuning,
    )
    campaign = campaigns.Campaign.create(f"campaigns/{name}", settings)
    proposer = strategy(name)(lab.prior, campaign.folder)
    rng = torch.Generator().manual_seed(0)
    for _ in range(rounds):
        plate = campaign.propose(batch, proposer=proposer)
        campaign.record(measure(plate, rng))
    return campaign


names = ("seiko-ucb", "non-adaptive", "random")
done = {name: run(name) for name in names}

# %% [markdown]
# ## Round by round

# %%
facts = {}
for name, campaign in done.items():
    history = campaign.history()
    plates = [
        [d for d in history.designs if d.round == r] for r in range(1, rounds + 1)
    ]
    facts[name] = (
        [[d.value for d in plate if d.value is not None] for plate in plates],
        [sum(d.failure is not None for d in plate) for plate in plates],
        plates,
    )

# %% tags=["hide"]
figure, panels = axes(2, width=8.0, height=3.0)
rng = torch.Generator().manual_seed(0)
values, failures, plates = facts["seiko-ucb"]
for i, found in enumerate(values):
    jitter = 0.5 * (torch.rand(len(found), generator=rng) - 0.5)
    panels[0].plot(
        [i + 1 + x for x in jitter.tolist()], found, ".", color=BLUE, alpha=0.6
    )
panels[0].plot(
    range(1, rounds + 1),
    [sum(found) / max(1, len(found)) for found in values],
    "_",
    color=ORANGE,
    ms=22,
    mew=2.5,
    label="mean of the plate",
)
panels[0].set(
    xlabel="round", ylabel="measured value", title="seiko-ucb, each plate"
)
panels[0].set_xticks(range(1, rounds + 1))
panels[0].legend(fontsize=8)
for (name, (values, _, _)), colour in zip(
    facts.items(), (BLUE, ORANGE, GREY), strict=True
):
    best, so_far = 0.0, []
    for found in values:
        best = max([best, *found])
        so_far.append(best)
    panels[1].plot(
        range(1, rounds + 1),
        [sum(found) / max(1, len(found)) for found in values],
        "o-",
        color=colour,
        ms=4,
        label=name,
    )
    panels[1].plot(
        range(1, rounds + 1),
        so_far,
        ":",
        color=colour,
        lw=1.3,
        label="best so far" if name == "random" else None,
    )
panels[1].set(xlabel="round", ylabel="measured value", title="strategies")
panels[1].set_xticks(range(1, rounds + 1))
panels[1].legend(fontsize=7)
show(
    figure,
    "Left: every measured design. Right: mean of each plate and best design so far. Non-adaptive learns once, from the first plate; random never.",
)

# %% tags=["hide"]
table(
    [
        {
            "strategy": name,
            "measured": sum(len(plate) for plate in plates),
            "infeasible": sum(failures) / sum(len(plate) for plate in plates),
            "mean of the last plate": sum(values[-1]) / max(1, len(values[-1])),
            "best found": max(
                [v for found in values for v in found], default=float("nan")
            ),
        }
        for name, (values, failures, plates) in facts.items()
    ]
)

# %% [markdown]
# One campaign each is an anecdote. The benchmark runs many, with seeds and intervals: [strategies](../strategies.md).
#
# ## Did it know what it did not know?
#
# Before a plate is measured its designs have a predicted mean and std. Afterwards they can be checked:

# %% tags=["hide"]
predicted = [
    (d.mean, d.std, d.value, d.round)
    for plate in facts["seiko-ucb"][2]
    for d in plate
    if d.mean is not None and d.value is not None
]
figure, panel = axes(width=5.0, height=2.9)
if predicted:
    means, stds, found, which = zip(*predicted, strict=True)
    panel.errorbar(
        means, found, xerr=stds, fmt="none", ecolor=GREY, elinewidth=0.6, alpha=0.6
    )
    dots = panel.scatter(
        means,
        found,
        c=which,
        cmap="plasma",
        s=14,
        vmin=1,
        vmax=rounds + 1,
        zorder=3,
    )
    panel.axline((0, 0), slope=1, color=GREY, lw=1)
    figure.colorbar(dots, ax=panel, label="round", ticks=range(2, rounds + 1))
panel.set(xlabel="predicted (± epistemic std)", ylabel="measured")
show(
    figure,
    "Each design of rounds 2 and later: predicted against measured. The surrogate gets better where the plates are.",
)

# %% [markdown]
# ## The law, round by round
#
# A campaign ends with a *model*, not only with a best design. Here are fresh designs of each round's model, and their true values. And nothing is lost
# if the process dies: a campaign is a data base, and opening it again gives the same history.

# %%
again = campaigns.Campaign.open("campaigns/seiko-ucb")
history = again.history()
rows = []
for entry in history.rounds:
    policy = policy_of(lab, again.folder, entry)
    if policy is None:
        continue
    designs = policy.sample(size(600, 20), seed=7)
    truth = torch.as_tensor(lab.oracle(designs)).double()
    rows.append(
        {
            "round": entry.number,
            "proposed by": entry.model,
            "feasible": (~truth.isnan()).double().mean().item(),
            "mean reward, where feasible": truth[~truth.isnan()].mean().item(),
            "different designs": len(set(designs)) / len(designs),
        }
    )
table(rows)

# %% [markdown]
# ## What to take away
#
# - Optimism finds, pessimism keeps: a positive bonus while plates can still be bought, a negative one when they cannot ([10](10-overoptimisation.md)).
# - Two KLs: one keeps designs natural, the other keeps rounds from jumping to where the surrogate has seen nothing.
# - Failures are data. They are learned from apart, and never become a number.
#
# !!! example "Exercise"
#     Add `"greedy"` and `"genetic"` to `names`. Who is best after five plates? Then ask for plates of 8 instead of 32: does the order stay?
