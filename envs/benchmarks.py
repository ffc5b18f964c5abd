"""Standard sets of problems by name: GSM8K, MATH-500, AIME 2024 and 2025, AMC 2023.

`gsm8k` is fetched with Hugging Face `datasets`; `gsm8k:FILE` reads a local JSONL or Parquet file in the same
schema. They are for evaluation only: nothing here is a training stream. Prompts ask for the answer in a box;
the math verifier extracts it (docs/evaluation.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.tasks import SingleTurnTasks, not_for_training, read_rows
from reasoner.errors import UsageError
from reasoner.types import Task

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """Where a set is on the hub, and how a row becomes a task."""

    repository: str
    split: str
    question: str  # the column of the problem
    answer: Callable[[Row], str]
    subset: str | None = None
    licence: str = "not stated"  # on the hub


def _after_hashes(row: Row) -> str:
    """GSM8K ends its worked solutions with `#### 1,234`."""
    return str(row["answer"]).rpartition("####")[2].strip().replace(",", "")


def _plain(row: Row) -> str:
    return str(row["answer"]).strip()


SETS = {
    "gsm8k": Benchmark("openai/gsm8k", "test", "question", _after_hashes, "main", "MIT"),
    "math500": Benchmark("HuggingFaceH4/MATH-500", "test", "problem", _plain),
    "aime24": Benchmark("HuggingFaceH4/aime_2024", "train", "problem", _plain),
    "aime25": Benchmark("math-ai/aime25", "test", "problem", _plain),
    "amc23": Benchmark("math-ai/amc23", "test", "question", _plain),
}


@dataclass(frozen=True)
class BenchmarkTasks(SingleTurnTasks):
    """One standard set; its only split has its name."""

    name: str
    tasks: tuple[Task, ...]
    finite: bool = True
    evaluation_only: bool = True
    base_template: str = "Problem:\n{prompt}\n\nSolution:\n"
    chat_template: str = "{prompt}\n\nReason step by step, and put the final answer in \\boxed{{}}."

    @property
    def eval_splits(self) -> tuple[str, ...]:
        return (self.name,)

    def train(self, index: int) -> Task:
        raise not_for_training(self.name)

    def split(self, name: str, n: int) -> list[Task]:
        return list(self.tasks[:n]) if name == self.name else []


def load_benchmark(text: str) -> BenchmarkTasks:
    """`NAME` or `NAME:FILE`. UsageError when it cannot be had, or a row is not of the set's schema."""
    name, _, file = text.partition(":")
    benchmark = SETS[name]
    rows = read_rows(Path(file)) if file else enumerate(_from_hub(name, benchmark), 1)
    where = file or benchmark.repository
    tasks = tuple(_task(name, benchmark, where, number, row) for number, row in rows)
    if not tasks:
        raise UsageError(f"{where} holds no tasks")
    return BenchmarkTasks(name, tasks)


def _from_hub(name: str, benchmark: Benchmark) -> Iterable[Row]:
    try:
        import datasets
    except ImportError:
        raise UsageError(
            f"--tasks {name} needs Hugging Face datasets: pip install 'reasoner[tasks]', or give a local "
            f"file: {name}:FILE.jsonl"
        ) from None
    try:
        return datasets.load_dataset(benchmark.repository, benchmark.subset, split=benchmark.split)
    except Exception as error:  # network, hub, cache, schema: a library's boundary with many kinds of failure
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"{benchmark.repository} cannot be fetched ({type(error).__name__}: {reason}); without a network "
            f"give a local file of the same schema: --tasks {name}:FILE.jsonl (or .parquet)"
        ) from None


def _task(name: str, benchmark: Benchmark, where: str, number: int, row: Row) -> Task:
    if not isinstance(row, Mapping) or not str(row.get(benchmark.question) or "").strip():
        raise UsageError(f"{where}, row {number}: no {benchmark.question!r}: a row of {name} has one")
    if not str(row.get("answer") if row.get("answer") is not None else "").strip():
        raise UsageError(f"{where}, row {number}: no 'answer': a row of {name} has one")
    reference = benchmark.answer(row)
    if not reference:
        raise UsageError(f"{where}, row {number}: the answer {str(row['answer'])[-60:]!r} has no final value")
    family = str(row.get("subject") or name)
    level = row.get("level")
    difficulty = float(level) if isinstance(level, int | float) else 0.0
    return Task(f"{name}/{number}", str(row[benchmark.question]).strip(), reference, family, difficulty)
