"""A rollout worker as a Ray actor: `rollouts.worker` in a process of its own, with its own verifier pool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envs.tasks import load_tasks, verifiers_of
from reasoner.config import Config
from reasoner.logs import log_to
from reasoner.model_source import ModelSource
from reasoner.servers import context_tokens
from reasoner.types import SamplingParams, Task
from rollouts.process import die_with_parent, redirect_output
from rollouts.sampler import Sampler
from rollouts.worker import GroupResult, RolloutWorker, build_worker
from verifiers import VerifierPool
from verifiers.by_task import expecting


class WorkerActor:
    """`setup` is a call, and no constructor, so that its errors arrive as they are."""

    async def setup(
        self, model: ModelSource, template: str, config: Config, verifier: Any, log_file: Path
    ) -> None:
        redirect_output(log_file)
        die_with_parent()
        log_to(log_file)
        source, keys = load_tasks(config.tasks.source, config.seed), config.verifier
        judge = expecting(verifier, verifiers_of(source))
        self.worker: RolloutWorker = build_worker(
            str(model.path),
            source,
            template,
            VerifierPool(judge, workers=keys.processes, timeout_s=keys.timeout_s or None),
            context_tokens(config, model),
        )

    async def run(
        self,
        tasks: Sequence[Task],
        group_size: int,
        params: SamplingParams,
        first_index: int,
        sampler: Sampler,
    ) -> list[GroupResult]:
        return await self.worker.run(tasks, group_size, params, first_index, sampler)

    async def ping(self) -> None:
        """Returns when the process is alive and its event loop turns."""

    async def close(self) -> None:
        self.worker.verifiers.close()
