"""How a benchmark reports: one line a figure, and the same as JSON under benchmarks/results/."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Figure:
    """`low` and `high` are the spread over the repetitions, where there are any."""

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None

    def line(self) -> str:
        spread = "" if self.low is None or self.high is None else f" {self.low:.4g} {self.high:.4g}"
        return f"figure {self.name} {self.value:.4g} {self.unit}{spread}"


def ratio(name: str, ours: Sequence[float], theirs: Sequence[float]) -> Figure:
    """The median of ratios of interleaved pairs, with their smallest and largest."""
    ratios = np.asarray(ours, float) / np.asarray(theirs, float)
    return Figure(name, float(np.median(ratios)), "ratio", float(ratios.min()), float(ratios.max()))


def report(benchmark: str, figures: Sequence[Figure], details: dict | None = None) -> None:
    """Print the figures and write `benchmarks/results/BENCHMARK.json`."""
    for figure in figures:
        print(figure.line(), flush=True)
    RESULTS.mkdir(exist_ok=True)
    content = {
        "benchmark": benchmark,
        "machine": {"cpu": platform.processor() or platform.machine(), "python": platform.python_version()},
        "figures": [asdict(figure) for figure in figures],
        "details": details or {},
    }
    (RESULTS / f"{benchmark}.json").write_text(json.dumps(content, indent=2) + "\n")
