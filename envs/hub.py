"""Hugging Face data sets as tasks: `hf:gsm8k`, `hf:OWNER/NAME(prompt=question, reference=answer)`.

The name is one of `PRESETS`, a data set on the hub, or a local directory or file (.jsonl, .parquet). Options
map columns to `prompt`, `reference`, `family`, `difficulty` and `id`, and choose `subset`, `split` (to train
on) and `held_out` (to evaluate on; without one, rows are held out by a stable hash of their prompts). Of a
reference that is a worked solution, the final answer is kept: what stands after `####`, or in the last box.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from envs.specs import Spec, check_options, nearest
from envs.tasks import USUAL, FileTasks, obvious_column, read_rows
from reasoner.errors import UsageError
from reasoner.types import Task
from verifiers.boxes import find_boxes

log = logging.getLogger(__name__)

COLUMNS = ("prompt", "reference", "family", "difficulty", "id")
OPTIONS = (*COLUMNS, "subset", "split", "held_out")
HELD_OUT_ONE_IN = 32
_HELD_OUT_LEAST = 8  # but at most a quarter of the set
_SHOWN_SAMPLE = 1000  # rows whose columns are looked at
_NUMBER = re.compile(r"(?:(?<!\w)-)?(?:\d+(?:\.\d+)?|\.\d+)")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Preset:
    """A data set on the hub, and an example of its problems. Sizes and licences are as the hub states."""

    path: str
    options: Mapping[str, str] = field(default_factory=dict)
    size: str = ""
    licence: str = ""
    example: str = ""


PRESETS = {
    "gsm8k": Preset(
        "openai/gsm8k",
        {"subset": "main", "prompt": "question", "reference": "answer", "held_out": "test"},
        "7,473",
        "MIT",
        "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
        "How many clips did Natalia sell altogether in April and May?  →  72",
    ),
    "math": Preset(
        "qwedsacf/competition_math",
        {"prompt": "problem", "reference": "solution", "family": "type", "difficulty": "level"},
        "12,500",
        "MIT",
        r"Let \[f(x) = \left\{ \begin{array}{cl} ax+3, &\text{ if }x>2, "
        r"\\ x-5 &\text{ if } -2 \le x \le 2, \\ 2x-b &\text{ if } x <-2. \end{array} \right.\] "
        r"Find $a+b$ if the piecewise function is continuous …  →  0",
    ),
    "deepmath": Preset(
        "zwhe99/DeepMath-103K",
        {"prompt": "question", "reference": "final_answer", "difficulty": "difficulty"},
        "103,022",
        "MIT",
        r"Evaluate the limit: \[ \lim_{x \to \infty} \sqrt{x} "
        r"\left( \sqrt[3]{x+1} - \sqrt[3]{x-1} \right) \]  →  0",
    ),
}


def from_spec(spec: Spec, seed: int) -> FileTasks:
    """The source of `hf:NAME(prompt=COLUMN, reference=COLUMN, …)`.

    UsageError when it cannot be fetched or read, and for a missing column, naming the columns there are."""
    check_options(spec, OPTIONS)
    name = spec.head.partition(":")[2]
    preset = PRESETS.get(name)
    options = {**(preset.options if preset else {}), **spec.options}
    path = preset.path if preset else name
    if not path:
        raise UsageError(f"hf: needs a name: hf:{', hf:'.join(PRESETS)}, or hf:OWNER/NAME(prompt=COLUMN, …)")
    training = _tasks(
        _rows(path, options.get("subset"), options.get("split", "train")), options, path, "train"
    )
    if "held_out" in options:
        held_rows = _rows(path, options.get("subset"), options["held_out"])
        held = _tasks(held_rows, options, path, options["held_out"])
    else:
        line = _held_out_below(training)
        held = [task for task in training if _hash(task) < line]
        training = [task for task in training if _hash(task) >= line]
    return FileTasks(
        f"hf:{name}",
        tuple(training),
        {"held_out": tuple(held)},
        seed,
        base_template=_BASE,
        chat_template=_CHAT,
    )


_BASE = "Problem:\n{prompt}\n\nSolution:\n"
_CHAT = "{prompt}\n\nReason step by step, and put the final answer in \\boxed{{}}."


def _rows(path: str, subset: str | None, split: str) -> Iterable[Row]:
    """The rows of a local file, or of a split of a directory or of a data set on the hub."""
    if os.path.isfile(path) or path.endswith((".jsonl", ".parquet")):
        return [row for _, row in read_rows(Path(path))]
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise UsageError(
            f"hf:{path} needs Hugging Face datasets: pip install 'reasoner[tasks]', or give a local file: "
            "hf:FILE.parquet(prompt=COLUMN, reference=COLUMN)"
        ) from None
    try:
        if (Path(path) / "dataset_dict.json").is_file():
            return datasets.load_from_disk(path)[split]
        if (Path(path) / "dataset_info.json").is_file():
            return datasets.load_from_disk(path)
        return datasets.load_dataset(path, subset, split=split)
    except Exception as error:  # network, hub, cache, schema: a library's boundary with many kinds of failure
        reason = next(iter(str(error).strip().splitlines()), "")[:200]
        raise UsageError(
            f"hf:{path}: its {split} split cannot be had ({type(error).__name__}: {reason}); without a "
            "network give a local file: hf:FILE.parquet(prompt=COLUMN, reference=COLUMN)"
        ) from None


def _tasks(rows: Iterable[Row], options: Mapping[str, str], path: str, split: str) -> list[Task]:
    rows = rows if isinstance(rows, Sequence) or hasattr(rows, "column_names") else list(rows)
    columns = _columns(rows, path)
    chosen = {name: options.get(name, name) for name in COLUMNS}
    needed = [name for name in COLUMNS if name in options or name in ("prompt", "reference")]
    if missing := [name for name in needed if chosen[name] not in columns]:
        free = [c for c in columns if c not in [chosen[n] for n in needed]]
        absent = " and ".join(f"{chosen[n]!r} for {n}{nearest(chosen[n], free)}" for n in missing)
        right = {**options, **{n: obvious_column(n, free) if n in USUAL else "COLUMN" for n in missing}}
        raise UsageError(
            f"hf:{path} has no column {absent} (it has {', '.join(columns)}). "
            f"Write hf:{path}({', '.join(f'{name}={column}' for name, column in right.items())})"
        )
    tasks = []
    for number, row in enumerate(rows):
        prompt, references = row.get(chosen["prompt"]), _references(row.get(chosen["reference"]))
        if not isinstance(prompt, str) or not prompt.strip() or not references:
            continue
        family = str(row.get(chosen["family"]) or path)
        difficulty = _number(row.get(chosen["difficulty"]))
        task_id = str(row.get(chosen["id"]) or number)
        tasks.append(Task(f"{path}/{split}/{task_id}", prompt.strip(), references, family, difficulty))
    if not tasks:
        raise UsageError(f"hf:{path}: no row of {split} has a text in {chosen['prompt']!r} and an answer")
    if len(tasks) < len(rows):  # type: ignore[arg-type]
        log.warning("hf:%s: %d of %d rows of %s have no prompt or no answer and are left out",
                    path, len(rows) - len(tasks), len(rows), split)  # type: ignore[arg-type]  # fmt: skip
    return tasks


def _columns(rows: Any, path: str) -> list[str]:
    if hasattr(rows, "column_names"):
        return list(rows.column_names)
    for row in islice(rows, _SHOWN_SAMPLE):
        if not isinstance(row, Mapping):
            raise UsageError(f"hf:{path}: a row is {row!r:.60}, not an object with columns")
    return list(dict.fromkeys(name for row in islice(rows, _SHOWN_SAMPLE) for name in row))


def _references(given: Any) -> str | tuple[str, ...]:
    """The final answer or answers, empty when there is none."""
    if isinstance(given, (list, tuple)):
        return tuple(answer for answer in map(_final, given) if answer)
    return _final(given)


def _final(given: Any) -> str:
    """A worked solution's final answer; any other answer as it is."""
    text = "" if given is None or isinstance(given, bool) else str(given).strip()
    if "####" in text:
        return text.rpartition("####")[2].strip()
    boxes = find_boxes(text)
    return boxes[-1].content.strip() if boxes else text


def _number(given: Any) -> float:
    """A difficulty: a number, or the first number in a text such as `Level 3`."""
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return float(given) if math.isfinite(given) else 0.0
    found = _NUMBER.search(str(given or "").replace(",", ""))
    return float(found[0]) if found else 0.0


def _held_out_below(tasks: Sequence[Task]) -> int:
    """Tasks whose prompt has a hash below this are held out: one in `HELD_OUT_ONE_IN`, and of a
    small one, where that would be fewer, `_HELD_OUT_LEAST`."""
    hashes = sorted({_hash(task) for task in tasks})
    least = min(_HELD_OUT_LEAST, len(hashes) // 4)
    return min(max(2**64 // HELD_OUT_ONE_IN, hashes[least]), hashes[-1])


def _hash(task: Task) -> int:
    digest = blake2b(str(task.prompt).encode(), digest_size=8, person=b"reasoner-hf").digest()
    return int.from_bytes(digest, "big")
