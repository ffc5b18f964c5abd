"""One update of TRL's GRPOTrainer against one of our learner: same model, tokens, precision, loss and
threads.

Speed: both sides are processes that stay alive; pairs of updates alternate, and the ratio is TRL's seconds
over ours. TRL runs with the fastest of the given per-device batch sizes, tried first, ours with its
defaults. Beside it the ceiling that padding alone explains: tokens of TRL's rectangles over real tokens.

Memory: the peak of the resident memory during one update over what the process held before, less the
gradients, in fresh processes, all rollouts in one pass on both sides. Parameters and AdamW's two moments
are listed apart.

That both do the same work is checked: their gradient norms must agree to 1 %.

    python -m benchmarks.trl_learner [--models embedded smollm2] [--repeats 5] [--dtype bfloat16]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, ratio, report
from benchmarks.trl.environment import interpreter, variables
from benchmarks.trl.ragged import RaggedBatch, ragged_batch
from benchmarks.trl.worker import Worker
from reasoner.model_source import resolve_model

TOLERANCE = 0.01  # of the two gradient norms, relative
VOCABULARY = 256  # token ids stay below it, in every model


@dataclass(frozen=True)
class Case:
    """A model and how much of it this machine can take."""

    model: str
    rollouts: int
    per_device: tuple[int, ...]  # TRL's batch sizes to choose from
    memory_rollouts: int  # in one pass

    @property
    def suffix(self) -> str:
        return "" if self.model == "embedded" else f"_{self.model}"


CASES = {
    "embedded": Case("embedded", rollouts=64, per_device=(8, 16, 32), memory_rollouts=64),
    "smollm2": Case("smollm2", rollouts=16, per_device=(2, 4, 8), memory_rollouts=8),
}


@dataclass(frozen=True)
class Setting:
    threads: int
    dtype: str
    checkpointing: bool
    directory: Path

    def start(self, model: str, rollouts: int, *, per_device: int | None) -> Worker:
        """TRL with `per_device`, our learner without."""
        common = ["--model", str(resolve_model(model).path), "--rollouts", str(rollouts)]
        common += ["--vocabulary", str(VOCABULARY), "--dtype", self.dtype, "--threads", str(self.threads)]
        common += ["--checkpointing"] if self.checkpointing else []
        if per_device is None:
            command = [sys.executable, "-m", "benchmarks.trl.ours", *common]
        else:
            trl = [str(interpreter()), "-m", "benchmarks.trl.peer", "update", "--per-device", str(per_device)]
            command = [*trl, "--out", str(self.directory / "trl"), *common]
        name = f"{model}_{per_device or 'ours'}.log"
        return Worker(command, variables(self.threads), self.directory / name)


@contextmanager
def closing(*workers: Worker) -> Iterator[None]:
    try:
        yield
    finally:
        for worker in workers:
            worker.close()


def fastest_per_device(case: Case, setting: Setting) -> tuple[int, dict[int, float]]:
    """TRL's best batch size: the second whole update of each, seconds."""
    seconds = {}
    for per_device in case.per_device:
        trl = setting.start(case.model, case.rollouts, per_device=per_device)
        with closing(trl):
            trl.ask("warm")
            trl.ask("update")
            seconds[per_device] = trl.ask("update")["seconds"]
    return min(seconds, key=lambda size: seconds[size]), seconds


def speed(case: Case, setting: Setting, repeats: int) -> tuple[list[Figure], dict[str, Any]]:
    best, tried = fastest_per_device(case, setting)
    batch = ragged_batch(case.rollouts, VOCABULARY)
    ours = setting.start(case.model, case.rollouts, per_device=None)
    trl = setting.start(case.model, case.rollouts, per_device=best)
    seconds: dict[str, list[float]] = {"ours": [], "trl": []}
    with closing(ours, trl):
        for side in (ours, trl):
            side.ask("warm")
            side.ask("update")
        for repeat in range(repeats):
            answers = {}
            for name, side in _alternating({"ours": ours, "trl": trl}, repeat):
                answers[name] = side.ask("update")
                seconds[name].append(answers[name]["seconds"])
            _check_same_work(answers["ours"]["grad_norm"], answers["trl"]["grad_norm"])
    ceiling = batch.padded_tokens / batch.tokens
    figures = [
        ratio(f"learner_vs_trl_speed{case.suffix}", seconds["trl"], seconds["ours"]),
        Figure(f"learner_vs_trl_padding_ceiling{case.suffix}", ceiling, "ratio"),
    ]
    details = {"per_device": best, "per_device_seconds": tried, "seconds": seconds, **_sizes(batch)}
    return figures, details


def _alternating(sides: dict[str, Worker], repeat: int) -> list[tuple[str, Worker]]:
    pairs = list(sides.items())
    return pairs if repeat % 2 else pairs[::-1]


def _check_same_work(ours: float, trl: float) -> None:
    if abs(ours - trl) > TOLERANCE * abs(trl):
        raise RuntimeError(
            f"the two sides compute different gradients: norms {ours:.6g} (ours), {trl:.6g} (TRL)"
        )


def _sizes(batch: RaggedBatch) -> dict[str, int]:
    return {"rollouts": len(batch.rewards), "tokens": batch.tokens, "padded_tokens": batch.padded_tokens}


def memory(case: Case, setting: Setting) -> tuple[list[Figure], dict[str, Any]]:
    """TRL's activation bytes over ours, one update each in a fresh process."""
    batch = ragged_batch(case.memory_rollouts, VOCABULARY)
    found = {}
    for name, per_device in (("ours", None), ("trl", case.memory_rollouts)):
        side = setting.start(case.model, case.memory_rollouts, per_device=per_device)
        with closing(side):
            side.ask("warm")
            found[name] = side.ask("update")
            parameters = side.ready["parameter_bytes"]
    _check_same_work(found["ours"]["grad_norm"], found["trl"]["grad_norm"])
    ours, trl = (found[name]["activation_bytes"] for name in ("ours", "trl"))
    ceiling = batch.tokens / batch.padded_tokens
    figures = [
        Figure(f"learner_vs_trl_memory{case.suffix}", ours / trl, "ratio"),
        Figure(f"learner_vs_trl_memory_padding_floor{case.suffix}", ceiling, "ratio"),
    ]
    apart = {"parameter_bytes": parameters, "gradient_bytes": parameters, "optimizer_bytes": 2 * parameters}
    return figures, {"activation_bytes": {"ours": ours, "trl": trl}, **apart, **_sizes(batch)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations, on both sides")
    args = parser.parse_args()
    figures: list[Figure] = []
    details: dict[str, Any] = {
        "threads": args.threads,
        "dtype": args.dtype,
        "checkpointing": args.checkpointing,
    }
    with tempfile.TemporaryDirectory() as directory:
        setting = Setting(args.threads, args.dtype, args.checkpointing, Path(directory))
        for name in args.models:
            for part in (memory(CASES[name], setting), speed(CASES[name], setting, args.repeats)):
                _add(figures, details, name, *part)
    report("trl_learner" + ("" if args.dtype == "float32" else f"_{args.dtype}"), figures, details)


def _add(
    figures: list[Figure], details: dict[str, Any], name: str, new: Sequence[Figure], detail: dict[str, Any]
) -> None:
    figures.extend(new)
    details.setdefault(name, []).append(detail)


if __name__ == "__main__":
    main()
