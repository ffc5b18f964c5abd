"""What the view filters and searches: the light columns of every rollout, in a DuckDB file of its own.

A background thread copies them from the Parquet files, newest step first, and keeps up with a run that goes
on: new files are added, files a resume has taken away are removed, and rollouts that still wait in the log
(`journal.sqlite`) are there with step null. The per-token arrays stay where they are and are read a rollout
at a time. The file is temporary: DuckDB compresses it, so that a run with long chains does not have to fit
into memory. Nothing is written into the run directory.
"""

from __future__ import annotations

import json
import logging
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from reasoner.errors import ReasonerError, UsageError
from reasoner.journal import read_step
from reasoner.rollout_files import read_table, step_path, step_paths
from reasoner.view.filters import PAGE_ROWS, Filter

log = logging.getLogger(__name__)

BATCH_FILES = 16
REFRESH_S = 1.0
CARDS = 256  # rollouts of a group or a task on a page
SHOWN_CHARS = 160  # of prompt and completion in a list
_LIGHT = """
    step, arrived_step, fate, position, group_index, rollout, task_id, family, difficulty, prompt, reference,
    completion, status, reward, extracted, detail, truncated, advantage,
    list_sum(action_mask::TINYINT[])::INTEGER AS tokens,
    list_min(list_filter(policy_version, lambda v: v >= 0)) AS version,
    lower(prompt || chr(10) || completion) AS searched
"""
_ROW = f"""
    step, group_index, rollout, task_id, family, difficulty, left(prompt, {SHOWN_CHARS}) AS prompt,
    right(completion, {SHOWN_CHARS}) AS completion, status, reward, extracted, truncated, advantage, tokens,
    version, fate
"""

Stamp = tuple[int, int]  # (modification time in ns, bytes)


class RolloutIndex:
    """The searchable rollouts of one run. Thread-safe; `close` stops the thread and removes the file."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = Path(run_dir)
        self.problems: dict[str, str] = {}  # files that cannot be read, and why
        self._folder = tempfile.TemporaryDirectory(prefix="reasoner-view-")
        self._db = duckdb.connect(str(Path(self._folder.name) / "index.duckdb"), config={"threads": 2})
        table = read_step(self.run_dir, None).slice(0, 0)
        self._db.register("empty", table)
        self._db.execute(f"CREATE TABLE rollouts AS SELECT {_LIGHT} FROM empty")
        self._db.execute("CREATE TABLE flags (group_index BIGINT, rollout INTEGER, name VARCHAR)")
        self._db.unregister("empty")
        self._seen: dict[Path, Stamp] = {}
        self._steps: dict[Path, int] = {}
        self._waiting: tuple[Stamp | None, ...] = ()
        self._audit: Stamp | None = None
        self._version = 0
        self._refreshing = threading.Lock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="view-index", daemon=True)
        self._thread.start()

    def poke(self) -> None:
        """Somebody is looking: bring the index up to date soon."""
        self._wake.set()

    def refresh(self) -> None:
        """Brings the index up to date, newest steps first; queries go on meanwhile."""
        with self._refreshing:
            self._refresh()

    def _refresh(self) -> None:
        self._read_waiting()
        self._read_flags()
        there = {
            path: (stamp, step) for step, path in step_paths(self.run_dir).items() if (stamp := _stamp(path))
        }
        for path in [p for p in self._seen if p not in there]:
            self._replace([], [self._steps.pop(path)])
            del self._seen[path]
            self.problems.pop(path.name, None)
        changed = [(path, *known) for path, known in there.items() if self._seen.get(path) != known[0]]
        changed.sort(key=lambda item: -item[2])
        size = 1  # the newest step at once, then larger bites
        while changed and not self._stop.is_set():
            self._load(changed[:size])
            changed, size = changed[size:], BATCH_FILES

    def _load(self, files: list[tuple[Path, Stamp, int]]) -> None:
        try:
            self._replace([str(path) for path, _, _ in files], [step for _, _, step in files])
            for path, _, _ in files:
                self.problems.pop(path.name, None)
        except duckdb.Error as error:
            if len(files) > 1:  # one bad file must not hide its neighbours
                for file in files:
                    self._load([file])
                return
            self.problems[files[0][0].name] = str(error).splitlines()[0]
        for path, stamp, step in files:
            self._seen[path], self._steps[path] = stamp, step

    def _replace(self, files: list[str], steps: list[int]) -> None:
        with self._db.cursor() as db:
            db.execute("BEGIN")
            try:
                db.execute("DELETE FROM rollouts WHERE step IN (SELECT unnest(?))", [steps])
                if files:
                    db.execute(f"INSERT INTO rollouts SELECT {_LIGHT} FROM read_parquet(?)", [files])
                db.execute("COMMIT")
            except duckdb.Error:
                db.execute("ROLLBACK")
                raise
        self._version += 1

    def _read_waiting(self) -> None:
        """Rollouts that no step has used yet, from the log."""
        log_path = self.run_dir / "rollouts" / "journal.sqlite"
        stamps = tuple(_stamp(p) for p in (log_path, log_path.with_name("journal.sqlite-wal")))
        if stamps == self._waiting:
            return
        try:
            table = read_step(self.run_dir, None)
            self.problems.pop("journal.sqlite", None)
        except ReasonerError as error:
            self.problems["journal.sqlite"] = str(error)
            return
        with self._db.cursor() as db:
            db.register("waiting", table)
            db.execute("BEGIN")
            db.execute("DELETE FROM rollouts WHERE step IS NULL")
            db.execute(f"INSERT INTO rollouts SELECT {_LIGHT} FROM waiting")
            db.execute("COMMIT")
        self._waiting = stamps
        self._version += 1

    def _read_flags(self) -> None:
        """The rollouts that `reasoner audit` has flagged."""
        stamp = _stamp(self.run_dir / "audit.json")
        if stamp == self._audit:
            return
        rows = []
        try:
            found = read_audit(self.run_dir) or {"findings": []}
            rows = [(g, r, f["check"]) for f in found["findings"] for g, r in f["flagged"]]
            self.problems.pop("audit.json", None)
        except UsageError as error:
            self.problems["audit.json"] = str(error)
        table = pa.table(
            {name: [row[i] for row in rows] for i, name in enumerate(("group_index", "rollout", "name"))}
        )
        with self._db.cursor() as db:
            db.execute("DELETE FROM flags")
            if rows:
                db.register("found", table)
                db.execute("INSERT INTO flags SELECT group_index, rollout, name FROM found")
        self._audit = stamp
        self._version += 1

    def state(self) -> dict[str, Any]:
        """How far the index is, and what can be chosen from."""
        total = len(step_paths(self.run_dir))
        with self._db.cursor() as db:

            def distinct(column: str) -> list[str]:
                query = f"SELECT DISTINCT {column} FROM rollouts WHERE {column} IS NOT NULL ORDER BY 1"
                return [value for (value,) in db.execute(query).fetchall()]

            ((counted, first, last),) = db.execute(
                "SELECT count(*), min(step), max(step) FROM rollouts"
            ).fetchall()
            families, fates = distinct("family"), distinct("fate")
            flags = db.execute("SELECT name, count(*) FROM flags GROUP BY 1 ORDER BY 1").fetchall()
        return {
            "version": self._version,
            "rollouts": counted,
            "steps": {"indexed": len(self._seen), "files": total, "first": first, "last": last},
            "families": families,
            "fates": fates,
            "flags": dict(flags),
            "problems": dict(self.problems),
        }

    def find(self, wanted: Filter) -> dict[str, Any]:
        """A page of the rollouts `wanted`, and of all of them: how many, mean reward and length, verdicts."""
        with self._db.cursor() as db:
            db.execute(
                "CREATE OR REPLACE TEMP TABLE hits AS "
                "SELECT rowid AS hit, coalesce(status, 'unverified') AS verdict, reward AS r, tokens AS t "
                f"FROM rollouts WHERE {wanted.where}",
                wanted.values,
            )
            ((total, reward, tokens),) = db.execute("SELECT count(*), avg(r), avg(t) FROM hits").fetchall()
            statuses = db.execute("SELECT verdict, count(*) FROM hits GROUP BY 1").fetchall()
            page = f"SELECT hit FROM hits JOIN rollouts ON rollouts.rowid = hit ORDER BY {wanted.order}"
            rows = _dicts(
                db.execute(
                    f"SELECT {_ROW} FROM rollouts WHERE rowid IN ({page} LIMIT {PAGE_ROWS} OFFSET ?) "
                    f"ORDER BY {wanted.order}",
                    [wanted.page * PAGE_ROWS],
                )
            )
        return {
            "total": total,
            "reward_mean": reward,
            "tokens_mean": tokens,
            "statuses": dict(statuses),
            "page": wanted.page,
            "pages": max(1, -(-total // PAGE_ROWS)),
            "rows": rows,
        }

    def rollouts(self, where: str, value: Any, page: int = 0) -> dict[str, Any]:
        """A page of the rollouts of one group (`group_index`) or one task (`task_id`), by step, group and
        place, with the audit's flags; and of all of them, by step: how many, how many right, mean length."""
        chosen = f"FROM rollouts r WHERE {where} = ?"
        with self._db.cursor() as db:
            steps = _dicts(
                db.execute(
                    "SELECT step, count(*) AS rollouts, count(*) FILTER (status = 'correct') AS \"right\", "
                    f"avg(tokens) AS tokens {chosen} GROUP BY step ORDER BY step NULLS LAST",
                    [value],
                )
            )
            rows = _dicts(
                db.execute(
                    "SELECT r.* EXCLUDE (searched), (SELECT list(name ORDER BY name) FROM flags f "
                    f"WHERE f.group_index = r.group_index AND f.rollout = r.rollout) AS flags {chosen} "
                    f"ORDER BY step NULLS LAST, group_index, rollout LIMIT {CARDS} OFFSET ?",
                    [value, page * CARDS],
                )
            )
        pages = max(1, -(-sum(row["rollouts"] for row in steps) // CARDS))
        return {"rollouts": rows, "steps": steps, "page": page, "pages": pages}

    def mates(self, group_index: int) -> list[dict[str, Any]]:
        """All rollouts of a group in short, by place."""
        with self._db.cursor() as db:
            return _dicts(
                db.execute(
                    "SELECT rollout, status, reward, tokens, version, (SELECT list(name ORDER BY name) FROM "
                    "flags f WHERE f.group_index = r.group_index AND f.rollout = r.rollout) AS flags "
                    "FROM rollouts r WHERE group_index = ? ORDER BY rollout",
                    [group_index],
                )
            )

    def full(self, group_index: int, rollout: int) -> dict[str, Any] | None:
        """Every column of one rollout, per-token arrays included; None where there is no such rollout."""
        with self._db.cursor() as db:
            found = db.execute(
                "SELECT step FROM rollouts WHERE group_index = ? LIMIT 1", [group_index]
            ).fetchone()
        if found is None:
            return None
        (step,) = found
        path = step_path(self.run_dir, step) if step is not None else None
        table = read_table(path) if path and path.exists() else read_step(self.run_dir, step)
        chosen = pc.and_(pc.equal(table["group_index"], group_index), pc.equal(table["rollout"], rollout))
        rows = table.filter(chosen).to_pylist()
        return rows[0] if rows else None

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                self.refresh()
                self.problems.pop("rollouts", None)
            except (
                duckdb.Error,
                ReasonerError,
                OSError,
            ) as error:  # shown on the page; the next look may succeed
                if self._stop.is_set():
                    return
                log.warning("the view could not read %s: %s", self.run_dir, error)
                self.problems["rollouts"] = str(error).splitlines()[0]
            time.sleep(REFRESH_S)
            self._wake.wait()
            self._wake.clear()

    def close(self) -> None:
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout=10)
        self._db.close()
        self._folder.cleanup()

    def __enter__(self) -> RolloutIndex:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_audit(run_dir: Path) -> dict[str, Any] | None:
    """What `reasoner audit` left, None before it ran. UsageError where that is not what it writes."""
    path = run_dir / "audit.json"
    try:
        found = json.loads(path.read_bytes())
        flagged = [(finding["check"], finding["flagged"]) for finding in found["findings"]]
        [(check, group, rollout) for check, rollouts in flagged for group, rollout in rollouts]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"cannot be read: {error!r}; run `reasoner audit {run_dir}` again") from None
    return found


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size


def _dicts(result: Any) -> list[dict[str, Any]]:
    names = [column[0] for column in result.description]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
