"""What each process of a run has to say, in `logs/`: `NAME.log` for people, `NAME.jsonl` for machines.

A process (`driver`, `learner`, `worker_N`, `server_NAME`) writes every record into both. A line of the text
is `time level pid logger: message`, a traceback follows its line. A line of JSON has a field for each, the
time first and in UTC, so that the sorted lines of several files are one history. What the user must know is
said by the display and by errors.

The text files of servers, learner and workers also hold whatever these processes print (`rollouts.process`):
a library, a verifier of the user's, a native crash. That has no fields, and is in no JSON.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pythonjsonlogger.json import JsonFormatter

log = logging.getLogger(__name__)

PACKAGES = ("reasoner", "rollouts", "verifiers", "envs")
FORMAT = "%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"
FIELDS = "%(asctime)s %(levelname)s %(kind)s %(file)s %(process)d %(step)s %(name)s %(message)s"
RENAMED = {
    "asctime": "time",
    "levelname": "level",
    "file": "process",
    "process": "pid",
    "name": "logger",
    "exc_info": "traceback",
}

_step: int | None = None


def at_step(step: int | None) -> None:
    """What this process logs from now on belongs to this training step."""
    global _step
    _step = step


class Lines(JsonFormatter):
    """A record as one line of JSON; what a caller passes as `extra` becomes further fields."""

    def __init__(self, name: str) -> None:
        super().__init__(FIELDS, rename_fields=RENAMED, json_ensure_ascii=False)
        self._name, self._kind = name, name.replace("-", "_").partition("_")[0]

    def format(self, record: logging.LogRecord) -> str:
        record.kind, record.file, record.step = self._kind, self._name, _step
        return super().format(record)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")


def log_to(path: Path) -> list[logging.Handler]:
    """From now on our loggers write to `path`, a `.log`, and to the `.jsonl` beside it, and nowhere else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = []
    for file, formatter in (
        (path, logging.Formatter(FORMAT)),
        (path.with_suffix(".jsonl"), Lines(path.stem)),
    ):
        # A lone surrogate in a message (a file name, a completion) is escaped, as JSON does it too.
        opened = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
        opened.setFormatter(formatter)
        handlers.append(opened)
    for name in PACKAGES:
        logger = logging.getLogger(name)
        for handler in handlers:
            logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    log.info("started")  # once a process: files are gone on with after a restart
    return handlers


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """`log_to` for the block."""
    handlers = log_to(path)
    try:
        yield
    finally:
        at_step(None)
        for name in PACKAGES:
            logger = logging.getLogger(name)
            for handler in handlers:
                logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)
            logger.propagate = True
        for handler in handlers:
            handler.close()
