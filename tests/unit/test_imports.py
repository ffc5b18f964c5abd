"""The light packages stay light, and imports point one way."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from reasoner.types import SyncReport, UpdateResult

ROOT = Path(__file__).resolve().parents[2]
OURS = ("reasoner", "verifiers", "envs", "rollouts")
SHARED = {"reasoner.types", "reasoner.errors", "reasoner.plugins", "reasoner.logs"}
HEAVY = ("torch", "ray", "vllm", "transformers")
# What the modules of a package may import of ours beside SHARED.
ALLOWED = {
    "verifiers": {"verifiers"},
    "envs": {"verifiers", "envs"},
    "rollouts": {"verifiers", "envs", "rollouts"},
}
PURE = ("advantages", "losses", "batch", "logprobs", "packed", "learner")


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, also inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, allowed: set[str]) -> bool:
    return any(name == a or name.startswith(a + ".") for a in allowed)


@pytest.mark.parametrize("statement", ["import reasoner", "import verifiers", "import envs"])
def test_light_imports_load_nothing_heavy(statement: str) -> None:
    code = f"import sys; {statement}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_command_line_loads_nothing_heavy_before_it_must() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from reasoner.cli import main; "
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0; "
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_what_the_learner_answers_loads_nothing_heavy_into_the_driver() -> None:
    answer = pickle.dumps([UpdateResult({"loss": 0.0}, np.zeros(2, np.float32)), SyncReport(1)])
    code = (
        "import sys, pickle, reasoner.training; pickle.load(sys.stdin.buffer); "
        "print([m for m in ('torch', 'vllm', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], input=answer, capture_output=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == b"[]"


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_point_one_way(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules(package)
        for name in imported(path)
        if name.split(".")[0] in OURS and not within(name, SHARED | ALLOWED[package])
    ]
    assert not wrong


def test_types_and_errors_stand_alone() -> None:
    for module in ("types", "errors"):
        names = set(imported(ROOT / "reasoner" / f"{module}.py"))
        assert not [n for n in names if n.split(".")[0] in (*OURS, *HEAVY)]


@pytest.mark.parametrize("module", PURE)
def test_the_mathematics_knows_neither_config_nor_ray_nor_vllm(module: str) -> None:
    names = set(imported(ROOT / "reasoner" / f"{module}.py"))
    forbidden = {"ray", "vllm", "rollouts", "envs", "verifiers", "reasoner.config", "reasoner.train"}
    assert not [n for n in names if within(n, forbidden)]


def test_only_the_server_side_imports_vllm() -> None:
    allowed = {"reasoner/weight_sync.py", "reasoner/weight_channel.py"}
    found = {
        str(path.relative_to(ROOT))
        for package in OURS
        for path in modules(package)
        if any(within(name, {"vllm"}) for name in imported(path))
    }
    assert not {f for f in found if not f.startswith("rollouts/")} - allowed


def test_the_checks_above_see_a_violation(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from reasoner import train\n    import vllm.config\n")
    assert sorted(imported(bad)) == ["reasoner.train", "vllm.config"]
    assert not within("reasoner.train", SHARED | ALLOWED["verifiers"])
    assert within("vllm.config", {"vllm"})
