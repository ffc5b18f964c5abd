"""The CPU weight-transfer backend, worker side: what runs inside a vLLM worker when weights arrive.

vLLM chooses a transfer engine by name from its own factory; its built-in ones need CUDA. This module
registers one more, `shared_memory`: the learner lays all parameters out in mapped memory, the worker
maps the same memory and loads from it. A server on another node cannot map it: the same bytes come with
each update then, through Ray's object store. It is imported by the server actor, and in a stand-alone
`vllm.entrypoints.openai.api_server` by `--worker-extension-cls rollouts.transfer.WorkerExtension`.

Left out: anything for GPUs (vLLM's `nccl` and `ipc` are used there as they are). The learner's side is in
`reasoner.weight_sync`; it does not import vLLM.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLWeightTransferEngine,
    NCCLWeightTransferUpdateInfo,
)

from rollouts.merging import StoredWeights, merged

SHARED_MEMORY = "shared_memory"
NCCL_ADAPTERS = "nccl_adapters"


@dataclass
class SharedMemoryInitInfo(WeightTransferInitInfo):
    """Where every parameter lies in the mapped file. Offsets and `size` are in bytes."""

    path: str | None  # None: the bytes come with each update
    size: int
    names: list[str]
    dtypes: list[str]  # torch dtype names, e.g. "float32"
    shapes: list[list[int]]
    offsets: list[int]
    adapters_only: bool = False  # to be merged with the weights in the model directory
    repack_tied_heads: bool = True  # False only to show in a test that the repacking is needed


@dataclass
class SharedMemoryUpdateInfo(WeightTransferUpdateInfo):
    """The layout was agreed on at init."""

    buffer: Any = None  # (size,) uint8 from another node; None: they are in the mapped file


class SharedMemoryEngine(WeightTransferEngine[SharedMemoryInitInfo, SharedMemoryUpdateInfo]):
    """Loads the whole model, or what LoRA changes in it, from the mapped file in vLLM's checkpoint format
    (layerwise reload)."""

    init_info_cls = SharedMemoryInitInfo
    update_info_cls = SharedMemoryUpdateInfo

    _buffer: torch.Tensor | None = None
    _layout: SharedMemoryInitInfo | None = None
    _base: StoredWeights | None = None

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        path, size = init_info.path, init_info.size
        self._buffer = torch.from_file(path, shared=True, size=size, dtype=torch.uint8) if path else None
        self._layout = init_info
        self._base = None
        if init_info.adapters_only:
            self._base = StoredWeights(self.model_config.model)
            accept_partial_reload()

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict) -> None:
        """As the base class, without the accelerator synchronisation that a CPU has no need of."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: SharedMemoryUpdateInfo) -> None:
        if self._layout is None:
            raise RuntimeError("weights arrived before init_weight_transfer_engine")
        buffer = self._buffer if update_info.buffer is None else torch.from_numpy(update_info.buffer)
        if buffer is None:
            raise RuntimeError("no weights came with the update, and there is no mapped file")
        weights = self._weights(buffer)
        self.model.load_weights(weights if self._base is None else merged(weights, self._base))

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        untouched = self._base is not None  # LoRA leaves embedding and head as they are
        if not untouched and (self._layout is None or self._layout.repack_tied_heads):
            repack_tied_heads(self.model)

    def shutdown(self) -> None:
        self._buffer = None
        self._layout = None
        self._base = None

    def _weights(self, buffer: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Views into the buffer, in the trainer's parameter order."""
        assert self._layout is not None
        layout = self._layout
        for name, dtype_name, shape, offset in zip(
            layout.names, layout.dtypes, layout.shapes, layout.offsets, strict=True
        ):
            dtype = getattr(torch, dtype_name)
            end = offset + torch.Size(shape).numel() * dtype.itemsize
            yield name, buffer[offset:end].view(dtype).view(shape)


def repack_tied_heads(model: torch.nn.Module) -> None:
    """Rebuild the packed copy of a tied output head from the embedding it shares.

    On CPUs vLLM computes logits from a packed copy of `lm_head.weight`. A tied head has no weight of its
    own in the checkpoint, so the layerwise reload leaves that copy at the old embedding and logprobs are
    silently wrong by several nats.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead) and module.weight.device.type == "cpu":
            module.quant_method.process_weights_after_loading(module)


class NCCLAdapterEngine(NCCLWeightTransferEngine):
    """vLLM's NCCL engine when only LoRA adapters arrive. Not run here: needs GPUs."""

    def start_weight_update(self) -> None:
        accept_partial_reload()
        super().start_weight_update()

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        """Everything is received before anything is merged: chunks arrive on streams of their own."""
        model, received = self.model, _Received()
        self.set_weight_update_target(received, self.model_config)
        try:
            super().receive_weights(update_info)
        finally:
            self.set_weight_update_target(model, self.model_config)
        model.load_weights(merged(received.weights, StoredWeights(self.model_config.model)))


class _Received(torch.nn.Module):
    """Takes weights like a model, and keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[tuple[str, torch.Tensor]] = []

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.weights += [(name, tensor.clone()) for name, tensor in weights]  # they are views of a buffer


def accept_partial_reload() -> None:
    """vLLM keeps the weights of layers that an update leaves out, and warns of each: here it is meant."""
    logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)


def register() -> None:
    """Make the engines here known to vLLM's factory in this process (idempotent)."""
    for name, engine in ((SHARED_MEMORY, SharedMemoryEngine), (NCCL_ADAPTERS, NCCLAdapterEngine)):
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, engine)


class WorkerExtension:
    """Mixed into vLLM's worker by `--worker-extension-cls`; importing this module registers the backend."""


register()
