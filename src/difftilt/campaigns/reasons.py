"""Why a design was picked, in a line for people."""

from __future__ import annotations

from collections.abc import Sequence

from difftilt.campaigns.acquisition import Picks, differences
from difftilt.campaigns.history import MEASURED, Design, History
from difftilt.campaigns.settings import Picking
from difftilt.core.codec import Codec
from difftilt.surrogates.measurements import readable
from difftilt.types import Tensor

AIM = {
    "ucb": "high, or not known well",
    "lcb": "surely high",
    "mean": "predicted best",
    "bootstrap": "best in one member",
    "thompson": "best in a draw of the posterior",
}
"""What each acquisition looks for."""


def reasons(
    designs: Sequence[str], picks: Picks, how: str, settings: Picking, history: History, codec: Codec
) -> list[str]:
    """A line for each pick: prediction, what it was picked for, and the nearest measured design."""
    measured = history.in_state(MEASURED)
    own = readable(codec, designs)
    theirs = readable(codec, [design.design for design in measured]) if measured else None
    texts = []
    for i, (mean, std, given) in enumerate(
        zip(picks.mean.tolist(), picks.std.tolist(), picks.given.tolist(), strict=True)
    ):
        parts = [f"predicted {mean:.3g} +- {std:.2g}"]
        if settings.rule == "as_drawn":
            parts.append("as drawn from the tuned policy")
        else:
            parts.append(AIM[how])
            parts += [f"+- {given:.2g} given the picks before"] if how == "ucb" and i else []
        parts += [] if theirs is None else [_nearest(own[i], theirs, measured)]
        texts.append("; ".join(parts))
    return texts


def _nearest(design: Tensor, theirs: Tensor, measured: Sequence[Design]) -> str:
    apart = differences(theirs, design)
    place = int(apart.argmin())
    one, number = measured[place], int(apart[place])
    what = "letter" if design.ndim == 2 else "number"
    return f"{number} {what}{'' if number == 1 else 's'} from {one.id} (measured {one.value:.3g})"
