"""What a run comes to, in plain sentences: the headline, and whatever a reader must be warned of."""

from __future__ import annotations

import math
from typing import NamedTuple

from difftilt.metrics.gap import AGREEMENT
from difftilt.metrics.weighted import FEWEST

from .facts import RunFacts
from .rounding import Estimate, decimals, finite, fixed, given, share, significant

Z95 = 1.96
FEW_EFFECTIVE = 0.1
"""Share of equal designs below which weights are too uneven to trust."""
FEW_DISTINCT = 0.95
"""Share of distinct designs below which a policy repeats itself."""


class Notice(NamedTuple):
    """A boxed remark; ``kind`` is ``warn`` or ``note``."""

    kind: str
    title: str
    text: str


def score_places(facts: RunFacts) -> int:
    """Decimals at which reward and judge are shown throughout."""
    known = [facts.estimate(when, name) for when in ("before", "after") for name in ("reward", "judge")]
    return decimals(value.half_width for value in known if value is not None)


def plus_minus(value: float | None, error: float | None) -> str:
    """A number with its standard error, e.g. ``0.84 ± 0.12``."""
    if value is None:
        return "–"
    if not error:
        return significant(value)
    places = decimals([error])
    return f"{fixed(value, places)}\u00a0±\u00a0{fixed(error, places)}"


def with_interval(value: Estimate | None, places: int) -> str:
    """A mean with its interval in brackets."""
    if value is None:
        return "an unknown value"
    if value.low is None or value.high is None:
        return fixed(value.mean, places)
    return f"{fixed(value.mean, places)} ({fixed(value.low, places)} to {fixed(value.high, places)})"


def spent(facts: RunFacts) -> str:
    """The KL to the pretrained model in nats, with its error or as the bound that it is."""
    kl, error, sense = facts.number("kl_nats", "mean"), facts.number("kl_nats", "error"), facts.get("kl_nats", "sense")
    bound = f"{sense} " if kl is not None and sense in ("at least", "at most") else ""
    return bound + plus_minus(kl, error)


def gain(before: Estimate | None, after: Estimate | None) -> Estimate | None:
    """After minus before, with the interval of two independent means."""
    if before is None or after is None:
        return None
    change = after.mean - before.mean
    if before.half_width is None or after.half_width is None:
        return Estimate(change)
    half = math.hypot(before.half_width, after.half_width)
    return Estimate(change, change - half, change + half)


def title(facts: RunFacts) -> str:
    """What was tuned towards what."""
    goal = f"higher {facts.score_name.split(' (')[0]}" if facts.same_scale else facts.reward_axis
    return f"{facts.task}, tilted toward {goal} by {facts.method}"


def headline(facts: RunFacts) -> str:
    """The result in one or two sentences."""
    before, after = facts.estimate("before", "reward"), facts.estimate("after", "reward")
    if before is None or after is None:
        return _unevaluated(facts)
    places = score_places(facts)
    parts = [
        f"{facts.doing.capitalize()} with {facts.method} took the reward of the model's designs from "
        f"{with_interval(before, places)} to {with_interval(after, places)}"
    ]
    judges = facts.estimate("before", "judge"), facts.estimate("after", "judge")
    if judges[0] is not None and judges[1] is not None:
        parts.append(
            f"; the held-out judge, which {facts.doing} never saw, moved from {with_interval(judges[0], places)} to "
            f"{with_interval(judges[1], places)}"
        )
    else:
        parts.append("; no held-out judge was asked")
    gap, known = facts.number("gap", "gap_nats"), facts.number("kl_nats", "mean") is not None
    parts.append(f". It spent {spent(facts)} nats of KL" if known else ". How much KL it spent is not known")
    if gap is not None:
        at = f" at alpha\u00a0=\u00a0{given(facts.alpha)}" if facts.alpha is not None else ""
        parts.append(f". The gap to the optimum{at} reads {plus_minus(gap, facts.number('gap', 'error'))} nats")
        parts.append(f", {facts.get('gap', 'verdict')}" if facts.get("gap", "verdict") else "")
    return "".join(parts) + "."


def _unevaluated(facts: RunFacts) -> str:
    rewards = [(r["step"], v) for r in facts.metrics if (v := finite(r.get("reward"))) is not None]
    if not rewards:
        missing = "no step is on record yet" if facts.sampler is None else "it has not finished"
        return f"{facts.doing.capitalize()} with {facts.method} was set up, but {missing}."
    kl = finite(facts.last.get("kl_nats"))
    (first, start), (last, end) = rewards[0], rewards[-1]
    return (
        f"Tuning with {facts.method} is on record up to step {_of_steps(facts)}. The mean reward of its training "
        f"batches went from {significant(start)} at step {first:.0f} to {significant(end)} at step {last:.0f}"
        + ("." if kl is None else f", at a KL of {significant(kl)} nats.")
    )


def _of_steps(facts: RunFacts) -> str:
    planned = finite(facts.table("settings").get("steps"))
    return f"{facts.last['step']:.0f}" + (f" of {planned:.0f}" if planned is not None else "")


def notices(facts: RunFacts) -> list[Notice]:
    """Warnings first, then notes."""
    found = [*_state(facts), *_judgement(facts), *_yardstick(facts), *_weights(facts), *_designs(facts)]
    found += [Notice("note", "Incomplete folder.", problem) for problem in facts.problems]
    return sorted(found, key=lambda notice: notice.kind != "warn")


def _state(facts: RunFacts) -> list[Notice]:
    if facts.estimate("after", "reward") is None:
        how = f"it stands at step {_of_steps(facts)}" if facts.metrics else "no step is on record"
        text = (
            f"There is no evaluation yet: {how}. Numbers below are those of training batches, without intervals. "
            "Continue with --resume, or run `difftilt evaluate` on the folder."
        )
        if facts.sampler is not None:
            text = "There is no evaluation yet. Continue with --resume: what was bought is not bought again."
        return [Notice("warn", "Unfinished run.", text)]
    planned = finite(facts.table("settings").get("steps"))
    if planned is not None and facts.metrics and facts.last["step"] < planned:
        return [Notice("warn", "Stopped early.", f"The evaluated policy is that of step {_of_steps(facts)}.")]
    return []


def _judgement(facts: RunFacts) -> list[Notice]:
    reward = gain(facts.estimate("before", "reward"), facts.estimate("after", "reward"))
    judge = gain(facts.estimate("before", "judge"), facts.estimate("after", "judge"))
    if reward is None:
        return []
    if judge is None:
        text = (
            f"Only the reward that {facts.doing} itself raised is known, so over-optimisation cannot be told from "
            f"progress. Score the designs with something that {facts.doing} never saw."
        )
        return [Notice("warn", "No held-out judge.", text)]
    places = score_places(facts)
    changes = f"The reward changed by {fixed(reward.mean, places)}, the held-out judge by {fixed(judge.mean, places)}"
    if reward.mean > (reward.half_width or 0) and judge.mean <= (judge.half_width or 0):
        advice = f"{facts.doing.capitalize()} has exploited the reward; do not trust these designs."
        if not facts.same_scale:
            advice = "Unless the two measure different things, do not trust these designs."
        text = f"{changes}: the judge sees no gain. {advice}"
        return [Notice("warn", "Over-optimisation: the judge did not follow.", text)]
    excess = gain(judge, reward)
    if facts.same_scale and reward.mean > 0 and excess is not None and excess.mean > (excess.half_width or 0):
        text = (
            f"{changes}, or {100 * judge.mean / reward.mean:.0f} % of it. The rest is most likely the reward model's "
            "own error being exploited (over-optimisation). Believe the judge."
        )
        return [Notice("warn", "The reward rose more than the judge.", text)]
    return []


def _yardstick(facts: RunFacts) -> list[Notice]:
    found = []
    after = facts.estimate("after", "judge")
    calls = facts.number("best_of_n", "equal_calls", "judge")
    if after is not None and calls is not None and calls > (after.high or after.mean):
        places = score_places(facts)
        n = facts.number("best_of_n", "equal_calls", "n") or 1
        text = f"The judge gives best-of-{n:.0f} {fixed(calls, places)} and these designs {fixed(after.mean, places)}. "
        if facts.sampler is None:
            text += "Tuning still has its use: later designs cost no further oracle calls."
        found.append(Notice("warn", "Best-of-N does better at equal oracle calls.", text))
    return found


def kl_note(facts: RunFacts) -> str:
    """How the KL of a steered law is known."""
    what = "KL between the designs' law and the pretrained one"
    notes = {
        "at most": f"{what}: the bound of best of N, which holds whatever the reward.",
        "at least": f"{what}: mean reward / alpha minus the independent log Z, short by the KL to the tilted law.",
        "estimate": f"{what}: weighted mean reward / alpha minus the sampler's own log Z, as for the tilted law.",
    }
    unknown = f"{what}: not known without a trusted log Z; --log-z-samples gives a lower bound."
    return notes.get(str(facts.get("kl_nats", "sense")), unknown)


def weights_note(facts: RunFacts) -> str:
    """How weighted designs are to be read."""
    worth, designs = facts.number("effective_designs"), facts.number("designs")
    if worth is None or designs is None or facts.get("log_z") is None:
        return "Designs count alike; infeasible ones, which have no reward, not at all."
    errors = "with errors between independent populations"
    if facts.number("after", "reward", "low") is None:
        errors = (
            f"without errors, which take {FEWEST} independent populations: draw more designs, or smaller populations"
        )
    return (
        f"Means are weighted (log_weight in samples.csv), {errors}. What has no weights, such as the logo and distinct "
        "designs, is taken of as many designs drawn again by weight."
    )


def _weights(facts: RunFacts) -> list[Notice]:
    """Of a sampler: whether its weights and its log Z can be believed."""
    found = []
    worth, designs = facts.number("effective_designs"), facts.number("designs")
    if worth is not None and designs and worth < FEW_EFFECTIVE * designs:
        text = (
            f"By their weights the {designs:,.0f} designs are worth {worth:,.0f} equal ones. Raise alpha or draw more."
        )
        found.append(Notice("warn", "A few designs carry the weight.", text))
    names = ("sampler", "independent", "sampler_error", "independent_error")
    log_z = [value for name in names if (value := facts.number("log_z", name)) is not None]
    if len(log_z) == len(names) and abs(log_z[0] - log_z[1]) > AGREEMENT * math.hypot(*log_z[2:]):
        text = (
            f"The sampler's log Z is {fixed(abs(log_z[0] - log_z[1]))} nats from the independent one, more than "
            f"{AGREEMENT:.0f} standard errors. One of them missed part of the law: draw more designs, or raise "
            "--log-z-samples."
        )
        found.append(Notice("warn", "The two estimates of log Z disagree.", text))
    return found


def _designs(facts: RunFacts) -> list[Notice]:
    found = []
    drawn = facts.number("after", "distinct_drawn")  # repeats made by weights are no collapse
    unique = facts.number("after", "unique_fraction") if drawn is None else drawn
    advice = "stop earlier" if facts.sampler is None else "draw more and keep fewer"
    who = "policy" if facts.sampler is None else "sampler"
    if unique is not None and unique < FEW_DISTINCT:
        text = f"Only {share(unique)} of the {facts.done} designs are distinct. Raise alpha, or {advice}."
        found.append(Notice("warn", f"The {who} repeats itself.", text))
    apart = _apart(facts, "after")
    if apart is not None and apart < FEW_DISTINCT:
        before = _apart(facts, "before")
        was = "" if before is None else f", against {share(before)} of the pretrained ones"
        text = (
            f"Of the distinct {facts.done} designs {share(apart)} are left when each that nearly equals one kept "
            f"before it is dropped{was}. Raise alpha, or {advice}."
        )
        found.append(Notice("warn", f"The {who} nearly repeats itself.", text))
    feasible = facts.number("after", "feasible_fraction")
    if feasible is not None and feasible < 0.95:
        text = f"{share(1 - feasible)} of the {facts.done} designs have no reward; means are over those that have one."
        found.append(Notice("note", "Infeasible designs.", text))
    return found


def _apart(facts: RunFacts, when: str) -> float | None:
    """Share of the *distinct* designs, so that repeats made by weights do not count, without near-duplicates."""
    left, unique = (facts.number(when, name) for name in ("without_near_duplicates", "unique_fraction"))
    return None if left is None or not unique else left / unique
