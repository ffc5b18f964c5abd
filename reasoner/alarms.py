"""Signs that a run is collapsing, said to the user while it can still be stopped."""

from __future__ import annotations

from collections.abc import Sequence

WINDOW = 10  # steps that are averaged
FALL = 0.2  # of the pass rate, from its best average to the latest


def collapse_alarm(pass_rates: Sequence[float]) -> str | None:
    """A message when the mean pass rate of the last `WINDOW` steps lies `FALL` or more below the best such
    mean before; None otherwise, and while there are fewer than two windows."""
    if len(pass_rates) < 2 * WINDOW:
        return None
    means = [sum(pass_rates[i : i + WINDOW]) / WINDOW for i in range(len(pass_rates) - WINDOW + 1)]
    best, now = max(means), means[-1]
    if best - now < FALL:
        return None
    return (
        f"the pass rate fell from {best:.2f} to {now:.2f} (means of {WINDOW} steps): the policy may be "
        "collapsing. Stop with Ctrl-C and try a lower learner.lr or learner.grad_clip, or more groups a "
        "step; checkpoints/best holds the best weights that were evaluated and saved"
    )
