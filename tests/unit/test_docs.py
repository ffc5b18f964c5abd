"""Nothing in the documentation is out of date by its form: commands, configuration, imports.

What can be executed in CI is executed by tests/integration/test_docs_commands.py."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib

import click
import pytest
import yaml
from click.exceptions import Exit
from docs_commands import ROOT, RULES, Block, Command, How, blocks, commands, help_commands, inline_commands

from reasoner.cli import main
from reasoner.config import config_keys, load_config, parse_overrides
from reasoner.errors import UsageError

SHOWN = [*commands(), *help_commands()]
OURS = ("reasoner", "envs", "verifiers", "rollouts")
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))


def of_language(language: str) -> list:
    return [
        pytest.param(block, id=f"{block.page}:{block.line}")
        for block in blocks()
        if block.language == language
    ]


def parse(words: list[str]) -> None:
    """Raises what the command line would for unknown commands, options, keys and values of keys."""
    name, *arguments = words[1:]
    command = main.get_command(click.Context(main), name)
    assert command is not None, f"there is no command {name}"
    try:
        found = command.make_context(name, arguments).params
    except Exit:  # --help
        return
    if name == "train":
        keys = [word for i, word in enumerate(found["arguments"]) if i or word.startswith("-")]
        load_config(None, parse_overrides(keys))


def check(command: Command) -> None:
    words = command.words
    if words[0] == "make":
        assert set(words[1:]) <= TARGETS
    elif words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
        source = ROOT.joinpath(*words[2].split(".")).with_suffix(".py").read_text()
        assert not [word for word in words if word.startswith("--") and word not in source]


@pytest.mark.parametrize("command", SHOWN, ids=lambda command: command.where)
def test_every_command_can_be_parsed(command: Command) -> None:
    parse(command.words) if command.words[0] == "reasoner" else check(command)


@pytest.mark.parametrize("command", list(inline_commands()), ids=lambda command: command.where)
def test_every_option_in_a_sentence_exists(command: Command) -> None:
    check(command)
    words = command.words
    if words[0] == "reasoner" and len(words) > 1 and not words[1].startswith("-"):
        known = {option for parameter in main.commands[words[1]].params for option in parameter.opts}
        known |= {f"--{key}" for key, _, _ in config_keys() if words[1] == "train"} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("command", list(commands()), ids=lambda command: command.where)
def test_every_command_is_executed_or_says_why_not(command: Command) -> None:
    rule = command.rule
    assert rule is not None, f"no rule in tests/docs_commands.py for: {command.text}"
    assert rule.how is How.RUN or rule.reason


def test_every_rule_is_needed() -> None:
    used = {command.rule for command in commands()}
    assert not [rule.pattern for rule in RULES if rule not in used]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train --lerner.lr 1", "unknown configuration key"),
        ("train --learner.lr fast", "learner.lr"),
        ("eval runs/first --sample 4", "No such option"),
        ("nonsense", "no command"),
        ("verify", "Missing"),
    ],
)
def test_a_typo_is_found(text: str, message: str) -> None:
    with pytest.raises((click.ClickException, UsageError, AssertionError), match=message):
        parse(["reasoner", *text.split()])


@pytest.mark.parametrize("block", of_language("toml"))
def test_toml_is_a_configuration(block: Block, tmp_path) -> None:
    assert tomllib.loads(block.text)
    (tmp_path / "page.toml").write_text(block.text)
    load_config(tmp_path / "page.toml")


@pytest.mark.parametrize("block", of_language("yaml"))
def test_yaml_can_be_read(block: Block) -> None:
    assert yaml.safe_load(block.text)


@pytest.mark.parametrize("block", of_language("python"))
def test_python_compiles_and_imports_what_exists(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def messages() -> set[str]:
    """Every text in our sources, with `…` for what an f-string puts in."""
    found = set()
    for path in (path for package in OURS for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.add("".join(p.value if isinstance(p, ast.Constant) else "…" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def test_messages_of_the_faq_are_still_ours() -> None:
    headings = re.findall(r"^### `([^`]+ [^`]+)`$", (ROOT / "docs/faq.md").read_text(), re.M)
    patterns = [".*".join(map(re.escape, re.split("…", heading))) for heading in headings]
    ours = messages()
    missing = [
        h for h, p in zip(headings, patterns, strict=True) if not any(re.search(p, m, re.S) for m in ours)
    ]
    assert len(headings) > 10 and not missing
