"""Peak activation memory of one learner update, by tokens and vocabulary: linear in the first, flat in the
second.

Every cell is a process of its own, several times: a random two-layer Qwen3 of that vocabulary, one rollout of
that many tokens (the hardest case: nothing can be split), one `Learner.update`. Counted is the peak of the
resident memory over what the process held before, less the gradients, which are as large as the parameters;
the median, and how far the values lie apart. The C library is told to give back at once what is freed, so
that what is measured is what was alive.

    python -m benchmarks.learner_memory [--tokens 1024,4096,...] [--vocabularies 1024,...] [--repeats 3]
                                        [--checkpointing]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Figure, ratio, report

TOKENS = (1024, 4096, 16384, 32768)
VOCABULARIES = (1000, 16000, 150_000)
MIB = 2**20
CELL_S = 900.0  # one cell, on a machine that is busy
#: Without them a cell differs by half from one process to the next.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}


def measure(tokens: int, vocabulary: int, checkpointing: bool) -> dict[str, float]:
    """Bytes of one update in this process: `activations`, `parameters` (the gradients are as many again)."""
    from reasoner.learner import Learner, LearnerConfig

    with tempfile.TemporaryDirectory() as directory:
        _make_model(directory, vocabulary)
        config = LearnerConfig(micro_batch_tokens=tokens, gradient_checkpointing=checkpointing, threads=1)
        learner = Learner(directory, config)
    learner.update(_batch(64, vocabulary))  # AdamW's moments exist from here on
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before = _status("VmRSS")
    metrics = learner.update(_batch(tokens, vocabulary)).metrics
    peak = _status("VmHWM")
    assert np.isfinite(metrics["grad_norm"]), metrics
    parameters = sum(p.numel() * p.element_size() for p in learner.model.parameters())
    return {"activations": float(peak - before - parameters), "parameters": float(parameters)}


def _make_model(directory: str, vocabulary: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=65536,
        tie_word_embeddings=False,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    (Path(directory) / "tokenizer.json").write_text("{}")


def _batch(tokens: int, vocabulary: int) -> Any:
    from reasoner.types import TrainBatch

    mask = np.arange(tokens) > 0
    return TrainBatch(
        token_ids=np.random.default_rng(0).integers(0, vocabulary, tokens).astype(np.int32),
        cu_seqlens=np.array([0, tokens], dtype=np.int32),
        action_mask=mask,
        behaviour_logprobs=np.where(mask, -np.log(vocabulary), 0).astype(np.float32),
        advantages=mask.astype(np.float32),
        loss_weight=(mask / (tokens - 1)).astype(np.float32),
    )


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def in_subprocess(tokens: int, vocabulary: int, checkpointing: bool) -> dict[str, float]:
    """`measure` in a process of its own, so that no cell sees what another one left in its heap."""
    command = [sys.executable, "-m", "benchmarks.learner_memory", "--cell", f"{tokens},{vocabulary}"]
    command += ["--checkpointing"] if checkpointing else []
    environment = os.environ | ALLOCATOR
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=CELL_S, env=environment, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{tokens} tokens, vocabulary {vocabulary}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=_numbers, default=TOKENS)
    parser.add_argument("--vocabularies", type=_numbers, default=VOCABULARIES)
    parser.add_argument("--repeats", type=int, default=3, help="processes for each cell")
    parser.add_argument("--checkpointing", action="store_true", help="with learner.gradient_checkpointing")
    parser.add_argument("--cell", type=_numbers, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(measure(*args.cell, args.checkpointing)))
        return
    columns = [f"vocabulary {v:,}" for v in args.vocabularies]
    print("| tokens | " + " | ".join(columns) + f" | full logits at {max(args.vocabularies):,} (computed) |")
    print("|---" * (len(columns) + 2) + "|")
    cells: dict[str, list[dict[str, float]]] = {}
    table = np.zeros((len(args.tokens), len(args.vocabularies), args.repeats))  # MiB
    for i, tokens in enumerate(args.tokens):
        for j, vocabulary in enumerate(args.vocabularies):
            cell = [in_subprocess(tokens, vocabulary, args.checkpointing) for _ in range(args.repeats)]
            cells[f"{tokens}x{vocabulary}"] = cell
            table[i, j] = [sample["activations"] / MIB for sample in cell]
        row = [f"{np.median(m):.0f} MiB ({m.min():.0f} to {m.max():.0f})" for m in table[i]]
        full = tokens * max(args.vocabularies) * 4 / MIB
        print(f"| {tokens:,} | " + " | ".join(row) + f" | {full:,.0f} MiB |", flush=True)
    figures = _figures(table, args.tokens, args.vocabularies)
    name = "learner_memory_checkpointing" if args.checkpointing else "learner_memory"
    report(name, figures, {"cells": cells})


def _figures(table: np.ndarray, tokens: tuple[int, ...], vocabularies: tuple[int, ...]) -> list[Figure]:
    """Of MiB (tokens, vocabularies, repeats): slope in tokens, and how much larger the largest vocabulary
    makes the peak at the most tokens."""
    several = len(tokens) > 1
    slopes = [np.polyfit(tokens, m * 1024, 1)[0] if several else np.nan for m in table[:, 0].T]
    return [
        Figure("learner_memory_per_token", float(np.median(slopes)), "KiB", min(slopes), max(slopes)),
        ratio("learner_memory_vs_vocabulary", table[-1, -1].tolist(), table[-1, 0].tolist()),
    ]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    main()
