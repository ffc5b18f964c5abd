"""What is evaluated: everything is checked here, before anything expensive starts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from envs.specs import nearest
from envs.tasks import TaskSource, load_tasks, splits_of
from reasoner.checkpoint import CheckpointStore, load_state
from reasoner.config import Config
from reasoner.errors import UsageError
from reasoner.evaluation.budgets import ANSWER_TOKENS, default_force_text, points_of
from reasoner.evaluation.compare import check_comparable
from reasoner.evaluation.store import Point
from reasoner.flops import FlopCounter
from reasoner.model_source import ModelSource, resolve_model
from reasoner.run import is_run, prompt_template, reopen
from reasoner.servers import context_tokens, with_room
from reasoner.types import SamplingParams, Task
from rollouts.endpoint import Endpoint
from verifiers import load_verifier

_WHOLE_FILE = 1 << 30  # larger weight files are fingerprinted by samples of their bytes
_PIECE = 1 << 20
TRAINING_SPLITS = ("train_seen", "train_fresh")
FRESH = 10**8  # a position in the training stream that no run has reached


@dataclass(frozen=True)
class EvalOptions:
    """What `reasoner eval` can do beside `Config`. `out`: the evaluation's directory (None: chosen)."""

    out: Path | None = None
    budgets: tuple[int, ...] = ()  # tokens of thinking
    force_text: str | None = None  # what makes the model answer at a budget; None: by the template
    extend: str | None = None  # what makes it think on when it ends
    extend_times: int = 1
    scorer: str | None = None  # a verifier whose reward ranks samples in best-of-k; None: their mean logprob
    endpoint: Endpoint | None = None  # instead of servers of ours
    all_tasks: bool = False  # tasks without evaluation splits are evaluated whole
    splits: tuple[str, ...] = ()  # only these; (): all that the tasks have
    compare: Path | None = None  # the directory of another evaluation of the same problems
    generalisation: bool = False  # of a run: also problems of its training, fresh ones, and forgetting
    checkpoints: tuple[int, ...] | None = None  # of a run: these steps, () for all
    home: Path | None = None  # where evaluations are kept; None: RUN/eval or evals
    quiet: bool = False

    def __post_init__(self) -> None:
        if any(budget < 1 for budget in self.budgets):
            raise UsageError(f"a budget must be at least 1 token, got {min(self.budgets)}")
        if self.extend is not None and not self.extend:
            raise UsageError("--extend needs a text, such as --extend Wait")
        if self.generalisation and self.checkpoints is not None:
            raise UsageError("--generalisation is of one checkpoint: leave out --checkpoints")
        if self.force_text is not None and not self.budgets:
            raise UsageError("--force-text is what makes the model answer at a budget: give --budgets too")
        if self.extend_times < 1:
            raise UsageError(f"--extend-times must be at least 1, got {self.extend_times}")


@dataclass(frozen=True)
class Plan:
    """An evaluation that can start."""

    config: Config
    options: EvalOptions
    name: str  # of the model
    model: ModelSource | None  # None: an endpoint
    source: TaskSource
    template: str  # "base", "chat", or a text with {prompt}
    verifier: Any
    tasks: Mapping[str, tuple[Task, ...]]
    params: SamplingParams
    points: tuple[Point, ...]
    flops: FlopCounter | None
    directory: Path
    identity: Mapping[str, Any]


def make_plan(config: Config, options: EvalOptions, verifier: Any = None) -> Plan:
    """Raises UsageError for a model, tasks, verifier or budget that cannot be used."""
    config = _with_budgets(config, options)
    endpoint = options.endpoint
    model = None if endpoint else resolve_model(config.model)
    if model is not None:
        template = prompt_template(config.tasks.template, model)
        context_tokens(config, model)
        if config.server.addresses:
            raise UsageError(
                "evaluation starts its own server: leave server.addresses out, or use --endpoint"
            )
    else:
        assert endpoint is not None
        template = "chat" if config.tasks.template == "auto" else config.tasks.template
    source = load_tasks(config.tasks.source, config.seed)
    spec = verifier if verifier is not None else config.verifier.name
    load_verifier(spec)
    if options.scorer:
        load_verifier(options.scorer)
    params = SamplingParams(config.rollout.max_tokens, config.rollout.temperature, config.rollout.stop)
    force = options.force_text if options.force_text is not None else default_force_text(template)
    tasks = choose_tasks(source, config, options.all_tasks, options.splits)
    if options.generalisation:
        tasks |= training_splits(config)
    if options.compare is not None:
        check_comparable(options.compare, tasks)
    if model is not None:
        asked = (task for problems in tasks.values() for task in problems)
        config = with_room(config, model, asked, beside=ANSWER_TOKENS)
    name = endpoint.model if endpoint else config.model
    identity = {
        "model": f"{endpoint.url} {endpoint.model}" if endpoint else _model_hash(model.path),  # type: ignore[union-attr]
        "tasks": config.tasks.source,
        "template": template,
        "sampling": {
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "stop": list(params.stop),
            "seed": config.seed,
        },
        "verifier": spec if isinstance(spec, str) else getattr(spec, "__qualname__", type(spec).__name__),
        "scorer": options.scorer,
    }
    return Plan(
        config=config,
        options=options,
        name=name,
        model=model,
        source=source,
        template=template,
        verifier=spec,
        tasks=tasks,
        params=params,
        points=points_of(options.budgets, force, options.extend, options.extend_times),
        flops=FlopCounter.from_config(json.loads((model.path / "config.json").read_text()))
        if model
        else None,
        directory=options.out or _directory(config, name, identity, options.home),
        identity=identity,
    )


def choose_tasks(
    source: TaskSource, config: Config, everything: bool, chosen: Sequence[str] = ()
) -> dict[str, tuple[Task, ...]]:
    """The evaluation splits of a source (the `chosen` ones, when there are any); of one without, with
    `everything`, all its tasks. UsageError for a split that it has not got."""
    wanted, there = config.eval.problems, splits_of(source)
    if unknown := [name for name in chosen if name not in there]:
        raise UsageError(
            f"{config.tasks.source} has no split {unknown[0]!r}{nearest(unknown[0], there)} "
            f"(it has {', '.join(there)})"
        )
    tasks = {split: tuple(found) for split in chosen or there if (found := source.split(split, wanted))}
    if chosen and not tasks:
        raise UsageError(f"{config.tasks.source} has no tasks in {' or '.join(chosen)}")
    if not tasks and everything and getattr(source, "training", None):
        tasks = {source.name: tuple(source.training[:wanted])}  # type: ignore[attr-defined]
    if not tasks:
        raise UsageError(
            f"{config.tasks.source} has neither held-out nor out-of-distribution tasks: "
            'give some lines "split": "held_out", or name the file with --tasks to evaluate all of it'
        )
    for split, problems in tasks.items():
        for task in problems:
            if not any(reference.strip() for reference in task.references):
                raise UsageError(f"{config.tasks.source}: task {task.id} of {split} has no reference answer")
    return tasks


def run_of(model: str) -> Path | None:
    """The run that a model is a run, or a checkpoint, of."""
    path = Path(model)
    if is_run(model):
        return reopen(model, {})[0]
    return path.parent.parent if path.parent.name == "checkpoints" and is_run(path.parent.parent) else None


def base_of(model: str) -> tuple[ModelSource, Config]:
    """The model that a run began from, and the run's own configuration. UsageError for what is no run."""
    run = run_of(model)
    if run is None:
        raise UsageError(f"--generalisation compares with a run's own training, and {model} is no run")
    _, own = reopen(run, {})
    return resolve_model(own.model), own


def training_splits(config: Config) -> dict[str, tuple[Task, ...]]:
    """Problems the run was trained on, and fresh ones from the same generator. UsageError for a run whose
    problems are finite: it has no fresh ones of the same kind."""
    _, own = base_of(config.model)
    source = load_tasks(own.tasks.source, own.seed)
    run = run_of(config.model)
    latest = None if run is None else CheckpointStore(run).latest()
    if source.finite or latest is None:
        raise UsageError(f"--generalisation needs a generator of fresh problems, not {own.tasks.source}")
    seen = min(load_state(latest)["next_index"], config.eval.problems)
    names = {
        name: range(start, start + seen) for name, start in zip(TRAINING_SPLITS, (0, FRESH), strict=True)
    }
    return {name: tuple(source.train(i) for i in indices) for name, indices in names.items()}


def _with_budgets(config: Config, options: EvalOptions) -> Config:
    """Chains are as long as the largest budget."""
    longest = max((config.rollout.max_tokens, *options.budgets))
    rollout = config.rollout.model_copy(update={"max_tokens": longest})
    config = config.model_copy(update={"rollout": rollout})
    if options.budgets and config.server.context_tokens == 0 and options.endpoint is None:
        context = resolve_model(config.model).context_length
        if longest + ANSWER_TOKENS >= context:
            raise UsageError(
                f"a budget of {longest} tokens and an answer of {ANSWER_TOKENS} do not fit the context of "
                f"{config.model}, {context} tokens: lower --budgets or --max-tokens"
            )
    return config


def _directory(config: Config, name: str, identity: Mapping[str, Any], home: Path | None) -> Path:
    """`RUN/eval/…` for a run, else `evals/…`: readable, and one for each fingerprint."""
    fingerprint = blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=4).hexdigest()
    tasks = _plain(Path(config.tasks.source.split(":")[0]).stem)
    path = Path(name)
    if is_run(name):
        run, _ = reopen(name, {})
        home, path = home or run / "eval", resolve_model(name).path
    elif path.parent.name == "checkpoints" and is_run(path.parent.parent):
        home = home or path.parent.parent / "eval"
    return (home or Path("evals")) / f"{_plain(path.name or name)}-{tasks}-{fingerprint}"


def _plain(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[:60] or "model"


def _model_hash(path: Path) -> str:
    """A fingerprint of configuration, tokenizer and weights; of files over a GiB only pieces are read."""
    digest = blake2b(digest_size=16)
    names = ("*.json", "*.safetensors", "pytorch_model*.bin", "*.jinja", "*.model")
    for file in sorted({f for name in names for f in path.glob(name)}):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as data:
            if size <= _WHOLE_FILE:
                while piece := data.read(_PIECE):
                    digest.update(piece)
            else:
                for i in range(256):
                    data.seek(i * (size - _PIECE) // 255)
                    digest.update(data.read(_PIECE))
    return digest.hexdigest()
