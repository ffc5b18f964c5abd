"""pyproject, lock, Makefile and CI entry agree with each other and with what is promised."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}
PROMISED_TARGETS = ("install", "train", "test", "lint", "bench-quick", "bench")


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def lock(name: str = "cpu") -> dict[str, str]:
    """Canonical name → pinned version; fails on a line that is not an exact pin."""
    pins = {}
    for line in (ROOT / "requirements" / f"{name}.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!]+)", line)
            assert match, f"not an exact pin: {line!r}"
            pins[canonicalize_name(match[1])] = match[2]
    return pins


def test_the_lock_satisfies_what_the_project_requires() -> None:
    project, pins = pyproject()["project"], lock()
    extras = project["optional-dependencies"]
    assert set(extras) >= {"cpu", "gpu", "smollm2", "dev"}
    for text in (
        *project["dependencies"],
        *extras["cpu"],
        *extras["dev"],
        *extras["tasks"],
        *extras["wandb"],
        *pyproject()["build-system"]["requires"],
    ):
        requirement = Requirement(text)
        version = pins.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is not locked"
        assert requirement.specifier.contains(version), f"{text}, but locked is {version}"


def test_the_smollm2_lock_satisfies_its_extra_and_stays_out_of_the_default() -> None:
    pins = lock("smollm2")
    for text in pyproject()["project"]["optional-dependencies"]["smollm2"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])
    assert not set(pins) & set(lock())


def test_the_docs_lock_has_what_the_site_uses_and_nothing_of_the_default() -> None:
    pins = lock("docs")
    assert {"mkdocs", "mkdocs-material", "mkdocstrings", "mkdocstrings-python"} <= set(pins)
    assert not set(pins) & set(lock())


def test_the_lock_is_closed() -> None:
    """`--no-deps` is only sound when everything that a locked package requires is locked too."""
    pins = lock()
    open_ends = []
    for name in pins:
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            wanted = canonicalize_name(requirement.name)
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            if wanted not in pins and wanted not in LEFT_OUT:
                open_ends.append(f"{name} → {text}")
    assert not open_ends


def test_the_lock_leaves_out_what_breaks_transformers_and_local_builds() -> None:
    pins = lock()
    assert not LEFT_OUT & set(pins)
    assert "+" not in "".join(pins.values())


def test_no_registry_host_stands_in_the_repository() -> None:
    forbidden = re.compile(r"-{2}(extra-)?index-url|-{2}find-links|-f http")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in (".py", ".toml", ".lock", ".md", ".yaml", ".yml") or path.name in (
            "Makefile",
            "run",
        ):
            if path == Path(__file__).resolve() or not path.exists():
                continue
            found = forbidden.search(path.read_text(encoding="utf-8"))
            assert not found, f"{name}: {found[0] if found else ''}"


@pytest.mark.parametrize("target", PROMISED_TARGETS)
def test_make_knows_every_promised_target(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_make_finds_a_complete_environment_and_does_nothing() -> None:
    if not (ROOT / ".venv" / ".project-installed").exists():
        pytest.skip("not installed by make")
    done = subprocess.run(["make", "--question", "install"], cwd=ROOT, capture_output=True, text=True)
    stale = [
        name
        for name, stamp in (
            ("requirements/cpu.lock", ".dependencies-installed"),
            ("pyproject.toml", ".project-installed"),
        )
        if (ROOT / name).stat().st_mtime > (ROOT / ".venv" / stamp).stat().st_mtime
    ]
    assert (done.returncode == 0) == (not stale)


def test_every_module_that_a_target_runs_exists() -> None:
    modules = re.findall(r"\$\(PY\) -m ((?:benchmarks|tests)\.[\w.]+)", (ROOT / "Makefile").read_text())
    assert modules
    missing = [m for m in modules if not (ROOT / (m.replace(".", "/") + ".py")).exists()]
    assert not missing
    for target in ("bench-quick", "bench", "bench-long", "bench-verifier"):
        done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and "-m benchmarks." in done.stdout, f"{target}: {done.stderr}"


def test_ci_runs_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert {"make lint", "make docs", "make test"} <= set(script.read_text().splitlines())
    assert subprocess.run(["bash", "-n", script]).returncode == 0


def test_the_console_script_is_reasoners() -> None:
    (script,) = (e for e in metadata.entry_points(group="console_scripts") if e.name == "reasoner")
    assert script.value == "reasoner.cli:main"
    assert callable(script.load())
