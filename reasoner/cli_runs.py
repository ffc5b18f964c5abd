"""The commands that read a run and leave its training alone: report, replay, view, audit, export, forecast.

`reasoner eval` reads models as well as runs, `train --resume` goes on with one: both are in `reasoner.cli`.
As there, a command is a thin call into the library, which stays unloaded until it is needed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from reasoner.cli_command import command, examples
from reasoner.errors import UsageError


@command(epilog=examples("reasoner report runs/first"))
@click.argument("run")
def report(run: str) -> None:
    """Write RUN/report.html: curves and chains of thought, self-contained. Works while the run goes on."""
    from reasoner.report import write_report
    from reasoner.run import reopen

    click.echo(write_report(reopen(run, {})[0]))


@command(
    epilog=examples(
        "reasoner replay runs/first",
        "reasoner replay runs/first --from 60 --to 90 --json replay.json",
        "reasoner replay runs/first --verifier my_module:exact",
    )
)
@click.argument("run")
@click.option("--from", "start", default=0, show_default=True, type=click.IntRange(0), help="Start after it.")
@click.option("--to", "stop", type=click.IntRange(1), help="Last step. [the last recorded]")
@click.option("--verifier", metavar="NAME", help="What would the rewards have been? No update is recomputed.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write what was found here.")
def replay(run: str, start: int, stop: int | None, verifier: str | None, out: Path | None) -> None:
    """Verify every reward and recompute every update of a run from its journal, without servers.

    Starts from the base model, or from the checkpoint --from. Exit code 0: reproduced, 1: it diverged."""
    import json

    from rich.console import Console
    from rich.progress import Progress

    from reasoner.replay import describe
    from reasoner.replay import replay as replay_run
    from reasoner.run import reopen

    if out and not out.absolute().parent.is_dir():
        raise UsageError(f"--json {out}: there is no directory {out.absolute().parent}")
    path = reopen(run, {})[0]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("replaying", total=None)
        result = replay_run(
            path,
            start=start,
            stop=stop,
            verifier=verifier,
            on_step=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    for line in describe(result):
        click.echo(line)
    if out:
        out.write_text(json.dumps(result.to_json(), indent=1, ensure_ascii=False) + "\n")
    sys.exit(0 if result.reproduced else 1)


@command(
    epilog=examples(
        "reasoner view runs/first",
        "reasoner view runs/first --port 8765 --no-browser   # then: ssh -L 8765:localhost:8765 HOST",
    )
)
@click.argument("run")
@click.option(
    "--port", default=0, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one."
)
@click.option("--browser/--no-browser", default=True, show_default=True, help="Open it in the browser.")
def view(run: str, port: int, browser: bool) -> None:
    """Read a run in the browser, live while it goes on: curves, rollouts, changes. Only on this machine."""
    from reasoner.run import reopen
    from reasoner.view.server import serve

    path, config = reopen(run, {})
    serve(
        path,
        config.model,
        config.steps,
        port=port,
        browser=browser,
        say=lambda address: click.echo(f"{address}  (Ctrl-C stops)"),
    )


@command(
    epilog=examples(
        "reasoner audit runs/first",
        "reasoner audit runs/first --verifier my_module:strict --json audit.json",
    )
)
@click.argument("run")
@click.option("--verifier", metavar="NAME", help="Another one to judge the same completions.")
@click.option(
    "--rollouts",
    default=20_000,
    show_default=True,
    type=click.IntRange(1),
    help="About so many at most, of whole steps.",
)
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the findings here as well.")
def audit(run: str, verifier: str | None, rollouts: int, out: Path | None) -> None:
    """Look for reward hacking and verifier errors; the findings, ranked, go to RUN/audit.json too.

    What is above the line deserves to be read: reasoner view RUN lists the rollouts."""
    import json

    from reasoner.audit import audit_run, describe
    from reasoner.run import reopen

    if out and not out.absolute().parent.is_dir():
        raise UsageError(f"--json {out}: there is no directory {out.absolute().parent}")
    path, config = reopen(run, {})
    found = audit_run(path, config, verifier=verifier, max_rollouts=rollouts)
    for line in describe(found):
        click.echo(line)
    if out:
        out.write_text(json.dumps(found.to_json(), indent=1, ensure_ascii=False) + "\n")


@command(
    epilog=examples(
        "reasoner export runs/first --out my-model      # its card says how to serve it",
        "reasoner export runs/first --checkpoint best --out my-model --licence apache-2.0",
        "reasoner export runs/first/checkpoints/step_000060 --out my-model",
    )
)
@click.argument("source", metavar="RUN|CHECKPOINT")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The new directory.")
@click.option(
    "--checkpoint", "which", default="latest", show_default=True, help="Of a run: latest, best, STEP."
)
@click.option("--licence", help="Of the weights, for the card. [the base model's, where known]")
@click.option("--name", default="", help="The model's name on the card. [the directory's]")
def export(source: str, out: Path, which: str, licence: str | None, name: str) -> None:
    """Write a plain Hugging Face directory with a model card: for vLLM, transformers and the hub."""
    from reasoner.export import export as export_model

    click.echo(export_model(source, out, which=which, licence=licence, name=name))


@command(
    epilog=examples(
        "reasoner forecast runs/first",
        "reasoner forecast runs/first --use 0.5 --json forecast.json --svg forecast.svg",
        "reasoner forecast runs/first --target ood/pass@1 --use 1",
    )
)
@click.argument("run")
@click.option(
    "--use",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the run's steps to look at. [0.3 of a finished run, else what there is]",
)
@click.option("--target", default="pass@1", show_default=True, help="pass@1, ood/pass@1 or pass_rate.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the forecast here.")
@click.option("--svg", type=click.Path(path_type=Path), help="Draw measurements, fit and forecast here.")
def forecast(run: str, use: float | None, target: str, out: Path | None, svg: Path | None) -> None:
    """Forecast where a run is heading: a sigmoid in compute, with intervals, beside two baselines.

    Of a finished run: what its first 30 % forecast, and what happened."""
    import json

    from reasoner.forecast import forecast_run, summary, write_picture

    for option, path in (("--json", out), ("--svg", svg)):
        if path and not path.absolute().parent.is_dir():
            raise UsageError(f"{option} {path}: there is no directory {path.absolute().parent}")
    found, entries = forecast_run(run, use=use, target=target)
    click.echo(summary(found))
    if out:
        out.write_text(json.dumps(found.to_json(), indent=2) + "\n")
    if svg:
        write_picture(found, entries, svg)


COMMANDS = (report, replay, view, audit, export, forecast)
