r"""What a round of a campaign taught, in short sentences.

Nothing is said that the data cannot bear. With ``n`` pairs ranks are better than chance only beyond
:math:`2 / \sqrt{n - 1}`; intervals are too narrow, or too wide, only where a number ``k`` within them is improbable,

.. math:: P(K \le k) < 0.025 \text{ or } P(K \ge k) < 0.025, \qquad K \sim \operatorname{Binomial}(n, q)     \qquad (1)

and a round differs from the one before only where the 95 % interval of the difference of means leaves out 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from difftilt.campaigns.history import FAILED, MEASURED, PENDING, WITHDRAWN, Design
from difftilt.campaigns.keeping import PRETRAINED
from difftilt.campaigns.simulation.summary import Mean

from .campaign_rounds import FEWEST, Agreement, RoundView
from .campaign_words import Words, counted
from .rounding import Estimate, decimals, fixed, significant
from .sentences import gain

RARE = 0.025
"""Probability below which chance is no explanation."""
SMALL = 1e-4
"""Errors below which decimals would be all zeros."""


def learned(view: RoundView, rounds: Sequence[RoundView], words: Words) -> list[tuple[str, str]]:
    """Sentences on a round's plate, values, predictions and policy, as far as there are any.

    Args:
        view: the round.
        rounds: every round.
        words: writes values.
    """
    told = [
        ("Plate.", [_origin(view), _variety(view), _failures(view)]),
        ("Values.", [_result(view, words), _against_the_last(view, rounds)]),
        ("Predictions.", list(_predictions(view))),
        ("Policy.", [_movement(view)]),
    ]
    lines = [(label, " ".join(filter(None, sentences))) for label, sentences in told]
    return [(label, text) for label, text in lines if text]


def _origin(view: RoundView) -> str:
    maker = f"proposed by {view.entry.model}"
    if view.entry.model == PRETRAINED:
        maker = "drawn from the pretrained model"
    rows = view.fact("rows")
    known = f", after learning from {counted(round(rows), 'result')}" if rows else ""
    return f"{counted(len(view.designs), 'design')} {maker}{known}: {states(view.designs)}."


def _result(view: RoundView, words: Words) -> str:
    top, measured = view.top, view.measured
    if top is None:
        return "There is no value to learn from." if view.in_state(FAILED) else "No result is in yet."
    of = "its only measured design" if len(measured) == 1 else f"the best of its {len(measured):,} measured designs"
    said = f"{top.id} is {of}, with {words.value(top.value)}"
    if view.before is None:
        return said + "."
    if view.best is top:
        return f"{said}, above {view.before.id} of round {view.before.round}, {words.plain(view.before.value)}."
    return f"{said}; {view.before.id} of round {view.before.round} stays ahead, {words.plain(view.before.value)}."


def _against_the_last(view: RoundView, rounds: Sequence[RoundView]) -> str:
    """Of the last round before that has enough values."""
    earlier = [other for other in rounds if other.number < view.number and len(other.measured) >= FEWEST]
    if not earlier or len(view.measured) < FEWEST:
        return ""
    last = earlier[-1]
    change = gain(estimate(last.mean), estimate(view.mean))
    assert change is not None
    assert change.half_width is not None
    mean, half = pair(change.mean, change.half_width)
    if abs(change.mean) <= change.half_width:
        return f"Its mean cannot be told from that of round {last.number} (difference {mean} ± {half})."
    how = "above" if change.mean > 0 else "below"
    return f"Its mean lies {mean.lstrip('−')} ± {half} {how} that of round {last.number}."


def _failures(view: RoundView) -> str:
    reasons = view.failures.most_common()
    if not reasons:
        return ""
    told = "; ".join(f"{reason} ({count})" for reason, count in reasons[:3])
    rest = f"; {counted(len(reasons) - 3, 'other reason')}" if len(reasons) > 3 else ""
    return f"Failed: {told}{rest}."


def _predictions(view: RoundView) -> Iterable[str]:
    if all(design.mean is None for design in view.designs):
        yield "Nothing was predicted of this plate."
        return
    found = view.agreement
    if not view.measured:
        return
    if found.pairs < FEWEST:
        yield f"{counted(found.pairs, 'predicted value')} measured: too few to judge the predictions."
        return
    if found.spearman is None:
        yield "Predictions or values do not vary, so their ranks say nothing."
    else:
        yield f"Predicted and measured ranks correlate by {fixed(found.spearman)}: {ranks_verdict(found)}."
    if found.bias is not None and found.bias.half is not None:
        mean, half = pair(found.bias.mean, found.bias.half)
        if abs(found.bias.mean) > found.bias.half:
            how = "below" if found.bias.mean < 0 else "above"
            yield f"Values lie {mean.lstrip('−')} ± {half} {how} their predictions on average."
    if found.within_90 is not None:
        verdict = coverage_verdict(found.within_90, found.pairs, 0.9)
        yield f"{found.within_90} of {found.pairs} lie within their 90 % intervals{verdict and ': ' + verdict}."


def states(designs: Sequence[Design]) -> str:
    """How many designs are in which state."""
    found = [(sum(d.state == state for d in designs), state) for state in (MEASURED, FAILED, PENDING, WITHDRAWN)]
    return ", ".join(f"{number:,} {state}" for number, state in found if number)


def estimate(mean: Mean | None) -> Estimate | None:
    """A mean with its interval, as tables show it."""
    if mean is None or mean.half is None:
        return None if mean is None else Estimate(mean.mean)
    return Estimate(mean.mean, mean.mean - mean.half, mean.mean + mean.half)


def pair(value: float, error: float) -> tuple[str, str]:
    """A number and its error, with the decimals at which the error shows."""
    if 0 < error < SMALL:
        return significant(value), significant(error, 2)
    places = decimals([error])
    return fixed(value, places), fixed(error, places)


def ranks_verdict(found: Agreement) -> str:
    """What a rank correlation of so many pairs can mean."""
    assert found.spearman is not None
    if abs(found.spearman) <= 2 / math.sqrt(found.pairs - 1):
        return f"with {found.pairs} pairs no different from chance"
    return "better than chance" if found.spearman > 0 else "worse than chance, so the model misled"


def coverage_verdict(within: int, n: int, share: float) -> str:
    """Equation (1): whether intervals were too narrow or too wide; empty where chance explains it."""
    odds = math.log(share), math.log1p(-share)
    ways = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)]
    law = [math.exp(way + k * odds[0] + (n - k) * odds[1]) for k, way in enumerate(ways)]
    if sum(law[: within + 1]) < RARE:
        return "too narrow, the model was too sure"
    return "wider than need be" if sum(law[within:]) < RARE else ""


def _movement(view: RoundView) -> str:
    far, step = view.fact("kl_to_pretrained"), view.fact("kl_to_last")
    if far is None:
        return ""
    more = "" if step is None else f", {significant(step, 2)} from that of the round before"
    return f"Its policy lies {significant(far, 2)} nats from the pretrained one{more}."


def _variety(view: RoundView) -> str:
    if view.diversity is None:
        return ""
    length = len(view.designs[0].design)
    return f"Two of its designs differ in {significant(view.diversity * length, 2)} of {length} letters on average."
