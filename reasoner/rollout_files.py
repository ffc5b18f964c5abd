"""The Parquet side of the journal: `rollouts/step_NNNNNN.parquet`, one row a rollout.

A file holds every group a step used or dropped, with all that is needed to rebuild the `Group`s exactly and
to recompute the update. Files appear under their name only when complete, so DuckDB or Polars may read
`rollouts/step_*.parquet` at any time while the run goes on. The columns are documented in
docs/run_directory.md; `FORMAT_VERSION` in the file's metadata changes when their meaning does.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reasoner.durable import disk_errors, fsync_directory, fsync_file
from reasoner.errors import ReasonerError
from reasoner.types import Group, Rollout, Task, Verdict

FORMAT_VERSION = "1"
_NAME = re.compile(r"step_(\d{6,})\.parquet\Z")

SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("arrived_step", pa.int32()),
        ("fate", pa.string()),
        ("position", pa.int32()),
        ("group_index", pa.int64()),
        ("rollout", pa.int32()),
        ("task_id", pa.string()),
        ("family", pa.string()),
        ("difficulty", pa.float64()),
        ("prompt", pa.string()),
        ("reference", pa.string()),
        ("completion", pa.string()),
        ("status", pa.string()),
        ("reward", pa.float64()),
        ("extracted", pa.string()),
        ("detail", pa.string()),
        ("verify_seconds", pa.float64()),
        ("terminated", pa.bool_()),
        ("truncated", pa.bool_()),
        ("advantage", pa.float64()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("action_mask", pa.list_(pa.bool_())),
        ("behaviour_logprobs", pa.list_(pa.float32())),
        ("learner_logprobs", pa.list_(pa.float32())),
        ("policy_version", pa.list_(pa.int32())),
        ("task", pa.string()),
        ("sampling", pa.string()),
    ],
    metadata={"reasoner_format": FORMAT_VERSION},
)

#: Columns of Parquet that get a dictionary of their values. Those left out differ too much: it would
#: make the file slower to write and larger.
_WITH_DICTIONARY = [
    f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
    for field in SCHEMA
    if field.name not in ("completion", "prompt_ids", "token_ids", "behaviour_logprobs", "learner_logprobs")
]


class Row(NamedTuple):
    """One rollout as the SQLite log holds it; arrays are little-endian blobs (int32, uint8, float32)."""

    step: int | None
    arrived_step: int | None
    fate: str | None
    position: int | None
    group_index: int
    rollout: int
    task: str  # JSON
    sampling: str  # JSON
    completion: str
    status: str | None
    reward: float | None
    extracted: str | None
    detail: str | None
    verify_seconds: float | None
    terminated: int
    truncated: int
    advantage: float | None
    token_ids: bytes
    action_mask: bytes
    behaviour_logprobs: bytes
    policy_version: bytes
    learner_logprobs: bytes | None


def task_to_json(task: Task) -> str:
    """A task as JSON text from which `task_from_json` rebuilds an equal one.

    Raises ValueError when its metadata is not made of JSON types.
    """
    fields = {
        "id": task.id,
        "prompt": task.prompt if isinstance(task.prompt, str) else [dict(m) for m in task.prompt],
        "reference": task.reference if isinstance(task.reference, str) else list(task.reference),
        "family": task.family,
        "difficulty": task.difficulty,
        "metadata": dict(task.metadata),
    }
    try:
        return json.dumps(fields, ensure_ascii=False)
    except TypeError as error:
        raise ValueError(f"task {task.id}: metadata must hold JSON types only ({error})") from error


def task_from_json(text: str) -> Task:
    fields = json.loads(text)
    for key in ("prompt", "reference"):
        if not isinstance(fields[key], str):
            fields[key] = tuple(fields[key])
    return Task(**fields)


def table_of(rows: Sequence[Row]) -> pa.Table:
    """The rows of one step as a table in `SCHEMA`."""
    tasks = {text: json.loads(text) for text in {row.task for row in rows}}
    columns: dict[str, Any] = {
        name: [getattr(row, name) for row in rows] for name in Row._fields if name in SCHEMA.names
    }
    columns |= {
        "terminated": [bool(row.terminated) for row in rows],
        "truncated": [bool(row.truncated) for row in rows],
        "task_id": [tasks[row.task]["id"] for row in rows],
        "family": [tasks[row.task]["family"] for row in rows],
        "difficulty": [tasks[row.task]["difficulty"] for row in rows],
        "prompt": [_readable(tasks[row.task]["prompt"]) for row in rows],
        "reference": [_readable(tasks[row.task]["reference"]) for row in rows],
        "prompt_ids": _lists([_prompt_ids(row) for row in rows], "int32"),
        "token_ids": _lists([row.token_ids for row in rows], "int32"),
        "action_mask": _lists([row.action_mask for row in rows], "bool"),
        "behaviour_logprobs": _lists([row.behaviour_logprobs for row in rows], "float32"),
        "learner_logprobs": _lists([row.learner_logprobs for row in rows], "float32"),
        "policy_version": _lists([row.policy_version for row in rows], "int32"),
    }
    arrays = [
        c if isinstance(c := columns[field.name], pa.Array) else pa.array(c, field.type) for field in SCHEMA
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _readable(value: str | list[Any]) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _prompt_ids(row: Row) -> bytes:
    """The tokens before the first action token."""
    first_action = row.action_mask.find(b"\x01")
    return row.token_ids if first_action < 0 else row.token_ids[: 4 * first_action]


def _lists(blobs: Sequence[bytes | None], dtype: str) -> pa.Array:
    """One list a blob (None stays null), without a Python object per token."""
    values = np.frombuffer(b"".join(blob or b"" for blob in blobs), dtype=dtype)
    lengths = np.array([len(blob or b"") for blob in blobs]) // np.dtype(dtype).itemsize
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    mask = pa.array([blob is None for blob in blobs]) if any(b is None for b in blobs) else None
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), mask=mask)


def groups_of(table: pa.Table) -> list[Group]:
    """The groups of a table, as they were journaled, by group index."""
    groups: dict[int, list[tuple[int, Rollout]]] = {}
    for row in table.to_pylist():
        groups.setdefault(row["group_index"], []).append((row["rollout"], _rollout(row)))
    return [
        Group(members[0][1].task, tuple(r for _, r in sorted(members, key=lambda m: m[0])), index)
        for index, members in sorted(groups.items())
    ]


def _rollout(row: dict[str, Any]) -> Rollout:
    verdict = None
    if row["status"] is not None:
        verdict = Verdict(
            row["status"], row["reward"], row["extracted"], row["detail"], row["verify_seconds"]
        )
    return Rollout(
        task=task_from_json(row["task"]),
        token_ids=np.array(row["token_ids"], np.int32),
        action_mask=np.array(row["action_mask"], bool),
        behaviour_logprobs=np.array(row["behaviour_logprobs"], np.float32),
        policy_version=np.array(row["policy_version"], np.int32),
        completion=row["completion"],
        terminated=row["terminated"],
        truncated=row["truncated"],
        verdict=verdict,
    )


def step_path(run_dir: Path, step: int) -> Path:
    """Where the rollouts of `step` are, or will be once they are compacted."""
    return Path(run_dir) / "rollouts" / f"step_{step:06d}.parquet"


def step_paths(run_dir: Path) -> dict[int, Path]:
    """The compacted steps of a run, in order."""
    found = {}
    for path in (Path(run_dir) / "rollouts").glob("step_*.parquet"):
        if match := _NAME.match(path.name):
            found[int(match.group(1))] = path
    return dict(sorted(found.items()))


def read_table(path: Path, columns: Iterable[str] | None = None) -> pa.Table:
    """A rollout file; `ReasonerError` names it when it is missing, damaged or of another format version."""
    try:
        file = pq.ParquetFile(path)
        version = (file.schema_arrow.metadata or {}).get(b"reasoner_format", b"?").decode()
        if version != FORMAT_VERSION:
            raise ReasonerError(f"{path} has format {version}, this version reads {FORMAT_VERSION}")
        return file.read(columns=list(columns) if columns is not None else None)
    except (OSError, pa.ArrowInvalid) as error:
        raise ReasonerError(f"cannot read {path}: {error}") from error


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a rollout file, complete or not at all; `ReasonerError` names it when the disk is full."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, temporary, compression="zstd", use_dictionary=_WITH_DICTIONARY)
            fsync_file(temporary)
            os.replace(temporary, path)
            fsync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def in_batch_order(table: pa.Table, groups: Sequence[Group]) -> list[Group]:
    """The groups as they stood in the batch: by the first place of any of their rollouts."""
    first: dict[int, int] = {}
    for index, position in zip(table["group_index"].to_pylist(), table["position"].to_pylist(), strict=True):
        if position is not None:
            first[index] = min(position, first.get(index, position))
    return sorted(groups, key=lambda group: first[group.index])
