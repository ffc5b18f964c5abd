"""`reasoner view` as somebody with a browser meets it: the real command, headless Chromium, the page."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from recorded import record, rollout

from reasoner.types import Group, Task

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
HOSTILE = "<img src=x onerror=document.body.append('OWNED')>"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None, reason="no Chromium or Chrome on this machine (apt install chromium)"
    ),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    task = Task("t", f"2+2=? {HOSTILE}", "4", "sum", 1.0)
    group = Group(
        task, (rollout(task, r"2+2=4;\boxed{4}", True), rollout(task, rf"{HOSTILE}\boxed{{5}}", False)), 7
    )
    run = record(tmp_path_factory.mktemp("runs") / "seen", [[group]])
    command = [sys.executable, "-m", "reasoner.cli", "view", str(run), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().split()[0]
        finally:
            server.terminate()


def drawn(address: str, view: str, profile: Path) -> str:
    """The document after the scripts ran."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run(
        [BROWSER, *options, f"--user-data-dir={profile}", address + view],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def test_every_view_is_drawn_and_rollouts_are_text(address, tmp_path):
    expected = {
        "": ("What it learned", "<svg"),
        "#/rollouts?status=wrong": ("1</b> rollouts", r"\boxed{5}", "#/rollout?group=7&amp;rollout=1"),
        "#/rollout?group=7&rollout=0&colour=ratio&token=4": (
            "rgb(var(--low)",
            "<i>ratio </i>0.90484",
            "advantage",
        ),
        "#/group?group=7": ("Group 7: 1 of 2 right", "rollout 0", "rollout 1"),
        "#/changes": ("reasoner eval",),
        "#/audit": ("reasoner audit",),
        "#/rollouts?step=nonsense": ("expected a number or a range",),
    }
    for view, texts in expected.items():
        page = drawn(address, view, tmp_path / "profile")
        for text in texts:
            assert text in page, (view, text)
        assert "OWNED" not in page.replace("append('OWNED')", "")
        assert "step 1 of 6" in page
