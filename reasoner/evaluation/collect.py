"""Samples what is missing: whole chains first, then what is to be done with each (cuts, extensions).

Everything that finishes is committed within `COMMIT_S`, whatever happens to the rest: an error or Ctrl-C
ends the evaluation only after that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from reasoner.evaluation.budgets import applies, follow, parent_of
from reasoner.evaluation.generate import Chain, Generator
from reasoner.evaluation.grade import Grader
from reasoner.evaluation.progress import Progress
from reasoner.evaluation.store import CHAIN, EvalStore, Point, Sample
from reasoner.types import SamplingParams, Task

COMMIT_S = 0.2


@dataclass
class Work:
    """One sample of one task and what is missing of it."""

    split: str
    position: int  # of the task in its split
    task: Task
    index: int  # of the sample
    missing: tuple[Point, ...]
    rows: dict[Point, Sample] = field(default_factory=dict)  # what is there already


def missing_work(
    store: EvalStore,
    tasks: Mapping[str, Sequence[Task]],
    samples: int,
    points: Sequence[Point],
    max_tokens: int,
) -> Iterator[Work]:
    """Everything still to be sampled, task by task, so that a server shares the prefill of a prompt."""
    for split, problems in tasks.items():
        there = store.keys(split)
        rows: dict[tuple[str, int], dict[Point, Sample]] = {}
        if points:
            for sample in store.samples(split):
                rows.setdefault((sample.task_id, sample.index), {})[sample.point] = sample
        for position, task in enumerate(problems):
            for index in range(samples):
                mine = rows.get((task.id, index), {})
                if (split, task.id, index, *CHAIN) not in there:
                    yield Work(split, position, task, index, (CHAIN, *points), mine)
                elif missing := _missing_points(points, mine, max_tokens):
                    yield Work(split, position, task, index, missing, mine)


def _missing_points(
    points: Sequence[Point], rows: Mapping[Point, Sample], max_tokens: int
) -> tuple[Point, ...]:
    missing: list[Point] = []
    for point in points:
        parent = rows.get(parent_of(point))
        if point in rows or (parent is not None and not applies(point, parent, max_tokens)):
            continue
        if parent is not None or parent_of(point) in missing:
            missing.append(point)
    return tuple(missing)


class Collector:
    """Runs work through a generator into the store, and has it graded beside."""

    def __init__(
        self,
        store: EvalStore,
        generator: Generator,
        grader: Grader,
        params: SamplingParams,
        progress: Progress,
        seed: int,
    ) -> None:
        self._store, self._generator, self._grader = store, generator, grader
        self._params, self._progress, self._seed = params, progress, seed
        self._finished: list[Sample] = []
        self._done = self._tokens = 0  # work done and tokens sampled since the last commit
        self.tokens_sampled = 0
        self._grading: list[Future[None]] = []
        self._grading_thread = ThreadPoolExecutor(1, thread_name_prefix="grading")

    async def run(self, work: Sequence[Work]) -> None:
        """Samples all of `work`. What has finished is in the store however this ends; the first error of a
        sample ends it."""
        slots = asyncio.Semaphore(self._generator.max_in_flight)
        try:
            async with self._committing():
                try:
                    async with asyncio.TaskGroup() as group:
                        for item in work:
                            await slots.acquire()
                            group.create_task(self._one(item, slots))
                except* Exception as errors:
                    raise _first(errors) from None
            await asyncio.to_thread(self._wait_for_grades)
        finally:
            self._grading_thread.shutdown(wait=False, cancel_futures=True)

    async def _one(self, work: Work, slots: asyncio.Semaphore) -> None:
        try:
            rows = dict(work.rows)
            for point in work.missing:
                params = self._params
                if self._generator.seeded:
                    params = replace(params, seed=sample_seed(self._seed, work, point))
                if point == CHAIN:
                    chain = await self._generator.chain(work.task, work.position, params)
                    sample = _from_chain(work, chain)
                else:
                    parent = rows.get(parent_of(point))
                    if parent is None or not applies(point, parent, self._params.max_tokens):
                        continue
                    sample = await follow(self._generator, point, parent, work.position, params)
                rows[point] = sample
                self._finished.append(sample)
                before = 0 if point == CHAIN else rows[parent_of(point)].tokens
                self._tokens += max(0, sample.tokens - before)
            self._done += 1
        finally:
            slots.release()

    @asynccontextmanager
    async def _committing(self) -> AsyncIterator[None]:
        """Commits what finishes while the block runs, and the rest when it ends, however it ends."""
        running = asyncio.create_task(self._commit_often())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            self._commit()

    async def _commit_often(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_S)
            self._commit()

    def _commit(self) -> None:
        samples, self._finished = self._finished, []
        if not samples:
            return
        self._store.add(samples)
        self._progress.add(self._done, self._tokens)
        self.tokens_sampled += self._tokens
        self._done = self._tokens = 0
        if not self._grader.needs_groups:
            self._grading.append(self._grading_thread.submit(self._grader.grade, samples))

    def _wait_for_grades(self) -> None:
        for future in self._grading:
            future.result()


def sample_seed(seed: int, work: Work, point: Point) -> int:
    """The seed of a sample: of its place alone, so that more samples later are other samples."""
    place = (
        f"{seed}\0{work.split}\0{work.task.id}\0{work.index}\0{point.kind}\0{point.amount}\0{point.suffix}"
    )
    return int.from_bytes(blake2b(place.encode(), digest_size=4).digest(), "big")


def _from_chain(work: Work, chain: Chain) -> Sample:
    return Sample(
        split=work.split,
        task_id=work.task.id,
        index=work.index,
        point=CHAIN,
        completion=chain.completion,
        said=chain.said,
        token_ids=chain.token_ids,
        logprobs=chain.logprobs,
        mean_logprob=chain.mean_logprob,
        prompt_tokens=chain.prompt_tokens,
        tokens=chain.tokens,
        thinking_tokens=chain.tokens,
        truncated=chain.truncated,
        seconds=chain.seconds,
    )


def _first(errors: BaseExceptionGroup) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
