"""Checkpoints that are complete or invisible.

A checkpoint is written to a hidden temporary directory, forced to disk and renamed to `step_NNNNNN` (where
the step was saved before: in exchange for that); the link `latest` is replaced after that. Whatever dies in
between leaves the previous checkpoint as `latest`.
`trainer/manifest.json` lists every file with its size and sha256, so a checkpoint that was cut short later
(a copy, a broken disk) is recognised and passed over. The hashes of all checkpoints ever written, also of
those retention has removed, stay in `hashes.jsonl`; a line `{"resumed_from": N}` there says that what stands
above it for later steps was undone by a resume.

One process writes to a run directory at a time; any number may read.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from reasoner.durable import disk_errors, fsync_directory, fsync_file, write_atomically
from reasoner.errors import ReasonerError, UsageError

_NAME = re.compile(r"step_(\d{6,})\Z")
_RESUMED = re.compile(rb'\{"resumed_from": (\d+)\}\Z')
_TEMPORARY = ".incomplete_"
_STATE = Path("trainer/state.json")
_MANIFEST = Path("trainer/manifest.json")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux


class CheckpointStore:
    """The checkpoints of one run, under `run_dir/checkpoints/`.

    Retention keeps the newest `keep` (at least 1) and the one marked best.
    """

    def __init__(self, run_dir: Path, keep: int = 2) -> None:
        if keep < 1:
            raise UsageError(f"at least one checkpoint must be kept, not {keep}")
        self.directory = Path(run_dir) / "checkpoints"
        self.keep = keep

    def path(self, step: int) -> Path:
        """Where the checkpoint of `step` is or would be."""
        return self.directory / f"step_{step:06d}"

    def save(
        self, step: int, write: Callable[[Path], None], state: Mapping[str, Any], *, best: bool = False
    ) -> Path:
        """Writes the checkpoint of `step` and returns its path once it is complete, durable and `latest`.

        `write(directory)` puts the Hugging Face files into `directory` and the optimizer and the rest into
        `directory/trainer/` (which exists); `state` (JSON types) becomes `trainer/state.json`. An exception
        of `write` flies after the temporary directory is removed; a full disk is a `ReasonerError`.
        """
        text = json.dumps({"step": step, **state}, indent=1, allow_nan=False).encode()
        temporary = self.directory / f"{_TEMPORARY}step_{step:06d}.{os.getpid()}"
        with disk_errors(self.path(step)):
            self.directory.mkdir(parents=True, exist_ok=True)
            self._sweep()
            self._log_missing_hashes()
            try:
                (temporary / "trainer").mkdir(parents=True)
                write(temporary)
                (temporary / _STATE).write_bytes(text)
                _seal(temporary, step)
                self._publish(temporary, step)
            finally:  # gone already, unless something failed or the step was saved before: then that
                shutil.rmtree(temporary, ignore_errors=True)
            self._log_missing_hashes()
            if best:
                self.mark_best(step)
            self._retire()
        return self.path(step)

    def mark_best(self, step: int) -> None:
        """Points `best` to the checkpoint of `step`, which retention then keeps."""
        self._link("best", self.path(step))

    def best(self) -> Path | None:
        """The checkpoint marked best, if it is complete."""
        return _complete_target(self.directory / "best")

    def latest(self) -> Path | None:
        """The newest complete checkpoint, None when there is none. Truncated ones are passed over."""
        return next(iter(sorted(self.complete(), key=_step_of, reverse=True)), None)

    def complete(self) -> list[Path]:
        """All complete checkpoints, oldest first."""
        found = (p for p in self.directory.glob("step_*") if _NAME.match(p.name) and is_complete(p))
        return sorted(found, key=_step_of)

    def newest_intact(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint whose files have the hashes of its manifest, and what is wrong with those
        that are newer."""
        faults: list[str] = []
        found = sorted((p for p in self.directory.glob("step_*") if _NAME.match(p.name)), key=_step_of)
        for path in reversed(found):
            try:
                verify(path)
                return path, faults
            except ReasonerError as error:
                faults.append(str(error))
        return None, faults

    def go_back(self, step: int) -> None:
        """The run resumes from the checkpoint of `step`: newer ones are set aside as `damaged_step_NNNNNN`,
        and their hashes no longer count."""
        with disk_errors(self.directory):
            for path in self.directory.glob("step_*"):
                if _NAME.match(path.name) and _step_of(path) > step:
                    aside = path.with_name(f"damaged_{path.name}")
                    shutil.rmtree(aside, ignore_errors=True)
                    os.rename(path, aside)
            fsync_directory(self.directory)
            self._link("latest", self.path(step))
            self._log_missing_hashes()
            log = self.directory / "hashes.jsonl"
            write_atomically(log, log.read_bytes() + json.dumps({"resumed_from": step}).encode() + b"\n")

    def hashes(self) -> dict[int, dict[str, str]]:
        """`{step: {file: sha256}}` of every checkpoint of the run, also of deleted ones; steps that a resume
        has undone are left out. `ReasonerError` when the log cannot be read."""
        log = self.directory / "hashes.jsonl"
        entries: dict[int, dict[str, str]] = {}
        for line in _read(log).splitlines():
            try:
                entry = json.loads(line)
                if "resumed_from" in entry:
                    entries = {s: files for s, files in entries.items() if s <= entry["resumed_from"]}
                    continue
                entries[entry["step"]] = {name: file["sha256"] for name, file in entry["files"].items()}
            except (ValueError, KeyError, TypeError) as error:
                raise ReasonerError(f"{log} holds a line that cannot be read: {error}") from error
        return dict(sorted(entries.items()))

    def _publish(self, temporary: Path, step: int) -> None:
        final = self.path(step)
        if final.exists():
            _exchange(temporary, final)
        else:
            os.rename(temporary, final)
        fsync_directory(self.directory)
        self._link("latest", final)

    def _link(self, name: str, target: Path) -> None:
        temporary = self.directory / f"{_TEMPORARY}{name}.{os.getpid()}"
        with disk_errors(self.directory / name):
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(target.name)
            os.replace(temporary, self.directory / name)
            fsync_directory(self.directory)

    def _remove(self, path: Path) -> None:
        """Invisible first, so that a death in the middle leaves no half checkpoint under a real name."""
        doomed = self.directory / f"{_TEMPORARY}removed_{path.name}.{os.getpid()}"
        os.rename(path, doomed)
        shutil.rmtree(doomed)

    def _retire(self) -> None:
        best = self.best()
        for path in self.complete()[: -self.keep]:
            if best is None or path.name != best.name:
                self._remove(path)

    def _sweep(self) -> None:
        """Removes what an earlier, killed writer left behind."""
        for path in self.directory.glob(f"{_TEMPORARY}*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _log_missing_hashes(self) -> None:
        """Brings `hashes.jsonl` up to date from the manifests: a death between rename and append heals."""
        log = self.directory / "hashes.jsonl"
        known = log.read_bytes() if log.exists() else b""
        if known and not known.endswith(
            b"\n"
        ):  # a torn last line; its checkpoint's manifest is appended again
            known = known[: known.rfind(b"\n") + 1]
        lines = known.splitlines()
        resumes = [(i, int(match[1])) for i, line in enumerate(lines) if (match := _RESUMED.match(line))]
        missing = []
        for path in self.complete():  # a step done again may give the same files as what was undone
            undone = max((i for i, step in resumes if step < _step_of(path)), default=-1)
            if (line := _manifest_line(path)) not in lines[undone + 1 :]:
                missing.append(line)
        if missing:
            write_atomically(log, known + b"".join(line + b"\n" for line in missing))


def _exchange(one: Path, other: Path) -> None:
    """Two directories change places, at once: neither name is ever without one. Where the system cannot (not
    Linux, some network file systems), there is none under either name for an instant."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    places = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    if rename is None or rename(*places, _RENAME_EXCHANGE) != 0:
        aside = one.with_name(f"{one.name}.exchanged")
        os.rename(other, aside)
        os.rename(one, other)
        os.rename(aside, one)


def is_complete(path: Path) -> bool:
    """Whether every file the manifest lists is there with its size."""
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        return all((path / name).stat().st_size == file["bytes"] for name, file in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def verify(path: Path) -> None:
    """Compares size and sha256 of a checkpoint's files; `ReasonerError` names the first that differs."""
    try:
        files = json.loads(_read(path / _MANIFEST))["files"]
        expected = {name: (file["bytes"], file["sha256"]) for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReasonerError(f"checkpoint {path} is damaged: its manifest cannot be read ({error})") from error
    for name, (size, sha256) in expected.items():
        file = path / name
        if not file.is_file():
            raise ReasonerError(f"checkpoint {path} is damaged: {name} is missing")
        if file.stat().st_size != size:
            raise ReasonerError(
                f"checkpoint {path} is damaged: {name} has {file.stat().st_size} of {size} bytes"
            )
        if (found := file_sha256(file)) != sha256:
            raise ReasonerError(f"checkpoint {path} is damaged: {name} has sha256 {found}, expected {sha256}")


def load_state(path: Path) -> dict[str, Any]:
    """The `state` a checkpoint was saved with (and its `step`); `ReasonerError` when it cannot be read."""
    text = _read(Path(path) / _STATE)
    try:
        state = json.loads(text)
    except ValueError as error:
        raise ReasonerError(f"{Path(path) / _STATE} is not JSON: {error}") from error
    if not isinstance(state, dict):
        raise ReasonerError(f"{Path(path) / _STATE} does not hold an object")
    return state


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReasonerError(f"cannot read {path}: {error.strerror}: is it a checkpoint of a run?") from error


def _seal(directory: Path, step: int) -> None:
    """Writes the manifest and forces everything below `directory` to disk."""
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    listed = {
        str(p.relative_to(directory)): {"bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in files
    }
    (directory / _MANIFEST).write_text(json.dumps({"step": step, "files": listed}, indent=1))
    for path in directory.rglob("*"):
        fsync_file(path) if path.is_file() else fsync_directory(path)
    fsync_directory(directory)


def _manifest_line(path: Path) -> bytes:
    return json.dumps(json.loads((path / _MANIFEST).read_bytes()), sort_keys=True).encode()


def file_sha256(path: Path) -> str:
    """The sha256 of a file's contents, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _complete_target(link: Path) -> Path | None:
    if not link.is_symlink():
        return None
    target = link.parent / os.readlink(link)
    return target if is_complete(target) else None


def _step_of(path: Path) -> int:
    match = _NAME.match(path.name)
    assert match, path
    return int(match.group(1))
