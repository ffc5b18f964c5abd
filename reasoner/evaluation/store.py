"""Every finished sample of an evaluation, durable at once, in `samples.sqlite` of its directory.

A directory belongs to one fingerprint (model, tasks, template, sampling, verifier): opening it for another
evaluation is refused. What is there is never sampled again, so an interrupted evaluation goes on, and more
samples or budgets later generate only the difference. `export` writes all of it to Parquet.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reasoner.durable import disk_error, disk_errors, fsync_file
from reasoner.errors import ReasonerError, UsageError
from reasoner.rollout_files import task_from_json, task_to_json
from reasoner.types import Task, Verdict

FORMAT_VERSION = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS identity (json TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sessions (tokens INTEGER NOT NULL, seconds REAL NOT NULL);
CREATE TABLE IF NOT EXISTS tasks (
    split TEXT, task_id TEXT, task TEXT NOT NULL, PRIMARY KEY (split, task_id)
);
CREATE TABLE IF NOT EXISTS samples (
    split TEXT, task_id TEXT, sample INTEGER, kind TEXT, amount INTEGER, suffix TEXT,
    completion TEXT NOT NULL, said TEXT NOT NULL, token_ids BLOB, logprobs BLOB, mean_logprob REAL,
    prompt_tokens INTEGER, tokens INTEGER NOT NULL, thinking_tokens INTEGER NOT NULL,
    truncated INTEGER NOT NULL, seconds REAL NOT NULL,
    status TEXT, reward REAL, extracted TEXT, detail TEXT, verify_seconds REAL,
    answer_key TEXT, candidates TEXT, candidates_correct TEXT, score REAL,
    PRIMARY KEY (split, task_id, sample, kind, amount, suffix)
) WITHOUT ROWID;
"""


class Point(NamedTuple):
    """What was done with a chain: `chain` (nothing), `cut` at `amount` tokens and made to answer by `suffix`,
    or `extended` the `amount`-th time by `suffix`."""

    kind: str
    amount: int
    suffix: str


CHAIN = Point("chain", 0, "")


@dataclass(frozen=True)
class Grade:
    """The verdict on a sample and what goes with it. `key` is the class of its answer in a vote."""

    verdict: Verdict
    key: str | None = None
    candidates: tuple[str, ...] = ()  # every answer on the way, in order
    candidates_correct: tuple[bool, ...] = ()  # one each, where there are several
    score: float | None = None  # of a scorer, for best-of-n


@dataclass(frozen=True)
class Sample:
    """One finished sample. `tokens` are those really spent: sampled, forced and appended ones."""

    split: str
    task_id: str
    index: int
    point: Point
    completion: str  # the text that is graded
    said: str  # all the policy wrote: longer than `completion` when there were several turns
    token_ids: np.ndarray | None  # (L,) int32, prompt and completion; None: the endpoint gave only text
    logprobs: np.ndarray | None  # (L - prompt,) float32, entry t describes token prompt + t
    mean_logprob: float  # of the sampled tokens; nan when unknown
    prompt_tokens: int | None
    tokens: int
    thinking_tokens: int  # of those, before a forced answer
    truncated: bool
    seconds: float
    grade: Grade | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.split, self.task_id, self.index, *self.point)


class EvalStore:
    """The samples of one evaluation. Thread-safe; one process writes.

    Raises UsageError when the directory holds another evaluation, ReasonerError when it cannot be written."""

    def __init__(self, directory: Path, identity: Mapping[str, Any] | None) -> None:
        """`identity` None: whatever evaluation is there."""
        self.directory = directory
        self.path = directory / "samples.sqlite"
        self._lock = threading.Lock()
        with disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
        with self._errors():
            self._db = sqlite3.connect(self.path, timeout=30, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL").fetchall()
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_TABLES)
        if identity is not None:
            self._claim({"format": FORMAT_VERSION, **identity})

    @classmethod
    def reopen(cls, directory: Path) -> EvalStore:
        """An evaluation that is there already, to read it."""
        return cls(directory, None)

    def _claim(self, identity: Mapping[str, Any]) -> None:
        text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
        with self._transaction() as db:
            row = db.execute("SELECT json FROM identity").fetchone()
            if row is None:
                db.execute("INSERT INTO identity VALUES (?)", (text,))
                return
        there, mine = _flat(json.loads(row[0])), _flat(json.loads(text))
        differs = [k for k in sorted({*there, *mine}) if there.get(k) != mine.get(k)]
        if differs:
            said = [f"{k}: {_short(there.get(k))} there, {_short(mine.get(k))} now" for k in differs]
            changes = "; ".join(said)
            raise UsageError(
                f"{self.directory} holds another evaluation ({changes}): give another directory with --out"
            )

    def add_tasks(self, split: str, tasks: Sequence[Task]) -> None:
        """Remembers the tasks; UsageError when one with the same id was another task before."""
        with self._transaction() as db:
            for task in tasks:
                text = task_to_json(task)
                db.execute("INSERT OR IGNORE INTO tasks VALUES (?, ?, ?)", (split, task.id, text))
                (stored,) = db.execute(
                    "SELECT task FROM tasks WHERE split = ? AND task_id = ?", (split, task.id)
                ).fetchone()
                if stored != text:
                    raise UsageError(
                        f"the task {task.id} is not the one that was evaluated in {self.directory}: "
                        "give another directory with --out"
                    )

    def tasks(self, split: str) -> list[Task]:
        with self._transaction() as db:
            rows = db.execute("SELECT task FROM tasks WHERE split = ?", (split,)).fetchall()
        return [task_from_json(text) for (text,) in rows]

    def add_session(self, tokens: int, seconds: float) -> None:
        """What one stretch of sampling made, and the wall-clock time it took."""
        with self._transaction() as db:
            db.execute("INSERT INTO sessions VALUES (?, ?)", (tokens, seconds))

    def seconds_per_token(self) -> float | None:
        """Over all sampling so far; None before any."""
        with self._transaction() as db:
            tokens, seconds = db.execute("SELECT sum(tokens), sum(seconds) FROM sessions").fetchone()
        return seconds / tokens if tokens else None

    def add(self, samples: Sequence[Sample]) -> None:
        """Makes samples durable: they are on disk when this returns."""
        rows = [
            (
                *s.key,
                s.completion,
                s.said,
                _blob(s.token_ids, np.int32),
                _blob(s.logprobs, np.float32),
                None if np.isnan(s.mean_logprob) else s.mean_logprob,
                s.prompt_tokens,
                s.tokens,
                s.thinking_tokens,
                int(s.truncated),
                s.seconds,
                *[None] * 9,
            )
            for s in samples
        ]
        with self._transaction() as db:
            db.executemany(f"INSERT OR IGNORE INTO samples VALUES ({','.join('?' * 25)})", rows)

    def grade(self, graded: Sequence[tuple[Sample, Grade]]) -> None:
        """Records the grades of stored samples."""
        rows = []
        for sample, g in graded:
            v = g.verdict
            rows.append(
                (
                    v.status, v.reward, v.extracted, v.detail, v.seconds, g.key,
                    json.dumps(g.candidates), json.dumps(g.candidates_correct), g.score, *sample.key,
                )
            )  # fmt: skip
        with self._transaction() as db:
            db.executemany(
                "UPDATE samples SET status=?, reward=?, extracted=?, detail=?, verify_seconds=?, "
                "answer_key=?, candidates=?, candidates_correct=?, score=? "
                "WHERE split=? AND task_id=? AND sample=? AND kind=? AND amount=? AND suffix=?",
                rows,
            )

    def samples(
        self, split: str, *, task_id: str | None = None, graded: bool | None = None
    ) -> Iterator[Sample]:
        """The samples of a split by task id, index and point; on request only the (un)graded ones."""
        query, values = "SELECT * FROM samples WHERE split = ?", [split]
        if task_id is not None:
            query, values = query + " AND task_id = ?", [*values, task_id]
        if graded is not None:
            query += f" AND status IS {'NOT ' if graded else ''}NULL"
        with self._transaction() as db:
            rows = db.execute(query, values).fetchall()
        return map(_sample, rows)

    def keys(self, split: str) -> set[tuple[Any, ...]]:
        """What is there already: `Sample.key` of every sample of a split."""
        with self._transaction() as db:
            return set(
                db.execute(
                    "SELECT split, task_id, sample, kind, amount, suffix FROM samples WHERE split = ?",
                    (split,),
                )
            )

    def count(self) -> int:
        with self._transaction() as db:
            return int(db.execute("SELECT count(*) FROM samples").fetchone()[0])

    def export(self, path: Path) -> None:
        """All samples as one Parquet file, complete or not at all."""
        names = [f for f in PARQUET_SCHEMA.names if f not in ("prompt", "reference", "family", "difficulty")]
        query = (
            f"SELECT {', '.join('samples.' + n for n in names)}, tasks.task FROM samples "
            "JOIN tasks USING (split, task_id)"
        )
        with self._transaction() as db:
            rows = db.execute(query).fetchall()
        tasks = {text: json.loads(text) for text in {row[-1] for row in rows}}
        columns: dict[str, list[Any]] = {n: [row[i] for row in rows] for i, n in enumerate(names)}
        columns["token_ids"] = [_array(b, np.int32) for b in columns["token_ids"]]
        columns["logprobs"] = [_array(b, np.float32) for b in columns["logprobs"]]
        columns["truncated"] = [bool(v) for v in columns["truncated"]]
        for field in ("prompt", "reference", "family", "difficulty"):
            columns[field] = [_readable(tasks[row[-1]][field]) for row in rows]
        table = pa.table([pa.array(columns[f.name], f.type) for f in PARQUET_SCHEMA], schema=PARQUET_SCHEMA)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with disk_errors(path):
                pq.write_table(table, temporary, compression="zstd")
                fsync_file(temporary)
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def close(self) -> None:
        """A grader still at work after an interrupt finds the store closed; the next call grades the rest."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> EvalStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise disk_error(self.path, error, full="full" in str(error)) from error
        except sqlite3.DatabaseError as error:
            raise ReasonerError(f"{self.path} is not a readable evaluation: {error}") from error


PARQUET_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("task_id", pa.string()),
        ("family", pa.string()),
        ("difficulty", pa.float64()),
        ("prompt", pa.string()),
        ("reference", pa.string()),
        ("sample", pa.int32()),
        ("kind", pa.string()),
        ("amount", pa.int32()),
        ("suffix", pa.string()),
        ("completion", pa.string()),
        ("said", pa.string()),
        ("status", pa.string()),
        ("reward", pa.float64()),
        ("extracted", pa.string()),
        ("detail", pa.string()),
        ("verify_seconds", pa.float64()),
        ("answer_key", pa.string()),
        ("candidates", pa.string()),
        ("candidates_correct", pa.string()),
        ("score", pa.float64()),
        ("tokens", pa.int32()),
        ("thinking_tokens", pa.int32()),
        ("prompt_tokens", pa.int32()),
        ("mean_logprob", pa.float64()),
        ("truncated", pa.bool_()),
        ("seconds", pa.float64()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
    ],
    metadata={"reasoner_eval_format": str(FORMAT_VERSION)},
)


def with_grades(samples: Sequence[Sample], grades: Sequence[Grade]) -> list[Sample]:
    return [replace(s, grade=g) for s, g in zip(samples, grades, strict=True)]


def _sample(row: Sequence[Any]) -> Sample:
    split, task_id, index, kind, amount, suffix = row[:6]
    completion, said, token_ids, logprobs, mean, prompt_tokens, tokens, thinking, truncated, seconds = row[
        6:16
    ]
    status, reward, extracted, detail, verify_seconds, key, candidates, right, score = row[16:25]
    grade = None
    if status is not None:
        verdict = Verdict(status, reward, extracted, detail, verify_seconds)
        grade = Grade(verdict, key, tuple(json.loads(candidates)), tuple(json.loads(right)), score)
    return Sample(
        split,
        task_id,
        index,
        Point(kind, amount, suffix),
        completion,
        said,
        _array(token_ids, np.int32),
        _array(logprobs, np.float32),
        float("nan") if mean is None else mean,
        prompt_tokens,
        tokens,
        thinking,
        bool(truncated),
        seconds,
        grade,
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _blob(values: np.ndarray | None, dtype: Any) -> bytes | None:
    return None if values is None else np.ascontiguousarray(values, dtype).tobytes()


def _array(blob: bytes | None, dtype: Any) -> np.ndarray | None:
    return None if blob is None else np.frombuffer(blob, dtype)


def _readable(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "…"
