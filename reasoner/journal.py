"""The journal: every accepted rollout is on disk before it counts.

New groups go into an append-only SQLite log (`rollouts/journal.sqlite`), one transaction a batch. A group's
fate (trained by a step, filtered, dropped as stale) is added when it is known; the step's rows then move to
`rollouts/step_NNNNNN.parquet` in a background thread. At any moment each rollout is in the log, in a Parquet
file, or (for the instant between a file's rename and the log's clean-up, also after a crash) in both, where
the file counts.

SQLite runs in WAL mode, so others read while we write, with `synchronous=FULL`: one fsync a batch makes a
rollout survive a power loss, not only a killed process (`NORMAL` would save that fsync and lose the last
batches with the power). WAL needs a local disk; a run directory on a network file system is not supported.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reasoner import rollout_files
from reasoner.durable import disk_error, disk_errors, fsync_directory
from reasoner.errors import ReasonerError
from reasoner.rollout_files import Row
from reasoner.types import NO_VERSION, Group, Rollout, SamplingParams

_PAGE_BYTES = 16 * 2**10  # of a new log: a rollout of 1,000 tokens is one page, not a chain of them
_WAL_PAGES = 2_500  # the background thread checkpoints long before; this bounds a run that never compacts
_TABLES = """
CREATE TABLE IF NOT EXISTS sampling (id INTEGER PRIMARY KEY, params TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS groups (
    group_index INTEGER PRIMARY KEY,
    task TEXT NOT NULL,
    sampling INTEGER NOT NULL,
    arrived_step INTEGER,
    newest_version INTEGER NOT NULL,
    step INTEGER,
    fate TEXT
);
CREATE TABLE IF NOT EXISTS rollouts (
    group_index INTEGER NOT NULL,
    rollout INTEGER NOT NULL,
    completion TEXT NOT NULL,
    status TEXT, reward REAL, extracted TEXT, detail TEXT, verify_seconds REAL,
    terminated INTEGER NOT NULL,
    truncated INTEGER NOT NULL,
    token_ids BLOB NOT NULL,
    action_mask BLOB NOT NULL,
    behaviour_logprobs BLOB NOT NULL,
    policy_version BLOB NOT NULL,
    PRIMARY KEY (group_index, rollout)
);
CREATE TABLE IF NOT EXISTS uses (
    group_index INTEGER NOT NULL,
    rollout INTEGER NOT NULL,
    position INTEGER NOT NULL,
    advantage REAL NOT NULL,
    learner_logprobs BLOB,
    PRIMARY KEY (group_index, rollout)
);
"""
_SELECT = f"""
SELECT {", ".join("sampling.params" if f == "sampling" else f for f in Row._fields)}
FROM groups JOIN sampling ON sampling.id = groups.sampling
JOIN rollouts USING (group_index) LEFT JOIN uses USING (group_index, rollout)
"""


@dataclass(frozen=True)
class Use:
    """One rollout in the batch of a step: its place there, its advantage, and what the learner computed."""

    group_index: int
    rollout: int  # position in the group
    position: int  # position in the batch
    advantage: float
    learner_logprobs: np.ndarray | None = None  # (L,) float32, entry t describes token t


class Journal:
    """The log of one run. Thread-safe; one process writes, others may read.

    Every method that writes raises `ReasonerError` naming the path when the disk is full, and leaves the
    journal as it was. An error of the background thread is raised by the next call.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = Path(run_dir)
        self.path = self.run_dir / "rollouts" / "journal.sqlite"
        self._lock = threading.Lock()
        self._pending: list[Future[None]] = []
        self._background = ThreadPoolExecutor(1, thread_name_prefix="journal")
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._sqlite_errors():
            self._db = self._connect()
            self._db.executescript(_TABLES)
        fsync_directory(self.path.parent)

    def append_groups(
        self, step: int | None, groups: Sequence[Group], sampling: SamplingParams | Mapping[str, Any]
    ) -> None:
        """Makes `groups` durable: they count as accepted when this returns. `step` is the learner's step at
        their arrival, if known. ValueError when a group index is in the log already."""
        params = asdict(sampling) if isinstance(sampling, SamplingParams) else dict(sampling)
        text = json.dumps(params, sort_keys=True)
        rows = [row for group in groups for row in _rollout_rows(group)]
        self._raise_background_errors()
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO sampling (params) VALUES (?)", (text,))
            (key,) = db.execute("SELECT id FROM sampling WHERE params = ?", (text,)).fetchone()
            try:
                db.executemany(
                    "INSERT INTO groups (group_index, task, sampling, arrived_step, newest_version)"
                    " VALUES (?, ?, ?, ?, ?)",
                    [
                        (g.index, rollout_files.task_to_json(g.task), key, step, _newest_version(g))
                        for g in groups
                    ],
                )
            except sqlite3.IntegrityError as error:
                raise ValueError(f"a group of {[g.index for g in groups]} is journaled already") from error
            db.executemany(f"INSERT INTO rollouts VALUES ({','.join('?' * 14)})", rows)

    def mark_used(self, step: int, uses: Sequence[Use]) -> None:
        """Records the batch of `step`; the groups it draws from are `trained` by that step."""
        rows = [
            (u.group_index, u.rollout, u.position, float(u.advantage), _blob(u.learner_logprobs, np.float32))
            for u in uses
        ]
        self._raise_background_errors()
        if not rows:
            return
        with self._transaction() as db:
            db.executemany("INSERT INTO uses VALUES (?, ?, ?, ?, ?)", rows)
            self._set_fate(db, step, sorted({u.group_index for u in uses}), "trained")

    def mark_dropped(self, step: int, group_indices: Sequence[int], fate: str) -> None:
        """Records groups that `step` does not train on, and why: `filtered`, `stale` or another word."""
        self._raise_background_errors()
        if not group_indices:
            return
        with self._transaction() as db:
            self._set_fate(db, step, group_indices, fate)

    @staticmethod
    def _set_fate(db: sqlite3.Connection, step: int, indices: Sequence[int], fate: str) -> None:
        for index in indices:
            done = db.execute(
                "UPDATE groups SET step = ?, fate = ? WHERE group_index = ? AND step IS NULL",
                (step, fate, index),
            )
            if done.rowcount != 1:
                raise ValueError(f"group {index} is not in the journal, or a step has it already")

    def unused_groups(self) -> list[Group]:
        """The groups no step has used or dropped yet, in order of their index."""
        self._raise_background_errors()
        with self._transaction() as db:
            rows = [Row(*r) for r in db.execute(_SELECT + "WHERE step IS NULL")]
        return rollout_files.groups_of(rollout_files.table_of(rows))

    def compact(self, step: int) -> Future[None]:
        """Moves the rows of `step` to its Parquet file in the background; the future is for who must wait."""
        self._raise_background_errors()
        future = self._background.submit(self._compact, step)
        self._pending.append(future)
        return future

    def resume(self, step: int, policy_version: int) -> list[Group]:
        """Goes back to the state after `step` (the checkpoint's) and returns the unused groups.

        Groups that later, now forgotten steps used become unused again, out of their Parquet files if need
        be, unless a policy newer than `policy_version` sampled any of their tokens: that policy is lost, so
        those are moved to `rollouts/discarded/`. Idempotent: it may be killed and repeated.
        """
        self._wait()
        for later, path in rollout_files.step_paths(self.run_dir).items():
            if later > step:
                self._restore(path, policy_version)
        with self._transaction() as db:
            db.execute(
                "DELETE FROM uses WHERE group_index IN (SELECT group_index FROM groups WHERE step > ?)",
                (step,),
            )
            db.execute("UPDATE groups SET step = NULL, fate = NULL WHERE step > ?", (step,))
            lost = [
                Row(*r)
                for r in db.execute(_SELECT + "WHERE newest_version > ?", (policy_version,)).fetchall()
            ]
            unfinished = [s for (s,) in db.execute("SELECT DISTINCT step FROM groups WHERE step IS NOT NULL")]
        self._put_aside(lost, f"after_step_{step:06d}")
        for earlier in unfinished:
            self.compact(earlier)
        return self.unused_groups()

    def discard(self, group_indices: Sequence[int], stem: str) -> None:
        """Moves groups that no step has used to `rollouts/discarded/`: their indices are free again."""
        marks = ",".join("?" * len(group_indices))
        with self._transaction() as db:
            found = db.execute(f"{_SELECT} WHERE step IS NULL AND group_index IN ({marks})", group_indices)
            rows = [Row(*r) for r in found.fetchall()]
        self._put_aside(rows, stem)

    def _put_aside(self, rows: Sequence[Row], stem: str) -> None:
        if rows:
            rollout_files.write_table(self._discarded(stem), rollout_files.table_of(rows))
            self._delete(sorted({row.group_index for row in rows}))

    def close(self) -> None:
        """Waits for the background thread and closes the log; raises what the thread failed with."""
        try:
            self._wait()
        finally:
            self._background.shutdown()
            self._db.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _compact(self, step: int) -> None:
        with self._sqlite_errors():
            db = self._connect()
            try:
                rows = [Row(*r) for r in db.execute(_SELECT + "WHERE step = ?", (step,)).fetchall()]
                if not rows:
                    return
                rows.sort(key=lambda row: (row.group_index, row.rollout))
                path = rollout_files.step_path(self.run_dir, step)
                rollout_files.write_table(path, _merged(path, rollout_files.table_of(rows)))
                self._delete(sorted({row.group_index for row in rows}))
                db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            finally:
                db.close()

    def _restore(self, path: Path, policy_version: int) -> None:
        """Puts the groups of a forgotten step's file back into the log and the file aside."""
        table = rollout_files.read_table(path)
        with self._transaction() as db:
            present = {i for (i,) in db.execute("SELECT group_index FROM groups")}
        for params in pc.unique(table["sampling"]).to_pylist():
            alike = rollout_files.groups_of(table.filter(pc.equal(table["sampling"], params)))
            valid = [g for g in alike if g.index not in present and _newest_version(g) <= policy_version]
            self.append_groups(None, valid, json.loads(params))
        with disk_errors(path):
            aside = self._discarded(path.stem)
            aside.parent.mkdir(exist_ok=True)
            path.rename(aside)
            fsync_directory(path.parent)
            fsync_directory(aside.parent)

    def _discarded(self, stem: str) -> Path:
        folder = self.path.parent / "discarded"
        taken = sum(1 for _ in folder.glob(f"{stem}.*.parquet"))
        return folder / f"{stem}.{taken}.parquet"

    def _delete(self, group_indices: Sequence[int]) -> None:
        keys = [(index,) for index in group_indices]
        with self._transaction() as db:
            for table in ("uses", "rollouts", "groups"):
                db.executemany(f"DELETE FROM {table} WHERE group_index = ?", keys)

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=30, check_same_thread=False, isolation_level=None)
        db.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        db.execute("PRAGMA journal_mode = WAL").fetchall()
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}").fetchall()
        return db

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One durable transaction, all or nothing, on the shared connection."""
        with self._lock, self._sqlite_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite itself rolls back on a full disk
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _sqlite_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise disk_error(self.path, error, full="full" in str(error)) from error
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:  # a broken constraint is our mistake, not the disk's
                raise
            raise ReasonerError(f"{self.path} is not a readable journal: {error}") from error

    def _raise_background_errors(self) -> None:
        done = [future for future in self._pending if future.done()]
        self._pending = [future for future in self._pending if not future.done()]
        for future in done:
            future.result()

    def _wait(self) -> None:
        for future in list(self._pending):
            future.exception()
        self._raise_background_errors()


def read_step(run_dir: Path, step: int | None) -> pa.Table:
    """All rollouts of `step` (None: those that no step has used or dropped), from its file and, where it is
    not compacted yet, from the log. Changes nothing; the run may be going on.

    Raises `ReasonerError` when one of them cannot be read."""
    path = Path(run_dir) / "rollouts" / "journal.sqlite"
    rows: list[Row] = []
    if path.is_file():
        try:
            db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30)
            with closing(db):
                rows = [Row(*r) for r in db.execute(_SELECT + "WHERE step IS ?", (step,))]
        except sqlite3.Error as error:
            raise ReasonerError(f"cannot read {path}: {error}") from error
    rows.sort(key=lambda row: (row.group_index, row.rollout))
    table = rollout_files.table_of(rows)
    return table if step is None else _merged(rollout_files.step_path(run_dir, step), table)


def _rollout_rows(group: Group) -> Iterator[tuple[Any, ...]]:
    for i, r in enumerate(group.rollouts):
        v = r.verdict
        verdict = (v.status, v.reward, v.extracted, v.detail, v.seconds) if v else (None,) * 5
        yield (group.index, i, r.completion, *verdict, int(r.terminated), int(r.truncated), *_blobs(r))


def _blobs(rollout: Rollout) -> tuple[bytes | None, ...]:
    return (
        _blob(rollout.token_ids, np.int32),
        _blob(rollout.action_mask, np.bool_),
        _blob(rollout.behaviour_logprobs, np.float32),
        _blob(rollout.policy_version, np.int32),
    )


def _blob(values: np.ndarray | None, dtype: Any) -> bytes | None:
    return None if values is None else np.ascontiguousarray(values, dtype).tobytes()


def _newest_version(group: Group) -> int:
    """The newest policy version that sampled a token of the group, `NO_VERSION` without action tokens."""
    return max(
        (int(r.policy_version.max()) for r in group.rollouts if len(r.policy_version)), default=NO_VERSION
    )


def _merged(path: Path, table: pa.Table) -> pa.Table:
    """`table` with the rows an earlier compaction of the same step wrote for other groups."""
    if not path.exists():
        return table
    earlier = rollout_files.read_table(path)
    others = earlier.filter(
        pc.invert(pc.is_in(earlier["group_index"], table["group_index"].combine_chunks()))
    )
    return pa.concat_tables([others, table])
