"""What `reasoner eval` does with its options, and what it prints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from envs.tasks import load_tasks
from reasoner.config import Config, load_config
from reasoner.errors import UsageError
from reasoner.evaluation.plan import EvalOptions
from reasoner.evaluation.run import evaluate, write_json
from reasoner.run import is_run, reopen
from rollouts.endpoint import Endpoint

_KEYS = {
    "tasks": "tasks.source",
    "samples": "eval.samples",
    "problems": "eval.problems",
    "max_tokens": "rollout.max_tokens",
    "temperature": "rollout.temperature",
    "template": "tasks.template",
    "verifier": "verifier.name",
    "seed": "seed",
}


def run(json_path: Path | None, **given: Any) -> None:
    """The command. Raises UsageError with one message for options that do not go together."""
    if json_path and not json_path.absolute().parent.is_dir():
        raise UsageError(f"--json {json_path}: there is no directory {json_path.absolute().parent}")
    if json_path and json_path.is_dir():
        raise UsageError(f"--json {json_path} is a directory: name a file")
    options = _options(given)
    config = _config(given, options.endpoint)
    click.echo(f"tasks {config.tasks.source}, verifier {config.verifier.name}", err=True)
    try:
        result = evaluate(config, options=options)
    except KeyboardInterrupt:
        click.secho("stopped; what had finished is kept: the same command goes on", fg="yellow", err=True)
        sys.exit(130)
    show(result)
    if json_path:
        write_json(json_path, result)


def _options(given: dict[str, Any]) -> EvalOptions:
    endpoint = None
    if given["endpoint"]:
        endpoint = Endpoint(
            given["endpoint"],
            given["served"] or given["model"] or "",
            given["key_variable"],
            given["concurrency"],
            given["price_in"],
            given["price_out"],
        )
    elif given["served"]:
        raise UsageError("--model names what --endpoint serves: a model of your own is the argument itself")
    elif not given["model"]:
        raise UsageError("what is to be evaluated? Give a model, a run, or --endpoint URL --model NAME")
    return EvalOptions(
        out=given["out"],
        budgets=_numbers(given["budgets"]),
        force_text=given["force_text"],
        extend=given["extend"],
        extend_times=given["extend_times"],
        scorer=given["scorer"],
        endpoint=endpoint,
        all_tasks=given["tasks"] is not None,
        splits=tuple(filter(None, (given["splits"] or "").split(","))),
        compare=given["compare"],
        generalisation=given["generalisation"],
        checkpoints=_steps(given["checkpoints"]),
    )


def _config(given: dict[str, Any], endpoint: Endpoint | None) -> Config:
    """The run's configuration, or the default one, with the options over it."""
    overrides = {_KEYS[name]: given[name] for name in _KEYS if given[name] is not None}
    overrides |= {"server.addresses": (), **({"rollout.stop": given["stop"]} if given["stop"] else {})}
    model = given["model"]
    if endpoint is None:
        overrides["model"] = model
    if given["tasks"] and given["problems"] is None and _is_whole(given["tasks"]):
        overrides["eval.problems"] = 10**9
    config = (
        reopen(model, overrides)[1] if endpoint is None and is_run(model) else load_config(None, overrides)
    )
    if config.verifier.name.startswith("<"):
        raise UsageError(
            f"this run was trained from Python with the verifier {config.verifier.name}: "
            "name one with --verifier math or --verifier module:attribute"
        )
    budgets = _numbers(given["budgets"])
    if given["max_tokens"] and budgets and max(budgets) > given["max_tokens"]:
        raise UsageError(
            f"a budget of {max(budgets)} tokens is larger than --max-tokens {given['max_tokens']}"
        )
    return config


def _is_whole(spec: str) -> bool:
    """Whether tasks are a finite set that is evaluated whole unless --problems says otherwise."""
    return bool(getattr(load_tasks(spec), "finite", False))


def _steps(text: str | None) -> tuple[int, ...] | None:
    """`all`, or steps; None when no checkpoints are asked for."""
    if text is None:
        return None
    try:
        return () if text == "all" else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--checkpoints {text}: write all, or steps such as 0,30,60") from None


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UsageError(f"--budgets {text}: write numbers of tokens, such as 32,64,128") from None


def show(result: dict[str, Any]) -> None:
    """The curves as lines of text."""
    for name, split in result["splits"].items():
        tokens = split["response_tokens_mean"]
        click.echo(
            f"{name}: {split['problems']} problems × {split['samples']} samples, "
            f"{'-' if tokens is None else f'{tokens:.1f}'} tokens"
        )
        if split["masked_rate"]:
            click.echo(
                f"  {split['masked_rate']:.1%} of the samples could not be judged and count in no rate"
            )
        for curve in ("pass@k", "maj@k", "weighted_maj@k", "best_of_k"):
            if split[curve]:
                values = "  ".join(f"{k}: {value:.3f}" for k, value in split[curve].items())
                who = "oracle" if curve == "pass@k" else "deployable"
                click.echo(f"  {curve:15} {values}  ({who})")
        if split["pass@k"] and split["maj@k"] is None:
            click.echo("  maj@k           none: the verifier does not say which answers are the same")
        if (interval := (split["ci95"] or {}).get("pass@1")) is not None:
            click.echo(f"  pass@1 95 % [{interval[0]:.3f}, {interval[1]:.3f}]")
    for name, found in ((result["budgets"] or {}).get("splits") or {}).items():
        click.echo(f"{name}, by budget:")
        for point in found["points"]:
            _show_point(point)
    if result.get("comparison"):
        _show_comparison(result["comparison"])
    if found := result.get("generalisation"):
        _show_generalisation(found)
    if rate := result["exchange_rate"]:
        _show_exchange(rate)
    click.echo(f"written: {result['directory']} (page: eval.html)")


def _show_comparison(comparison: dict[str, Any]) -> None:
    for name, found in comparison["splits"].items():
        for metric, pair in found.items():
            click.echo(f"{name}: {metric} {_difference(pair)}  against {comparison['other']}")
        for family, pair in comparison["by_family"][name].items():
            click.echo(f"  {family}: {_difference(pair)}")


def _difference(pair: dict[str, Any]) -> str:
    low, high = pair["ci95"]
    return (
        f"{pair['difference']:+.3f}  95 % [{low:+.3f}, {high:+.3f}]  p = {pair['p_value']:.3g}  "
        f"({pair['problems']} problems)"
    )


def _show_generalisation(found: dict[str, Any]) -> None:
    click.echo(
        "accuracy: " + ", ".join(f"{n} {a:.3f}" for n, a in found["accuracy"].items() if a is not None)
    )
    seen = found["memorisation"]
    if seen["difference"] is not None:
        low, high = seen["ci95"]
        click.echo(f"memorisation (seen - fresh): {seen['difference']:+.3f}  95 % [{low:+.3f}, {high:+.3f}]")
    if forgot := found["forgetting"]:
        bits = forgot["bits_per_byte"]
        click.echo(
            f"forgetting: {bits['base']:.3f} → {bits['evaluated']:.3f} bits a byte of pre-training text"
        )


def _show_exchange(rate: dict[str, Any]) -> None:
    for target in rate["deployable"]["iso_accuracy"]:
        parts = []
        for c in target["checkpoints"]:
            parts.append(f"{c['checkpoint']}: {'-' if c['samples'] is None else format(c['samples'], '.3g')}")
        click.echo(f"  maj@k reaches {target['accuracy']:.2f} with k =  {'  '.join(parts)}")


def _show_point(point: dict[str, Any]) -> None:
    label = {
        "full": "full",
        "cut": f"{point['budget']}",
        "extended": f"+{point['times']} × {point['text']!r}",
    }
    if point["accuracy"] is None:
        return
    best = max(point["pass@k"], key=int)
    maj = f"  maj@{best} {point['maj@k'][best]:.3f}" if point["maj@k"] else ""
    click.echo(
        f"  {label[point['kind']]:>12}  {point['tokens_mean']:7.1f} tokens  accuracy {point['accuracy']:.3f}"
        f"  pass@{best} {point['pass@k'][best]:.3f}{maj}"
    )
