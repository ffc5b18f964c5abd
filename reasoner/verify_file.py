"""Verdicts for a file of answers: the function behind `reasoner verify`.

Input lines are `{"id", "gold", "pred"}`; `gold` is a string, a number, or a list of them of which any one is
right. Each input line gets exactly one output line, in input order: `{"id", "line", "status", "reward",
"extracted", "detail", "seconds"}`. A line that cannot be read is answered with `error`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from reasoner.errors import UsageError
from reasoner.types import Task, Verdict
from verifiers.base import Verifier
from verifiers.pool import VerifierPool

FIRST_CHUNK, LAST_CHUNK = 16, 256  # lines sent to a worker at a time, growing along the file
CHUNK_CHARS = 1 << 22
CHUNKS_IN_FLIGHT = 4  # a worker


class LineError(ValueError):
    """An input line that cannot be verified; `id` is what could be read of it."""

    def __init__(self, message: str, id: Any = None) -> None:
        super().__init__(message)
        self.id = id


@dataclass(frozen=True)
class Line:
    """One readable input line."""

    id: Any
    completion: str
    task: Task


def read_line(raw: bytes, number: int) -> Line:
    """Raises `LineError` unless `raw` is an object with `id`, `gold` and `pred` of sensible types."""
    try:
        fields = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise LineError(f"not UTF-8: {error}") from error
    except (ValueError, RecursionError) as error:
        raise LineError(f"not JSON: {str(error)[:200]}") from error
    if not isinstance(fields, dict):
        raise LineError(f"expected a JSON object with id, gold and pred, got {type(fields).__name__}")
    id = fields.get("id")
    if not (id is None or isinstance(id, str) or _is_number(id)):
        raise LineError(f"id must be a string or a finite number, got {str(id)[:80]}")
    missing = [name for name in ("id", "gold", "pred") if name not in fields]
    if missing:
        raise LineError(f"missing field: {', '.join(missing)}", id)
    gold, pred = fields["gold"], fields["pred"]
    golds = gold if isinstance(gold, list) else [gold]
    if not golds or not all(_is_text(g) for g in golds):
        raise LineError("gold must be a string, a number, or a list of them", id)
    if not _is_text(pred):
        raise LineError(f"pred must be a string, got {type(pred).__name__}", id)
    references = tuple(str(g) for g in golds)
    prompt = fields["prompt"] if isinstance(fields.get("prompt"), str) else ""
    task = Task(str(number), prompt, references if isinstance(gold, list) else references[0])
    return Line(id, str(pred), task)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (_is_number(value) and not isinstance(value, bool))


def _is_number(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def verify_file(
    path: str | Path,
    verifier: str | Callable[..., Any] | Verifier = "math",
    out: str | Path | None = None,
    workers: int = 1,
    timeout_s: float | None = None,
    explain: bool = False,
) -> Counter[str]:
    """Write one verdict line to `out` (None: standard output) for each line of the JSONL file `path` ("-":
    standard input); returns how many lines got which status. With `explain`, each line says in `explain`
    what was extracted, how it was read and which rule decided, where the verifier can say so.

    Raises `UsageError` for a file or verifier that cannot be used, before anything is verified.
    """
    counts: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        if out is not None and os.path.exists(out) and os.path.exists(path) and os.path.samefile(path, out):
            raise UsageError(f"--out would overwrite the input {path}")
        lines = _open_input(path, stack)
        pool = stack.enter_context(VerifierPool(verifier, workers, timeout_s))
        if explain and not hasattr(pool.verifier, "explain"):
            raise UsageError(f"verifier {pool.verifier.name!r} cannot explain its verdicts")
        sink = _open_output(out, stack)
        for record, verdict in _verdicts(lines, pool, workers, explain):
            counts[verdict.status] += 1
            record |= {
                "status": verdict.status,
                "reward": verdict.reward,
                "extracted": verdict.extracted,
                "detail": verdict.detail,
                "seconds": round(verdict.seconds, 6),
            }
            if explain:
                record["detail"], _, record["explain"] = verdict.detail.partition("\n\n")
            sink.write(json.dumps(record) + "\n")
        sink.flush()
    return counts


def _open_input(path: str | Path, stack: contextlib.ExitStack) -> Iterator[bytes]:
    if str(path) == "-":
        return iter(sys.stdin.buffer)
    try:
        return iter(stack.enter_context(open(path, "rb")))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def _open_output(out: str | Path | None, stack: contextlib.ExitStack) -> IO[str]:
    if out is None or str(out) == "-":
        return sys.stdout
    try:
        return stack.enter_context(open(out, "w", encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}") from error


def _chunks(lines: Iterator[bytes]) -> Iterator[list[tuple[int, Line | LineError]]]:
    chunk: list[tuple[int, Line | LineError]] = []
    size = 0
    for number, raw in enumerate(lines, 1):
        try:
            line: Line | LineError = read_line(raw, number)
        except LineError as error:
            line = error
        chunk.append((number, line))
        size += len(raw)
        if len(chunk) >= min(LAST_CHUNK, FIRST_CHUNK + number // 16) or size >= CHUNK_CHARS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _verdicts(
    lines: Iterator[bytes], pool: VerifierPool, workers: int, explain: bool
) -> Iterator[tuple[dict[str, Any], Verdict]]:
    """(record with id and line, verdict) of every line, in order, with a bounded number under way."""
    flying: deque[tuple[list[tuple[int, Line | LineError]], Future[list[Verdict]]]] = deque()

    def land() -> Iterator[tuple[dict[str, Any], Verdict]]:
        chunk, future = flying.popleft()
        verdicts = iter(future.result())
        for number, line in chunk:
            if isinstance(line, LineError):
                yield {"id": line.id, "line": number}, Verdict.error(f"line {number}: {line}")
            else:
                yield {"id": line.id, "line": number}, next(verdicts)

    for chunk in _chunks(lines):
        pairs = [(line.completion, line.task) for _, line in chunk if isinstance(line, Line)]
        flying.append((chunk, pool.submit_pairs(pairs, explain=explain)))
        while len(flying) > workers * CHUNKS_IN_FLIGHT or (flying and flying[0][1].done()):
            yield from land()
    while flying:
        yield from land()
