"""Several learner processes as one: what they share, and how the model lies on them.

Every rank holds a shard of each weight, of its gradient and of AdamW's moments (FSDP2, arXiv 2304.11277), and
computes its own micro-batches of the same batch. All denominators are in the batch's `loss_weight`, so the
gradient is the sum over the ranks, not the mean. Gloo on CPUs, NCCL on GPUs (not run here: no GPU).
Left out: sharding of the sequence or of single layers. A rollout must fit on one rank.
"""

from __future__ import annotations

import datetime
import socket
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

TIMEOUT = datetime.timedelta(minutes=30)  # of one collective: the longest micro-batch of another rank


@dataclass(frozen=True)
class Ranks:
    """This process's place among `size` learner processes; the default is to be alone."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @classmethod
    def join(cls, rank: int, size: int, address: str, device: str = "cpu") -> Ranks:
        """Meet the others at `address` ("host:port" on rank 0's machine); returns when all are there."""
        if size > 1:
            backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
            dist.init_process_group(
                backend, init_method=f"tcp://{address}", rank=rank, world_size=size, timeout=TIMEOUT
            )
        return cls(rank, size, device)

    def leave(self) -> None:
        """Closes the connections, once all ranks are done."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def shard(self, root: nn.Module, layers: Any) -> None:
        """Spread the parameters of `root` over the ranks: each of the `layers` is gathered while it is
        used, the rest of `root` while it runs."""
        if self.size == 1:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        mesh = init_device_mesh(self.device, (self.size,))
        for module in [*layers, root]:
            # After the forward too: an optimizer step must not leave gathered, old weights behind.
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
        for module in root.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum

    def sum(self, array: np.ndarray) -> np.ndarray:
        """The sum of the ranks' arrays, on every rank."""
        if self.size == 1:
            return array
        total = torch.from_numpy(array.copy())
        dist.all_reduce(total)
        return total.numpy()

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value`, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]


def rendezvous(host: str = "127.0.0.1") -> str:
    """A free "host:port" on this machine."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"{host}:{probe.getsockname()[1]}"


def full(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered (a collective: all ranks must take part); any other as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return gather() if callable(gather) else tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other as it is."""
    part = getattr(tensor, "to_local", None)
    return part() if callable(part) else tensor


def local_rows(tensor: Tensor, ranks: Ranks) -> tuple[int, int]:
    """[start, stop) along the first dimension of this rank's part: equal chunks, the last ones shorter."""
    rows = tensor.shape[0]
    if local(tensor) is tensor:
        return 0, rows
    chunk = -(-rows // ranks.size)
    return min(ranks.rank * chunk, rows), min((ranks.rank + 1) * chunk, rows)
