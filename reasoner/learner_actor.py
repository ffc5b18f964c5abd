"""The learner as a Ray actor: one process, or several of which the loop knows only the first.

Rank 0 has the other ranks do whatever it is asked to do, at the same time. When one of them dies, rank 0's
connections to it break; it then ends itself, so that the loop sees one dead learner and starts all anew. A
rank that fails with an error says so and ends too, since the others would wait for it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import ray

from reasoner.config import Config
from reasoner.errors import ReasonerError
from reasoner.fingerprint import fingerprint
from reasoner.limits import check_rollout_fits
from reasoner.logs import log_to
from reasoner.types import TrainBatch
from rollouts.gone import PROCESS_GONE
from rollouts.process import die_with_parent, redirect_output
from rollouts.sampler import Sampler

log = logging.getLogger(__name__)

REASON_S = 10.0  # what the other ranks have to say once a call has failed here
SYNC_GROUP = "sync"  # of the calls that go on beside the others
HEARTBEAT_GROUP = "heartbeat"  # of `ping`
LAST_WORDS_S = 2.0  # from an error of a rank to its end, for the error to be delivered


class LearnerActor:
    """One rank of the learner and its side of the weight sync, in a process of its own."""

    def setup(
        self,
        model_path: str,
        base_path: str,
        config: Config,
        log_dir: Path,
        peers: Sequence[Any] = (),
        rank: int = 0,
        address: str = "",
    ) -> None:
        """`peers`: on rank 0 the other ranks, which it sets up; on those: their `rank`, and where to meet."""
        import torch

        from reasoner.learner import Learner, LearnerConfig
        from reasoner.ranks import Ranks, meeting_point

        log_file = log_dir / (f"learner-{rank}.log" if rank else "learner.log")
        redirect_output(log_file)
        die_with_parent()
        log_to(log_file)
        self.config, keys = config, config.learner
        device = keys.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        on_gpu = device == "cuda"
        memory = torch.cuda.mem_get_info()[1] if on_gpu else psutil.virtual_memory().total
        check_rollout_fits(model_path, config, memory)
        self.peers = list(peers)
        if peers:
            host = ray.util.get_node_ip_address()
            self.meeting_point = meeting_point(host)
            address = f"{host}:{self.meeting_point.port}"
        calls = [
            peer.setup.remote(model_path, base_path, config, log_dir, (), i, address)
            for i, peer in enumerate(peers, start=1)
        ]
        self.learner = Learner(
            model_path,
            LearnerConfig.of(keys),
            temperature=config.rollout.temperature,
            seed=config.seed,
            device=device,
            reference_path=base_path,
            ranks=Ranks.join(rank, keys.ranks, address, device),
        )
        ray.get(calls)
        self.transfer = weight_transfer(device, config)
        self.adapters_only = sends_adapters(device, config, Path(base_path))
        self.beside = ThreadPoolExecutor(1, thread_name_prefix="sync")
        self.syncing: Future[Any] | None = None  # by `start_sync`
        self.connected: list[str] = []

    def ping(self) -> None:
        """Returns while the process runs, whatever else it does; to be called in `HEARTBEAT_GROUP`."""

    def update(self, batch: TrainBatch, lr_scale: float) -> Any:
        with self._together("update", batch, lr_scale):
            result = self.learner.update(batch, lr_scale)
        return None if self.learner.ranks.rank else result

    def sync(self, version: int, servers: Mapping[str, Sampler]) -> Any:
        """The present weights to these servers, proved by a logprob probe before any of them serves again.
        Those that failed are in the report's `failures`."""
        with self._together("sync", version, servers):
            return self._sync(version, servers)

    def start_sync(self, version: int, servers: Mapping[str, Sampler]) -> None:
        """`sync` in the background, for one rank only: an update may compute its gradient meanwhile, and
        waits with its first step for the end. `synced` has the report."""
        syncing = self.syncing = self.beside.submit(self._sync, version, servers)
        self.learner.before_step = lambda: wait([syncing])

    def synced(self) -> Any:
        """The report of the sync that was started; to be called in `SYNC_GROUP`."""
        assert self.syncing is not None
        return self.syncing.result()

    def _sync(self, version: int, servers: Mapping[str, Sampler]) -> Any:
        from reasoner.weight_sync import ServersFailed, WeightSync

        keys, rank = self.config.learner, self.learner.ranks.rank
        if not self.connected:
            self.weight_sync = WeightSync(
                list(servers.values()),
                self.transfer,
                score=self.learner.lead_score,
                temperature=self.config.rollout.temperature,
                dtype="bfloat16" if keys.dtype == "bfloat16" else self.config.server.dtype,  # the coarser
                rank=rank,
                adapters_only=self.adapters_only,
                keep_kv=self.config.rollout.keep_kv,
            )
        elif self.connected != list(servers):
            self.weight_sync.replace_servers(list(servers.values()))
        self.connected = list(servers)
        try:
            report = self.weight_sync.sync(self.learner.model, version)
        except ServersFailed as error:
            report = replace(error.report, failures=error.failures)
        self.learner.follow() if rank else self.learner.release()
        return report

    def fingerprint(self) -> dict[str, Any]:
        """What decides the last bits of an update in this process."""
        return fingerprint(self.learner)

    def save(self, path: Path) -> None:
        with self._together("save", path):
            self.learner.save(path)
            self.learner.save_trainer(path / "trainer")

    def load_trainer(self, path: Path) -> None:
        with self._together("load_trainer", path):
            self.learner.load_trainer(path / "trainer")

    @contextmanager
    def _together(self, method: str, *args: Any) -> Iterator[None]:
        """The same call on the other ranks, for the time of the block."""
        shared = [ray.put(arg) for arg in args] if self.peers else []
        calls = [getattr(peer, method).remote(*shared) for peer in self.peers]
        try:
            yield
        except Exception:
            try:
                _raise_reason(calls)
                raise
            finally:
                if self.learner.ranks.size > 1:  # out of step for good: nobody is to wait for this rank
                    threading.Timer(LAST_WORDS_S, os._exit, (1,)).start()
        ray.get(calls)


def _raise_reason(calls: Sequence[Any]) -> None:
    """When a call failed because another rank died or refused: ends this process too, or says why."""
    for call in calls:
        try:
            ray.get(call, timeout=REASON_S)
        except PROCESS_GONE as error:
            log.exception("another rank of the learner died: %s", error)
            os._exit(1)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ReasonerError):
                raise error.cause from None
            log.error("another rank failed: %s", error)
        except ray.exceptions.GetTimeoutError:
            log.error("another rank did not notice")


def weight_transfer(device: str, config: Config) -> str:
    """vLLM's weight-transfer backend: shared memory on CPU, CUDA IPC on one shared GPU, else NCCL (the two
    GPU ones were not run by us)."""
    if device == "cpu":
        return "shared_memory"
    return "ipc" if config.cluster.colocate else "nccl"


def sends_adapters(device: str, config: Config, base: Path) -> bool:
    """Whether servers get LoRA adapters only. They must be ours, since they start from the model the run
    began with and merge, and that model must be safetensors. CUDA IPC moves nothing: merged weights."""
    ours = not config.server.addresses
    moved = weight_transfer(device, config) != "ipc"
    return config.learner.lora_rank > 0 and ours and moved and any(base.glob("*.safetensors"))


def with_adapters(transfer: str) -> str:
    """The engine (`rollouts.transfer`) that a server needs to merge adapters that come by `transfer`."""
    return "nccl_adapters" if transfer == "nccl" else transfer
