"""`evaluate`: checks, samples what is missing, grades, summarises and writes an evaluation."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from reasoner.config import Config
from reasoner.durable import write_atomically
from reasoner.errors import ReasonerError, UsageError
from reasoner.evaluation.checkpoints import evaluate_checkpoints
from reasoner.evaluation.collect import Collector, Work, missing_work
from reasoner.evaluation.compare import compare
from reasoner.evaluation.costs import Prices
from reasoner.evaluation.forgetting import forgetting
from reasoner.evaluation.generate import Generator, local_generator
from reasoner.evaluation.grade import Grader
from reasoner.evaluation.plan import TRAINING_SPLITS, EvalOptions, Plan, base_of, make_plan
from reasoner.evaluation.progress import Progress
from reasoner.evaluation.standard_results import standard_results
from reasoner.evaluation.store import EvalStore, Sample
from reasoner.evaluation.summary import (
    SplitSamples,
    budgets_summary,
    problems_of,
    split_summary,
    unpaired_difference,
)
from reasoner.logs import log_file
from reasoner.run import is_run, provenance, reopen
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
    if options.checkpoints is None:
        return _evaluate_one(config, options, verifier, progress)
    if not is_run(config.model):
        raise UsageError(f"--checkpoints evaluates those of a run, and {config.model} is none")
    run, own = reopen(config.model, {})
    one = replace(options, out=None, home=options.out or run / "eval", checkpoints=None)
    result = evaluate_checkpoints(
        run,
        config.model_copy(update={"model": own.model}),
        options.checkpoints,
        lambda c: _evaluate_one(c, one, verifier, progress),
    )
    write_outputs(result)
    return result


def _evaluate_one(
    config: Config, options: EvalOptions, verifier: Any, progress: Callable[[str], None] | None
) -> dict[str, Any]:
    plan = make_plan(config, options, verifier)
    bar = Progress(quiet=options.quiet)
    say = progress or bar.say
    with EvalStore(plan.directory, plan.identity) as store:
        for split, tasks in plan.tasks.items():
            store.add_tasks(split, tasks)
        _sample_and_grade(plan, store, bar, say)
        result, splits = summarise_store(plan, store)
        store.export(plan.directory / "samples.parquet")
    write_json(plan.directory / "results.json", standard_results(result, splits))
    write_outputs(result)
    return result


def _sample_and_grade(plan: Plan, store: EvalStore, bar: Progress, say: Callable[[str], None]) -> None:
    """Makes what is missing."""
    config = plan.config
    work = list(missing_work(store, plan.tasks, config.eval.samples, plan.points, plan.params.max_tokens))
    tasks = {(split, task.id): task for split, found in plan.tasks.items() for task in found}
    processes, timeout_s = config.verifier.processes, config.verifier.timeout_s or None
    failed = [s for split in plan.tasks for s in store.samples(split) if _broke(s) and s.key[:2] in tasks]
    if not work and not failed and not any(list(store.samples(s, graded=False)) for s in plan.tasks):
        return
    with (
        log_file(plan.directory / "logs" / "driver.log"),
        VerifierPool(plan.verifier, workers=processes, timeout_s=timeout_s) as pool,
    ):
        scorer = VerifierPool(plan.options.scorer) if plan.options.scorer else None
        try:
            grader = Grader(store, tasks, pool, scorer)
            grader.grade(failed)  # the verifier may have been mended since
            if work:
                there = sum(len(found) for found in plan.tasks.values()) * config.eval.samples - len(work)
                asyncio.run(_collect(plan, store, grader, work, there, bar, say))
            _grade_the_rest(plan, store, grader)
        finally:
            if scorer is not None:
                scorer.close(cancel=True)


async def _collect(
    plan: Plan,
    store: EvalStore,
    grader: Grader,
    work: list[Work],
    there: int,
    bar: Progress,
    say: Callable[[str], None],
) -> None:
    """Samples `work`, and records how long that took without the start of the servers."""
    what = ", ".join(f"{split} {len(tasks)}" for split, tasks in plan.tasks.items())
    say(f"{what} problems × {plan.config.eval.samples} samples of {plan.name} → {plan.directory}")
    async with _generator(plan, store, say) as generator:
        bar.start(len(work), there)
        started = time.monotonic()
        collector = Collector(store, generator, grader, plan.params, bar, plan.config.seed)
        try:
            await collector.run(work)
        finally:
            bar.stop()
            store.add_session(collector.tokens_sampled, time.monotonic() - started)


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
    async with local_generator(config, plan.model, plan.source, plan.template, logs, say) as generator:
        yield generator


def _broke(sample: Sample) -> bool:
    return sample.grade is not None and sample.grade.verdict.status == "error"


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


def summarise_store(plan: Plan, store: EvalStore) -> tuple[dict[str, Any], list[SplitSamples]]:
    """The contents of eval.json from what the store holds, and the samples behind it."""
    config, seed = plan.config, plan.config.seed
    splits = [
        SplitSamples.of(split, tasks, store.samples(split, graded=True), config.eval.samples)
        for split, tasks in plan.tasks.items()
    ]
    check_graded([s for split in splits for group in split.at() for s in group])
    per_token, prices = store.seconds_per_token(), Prices.of(plan.options.endpoint)
    result = {
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
        "splits": {s.name: split_summary(s, plan.flops, seed, per_token, prices) for s in splits},
        "budgets": budgets_summary(splits, plan.points, plan.flops, seed),
        "exchange_rate": None,
        "directory": str(plan.directory),
    }
    if plan.options.compare is not None:
        result["comparison"] = compare(splits, plan.options.compare, seed)
    if plan.options.generalisation:
        result["generalisation"] = generalisation(plan, splits)
    return result, splits


def check_graded(samples: list[Sample]) -> None:
    """Raises ReasonerError when the verifier scored nothing at all: it is broken, or the references are."""
    verdicts = [s.grade.verdict for s in samples if s.grade]
    if verdicts and all(v.status in ("error", "bad_reference") for v in verdicts):
        raise ReasonerError(
            f"none of {len(verdicts)} samples was scored: {verdicts[0].status}: {verdicts[0].detail}"
        )


def generalisation(plan: Plan, splits: list[SplitSamples]) -> dict[str, Any]:
    """Splits side by side, what was seen in training against what was not, and forgetting."""
    accuracy = {s.name: split_summary(s, None, plan.config.seed)["avg@k"] for s in splits}
    seen, fresh = (problems_of(s) for name in TRAINING_SPLITS for s in splits if s.name == name)
    difference = unpaired_difference(seen, fresh, plan.config.seed)
    base, _ = base_of(plan.config.model)
    forgot = forgetting(base.path, plan.model.path) if plan.model is not None else None
    return {"accuracy": accuracy, "memorisation": difference, "forgetting": forgot}


def write_outputs(result: dict[str, Any]) -> None:
    """eval.json, the page and the plots, in the evaluation's directory."""
    from reasoner.eval_page import write_eval_page
    from reasoner.plots import write_plots

    directory = Path(result["directory"])
    write_json(directory / "eval.json", result)
    write_eval_page(result, directory / "samples.parquet", directory / "eval.html")
    write_plots(result, directory / "plots")


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
