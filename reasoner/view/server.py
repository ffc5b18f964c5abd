"""The HTTP side of `reasoner view`: a page, its JSON, and nothing that leaves this machine.

Only loopback is listened on, only loopback names are accepted as `Host` (a page elsewhere cannot reach it by
rebinding a name), and the page may load nothing from anywhere else (Content-Security-Policy). It reads; there
is nothing to change.
"""

from __future__ import annotations

import logging
import socket
import webbrowser
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from reasoner.charts import STYLE
from reasoner.curves import sections
from reasoner.errors import ReasonerError, UsageError
from reasoner.metrics import plain, read_metrics
from reasoner.view import changes, filters, tokens
from reasoner.view.index import RolloutIndex, read_audit

HOSTS = ["127.0.0.1", "localhost", "[::1]"]
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_FILES = {"/": ("view.html", "text/html"), "/view.js": ("view.js", "text/javascript")}


def make_app(run_dir: Path, model: str, total_steps: int | None, index: RolloutIndex) -> Starlette:
    """The application over one run. `model` is the run's base model, `total_steps` what it is to reach."""

    def state(_: Mapping[str, str]) -> dict[str, Any]:
        index.poke()
        entries = read_metrics(run_dir)
        return {
            "name": run_dir.resolve().name,
            "path": str(run_dir),
            "step": entries[-1]["step"] if entries else None,
            "total_steps": total_steps,
            "audited": (run_dir / "audit.json").is_file(),
            "evaluations": changes.evaluations(run_dir),
            **index.state(),
        }

    def curves(_: Mapping[str, str]) -> dict[str, Any]:
        return {"sections": [{"title": t, "charts": svgs} for t, svgs in sections(read_metrics(run_dir))]}

    def rollout(query: Mapping[str, str]) -> dict[str, Any]:
        group, place = (tokens.rollout_numbers(_required(query, key)) for key in ("group", "rollout"))
        row = index.full(group, place)
        if row is None:
            raise UsageError(f"there is no rollout {place} of group {group} (yet)")
        heavy = (
            "prompt_ids",
            "token_ids",
            "action_mask",
            "behaviour_logprobs",
            "learner_logprobs",
            "policy_version",
        )
        mates = index.mates(group)
        light = next((mate for mate in mates if mate["rollout"] == place), {})
        return {
            **{key: value for key, value in row.items() if key not in heavy},
            **{key: light.get(key) for key in ("tokens", "version", "flags")},
            "per_token": tokens.annotated(row, tokens.tokenizer_file(run_dir, model)),
            "mates": mates,
        }

    def audit(_: Mapping[str, str]) -> dict[str, Any]:
        return {"audit": read_audit(run_dir)}

    def cards(where: str, value: Any, query: Mapping[str, str]) -> dict[str, Any]:
        return index.rollouts(where, value, filters.page_of(query))

    api: dict[str, Callable[[Mapping[str, str]], dict[str, Any]]] = {
        "/api/state": state,
        "/api/curves": curves,
        "/api/rollouts": lambda query: index.find(filters.parse(query)),
        "/api/rollout": rollout,
        "/api/group": lambda q: cards("group_index", tokens.rollout_numbers(_required(q, "group")), q),
        "/api/task": lambda q: cards("task_id", _required(q, "id"), q),
        "/api/changes": lambda q: changes.changes(
            run_dir, _required(q, "a"), _required(q, "b"), q.get("split", "")
        ),
        "/api/problem": lambda q: changes.both(
            run_dir, *(_required(q, key) for key in ("a", "b", "split", "task_id"))
        ),
        "/api/audit": audit,
    }
    routes = [Route(path, _json(answer)) for path, answer in api.items()]
    routes += [Route(path, _file(*file)) for path, file in _FILES.items()]
    routes.append(Route("/view.css", _style))
    guards = [Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS), Middleware(GZipMiddleware)]
    return Starlette(routes=routes, middleware=guards)


def _json(answer: Callable[[Mapping[str, str]], dict[str, Any]]) -> Callable[[Request], Response]:
    """Runs in a thread of its own, so that a slow query keeps nobody else waiting."""

    def endpoint(request: Request) -> Response:
        try:
            content, status = plain(answer(dict(request.query_params))), 200
        except UsageError as error:
            content, status = {"error": str(error)}, 400
        except ReasonerError as error:
            content, status = {"error": str(error)}, 500
        return JSONResponse(content, status, headers=_HEADERS)

    return endpoint


def _file(name: str, kind: str) -> Callable[[Request], Response]:
    return lambda request: Response(_template(name), media_type=kind, headers=_HEADERS)


def _style(request: Request) -> Response:
    return Response(_template("view.css") + STYLE, media_type="text/css", headers=_HEADERS)


def _template(name: str) -> str:
    return (resources.files("reasoner") / "templates" / name).read_text(encoding="utf-8")


def _required(query: Mapping[str, str], key: str) -> str:
    if not query.get(key):
        raise UsageError(f"the address lacks {key}")
    return query[key]


def serve(
    run_dir: Path,
    model: str,
    total_steps: int | None,
    *,
    port: int,
    browser: bool,
    say: Callable[[str], None],
) -> None:
    """Serves the run on 127.0.0.1 until Ctrl-C. Port 0 takes a free one; `say` is told the address."""
    import uvicorn

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise UsageError(f"port {port} cannot be used: {error}") from error
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    with listener, RolloutIndex(run_dir) as index:
        say(address)
        if browser:
            webbrowser.open(address)
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        app = make_app(run_dir, model, total_steps, index)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off")).run(sockets=[listener])
