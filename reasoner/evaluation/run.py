"""`evaluate`: checks, samples what is missing, grades, summarises and writes an evaluation."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from reasoner.config import Config
from reasoner.durable import write_atomically
from reasoner.errors import ReasonerError
from reasoner.evaluation.collect import Collector, Work, missing_work
from reasoner.evaluation.generate import Generator, local_generator
from reasoner.evaluation.grade import Grader
from reasoner.evaluation.plan import EvalOptions, Plan, make_plan
from reasoner.evaluation.progress import Progress
from reasoner.evaluation.store import EvalStore, Sample
from reasoner.evaluation.summary import SplitSamples, budgets_summary, split_summary
from reasoner.run import provenance
from verifiers import VerifierPool

SCHEMA = 1  # of eval.json


def evaluate(
    config: Config,
    *,
    verifier: Any = None,
    options: EvalOptions | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Evaluates `config.model` (or `options.endpoint`) on the splits of `config.tasks.source`; returns the
    contents of eval.json, which is also written to the evaluation's directory, with all samples as Parquet.

    Problems and samples are `config.eval`'s, budget and temperature `config.rollout`'s. Starts and stops its
    own server. What an earlier, also an interrupted, evaluation of the same model, tasks, template, sampling
    and verifier has left in the directory is used. Raises UsageError for a model, tasks or verifier that
    cannot be used; after any error what had finished is kept."""
    options = options or EvalOptions()
    plan = make_plan(config, options, verifier)
    bar = Progress(quiet=options.quiet)
    say = progress or bar.say
    with EvalStore(plan.directory, plan.identity) as store:
        for split, tasks in plan.tasks.items():
            store.add_tasks(split, tasks)
        sampling = _sample_and_grade(plan, store, bar, say)
        result = summarise_store(plan, store) | {"sampling_run": sampling}
        store.export(plan.directory / "samples.parquet")
    write_json(plan.directory / "eval.json", result)
    return result


def _sample_and_grade(
    plan: Plan, store: EvalStore, bar: Progress, say: Callable[[str], None]
) -> dict[str, Any]:
    """Makes what is missing; what this call itself did: samples, tokens and seconds."""
    config = plan.config
    work = list(missing_work(store, plan.tasks, config.eval.samples, plan.points, plan.params.max_tokens))
    tasks = {(split, task.id): task for split, found in plan.tasks.items() for task in found}
    processes, timeout_s = config.verifier.processes, config.verifier.timeout_s
    started, seconds = time.monotonic(), 0.0
    with VerifierPool(plan.verifier, workers=processes, timeout_s=timeout_s) as pool:
        scorer = VerifierPool(plan.options.scorer) if plan.options.scorer else None
        try:
            grader = Grader(store, tasks, pool, scorer)
            if work:
                there = sum(len(found) for found in plan.tasks.values()) * config.eval.samples - len(work)
                seconds = asyncio.run(_collect(plan, store, grader, work, there, bar, say))
            _grade_the_rest(plan, store, grader)
        finally:
            if scorer is not None:
                scorer.close(cancel=True)
    total = time.monotonic() - started
    return {"new_samples": len(work), "sampling_seconds": seconds, "total_seconds": total}


async def _collect(
    plan: Plan,
    store: EvalStore,
    grader: Grader,
    work: list[Work],
    there: int,
    bar: Progress,
    say: Callable[[str], None],
) -> float:
    """Samples `work`; the seconds it took, without starting the servers."""
    what = ", ".join(f"{split} {len(tasks)}" for split, tasks in plan.tasks.items())
    say(f"{what} problems × {plan.config.eval.samples} samples of {plan.name} → {plan.directory}")
    async with _generator(plan, store, say) as generator:
        bar.start(len(work), there)
        started = time.monotonic()
        try:
            await Collector(store, generator, grader, plan.params, bar, plan.config.seed).run(work)
        finally:
            bar.stop()
        return time.monotonic() - started


@asynccontextmanager
async def _generator(plan: Plan, store: EvalStore, say: Callable[[str], None]) -> AsyncIterator[Generator]:
    if plan.model is None:
        from reasoner.evaluation.endpoint import endpoint_generator

        async with endpoint_generator(plan) as generator:
            yield generator
        return
    say(f"starting vLLM with {plan.name} …")
    logs = plan.directory / "logs"
    config = plan.config.model_copy(update={"seed": _server_seed(plan, store)})
    async with local_generator(config, plan.model, plan.source, plan.template, logs) as generator:
        yield generator


def _server_seed(plan: Plan, store: EvalStore) -> int:
    """Another one each time samples are added: the same random numbers would give the same samples."""
    return int(np.random.SeedSequence((plan.config.seed, store.count())).generate_state(1)[0]) >> 1


def _grade_the_rest(plan: Plan, store: EvalStore, grader: Grader) -> None:
    """What an interruption left ungraded, and what can only be graded in whole groups."""
    for split in plan.tasks:
        waiting = list(store.samples(split, graded=False))
        if grader.needs_groups:
            touched = {sample.task_id for sample in waiting}
            waiting = [s for s in store.samples(split) if s.task_id in touched]
        grader.grade([s for s in waiting if (split, s.task_id) in grader.tasks])


def summarise_store(plan: Plan, store: EvalStore) -> dict[str, Any]:
    """The contents of eval.json from what the store holds."""
    config, seed = plan.config, plan.config.seed
    splits = [
        SplitSamples.of(split, tasks, store.samples(split, graded=True), config.eval.samples)
        for split, tasks in plan.tasks.items()
    ]
    check_graded([s for split in splits for group in split.at() for s in group])
    return {
        "schema": SCHEMA,
        "model": plan.name,
        "versions": provenance(),
        "seed": seed,
        "tasks": config.tasks.source,
        "verifier": plan.identity["verifier"],
        "sampling": {
            "max_tokens": plan.params.max_tokens,
            "temperature": plan.params.temperature,
            "template": plan.template,
            "samples": config.eval.samples,
        },
        "splits": {split.name: split_summary(split, plan.flops, seed) for split in splits},
        "budgets": budgets_summary(splits, plan.points, plan.flops, seed),
        "exchange_rate": None,
        "directory": str(plan.directory),
    }


def check_graded(samples: list[Sample]) -> None:
    """Raises ReasonerError when the verifier scored nothing at all: it is broken, or the references are."""
    verdicts = [s.grade.verdict for s in samples if s.grade]
    if verdicts and all(v.status in ("error", "bad_reference") for v in verdicts):
        raise ReasonerError(
            f"the verifier scored none of {len(verdicts)} samples: {verdicts[0].status}: {verdicts[0].detail}"
        )


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
