"""What the address of a view says about which rollouts it shows, as a checked SQL condition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reasoner.errors import UsageError
from reasoner.types import STATUSES

PAGE_ROWS = 50
_TEXTS = ("family", "task_id", "fate")
_RANGES = ("step", "reward", "tokens", "difficulty", "advantage", "version")
_SORTS = ("step", "reward", "tokens", "difficulty", "advantage", "family", "task_id", "status", "version")
KEYS = frozenset({*_TEXTS, *_RANGES, "status", "truncated", "waiting", "text", "flag", "sort", "page"})


@dataclass(frozen=True)
class Filter:
    """`where` holds `?` for each of `values`; nothing a user wrote is ever part of the SQL text."""

    where: str
    values: tuple[Any, ...]
    order: str
    page: int  # from 0


def parse(query: Mapping[str, str]) -> Filter:
    """The filter of a query string; `UsageError` names a key or value that has no meaning.

    Ranges are `3`, `3..10`, `3..` or `..10`, ends included. `text` is looked for in prompt and completion,
    whatever the case. `status` may be several, with commas. `flag` is the name of an audit check."""
    if unknown := sorted(set(query) - KEYS):
        raise UsageError(f"unknown filter {unknown[0]!r}: there are {', '.join(sorted(KEYS))}")
    given = {key: value.strip() for key, value in query.items() if value.strip()}
    parts: list[str] = []
    values: list[Any] = []

    def add(condition: str, *arguments: Any) -> None:
        parts.append(condition)
        values.extend(arguments)

    for key in _TEXTS:
        if key in given:
            add(f"{key} = ?", given[key])
    for key in _RANGES:
        if key in given:
            low, high = _range(key, given[key])
            add(f"{key} BETWEEN ? AND ?", low, high)
    if "status" in given:
        statuses = given["status"].split(",")
        if unknown := [s for s in statuses if s not in STATUSES]:
            raise UsageError(f"status {unknown[0]!r}: expected one of {', '.join(STATUSES)}")
        add(f"status IN ({', '.join('?' * len(statuses))})", *statuses)
    if "truncated" in given:
        add("truncated = ?", _yes("truncated", given["truncated"]))
    if "waiting" in given:
        add("(step IS NULL) = ?", _yes("waiting", given["waiting"]))
    if "text" in given:
        add("contains(searched, lower(?))", given["text"])  # four times as fast as ILIKE on both columns
    if "flag" in given:
        add(
            "(group_index, rollout) IN (SELECT (group_index, rollout) FROM flags WHERE name = ?)",
            given["flag"],
        )
    return Filter(
        " AND ".join(parts) or "true", tuple(values), _order(given.get("sort", "-step")), page_of(given)
    )


def _range(key: str, text: str) -> tuple[float, float]:
    low, dots, high = text.partition("..")
    try:
        ends = (float(low or "-inf"), float(high or "inf")) if dots else (float(text), float(text))
    except ValueError:
        ends = (math.nan, math.nan)
    if any(math.isnan(end) for end in ends):
        raise UsageError(f"{key} {text!r}: expected a number or a range such as 3..10, 3.. or ..10")
    return ends


def _yes(key: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise UsageError(f"{key} {text!r}: expected 1 or 0")
    return text == "1"


def _order(sort: str) -> str:
    column, downwards = sort.removeprefix("-"), sort.startswith("-")
    if column not in _SORTS:
        raise UsageError(
            f"sort {sort!r}: expected one of {', '.join(_SORTS)}, with - before it for downwards"
        )
    direction = "DESC" if downwards else "ASC"
    if column == "step":  # what waits has no step yet: it is the newest
        return f"step {direction} NULLS {'FIRST' if downwards else 'LAST'}, group_index, rollout"
    return f"{column} {direction} NULLS LAST, step DESC NULLS FIRST, group_index, rollout"


def page_of(query: Mapping[str, str]) -> int:
    """The `page` of a query, from 0; UsageError when it is no whole number that SQL can count to."""
    text = query.get("page", "").strip() or "0"
    if not text.isdecimal() or len(text) > 9:
        raise UsageError(f"page {text!r}: expected a whole number from 0 to {10**9 - 1}")
    return int(text)
