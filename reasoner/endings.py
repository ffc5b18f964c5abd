"""How a run ends: what the log says of it, and what its user hears of what is safe and how to go on.

What is saved when is the loop's business (`reasoner.training`), what is printed the command line's.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import ray

from reasoner import cluster
from reasoner.checkpoint import CheckpointStore
from reasoner.errors import BrokenPolicyError, ReasonerError, UsageError
from reasoner.metrics import read_metrics
from reasoner.redo import last_finished_step
from reasoner.run import Run, never_began

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """The user asked to stop; everything is saved. Its text is the run directory, or "" when nothing had
    begun and nothing is left."""


@contextmanager
def logged() -> Iterator[None]:
    """How the block ended is in the log, too."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        log.warning("stopped")
        raise
    except Exception as error:
        log.exception("the run failed: %s", error)
        raise
    log.info("done")


@contextmanager
def explained(run: Run) -> Iterator[None]:
    """What ends the block leaves it with advice; a directory in which nothing had begun is removed."""
    try:
        yield
    except (ray.exceptions.RayError, ReasonerError) as e:
        raise _with_advice(cluster.unwrap(e), run) from None
    except (Interrupted, KeyboardInterrupt) as stopped:
        if run.resumed or not never_began(run.path):
            raise
        shutil.rmtree(run.path, ignore_errors=True)
        raise (Interrupted("") if isinstance(stopped, Interrupted) else stopped) from None
    except Exception as e:  # a bug, ours or of a function of the user: the traceback is the message
        if advice := _advice(e, run):
            e.add_note(advice)
        raise


def _with_advice(error: BaseException, run: Run) -> BaseException:
    """The error with what is left of the run: how to go on, or nothing where nothing had begun."""
    if advice := _advice(error, run):
        return ReasonerError(f"{error}\n{advice}")
    if isinstance(error, UsageError) and not run.resumed and not read_metrics(run.path):
        shutil.rmtree(run.path)
    return error


def _advice(error: BaseException, run: Run) -> str:
    """What is safe, and how to go on; nothing before the first checkpoint."""
    latest = CheckpointStore(run.path).latest()
    if latest is None:
        return ""
    saved = done = int(latest.name.removeprefix("step_"))
    with suppress(OSError, ReasonerError):  # a full disk: what had ended the run is to be said
        done = last_finished_step(run.path, saved)
    safe = f"Step {saved} is saved"
    if isinstance(error, BrokenPolicyError):
        safe = f"The checkpoint of step {saved} stands"
    elif done > saved:
        safe = f"Everything up to step {done} is in the checkpoint of step {saved} and the journal"
    return f"{safe}. Continue with: reasoner train --resume {run.path}"
