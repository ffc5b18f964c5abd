"""The verifier on its own labelled corpus, side by side with `math-verify` from PyPI in the same run.

    python -m benchmarks.verifier [--math-verify PATH_TO_PYTHON] [--repeats N]

math-verify runs in an interpreter that has it (`pip install 'math-verify[antlr4_13_2]'` into an
environment of its own); without one, our half is measured alone and that is said. Both graders are
given the same cases in one process each, on one thread, the gold answer in a box for math-verify (its
better mode, by a wide margin), after a warm-up of the first cases. Runs alternate, because machines are
noisy. The corpus was written for this project, so the accuracies say how each does on *these* rules;
they are not an independent exam.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.figures import Figure

# The interpreter that has math-verify need not have anything of ours: imports of ours are made on use.
WARM_UP = 30
DEADLINE_S = 5.0
CHILD_S = 3600.0  # for everything that one interpreter has to verify
SCALING_LINES = 20_000


def cases() -> list[dict]:
    """All labelled cases with one reference, ordinary before adversarial."""
    from verifiers.corpora import NAMES, load_corpus

    return [
        {"corpus": name, "gold": case.gold, "pred": case.pred, "correct": case.correct}
        for name in NAMES
        for case in load_corpus(name)
        if isinstance(case.gold, str)
    ]


def ours() -> Callable[[str, str], bool]:
    from reasoner.types import Task
    from verifiers.math import MathVerifier

    verifier = MathVerifier()
    verifier.prepare()
    return lambda gold, pred: verifier.verify(pred, Task("", "", gold)).is_correct


def theirs() -> Callable[[str, str], bool]:
    from math_verify import parse, verify

    def grade(gold: str, pred: str) -> bool:
        boxed = gold if "\\boxed" in gold else f"\\boxed{{{gold}}}"
        wanted = parse(boxed, parsing_timeout=int(DEADLINE_S))
        given = parse(pred, parsing_timeout=int(DEADLINE_S))
        return bool(verify(wanted, given, timeout_seconds=int(DEADLINE_S)))

    return grade


def run(which: str, work: list[dict]) -> dict:
    """Verdicts and wall-clock seconds of every case, in one process, after a warm-up."""
    grade = ours() if which == "ours" else theirs()
    for case in work[:WARM_UP]:
        grade(case["gold"], case["pred"])
    verdicts, seconds = [], []
    for case in work:
        begun = time.perf_counter()
        try:
            verdicts.append(grade(case["gold"], case["pred"]))
        except Exception as error:  # a grader that raises has not accepted
            print(f"{which}: {type(error).__name__} on {case['pred'][:60]!r}", file=sys.stderr)
            verdicts.append(False)
        seconds.append(time.perf_counter() - begun)
    return {"verdicts": verdicts, "seconds": seconds}


def in_process(python: str, which: str, work: list[dict]) -> dict:
    """`run` in an interpreter of its own."""
    code = "import sys, json; from benchmarks.verifier import child; child()"
    root = Path(__file__).resolve().parents[1]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "-c", code, which],
        input=json.dumps(work),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=env,
        check=True,
        timeout=CHILD_S,
    )
    return json.loads(done.stdout.splitlines()[-1])


def child() -> None:
    """Entry point of the interpreters that `in_process` starts."""
    print(json.dumps(run(sys.argv[1], json.load(sys.stdin))))


def summary(work: list[dict], result: dict, corpus: str) -> dict:
    """Accuracy, mistakes both ways, speed and latency on one corpus."""
    rows = [
        (case["correct"], verdict, seconds)
        for case, verdict, seconds in zip(work, result["verdicts"], result["seconds"], strict=True)
        if case["corpus"] == corpus
    ]
    times = sorted(seconds for _, _, seconds in rows)
    return {
        "cases": len(rows),
        "accuracy": sum(want == got for want, got, _ in rows) / len(rows),
        "false_accepts": sum(got and not want for want, got, _ in rows),
        "wrong_cases": sum(not want for want, _, _ in rows),
        "false_rejects": sum(want and not got for want, got, _ in rows),
        "right_cases": sum(want for want, _, _ in rows),
        "cases_per_s": len(rows) / sum(times),
        "p50_ms": 1e3 * times[len(times) // 2],
        "p99_ms": 1e3 * times[int(0.99 * len(times))],
        "max_ms": 1e3 * times[-1],
    }


def table(results: dict[str, dict[str, dict]]) -> str:
    """Markdown, one line a grader and corpus."""
    lines = [
        "| corpus | grader | accuracy | false accepts | false rejects | cases/s | p50 ms | p99 ms | max ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for corpus in ("ordinary", "adversarial"):
        for grader, by_corpus in results.items():
            r = by_corpus[corpus]
            lines.append(
                f"| {corpus} | {grader} | {r['accuracy']:.1%} | {r['false_accepts']} of {r['wrong_cases']} | "
                f"{r['false_rejects']} of {r['right_cases']} | {r['cases_per_s']:.0f} | {r['p50_ms']:.2f} | "
                f"{r['p99_ms']:.1f} | {r['max_ms']:.0f} |"
            )
    return "\n".join(lines)


def find_math_verify(given: str | None) -> str | None:
    """An interpreter that has math-verify: the one given, this one, or None."""
    if given:
        path = shutil.which(given)
        if path is None:
            sys.exit(f"no such interpreter: {given}")
        return path
    return sys.executable if importlib.util.find_spec("math_verify") else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("MATH_VERIFY_PYTHON")
    parser.add_argument("--math-verify", default=default, help="a Python interpreter that has math-verify")
    parser.add_argument("--repeats", type=int, default=3, help="alternating runs of both (default 3)")
    args = parser.parse_args()
    from benchmarks.figures import Figure, report

    peer = find_math_verify(args.math_verify)
    work = cases()
    graders = {"reasoner": (sys.executable, "ours")}
    if peer:
        graders["math-verify"] = (peer, "theirs")
    else:
        print("math-verify is not installed: measuring ours alone (--math-verify PYTHON to compare)")
    runs: dict[str, list[dict]] = {name: [] for name in graders}
    for _ in range(args.repeats):
        for name, (python, which) in graders.items():
            runs[name].append(in_process(python, which, work))
    results = {
        name: {corpus: summary(work, _median_run(found), corpus) for corpus in ("ordinary", "adversarial")}
        for name, found in runs.items()
    }
    print(table(results))
    found = figures(work, runs, results)
    ratios = scaling(args.repeats)
    found.append(Figure("verifier_scaling", statistics.median(ratios), "ratio", ratios[0], ratios[-1]))
    report("verifier", found, {"results": results, "deadline_s": DEADLINE_S, "cores": os.cpu_count()})


def scaling(repeats: int, workers: int = 2) -> list[float]:
    """Wall-clock of `reasoner verify --workers 1` over that of `--workers N`, on a file of the ordinary cases
    many times over, start-up included; runs alternate."""
    from verifiers.corpora import load_corpus

    cases = load_corpus("ordinary")
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "answers.jsonl"
        with open(source, "w") as file:
            for number in range(SCALING_LINES):
                case = cases[number % len(cases)]
                gold = case.gold if isinstance(case.gold, str) else list(case.gold)
                file.write(json.dumps({"id": number, "gold": gold, "pred": case.pred}) + "\n")
        for _ in range(repeats):
            seconds = []
            for count in (1, workers):
                command = ["verify", str(source), "--workers", str(count), "--out", f"{folder}/out.jsonl"]
                begun = time.perf_counter()
                code = "from reasoner.cli import main; main()"
                subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True)
                seconds.append(time.perf_counter() - begun)
            ratios.append(seconds[0] / seconds[1])
    return sorted(ratios)


def _median_run(found: list[dict]) -> dict:
    """The verdicts of the first run with the median time of each case over the runs."""
    seconds = [statistics.median(times) for times in zip(*(r["seconds"] for r in found), strict=True)]
    return {"verdicts": found[0]["verdicts"], "seconds": seconds}


def figures(work: list[dict], runs: dict[str, list[dict]], results: dict) -> list[Figure]:
    """The contract's figures; the speed ratio is over the ordinary cases, its spread over the pairs."""
    from benchmarks.figures import Figure

    mine = results["reasoner"]
    found = [
        Figure("verifier_accuracy", mine["ordinary"]["accuracy"], "share"),
        Figure("verifier_p99_s", mine["ordinary"]["p99_ms"] / 1e3, "s"),
    ]
    if "math-verify" in runs:
        ordinary = [i for i, case in enumerate(work) if case["corpus"] == "ordinary"]

        def total(result: dict) -> float:
            return sum(result["seconds"][i] for i in ordinary)

        ratios = sorted(
            total(b) / total(a) for a, b in zip(runs["reasoner"], runs["math-verify"], strict=True)
        )
        middle = statistics.median(ratios)
        found.append(Figure("verifier_vs_math_verify_speed", middle, "ratio", ratios[0], ratios[-1]))
    return found


if __name__ == "__main__":
    main()
