"""How tasks are named on the command line: `arithmetic:levels=1-2`, `rg:chain_sum(min_terms=2)*3,countdown`.

A spec is a head with options, `head:name=value,name=value` or `head(name=value, …)`; several specs, each with
an optional `*weight`, make a mixture. A comma before `name=` goes on with the options of the spec before it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from reasoner.errors import UsageError

_WEIGHT = re.compile(r"(.*)\*\s*(-?\d+(?:\.\d+)?|\.\d+)")
_OPTION = re.compile(r"[A-Za-z_]\w*\s*=(?!=)")
_BRACKETS = {")": "(", "]": "[", "}": "{"}


class UnknownOption(UsageError):
    """A source has no such option; another one around it may have."""


@dataclass(frozen=True)
class Spec:
    """One source: what stands before the options, the options by name, and arguments without a name."""

    text: str
    head: str
    options: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()


def split_outside(text: str, separator: str = ",") -> list[str]:
    """`text` at the separators that stand outside of brackets and quotes. UsageError for a stray bracket."""
    pieces, depth, quote, start = [], [], "", 0
    for i, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "([{":
            depth.append(char)
        elif char in _BRACKETS and (not depth or depth.pop() != _BRACKETS[char]):
            raise UsageError(f"tasks {text!r}: the {char!r} at character {i + 1} closes nothing")
        elif char == separator and not depth:
            pieces.append(text[start:i])
            start = i + 1
    if depth:
        raise UsageError(f"tasks {text!r}: a {depth[-1]!r} is never closed")
    return [piece.strip() for piece in [*pieces, text[start:]]]


def members(text: str) -> list[tuple[str, float]]:
    """(spec, weight) of every member of a mixture, one for a plain spec. UsageError for a weight <= 0."""
    specs: list[str] = []
    for piece in split_outside(text):
        if _OPTION.match(piece) and specs:
            specs[-1] += "," + piece
        elif piece:
            specs.append(piece)
    found = []
    for spec in specs:
        weighted = _WEIGHT.fullmatch(spec)
        name, weight = (weighted[1].strip(), float(weighted[2])) if weighted else (spec, 1.0)
        if weight <= 0:
            raise UsageError(f"tasks {spec!r}: a weight must be positive")
        found.append((name, weight))
    return found


def read_spec(text: str) -> Spec:
    """A spec taken apart. `head:…` has options after the colon only where they are written `name=value`."""
    head, opened, body = text.partition("(")
    if opened and text.endswith(")"):
        body = body[:-1]
    elif (colon := re.fullmatch(r"([^:(]+):(\w+\s*=.*)?", text)) is not None:
        head, body = colon[1], colon[2] or ""
    else:
        head, _, body = text.partition(",")
    options: dict[str, str] = {}
    arguments: list[str] = []
    for piece in filter(None, split_outside(body)):
        if _OPTION.match(piece):
            name, _, value = piece.partition("=")
            options[name.strip()] = value.strip()
        else:
            arguments.append(piece)
    return Spec(text, head.strip(), options, tuple(arguments))


def check_options(spec: Spec, known: Iterable[str], arguments: bool = False) -> None:
    """UsageError naming the options there are, for an unknown one or for a word that is none."""
    known = sorted(known)
    check_known(spec.head, spec.options, known)
    if spec.arguments and not arguments:
        raise UsageError(
            f"{spec.head}: {spec.arguments[0]!r} is no option: write name=value "
            f"(it has {', '.join(known) or 'none'})"
        )


def check_known(head: str, given: Iterable[str], known: Collection[str]) -> None:
    """UnknownOption for the first name in `given` that is not in `known`."""
    if unknown := [name for name in given if name not in known]:
        raise UnknownOption(
            f"{head} has no option {unknown[0]!r}{nearest(unknown[0], known)} "
            f"(it has {', '.join(known) or 'none'})"
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """`: did you mean 'x'?` with the nearest names (at most three), or nothing."""
    near = get_close_matches(name, list(known), 3, cutoff=0.5)
    return f": did you mean {' or '.join(map(repr, near))}?" if near else ""


def value(text: str) -> Any:
    """An option's value: a Python or TOML literal, else the text itself."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def levels(text: str) -> tuple[int, ...]:
    """`2`, `1-3` or `1|3`."""
    if not re.fullmatch(r"\d+(-\d+|(\|\d+)*)", text):
        raise UsageError(f"cannot read levels={text!r}: write levels=2, levels=1-3 or levels=1|3")
    if "-" in text:
        first, last = map(int, text.split("-"))
        if first > last:
            raise UsageError(f"cannot read levels={text!r}: {first} is more than {last}")
        return tuple(range(first, last + 1))
    return tuple(dict.fromkeys(map(int, text.split("|"))))
