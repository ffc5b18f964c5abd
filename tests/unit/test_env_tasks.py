"""Task sources: specs, JSONL files line by line, templates."""

import json
import sys
import types

import pytest
from click.testing import CliRunner

from envs import ArithmeticTasks, FileTasks, TaskSource, TextEnv, load_tasks, render_prompt
from reasoner.cli import main
from reasoner.errors import UsageError
from reasoner.types import Task


def write(tmp_path, *lines):
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(path)


def test_arithmetic_specs():
    assert load_tasks("arithmetic", 4) == ArithmeticTasks(4)
    assert load_tasks("arithmetic:levels=1-3") == ArithmeticTasks(levels=(1, 2, 3))
    assert load_tasks("arithmetic:levels=2|4,families=chain|product") == ArithmeticTasks(
        levels=(2, 4), families=("chain", "product")
    )
    assert isinstance(load_tasks("arithmetic"), TaskSource)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("aritmetic", "did you mean 'arithmetic'"),
        ("zzz", "known: arithmetic"),
        ("", "unknown tasks"),
        ("arithmetic:level=2", "no option 'level'"),
        ("arithmetic:levels=two", "cannot read levels='two'"),
        ("arithmetic:levels=3-9", "no level 5"),
        ("arithmetic:families=sums", "no family 'sums'"),
        ("nowhere.jsonl", "cannot read the tasks in nowhere.jsonl"),
        (
            "no_such_module_here:tasks",
            "cannot import the tasks .* no module 'no_such_module_here' in the cur",
        ),
        ("json:no_such_attribute", "no attribute 'no_such_attribute'"),
        ("json:__doc__", "not a TaskSource"),
    ],
)
def test_bad_specs_are_usage_errors(spec, message):
    with pytest.raises(UsageError, match=message):
        load_tasks(spec)


def test_a_task_source_of_ones_own(monkeypatch):
    module = types.ModuleType("my_tasks")
    module.make = lambda seed: ArithmeticTasks(seed, levels=(1,))
    monkeypatch.setitem(sys.modules, "my_tasks", module)
    assert load_tasks("my_tasks:make", 7) == ArithmeticTasks(7, levels=(1,))


def test_sources_and_environments_in_a_file_of_ones_own(tmp_path):
    file = tmp_path / "my.tasks.py"
    file.write_text(
        "from dataclasses import replace\n"
        "from envs import SingleTurnEnv\n"
        "from envs.arithmetic import ArithmeticTasks\n"
        "source = ArithmeticTasks(levels=(2,))\n"
        "def made(seed): return replace(source, seed=seed)\n"
        "class Env(SingleTurnEnv):\n"
        "    def __init__(self): super().__init__(draw=source.train)\n"
    )
    assert load_tasks(f"{file}:source").train(0).difficulty == 2
    assert load_tasks(f"{file}:made", 5).train(1) == ArithmeticTasks(5, levels=(2,)).train(1)
    assert load_tasks(f"{file}:Env").split("held_out", 3)
    assert load_tasks(f"countdown,{file}:source").split("held_out", 4)[3].family
    with pytest.raises(UsageError, match=r"my\.tasks\.py has no attribute 'sauce'"):
        load_tasks(f"{file}:sauce")
    with pytest.raises(UsageError, match=r"no such file: .*nowhere\.py"):
        load_tasks(f"{tmp_path}/nowhere.py:source")
    file.write_text("import gymnasium\nclass Plain(gymnasium.Env): pass")
    with pytest.raises(
        UsageError, match=r"^Plain is a gymnasium\.Env but not an envs\.TextEnv.*environments\.md"
    ):
        load_tasks(f"{file}:Plain")
    file.write_text("import no_such_neighbour")
    with pytest.raises(UsageError, match="ModuleNotFoundError: No module named 'no_such_neighbour'"):
        load_tasks(f"{file}:Plain")
    file.write_text("1 / 0")
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        load_tasks(f"{file}:source")


def test_chat_prompts_are_shown_as_people_read_them(tmp_path):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    file = write(tmp_path, {"prompt": messages, "reference": ["4", "four"]})
    shown = CliRunner().invoke(main, ["tasks", file, "--count", "1"]).output
    assert "system: Be brief.  user: 2+2?  →  4 or four" in shown and "{" not in shown


def test_a_file_of_tasks(tmp_path):
    chat = [{"role": "user", "content": "2+2?"}]
    spec = write(
        tmp_path,
        {"prompt": "1+1", "reference": 2},
        "",
        {"prompt": chat, "reference": ["4", "four"], "id": "x", "family": "f", "difficulty": 3},
        {"prompt": "3+3", "reference": "6", "split": "held_out", "metadata": {"from": "book"}},
    )
    source = load_tasks(spec)
    assert isinstance(source, FileTasks) and isinstance(source, TaskSource)
    assert source.training == (
        Task("tasks/1", "1+1", "2"),
        Task("x", tuple(chat), ("4", "four"), "f", 3.0),
    )
    assert source.split("held_out", 5) == [Task("tasks/4", "3+3", "6", metadata={"from": "book"})]
    assert source.split("ood", 1) == []
    with pytest.raises(UsageError, match="no split 'dev'"):
        source.split("dev", 1)


def test_the_stream_of_a_file_goes_through_every_task_once_an_epoch(tmp_path):
    spec = write(tmp_path, *({"prompt": f"{i}+1", "reference": str(i + 1)} for i in range(20)))
    source = load_tasks(spec, seed=2)
    epochs = [[source.train(20 * e + i).prompt for i in range(20)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) and len(set(epochs[0])) == 20
    assert epochs[0] != epochs[1]
    assert load_tasks(spec, seed=2).train(33) == source.train(33)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":2: "),
        ("[1]", "expected an object"),
        ({"prompt": "p"}, "'reference' is missing"),
        ({"reference": "p"}, "'prompt' is missing"),
        ({"prompt": " ", "reference": "1"}, "prompt must be"),
        ({"prompt": [{"role": "user"}], "reference": "1"}, "prompt must be"),
        ({"prompt": "p", "reference": None}, "reference must be"),
        ({"prompt": "p", "reference": True}, "reference must be"),
        ({"prompt": "p", "reference": []}, "reference must be"),
        ({"prompt": "p", "reference": " "}, "reference must be"),
        ({"prompt": "p", "reference": "1", "difficulty": "hard"}, "difficulty must be a number"),
        ({"prompt": "p", "reference": "1", "family": 3}, "family must be a text"),
        ({"prompt": "p", "reference": "1", "split": "test"}, "unknown split 'test'"),
        ({"prompt": "p", "reference": "1", "metadata": 1}, "metadata must be"),
        ({"prompt": "p", "reference": "1", "dificulty": 1}, "did you mean 'difficulty'"),
        (
            {"prompt": "p", "reference": "1", "note": 1},
            "field 'note'. A task has the fields prompt, reference, id",
        ),
        (
            {"question": "p", "answer": "1"},
            r"names write hf:/.*tasks.jsonl\(prompt=question, reference=answer\)",
        ),
        ({"problem": "p", "answer": "1"}, r"\(prompt=problem, reference=answer\)"),
        ({"ask": "p", "answer": "1", "solution": "1"}, r"\(prompt=COLUMN, reference=COLUMN\)"),
        ('{"prompt": "p', r"tasks.jsonl:2: Unterminated string starting at \(column 12\)$"),
        ({"prompt": "p", "reference": "1", "id": "tasks/1"}, "already used on line 1"),
    ],
)
def test_every_bad_line_names_file_and_line(tmp_path, line, message):
    spec = write(tmp_path, {"prompt": "1+1", "reference": "2"}, line)
    with pytest.raises(UsageError, match=message) as caught:
        load_tasks(spec)
    assert str(caught.value).startswith(f"{spec}:2: ")


def test_bytes_that_are_no_text_and_empty_files(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"prompt": "\xff", "reference": "1"}')
    with pytest.raises(UsageError, match="bad.jsonl:1: "):
        load_tasks(str(path))
    path.write_bytes(b"\n\n")
    with pytest.raises(UsageError, match="holds no tasks"):
        load_tasks(str(path))


def test_a_file_of_evaluation_tasks_cannot_be_trained_on(tmp_path):
    source = load_tasks(write(tmp_path, {"prompt": "1", "reference": "1", "split": "ood"}))
    with pytest.raises(UsageError, match="no training tasks"):
        source.train(0)


def test_render_prompt():
    assert render_prompt("1+2", "{prompt}=?\n") == "1+2=?\n"
    assert render_prompt("a{b}", "Box \\boxed{{}}: {prompt}") == "Box \\boxed{}: a{b}"


@pytest.mark.parametrize("template", ["no placeholder", "{prompt} {other}", "{prompt} {", "{}"])
def test_bad_templates(template):
    with pytest.raises(UsageError, match="template"):
        render_prompt("1+2", template)


def test_messages_are_not_rendered_by_a_text_template():
    with pytest.raises(UsageError, match="chat template"):
        render_prompt(({"role": "user", "content": "x"},), "{prompt}")


def test_the_environment_of_a_task():
    env = ArithmeticTasks().env(Task("t", "1+2", "3"))
    assert isinstance(env, TextEnv)
    assert env.reset()[0] == "1+2"


def test_the_environment_of_chat_messages_observes_the_last_one():
    task = Task("t", ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}), "4")
    assert ArithmeticTasks().env(task).reset()[0] == "2+2?"
