"""How fast `reasoner view` answers on a run with 100,000 rollouts.

    python -m benchmarks.view [--rollouts 100000] [--tokens 200]

Records a synthetic run (`--keep DIR` keeps it), starts `reasoner view` on it and measures, over HTTP from
outside: from the first request to everything the first page asks for while the run is still being read; how
long reading takes; then every kind of filter, each repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa

from benchmarks.figures import Figure, report
from reasoner.rollout_files import SCHEMA, step_path, write_table

PER_STEP = 512
START_S = 60.0
GROUP = 16
FIRST_PAGE = ("/", "/view.css", "/view.js", "/api/state", "/api/curves")
FILTERS = (
    "",
    "step=100",
    "step=20..60&status=wrong",
    "family=sum&reward=0.5..",
    "tokens=150..&sort=-tokens",
    "text=no,",
    "text=nothing+holds+this",
    "text=31%3D&status=correct&step=50..&sort=-advantage",
    "sort=-advantage&page=100",
    "difficulty=2..3&truncated=0&version=10..",
)


def record(run: Path, rollouts: int, tokens: int, rng: np.random.Generator) -> None:
    """Files as training writes them; texts are random sums: they compress no better than real ones."""
    run.mkdir(parents=True)
    steps = -(-rollouts // PER_STEP)
    (run / "config.toml").write_text(f"steps = {steps}\n")
    lines = [{"step": s, "pass_rate": s / steps, "reward_mean": s / steps} for s in range(steps + 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in range(1, steps + 1):
        write_table(step_path(run, step), _table(step, tokens, rng))


def _table(step: int, tokens: int, rng: np.random.Generator) -> pa.Table:
    n = PER_STEP
    lengths = rng.integers(tokens // 2, 3 * tokens // 2, n)
    right = rng.random(n) < 0.5
    digits = rng.integers(0, 100, (n, tokens))
    texts = [
        ";".join(f"{a}+{b}={a + b}" for a, b in zip(row[::3], row[1::3], strict=False)) for row in digits
    ]
    groups = (step - 1) * (n // GROUP) + np.arange(n) // GROUP
    ids = [rng.integers(0, 250, 12 + length).astype(np.int32) for length in lengths]
    prompts = [f"{g}+{g % 97}-{g % 89}" for g in groups]
    columns = {
        "step": np.full(n, step, np.int32),
        "fate": ["trained"] * n,
        "position": np.arange(n, dtype=np.int32),
        "group_index": groups,
        "rollout": (np.arange(n) % GROUP).astype(np.int32),
        "task_id": [f"t{g}" for g in groups],
        "family": [("sum", "product", "chain")[g % 3] for g in groups],
        "difficulty": (groups % 4).astype(float),
        "prompt": prompts,
        "reference": [str(g) for g in groups],
        "completion": [
            text + ("no," if r else "") + r"\boxed{7}" for text, r in zip(texts, right, strict=True)
        ],
        "status": np.where(right, "correct", "wrong").tolist(),
        "reward": right.astype(float),
        "extracted": ["7"] * n,
        "detail": ["different integers"] * n,
        "terminated": [True] * n,
        "truncated": [False] * n,
        "advantage": rng.normal(size=n),
        "prompt_ids": [row[:12] for row in ids],
        "token_ids": ids,
        "action_mask": [np.arange(len(row)) >= 12 for row in ids],
        "behaviour_logprobs": [-rng.random(len(row)).astype(np.float32) for row in ids],
        "learner_logprobs": [-rng.random(len(row)).astype(np.float32) for row in ids],
        "policy_version": [np.where(np.arange(len(row)) >= 12, step - 1, -1).astype(np.int32) for row in ids],
        "task": [json.dumps({"id": f"t{g}"}) for g in groups],
        "sampling": ["{}"] * n,
    }
    arrays = [pa.array(columns.get(f.name, [None] * n), f.type) for f in SCHEMA]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def measure(run: Path, repeats: int) -> tuple[list[Figure], dict[str, list[float]]]:
    """Starts the server on `run` and asks it; ends it whatever happens."""
    command = [sys.executable, "-m", "reasoner.cli", "view", str(run), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            overdue = threading.Timer(START_S, server.kill)
            overdue.start()
            line = server.stdout.readline()
            overdue.cancel()
            if not line:
                raise RuntimeError(f"the view did not start within {START_S:.0f} s")
            address = line.split()[0]
            with httpx.Client(base_url=address, timeout=120) as client:
                return _ask(client, repeats)
        finally:
            server.terminate()


def _ask(client: httpx.Client, repeats: int) -> tuple[list[Figure], dict[str, list[float]]]:
    began = time.perf_counter()
    for path in FIRST_PAGE:
        client.get(path).raise_for_status()
    first_page = time.perf_counter() - began
    while (state := client.get("/api/state").raise_for_status().json())["steps"]["indexed"] < state["steps"][
        "files"
    ]:
        time.sleep(0.05)
    read = time.perf_counter() - began
    paths = [f"/api/rollouts?{query}" for query in FILTERS]
    paths += ["/api/rollout?group=700&rollout=3", "/api/group?group=700"]
    seconds: dict[str, list[float]] = {path: [] for path in paths}
    for _ in range(repeats):
        for path in paths:
            start = time.perf_counter()
            client.get(path).raise_for_status()
            seconds[path].append(time.perf_counter() - start)
    medians = [float(np.median(times)) for times in seconds.values()]
    everything = [t for times in seconds.values() for t in times]
    return [
        Figure("view_rollouts", state["rollouts"], "rollouts"),
        Figure("view_first_page_s", first_page, "s"),
        Figure("view_read_s", read, "s"),
        Figure("view_slowest_filter_s", max(medians), "s", min(everything), max(everything)),
    ], seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rollouts", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=200, help="mean length of a rollout")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="record the run here, or use the one that is there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = args.keep or Path(folder) / "run"
        if not run.exists():
            record(run, args.rollouts, args.tokens, np.random.default_rng(0))
        figures, seconds = measure(run, args.repeats)
    report("view", figures, {"seconds": seconds})


if __name__ == "__main__":
    main()
