"""Several learner processes as one: what they share, and how the model lies on them.

Every rank holds a shard of each weight, of its gradient and of AdamW's moments (FSDP2, arXiv 2304.11277), and
computes its own micro-batches of the same batch. All denominators are in the batch's `loss_weight`, so the
gradient is the sum over the ranks, not the mean. Gloo on CPUs, NCCL on GPUs (not run here: no GPU).
Left out: sharding of the sequence or of single layers. A rollout must fit on one rank.
"""

from __future__ import annotations

import datetime
import socket
from collections.abc import Sequence
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
        """Meet the others in the store at `address` ("host:port"); returns when all are there."""
        if size > 1:
            host, _, port = address.rpartition(":")
            store = dist.TCPStore(host, int(port), is_master=False, timeout=TIMEOUT)
            backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
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

    def broadcast(self, token_ids: Sequence[np.ndarray] | None) -> list[np.ndarray] | None:
        """Rank 0's sequences of int32, or its None, on every rank; what the others pass does not count. They
        travel as plain numbers: `broadcast_object_list` would unpickle what comes out of a socket."""
        if self.size == 1:
            return None if token_ids is None else list(token_ids)
        count = torch.tensor([-1 if token_ids is None else len(token_ids)])
        dist.broadcast(count, src=0)
        if count.item() < 0:
            return None
        lengths = torch.empty(int(count.item()), dtype=torch.int64)
        if self.rank == 0 and token_ids is not None:
            lengths = torch.tensor([len(ids) for ids in token_ids], dtype=torch.int64)
        dist.broadcast(lengths, src=0)
        flat = torch.empty(int(lengths.sum()), dtype=torch.int32)
        if self.rank == 0 and token_ids:
            flat = torch.from_numpy(np.concatenate(token_ids).astype(np.int32))
        dist.broadcast(flat, src=0)
        return [part.numpy() for part in flat.split(lengths.tolist())]


def meeting_point(host: str) -> dist.TCPStore:
    """The store that the ranks meet in, at this address of this machine and at a port that the system
    has chosen. It lives as long as this object."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, 0), family=family)  # the store itself would take all interfaces
    port = listening.getsockname()[1]
    descriptor = listening.detach()  # the store closes it
    return dist.TCPStore(
        host, port, is_master=True, wait_for_workers=False, timeout=TIMEOUT, master_listen_fd=descriptor
    )


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
