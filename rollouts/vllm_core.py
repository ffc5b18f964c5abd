"""How vLLM's engine core is configured and started inside a server's own process.

Everything the model directory may override silently is overridden: sampling defaults of
`generation_config.json` are ignored, logprobs are those of the distribution sampled from, and the output
head is computed in fp32.
"""

from __future__ import annotations

import gc
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasoner.errors import UsageError

if TYPE_CHECKING:
    from vllm.config import VllmConfig


@dataclass(frozen=True)
class ServerConfig:
    """How one replica is started. `max_model_len` and `block_size` are in tokens."""

    model: str  # a Hugging Face directory, or a hub name
    dtype: str = "float32"
    max_model_len: int = 512  # prompt and completion together
    max_num_seqs: int = 512  # sequences computed at once; more wait
    max_num_batched_tokens: int | None = None  # tokens a step, mostly prefill; None: vLLM's choice
    kv_cache_gib: float = 1.0  # CPU only; on a GPU gpu_memory_utilization decides
    block_size: int | None = 32  # prefix-cache granularity; prompts shorter than a block never hit
    threads: int = 1  # torch threads of the engine (CPU)
    seed: int = 0
    device: str = "cpu"  # "cpu" | "cuda" (not run here)
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    enable_sleep_mode: bool = False  # GPU: the learner shares it
    enable_prefix_caching: bool = True
    stop_token_ids: tuple[int, ...] = ()  # beside the model's own end tokens
    weight_transfer: str = "shared_memory"  # name in vLLM's weight-transfer factory

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise UsageError(f"server device must be cpu or cuda, got {self.device!r}")
        for name in ("max_model_len", "max_num_seqs", "threads", "tensor_parallel_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"server {name} must be at least 1, got {getattr(self, name)}")
        if self.device == "cpu" and self.tensor_parallel_size != 1:
            raise UsageError("server tensor_parallel_size needs device = cuda")
        if self.kv_cache_gib <= 0:
            raise UsageError(f"server kv_cache_gib must be positive, got {self.kv_cache_gib}")


def set_environment(config: ServerConfig) -> None:
    """Before torch and vLLM are imported: afterwards they do not look any more."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO")
    if config.device == "cpu":
        os.environ["OMP_NUM_THREADS"] = str(config.threads)
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override kv_cache_gib


def start_core(config: ServerConfig) -> tuple[Any, VllmConfig]:
    """vLLM's engine core in this process."""
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.core_client import InprocClient
    from vllm.v1.executor import Executor

    from rollouts import cpu_kernels, transfer
    from rollouts.slots import skip_idle_allocations

    if config.device == "cpu":
        torch.set_num_threads(config.threads)
        cpu_kernels.register()
    transfer.register()
    _import_model_class(config.model)
    vllm_config = EngineArgs(**engine_args(config)).create_engine_config()
    gc.freeze()  # vLLM collects several times while it starts: 0.3 s each over all that was imported
    core = InprocClient(vllm_config, Executor.get_class(vllm_config), log_stats=False)
    skip_idle_allocations(core.engine_core.scheduler)
    return core, vllm_config


def engine_args(config: ServerConfig) -> dict[str, Any]:
    from vllm.config import WeightTransferConfig

    from rollouts import cpu_kernels

    args: dict[str, Any] = {
        "model": config.model,
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "enable_prefix_caching": config.enable_prefix_caching,
        "tensor_parallel_size": config.tensor_parallel_size,
        "seed": config.seed,
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        "generation_config": "vllm",
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": -1,
        "weight_transfer_config": WeightTransferConfig(backend=config.weight_transfer),
        "hf_overrides": {"head_dtype": "float32"},
    }
    if config.block_size is not None:
        args["block_size"] = config.block_size
    if config.device == "cpu":
        args |= {"enforce_eager": True, "kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30)}
        args["ir_op_priority"] = cpu_kernels.PREFERRED
    else:
        args |= {
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "enable_sleep_mode": config.enable_sleep_mode,
        }
    return args


def _import_model_class(model: str) -> None:
    """Import the model's class here: otherwise vLLM's registry first inspects it in a subprocess that
    imports all of vLLM again (10 s, unless its cache has it)."""
    from vllm import ModelRegistry

    path = Path(model) / "config.json"
    if not path.exists():
        return
    for architecture in json.loads(path.read_text()).get("architectures") or []:
        entry = ModelRegistry.models.get(architecture)
        if entry is not None:
            ModelRegistry.register_model(architecture, entry.load_model_cls())


def stop_token_ids(config: ServerConfig, vllm_config: VllmConfig) -> list[int]:
    """The end tokens named by config.json, generation_config.json and the caller."""
    model_config = vllm_config.model_config
    ids: set[int] = set(config.stop_token_ids)
    for source in (model_config.hf_text_config.to_dict(), _generation_config(config.model)):
        eos = source.get("eos_token_id")
        if eos is not None:
            ids.update([eos] if isinstance(eos, int) else eos)
    return sorted(ids)


def _generation_config(model: str) -> dict[str, Any]:
    path = Path(model) / "generation_config.json"
    return json.loads(path.read_text()) if path.exists() else {}
