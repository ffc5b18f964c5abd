"""How many completions one driver moves: scripted samplers, so that nothing but the control plane works.

`control_plane_completions_per_s`: requests go out through the dispatcher to Ray workers, whose scripted
samplers answer with completions of 1,000 tokens; the groups come back to the driver, into the queue by the
admission rule, and out of it as batches. The journal, which makes each group durable with an fsync a batch,
is measured as `control_plane_journaled_completions_per_s` in the same way, until every step's rollouts are in
their Parquet file: it is the disk's figure as much as ours. `control_plane_memory_mib` is what the driver
grew by over the second half of the run without it.

The workers only hand out groups that they made beforehand, one for each request: making them is no part of
the control plane.

    python -m benchmarks.control_plane [--seconds 20] [--workers 2]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.figures import Figure, report
from reasoner.cluster import connected
from reasoner.journal import Journal
from reasoner.types import NO_VERSION, Group, Rollout, SamplingParams, Task, Verdict
from rollouts.dispatch import Dispatcher
from rollouts.fleet import Fleet
from rollouts.launchers import WorkerLauncher
from rollouts.queue import RolloutQueue
from rollouts.worker import GroupResult

TOKENS, PROMPT, GROUP, GROUPS_PER_STEP = 1000, 24, 16, 32
VARIANTS = 16  # of groups: the same text in every row would compress too well
PARAMS = SamplingParams(max_tokens=TOKENS)


class ScriptedWorker:
    """Answers with one of `VARIANTS` groups of `TOKENS` random tokens per rollout, under the index it is
    asked for."""

    async def setup(self, log_file: Path) -> None:
        rng = np.random.default_rng(0)
        length = PROMPT + TOKENS
        self._action = np.arange(length) >= PROMPT
        self._groups = [tuple(self._rollout(rng, length) for _ in range(GROUP)) for _ in range(VARIANTS)]

    def _rollout(self, rng: np.random.Generator, length: int) -> Rollout:
        return Rollout(
            task=Task("t", "1+1", "2"),
            token_ids=rng.integers(0, 30_000, length, dtype=np.int32),
            action_mask=self._action,
            behaviour_logprobs=rng.standard_normal(length, dtype=np.float32),
            policy_version=np.full(length, NO_VERSION, np.int32),
            completion=rng.integers(97, 123, 3 * TOKENS, dtype=np.uint8).tobytes().decode(),
            terminated=True,
            truncated=False,
            verdict=Verdict.correct("2"),
        )

    async def run(
        self, tasks: Sequence[Task], group_size: int, params: SamplingParams, first_index: int, sampler: Any
    ) -> list[GroupResult]:
        (task,) = tasks
        versions = np.where(self._action, sampler.version, NO_VERSION).astype(np.int32)
        group = self._groups[first_index % VARIANTS]
        rollouts = tuple(replace(r, task=task, policy_version=versions) for r in group)
        return [GroupResult(Group(task, rollouts, first_index), 0.0)]

    async def ping(self) -> None: ...


class ScriptedServer:
    """Stands where a server and its launcher stand; the worker takes nothing from it but the version."""

    name, max_failures = "scripted", 1

    def __init__(self) -> None:
        self.version = 0

    def start(self) -> ScriptedServer:
        return self

    async def health(self) -> None: ...

    def placed(self) -> bool:
        return True

    def kill(self, handle: Any) -> None: ...

    def last_words(self) -> str:
        return ""


def move(
    dispatcher: Dispatcher, server: ScriptedServer, seconds: float, first_index: int, journal: Journal | None
) -> tuple[float, list[int], int]:
    """(completions/s, the driver's memory in bytes after each batch, next index) of `seconds` of moving."""
    queue = RolloutQueue(GROUPS_PER_STEP, max_staleness=1, max_concurrent=2 * GROUPS_PER_STEP)
    server.version = 0
    tickets: set[int] = set()
    moved, memory, compactions, index = 0, [], [], first_index
    process = psutil.Process()
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        for _ in range(queue.admissible):
            ticket = dispatcher.submit([Task(f"t{index}", "1+1", "2")], GROUP, PARAMS, index)
            tickets.add(ticket)
            queue.start(ticket)
            index += 1
        finished = dispatcher.finished(tickets, timeout_s=1.0)
        if journal is not None and finished:
            journal.append_groups(None, [r.group for (r,) in finished.values()], PARAMS)
        for ticket, (result,) in finished.items():
            tickets.remove(ticket)
            queue.finish(ticket, result.group)
        while queue.batch_ready:
            batch, stale = queue.take_batch()
            assert not stale
            queue.version = queue.serving = queue.version + 1
            server.version = queue.version
            moved += sum(len(group.rollouts) for group in batch)
            memory.append(process.memory_info().rss)
            if journal is not None:
                journal.mark_dropped(queue.version, [group.index for group in batch], "filtered")
                compactions.append(journal.compact(queue.version))
    for compaction in compactions:  # what is not written yet has not been moved
        compaction.result()
    rate = moved / (time.perf_counter() - started)
    while tickets:
        tickets -= dispatcher.finished(tickets, timeout_s=1.0).keys()
    return rate, memory, index


def cpu_s() -> dict[str, float]:
    """CPU seconds so far of the driver, and of it with Ray and the workers, its children."""
    driver = psutil.Process()
    everybody = [p.cpu_times() for p in [driver, *driver.children(recursive=True)]]
    return {"driver": sum(driver.cpu_times()[:2]), "all": sum(t.user + t.system for t in everybody)}


def run(seconds: float, workers: int) -> tuple[list[Figure], dict[str, Any]]:
    """Needs a Ray cluster."""
    with tempfile.TemporaryDirectory() as directory:
        crew = [WorkerLauncher(f"worker-{i}", ScriptedWorker, (), Path(directory)) for i in range(workers)]
        server = ScriptedServer()
        servers, hands = Fleet([server]), Fleet(crew, what="worker")
        while hands.counts()["serving"] < workers:
            servers.poll()
            hands.poll()
            time.sleep(0.05)
        dispatcher = Dispatcher(servers, hands)
        _, _, index = move(dispatcher, server, 2.0, 0, None)  # warm-up
        began, before_s = time.perf_counter(), cpu_s()
        plain, memory, index = move(dispatcher, server, seconds, index, None)
        groups = plain * (time.perf_counter() - began) / GROUP
        cost = {who: 1e3 * (after - before_s[who]) / groups for who, after in cpu_s().items()}
        with Journal(Path(directory) / "run") as journal:
            journaled, _, index = move(dispatcher, server, seconds, index, journal)
        hands.close()
        servers.close()
    growth = (max(memory[len(memory) // 2 :]) - memory[len(memory) // 2]) / 2**20
    figures = [
        Figure("control_plane_completions_per_s", plain, "completions/s"),
        Figure("control_plane_journaled_completions_per_s", journaled, "completions/s"),
        Figure("control_plane_memory_mib", growth, "MiB"),
    ]
    details: dict[str, Any] = {"tokens": TOKENS, "group_size": GROUP, "workers": workers, "seconds": seconds}
    details["cpu_ms_per_group"] = cost  # without the journal; two cores have 2,000 ms a second
    return figures, details


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")
    with connected(""):
        figures, details = run(args.seconds, args.workers)
    report("control_plane", figures, details)


if __name__ == "__main__":
    main()
