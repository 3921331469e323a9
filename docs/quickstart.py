# %% [markdown]
# # Quick start
#
# One run from start to end, on a model that is in the package: 5'UTRs, the piece of an mRNA in front of the gene, toward higher ribosome
# load. In a shell it is one line, `difftilt finetune utr-mrl --algorithm ppo --alpha 0.1`; in Python:

# %% tags=["remove"]
import json

from drawing import BLUE, ORANGE, axes, show, size, table

# %%
from pathlib import Path

import difftilt as dt
from difftilt.build import load_judge, load_reward, task

utr = task("utr-mrl")
policy, reward, judge = (
    dt.load("utr-mrl"),
    load_reward(utr, "model"),
    load_judge(utr),
)
folder = dt.RunFolder(Path("runs/first"))

result = dt.finetune(
    policy,
    reward,
    dt.PPO(alpha=0.1, batch=size(96, 8), learning_rate=3e-3, steps_per_path=6),
    loop=dt.LoopConfig(steps=size(24, 2), judge_every=size(2, 1)),
    judge=judge,
    folder=folder,
)

# %% [markdown]
# `reward` and `judge` are two models of the same measurements, of different make, trained on disjoint halves. Tuning sees the first
# only. What was logged, one line an update, is in `runs/first/metrics.jsonl`:

# %% tags=["hide"]
lines = [
    json.loads(line)
    for line in Path("runs/first/metrics.jsonl").read_text().splitlines()
]
figure, panels = axes(2, width=7.4, height=2.7)
calls = [line["oracle_calls"] for line in lines]
panels[0].plot(
    calls, [line["reward"] for line in lines], label="reward", color=BLUE
)
judged = [line for line in lines if line.get("judge") is not None]
panels[0].plot(
    [line["oracle_calls"] for line in judged],
    [line["judge"] for line in judged],
    label="judge",
    color=ORANGE,
)
panels[0].set(xlabel="designs scored", ylabel="mean ribosome load")
panels[0].legend()
panels[1].plot(calls, [line["kl_nats"] for line in lines], color=BLUE)
panels[1].set(xlabel="designs scored", ylabel="KL to the pretrained (nats)")
show(
    figure,
    "The reward rises, and the judge, which tuning never sees, rises with it. Right: what it costs.",
)

# %% [markdown]
# ## What came out

# %%
designs = result.policy.sample(size(256, 8))
for design, score in sorted(
    zip(designs, reward(designs).tolist(), strict=True), key=lambda pair: -pair[1]
)[:5]:
    print(design, f"{score:.2f}")

# %% tags=["hide"]
numbers = []
for name, model in (("pretrained", policy), ("tuned", result.policy)):
    drawn = model.sample(size(256, 8), seed=1)
    numbers.append(
        {
            "model": name,
            "reward": reward(drawn).mean().item(),
            "judge": judge(drawn).mean().item(),
            "different designs": len(set(drawn)) / len(drawn),
            "with upstream ATG": sum("ATG" in design for design in drawn)
            / len(drawn),
        }
    )
table(numbers)

# %% [markdown]
# ## The run is a folder
#
# Plain files, which the report only reads: settings, numbers, every paid call of the reward, checkpoints.

# %%
for path in sorted(Path("runs/first").iterdir()):
    print(path.name)

# %% [markdown]
# On the command line the same run also gets `samples.csv`, `evaluation.json` with the certified gap and best-of-N at equal cost, the tuned
# `model/`, and `report.html`:
#
# ```sh
# difftilt finetune utr-mrl --algorithm ppo --alpha 0.1 --run runs/first
# difftilt sample runs/first -n 1000 -o designs.fasta
# difftilt steer utr-mrl --sampler smc --alpha 0.1        # the same law, without training
# difftilt compare runs/first runs/other -o compare.html
# ```
#
# Next: [which method](choose.md), [your own reward, data or model](bring-your-own.md), or the [tutorial](tutorial/index.md).
