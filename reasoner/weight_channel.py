"""How the weights travel: the learner's side of the transfer backends.

`SharedMemoryChannel` is the counterpart of `rollouts.transfer`: shared memory, written by the learner
before the servers are paused, read by them. `vllm_trainer` wraps vLLM's own trainer engines for GPUs
(not run here).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import ray
import torch

from reasoner.adapters import exported_weights
from reasoner.errors import ServerError

if TYPE_CHECKING:
    from rollouts.control import ServerControl

ALIGNMENT = 64  # bytes; views of any dtype start on a cache line


class SharedMemoryChannel:
    """All parameters of `model`, or its adapters only, one after the other, in memory that servers on this
    host map too.

    Sharded parameters (FSDP) are gathered, so the other ranks must take part (`GatherOnly`).
    The memory is a file without a name, reached through this process's entry in /proc: nothing can be left
    behind by a crash, and a container's small /dev/shm does not matter.
    """

    def __init__(
        self, model: torch.nn.Module, *, adapters_only: bool = False, repack_tied_heads: bool = True
    ) -> None:
        # A tied head is not listed twice.
        self._weights = exported_weights(model, adapters_only=adapters_only)
        parameters = [weight.base for weight in self._weights]
        offsets, size = _layout(parameters)
        self._descriptor: int | None = _nameless_file(size)
        path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        self._buffer = torch.from_file(path, shared=True, size=size, dtype=torch.uint8)
        self._views = [
            self._buffer[offset : offset + p.numel() * p.element_size()].view(p.dtype).view(p.shape)
            for offset, p in zip(offsets, parameters, strict=True)
        ]
        self.init_info: dict[str, Any] = {
            "path": path,
            "size": size,
            "names": [weight.name for weight in self._weights],
            "dtypes": [str(p.dtype).removeprefix("torch.") for p in parameters],
            "shapes": [list(p.shape) for p in parameters],
            "offsets": offsets,
            "adapters_only": adapters_only,
            "repack_tied_heads": repack_tied_heads,
        }

    @torch.no_grad()
    def load(self) -> int:
        """Copy the current weights into the file; returns the number of bytes."""
        for view, weight in zip(self._views, self._weights, strict=True):
            view.copy_(weight.merged())
        return sum(view.numel() * view.element_size() for view in self._views)

    def put(self) -> Any:
        """The bytes in Ray's object store, for servers on other nodes: copied once, fetched by each node."""
        return ray.put(self._buffer.numpy())

    def seal(self) -> None:
        """Every server has mapped the memory: no one else can from now on."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def close(self) -> None:
        self.seal()
        self._views, self._buffer = [], torch.empty(0)


class GatherOnly:
    """What ranks other than 0 do: take part when sharded parameters are gathered."""

    def __init__(self, model: torch.nn.Module, *, adapters_only: bool = False) -> None:
        self._weights = exported_weights(model, adapters_only=adapters_only)

    def send(self) -> None:
        for weight in self._weights:
            weight.merged()

    def close(self) -> None: ...


class _FanOutClient:
    """vLLM's weight-sync client protocol over n servers at once; NCCL ranks follow one another."""

    def __init__(self, controls: Sequence[ServerControl], world_sizes: Sequence[int]) -> None:
        self._controls = list(controls)
        self._offsets = [sum(world_sizes[:i]) for i in range(len(world_sizes))]
        self._pool = ThreadPoolExecutor(max_workers=len(self._controls))

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        def one(control: ServerControl, offset: int) -> None:
            info = dict(init_info)
            if "rank_offset" in info:
                info["rank_offset"] += offset
            control.init_weight_transfer_engine(info)

        list(self._pool.map(one, self._controls, self._offsets))

    def start_weight_update(self) -> None:
        list(self._pool.map(lambda c: c.start_weight_update(), self._controls))

    def update_weights(self, update_info: Any) -> None:
        list(self._pool.map(lambda c: c.update_weights(update_info), self._controls))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        list(self._pool.map(lambda c: c.finish_weight_update(), self._controls))


class _VLLMTrainer:
    """One of vLLM's own trainer engines behind the interface of `SharedMemoryChannel` (not run here)."""

    def __init__(self, engine: Any, num_bytes: int) -> None:
        self._engine = engine
        self._num_bytes = num_bytes

    def load(self) -> int:
        return self._num_bytes

    def send(self) -> None:
        self._engine.send_weights()

    def close(self) -> None:
        self._engine.shutdown()


def vllm_trainer(
    backend: str,
    model: torch.nn.Module,
    controls: Sequence[ServerControl],
    *,
    rank: int,
    adapters_only: bool = False,
) -> _VLLMTrainer:
    """vLLM's `nccl` or `ipc` trainer engine over all servers. Not run here: needs GPUs."""
    from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    weights = exported_weights(model, adapters_only=adapters_only)

    class Exported(WeightSource):
        """The weights as servers know them, gathered."""

        def metadata(self) -> list[Any]:
            return [ParamMeta(w.name, w.base.dtype, tuple(w.base.shape)) for w in weights]

        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            return ((weight.name, weight.merged()) for weight in weights)

    world_sizes = [control.world_size() for control in controls]
    with ExitStack() as meeting:
        if backend == "ipc":
            init_info: Any = IPCTrainerInitInfo(rank=rank)
        else:
            address, port = meeting.enter_context(_rendezvous())
            init_info = NCCLTrainerInitInfo(
                master_address=address, master_port=port, world_size=1 + sum(world_sizes), rank=rank
            )
        engine = WeightTransferTrainerFactory.trainer_init(
            init_info, client=_FanOutClient(controls, world_sizes), source=Exported()
        )
    return _VLLMTrainer(engine, sum(w.base.numel() * w.base.element_size() for w in weights))


def _layout(parameters: Any) -> tuple[list[int], int]:
    """Aligned byte offsets of the parameters, and the size of the whole file."""
    offsets, end = [], 0
    for parameter in parameters:
        offsets.append(end)
        size = parameter.numel() * parameter.element_size()
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, end


def _nameless_file(size: int) -> int:
    """The descriptor of `size` bytes of shared memory, readable by this user only."""
    descriptor = os.memfd_create("reasoner-weights")
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        os.close(descriptor)
        raise ServerError(f"no memory for {size / 2**20:.0f} MiB of weights: {error}") from error
    return descriptor


@contextmanager
def _rendezvous() -> Iterator[tuple[str, int]]:
    """This machine's address and a port for vLLM's store, which nobody else gets within the block.

    vLLM's trainer takes no socket that listens already. So the port is held by one that is bound and does not
    listen: Linux lets a second one bind it and listen if both have SO_REUSEADDR, as the one of vLLM has."""
    host = ray.util.get_node_ip_address()
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((host, 0))
        yield host, held.getsockname()[1]
