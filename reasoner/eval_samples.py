"""What the evaluation page needs of the single samples: calibration, lengths, and the chains to read.

Reads the Parquet file of an evaluation: a row a sample with split, task_id, prompt, sample, completion,
status, tokens, and where known reference, answer_key, mean_logprob, score, truncated, and what was done with
the chain (kind, amount). Only whole chains (kind `chain`) count in the curves; cut and extended ones can be
read on the page. Unscored samples (error, bad_reference, masked) are shown and counted nowhere.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reasoner.errors import ReasonerError
from reasoner.scaling import ProblemSamples, closed_forms, powers_of_two, votes
from reasoner.types import UNSCORED

NEEDED = ("split", "task_id", "prompt", "sample", "completion", "status", "tokens")
OPTIONAL = ("reference", "answer_key", "mean_logprob", "score", "truncated", "kind", "amount")
CHARACTERS = 6_000  # of one completion on the page
PAGE_CHARACTERS = 8_000_000  # of all completions on the page

_DRAWS = 40  # random orders a problem of the weighted votes that are shown for single problems

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    """All samples of one task, in their order."""

    task_id: str
    prompt: str
    reference: str | None
    rows: tuple[Row, ...]

    @cached_property
    def chains(self) -> tuple[Row, ...]:
        """The whole chains that were scored."""
        return tuple(r for r in self.rows if r["kind"] == "chain" and r["status"] not in (*UNSCORED, None))

    @cached_property
    def samples(self) -> ProblemSamples:
        def column(name: str) -> np.ndarray:
            return np.array([math.nan if r[name] is None else r[name] for r in self.chains], float)

        return ProblemSamples(
            self.task_id,
            correct=np.array([r["status"] == "correct" for r in self.chains], bool),
            keys=tuple(r["answer_key"] for r in self.chains),
            tokens=np.array([r["tokens"] for r in self.chains], int),
            mean_logprob=column("mean_logprob"),
            scores=None if any(r["score"] is None for r in self.chains) else column("score"),
        )


def read_samples(path: Path) -> dict[str, list[Problem]]:
    """The problems of every split, in the order of the file. Raises ReasonerError for a file that cannot be
    read or lacks a column."""
    try:
        there = pq.read_schema(path).names
        if missing := [name for name in NEEDED if name not in there]:
            raise ReasonerError(f"{path} holds no samples of an evaluation: no column {', '.join(missing)}")
        table = pq.read_table(path, columns=[*NEEDED, *(name for name in OPTIONAL if name in there)])
    except (OSError, pa.ArrowException) as error:
        raise ReasonerError(f"cannot read {path}: {error}") from error
    blank = dict.fromkeys(OPTIONAL) | {"kind": "chain"}
    grouped: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in table.to_pylist():
        grouped[row["split"]][row["task_id"]].append(blank | row)
    return {
        split: [
            Problem(task_id, rows[0]["prompt"], rows[0]["reference"], tuple(sorted(rows, key=_order)))
            for task_id, rows in tasks.items()
        ]
        for split, tasks in grouped.items()
    }


def _order(row: Row) -> tuple[int, bool, str, int]:
    return row["sample"], row["kind"] != "chain", row["kind"], row["amount"] or 0


# ---------------------------------------------------------------------- calibration and lengths


@dataclass(frozen=True)
class Bin:
    """Problems whose winning answer has about the same share of the votes."""

    share: float  # mean vote share of the winners
    right: float  # how many of the winners are right, ties and disagreeing classes in expectation
    problems: int


def calibration(problems: Sequence[Problem], bins: int = 10) -> tuple[list[Bin], float | None]:
    """Share of the votes for the winning answer (unparsed samples count in the total) against how often that
    answer is right, and the expected calibration error: Σ problems·|share - right| / Σ problems."""
    found = []
    for problem in problems:
        ballot = problem.samples.ballot
        if len(ballot.sizes):
            top = ballot.sizes == ballot.sizes.max()
            found.append((ballot.sizes.max() / ballot.n, float(ballot.share[top].mean())))
    if not found:
        return [], None
    share, right = np.array(found).T
    which = np.minimum((share * bins).astype(int), bins - 1)
    cells = [
        Bin(float(share[which == b].mean()), float(right[which == b].mean()), int((which == b).sum()))
        for b in range(bins)
        if (which == b).any()
    ]
    return cells, sum(c.problems * abs(c.share - c.right) for c in cells) / len(found)


def length_histogram(problems: Sequence[Problem], bins: int = 24) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Edges in tokens (at most `bins` + 1, whole numbers) and, for right and other samples, the share of all
    samples in each bin."""
    rows = [r for p in problems for r in p.chains]
    if not rows:
        return np.zeros(0), {}
    tokens, right = np.array([r["tokens"] for r in rows]), np.array([r["status"] == "correct" for r in rows])
    width = max(1, math.ceil((tokens.max() + 1 - tokens.min()) / bins))
    edges = np.arange(tokens.min(), tokens.max() + width + 1, width)
    return edges, {
        name: np.histogram(tokens[chosen], edges)[0] / len(rows)
        for name, chosen in (("right", right), ("not right", ~right))
    }


# ---------------------------------------------------------------------- chains to read


def explorer(
    splits: Mapping[str, Sequence[Problem]], seed: int, ks: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Any]:
    """The problems and samples as the page's script reads them; `ks` are the sample counts of the curves
    (1, 2, 4 … when it has none).

    Equal completions of a problem are one entry with a count. When all of it is too long for a page, every
    problem keeps as many of its first samples as fit; `left_out` counts the others."""
    total = sum(len(_cut(row["completion"])) for ps in splits.values() for p in ps for row in p.rows)
    kept = min(1.0, PAGE_CHARACTERS / max(1, total))
    content: dict[str, Any] = {"splits": {}, "left_out": 0}
    for name, problems in splits.items():
        values = _values(problems, seed, (ks or {}).get(name) or ())
        entries = []
        for i, problem in enumerate(problems):
            rows = problem.rows[: max(1, int(kept * len(problem.rows)))]
            content["left_out"] += len(problem.rows) - len(rows)
            entries.append(
                {
                    "id": problem.task_id,
                    "prompt": problem.prompt,
                    "reference": problem.reference,
                    "n": problem.samples.n,
                    "c": problem.samples.c,
                    "values": {k: round(float(v[i]), 4) for k, v in values.items() if math.isfinite(v[i])},
                    "votes": _votes(problem),
                    "samples": list(_entries(rows)),
                }
            )
        content["splits"][name] = entries
    return content


def _values(problems: Sequence[Problem], seed: int, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """Every estimator of every problem; the curves of eval.json average them (weighted votes: more draws)."""
    samples = [p.samples for p in problems]
    most = max((s.n for s in samples), default=0)
    ks = [k for k in ks or powers_of_two(most) if k <= most]
    if not ks:
        return {}
    rng = np.random.default_rng(seed)
    values = closed_forms(samples, ks) | votes(samples, ks, rng)[0]
    if all(np.isfinite(s.mean_logprob).all() for s in samples):
        values |= votes(samples, ks, rng, weighted=True, draws=_DRAWS)[0]
    return {name: v for name, v in values.items() if not name.startswith("g_pass")}


def _votes(problem: Problem, most: int = 6) -> list[list[Any]]:
    """The most common answers: (key, votes, share of them right); "" stands for no answer."""
    right: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for row in problem.chains:
        key = row["answer_key"] or ""
        count[key] += 1
        right[key] += row["status"] == "correct"
    return [[key, n, right[key] / n] for key, n in count.most_common(most)]


def _entries(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Equal completions of the same kind as one entry; `first` is the index of the first such sample."""
    grouped: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        point = "" if row["kind"] == "chain" else f"{row['kind']} {row['amount']}"
        key = (row["completion"], row["status"], point)
        if key in grouped:
            grouped[key]["count"] += 1
        else:
            grouped[key] = {
                "text": _cut(row["completion"]),
                "status": row["status"],
                "key": row["answer_key"],
                "tokens": row["tokens"],
                "truncated": bool(row["truncated"]),
                "point": point,
                "first": row["sample"],
                "count": 1,
            }
    yield from grouped.values()


def _cut(text: str) -> str:
    if len(text) <= CHARACTERS:
        return text
    half = CHARACTERS // 2
    return f"{text[:half]}\n[… {len(text) - CHARACTERS} characters …]\n{text[-half:]}"
