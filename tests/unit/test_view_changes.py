import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reasoner.errors import UsageError
from reasoner.view.changes import both, changes, evaluations


def evaluation(run, name: str, right: dict[str, list[bool]]) -> None:
    """Samples of the problems `right`, each right or not."""
    rows = [
        {
            "split": "held_out",
            "task_id": task,
            "prompt": f"what is {task}?",
            "sample": i,
            "completion": f"{name} {i}",
            "status": "correct" if good else "wrong",
            "tokens": 10 + i,
        }
        for task, goods in right.items()
        for i, good in enumerate(goods)
    ]
    directory = run / "eval" / name
    directory.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), directory / "samples.parquet")
    (directory / "eval.json").write_text(json.dumps({"model": name, "splits": {"held_out": {}}}))


@pytest.fixture
def run(tmp_path):
    evaluation(tmp_path, "step_000010-sums-1a2b", {"a": [True, True], "b": [False, True], "c": [True, False]})
    evaluation(
        tmp_path,
        "embedded-sums-3c4d",
        {"a": [True, True], "b": [True, True], "c": [False, False], "d": [True]},
    )
    return tmp_path


def test_the_base_model_comes_first(run):
    assert [e["label"] for e in evaluations(run)] == ["embedded-sums", "step_000010-sums"]


def test_evaluations_of_the_same_name_are_told_apart(run):
    evaluation(run, "embedded-sums-5e6f", {"e": [True]})
    labels = [e["label"] for e in evaluations(run)]
    assert labels == ["embedded-sums-3c4d", "embedded-sums-5e6f", "step_000010-sums"]


def test_the_largest_change_comes_first_and_a_loss_before_a_gain(run):
    found = changes(run, "embedded-sums-3c4d", "step_000010-sums-1a2b", "")
    assert [(r["task_id"], r["before"], r["after"]) for r in found["rows"]] == [
        ("b", 1.0, 0.5),
        ("c", 0.0, 0.5),
        ("a", 1.0, 1.0),
    ]
    assert (found["problems"], found["better"], found["worse"]) == (3, 1, 1)
    assert found["before"] == pytest.approx(2 / 3) and found["after"] == pytest.approx(2 / 3)


def test_the_samples_of_one_problem(run):
    found = both(run, "embedded-sums-3c4d", "step_000010-sums-1a2b", "held_out", "b")
    assert [[s["status"] for s in side] for side in found["sides"]] == [["correct"] * 2, ["wrong", "correct"]]


@pytest.mark.parametrize("name", ["../..", "nothing", ""])
def test_only_evaluations_of_the_run_are_read(run, name):
    with pytest.raises(UsageError, match="there is no evaluation"):
        changes(run, name, "embedded-sums-3c4d", "held_out")
