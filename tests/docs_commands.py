"""The commands and code blocks of README, CONTRIBUTING, docs/ and `--help`, and what the tests do with each.

A command in a fenced block is executed, unless RULES says otherwise and why: then it is checked up to the
point where processes would start, or parsed. One that no rule knows fails `tests/unit/test_docs.py`, so none
gets in unnoticed. Commands inside a sentence are parsed only.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
PROGRAMS = set(
    "reasoner make python python3.11 pip git cd cat export ray vllm ssh curl tensorboard wandb".split()
)
FENCE = re.compile(r"^( *)```([\w-]*)\n(.*?)^ *```$", re.M | re.S)
INLINE = re.compile(r"(?<!`)`((?:\.venv/bin/)?(?:reasoner|make|python -m) [^`]+)`(?!`)")


class How(Enum):
    RUN = "executed"
    CHECK = "everything is checked as at a real start; nothing is started"
    PARSE = "its options, configuration keys and targets exist"


@dataclass(frozen=True)
class Rule:
    """The first rule whose pattern matches a command decides. `small` is put behind the command."""

    pattern: str
    how: How
    reason: str = ""  # why not executed
    small: str = ""
    exact: bool = False  # what it prints is what the page shows, where the page shows something


TINY_RUN = (
    "--steps 2 --rollout.groups_per_step 4 --rollout.group_size 4 --rollout.max_tokens 32 --eval.problems 8 "
    "--eval.every 1 --checkpoint.every 1 --server.max_num_seqs 16 --server.kv_cache_gib 0.2"
)
EMBEDDED = "--model embedded --rollout.max_tokens 128"
FIRST = r"reasoner train --name first "
RESUME = r"reasoner train --resume runs/first "
EVAL = r"reasoner eval runs/first --samples 16$"
OWN_CODE = (
    r"reasoner train .*(--verifier short_and_right:|--tasks higher_lower:)"  # of quickstart, environments
)
RULES = (
    Rule(FIRST, How.RUN, small=TINY_RUN),
    Rule(RESUME, How.RUN, small="--steps 4"),
    Rule(OWN_CODE, How.RUN, small=TINY_RUN),
    Rule(r"reasoner train .*hf:", How.PARSE, "needs a hub"),
    Rule(r"reasoner train .*--runs_dir ", How.CHECK, "needs a cluster", f"--runs_dir runs {EMBEDDED}"),
    Rule(r"reasoner train .*--model ", How.CHECK, "minutes, and a model to download", EMBEDDED),
    Rule(r"reasoner train", How.CHECK, "each would cost half a minute; four are run"),
    Rule(EVAL, How.RUN, small="--problems 4 --samples 2"),
    Rule(r"reasoner eval .*(gsm8k|--endpoint)", How.PARSE, "needs a hub, or somebody's server"),
    Rule(r"reasoner eval runs/mixture", How.PARSE, "compares with an evaluation of those tasks"),
    Rule(r"reasoner eval", How.CHECK, "each would cost half a minute; one is run"),
    Rule(r"reasoner doctor", How.PARSE, "20 s of imports; tests/unit/test_doctor.py has every check"),
    Rule(r"reasoner replay .*--from", How.RUN, small="--from 2 --to 3"),
    Rule(r"reasoner forecast", How.RUN, small="--use 1"),
    Rule(r"reasoner view", How.RUN, small="--no-browser --port 0"),
    Rule(r"reasoner (verify|tasks .)", How.RUN, exact=True),
    Rule(r"reasoner ", How.RUN),
    Rule(r"python -m pytest", How.RUN),
    Rule(r"python -m benchmarks\.", How.PARSE, "minutes to hours"),
    Rule(r"python -m vllm", How.PARSE, "tests/integration/test_http_server.py starts the documented one"),
    Rule(r"make ", How.PARSE, "CI is `make lint`, `make docs` and `make test`; the others take long"),
    Rule(r"cat ", How.RUN),  # the file is made from what is shown
    Rule(r"cd |export |git clone", How.PARSE, "of the reader's machine"),
    Rule(r"(python3.11 -m venv|pip install)", How.PARSE, "installs"),
    Rule(
        r"(ray start|vllm serve|tensorboard|wandb|ssh|curl) ?", How.PARSE, "of other projects, or a cluster"
    ),
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command as a page shows it: `text` in one line without comment and `.venv/bin/`."""

    page: str
    line: int
    text: str
    environment: dict[str, str] = field(default_factory=dict, hash=False)
    output: str = ""  # what the page shows below it

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def rule(self) -> Rule | None:
        return next((rule for rule in RULES if re.match(rule.pattern, self.text)), None)


def blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text()
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 2
            yield Block(str(page.relative_to(ROOT)), line, match[2], match[3])


def commands() -> Iterator[Command]:
    """Those of fenced blocks, in order."""
    for block in blocks():
        lines = block.text.replace("\\\n", "\\\0").splitlines()
        if block.language == "console" or any(line.startswith("$ ") for line in lines):
            yield from _console(block, lines)
        elif block.language in ("bash", "sh") or any(_program(line) in PROGRAMS for line in lines):
            variables: dict[str, str] = {}
            for line, number in _numbered(lines, block.line):
                yield from _commands(block.page, number, line, variables=variables)


def inline_commands() -> Iterator[Command]:
    """Those inside sentences; words such as `[--out FILE]` or `…` that only describe are left out."""
    for page in PAGES:
        text = FENCE.sub(lambda match: "\n" * match[0].count("\n"), page.read_text())
        for match in INLINE.finditer(text):
            described = re.sub(r"[\[\]]|…|\.\.\.", "", match[1])
            yield from _commands(
                str(page.relative_to(ROOT)), text.count("\n", 0, match.start()) + 1, described
            )


def help_commands() -> Iterator[Command]:
    """The examples of `reasoner COMMAND --help`."""
    from reasoner.cli import main

    for name, command in main.commands.items():
        for line in (command.epilog or "").splitlines():
            if line.strip().startswith("reasoner "):
                yield from _commands(f"reasoner {name} --help", 0, line.strip())


def _console(block: Block, lines: list[str]) -> Iterator[Command]:
    """`$ ` begins a command; what follows is its output."""
    found: list[tuple[str, int, list[str]]] = []
    for line, number in _numbered(lines, block.line):
        if line.startswith("$ "):
            found.append((line[2:], number, []))
        else:
            found[-1][2].append(line)
    for line, number, output in found:
        yield from _commands(block.page, number, line, "".join(f"{text}\n" for text in output))


def _numbered(lines: list[str], first: int) -> Iterator[tuple[str, int]]:
    """Lines with their number in the page; what a backslash continues is one line."""
    for line in lines:
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.replace("\\\0", " "), first
        first += 1 + line.count("\0")


def _program(line: str) -> str:
    words = [word for word in line.split() if not re.match(r"[A-Z_]+=", word)]
    return words[0].removeprefix(".venv/bin/") if words else ""


def _commands(
    page: str, number: int, line: str, output: str = "", variables: dict[str, str] | None = None
) -> Iterator[Command]:
    """The commands of a line. `variables` are the shell's: a line of assignments alone adds to them."""
    variables = {} if variables is None else variables
    for part in re.split(r" && |; ", re.sub(r"\s+#\s.*$", "", line)):
        words = shlex.split(part)
        environment = {}
        while words and re.match(r"[A-Z_]+=", words[0]):
            name, _, environment[name] = words.pop(0).partition("=")
        if not words:
            variables.update(environment)
        else:
            words = [re.sub(r"\$(\w+)", lambda m: variables.get(m[1], m[0]), word) for word in words]
            words[0] = words[0].removeprefix(".venv/bin/")
            yield Command(page, number, shlex.join(words), environment, output)
