"""Starts and stops the processes of a run: Ray, vLLM servers, the learner, rollout workers.

Everything is started side by side, since start-up is mostly imports. The driver itself loads neither torch
nor vLLM. On exit every actor is killed; a Ray that we started is shut down with everything in it. What
happens in between is left out: what is asked of the processes is in `reasoner.processes`, what dies is
started anew in the background by `rollouts.fleet`. Which servers a configuration means: `reasoner.servers`.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from reasoner.config import Config
from reasoner.errors import ReasonerError, ServerError, UsageError
from reasoner.loopback import on_loopback
from reasoner.model_source import ModelSource
from reasoner.processes import Processes
from reasoner.reaper import guard_children
from reasoner.servers import on_gpu, server_launchers
from reasoner.worker_actor import WorkerActor
from rollouts.fleet import Fleet, State
from rollouts.gone import PROCESS_GONE
from rollouts.launchers import WorkerLauncher

#: Results up to this size go straight from process to process; through Ray's object store (its default from
#: 100 kB on) a group costs twice the CPU time.
DIRECT_BYTES = 2**20
TOGETHER_S = 20.0  # a run begins with the servers that are ready so long after the first; others join later


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A Ray cluster for the block: the one at `address`, or one started here when it is empty. A Ray that the
    caller's program had initialised before is used and left alone."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # what failed is sampled again, and in the logs
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address:
            _check_reachable(address)
            ray.init(address=address, **common)
        else:
            # Logical CPUs only place actors; processes here are mostly waiting for one another.
            cpus = max(16, os.cpu_count() or 1)
            with on_loopback():
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    _system_config={"max_direct_call_object_size": DIRECT_BYTES},
                    **common,
                )
    except ConnectionError as e:
        raise UsageError(f"no Ray cluster answers at {address!r}: {e}") from None
    reaper = None if address else guard_children()
    try:
        yield
    finally:
        ray.shutdown()
        if reaper is not None:
            reaper.stdin.close()  # type: ignore[union-attr]
            reaper.wait()


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes before it says that nobody is there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto" and the like: Ray knows at once
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as e:
        raise ConnectionError(f"{e.strerror or e}") from None


def start(
    config: Config,
    model: ModelSource,
    template: str,
    verifier: Any,
    log_dir: Path,
    *,
    learner_base: Path | None,
    tell: Callable[[str], None] = lambda text: None,
    on_wait: Callable[[], None] = lambda: None,
) -> Processes:
    """Starts servers, workers and, when `learner_base` (the model the run began from) is given, the learner
    side by side; returns when the run can begin. `tell` gets a line when something dies or comes back later;
    `on_wait` is called while they start, and may raise to stop.

    Raises ServerError with the last log lines of a server that never becomes healthy."""
    _check_devices(config)
    log_dir = log_dir.absolute()  # actors may have another working directory
    setup = (model, template, config, verifier)
    timeout_s = config.server.startup_timeout_s
    processes = Processes(
        config,
        Fleet(
            server_launchers(config, model, log_dir, learner_base, on_wait),
            needs_sync=learner_base is not None,
            start_s=timeout_s,
            tell=tell,
        ),
        Fleet(
            [
                WorkerLauncher(f"worker-{i}", WorkerActor, setup, log_dir)
                for i in range(config.rollout.workers)
            ],
            what="worker",
            start_s=timeout_s,
            tell=tell,
        ),
        log_dir,
        learner_base,
    )
    try:
        learner = None if learner_base is None else processes.start_learner(model.path)
        _wait_until_ready(processes, learner, timeout_s, on_wait)
        return processes
    except BaseException:
        processes.stop()
        raise


def _check_devices(config: Config) -> None:
    if config.cluster.colocate and not on_gpu(config):
        raise UsageError("cluster.colocate shares a GPU, and there is none: leave it off on CPU")
    if config.learner.device == "cuda" and not ray.cluster_resources().get("GPU"):
        raise UsageError("learner.device is cuda, but Ray sees no GPU")
    ranks, gpus = config.learner.ranks, int(ray.cluster_resources().get("GPU", 0))
    if on_gpu(config) and ranks > gpus:
        raise UsageError(f"learner.ranks is {ranks}, but Ray sees {gpus} GPUs")


def _wait_until_ready(
    processes: Processes, learner: Any, timeout_s: float, on_wait: Callable[[], None]
) -> None:
    """Returns when the learner, a worker and a server are ready, and the other servers too, unless there
    is no room for them yet or they take much longer. From then on what fails is started anew."""
    began, first = time.monotonic(), None
    servers, workers = processes.servers, processes.workers
    while True:
        on_wait()
        servers.poll()
        workers.poll()
        if learner is not None and ray.wait([learner], timeout=0)[0]:
            ray.get(learner)
            learner = None
        if learner is None and servers.in_state(State.SYNCING, State.SERVING) and workers.pick():
            first = first or time.monotonic()
            if not servers.in_state(State.STARTING) or time.monotonic() - first > TOGETHER_S:
                break
        if time.monotonic() - began > timeout_s:
            raise ServerError(_not_ready(processes, learner, timeout_s))
        time.sleep(0.05)
    servers.restarts = workers.restarts = True
    for replica in servers.in_state(State.PENDING):
        servers.tell(f"the cluster has no room for {replica.name} yet: the run begins without it")


def _not_ready(processes: Processes, learner: Any, timeout_s: float) -> str:
    waiting = [part for part in (processes.servers.describe(), processes.workers.describe()) if part]
    if learner is not None:
        waiting.append(processes.describe_learner())
    hint = "; pending: the cluster lacks CPUs or GPUs for it" if "pending" in " ".join(waiting) else ""
    return f"not ready after {timeout_s:.0f} s: {'; '.join(waiting)}{hint}; logs: {processes.log_dir}"


def unwrap(error: BaseException) -> ReasonerError:
    """The error a user can act on, out of the wrapping that Ray puts around it."""
    cause = getattr(error, "cause", None)
    for candidate in (cause, error):  # Ray's error is of the cause's type too, with a traceback as its text
        if isinstance(candidate, ReasonerError):
            return candidate
    if isinstance(error, PROCESS_GONE):
        return ServerError(f"a process of the run died: {error}")
    shown = cause if isinstance(cause, BaseException) else error
    return ReasonerError(f"{type(shown).__name__}: {shown}")
