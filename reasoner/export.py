"""`reasoner export`: a checkpoint as a plain Hugging Face directory with a model card, to serve or share.

The files of the checkpoint are copied as they are, after their hashes are checked; what only training needs
(`trainer/`) stays behind. The card says what the run has recorded and nothing else: a number that was not
measured is not in it.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from envs.catalogue import licences, without_paths
from reasoner import checkpoint
from reasoner.audit_evidence import at_least
from reasoner.config import Config
from reasoner.curves import get, length_chart, pass_chart
from reasoner.durable import disk_errors
from reasoner.errors import UsageError
from reasoner.metrics import read_metrics
from reasoner.model_source import BUILT_IN
from reasoner.plots import charts_figure
from reasoner.rollout_files import read_table, step_paths
from reasoner.run import reopen

LICENCES = {"embedded": "apache-2.0", "smollm2": "apache-2.0"}  # of the base models we know
LEFT_BEHIND = "trainer"


def export(
    source: str, out: Path, *, which: str = "latest", licence: str | None = None, name: str = ""
) -> Path:
    """Writes the checkpoint `source` (its directory, or a run's `which`: latest, best or a step) to the new
    directory `out`: complete or not at all.

    Raises UsageError when there is no such checkpoint or `out` exists, ReasonerError for a damaged one."""
    run_dir, path = find(source, which)
    if out.exists():
        raise UsageError(f"--out {out} exists already: give a new directory")
    checkpoint.verify(path)
    _, config = reopen(run_dir, {})
    temporary = out.with_name(f".{out.name}.incomplete")
    with disk_errors(out):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copytree(path, temporary, ignore=lambda at, _: [LEFT_BEHIND] if Path(at) == path else [])
            write_card(run_dir, path, config, temporary, name or out.name, licence)
            temporary.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return out


def find(source: str, which: str) -> tuple[Path, Path]:
    """The run and the checkpoint that `source` and `which` mean; UsageError when there is none."""
    directory = Path(source).resolve()
    if (directory / LEFT_BEHIND / "state.json").is_file():
        run_dir = directory.parent.parent
        if not (run_dir / "config.toml").is_file():
            raise UsageError(f"{source} is a checkpoint outside of its run: the model card needs the run")
        return run_dir, directory
    run_dir, _ = reopen(source, {})
    store = checkpoint.CheckpointStore(run_dir)
    if which.isdecimal():
        there = {int(p.name.removeprefix("step_")): p for p in store.complete()}
        path = there.get(int(which))
        if path is None:
            raise UsageError(
                f"{run_dir} has no checkpoint of step {which}: {', '.join(map(str, there)) or 'none'}"
            )
        return run_dir, path
    if which not in ("latest", "best"):
        raise UsageError(f"--checkpoint {which}: expected latest, best or a step")
    path = store.latest() if which == "latest" else store.best()
    if path is None:
        raise UsageError(f"the run {run_dir} has no complete checkpoint ({which}) yet")
    return run_dir, path.resolve()


def write_card(
    run_dir: Path, path: Path, config: Config, out: Path, name: str, licence: str | None = None
) -> None:
    """README.md and, where there are curves, curves.png."""
    step = checkpoint.load_state(path)["step"]
    entries = [e for e in read_metrics(run_dir) if e["step"] <= step]
    charts = [c for c in (pass_chart(entries), length_chart(entries)) if any(s.points for s in c.series)]
    if charts:
        charts_figure(charts).savefig(out / "curves.png", dpi=160)
    base, is_hub = _base(config.model)
    prompt, chat = _prompt(run_dir, out)
    own = _licence_of(Path(config.model)) or LICENCES.get(config.model)
    request = {"model": name, "prompt": prompt, "max_tokens": config.rollout.max_tokens}
    environment = Environment(
        loader=PackageLoader("reasoner", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["yaml"] = _yaml
    tasks = without_paths(config.tasks.source)
    card = environment.get_template("model_card.md").render(
        name=name,
        licence=licence or own,
        licence_source="" if licence else f", that of {base}",
        base_model=base,
        hub_base=is_hub,
        tasks=tasks,
        steps=step,
        verifier=_verifier(config.verifier.name),
        directory=name,
        dtype=config.server.dtype,
        prompt=None if prompt is None else json.dumps(prompt, ensure_ascii=False),
        chat=chat,
        request=json.dumps(request).replace("'", "'\\''"),
        temperature=f"{config.rollout.temperature:g}",
        max_tokens=config.rollout.max_tokens,
        stop=", ".join(json.dumps(text) for text in config.rollout.stop),
        results=[vars(row) for row in _results(entries)],
        measured_step=max((e["step"] for e in entries if e.get("eval")), default=0),
        evaluation=_evaluation(run_dir, path.name, config.tasks.source),
        curves=bool(charts),
        training=_training(config, entries),
        families=sorted((get(entries[-1], "families") or {}).items()) if entries else [],
        task_licences=licences(config.tasks.source),
    )
    (out / "README.md").write_text(card, encoding="utf-8")


@dataclass(frozen=True)
class Result:
    """One split, before training (None: not evaluated then) and at the last evaluation before the export."""

    split: str
    problems: int
    samples: int
    before: float | None
    after: float
    low: float  # Wilson's 95 % interval over problems: wide, as if each had been sampled once
    high: float
    tokens: float | None


def _results(entries: Sequence[Mapping[str, Any]]) -> list[Result]:
    evaluated = [e for e in entries if e.get("eval")]
    if not evaluated:
        return []
    first, last = evaluated[0], evaluated[-1]
    rows = []
    for split, found in last["eval"].items():
        p = found.get("pass@1")
        if p is None:
            continue
        before = get(first, "eval", split, "pass@1") if first["step"] == 0 else None
        n = max(1, found["problems"])
        ends = at_least(p * n, n, 1.96), 1 - at_least((1 - p) * n, n, 1.96)
        tokens = found.get("response_tokens_mean")
        rows.append(Result(split, found["problems"], found["samples"], before, p, *ends, tokens))
    return rows


def _evaluation(run_dir: Path, checkpoint_name: str, own: str) -> dict[str, Any] | None:
    """pass@k and maj@k of an evaluation of this checkpoint under RUN/eval, if there is one: of the run's
    `own` tasks rather than others, and then of the most samples."""
    best: tuple[tuple[bool, int], dict[str, Any]] | None = None
    for file in sorted((run_dir / "eval").glob(f"{checkpoint_name}-*/eval.json")):
        result = json.loads(file.read_bytes())
        size = sum(s["problems"] * s["samples"] for s in result["splits"].values())
        rank = (result["tasks"] == own, size)
        if best is None or rank > best[0]:
            best = (rank, result)
    if best is None:
        return None
    rows = []
    for split, found in best[1]["splits"].items():
        for k, value in sorted((found.get("pass@k") or {}).items(), key=lambda item: int(item[0])):
            rows.append({"split": split, "k": k, "pass_k": value, "maj_k": (found.get("maj@k") or {}).get(k)})
    tasks, samples = without_paths(best[1]["tasks"]), best[1]["sampling"]["samples"]
    return {"tasks": tasks, "samples": samples, "rows": rows}


def _training(config: Config, entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    learner, rollout = config.learner, config.rollout
    flops = math.fsum((e.get("train_flops") or 0) + (e.get("sample_flops") or 0) for e in entries)
    rows = [
        ("estimator, loss, aggregation", f"{learner.estimator}, {learner.loss}, {learner.aggregation}"),
        ("prompts a step × rollouts of each", f"{rollout.groups_per_step} × {rollout.group_size}"),
        ("learning rate", f"{learner.lr:g}, {learner.warmup_steps} steps of warm-up, {learner.decay}"),
        ("max_staleness", str(config.max_staleness)),
        ("KL coefficient", f"{learner.kl_coef:g}"),
        ("seed", str(config.seed)),
        ("FLOPs of updates and rollouts", f"{flops:.3g}"),
    ]
    if entries and entries[-1].get("elapsed_s"):
        rows.append(("wall-clock time", f"{entries[-1]['elapsed_s'] / 60:.1f} min"))
    return rows


def _base(model: str) -> tuple[str, bool]:
    """What to call the base model, and whether the hub knows it by that. Paths of this machine stay here."""
    if model in BUILT_IN:
        return {"embedded": "the embedded base model of reasoner", "smollm2": "SmolLM2-135M-Instruct"}[
            model
        ], False
    return (Path(model).name, False) if Path(model).exists() else (model, True)


def _verifier(name: str) -> str:
    """What to call the verifier: a file by its name, an address of this network not at all."""
    return "an HTTP endpoint" if name.startswith(("http://", "https://")) else name.rpartition("/")[2]


def _yaml(text: str) -> str:
    """A text as a scalar of YAML, quoted (as JSON is) where it has to be."""
    return text if re.fullmatch(r"[A-Za-z][\w.-]*", text) else json.dumps(text, ensure_ascii=False)


def _licence_of(directory: Path) -> str | None:
    """`license:` of the base model's own card, where it is a directory."""
    card = directory / "README.md"
    if not card.is_file():
        return None
    found = re.match(r"---\n.*?^license:\s*(\S+)\s*$.*?^---", card.read_text("utf-8", "replace"), re.S | re.M)
    return found[1] if found else None


def _prompt(run_dir: Path, model: Path) -> tuple[str | None, bool]:
    """A prompt exactly as the policy saw it, from the recorded token ids, and whether it is a chat's."""
    paths = list(step_paths(run_dir).values())
    if not paths or not (model / "tokenizer.json").is_file():
        return None, False
    from tokenizers import Tokenizer

    rows = read_table(paths[-1], ("prompt_ids", "prompt")).slice(0, 1).to_pylist()
    if not rows:
        return None, False
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    text = tokenizer.decode(rows[0]["prompt_ids"], skip_special_tokens=False)
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    return text, any(token in text for token in special)
