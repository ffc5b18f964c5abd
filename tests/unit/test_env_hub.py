"""Hugging Face data sets: files, directories, presets in the hub's schema, and what is missing."""

import json

import pytest

from envs import FileTasks, load_tasks
from envs.catalogue import catalogue, describe, licences, without_paths
from envs.hub import PRESETS
from reasoner.errors import UsageError
from verifiers import load_verifier

pa = pytest.importorskip("pyarrow")
ROWS = [
    {
        "question": f"What is {i}+{i}?",
        "answer": f"Add them: {i}+{i}.\n#### {2 * i}",
        "level": f"Level {i % 5}",
    }
    for i in range(200)
]


@pytest.fixture
def parquet(tmp_path):
    import pyarrow.parquet

    path = tmp_path / "sums.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), path)
    return path


def test_a_file_with_a_column_mapping(parquet):
    source = load_tasks(f"hf:{parquet}(prompt=question, reference=answer, difficulty=level)", 3)
    assert isinstance(source, FileTasks) and source.finite
    task = source.train(0)
    number = int(task.prompt.split("+")[1][:-1])
    assert task.reference == str(2 * number) and task.difficulty == number % 5
    assert load_verifier("auto").verify(f"\\boxed{{{2 * number}}}", task).is_correct
    held = source.split("held_out", 500)
    assert held and len(held) + len(source.training) == 200
    assert not {t.id for t in held} & {t.id for t in source.training}
    assert source.train(7) == load_tasks(source_spec(parquet), 3).train(7)


def source_spec(path):
    return f"hf:{path}(prompt=question, reference=answer, difficulty=level)"


@pytest.mark.parametrize(
    ("level", "number"),
    [("-2", -2.0), ("Level 3", 3.0), ("grade-3", 3.0), ("L2.5", 2.5), ("1,000", 1000.0), (4, 4.0)]
    + [("Level ?", 0.0), ("", 0.0), ("1.2.3", 1.2), (float("inf"), 0.0), (True, 0.0)],
)
def test_difficulties_of_any_writing(tmp_path, level, number):
    lines = tmp_path / "one.jsonl"
    lines.write_text(json.dumps(ROWS[0] | {"level": level}))
    assert load_tasks(source_spec(lines)).training[0].difficulty == number


@pytest.mark.parametrize(("rows", "held"), [(1, 0), (4, 1), (20, 5), (40, 8), (100, 8)])
def test_a_small_set_has_held_out_rows_too(tmp_path, rows, held):
    lines = tmp_path / "few.jsonl"
    lines.write_text("\n".join(map(json.dumps, ROWS[:rows])))
    source = load_tasks(source_spec(lines))
    assert len(source.split("held_out", 99)) == held and len(source.training) == rows - held


def test_rows_with_the_same_prompt_are_on_the_same_side(tmp_path):
    lines = tmp_path / "twice.jsonl"
    lines.write_text("\n".join(map(json.dumps, [*ROWS[:20], *ROWS[:20]])))
    source = load_tasks(source_spec(lines))
    held = {t.prompt for t in source.split("held_out", 99)}
    assert held and not held & {t.prompt for t in source.training}
    lines.write_text("\n".join(map(json.dumps, ROWS[:1] * 20)))
    assert len(load_tasks(source_spec(lines)).training) == 20


def test_json_lines_and_a_saved_data_set_give_the_same(parquet, tmp_path):
    lines = tmp_path / "sums.jsonl"
    lines.write_text("\n".join(map(json.dumps, ROWS)))
    texts = [t.prompt for t in load_tasks(source_spec(parquet)).training]
    assert [t.prompt for t in load_tasks(source_spec(lines)).training] == texts
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved")
    assert [t.prompt for t in load_tasks(source_spec(tmp_path / "saved")).training] == texts


@pytest.mark.parametrize(
    ("name", "rows", "reference"),
    [
        ("gsm8k", [{"question": "q", "answer": "so\n#### 1,234"}], "1,234"),
        (
            "math",
            [
                {
                    "problem": "q",
                    "solution": "It is $\\boxed{\\frac{1}{2}}$.",
                    "type": "Algebra",
                    "level": "Level 4",
                }
            ],
            "\\frac{1}{2}",
        ),
        ("deepmath", [{"question": "q", "final_answer": "\\pi", "difficulty": 5.5, "topic": "x"}], "\\pi"),
    ],
)
def test_presets_in_the_hubs_schema(monkeypatch, name, rows, reference):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(path, subset, split):
        asked.append((path, subset, split))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = load_tasks(f"hf:{name}(held_out=test)")
    assert source.training[0].reference == reference
    assert asked[0] == (PRESETS[name].path, PRESETS[name].options.get("subset"), "train")
    if name == "math":
        assert (source.training[0].family, source.training[0].difficulty) == ("Algebra", 4.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "prompt=quest,reference=answer",
            "no column 'quest' for prompt: did you mean 'question'.*it has question",
        ),
        ("prompt=question", "no column 'reference' for reference .it has question, answer, level"),
        (
            "prompt=question,reference=solution",
            r"'solution' for reference \(it has .*\(prompt=question, reference=answer\)$",
        ),
        ("promt=question", "no option 'promt': did you mean 'prompt'"),
        ("prompt=question,reference=answer,family=topic", "no column 'topic' for family"),
    ],
)
def test_a_missing_column_names_those_there_are(parquet, options, message):
    with pytest.raises(UsageError, match=message):
        load_tasks(f"hf:{parquet}({options})")


def test_what_cannot_be_had_is_named(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="cannot read the tasks in .*none.parquet"):
        load_tasks(f"hf:{tmp_path}/none.parquet")
    with pytest.raises(UsageError, match="hf: needs a name"):
        load_tasks("hf:")
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"prompt": "", "reference": "1"}')
    with pytest.raises(UsageError, match="no row of train has a text in 'prompt'"):
        load_tasks(f"hf:{empty}")
    datasets = pytest.importorskip("datasets")

    def refuse(*args, **kwargs):
        raise ConnectionError("no route\nmore")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UsageError, match="train split cannot be had .ConnectionError: no route.; without a"):
        load_tasks("hf:some/where")


def test_a_file_may_not_name_code_as_its_verifier(tmp_path):
    path = tmp_path / "t.jsonl"
    line = {"prompt": "p", "reference": "1", "metadata": {"verifier": "os:system"}}
    path.write_text(json.dumps(line))
    with pytest.raises(
        UsageError, match="t.jsonl:1: metadata names the verifier 'os:system': a file may name math"
    ):
        load_tasks(str(path))
    path.write_text(json.dumps({**line, "metadata": {"verifier": "countdown"}}))
    assert load_tasks(str(path)).train(0).metadata == {"verifier": "countdown"}


def test_every_source_is_in_the_catalogue(monkeypatch):
    monkeypatch.setattr("envs.reasoning_gym.names", lambda: ["gcd"])
    entries = {entry.spec: entry for entry in catalogue()}
    assert {"arithmetic", "calculus", "tool_use(arithmetic,calls=4)", "hf:gsm8k", "rg:gcd"} <= set(entries)
    assert entries["calculus"].verifier == "math, antiderivative"
    assert entries["self_correct(arithmetic,tries=2)"].licence == "Apache-2.0"
    assert entries["rg:gcd"].size == "unlimited" and "→" in entries["rg:gcd"].example
    assert entries["hf:gsm8k"].example.endswith("→  72") and entries["gsm8k"].licence == "MIT"
    assert all(entry.licence and entry.example for entry in entries.values())
    assert describe("examples/products.jsonl").size == "48"


@pytest.mark.parametrize(
    ("tasks", "found"),
    [
        ("arithmetic:levels=1-2", {"arithmetic": "Apache-2.0"}),
        ("self_correct(arithmetic:levels=2,tries=3)", {"arithmetic": "Apache-2.0"}),
        ("tool_use(linear*2,rg:gcd(levels=0))*3,hf:gsm8k",
         {"linear": "Apache-2.0", "rg:gcd": "Apache-2.0", "hf:gsm8k": "MIT"}),
        ("hf:me/sums(prompt=countdown,reference=math)", {}),
        ("math.jsonl,my_module:linear", {}),
    ],
)  # fmt: skip
def test_licences_of_a_specification(tasks, found):
    assert licences(tasks) == found


@pytest.mark.parametrize(
    ("tasks", "shown"),
    [
        ("arithmetic:levels=1-2", "arithmetic:levels=1-2"),
        ("\nrg:gcd(levels=0)*2,\nlinear\n", "rg:gcd(levels=0)*2, linear"),
        ("hf:OWNER/NAME(prompt=a)", "hf:OWNER/NAME(prompt=a)"),
        ("hf:/data/x.parquet(prompt=a)*0.5", "hf:x.parquet(prompt=a)*0.5"),
        ("hf:../x.jsonl,prompt=a", "hf:x.jsonl,prompt=a"),
        ("hf:/", "hf:"),
        ("/home/me/my tasks.jsonl", "my tasks.jsonl"),
        ("/home/me/own.py:Tasks", "own.py:Tasks"),
        ("tool_use(/home/me/own.py:Tasks, linear, calls=3)", "tool_use(own.py:Tasks, linear, calls=3)"),
    ],
)  # fmt: skip
def test_a_specification_without_paths(tasks, shown):
    assert without_paths(tasks) == shown


def test_the_commands(tmp_path):
    from click.testing import CliRunner

    from reasoner.cli import main

    shown = CliRunner().invoke(main, ["tasks", "arithmetic*2,linear", "--count", "6"])
    assert shown.exit_code == 0 and shown.output.count("train ") == 6 and "Solve for x" in shown.output
    wrong = CliRunner().invoke(main, ["tasks", "rg:chain_sums"])
    assert wrong.exit_code == 2 and "did you mean 'chain_sum'" in wrong.output
