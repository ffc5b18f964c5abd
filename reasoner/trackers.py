"""Which trackers a run has: TensorBoard always, Weights & Biases and others by environment variable.

A tracker is a copy of metrics.jsonl for people to look at elsewhere (`metrics.Tracker`: two methods).
Which ones to use is about the machine and the account, not about the run, so it is no configuration key:

- `WANDB_PROJECT=name` turns on Weights & Biases, with its own variables (`WANDB_MODE=offline`, …);
- `REASONER_TRACKERS=module:attribute,…` names others: each is called with (run directory, configuration as
  nested dicts, step resumed from or None) and returns a tracker.

One that cannot start is bad usage, said at once. One that fails later is dropped with a warning.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from reasoner.durable import write_atomically
from reasoner.errors import UsageError
from reasoner.metrics import TensorBoardTracker, Tracker
from reasoner.plugins import load_function

VARIABLE = "REASONER_TRACKERS"


class WandbTracker:
    """Weights & Biases. A resumed run goes on under the id that stands in `RUN/wandb/id`; the step is a
    metric of its own, since wandb refuses to go back to the step a run is resumed from."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], resume_step: int | None = None) -> None:
        import wandb

        known = run_dir / "wandb" / "id"
        known.parent.mkdir(exist_ok=True)
        if not known.exists():
            write_atomically(known, secrets.token_hex(4).encode())
        try:
            self._run = wandb.init(
                id=known.read_text(),
                resume="allow",
                name=run_dir.resolve().name,
                dir=str(run_dir),
                config=dict(config),
                settings=wandb.Settings(console="off", silent=True),
            )
        except Exception as error:  # wandb's own errors: no key, no network, no such entity
            raise UsageError(
                f"Weights & Biases cannot start: {error}; log in with `wandb login`, set "
                "WANDB_MODE=offline, or leave WANDB_PROJECT out"
            ) from error
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log({"step": step, **scalars})

    def close(self) -> None:
        self._run.finish()


def check_trackers() -> None:
    """Raises UsageError for a tracker that is asked for and cannot be there, before anything is started."""
    if os.environ.get("WANDB_PROJECT") and find_spec("wandb") is None:
        raise UsageError("WANDB_PROJECT is set, but wandb is not installed: pip install 'reasoner[wandb]'")
    _others()


def trackers_of(run_dir: Path, config: Mapping[str, Any], resume_step: int | None) -> list[Tracker]:
    """The trackers of a run; UsageError when one cannot start."""
    found: list[Tracker] = [TensorBoardTracker(run_dir / "tensorboard", resume_step)]
    if os.environ.get("WANDB_PROJECT"):
        found.append(WandbTracker(run_dir, config, resume_step))
    for name, make in _others():
        try:
            tracker = make(run_dir, config, resume_step)
        except Exception as error:  # somebody else's code
            raise UsageError(f"tracker {name} cannot start: {type(error).__name__}: {error}") from error
        if missing := [m for m in ("log", "close") if not callable(getattr(tracker, m, None))]:
            raise UsageError(
                f"tracker {name}: {type(tracker).__name__} has no method {' and no '.join(missing)}"
            )
        found.append(tracker)
    return found


def _others() -> list[tuple[str, Callable[..., Any]]]:
    names = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    return [(name, load_function("tracker", name)) for name in names]
