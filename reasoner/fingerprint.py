"""What decides the last bits of an update: threads, instruction set, versions, packing, ranks, device, code.

The learner's process records it at every start of a run, one line in `fingerprints.jsonl`. Where two
fingerprints are equal, equal inputs give equal bits on a CPU; where they differ, sums are added in another
order and only agree to rounding. Left out: drivers and kernels of GPUs, whose backward passes do not repeat
their own bits from one run to the next unless told to.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from reasoner.durable import write_atomically
from reasoner.errors import ReasonerError

FILE = "fingerprints.jsonl"
PACKAGES = ("torch", "transformers", "peft", "numpy", "safetensors")
#: Settings of the libraries that choose other kernels on the same processor.
ENVIRONMENT = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
)
#: The modules an update goes through.
CODE = (
    "adapters",
    "advantages",
    "batch",
    "kernels",
    "learner",
    "logprobs",
    "losses",
    "packed",
    "policy",
    "ranks",
    "update",
)


def fingerprint(learner: Any) -> dict[str, Any]:
    """Of this process with `learner` (a `reasoner.learner.Learner`) in it; JSON types only."""
    import torch

    on_gpu = learner.device.type == "cuda"
    config = learner.config
    return {
        "device": torch.cuda.get_device_name(learner.device) if on_gpu else learner.device.type,
        "processor": _processor(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "ranks": learner.ranks.size,
        "dtype": config.dtype,
        "attention": learner.model.config._attn_implementation,
        "minibatches": config.minibatches,
        "micro_batch_tokens": config.micro_batch_tokens,
        "gradient_checkpointing": config.gradient_checkpointing,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "code": code_hash(),
        "loss_code": source_hash(learner.loss_fn),
    }


def code_hash() -> str:
    """sha256 over the source of the modules an update goes through."""
    folder = Path(__file__).parent
    return hashlib.sha256(b"\0".join((folder / f"{name}.py").read_bytes() for name in CODE)).hexdigest()


def source_hash(function: Callable[..., Any]) -> str | None:
    """sha256 over the file that a function, of the user's perhaps, comes from; None if it has none."""
    file = getattr(sys.modules.get(function.__module__), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None


def differences(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, list[Any]]:
    """`{name: [recorded, here]}` of the entries that differ; empty where bits must agree."""
    names = [*recorded, *(name for name in here if name not in recorded)]
    return {
        name: [recorded.get(name), here.get(name)] for name in names if recorded.get(name) != here.get(name)
    }


def record(run_dir: Path, step: int, values: Mapping[str, Any]) -> None:
    """The steps after `step` are made under `values`; what was recorded for them before is forgotten, since a
    resume has undone them."""
    kept = {since: earlier for since, earlier in read(run_dir).items() if since < step}
    lines = [{"after_step": since, **earlier} for since, earlier in {**kept, step: dict(values)}.items()]
    write_atomically(run_dir / FILE, "".join(json.dumps(line) + "\n" for line in lines).encode())


def read(run_dir: Path) -> dict[int, dict[str, Any]]:
    """`{after_step: fingerprint}` in order; empty for a run without any. `ReasonerError` when damaged."""
    path = Path(run_dir) / FILE
    if not path.exists():
        return {}
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return {line.pop("after_step"): line for line in lines}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReasonerError(f"cannot read {path}: {error}") from error


def _processor() -> str:
    """The model of the CPU: libraries choose kernels by it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
