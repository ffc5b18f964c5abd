"""Every command of README and docs/ is executed or checked, with one tiny run standing for the reader's.

`docs_commands.RULES` says which are executed as they stand, which only up to the point where servers would
start, and why. The files that the pages show (`# name.py` on the first line, `cat name`) are there."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvicorn
from click.testing import CliRunner
from docs_commands import EVAL, FIRST, OWN_CODE, RESUME, ROOT, Block, Command, How, blocks, commands

import reasoner.evaluation.command
import reasoner.training
from reasoner.cli import main
from reasoner.evaluation.plan import make_plan
from reasoner.run import prepare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first test waits for three real commands

#: What stands for names that a reader has and we do not: one tiny run for every run of the pages.
STAND_INS = (
    (r"runs/(NAME|quick|tour|coin|constant)\b", "runs/first"),
    (r"(?<=replay )sync\b", "runs/first"),
    (r"step_\d{6}\b", "step_000002"),
    (r"(?<!--out )evals/[\w*-]+", "runs/first/eval/EVALUATION"),
)
FILES = {
    "my_module.py": "def strict(completion, task):\n    return task.references[0] in completion\n",
    "my.toml": "steps = 10\n",
    "mine.jsonl": '{"prompt": "1+1=?", "reference": "2", "split": "held_out"}\n',
}


def stand_in(text: str) -> str:
    for theirs, ours in STAND_INS:
        text = re.sub(theirs, ours, text)
    return text


UNIQUE = list({(stand_in(c.text), *c.environment.items()): c for c in reversed(list(commands()))}.values())
EXECUTED = [c for c in reversed(UNIQUE) if c.rule is not None and c.rule.how is not How.PARSE]


class Checked(Exception):
    """Everything was checked; the next thing would have been to start processes."""


@dataclass
class Reader:
    """Somebody who follows the pages in a directory of their own."""

    home: Path
    done: dict[str, subprocess.CompletedProcess] = field(default_factory=dict)

    def start(self, command: Command) -> None:
        """Real processes: a command of the pages, made small."""
        assert command.rule is not None
        arguments = [sys.executable, "-m", "reasoner.cli", *command.words[1:], *command.rule.small.split()]
        self.done[command.text] = subprocess.run(
            arguments, cwd=self.home, timeout=280, capture_output=True, text=True
        )
        assert not self.done[command.text].returncode, self.done[command.text].stderr

    def as_here(self, text: str) -> str:
        evaluation = next((self.home / "runs/first/eval").iterdir()).name
        return stand_in(text).replace("EVALUATION", evaluation)


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Reader:
    """Their directory: the pages' files, and `runs/first`, trained, resumed and evaluated."""
    home = tmp_path_factory.mktemp("reader")
    for block in blocks():
        if block.language == "python" and (name := re.match(r"# (\w+\.py)\n", block.text)):
            (home / name[1]).write_text(block.text)
        if block.language == "toml":
            (home / "train.toml").write_text(block.text)
    shown = {c.words[1]: c.output for c in commands() if c.words[0] == "cat"}
    for name, text in {**FILES, **shown}.items():
        (home / name).write_text(text)
    for folder in ("examples", "benchmarks"):
        (home / folder).symlink_to(ROOT / folder)
    rows = {"question": ["1+1=?"] * 40, "answer": ["2"] * 40, "level": [1] * 40}
    pq.write_table(pa.table(rows), home / "problems.parquet")
    reader = Reader(home)
    for pattern in (FIRST, RESUME, EVAL):
        reader.start(next(c for c in EXECUTED if re.match(pattern, c.text)))
    return reader


@pytest.fixture
def nothing_starts(monkeypatch):
    """Commands do all they do before processes start, then raise Checked."""

    def train(config, *, resume=None, **_):
        run = prepare(config, resume=resume)
        run.lock.close()
        if not resume:
            shutil.rmtree(run.path)
        raise Checked

    def evaluate(config, *, options):
        make_plan(config, options)
        raise Checked

    monkeypatch.setattr(reasoner.training, "train", train)
    monkeypatch.setattr(reasoner.evaluation.command, "evaluate", evaluate)
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)


@pytest.mark.parametrize("command", EXECUTED, ids=lambda command: f"{command.where} {command.text[:60]}")
def test_command(command: Command, reader: Reader, nothing_starts, monkeypatch) -> None:
    monkeypatch.chdir(reader.home)
    monkeypatch.syspath_prepend(str(reader.home))
    for name, value in command.environment.items():
        monkeypatch.setenv(name, value)
    if re.match(OWN_CODE, command.text):
        reader.start(command)
    elif command.text in reader.done:
        assert reader.done[command.text].returncode == 0
    elif command.words[0] == "cat":
        assert (reader.home / command.words[1]).read_text() == command.output
    elif command.words[0] == "python":
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, *command.words[1:]], check=True, env=environment)
    else:
        command_line(command, reader)


def command_line(command: Command, reader: Reader) -> None:
    """In this process, as the console script would do it."""
    rule = command.rule
    assert rule is not None
    arguments = shlex.split(reader.as_here(command.text))[1:] + rule.small.split()
    if arguments[0] == "export":
        shutil.rmtree(arguments[arguments.index("--out") + 1], ignore_errors=True)
    done = CliRunner().invoke(main, arguments)
    if rule.how is How.CHECK:
        assert isinstance(done.exception, Checked), done.output
    else:
        assert done.exit_code == 0, done.output
    if rule.exact and command.output:
        same = doctest.OutputChecker().check_output(command.output, done.stdout, doctest.ELLIPSIS)
        assert same, f"the page shows\n{command.output}\nbut it is\n{done.stdout}"


SQL = [block for block in blocks() if block.language == "sql"]


@pytest.mark.parametrize("block", SQL, ids=lambda block: f"{block.page}:{block.line}")
def test_query(block: Block, reader: Reader, monkeypatch) -> None:
    monkeypatch.chdir(reader.home)
    for query in filter(str.strip, reader.as_here(block.text).split(";")):
        duckdb.sql(query).fetchall()
