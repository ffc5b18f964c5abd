"""Standard task files, in files of our own writing with their schema."""

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from envs.tasks import check_trainable, load_tasks, splits_of
from reasoner.errors import UsageError
from verifiers import MathVerifier

ROWS = {
    "gsm8k": {"question": "How many?", "answer": "2+2=<<2+2=4>>4\nso 1,004\n#### 1,004"},
    "math500": {"problem": "What is $x$?", "answer": r"\frac{1}{2}", "subject": "Algebra", "level": 3},
    "aime24": {"problem": "Find it.", "answer": "073", "id": 60},
    "aime25": {"problem": "Find it.", "answer": "73", "id": "0"},
    "amc23": {"question": "Which?", "answer": 27.0, "id": 0},
}
RIGHT = {"gsm8k": "1004", "math500": "0.5", "aime24": "73", "aime25": "73", "amc23": "27"}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_local_file_in_the_schema_of_the_set(tmp_path, name, form):
    path = tmp_path / f"rows.{form}"
    if form == "jsonl":
        path.write_text(json.dumps(ROWS[name]) + "\n\n")
    else:
        pq.write_table(pa.Table.from_pylist([ROWS[name]]), path)
    source = load_tasks(f"{name}:{path}")
    assert splits_of(source) == (name,)
    (task,) = source.split(name, 10)
    assert MathVerifier().verify(f"so \\boxed{{{RIGHT[name]}}}", task).is_correct
    assert not MathVerifier().verify("so \\boxed{5}", task).is_correct
    assert source.finite and "{prompt}" in source.chat_template


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no tasks"),
        ('{"question": "How many?"}\n', "row 1: no 'answer'"),
        ('{"answer": "#### 4"}\n', "row 1: no 'question'"),
        ('{"question": "How many?", "answer": "4 ####"}\n', "no final value"),
        ("no json\n", "rows.jsonl:1"),
    ],
)
def test_bad_files_are_refused_with_their_place(tmp_path, text, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_tasks(f"gsm8k:{path}")


def test_no_file_and_no_training():
    with pytest.raises(UsageError, match="cannot read the tasks in nowhere.jsonl"):
        load_tasks("gsm8k:nowhere.jsonl")


def test_they_are_not_for_training(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS["gsm8k"]) + "\n")
    with pytest.raises(UsageError, match="for evaluation"):
        load_tasks(f"gsm8k:{path}").train(0)


@pytest.mark.parametrize(
    "spec", ["gsm8k", "gsm8k:FILE.jsonl", "arithmetic*3,aime24*2", "self_correct(tool_use(amc23,calls=2))"]
)
def test_that_is_said_before_anything_is_fetched(spec, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match="is for evaluation"):
        check_trainable(spec)
    check_trainable("arithmetic:levels=2,hf:gsm8k,tool_use(rg:gsm_symbolic(difficulty=1.0))")


def test_own_tasks_in_parquet(tmp_path):
    path = tmp_path / "mine.parquet"
    pq.write_table(pa.Table.from_pylist([{"prompt": "1+1", "reference": "2", "split": None}]), path)
    assert load_tasks(str(path)).training[0].reference == "2"
