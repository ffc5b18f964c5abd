"""A verifier behind an HTTP endpoint: one POST a group, verdicts as JSON.

Request: `{"completions": [text, …], "task": {"id", "prompt", "references", "family", "difficulty",
"metadata"}}`. Response: `{"verdicts": [v, …]}`, one each in order; v is true, false, a number, null (leave it
out), or an object `{"status", "reward", "extracted", "detail"}`. An endpoint that is down, late or answers
nonsense is an `error` that says so, never reward 0. On the command line: `--verifier http://host:port/path`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from reasoner.errors import UsageError
from reasoner.types import Task, Verdict
from verifiers.base import Verifier, to_verdict

ATTEMPTS = 4
FIRST_WAIT_S = 0.25  # doubles with every attempt
MARGIN_S = 1.0  # given up so long before the deadline that the process would be killed at
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


class HttpVerifier(Verifier):
    """Asks `url`. `timeout_s` is for a whole group with all attempts; `headers` may carry a key."""

    batched = True
    timeout_is_answer = False

    def __init__(self, url: str, timeout_s: float = 10.0, headers: Mapping[str, str] | None = None) -> None:
        import httpx

        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise UsageError(f"verifier {url!r}: {error}") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise UsageError(f"verifier {url!r}: expected http://HOST[:PORT]/PATH")
        self.name, self.url, self.timeout_s = url, url, timeout_s
        self._client = httpx.Client(headers=dict(headers or {}))

    def verify(self, completion: str, task: Task) -> Verdict:
        return self.verify_group([completion], task)[0]

    def verify_group(self, completions: Sequence[str], task: Task) -> list[Verdict]:
        answer = self._ask(_request(completions, task))
        verdicts = answer.get("verdicts") if isinstance(answer, Mapping) else answer
        if isinstance(verdicts, list) and len(verdicts) == len(completions):
            return [_verdict(v) for v in verdicts]
        if isinstance(answer, Mapping):
            verdicts = f"expected {len(completions)} verdicts, it sent {json.dumps(answer)[:120]}"
        return [Verdict.error(f"{self.url}: {verdicts}")] * len(completions)

    def _ask(self, body: Mapping[str, Any]) -> Mapping[str, Any] | str:
        """The decoded answer, or why there is none."""
        import httpx

        patience_s = max(self.timeout_s - MARGIN_S, self.timeout_s / 2)
        deadline = time.monotonic() + patience_s
        problem, attempt = "", 0
        while attempt < ATTEMPTS and (left := deadline - time.monotonic()) > 0:
            attempt += 1
            try:
                response = self._client.post(self.url, json=body, timeout=left)
                if response.status_code == 200:
                    decoded = response.json()
                    return decoded if isinstance(decoded, Mapping) else f"not an object but {decoded!r:.80}"
                problem = f"HTTP {response.status_code} {response.text[:120]!r}"
                if response.status_code not in _TRY_AGAIN:
                    break
            except httpx.TimeoutException:
                problem = f"no answer within {patience_s:g} s"
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
            except ValueError as error:
                return f"not JSON: {error}"
            wait_s = FIRST_WAIT_S * 2 ** (attempt - 1)
            time.sleep(max(0.0, min(wait_s, deadline - time.monotonic())))
        return f"{problem} ({attempt} attempt{'s' if attempt != 1 else ''})"


def _request(completions: Sequence[str], task: Task) -> dict[str, Any]:
    prompt = task.prompt if isinstance(task.prompt, str) else [dict(message) for message in task.prompt]
    about: dict[str, Any] = {
        "id": task.id,
        "prompt": prompt,
        "references": list(task.references),
        "family": task.family,
    }
    about |= {"difficulty": task.difficulty, "metadata": dict(task.metadata)}
    return {"completions": list(completions), "task": about}


def _verdict(sent: Any) -> Verdict:
    if not isinstance(sent, Mapping):
        return to_verdict(sent)
    try:
        return Verdict(sent["status"], sent.get("reward"), sent.get("extracted"), str(sent.get("detail", "")))
    except (KeyError, ValueError) as error:
        return Verdict.error(f"a verdict that is none: {json.dumps(dict(sent))[:120]} ({error})")
