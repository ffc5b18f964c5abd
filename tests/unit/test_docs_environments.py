"""The guide in docs/environments.md, followed as a new user would: in a directory outside the repository."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """The directory with the guide's two files."""
    home = tmp_path_factory.mktemp("outside")
    blocks = re.findall(
        r"```python\n# (\S+\.py)\n(.*?)```", (REPOSITORY / "docs/environments.md").read_text(), re.S
    )
    assert [name for name, _ in blocks] == ["higher_lower.py", "test_higher_lower.py"]
    assert sum(code.count("\n") + 1 for _, code in blocks) < 40
    for name, code in blocks:
        (home / name).write_text(code)
    return home


def command(home, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=home, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_guides_test_passes(followed):
    assert "2 passed" in command(followed, "pytest", "-q", "-p", "no:cacheprovider", "test_higher_lower.py")


def test_the_guides_environment_is_a_task_source(followed):
    shown = command(followed, "reasoner.cli", "tasks", "higher_lower:HigherLower")
    assert shown.count("Guess my number from 1 to 31.") == 6, "three to train on and three held out"
