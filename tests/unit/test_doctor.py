"""`reasoner doctor` finds what was broken on purpose, and says how to mend it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reasoner import doctor
from reasoner.doctor import Check, check_verifiers_package
from reasoner.errors import UsageError


def broken_package(directory: Path, name: str, body: str) -> None:
    (directory / name).mkdir()
    (directory / name / "__init__.py").write_text(body)


def test_our_own_packages_pass() -> None:
    check_verifiers_package()
    assert all(check.ok for check in doctor._packages())


@pytest.mark.parametrize(
    ("name", "word"),
    [("verifiers", "pip uninstall verifiers"), ("envs", "PYTHONPATH"), ("rollouts", "PYTHONPATH")],
)
def test_another_package_of_our_name_is_recognised_without_importing_it(
    tmp_path: Path, name: str, word: str
) -> None:
    broken_package(tmp_path, name, "raise SystemExit('imported')")
    code = "from reasoner.doctor import check_verifiers_package as check; check()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert "UsageError" in last and str(tmp_path / name) in last and word in last


def test_our_verifiers_overwritten_in_place_are_recognised(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two distributions unpacked into one site-packages: the directory is right, the content is not."""
    for name in doctor.PACKAGES:
        broken_package(tmp_path, name, "")
    (tmp_path / "reasoner").mkdir()
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "reasoner" / "doctor.py"))
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in doctor.PACKAGES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(UsageError, match="'verifiers'.*another PyPI package"):
        check_verifiers_package()
    (tmp_path / "verifiers" / "__init__.py").write_text("__all__ = ['VerifierPool']")
    check_verifiers_package()


def test_the_probe_reports_good_broken_and_crashing_imports(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken_package(tmp_path, "good", "print('noise')")
    broken_package(tmp_path, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    broken_package(tmp_path, "crashing", "import os; os._exit(7)")
    wrapping = "try: import torchvision\nexcept RuntimeError as e: raise ImportError('no') from e"
    broken_package(tmp_path, "wrapping", wrapping)
    broken_package(tmp_path, "after", "")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = doctor._probe(["good", "torchvision", "wrapping", "crashing", "after"])
    assert found["good"]["ok"]
    assert "torchvision::nms" in found["wrapping"]["detail"]
    assert not found["torchvision"]["ok"] and "torchvision::nms" in found["torchvision"]["detail"]
    assert not found["crashing"]["ok"] and "code 7" in found["crashing"]["detail"]
    assert "after" not in found


def test_an_import_that_hangs_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken_package(tmp_path, "hanging", "import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "IMPORT_TIMEOUT_S", 2)
    found = doctor._probe(["hanging"])
    assert not found["hanging"]["ok"] and "no end after 2 s" in found["hanging"]["detail"]


def test_a_torchvision_that_does_not_fit_names_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    nms = {"ok": False, "detail": "RuntimeError: operator torchvision::nms does not exist"}
    findings = {"torch": {"ok": True, "detail": ""}, "torchvision": nms, "transformers": nms}
    installed = {"torch", "torchvision", "transformers", "ray"}
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: object() if name in installed else None)
    monkeypatch.setattr(doctor, "_probe", lambda names: findings)
    checks = {check.name: check for check in doctor._imports()}
    assert checks["torch"].ok and "torchaudio" not in checks
    for name in ("torchvision", "transformers"):
        assert not checks[name].ok
        assert "pip uninstall -y torchvision torchaudio torchcodec" in checks[name].remedy
    assert "not reached" in checks["ray"].detail
    assert checks["vllm"].detail == "not installed" and "reasoner[gpu]" in checks["vllm"].remedy


def test_the_machine_is_looked_at() -> None:
    names = {check.name for check in doctor._machine()}
    assert names == {"Python", "platform", "cores", "memory", "shared memory", "disk", "loopback", "GPU"}


def test_too_little_space_is_found(tmp_path: Path) -> None:
    assert doctor._space("disk", tmp_path, 1e-6, "free some", True).ok
    full = doctor._space("disk", tmp_path, 1e9, "free some", True)
    assert not full.ok and full.required and "free some" in full.remedy
    assert not doctor._space("shared memory", tmp_path / "none", 1.0, "", False).ok


@pytest.mark.parametrize(
    ("checks", "code", "words"),
    [
        ([Check("a", True, "fine [x]")], 0, ("fine [x]", "All in order")),
        ([Check("a", False, "low", "buy [more]", required=False)], 0, ("warning", "buy [more]")),
        (
            [Check("a", False, "bad", "mend it"), Check("b", True, "")],
            1,
            ("FAILED", "mend it", "1 failed: a"),
        ),
    ],
)
def test_the_exit_code_follows_the_required_checks(
    checks: list[Check],
    code: int,
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(doctor, "run_checks", lambda: checks)
    assert doctor.doctor() == code
    shown = capsys.readouterr().out
    assert all(word in shown for word in words), shown
