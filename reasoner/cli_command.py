"""What the commands of `reasoner.cli` have in common: errors that end in a message, examples under the help.

Which commands there are is not known here: `reasoner.cli` says so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from reasoner.errors import ReasonerError


def command(*args: Any, **kwargs: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """A command whose user-facing errors become one message and an exit code."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        @wraps(function)
        def guarded(*a: Any, **k: Any) -> Any:
            try:
                return function(*a, **k)
            except ReasonerError as e:
                click.secho(f"error: {e}", fg="red", err=True)
                sys.exit(e.exit_code)
            except KeyboardInterrupt:
                click.secho("stopped", fg="yellow", err=True)
                sys.exit(130)

        return click.command(*args, **kwargs)(guarded)

    return decorate


def examples(*lines: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
