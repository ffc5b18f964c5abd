"""The guide in docs/environments.md, followed as a new user would, outside the repository."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from envs import load_tasks

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


def test_every_spec_in_the_docs_can_be_loaded():
    specs = []
    for name in ("tasks.md", "environments.md"):
        for line in re.findall(
            r"^reasoner (?:tasks|train) .*$", (REPOSITORY / "docs" / name).read_text(), re.M
        ):
            words = shlex.split(line)
            specs.append(words[words.index("--tasks") + 1] if "--tasks" in words else words[2])
    assert len(specs) > 5
    for spec in specs:
        if not spec.startswith(("hf:", "higher_lower")):  # the hub's, and the guide's own
            assert load_tasks(spec).train(0).prompt, spec
