"""One log file a process, in `logs/`: `driver.log`, `learner.log`, `worker_N.log`, `server_NAME.log`.

A line is `time level process logger: message`, a traceback follows its line. What the user must know is said
by the display and by errors. The files of servers, learner and workers also hold whatever these processes
print (`rollouts.process`): a library, a verifier of the user's, a native crash.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = ("reasoner", "rollouts", "verifiers", "envs")
FORMAT = "%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"


def log_to(path: Path) -> logging.Handler:
    """From now on our loggers write to `path`, and nowhere else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter(FORMAT))
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return handler


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """`log_to` for the block."""
    handler = log_to(path)
    try:
        yield
    finally:
        for name in PACKAGES:
            logger = logging.getLogger(name)
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)
            logger.propagate = True
        handler.close()
