"""The command line. Every command is a thin call into the library, which stays unloaded until it is needed.

The commands that only read a run are in `reasoner.cli_runs`.

Exit codes: 0 done; 2 bad usage or bad input, with one message; 1 failure; 130 after Ctrl-C, saved; 143
after SIGTERM, except of a run in training, which saves and exits 130 then, too.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Any

import click

from reasoner import cli_runs
from reasoner.cli_command import command, examples
from reasoner.errors import ReasonerError, UsageError

EXTRA_ARGS = {"ignore_unknown_options": True, "allow_extra_args": True}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="reasoner")
def main() -> None:
    """reasoner: reinforcement learning of reasoning from outcome reward alone, and inference-time compute."""
    from reasoner.doctor import check_verifiers_package

    _tidy_up_when_terminated()

    try:
        check_verifiers_package()
    except ReasonerError as e:
        click.secho(f"error: {e}", fg="red", err=True)
        sys.exit(e.exit_code)


def _tidy_up_when_terminated() -> None:
    """SIGTERM ends the command as an exception does: processes and temporary files are cleared away. A run in
    training has a handler of its own, which saves first."""

    def end(signum: int, frame: Any) -> None:
        sys.exit(128 + signum)

    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, end)


class TrainCommand(click.Command):
    """`train` with the configuration keys in its help."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from reasoner.config import config_keys

        super().format_options(ctx, formatter)
        rows = []
        for key, default, description in config_keys():
            shown = ",".join(default) if isinstance(default, tuple) else str(default)
            rows.append((f"--{key}", f"{description}  [{shown or 'empty'}]"))
        with formatter.section("Configuration keys (TOML or flags)  [default]"):
            formatter.write_dl(rows, col_max=34)


@command(
    cls=TrainCommand,
    context_settings=EXTRA_ARGS,
    epilog=examples(
        "reasoner train",
        "reasoner train --name first --steps 100 --learner.lr 2e-4",
        "reasoner train my.toml --verifier my_module:exact",
        "reasoner train --tasks 'arithmetic*3,linear:levels=1' --model smollm2",
        "reasoner train --resume runs/first --steps 400",
        "reasoner train --cluster.address auto --server.replicas 8 --server.dtype bfloat16",
    ),
)
@click.option("--resume", metavar="RUN", help="Continue a run from its newest checkpoint.")
@click.option("--verifier", metavar="NAME", help="Short for --verifier.name.")
@click.option("--tasks", metavar="SPEC", help="Short for --tasks.source.")
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Prometheus metrics on this port of 127.0.0.1; 0: none.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[CONFIG.toml] [--key.sub VALUE]...")
def train(
    arguments: tuple[str, ...],
    resume: str | None,
    verifier: str | None,
    tasks: str | None,
    metrics_port: int,
) -> None:
    """Train a model by reinforcement learning from outcome reward alone."""
    from reasoner.config import load_config, parse_overrides
    from reasoner.run import reopen

    rest = list(arguments)
    path = rest.pop(0) if rest and not rest[0].startswith("-") else None
    overrides = parse_overrides(rest)
    if verifier:
        overrides["verifier.name"] = verifier
    if tasks:
        overrides["tasks.source"] = tasks
    if resume and path:
        raise UsageError("--resume continues a run with the run's own configuration: leave the TOML file out")
    run_dir, config = reopen(resume, overrides) if resume else (None, load_config(path, overrides))

    from reasoner.endings import Interrupted
    from reasoner.training import train as train_run

    try:
        done = train_run(config, resume=run_dir, metrics_port=metrics_port)
    except Interrupted as stopped:
        saved = f"stopped and saved: continue with  reasoner train --resume {stopped}"
        click.secho(saved if str(stopped) else "stopped before the run began", fg="yellow", err=True)
        sys.exit(130)
    click.echo(f"done: {done}  (report: {done / 'report.html'})")


@command(
    epilog=examples(
        "reasoner verify answers.jsonl",
        "reasoner verify answers.jsonl --verifier my_module:exact --out verdicts.jsonl --workers 2",
    )
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--verifier", default="math", show_default=True, help="math, module:attribute, FILE.py:attribute."
)
@click.option("--out", type=click.Path(path_type=Path), help="Write here instead of standard output.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Verifier processes.")
@click.option(
    "--timeout-s",
    type=click.FloatRange(0, min_open=True),
    help="Deadline of one answer. [the verifier's own]",
)
@click.option("--explain", is_flag=True, help="Say what was extracted, how it was read, which rule decided.")
def verify(
    file: Path, verifier: str, out: Path | None, workers: int, timeout_s: float | None, explain: bool
) -> None:
    """Verify answers in a JSONL file: one {"id", "gold", "pred"} a line, one verdict a line, in order."""
    from reasoner.verify_file import verify_file

    counts = verify_file(
        file, verifier=verifier, out=out, workers=workers, timeout_s=timeout_s, explain=explain
    )
    if out:
        summary = ", ".join(f"{n} {status}" for status, n in counts.most_common())
        click.echo(f"{counts.total()} lines: {summary or 'none'} → {out}", err=True)


@command(
    epilog=examples("reasoner pretrain --out my-base --minutes 30", "reasoner pretrain --out tiny --steps 20")
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory of the new model.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Train for so long.")
@click.option("--steps", type=click.IntRange(1), help="Train for so many steps.")
@click.option("--seed", default=0, show_default=True)
def pretrain(out: Path, minutes: float | None, steps: int | None, seed: int) -> None:
    """Make the embedded base model again: synthetic corpus, next-token prediction only."""
    from reasoner.pretrain import pretrain as run_pretrain

    run_pretrain(out, seed=seed, minutes=minutes, steps=steps)


@command(
    epilog=examples(
        "reasoner tasks",
        "reasoner tasks arithmetic:levels=1-2",
        "reasoner tasks 'rg:chain_sum(levels=0-2)*2,countdown' --count 5",
        "reasoner tasks mine.jsonl",
    )
)
@click.argument("spec", required=False)
@click.option("--count", default=3, show_default=True, type=click.IntRange(1), help="Examples of each split.")
def tasks(spec: str | None, count: int) -> None:
    """Show what can be trained on: all sources by name, or examples of every split of SPEC."""
    if spec is None:
        from envs.catalogue import catalogue
        from envs.tasks import BENCHMARKS

        click.echo(f"{'--tasks':34} {'size':10} {'verifier':22} {'licence':11} example")
        for entry in catalogue():
            example = " ".join(entry.example.split())
            shown = example if len(example) <= 90 else f"{example[:45]} … {example[-42:]}"
            click.echo(f"{entry.spec:34} {entry.size:10} {entry.verifier:22} {entry.licence:11} {shown}")
        click.echo(
            "Besides: FILE.jsonl, FILE.py:attribute, module:attribute, mixtures: 'countdown*3,rg:gcd'."
        )
        click.echo(f"For evaluation only: {', '.join(BENCHMARKS)} (or NAME:FILE.jsonl).")
        return
    from envs.tasks import load_tasks, prompt_text, splits_of

    source = load_tasks(spec, seed=0)
    streams = []
    if not getattr(source, "evaluation_only", False):
        streams = [("train", [source.train(i) for i in range(count)])]
    streams += [(split, source.split(split, count)) for split in splits_of(source)]
    for name, examples_ in streams:
        for task in examples_:
            click.echo(
                f"{name:9} {task.family:10} level {task.difficulty:g}  {prompt_text(task.prompt)}  →  "
                f"{' or '.join(task.references)}"
            )
        if not examples_:
            click.echo(f"{name:9} (no tasks)")


@command(epilog=examples("reasoner doctor", "reasoner doctor --cluster 10.0.0.1:6379"))
@click.option("--cluster", default="", metavar="ADDRESS", help="Look at the nodes of this Ray cluster, too.")
def doctor(cluster: str) -> None:
    """Check the installation and the machine, and say what is missing and how to mend it."""
    from reasoner.doctor import doctor as run_doctor

    sys.exit(run_doctor(cluster))


@command(
    name="eval",
    epilog=examples(
        "reasoner eval runs/first --samples 64",
        "reasoner eval runs/first --samples 256          # only the difference is sampled",
        "reasoner eval embedded --samples 16 --budgets 8,16,32 --json eval.json",
        "reasoner eval smollm2 --tasks gsm8k --problems 50 --max-tokens 256",
        "reasoner eval runs/first --checkpoints all --problems 200 --samples 64",
        "reasoner eval runs/first --compare evals/embedded-arithmetic-1a2b3c4d",
        "reasoner eval --endpoint http://localhost:8000/v1 --model NAME --tasks mine.jsonl",
    ),
)
@click.argument("model", required=False)
@click.option("--tasks", help="Task source, or a standard task. [the run's, else arithmetic]")
@click.option("--splits", help="Only these of its splits, such as held_out. [all]")
@click.option("--samples", type=click.IntRange(1), help="Samples of each problem. [the run's, else 2]")
@click.option("--problems", type=click.IntRange(1), help="Problems of each split. [the run's, else 256]")
@click.option(
    "--max-tokens", type=click.IntRange(1), help="Longest completion, tokens. [the run's, else 128]"
)
@click.option("--temperature", type=click.FloatRange(0, min_open=True), help="[the run's, else 1]")
@click.option("--stop", multiple=True, help="A text that ends a completion; may be repeated. [the run's]")
@click.option("--template", help="auto, base, chat, or a text with {prompt}. [the run's, else auto]")
@click.option("--verifier", help="auto, math, or module:attribute. [the run's, else auto]")
@click.option("--scorer", help="A verifier whose reward ranks samples in best-of-k. [their mean logprob]")
@click.option("--seed", type=click.IntRange(0), help="[the run's, else 0]")
@click.option("--budgets", help="Also cut thinking at these numbers of tokens and force an answer: 32,64.")
@click.option("--force-text", help="What makes the model answer at a budget. [by the template]")
@click.option("--extend", metavar="TEXT", help='Make it think on with this when it ends, such as "Wait".')
@click.option("--extend-times", default=1, show_default=True, type=click.IntRange(1), help="How often.")
@click.option("--endpoint", metavar="URL", help="Evaluate what an OpenAI-compatible server serves.")
@click.option("--model", "served", metavar="NAME", help="The name under which it is served.")
@click.option("--key-variable", default="OPENAI_API_KEY", show_default=True, help="Holds the endpoint's key.")
@click.option(
    "--concurrency", default=64, show_default=True, type=click.IntRange(1), help="Requests at once."
)
@click.option("--price-in", type=click.FloatRange(0), help="Of a million prompt tokens.")
@click.option("--price-out", type=click.FloatRange(0), help="Of a million completion tokens.")
@click.option("--checkpoints", metavar="all|STEPS", help="Of a run: each of them, and the exchange rate.")
@click.option("--generalisation", is_flag=True, help="Of a run: also memorisation and forgetting.")
@click.option("--compare", metavar="DIR", type=click.Path(path_type=Path), help="Another evaluation, paired.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write eval.json here as well.")
@click.option("--out", type=click.Path(path_type=Path), help="Directory of the evaluation. [chosen]")
def evaluate(**options: Any) -> None:
    """Evaluate a model, checkpoint, run or endpoint with many samples, and say what they are worth.

    A run is evaluated as it was trained (tasks, template, verifier, budget) unless an option differs.
    Every finished sample is kept: the same command goes on where it was interrupted."""
    from reasoner.evaluation.command import run

    run(**options)


for each in (train, verify, pretrain, tasks, doctor, evaluate, *cli_runs.COMMANDS):
    main.add_command(each)


if __name__ == "__main__":
    main()
