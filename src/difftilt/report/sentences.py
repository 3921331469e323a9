"""What a run comes to, in plain sentences: the headline, and whatever a reader must be warned of."""

from __future__ import annotations

import math
from typing import NamedTuple

from .facts import RunFacts
from .rounding import Estimate, decimals, finite, fixed, given, share, significant

Z95 = 1.96


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
        f"Tuning with {facts.method} took the reward of the model's designs from {with_interval(before, places)} to "
        f"{with_interval(after, places)}"
    ]
    judges = facts.estimate("before", "judge"), facts.estimate("after", "judge")
    if judges[0] is not None and judges[1] is not None:
        parts.append(
            f"; the held-out judge, which tuning never saw, moved from {with_interval(judges[0], places)} to "
            f"{with_interval(judges[1], places)}"
        )
    else:
        parts.append("; no held-out judge was asked")
    kl, gap = facts.number("kl_nats", "mean"), facts.number("gap", "gap_nats")
    parts.append(f". It spent {plus_minus(kl, facts.number('kl_nats', 'error'))} nats of KL")
    if gap is not None:
        at = f" at alpha\u00a0=\u00a0{given(facts.alpha)}" if facts.alpha is not None else ""
        parts.append(f". The gap to the optimum{at} reads {plus_minus(gap, facts.number('gap', 'error'))} nats")
        parts.append(f", {facts.get('gap', 'verdict')}" if facts.get("gap", "verdict") else "")
    return "".join(parts) + "."


def _unevaluated(facts: RunFacts) -> str:
    rewards = [(r["step"], v) for r in facts.metrics if (v := finite(r.get("reward"))) is not None]
    if not rewards:
        return f"Tuning with {facts.method} was set up, but no step is on record yet."
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
    found = [*_state(facts), *_judgement(facts), *_yardstick(facts), *_designs(facts)]
    found += [Notice("note", "Incomplete folder.", problem) for problem in facts.problems]
    return sorted(found, key=lambda notice: notice.kind != "warn")


def _state(facts: RunFacts) -> list[Notice]:
    if facts.estimate("after", "reward") is None:
        how = f"it stands at step {_of_steps(facts)}" if facts.metrics else "no step is on record"
        text = (
            f"There is no evaluation yet: {how}. Numbers below are those of training batches, without intervals. "
            "Continue with --resume, or run `difftilt evaluate` on the folder."
        )
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
            "Only the reward that tuning itself raised is known, so over-optimisation cannot be told from progress. "
            "Score the designs with something that tuning never saw."
        )
        return [Notice("warn", "No held-out judge.", text)]
    places = score_places(facts)
    changes = f"The reward changed by {fixed(reward.mean, places)}, the held-out judge by {fixed(judge.mean, places)}"
    if reward.mean > (reward.half_width or 0) and judge.mean <= (judge.half_width or 0):
        advice = "Tuning has exploited the reward; do not trust these designs."
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
        text = (
            f"The judge gives best-of-{n:.0f} {fixed(calls, places)} and these designs {fixed(after.mean, places)}. "
            "Tuning still has its use: later designs cost no further oracle calls."
        )
        found.append(Notice("warn", "Best-of-N does better at equal oracle calls.", text))
    return found


def _designs(facts: RunFacts) -> list[Notice]:
    found = []
    unique = facts.number("after", "unique_fraction")
    if unique is not None and unique < 0.95:
        text = f"Only {share(unique)} of the tuned designs are distinct. Raise alpha, or stop earlier."
        found.append(Notice("warn", "The policy repeats itself.", text))
    feasible = facts.number("after", "feasible_fraction")
    if feasible is not None and feasible < 0.95:
        text = f"{share(1 - feasible)} of the tuned designs have no reward; means are over those that have one."
        found.append(Notice("note", "Infeasible designs.", text))
    return found
