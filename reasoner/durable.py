"""Writing files that survive a crash: complete or invisible, and an error that names the path.

Every file of a run directory that is replaced as a whole goes through `write_atomically`. What a power loss
may do to a disk that lies about fsync is out of scope.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from reasoner.errors import ReasonerError, UsageError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def disk_error(path: Path, error: BaseException | str, *, full: bool = False) -> ReasonerError:
    """The one message for a write that failed: which path, why, and what to do when the disk is full."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    full = full or (isinstance(error, OSError) and error.errno in _NO_SPACE)
    advice = "; free some space and continue with `reasoner train --resume`" if full else ""
    return ReasonerError(f"cannot write {path}: {reason}{advice}")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns an `OSError` inside the block into a `ReasonerError` that names `path`; so, too, what safetensors
    and Ray raise in types of their own when the disk is full."""
    try:
        yield
    except ReasonerError:
        raise
    except Exception as error:
        full = next((text for text in map(os.strerror, _NO_SPACE) if text in str(error)), None)
        if full is None and not isinstance(error, OSError):
            raise
        raise disk_error(path, full or error, full=full is not None) from error


def fsync_file(path: Path) -> None:
    """Forces the contents of the file `path` to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_directory(path: Path) -> None:
    """Forces the directory's own entries (creations and renames in it) to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def only_writer(directory: Path) -> IO[bytes]:
    """Holds the lock of a run directory until the returned file is closed or the process dies.

    Raises `UsageError` when another one holds it: two writers would ruin a run."""
    with disk_errors(directory):
        file = open(directory / ".lock", "ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UsageError(f"{directory} is being trained by another process: stop that one first") from None
    return file


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces `path` by a file holding `data`: readers see the old one or the new one, nothing between.

    Raises `ReasonerError` naming `path` when that fails; the old file is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            fsync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
