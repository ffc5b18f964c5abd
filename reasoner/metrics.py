"""What a run measures, one object a step: computed by pure functions, written durably, read back tolerantly.

`metrics.jsonl` is the record; TensorBoard and other trackers are copies of it and may fail without stopping
a run. Nothing here loads torch: TensorBoard's own event writer is used, not torch's wrapper of it.

Denominators: `truncated_rate`, `masked_rate` and `response_tokens_mean` are over all rollouts of the step;
`reward_mean`, `pass_rate`, `unparsed_rate` and `self_corrected_rate` over those the verifier scored. All of
them include the groups that are filtered afterwards.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from reasoner.durable import disk_errors, fsync_directory, write_atomically
from reasoner.errors import ReasonerError
from reasoner.self_correction import self_corrected
from reasoner.types import Group, Rollout

log = logging.getLogger(__name__)

PHASES = ("rollout", "verify", "learn", "sync", "wait")

#: The keys of every line of metrics.jsonl, in this order; `eval` follows on steps that evaluate.
STEP_KEYS = (
    "step",
    "policy_version",
    "reward_mean",
    "pass_rate",
    "response_tokens_mean",
    "truncated_rate",
    "unparsed_rate",
    "masked_rate",
    "verifier_timeouts",
    "verifier_errors",
    "self_corrected_rate",
    "filtered_groups",
    "dropped_stale",
    "staleness_mean",
    "staleness_max",
    "entropy",
    "kl_behaviour",
    "clip_rate",
    "ess",
    "grad_norm",
    "learner_tokens_per_s",
    "sampler_tokens_per_s",
    "train_flops",
    "sample_flops",
    "seconds",
)


def rollout_metrics(groups: Sequence[Group], policy_version: int) -> dict[str, Any]:
    """The metrics of a step that follow from its groups, before filtering (denominators: see above).

    `policy_version` is the learner's version when it trains on them: staleness is that minus the version of
    a rollout's oldest action token. A mean over nothing is None.
    """
    rollouts = [r for g in groups for r in g.rollouts]
    scored = [r for r in rollouts if r.reward is not None]
    statuses = [r.verdict.status for r in rollouts if r.verdict is not None]
    staleness = [policy_version - r.oldest_version for r in rollouts if r.num_action_tokens]
    return {
        "groups": len(groups),
        "rollouts": len(rollouts),
        "reward_mean": _mean([r.reward for r in scored]),
        "pass_rate": _mean([_has_status(r, "correct") for r in scored]),
        "response_tokens_mean": _mean([r.num_action_tokens for r in rollouts]),
        "truncated_rate": _mean([r.truncated for r in rollouts]),
        "unparsed_rate": _mean([_has_status(r, "unparsed") for r in scored]),
        "masked_rate": _mean([r.reward is None for r in rollouts]),
        "verifier_timeouts": statuses.count("timeout"),
        "verifier_errors": statuses.count("error"),
        "bad_references": statuses.count("bad_reference"),
        "self_corrected_rate": _mean([self_corrected(r.completion, r.verdict) for r in scored]),
        "staleness_mean": _mean(staleness),
        "staleness_max": max(staleness, default=None),
        "reward_by_length": reward_by_length([(r.num_action_tokens, float(r.reward or 0)) for r in scored]),
        "families": family_metrics(groups),
    }


def reward_by_length(scored: Sequence[tuple[int, float]]) -> dict[str, dict[str, float]] | None:
    """The quarters of the scored rollouts from the shortest ("q1") to the longest ("q4"): `tokens`, their
    mean length, and `reward`, their mean reward. Rollouts of equal length share their mean reward, so that
    their order decides nothing. None for fewer than four rollouts."""
    if len(scored) < 4:
        return None
    lengths, rewards = np.array(sorted(scored), dtype=float).T
    _, which = np.unique(lengths, return_inverse=True)
    rewards = (np.bincount(which, weights=rewards) / np.bincount(which))[which]
    quarters = zip(np.array_split(lengths, 4), np.array_split(rewards, 4), strict=True)
    return {
        f"q{i}": {"tokens": float(tokens.mean()), "reward": float(reward.mean())}
        for i, (tokens, reward) in enumerate(quarters, start=1)
    }


def family_metrics(groups: Sequence[Group]) -> dict[str, dict[str, Any]]:
    """Rollouts, pass rate, mean reward and mean length of each family of tasks, by name."""
    families: dict[str, list[Rollout]] = {}
    for group in groups:
        families.setdefault(group.task.family, []).extend(group.rollouts)
    return {name: _family(rollouts) for name, rollouts in sorted(families.items())}


def _family(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    scored = [r for r in rollouts if r.reward is not None]
    return {
        "rollouts": len(rollouts),
        "pass_rate": _mean([_has_status(r, "correct") for r in scored]),
        "reward_mean": _mean([r.reward for r in scored]),
        "response_tokens_mean": _mean([r.num_action_tokens for r in rollouts]),
    }


def _has_status(rollout: Rollout, status: str) -> bool:
    return rollout.verdict is not None and rollout.verdict.status == status


def _mean(values: Sequence[Any]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def step_metrics(
    *,
    step: int,
    policy_version: int,
    seconds: Mapping[str, float],
    groups: Sequence[Group] = (),
    evaluation: Mapping[str, Any] | None = None,
    **others: Any,
) -> dict[str, Any]:
    """One line of metrics.jsonl: the contract's keys in order (null where there is no value), then `others`
    it does not know (learner and loop statistics), then `eval`. `policy_version` is the one trained on
    `groups`."""
    values = {**rollout_metrics(groups, policy_version), **others}
    values |= {"step": step, "policy_version": policy_version, "seconds": dict(seconds)}
    line = {key: values.pop(key, None) for key in STEP_KEYS} | values
    if evaluation is not None:
        line["eval"] = evaluation
    return line


class Timeline:
    """Where the learner's wall-clock time goes: a partition, so the phases add up to `total`.

    `with timeline.measure("sync"):` books its time to `sync`; a `measure` inside another one interrupts the
    outer phase. Time in no phase is booked to `wait`, the phase of doing nothing for learning. Not
    thread-safe: it belongs to the thread that runs the loop.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._phase = "wait"
        self._since = clock()
        self._spent = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Books the block's seconds to `phase`, one of `PHASES` (else ValueError)."""
        if phase not in self._spent:
            raise ValueError(f"unknown phase {phase!r}: expected one of {', '.join(PHASES)}")
        outer = self._switch(phase)
        try:
            yield
        finally:
            self._switch(outer)

    def lap(self) -> dict[str, float]:
        """Seconds by phase and `total` since the last lap (or the start), then begins the next one."""
        self._switch(self._phase)
        seconds = {**self._spent, "total": math.fsum(self._spent.values())}
        self._spent = dict.fromkeys(PHASES, 0.0)
        return seconds

    def _switch(self, phase: str) -> str:
        now = self._clock()
        self._spent[self._phase] += now - self._since
        outer, self._phase, self._since = self._phase, phase, now
        return outer


class Tracker(Protocol):
    """A copy of the metrics for people to look at elsewhere. It may raise: it is then dropped with a warning
    and the run goes on."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Receives a step's finite numbers under flat names such as `eval/held_out/pass@1`."""

    def close(self) -> None: ...


class TensorBoardTracker:
    """Writes TensorBoard event files under `directory` with the `tensorboard` package (no torch, no TF)."""

    def __init__(self, directory: Path, resume_step: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event = Event
        self._writer = EventFileWriter(str(directory))
        if resume_step is not None:  # makes TensorBoard hide what an earlier session wrote after that step
            start = Event(
                wall_time=time.time(), step=resume_step + 1, session_log=SessionLog(status=SessionLog.START)
            )
            self._writer.add_event(start)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class MetricsWriter:
    """Appends one JSON object a step to `run_dir/metrics.jsonl`, on disk when `write` returns.

    With `resume_step` the lines after that step (and a torn last line) are removed first; without it a file
    that already holds lines is a `ReasonerError`. `trackers=None` means TensorBoard under the run directory;
    `warn` hears of a tracker that fails, which is dropped.
    """

    def __init__(
        self,
        run_dir: Path,
        trackers: Sequence[Tracker] | None = None,
        *,
        resume_step: int | None = None,
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        self.path = Path(run_dir) / "metrics.jsonl"
        self._last_step = -1
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._prepare(resume_step)
            self._open()
            fsync_directory(self.path.parent)
            if trackers is None:
                trackers = [TensorBoardTracker(self.path.parent / "tensorboard", resume_step)]
        self._trackers, self._warn = list(trackers), warn

    def _prepare(self, resume_step: int | None) -> None:
        entries = read_metrics(self.path.parent)
        if resume_step is None:
            if entries:
                raise ReasonerError(
                    f"{self.path} already holds {len(entries)} steps: resume that run instead"
                )
            return
        kept = [entry for entry in entries if entry["step"] <= resume_step]
        write_atomically(self.path, b"".join(_json_line(entry) for entry in kept))
        self._last_step = kept[-1]["step"] if kept else -1

    def _open(self) -> None:
        self._file = open(self.path, "ab", buffering=0)

    def write(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Appends one step and returns it as written (plain JSON types, null for NaN and infinities).

        Raises ValueError when `step` does not grow, `ReasonerError` when the disk is full (the file then
        ends with the last complete line).
        """
        entry = plain(metrics)
        if not isinstance(entry.get("step"), int) or entry["step"] <= self._last_step:
            raise ValueError(
                f"metrics of step {entry.get('step')!r} come after those of step {self._last_step}"
            )
        before = self._file.tell()
        try:
            with disk_errors(self.path):
                rest = _json_line(entry)
                while rest:
                    rest = rest[self._file.write(rest) :]
                os.fsync(self._file.fileno())
        except ReasonerError:
            os.ftruncate(self._file.fileno(), before)
            raise
        self._last_step = entry["step"]
        self._track(entry)
        return entry

    def amend(self, late: Mapping[str, Any]) -> dict[str, Any]:
        """Adds what came late to the last line, and returns the line. The file is replaced as a whole."""
        *entries, last = read_metrics(self.path.parent)
        added = plain(late)
        write_atomically(self.path, b"".join(map(_json_line, [*entries, last | added])))
        self._file.close()
        with disk_errors(self.path):
            self._open()
        self._track({"step": last["step"], **added})
        return last | added

    def _track(self, entry: Mapping[str, Any]) -> None:
        scalars = dict(flatten(entry))
        for tracker in list(self._trackers):
            try:
                tracker.log(entry["step"], scalars)
            except Exception as error:  # a tracker is somebody else's process or network: never the run's end
                self._trackers.remove(tracker)
                self._warn(f"a tracker failed and is dropped: {_named(tracker, error)}")

    def close(self) -> None:
        self._file.close()
        for tracker in self._trackers:
            try:
                tracker.close()
            except Exception as error:  # as in `_track`: what it had to say is in metrics.jsonl
                self._warn(f"a tracker failed to close: {_named(tracker, error)}")

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All complete steps of a run, also while it goes on ([] when there is none yet).

    A torn last line (a crash in the middle of a write) is left out; a broken line anywhere else is a
    `ReasonerError` that names it.
    """
    path = Path(run_dir) / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    entries = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # no newline after it: it was being written
                break
            raise ReasonerError(f"{path}, line {number}: not a JSON object ({error})") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            raise ReasonerError(f"{path}, line {number}: expected an object with an integer `step`")
        entries.append(entry)
    return entries


def _named(tracker: Tracker, error: Exception) -> str:
    return f"{type(tracker).__name__}: {type(error).__name__}: {error}"


def plain(value: Any) -> Any:
    """`value` in JSON's own types: numpy numbers unwrapped, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f"metrics hold numbers, texts and mappings of them, not {type(value).__name__}")


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a nested mapping under names joined with `/`; nulls, texts and `step` are left out."""
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}/")
        elif isinstance(value, (bool, int, float)) and (prefix or key != "step"):
            yield f"{prefix}{key}", float(value)


def _json_line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, allow_nan=False, ensure_ascii=False).encode() + b"\n"
