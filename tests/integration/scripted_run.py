"""Whole runs without vLLM: the real loop, learner, workers, verifier and journal around a scripted server.

What the server says is a function of the prompt and of the place in the group, so that two runs can only
differ in what the loop and the learner do."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from tiny_model import END

from reasoner.learner_actor import LearnerActor
from reasoner.types import SamplingParams, SyncReport, TrainBatch
from rollouts.packing import PackedCompletions, PackedSequences, pack_completions
from rollouts.scripted import ScriptedSampler
from rollouts.server import ServerStats

PRINTABLE = (2, 96)  # tokens of the tiny model that decode to one ASCII character each


def even(completion: str, task: Any) -> bool:
    """The verifier of these runs."""
    return len(completion) % 2 == 0


def respond(prompt: list[int], params: SamplingParams, place: int) -> Sequence[int]:
    """2 to 11 characters; every third prompt gets an even number of them each time, and is soon retired."""
    prompt_hash = zlib.crc32(np.array(prompt, np.int32).tobytes())
    rng = np.random.default_rng([prompt_hash, place])
    length = int(rng.integers(2, 12))
    length -= length % 2 if prompt_hash % 3 == 0 else 0
    return [*rng.integers(*PRINTABLE, length).tolist(), END]


class ScriptedServer:
    """Takes the place of `VLLMServer`."""

    def __init__(self, config: Any, log_path: str | None = None) -> None:
        self.current = 0

    async def generate(self, prompts: PackedSequences, params: SamplingParams) -> PackedCompletions:
        sampler = ScriptedSampler(respond, logprob=-5.7, version=self.current)
        return pack_completions(await sampler.generate(prompts.unpack(), params))

    async def health(self) -> None: ...

    async def version(self) -> int:
        return self.current

    async def set_version(self, version: int) -> None:
        self.current = version

    async def stats(self) -> ServerStats:
        return ServerStats(self.current, 0, 0, 0, 0, 0, 0, 0.0, 0.0)


class ScriptedLearner(LearnerActor):
    """The real learner; a scripted server has no weights, so only the version is sent."""

    def _sync(self, version: int, servers: Mapping[str, Any]) -> SyncReport:
        ray.get([sampler.actor.set_version.remote(version) for sampler in servers.values()])
        return SyncReport(version)


SYNC_S = 0.6
FATAL_VERSION = 4


class SlowLearner(ScriptedLearner):
    """Its weights are on their way for `SYNC_S`; once it dies meanwhile. Its updates say what they met."""

    def update(self, batch: TrainBatch, lr_scale: float) -> Any:
        begun_meanwhile = self.syncing is not None and not self.syncing.done()
        result = super().update(batch, lr_scale)
        result.metrics["begun_meanwhile"] = float(begun_meanwhile)
        return result

    def _sync(self, version: int, servers: Mapping[str, Any]) -> SyncReport:
        before = self._weights()
        time.sleep(SYNC_S)
        grave = Path(self.config.runs_dir) / "died"
        if version == FATAL_VERSION and not grave.exists():
            grave.touch()
            os._exit(1)
        report = super()._sync(version, servers)
        changed = float((self._weights() - before).abs().max())
        return replace(report, seconds=SYNC_S, probe_max_abs_diff=changed)

    def _weights(self) -> Any:
        import torch

        return torch.cat([p.detach().flatten().clone() for p in self.learner.model.parameters()])


def write_tasks(path: Path, count: int) -> Path:
    tasks = [
        {"id": f"t{i}", "prompt": f"{i}+{i}=", "reference": str(2 * i), "family": "abc"[i % 3]}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(task) + "\n" for task in tasks))
    return path


def metrics_without_timings(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "_per_s", "_s")
    return [{k: v for k, v in line.items() if not k.endswith(timed)} for line in lines]
